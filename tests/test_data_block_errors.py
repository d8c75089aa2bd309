"""Bad input meets a clear error where it enters: it names the file, the label or the number, and says what to
do."""
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from exp.callbacks import Runner
from exp.data_block import CategoryList, FloatList, ImageList
from exp.image_cache import ImageError, verify_images
from exp.dataloader import DataBunch, DataLoader, Dataset, make_data
from exp.losses import CrossEntropy, SquaredLoss

def photo(path, size=(40, 30), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3),
                                                         dtype=np.uint8)).save(path)
    return path

@pytest.fixture
def folder(tmp_path):
    for part, n in (('train', 5), ('val', 3)):
        for label in ('cat', 'dog'):
            for k in range(n): photo(tmp_path/part/label/f'{k}.jpg', seed=k)
    return tmp_path

def items(folder): return ImageList.from_folder(folder).split_by_folder().label_from_folder()
def bunch(folder, workers=0, cache=False):
    return items(folder).transform(size=16, cache=cache).databunch(bs=4, num_workers=workers, seed=0)

def drain(dl):
    try:
        for batch in dl: pass
    finally: dl.close()

def told(e):
    "The message of an error, of those that it came from and their notes."
    words = []
    while e is not None:
        words += [str(e), *getattr(e, '__notes__', ())]
        e = e.__cause__
    return '\n'.join(words)

# ---- folders

def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match='ImageList') as e:
        ImageList.from_folder(tmp_path)
    assert str(tmp_path) in str(e.value)

def test_a_folder_without_images_says_what_it_holds(tmp_path):
    for name in ('a.txt', 'b.txt', 'c.csv'): (tmp_path/name).write_text('x')
    with pytest.raises(ValueError, match='csv'): ImageList.from_folder(tmp_path)

def test_no_folder_and_a_file_in_its_place(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'): ImageList.from_folder(tmp_path/'nowhere')
    with pytest.raises(NotADirectoryError, match='a.jpg'): ImageList.from_folder(photo(tmp_path/'a.jpg'))

# ---- files that are no images

BROKEN = {'no image': lambda b: b'this is a text, whatever its name says\n'*20,
          'cut short': lambda b: b[:len(b)//2], 'empty': lambda b: b'',
          'only a header': lambda b: b[:200], 'a hole': lambda b: b[:20] + b'\0'*(len(b) - 20)}

@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('how', list(BROKEN))
def test_a_broken_file_is_named(folder, how, workers):
    bad = folder/'train'/'dog'/'2.jpg'
    bad.write_bytes(BROKEN[how](bad.read_bytes()))
    data = bunch(folder, workers)
    with pytest.raises(ImageError) as e: drain(data.train_dl)
    words = told(e.value)
    assert str(bad) in words and 'verify_images' in words and 'item 7' in words, words
    assert [p for p, _ in verify_images(data.train_ds.x)] == [bad]
    drain(data.valid_dl)                                                  # the others go on

@pytest.mark.parametrize('how', list(BROKEN))
def test_a_broken_file_is_named_by_the_data_set_alone(folder, how):
    bad = folder/'train'/'cat'/'0.jpg'
    whole = bad.read_bytes()
    bad.write_bytes(BROKEN[how](whole))
    ds = items(folder).transform(size=16).train
    with pytest.raises(ImageError, match='0.jpg'): ds[0]
    with pytest.raises(ImageError, match='0.jpg'): ds.prepare(bad)
    with pytest.raises(ImageError, match='bytes'): ds.prepare(BROKEN[how](whole))
    assert ds[1][0].shape == (3, 16, 16)

@pytest.mark.parametrize('workers', [0, 2])
def test_a_broken_file_does_not_enter_the_cache(folder, workers):
    bad = folder/'train'/'dog'/'2.jpg'
    whole = bad.read_bytes()
    bad.write_bytes(whole[:len(whole)//2])
    data = bunch(folder, workers, cache=True)
    for _ in range(2):
        with pytest.raises(ImageError, match='2.jpg'): drain(data.train_dl)
    bad.write_bytes(whole)
    drain(data.train_dl)
    assert data.train_ds.sliceable or workers

@pytest.mark.parametrize('workers', [0, 2])
def test_a_file_that_is_gone_since_the_list_was_made(folder, workers):
    data = bunch(folder, workers)
    (folder/'train'/'cat'/'3.jpg').unlink()
    with pytest.raises(FileNotFoundError) as e: drain(data.train_dl)
    assert '3.jpg' in told(e.value) and 'does not exist' in told(e.value) and 'item 3' in told(e.value)

def test_an_error_of_a_file_survives_a_pickle():
    assert str(pickle.loads(pickle.dumps(ImageError('x.jpg is no image')))) == 'x.jpg is no image'

def test_a_truncated_png_too(folder):
    bad = photo(folder/'train'/'cat'/'9.png')
    bad.write_bytes(bad.read_bytes()[:900])
    with pytest.raises(ImageError, match='9.png'): drain(bunch(folder).train_dl)

def test_an_error_of_a_user_s_transform_keeps_its_type_and_names_the_item(folder):
    def fails(im):
        if im.size == (40, 30): raise KeyError('mine')
        return im
    fails.order = 5
    data = items(folder).transform([fails], size=16).databunch(bs=4)
    with pytest.raises(KeyError, match='mine') as e: drain(data.train_dl)
    assert '.jpg' in told(e.value) and 'item' in told(e.value) and not isinstance(e.value, ImageError)

# ---- tables

def table(folder):
    return pd.DataFrame([(f'train/{c}/{k}.jpg', c) for c in ('cat', 'dog') for k in range(5)],
                        columns=['name', 'label'])

def test_a_table_with_a_missing_file(folder):
    df = table(folder)
    df.loc[3, 'name'] = 'train/cat/33.jpg'
    df.loc[4, 'name'] = 'train/cat/44.jpg'
    df.to_csv(folder/'labels.csv', index=False)
    with pytest.raises(FileNotFoundError, match='33.jpg'): ImageList.from_csv(folder)

def test_a_wrong_suffix_or_folder_says_so(folder):
    with pytest.raises(FileNotFoundError, match='0.jpg.jpg'):
        ImageList.from_df(table(folder), folder, suffix='.jpg')

def test_an_item_without_a_row(folder):
    split = ImageList.from_folder(folder, include='train').split_random(seed=0)
    with pytest.raises(ValueError, match='train/dog/4.jpg'):
        split.label_from_df(table(folder)[:9])

def test_a_name_with_two_rows(folder):
    df = pd.concat([table(folder), table(folder)[:1]])
    with pytest.raises(ValueError, match='train/cat/0.jpg'):
        ImageList.from_folder(folder, include='train').split_random().label_from_df(df)

def test_columns_that_are_not_there_or_have_holes(folder, tmp_path):
    df = table(folder)
    with pytest.raises(ValueError, match="'lable'.*label.*separator"):
        ImageList.from_folder(folder, include='train').split_random().label_from_df(df, label_col='lable')
    df.to_csv(folder/'a.csv', sep=';', index=False)
    with pytest.raises(ValueError, match='separator'):
        ImageList.from_folder(folder, include='train').split_random().label_from_csv('a.csv')
    df.loc[2, 'label'] = None
    with pytest.raises(ValueError, match='empty'):
        ImageList.from_folder(folder, include='train').split_random().label_from_df(df)
    with pytest.raises(FileNotFoundError, match='no.csv'): ImageList.from_csv(folder, 'no.csv')
    (folder/'empty.csv').write_text('')
    with pytest.raises(ValueError, match='empty.csv'): ImageList.from_csv(folder, 'empty.csv')
    (folder/'head.csv').write_text('name,label\n')
    with pytest.raises(ValueError, match='training'): ImageList.from_csv(folder, 'head.csv').split_random()

# ---- labels

def test_an_unseen_label_is_named_with_a_remedy(folder):
    photo(folder/'val'/'dgo'/'0.jpg')
    with pytest.raises(ValueError, match="'dgo'.*dog.*(?s:.*)other=") as e: items(folder)
    assert 'cat' in str(e.value)
    split = ImageList.from_folder(folder).split_by_folder()
    assert split.label_from_folder(other='unknown').classes == ['cat', 'dog', 'unknown']

def test_labels_of_several_types_cannot_be_classes(folder):
    split = ImageList.from_folder(folder).split_by_folder()
    with pytest.raises(TypeError, match='int'):
        split.label_from_func(lambda p: int(p.stem) if p.parent.name == 'cat' else p.stem)
    split = ImageList.from_folder(folder).split_by_folder()
    with pytest.raises(TypeError, match='list'): split.label_from_func(lambda p: [p.stem], CategoryList)

def test_a_label_function_that_fails_names_its_item(folder):
    with pytest.raises(IndexError) as e:
        ImageList.from_folder(folder).split_by_folder().label_from_func(lambda p: p.name.split('_')[1])
    assert 'train/cat/0.jpg' in told(e.value)

def test_a_pattern_that_does_not_fit_names_the_file(folder):
    split = ImageList.from_folder(folder).split_by_folder()
    with pytest.raises(ValueError, match='train/cat/0.jpg'): split.label_from_re(r'(\d+)_\d')
    with pytest.raises(IndexError, match='group'): split.label_from_re(r'\d+')

# ---- sets

def test_all_items_in_one_split(folder):
    one = ImageList.from_folder(folder, include='train')
    with pytest.raises(ValueError, match='validation'): one.split_by_folder()
    with pytest.raises(ValueError, match='training'): one.split_by_func(lambda p: True)
    with pytest.raises(ValueError, match='validation'):
        ImageList([photo(folder/'x'/'1.jpg')]).split_random(0.2)

@pytest.mark.parametrize('bs', [11, 64])
def test_a_batch_larger_than_the_set(folder, bs):
    with pytest.raises(ValueError, match=str(bs)):
        items(folder).transform(size=16).databunch(bs=bs)

@pytest.mark.parametrize('bs, error', [(0, ValueError), (-1, ValueError), (2.5, TypeError), ('4', TypeError)])
def test_a_batch_size_that_is_none(folder, bs, error):
    with pytest.raises(error, match='bs'): items(folder).transform(size=16).databunch(bs=bs)

def test_classes_that_differ_between_training_and_validation(folder):
    one = ImageList.from_folder(folder,
                                include='train').split_random(seed=0).label_from_folder().transform(size=16)
    other = ImageList.from_folder(folder, include='train').split_random(seed=0).label_from_folder(
        classes=['dog', 'cat']).transform(size=16)
    with pytest.raises(ValueError, match='classes'):
        DataBunch(DataLoader(one.train, 4), DataLoader(other.valid, 4))
    with pytest.raises(ValueError, match='classes'):
        DataBunch(DataLoader(one.train, 4),
                  DataLoader(ImageList.from_folder(folder, include='train').split_random(seed=0)
                             .label_from_folder(classes=['cat', 'dog', 'bird']).transform(size=16).valid, 4))

def test_images_of_several_sizes_without_resizing(folder):
    photo(folder/'train'/'cat'/'1.jpg', size=(50, 30))
    with pytest.raises(ValueError, match='resize'):
        drain(items(folder).transform(size=None).databunch(bs=10, seed=0).train_dl)

# ---- a loss and a target of different shapes

class Flat(nn.Sequential):
    def __init__(self, n): super().__init__(nn.Flatten(), nn.LazyLinear(n))

@pytest.mark.parametrize('outputs', [1, 3])
def test_a_squared_loss_of_other_shapes_names_both(folder, outputs):
    data = ImageList.from_folder(folder).split_by_folder().label_from_func(
        lambda p: (float(p.stem), 1.), FloatList).transform(size=8).databunch(bs=4)
    model = Flat(outputs)
    model(data.one_batch()[0])
    with pytest.raises(ValueError, match=rf'\(4, {outputs}\)'):
        Runner(data_without_tfms(data), model, loss_func=SquaredLoss(), lr=0.1).fit(1)

def data_without_tfms(data):
    "A bunch of the same batches as tensors: what a Runner without the Learner's callbacks takes."
    whole = lambda train: data.one_batch(train)
    return make_data(Dataset(*whole(True)), Dataset(*whole(False)), bs=4)

def test_a_cross_entropy_of_too_few_outputs_names_the_label(folder):
    photo(folder/'train'/'emu'/'0.jpg')
    data = items(folder).transform(size=8).databunch(bs=11)
    xb, yb = data.one_batch()
    with pytest.raises(IndexError, match='2'): CrossEntropy()(torch.randn(len(yb), 2), yb)
    with pytest.raises(ValueError, match='shape'): CrossEntropy()(torch.randn(len(yb) - 1, 3), yb)
