"""From files to batches: every splitter, labeler and processor, transforms and their places, the cache, and
what a user asks of the result."""
import copy
import random

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from exp.specs import from_spec, to_spec
from exp.core import load_state, save_state, set_seed
from exp.data_block import (CategoryProcessor, FloatList, ImageList, ItemList, LabeledData, LabelList,
                            Processor)
from exp.sources import get_files, image_extensions
from exp.image_cache import verify_images
from exp.transforms import MakeRGB, Normalize, ResizeFixed, ToByteTensor, ToFloatTensor, Transform
from exp.dataloader import Dataset, Rng, make_data
from exp.losses import CrossEntropy, SquaredLoss

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

def test_get_files_finds_what_glob_finds(folder):
    want = sorted(p for p in folder.rglob('*.png') if not p.name.startswith('.'))
    assert sorted(get_files(folder, image_extensions)) == want
    assert get_files(folder, '.png') == get_files(folder, 'PNG') == get_files(folder, ['png'])
    assert {p.name for p in get_files(folder) if p not in want} == {'notes.txt'}

def test_get_files_is_in_one_order_whatever_the_system_says(folder):
    files = get_files(folder, '.png')
    assert files == get_files(folder, '.png')
    assert ([p.name for p in files if p.parent.name == 'red' and p.parent.parent.name == 'train']
            == [f'{k:02}.png' for k in range(7)])

def test_get_files_takes_only_named_folders_and_no_deeper(folder):
    assert {p.relative_to(folder).parts[0] for p in get_files(folder, '.png', include=['train'])} == {'train'}
    assert get_files(folder/'train', '.png', recurse=False) == []
    with pytest.raises(FileNotFoundError, match='trian'): get_files(folder, include=['trian'])

def test_get_files_ends_where_a_link_leads_back(folder, tmp_path):
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'1.png').write_bytes(b'')
    try: (tmp_path/'a'/'up').symlink_to(tmp_path, target_is_directory=True)
    except OSError: pytest.skip('no links here')
    assert [p.name for p in get_files(tmp_path)] == ['1.png']

def test_image_endings_are_those_of_mimetypes():
    assert ({'.jpg', '.jpeg', '.png', '.gif', '.bmp'} <= set(image_extensions)
            and '.svg' not in image_extensions)

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

@pytest.mark.parametrize('split, error, words', [
    (lambda l: l.split_by_folder(train='trian'), ValueError, 'trian.*training.*val'),
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
    with pytest.raises(error, match=f'(?s){words}'): split(ImageList.from_folder(folder))

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
    many = split().label_from_df(df, label_col='tags', label_sep=' ', label_cls=LabelList)
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
    with pytest.raises(ValueError, match="'red'.*training set"): split().label_from_folder()
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

@pytest.mark.launch
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

@pytest.mark.launch
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

# ---- transforms

def test_transforms_stand_by_their_order_and_place(folder):
    data = labeled(folder).transform([darker, Jitter(), BatchShift(), Flip()], size=12)
    assert ([type(t).__name__ for t in data.train.tfms] == ['MakeRGB', 'Flip', 'ResizeFixed', 'ToByteTensor',
                                                            'Jitter', 'FuncTransform'])
    bunch = data.databunch(bs=4).normalize(([0.5]*3, [0.25]*3))
    for tfms in bunch.batch_tfms:
        assert ([type(t.tfm).__name__ for t in sorted(tfms, key=lambda t: t.order)]
                == ['ToFloatTensor', 'BatchShift', 'Normalize'])

def test_a_tuple_of_transforms_is_for_training_and_validation(folder):
    data = labeled(folder).add_test_folder().transform(([Flip(), BatchShift()], []), size=12)
    assert (any(isinstance(t, Flip) for t in data.train.tfms)
            and not any(isinstance(t, Flip) for t in [*data.valid.tfms, *data.test.tfms]))
    bunch = data.databunch(bs=4)
    assert [len(t) for t in bunch.batch_tfms] == [2, 1]
    with pytest.raises(ValueError, match='unpack'): labeled(folder).transform(([], [], []))

def test_what_is_given_is_not_added_again(folder):
    data = labeled(folder).transform([ResizeFixed((10, 20))], size=99)
    assert (sum(isinstance(t, ResizeFixed) for t in data.train.tfms) == 1
            and data.train[0][0].shape == (3, 10, 20))
    assert labeled(folder).transform(size=None).train[0][0].shape == (3, 18, 24)
    assert labeled(folder).transform(size=(10, 20)).train[0][0].shape == (3, 10, 20)

@pytest.mark.parametrize('tfms, error, words', [([MakeRGB], TypeError, 'instance.*MakeRGB'),
                                                (['flip'], TypeError, 'flip'), ([3], TypeError, '3')])
def test_what_is_no_transform_is_an_error(folder, tfms, error, words):
    with pytest.raises(error, match=words): labeled(folder).transform(tfms)

@pytest.mark.parametrize('size', [0, -3, 2.5, (3, 4, 5), 'big', True])
def test_a_size_that_is_none_is_an_error(folder, size):
    with pytest.raises((ValueError, TypeError), match='size'): labeled(folder).transform(size=size)

@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'CMYK', '1', 'I;16', 'LA'])
def test_images_of_all_modes_become_rgb(mode):
    im = Image.new(mode, (6, 5))
    assert MakeRGB()(im).mode == 'RGB'

def test_a_camera_s_note_turns_the_image_upright(tmp_path):
    im = Image.fromarray(np.arange(4*6*3, dtype=np.uint8).reshape(4, 6, 3))
    exif = im.getexif()
    exif[0x0112] = 6
    im.save(tmp_path/'a.png', exif=exif)
    opened = ImageList([tmp_path/'a.png']).get(0)
    assert opened.size == (6, 4) and MakeRGB()(opened).size == (4, 6)

@pytest.mark.parametrize('size', [(160, 160), (500, 375), (90, 200), (64, 64), (40, 30)])
@pytest.mark.parametrize('ending', ['.png', '.jpg'])
def test_resizing_is_pil_s_bilinear_to_two_grey_levels(tmp_path, size, ending):
    g = np.random.default_rng(0)
    small = Image.fromarray(g.integers(0, 256, (9, 9, 3),
                                       dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    small.save(tmp_path/f'a{ending}', **({'quality': 95} if ending == '.jpg' else {}))
    data = LabeledData(ImageList([tmp_path/f'a{ending}']), None,
                       [MakeRGB(), ResizeFixed((64, 48)), ToByteTensor()])
    got = data[0][0].int()
    im = Image.open(tmp_path/f'a{ending}')
    im.draft('RGB', (48, 64))
    want = torch.from_numpy(np.array(im.convert('RGB').resize((48, 64), Image.Resampling.BILINEAR))).permute(
        2, 0, 1).int()
    assert got.shape == (3, 64, 48) and (got - want).abs().max() <= 2

def test_a_large_jpeg_is_decoded_small(tmp_path):
    Image.new('RGB', (1600, 1200), (200, 100, 50)).save(tmp_path/'big.jpg')
    im = ImageList([tmp_path/'big.jpg']).get(0)
    got = ResizeFixed(128)(MakeRGB()(im))
    assert got.size == (128, 128) and im.size[0] <= 400   # the file's image was drafted to a quarter

def test_floats_and_normalisation_and_the_way_back(folder):
    data = labeled(folder).transform(size=8).databunch(bs=18)
    plain = data.one_batch()[0]
    assert 0 <= plain.min() and plain.max() <= 1
    data.normalize()
    xb = data.one_batch()[0]
    assert xb.mean((0, 2, 3)).abs().max() < 1e-5 and (xb.std((0, 2, 3)) - 1).abs().max() < 1e-4
    assert (data.decode_batch(xb, True) - plain).abs().max() < 1e-6
    with pytest.raises(ValueError, match='already'): data.normalize()

def test_normalise_takes_given_numbers_for_both_sets(folder):
    data = labeled(folder).transform(size=8).databunch(bs=4)
    raw, raw_valid = data.one_batch()[0], data.one_batch(False)[0]
    data.normalize((torch.tensor([0.1, 0.2, 0.3]), [0.5, 0.25, 1.]))
    m, s = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([0.5, 0.25, 1.])[:, None, None]
    assert (torch.allclose(data.one_batch()[0], (raw - m)/s, atol=1e-6)
            and torch.allclose(data.one_batch(False)[0], (raw_valid - m)/s, atol=1e-6))
    for wrong in (([0.5]*3, [0.]*3), ([0.5]*3, [1.]*2)):
        with pytest.raises(ValueError, match='std'): Normalize(*wrong)

def test_transforms_do_not_change_their_input(folder):
    im = Image.open(folder/'train'/'red'/'00.png').convert('RGB')
    before = np.array(im)
    for t in (MakeRGB(), ResizeFixed(9), ToByteTensor(), Flip()): t(im, Rng(1))
    assert np.array_equal(np.array(im), before)
    xb = torch.rand(2, 3, 4, 4)
    keep = xb.clone()
    for t in (ToFloatTensor(), Normalize([.5]*3, [.5]*3), BatchShift()): t(xb, [Rng(1), Rng(2)])
    assert torch.equal(xb, keep)

def test_transforms_are_written_down_and_made_again():
    for t in (MakeRGB(), ResizeFixed((3, 4)), ToByteTensor(), ToFloatTensor(),
              Normalize([.1, .2, .3], [.4, .5, .6])):
        new = from_spec(to_spec(t))
        public = lambda t: {k: v for k, v in vars(t).items() if k[0] != '_'}
        assert type(new) is type(t) and public(new) == public(t)

# ---- order and randomness

@pytest.mark.slow
@pytest.mark.parametrize('tfms', [None, [Flip(), Jitter()]], ids=['fixed', 'random'])
def test_two_workers_give_what_none_give(folder, tfms):
    make = lambda n: labeled(folder).transform(tfms, size=12).databunch(bs=4, num_workers=n, seed=5)
    a, b = make(0), make(2)
    try:
        for epoch in range(2):
            first, second = all_batches(a.train_dl), all_batches(b.train_dl)
            assert same(first, second) and sorted(i for *_, items in first for i in items) == list(range(18))
        assert same(all_batches(a.valid_dl), all_batches(b.valid_dl))
    finally:
        b.train_dl.close()
        b.valid_dl.close()

def test_a_resumed_epoch_goes_on_as_it_would_have(folder):
    data = labeled(folder).transform([Flip(), Jitter()], size=12).databunch(bs=4, seed=5)
    data.train_dl.set_epoch(3)
    whole = all_batches(data.train_dl)
    data.train_dl.set_epoch(3, skip_items=8)
    rest = all_batches(data.train_dl)
    assert same(whole[2:], rest)

def test_each_epoch_draws_anew_and_a_seed_repeats_it(folder):
    make = lambda seed: labeled(folder).transform([Jitter()], size=12).databunch(bs=18, seed=seed).train_dl
    dl = make(1)
    (x0, _, i0), (x1, _, i1) = all_batches(dl)[0], all_batches(dl)[0]
    assert i0 != i1 and not torch.equal(x0[i0.index(0)], x1[i1.index(0)])
    again = all_batches(make(1))[0]
    assert torch.equal(again[0], x0) and again[2] == i0 and all_batches(make(2))[0][2] != i0

def test_batch_transforms_draw_by_item_not_by_batch(folder):
    small, large = (labeled(folder).transform([BatchShift()], size=8).databunch(bs=bs, seed=5)
                    for bs in (3, 18))
    def by_item(data):
        found = {}
        for b in data.train_dl:
            xb, _ = data.transform_batch(*b, train=True, items=b.items)
            found.update(zip(b.items, xb))
        return found
    a, b = by_item(small), by_item(large)
    assert a.keys() == b.keys() and all(torch.allclose(a[i], b[i]) for i in a)

def test_a_place_draws_the_same_whatever_stands_before_it_draws(folder):
    class Greedy(Transform):
        order, random = 35, True
        def draw(self, x, rng): return [rng.random() for _ in range(self.n)]
        def image(self, x, draw): return x
    few, many = Greedy(), Greedy()
    few.n, many.n = 1, 50
    a, b = (labeled(folder).transform([g, Jitter()], size=8).train.get(0, Rng(1, 2, 3))[0]
            for g in (few, many))
    assert torch.equal(a, b)

def test_the_global_generators_have_no_part_in_batches(folder):
    data = labeled(folder).transform([Flip(), Jitter(), BatchShift()], size=8).databunch(bs=6, seed=2)
    set_seed(1)
    data.train_dl.set_epoch(0)
    a = all_batches(data.train_dl)
    left = torch.rand(1)
    set_seed(9)
    data.train_dl.set_epoch(0)
    assert same(a, all_batches(data.train_dl))
    set_seed(1)
    assert torch.equal(left, torch.rand(1))

def test_batches_of_images_are_their_items(folder):
    "The loader may take a faster way than item by item; it answers the same bits."
    ds = labeled(folder).transform(size=12).train
    data = labeled(folder).transform(size=12).databunch(bs=18, seed=1)
    xb, yb = next(iter(data.train_dl))
    data.train_dl.set_epoch(0)
    items = next(iter(data.train_dl)).items
    assert all(torch.equal(x, ds[i][0]) and torch.equal(y, ds[i][1]) for x, y, i in zip(xb, yb, items))

def test_images_of_several_sizes_make_the_same_batches(tmp_path):
    g = np.random.default_rng(1)
    for k in range(40):
        im = Image.fromarray(g.integers(0, 256, (20 + 5*(k % 3), 30, 3), dtype=np.uint8))
        (tmp_path/str(k % 2)).mkdir(exist_ok=True)
        (im if k % 7 else im.convert('L')).save(tmp_path/str(k % 2)/f'{k:02}.jpg')
    data = ImageList.from_folder(tmp_path).split_random(0.1, seed=0).label_from_folder().transform(size=16)
    batch = next(iter(data.databunch(bs=36, seed=0).train_dl))
    assert (all(torch.equal(x, data.train[i][0]) for x, i in zip(batch[0], batch.items))
            and batch[0].shape == (36, 3, 16, 16))

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

# ---- the cache

@pytest.mark.slow
@pytest.mark.parametrize('tfms', [None, [Jitter()], [Flip()]],
                         ids=['fixed', 'after the cache', 'before resizing'])
@pytest.mark.parametrize('workers', [0, 2])
def test_a_cache_changes_no_bit(folder, tfms, workers):
    size = (24, 18)[::-1] if tfms and isinstance(tfms[0], Flip) else 12
    make = lambda cache, n: labeled(folder).transform(tfms, size=size,
                                                      cache=cache).databunch(bs=4, num_workers=n, seed=4)
    plain, cached = make(False, 0), make(True, workers)
    try:
        for epoch in range(3):
            assert same(all_batches(plain.train_dl), all_batches(cached.train_dl))
            assert same(all_batches(plain.valid_dl), all_batches(cached.valid_dl))
        if tfms is None: assert cached.train_ds.sliceable and cached.valid_ds.sliceable
        else: assert not getattr(cached.train_ds, 'sliceable', False)
    finally:
        cached.train_dl.close()
        cached.valid_dl.close()

def test_a_full_cache_needs_no_files(tmp_path):
    root = write_images(tmp_path, {'train/red': 4, 'train/blue': 4, 'val/red': 2})
    data = labeled(root).transform(size=8, cache=True).databunch(bs=4, seed=0)
    a = all_batches(data.train_dl)
    for f in get_files(root/'train'): f.unlink()
    data.train_dl.set_epoch(0)
    assert same(a, all_batches(data.train_dl))

def test_what_is_done_to_a_cached_item_stays_out_of_the_cache(folder):
    data = labeled(folder).transform(size=8, cache=True).databunch(bs=4)
    x, _ = data.train_ds[0]
    want = x.clone()
    x.zero_()
    x, _ = data.train_ds[0]
    x.zero_()
    assert torch.equal(data.train_ds[0][0], want)

def test_a_cache_that_does_not_fit_is_refused(folder, monkeypatch):
    items = labeled(folder)
    items.train.x.items = items.train.x.items*1
    data = items.transform(size=8, cache=True)
    big = lambda self: 10**9
    monkeypatch.setattr(LabeledData, '__len__', big)
    with pytest.raises(MemoryError, match='cache=False'): data.train.cache()

def test_a_cache_of_images_of_several_sizes_says_that_they_must_be_resized(tmp_path):
    write_images(tmp_path/'a', {'red': 3})
    write_images(tmp_path/'b', {'red': 3}, size=(30, 18))
    data = ImageList.from_folder(tmp_path).split_by_index([0]).label_from_folder().transform(
        size=None, cache=True).databunch(bs=2)
    with pytest.raises(ValueError, match='(?s)size.*resize|resize.*size'): list(data.train_dl)

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

# ---- verify_images

def test_verify_images_lists_the_broken_and_no_other(folder, tmp_path):
    root = write_images(tmp_path, {'red': 3}, ending='.jpg')
    whole = (root/'red'/'00.jpg').read_bytes()
    (root/'cut.jpg').write_bytes(whole[:len(whole)*2//3])
    (root/'text.jpg').write_text('hello')
    (root/'empty.jpg').write_bytes(b'')
    files = get_files(root, image_extensions)
    broken = verify_images(files)
    assert (sorted(p.name for p, why in broken) == ['cut.jpg', 'empty.jpg', 'text.jpg']
            and all(why for _, why in broken))
    assert ([p.name for p, _ in verify_images(ImageList(files, root))] == [p.name for p, _ in broken]
            and verify_images([]) == [])

@pytest.mark.parametrize('cache', [False, True])
def test_rows_are_refused_unless_all_of_them_are_in_a_cache(folder, cache):
    data = ImageList.from_folder(folder).split_by_folder().label_from_folder().transform(
        size=8, cache=cache).databunch(bs=4, seed=1)
    ds = data.train_ds
    ds[0]
    with pytest.raises(TypeError, match='whole number'): ds[:3]
    for i in range(len(ds)): ds[i]
    if not cache: return
    xb, yb = ds[1:3]
    assert (torch.equal(xb, torch.stack([ds[1][0], ds[2][0]]))
            and yb.tolist() == [int(ds[1][1]), int(ds[2][1])])

class _Masks(LabelList):
    kind, spatial = 'mask', True
    def open(self, item): return Image.open(item).convert('L')

class _Coin(Transform):
    order, random, moves = 25, True, True   # after resizing, before tensors
    def draw(self, x, rng): return rng.random() < 0.5
    def image(self, im, heads): return im
    def mask(self, m, heads): return m

class _PointPair(LabelList):
    kind, spatial = 'pair', True
    def open(self, item): return torch.tensor(item)
    def relate(self, obj, x): return obj/torch.tensor(x.size), len(obj)

def test_a_cached_target_that_is_no_tensor_has_gone_through_its_transforms(folder):
    split = ImageList.from_folder(folder).split_by_folder().label_from_func(lambda f: f, _Masks)
    ds = split.transform([_Coin()], size=8, tfm_y=True, cache=True).databunch(bs=4).train_ds
    first, second = ds[1], ds[1]
    assert first[1].shape == second[1].shape == (8, 8) and torch.equal(first[1], second[1])

def test_a_cached_target_stays_in_terms_of_its_image(folder):
    split = ImageList.from_folder(folder).split_by_folder().label_from_func(
        lambda f: [[6., 9.]]*(1 + int(f.stem) % 2), _PointPair)
    ds = split.transform(size=8, tfm_y=False, cache=True).databunch(bs=4, collate=list).train_ds
    for i in range(4):
        (points, n), (again, m) = ds[i][1], ds[i][1]
        assert torch.equal(points, again) and n == m and points[0].tolist() == [0.25, 0.5]
        again.zero_()
        assert torch.equal(ds[i][1][0], points)

class _Points(_PointPair):
    def relate(self, obj, x): return obj/torch.tensor(x.size)

def test_cached_targets_of_several_shapes_stay_as_they_are(folder):
    split = ImageList.from_folder(folder).split_by_folder().label_from_func(
        lambda f: [[6., 9.]]*(2 - int(f.stem) % 2), _Points)
    ds = split.transform(size=8, tfm_y=False, cache=True).databunch(bs=4, collate=list).train_ds
    for _ in range(2): assert ds[0][1].shape == (2, 2) and ds[1][1].shape == (1, 2)

def test_a_test_set_that_comes_after_the_transforms_goes_through_them(folder):
    split = ImageList.from_folder(folder).split_by_folder().label_from_folder().transform(
        ([Jitter()], []), size=8)
    data = split.add_test_folder(labeled=True).databunch(bs=3)
    assert repr(data.test_ds.tfms) == repr(data.valid_ds.tfms)
    assert next(iter(data.test_dl))[0].shape == (3, 3, 8, 8)

@pytest.mark.parametrize('label', [None, float('nan')])
def test_a_label_that_is_none_is_refused_with_the_file(folder, label):
    split = ImageList.from_folder(folder).split_by_folder()
    with pytest.raises(ValueError, match='is no label') as e: split.label_from_func(lambda f: label)
    assert 'train/blue/00.png' in e.value.__notes__[0]

@pytest.mark.parametrize('col', ['name', 0, -2])
def test_names_in_a_csv_keep_their_zeros(folder, col):
    pd.DataFrame({'name': ['00', '01', '02', '03'],
                  'label': ['x', 'y', 'x', 'y']}).to_csv(folder/'zeros.csv', index=False)
    items = ImageList.from_csv(folder, 'zeros.csv', col=col, folder='train/blue', suffix='.png')
    assert [f.name for f in items] == ['00.png', '01.png', '02.png', '03.png']
    split = items.split_by_index([3, 2]).label_from_csv('zeros.csv', col=col, folder='train/blue',
                                                        suffix='.png')
    assert split.train.y.items == [0, 1] and split.classes == ['x', 'y']

def test_numbers_in_a_csv_stay_numbers(tmp_path):
    pd.DataFrame({'v': [1.5, 2.5], 'w': [1, 2]}).to_csv(tmp_path/'labels.csv', index=False)
    assert ItemList.from_csv(tmp_path, col='v').items == [1.5, 2.5]

@pytest.mark.parametrize('stats', [([0.5], [0.5]), ([0.5]*2, [0.5]*2)])
def test_normalising_with_another_number_of_channels_is_refused(folder, stats):
    data = ImageList.from_folder(folder).split_by_folder().label_from_folder().transform(size=8).databunch(
        bs=4).normalize(stats)
    with pytest.raises(ValueError, match='these images have 3'): data.one_batch()
    with pytest.raises(ValueError, match='these images have 3'): Normalize(*stats)(torch.rand(2, 3, 4, 4))

def test_normalising_with_bare_numbers_says_what_is_expected(folder):
    data = ImageList.from_folder(folder).split_by_folder().label_from_folder().transform(size=8).databunch(
        bs=4)
    with pytest.raises(TypeError, match='iterable'): data.normalize((0.5, 0.5))
    data.normalize(([0.5]*3, [0.2]*3))

def test_verify_images_finds_files_as_the_list_does_and_refuses_a_folder(folder):
    files = ImageList.from_folder(folder)
    assert verify_images(ImageList([f.relative_to(folder) for f in files], folder)) == []
    with pytest.raises(TypeError, match='list of paths'): verify_images(folder)

@pytest.mark.parametrize('array',
                         [np.zeros((8, 8, 5), np.float32), np.zeros((8, 8), np.int64), np.zeros(8, np.uint8)])
def test_arrays_that_are_no_image_are_refused(array):
    for item in (array, torch.from_numpy(array).movedim(-1, 0)):
        with pytest.raises(TypeError, match='is no image; bytes'): ImageList([item]).get(0)

def test_a_grey_tensor_with_a_channel_is_an_image():
    assert ImageList([torch.zeros(1, 6, 8, dtype=torch.uint8)]).get(0).size == (8, 6)

# ---- neighbours that join, and loaders that do not say their items

class Plus(Transform):
    on, order = 'batch', 10
    def __init__(self, n): self.n = n
    def image(self, xb, draw): return xb + self.n
    def joined(self, later): return Plus(self.n + later.n) if isinstance(later, Plus) else None

def test_transforms_are_joined_with_their_neighbours_and_only_with_those(folder):
    data = ImageList.from_folder(folder/'train').split_random(seed=1).label_from_folder().transform(
        ([Plus(1), Plus(2), Normalize([0.5]*3, [1.]*3), Plus(4)], []), size=8).databunch(4)
    assert ([type(t.tfm).__name__ for t in data.batch_tfms[0]] == ['ToFloatTensor', 'Plus', 'Normalize']
            and data.batch_tfms[0][1].tfm.n == 7)
    class Between(Transform):
        on, order = 'batch', 10
        def image(self, xb, draw): return xb
    data = ImageList.from_folder(folder/'train').split_random(seed=1).label_from_folder().transform(
        ([Plus(1), Between(), Plus(4)], []), size=8).databunch(4)
    assert [type(t.tfm).__name__ for t in data.batch_tfms[0]] == ['ToFloatTensor', 'Plus', 'Between', 'Plus']

class BatchNoise(Transform):
    on, order, random = 'batch', 10, True
    def draw(self, xb, rngs): return torch.tensor([rng.random() for rng in rngs])
    def image(self, xb, draw): return xb + draw[:, None, None, None]

def test_random_batch_transforms_take_batches_of_pytorchs_loader(folder):
    data = ImageList.from_folder(folder/'train').split_random(seed=1).label_from_folder().transform(
        ([BatchNoise()], []), size=8).databunch(4)
    batch = next(iter(torch.utils.data.DataLoader(data.train_ds, 4)))
    set_seed(1)
    (a, _), (b, _) = (data.transform_batch(*batch, train=True, items=None) for _ in range(2))
    set_seed(1)
    c, _ = data.transform_batch(*batch, train=True, items=None)
    assert not torch.equal(a, b) and torch.equal(a, c)

def test_transforms_of_batches_serve_a_bunch_made_by_hand():
    xs = torch.rand(12, 3, 4, 4)
    data = make_data(Dataset(xs, torch.arange(12)), Dataset(xs, torch.arange(12)), bs=4, seed=3,
                     batch_tfms=([BatchNoise(), Normalize([0.5]*3, [2.]*3)], [Normalize([0.5]*3, [2.]*3)]))
    (a, items), (b, _) = data.one_batch(), data.one_batch()
    assert torch.equal(a, b) and not torch.allclose(a, (xs[items] - 0.5)/2)
    c, items = data.one_batch(False)
    assert torch.allclose(c, (xs[items] - 0.5)/2)
