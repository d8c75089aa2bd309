"""Whatever an image comes from is left as it was: PIL images, arrays, tensors, open files; and all of them
are read alike."""
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from exp.augmentation import (CenterCrop, CenterResizedCrop, PilRandomDihedral, PilRandomFlip, PilRandomWarp,
                              RandomCrop, RandomResizedCrop)
from exp.batch_transforms import RandomBrightness, RandomRotate, get_transforms
from exp.core import show_image
from exp.data_block import ImageList, LabeledData, LabelList
from exp.image_cache import verify_images
from exp.transforms import MakeRGB, Normalize, ResizeFixed, ToByteTensor, ToFloatTensor
from exp.dataloader import Rng
from exp.learner import Learner

def saved(im, kind='JPEG', **how):
    f = io.BytesIO()
    im.save(f, kind, **how)
    return f.getvalue()

def photo(seed=0, size=(160, 120)):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)

def lying(seed=0):
    "A photograph with the note that it should be turned."
    im = photo(seed)
    exif = im.getexif()
    exif[0x0112] = 6
    return saved(im, exif=exif, quality=95)

OPENED = {'a JPEG': lambda: Image.open(io.BytesIO(saved(photo(), quality=95))),
          'a turned JPEG': lambda: Image.open(io.BytesIO(lying())),
          'a PNG': lambda: Image.open(io.BytesIO(saved(photo(), 'PNG'))),
          'a palette': lambda: photo().quantize(16), 'pixels': photo}

def known(im): return im.size, im.mode, im.getexif().get(0x0112), np.array(im).tobytes()

class Masks(LabelList):
    kind, spatial = 'mask', True
    def open(self, item): return item

def thumbnail(im):
    im.thumbnail((30, 30))
    return im

TFMS = {'resizing': [], 'a plain function that changes its argument': [thumbnail],
        'crops': [RandomResizedCrop(32)], 'the middle': [CenterResizedCrop(32)], 'window': [RandomCrop(100)],
        'lights and turns': get_transforms()[0],
        'of PIL images': [PilRandomDihedral(), PilRandomWarp(0.2, p=1.)]}

@pytest.mark.slow
@pytest.mark.parametrize('tfms', TFMS)
@pytest.mark.parametrize('kind', OPENED)
def test_two_epochs_leave_an_opened_image_as_it_was(kind, tfms):
    ims = [OPENED[kind]() for _ in range(6)]
    data = ImageList(ims).split_by_index([4, 5]).label_from_func(lambda im: 'x').transform(
        (TFMS[tfms], []), size=32).databunch(bs=4, seed=0)
    for _ in range(2):
        for dl in (data.train_dl, data.valid_dl): list(dl)
    data.one_batch()
    assert all(known(im) == known(OPENED[kind]()) for im in ims)

@pytest.mark.parametrize('kind', OPENED)
def test_the_second_epoch_sees_what_the_first_saw(kind):
    data = ImageList([OPENED[kind]() for _ in range(4)]).split_none().label_from_func(
        lambda im: 'x').transform(size=40).databunch(bs=4, seed=0)
    first, second = (torch.cat([xb for xb, _ in data.train_dl]) for _ in range(2))
    assert torch.equal(first, second)

def test_points_in_pixels_stay_on_opened_images():
    class Points(LabelList):
        kind, spatial = 'points', True
        def open(self, item): return torch.tensor([[80., 60.]])
        def relate(self, obj, x): return obj*2/torch.tensor(x.size) - 1
    data = ImageList([OPENED['a JPEG']() for _ in range(4)]).split_none().label_from_func(
        lambda im: 0, Points).transform(size=16).databunch(bs=4, seed=0)
    for _ in range(2):
        for xb, yb in data.train_dl: assert yb.abs().max() < 1e-6

ALONE = [ResizeFixed(24), MakeRGB(), ToByteTensor(), RandomResizedCrop(24), CenterResizedCrop(24),
         CenterCrop(24), RandomCrop(24), PilRandomFlip(1.), PilRandomDihedral(), PilRandomWarp(0.2, p=1.),
         RandomBrightness(0.3, p=1.), RandomRotate(20, p=1.)]

@pytest.mark.parametrize('tfm', ALONE, ids=repr)
@pytest.mark.parametrize('kind', ['a JPEG', 'a turned JPEG', 'pixels'])
def test_a_transform_alone_leaves_its_image_as_it_was(tfm, kind):
    im = OPENED[kind]()
    tfm(im, Rng(1))
    assert known(im) == known(OPENED[kind]())

@pytest.mark.parametrize('tfm', [t for t in ALONE if hasattr(t, 'mask')], ids=repr)
def test_a_transform_leaves_a_mask_as_it_was(tfm):
    m = Image.fromarray(np.random.default_rng(0).integers(0, 5, (120, 160), dtype=np.uint8))
    before = m.tobytes()
    tfm.mask(m, tfm.draw(photo(), Rng(1)))
    assert m.size == (160, 120) and m.tobytes() == before

@pytest.mark.parametrize('tfm', [ToFloatTensor(), Normalize([.5]*3, [.25]*3),
                                 *(t for t in get_transforms(p_affine=1., p_lighting=1.)[0])], ids=repr)
@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32])
def test_a_transform_of_batches_leaves_its_batch_as_it_was(tfm, dtype):
    xb = (torch.rand(2, 3, 8, 8)*255).to(torch.uint8) if dtype == torch.uint8 else torch.rand(2, 3, 8, 8)
    before = xb.clone()
    tfm(xb, [Rng(1), Rng(2)])
    assert torch.equal(xb, before)

@pytest.mark.parametrize('kind', OPENED)
def test_predict_verify_and_show_leave_an_opened_image_as_it_was(kind):
    import matplotlib.pyplot as plt
    data = ImageList([photo(k) for k in range(6)]).split_by_index([5]).label_from_func(
        lambda im: 'x').transform(size=16).databunch(bs=4)
    learn, im = Learner(data, nn.Sequential(nn.Flatten(), nn.Linear(3*16*16, 1))), OPENED[kind]()
    first, second = learn.predict(im), learn.predict(im)
    assert torch.equal(first.probs, second.probs)
    verify_images([im])
    plt.close(show_image(im).figure)
    ImageList([im]).show(im, plt.figure().gca())
    plt.close('all')
    assert known(im) == known(OPENED[kind]())

@pytest.mark.parametrize('array', [np.zeros((12, 10, 3), np.uint8), torch.zeros(3, 12, 10),
                                   torch.zeros(12, 10, dtype=torch.uint8)], ids=['array', 'floats', 'bytes'])
def test_arrays_and_tensors_of_the_caller_are_not_changed(array):
    def dark(im):
        im.paste((9,)*len(im.getbands()) if im.mode != 'L' else 9, (0, 0, 5, 5))
        return im
    data = ImageList([array]*4).split_none().label_from_func(lambda a: 'x').transform([dark],
                                                                                      size=8).databunch(bs=4)
    list(data.train_dl)
    assert not np.asarray(array).any()

# ---- bytes, and files that are open

def sources(path):
    "The same image, in all ways to hold it."
    data = path.read_bytes()
    late = io.BytesIO(data)
    late.seek(0, io.SEEK_END)   # as it stands after `save`
    return {'path': path, 'str': str(path), 'bytes': data, 'bytearray': bytearray(data),
            'memoryview': memoryview(data), 'BytesIO': io.BytesIO(data), 'BytesIO at its end': late,
            'file': open(path, 'rb'), 'PIL': Image.open(path)}

@pytest.fixture
def path(tmp_path):
    (tmp_path/'a.jpg').write_bytes(lying())
    return tmp_path/'a.jpg'

@pytest.mark.parametrize('kind', ['str', 'bytes', 'bytearray', 'memoryview', 'BytesIO', 'BytesIO at its end',
                                  'file', 'PIL'])
def test_items_predict_and_verify_take_all_that_holds_an_image(path, kind):
    item = sources(path)[kind]
    place = item.tell() if hasattr(item, 'read') else None
    ds = LabeledData(ImageList([path]), None, [MakeRGB(), ResizeFixed(16), ToByteTensor()])
    want = ds[0][0]
    listed = LabeledData(ImageList([item]*2), None, ds.tfms)
    for got in (ds.prepare(item), ds.prepare(item), listed[0][0], listed[1][0]):
        assert (got.int() - want.int()).abs().max() <= 2   # a JPEG that we open is decoded small
    assert verify_images([item, path]) == []
    if place is not None: assert item.tell() == place and not item.closed

@pytest.mark.parametrize('wrong', [['a.jpg'], ('a.jpg',), {'a': 1}, 3, None, 2.5, object()],
                         ids=lambda o: type(o).__name__)
def test_what_holds_no_image_is_called_so(wrong):
    ds = LabeledData(ImageList([]), None, [MakeRGB(), ResizeFixed(16), ToByteTensor()])
    with pytest.raises(TypeError, match='image') as e: ds.prepare(wrong)
    assert 'cut short' not in str(e.value) and type(wrong).__name__ in str(e.value)

@pytest.mark.parametrize('size', [16, 40, (24, 60)])
@pytest.mark.parametrize('from_file', [True, False])
def test_a_jpeg_that_the_caller_opened_has_the_pixels_of_its_file_and_stays_as_it_was(tmp_path, size,
                                                                                      from_file):
    path = tmp_path/'big.jpg'
    noise = np.random.default_rng(1).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, quality=95)
    ds = ImageList([path],
                   path=tmp_path).split_none().label_from_func(lambda _: 'a').transform(size=size).train
    opened = Image.open(path if from_file else io.BytesIO(path.read_bytes()))
    assert (torch.equal(ds.prepare(opened), ds.prepare(path))
            and torch.equal(ds.prepare(opened), ds.prepare(path)))
    assert opened.size == (320, 240) and np.array_equal(np.array(opened), np.array(Image.open(path)))
    decoded = Image.open(path).convert('RGB')
    assert (ds.prepare(decoded).float() - ds.prepare(path).float()).abs().mean() < 20   # whole, then resized
