"""From files to labelled sets: every splitter, labeler and processor, and what a user asks of the result."""
import copy, random

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from exp.core import load_state, save_state, set_seed
from exp.data_block import (CategoryProcessor, FloatList, ImageList, ItemList, LabelList, LabeledData,
                            Processor, SplitData)
from exp.losses import CrossEntropy, SquaredLoss
from exp.specs import from_spec, to_spec
from exp.transforms import Transform

COLOURS = dict(blue=(10, 20, 230), green=(10, 220, 20), red=(240, 30, 20))

def write_images(root, counts, size=(24, 18), ending='.png', mode='RGB'):
    "Images of one colour in folders: counts maps 'train/red' to how many."
    n = 0
    for folder, count in counts.items():
        (root/folder).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            colour = COLOURS[folder.split('/')[-1]]
            im = np.full((size[1], size[0], 3), colour, np.uint8)
            im[:, :size[0]//2] //= 2          # the left half is darker, so that a flip shows
            im[0, 0] = n % 256                # no two alike
            Image.fromarray(im).convert(mode).save(root/folder/f'{k:02}{ending}')
            n += 1
    return root

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = write_images(tmp_path_factory.mktemp('colours'),
                        {'train/blue': 5, 'train/green': 6, 'train/red': 7, 'val/blue': 2, 'val/green': 3,
                         'val/red': 2, 'test': 0, 'test/red': 3})
    (root/'train'/'red'/'notes.txt').write_text('no image')
    (root/'train'/'.hidden.png').write_bytes(b'')
    return root

class Jitter(Transform):
    "Random brightness of a byte tensor."
    order, random = 40, True
    def draw(self, x, rng): return rng.randrange(0, 40)
    def image(self, x, draw): return (x//2 + draw)

class Flip(Transform):
    "Left and right change places with a probability, on PIL images."
    order, random, moves = 10, True, True
    def draw(self, x, rng): return rng.random() < 0.5
    def image(self, im, draw): return im.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw else im

class BatchShift(Transform):
    "Adds a number of its own to each item of a batch."
    order, on, random = 20, 'batch', True
    def draw(self, xb, rngs): return torch.tensor([r.random() for r in rngs])
    def image(self, xb, draw): return xb + draw[:, None, None, None]

def darker(x): return x//2
darker.order = 50

def labeled(folder): return ImageList.from_folder(folder).split_by_folder().label_from_folder()
def names(part): return [p.relative_to(part.path).as_posix() for p in part.items]
def all_batches(dl): return [(xb.clone(), yb.clone(), list(b.items)) for b in dl for xb, yb in [b]]
def same(a, b):
    return (len(a) == len(b) and all(torch.equal(x, u) and torch.equal(y, v) and i == j
                                     for (x, y, i), (u, v, j) in zip(a, b)))

# ---- files and items

def test_an_item_list_is_a_list_that_says_what_it_holds(folder):
    items = ImageList.from_folder(folder/'train')
    assert len(items) == 18 and items[0] == folder/'train'/'blue'/'00.png' and items[-1].name == '06.png'
    assert repr(items).startswith('ImageList (18 items) [blue/00.png, ') and str(folder) not in repr(items)
    assert len(items.filter(lambda p: p.parent.name == 'red')) == 7 and len(items) == 18

@pytest.mark.parametrize('make', [lambda p: p, lambda p: str(p), lambda p: p.read_bytes(),
                                  lambda p: Image.open(p), lambda p: np.array(Image.open(p)),
                                  lambda p: torch.from_numpy(np.array(Image.open(p))).permute(2, 0, 1)],
                         ids=['path', 'str', 'bytes', 'PIL', 'array', 'tensor'])
def test_image_lists_open_all_that_an_image_can_be(folder, make):
    path = folder/'train'/'red'/'00.png'
    got = ImageList([make(path)], folder).get(0)
    assert isinstance(got, Image.Image) and np.array_equal(np.array(got), np.array(Image.open(path)))

def test_names_are_relative_to_the_list_s_folder(folder):
    assert ImageList(['train/red/00.png'], folder).get(0).size == (24, 18)

def test_items_come_from_a_table(folder, tmp_path):
    df = pd.DataFrame(dict(label=['red', 'blue'], name=['red/00', 'blue/01']))
    items = ImageList.from_df(df, folder, col='name', folder='train', suffix='.png')
    assert (names(items) == ['train/red/00.png', 'train/blue/01.png']
            and names(ImageList.from_df(df, folder, col=1, folder='train', suffix='.png')) == names(items))
    df.to_csv(folder/'some.csv', index=False, sep=';')
    try:
        assert (names(ImageList.from_csv(folder, 'some.csv', col='name', folder='train', suffix='.png',
                                         sep=';')) == names(items))
    finally: (folder/'some.csv').unlink()

# ---- splits

def parts_of(items, split): return set(names(split.train)), set(names(split.valid))

def test_split_by_folder_and_grandparent(folder):
    items = ImageList.from_folder(folder)
    by_folder, by_grandparent = items.split_by_folder(), items.split_by_grandparent()
    train, valid = parts_of(items, by_folder)
    assert (len(train) == 18 and len(valid) == 7 and all(n.startswith('train/') for n in train)
            and all(n.startswith('val/') for n in valid))
    assert parts_of(items, by_grandparent) == (train, valid)
    train, valid = parts_of(items, items.split_by_folder(train=['train', 'val'], valid='test'))
    assert len(train) == 25 and len(valid) == 3

def test_split_random_is_the_same_for_a_seed(folder):
    items = ImageList.from_folder(folder, include='train')
    a, b, c = (parts_of(items, items.split_random(0.25, seed=s)) for s in (1, 1, 2))
    assert a == b != c and len(a[1]) == round(0.25*18) and not a[0] & a[1] and len(a[0] | a[1]) == 18

def test_split_random_leaves_the_global_generators_alone(folder):
    set_seed(3)
    want = torch.rand(1).item(), random.random(), np.random.rand()
    set_seed(3)
    ImageList.from_folder(folder).split_random()
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == want

def test_split_random_by_default_follows_the_settings_seed(folder, monkeypatch):
    items = ImageList.from_folder(folder)
    a = parts_of(items, items.split_random())
    monkeypatch.setenv('EXP_SEED', '77')
    assert parts_of(items, items.split_random()) != a

def test_split_by_func_index_and_files(folder, tmp_path):
    items = ImageList.from_folder(folder, include='train')
    assert (parts_of(items, items.split_by_func(lambda p: p.stem == '03'))[1]
            == {f'train/{c}/03.png' for c in COLOURS})
    assert parts_of(items, items.split_by_index([0, -1]))[1] == {'train/blue/00.png', 'train/red/06.png'}
    assert (parts_of(items, items.split_by_index(np.array([0, 17])))[1]
            == {'train/blue/00.png', 'train/red/06.png'})
    want = ['train/red/02.png', 'train/blue/04.png']
    (tmp_path/'valid.txt').write_text('\n'.join(want) + '\n')
    assert (parts_of(items, items.split_by_files(want))[1]
            == parts_of(items, items.split_by_files(tmp_path/'valid.txt'))[1] == set(want))

def test_split_none_has_no_validation_set(folder):
    split = ImageList.from_folder(folder).split_none()
    assert split.valid is None and len(split.train) == 28
    data = split.label_from_folder().transform(size=8).databunch(bs=4)
    assert data.valid_dl is None and len(data.train_ds) == 28 and data.classes == ['blue', 'green', 'red']

def test_a_split_made_by_hand_is_labeled_as_any_other(folder):
    items = ImageList.from_folder(folder/'train')
    split = SplitData(ImageList(items.items[::2], items.path), ImageList(items.items[1::2], items.path))
    assert not split.labeled and split.classes is None and split.path == folder/'train'
    done = split.label_from_folder()
    assert isinstance(done, SplitData) and done.labeled and done.c == 3 and len(done.valid) == 9

@pytest.mark.parametrize('split, error, words', [
    (lambda l: l.split_by_folder(train='trian'), ValueError, 'trian'),
    (lambda l: l.split_by_folder(valid='train'), ValueError, 'train'),
    (lambda l: l.split_by_func(lambda p: True), ValueError, 'training'),
    (lambda l: l.split_by_func(lambda p: False), ValueError, 'validation'),
    (lambda l: l.split_by_index([]), ValueError, 'validation'),
    (lambda l: l.split_by_index([28]), IndexError, 'range'),
    (lambda l: l.split_by_index(range(28)), ValueError, 'training'),
    (lambda l: l.split_random(0.), ValueError, 'validation'),
    (lambda l: l.split_random(1.5), ValueError, 'training'),
    (lambda l: l.split_random(0.001), ValueError, 'validation'),
    (lambda l: l.split_by_files(['train/red/77.png']), ValueError, '77.png'),
    (lambda l: l.split_by_files(['00.png']), ValueError, '00.png'),
    (lambda l: l.split_by_files('nowhere.txt'), FileNotFoundError, 'nowhere.txt')])
def test_splits_that_cannot_be_say_why(folder, split, error, words):
    with pytest.raises(error, match=words): split(ImageList.from_folder(folder))

# ---- labels and processors

def labels_of(part): return [part.y.decode(part.y.get(i)) for i in range(len(part))]

def test_label_from_folder_re_and_func_agree(folder):
    split = lambda: ImageList.from_folder(folder).split_by_folder()
    a, b, c = split().label_from_folder(), split().label_from_re(
        r'/(\w+)/\d+\.png$'), split().label_from_func(lambda p: p.parent.name)
    assert (labels_of(a.train) == labels_of(b.train) == labels_of(c.train) == ['blue']*5 + ['green']*6
            + ['red']*7)
    assert labels_of(a.valid) == labels_of(b.valid) == labels_of(c.valid)
    assert (a.classes == a.train.classes == ['blue', 'green', 'red'] and a.c == a.valid.c == 3
            and a.train.kind == 'category')

@pytest.mark.parametrize('sep', [',', ';', '\t'])
def test_label_from_csv_with_a_separator_and_a_suffix(folder, tmp_path, sep):
    items = ImageList.from_folder(folder).split_by_folder()
    df = pd.DataFrame([(n[:-4], n.split('/')[1][0]) for n in names(items.train) + names(items.valid)],
                      columns=['file', 'tag'])
    df.to_csv(tmp_path/'tags.csv', sep=sep, index=False)
    got = items.label_from_csv(tmp_path/'tags.csv', sep=sep, suffix='.png')
    assert got.classes == ['b', 'g', 'r'] and labels_of(got.train)[0] == 'b'
    again = ImageList.from_folder(folder).split_by_folder().label_from_df(df, col='file', label_col='tag',
                                                                          suffix='.png')
    assert labels_of(again.valid) == labels_of(got.valid)

def test_several_columns_and_several_labels_in_a_cell(folder):
    split = lambda: ImageList.from_folder(folder).split_by_folder()
    rows = [(n, 0.5, k) for k, n in enumerate(names(split().train) + names(split().valid))]
    df = pd.DataFrame(rows, columns=['name', 'a', 'b'])
    df['tags'] = ['x y', 'y', 'x y z'] + ['z']*(len(df) - 3)
    points = split().label_from_df(df, label_col=['a', 'b'], label_cls=FloatList)
    assert (points.c == 2 and torch.equal(points.train.y.get(3), torch.tensor([0.5, 3.]))
            and isinstance(points.train.loss_func, SquaredLoss))
    many = split().label_from_df(df, label_col='tags', label_delim=' ', label_cls=LabelList)
    assert many.train.y.items[2] == ['x', 'y', 'z']

def test_floats_become_a_regression_and_their_default_loss(folder):
    data = ImageList.from_folder(folder).split_by_folder().label_from_func(lambda p: float(p.stem)/7)
    assert (isinstance(data.train.y, FloatList) and data.train.kind == 'number' and data.classes is None
            and data.c == 1)
    xb, yb = next(iter(data.transform(size=8).databunch(bs=4).train_dl))
    assert yb.shape == (4, 1) and yb.dtype == torch.float32

def test_categories_bring_cross_entropy(folder):
    assert isinstance(labeled(folder).train.loss_func, CrossEntropy)

def test_the_classes_are_learned_on_the_training_set_alone(folder):
    split = lambda: ImageList.from_folder(folder).split_by_func(lambda p: p.parent.name == 'red')
    with pytest.raises(ValueError, match='red'): split().label_from_folder()
    with_other = split().label_from_folder(other='another')
    assert (with_other.classes == ['blue', 'green', 'another']
            and set(labels_of(with_other.valid)) == {'another'})
    given = split().label_from_folder(classes=['red', 'green', 'blue'])
    assert given.classes == ['red', 'green', 'blue'] and set(labels_of(given.valid)) == {'red'}

class Doubled(Processor):
    "Doubles, and keeps the largest of the training set."
    def learn(self, items): self.largest = max(items)
    def process(self, item): return min(2*item, self.largest)
    def state_dict(self): return {'largest': self.largest}
    def load_state_dict(self, state): self.largest = state['largest']

def test_processors_of_items_run_in_order_and_learn_in_training_only():
    class Plus(Processor):
        def process(self, item): return item + 1
    class Numbers(ItemList): processors = (Plus, Doubled)
    data = Numbers(list(range(10))).split_by_index([8, 9]).label_from_func(lambda n: n % 2)
    # the largest in training is 8
    assert data.train.x.items == [2, 4, 6, 8, 8, 8, 8, 8] and data.valid.x.items == [8, 8]
    assert (data.valid.x.processors is data.train.x.processors
            and Numbers([1]).processors[1] is not data.train.x.processors[1])
    assert data.train.y.items == [0, 1]*4   # labels see items as they were

def test_a_category_processor_s_state_brings_it_back(tmp_path):
    proc = CategoryProcessor(other='rest')
    proc.learn(['b', 'a', 'b'])
    save_state(tmp_path/'p.pt', proc.state_dict())
    new = from_spec(to_spec(proc))
    new.load_state_dict(load_state(tmp_path/'p.pt'))
    assert (new.classes == proc.classes == ['a', 'b', 'rest'] and new.process('zzz') == 2
            and new.decode(torch.tensor(1)) == 'b')

# ---- the result as a user sees it

def test_the_sentence_of_the_documentation(folder):
    data = ImageList.from_folder(folder).split_by_folder().label_from_folder().transform(size=16).databunch(
        bs=4).normalize()
    assert (data.classes == ['blue', 'green', 'red'] and data.c == 3 and data.kind == 'category'
            and isinstance(data.loss_func, CrossEntropy))
    x, y = data.train_ds[0]
    assert x.shape == (3, 16, 16) and x.dtype == torch.uint8 and y.item() == 0 and y.dtype == torch.int64
    xb, yb = data.one_batch()
    assert (xb.shape == (4, 3, 16, 16) and xb.dtype == torch.float32 and yb.shape == (4,)
            and yb.dtype == torch.int64)
    assert len(data.train_dl) == 5 and len(data.valid_dl) == 1 and data.valid_dl.bs == 8

def test_every_part_says_what_it_is(folder):
    split = ImageList.from_folder(folder).split_by_folder()
    assert 'train: ImageList (18 items)' in repr(split) and 'valid: ImageList (7 items)' in repr(split)
    done = split.label_from_folder().transform([Flip()], size=16)
    assert ('CategoryList of 3 classes' in repr(done) and 'MakeRGB()' in repr(done)
            and 'ResizeFixed(size=16)' in repr(done) and 'Flip()' in repr(done))
    data = done.databunch(bs=4).normalize(([0.5]*3, [0.25]*3))
    assert 'train' in repr(data) and 'Normalize' in repr(data.batch_tfms[0])

def test_help_where_a_step_is_left_out(folder):
    items = ImageList.from_folder(folder)
    with pytest.raises(AttributeError, match='split'): items.label_from_folder()
    with pytest.raises(ValueError, match='label'): items.split_by_folder().transform()
    with pytest.raises(AttributeError, match='databunch'): labeled(folder).show_batch()
    with pytest.raises(AttributeError, match='split_by_folder'): items.split_by_foldr()

def test_lists_and_data_sets_can_be_copied(folder):
    data = labeled(folder).transform(size=8)
    assert len(copy.deepcopy(data).train) == len(copy.copy(data.train.x)) == 18

# ---- test set

def test_a_test_folder_has_labels_only_if_asked(folder):
    plain = labeled(folder).add_test_folder().transform(size=8).databunch(bs=4)
    xb, yb = next(iter(plain.test_dl))
    assert yb is None and len(plain.test_ds) == 3 and plain.test_ds[0][1] is None
    with_labels = labeled(folder).add_test_folder(labeled=True).transform(size=8).databunch(bs=4)
    assert next(iter(with_labels.test_dl))[1].tolist() == [2, 2, 2]
    assert (labeled(folder).add_test([folder/'val'/'red'/'00.png']).transform(size=8).test[0][0].shape
            == (3, 8, 8))
    for name, error in (('tset', FileNotFoundError), ('empty', ValueError)):
        (folder/'empty').mkdir(exist_ok=True)
        with pytest.raises(error, match=name): labeled(folder).add_test_folder(name)
    with pytest.raises(ValueError, match='label'):
        ImageList.from_folder(folder).split_by_folder().add_test_folder()

# ---- saving

def test_state_is_plain_data_and_brings_the_way_of_an_item_back(folder, tmp_path):
    data = labeled(folder).transform(size=(10, 14)).databunch(bs=4)
    save_state(tmp_path/'ds.pt', data.valid_ds.state())
    new = LabeledData.from_state(load_state(tmp_path/'ds.pt'))
    path = folder/'val'/'green'/'01.png'
    want = data.valid_ds[data.valid_ds.x.items.index(path)][0]
    assert (torch.equal(new.prepare(path), want) and torch.equal(new.prepare(path.read_bytes()), want)
            and torch.equal(new.prepare(Image.open(path)), want))
    assert (new.classes == data.classes and new.c == 3 and new.kind == 'category'
            and new.y.decode(1) == 'green' and len(new) == 0)

def test_what_is_not_registered_cannot_be_written_down(folder):
    class Unknown(Transform):
        order = 12
        def image(self, im, draw): return im
    with pytest.raises(TypeError, match='Unknown'):
        labeled(folder).transform([Unknown()], size=8).valid.state()

def test_a_loader_of_pytorch_takes_the_data_set(folder):
    ds = labeled(folder).transform(size=8).train
    xb, yb = next(iter(torch.utils.data.DataLoader(ds, 6)))
    assert xb.shape == (6, 3, 8, 8) and yb.tolist() == [0]*5 + [1]
    assert torch.equal(xb, torch.stack([ds[i][0] for i in range(6)]))

# ---- looking

def test_show_batch_draws_what_the_model_gets(folder, monkeypatch):
    import matplotlib.pyplot as plt
    data = labeled(folder).transform([BatchShift()], size=8).databunch(bs=6).normalize()
    for train in (True, False):
        data.show_batch(n=4, train=train)
        axs = [ax for ax in plt.gcf().axes if ax.images]
        assert len(axs) == 4 and all(ax.get_title() in data.classes for ax in axs)
        plt.close('all')
    data.show_batch(n=99)
    assert len([ax for ax in plt.gcf().axes if ax.images]) == 6
    plt.close('all')

def test_show_batch_leaves_the_loaders_where_they_were(folder):
    data = labeled(folder).transform([Jitter()], size=8).databunch(bs=6, seed=3)
    first = all_batches(data.train_dl)
    data.train_dl.set_epoch(0)
    data.show_batch()
    data.normalize()
    assert same(first, all_batches(data.train_dl))

def test_a_test_set_that_comes_after_the_transforms_goes_through_them(folder):
    split = ImageList.from_folder(folder).split_by_folder().label_from_folder().transform(
        ([Jitter()], []), size=8)
    data = split.add_test_folder(labeled=True).databunch(bs=3)
    assert repr(data.test_ds.tfms) == repr(data.valid_ds.tfms)
    assert next(iter(data.test_dl))[0].shape == (3, 3, 8, 8)

@pytest.mark.parametrize('label', [None, float('nan')])
def test_a_label_that_is_none_is_refused_with_the_file(folder, label):
    split = ImageList.from_folder(folder).split_by_folder()
    with pytest.raises(ValueError, match='label') as e: split.label_from_func(lambda f: label)
    assert 'train/blue/00.png' in e.value.__notes__[0]

def test_labels_and_splits_have_the_names_of_2018_too():
    df = pd.DataFrame({'label': ['a', 'b', 'a', 'b'], 'x': [1, 2, 3, 4], 'is_valid': [0, 0, 1, 1]})
    split = ItemList.from_df(df, col='x').split_from_df(col=2)
    for labeled in (split.label_from_df(cols=0),
                    ItemList.from_df(df, col='x').split_by_col().label_from_df(df, col='x', cols='label')):
        assert labeled.train.y.items == [0, 1] and labeled.valid.y.items == [0, 1]

def test_items_without_labels_are_processed_and_their_y_is_none():
    split = ItemList([1, 2, 3], processors=CategoryProcessor).split_by_index([2, 0])
    with pytest.raises(ValueError, match='no class'): split.label_none()
    split = ItemList([5, 6, 5], processors=CategoryProcessor).split_by_index([2]).label_none()
    assert split.train[1] == (1, None) and split.valid[0] == (0, None) and split.train.x.rows() is None
