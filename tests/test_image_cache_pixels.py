"""Pixels of all kinds, 16 bits, floats, palettes, transparency and other colour spaces, come as the right
bytes; and images may have one channel."""
import io

import numpy as np
import pytest
import torch
from PIL import Image

from exp.data_block import GreyImageList, ImageList, LabeledData, LabelList
from exp.image_cache import ImageError, verify_images

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)

def saved(im, kind, **how):
    f = io.BytesIO()
    im.save(f, kind, **how)
    return f.getvalue()

def pil16(mode):
    return Image.frombytes(mode, (256, 256), RAMP.astype('>u2' if mode == 'I;16B' else '<u2').tobytes())
def pil_float(top): return Image.fromarray((RAMP*(top/65535)).astype(np.float32))

RAMPS = {'PNG': lambda: saved(pil16('I;16'), 'PNG'), 'TIFF': lambda: saved(pil16('I;16'), 'TIFF'),
         'TIFF, large end first': lambda: saved(pil16('I;16B'), 'TIFF'),
         'PGM': lambda: saved(pil16('I;16'), 'PPM'),
         'TIFF of 32 bits': lambda: saved(Image.fromarray(RAMP.astype(np.int32)), 'TIFF'),
         'TIFF of floats': lambda: saved(pil_float(1), 'TIFF'),
         **{mode: lambda mode=mode: pil16(mode) for mode in ('I;16', 'I;16B', 'I;16L')},
         'I': lambda: Image.fromarray(RAMP.astype(np.int32)),
         'F to 1': lambda: pil_float(1), 'F to 255': lambda: pil_float(255),
         'F to 65535': lambda: pil_float(65535),
         'uint16 array': lambda: RAMP, 'uint16 array, large end first': lambda: RAMP.astype('>u2'),
         'floats': lambda: RAMP/65535, 'floats to 65535': lambda: RAMP.astype(np.float32),
         'colours': lambda: np.stack([RAMP/65535]*3, -1),
         'tensor': lambda: torch.from_numpy(RAMP/65535)[None],
         'uint16 tensor': lambda: torch.from_numpy(RAMP)}

def first(item, cls=ImageList):
    "An item as bytes c×h×w, as a data set gives it."
    items = cls([item])
    return LabeledData(items, None, [t for t in items.default_tfms(None) if t.on == 'item'])[0][0]

@pytest.mark.parametrize('cls, channels', [(ImageList, 3), (GreyImageList, 1)])
@pytest.mark.parametrize('kind', RAMPS)
def test_a_ramp_of_more_than_eight_bits_has_all_levels(kind, cls, channels):
    x = first(RAMPS[kind](), cls)
    assert x.shape == (channels, 256, 256) and x.dtype == torch.uint8 and verify_images([RAMPS[kind]()]) == []
    for c in x:
        assert (len(c.unique()) == 256 and c.double().mean().item() == pytest.approx(127.5, abs=1e-3)
                and (c.flatten().int().diff() >= 0).all())

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool])
def test_tensors_of_all_floats_and_bools_are_images(dtype):
    t = torch.eye(8).to(dtype)
    assert (torch.equal(first(t)[0], torch.eye(8).byte()*255)
            and torch.equal(first(t.expand(3, 8, 8)), first(t)))

@pytest.mark.parametrize('bad',
                         [np.full((4, 4), -0.1), np.array([[0., np.nan]]), np.array([[0., np.inf]]),
                          np.array([[0., 1e6]]), Image.new('I', (2, 2), -1), Image.new('I', (2, 2), 70000),
                          Image.fromarray(np.array([[-3., 4.]], np.float32)), torch.randn(3, 9, 9)])
def test_numbers_that_are_no_brightness_are_refused(bad):
    with pytest.raises(ValueError, match='0…1'): first(bad)
    assert len(verify_images([bad])) == 1

def test_a_file_of_such_numbers_is_named_and_listed(tmp_path):
    Image.fromarray(np.array([[-3., 4.]], np.float32)).save(tmp_path/'heights.tif')
    with pytest.raises(ImageError, match='heights.tif'): first(tmp_path/'heights.tif')
    assert [p.name for p, _ in verify_images([tmp_path/'heights.tif'])] == ['heights.tif']

@pytest.mark.parametrize('array, shape',
                         [((12, 10), (3, 12, 10)), ((12, 10, 3), (3, 12, 10)), ((3, 12, 10), (3, 12, 10)),
                          ((1, 12, 10), (3, 12, 10)), ((12, 10, 1), (3, 12, 10)), ((4, 12, 10), (3, 12, 10)),
                          ((3, 6, 4), (3, 6, 4))])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize('of', [np.asarray, torch.from_numpy])
def test_channels_are_found_at_either_end(array, shape, dtype, of):
    assert first(of(np.ones(array, dtype))).shape == shape

@pytest.mark.parametrize('array', [np.zeros((5, 6, 7), np.uint8), np.zeros((6, 5), np.int64),
                                   np.zeros((2, 3, 4, 5), np.float32), np.zeros((4, 4), complex),
                                   np.zeros((0, 5), np.uint8)])
def test_what_can_be_understood_in_several_ways_or_none_is_refused(array):
    with pytest.raises(TypeError, match='image'): first(array)

# ---- transparency, and other colours

def halves(mode, left, right):
    "Two pixels."
    im = Image.new(mode, (2, 1), left)
    im.putpixel((1, 0), right)
    return im

def palette(transparency):
    im = halves('P', 0, 1)
    im.putpalette([200, 0, 0, 0, 100, 0])
    return saved(im, 'PNG', transparency=transparency)

CLEAR = {'RGBA': lambda: halves('RGBA', (200, 0, 0, 0), (0, 100, 0, 255)),
         'RGBA PNG': lambda: saved(halves('RGBA', (200, 0, 0, 0), (0, 100, 0, 255)), 'PNG'),
         'WebP': lambda: saved(halves('RGBA', (200, 0, 0, 0), (0, 100, 0, 255)), 'WEBP', lossless=True,
                               exact=True), 'P, one colour': lambda: palette(0),
         'P, bytes': lambda: palette(b'\0\xff'),
         'RGB, one colour': lambda: saved(halves('RGB', (200, 0, 0), (0, 100, 0)), 'PNG',
                                          transparency=(200, 0, 0))}
GREY_CLEAR = {'LA': lambda: halves('LA', (9, 0), (100, 255)),
              'La': lambda: halves('LA', (9, 0), (100, 255)).convert('La'),
              'L, one level': lambda: saved(halves('L', 9, 100), 'PNG', transparency=9),
              '16 bits, one level': lambda: saved(halves('I;16', 9*256, 100*256), 'PNG', transparency=9*256),
              'GIF': lambda: saved(halves('L', 9, 100), 'GIF', transparency=9)}

@pytest.mark.parametrize('kind', CLEAR)
def test_hidden_colours_do_not_come_back(kind):
    assert first(CLEAR[kind]())[:, 0].T.tolist() == [[255, 255, 255], [0, 100, 0]]

@pytest.mark.parametrize('kind', GREY_CLEAR)
@pytest.mark.parametrize('cls', [ImageList, GreyImageList])
def test_hidden_greys_do_not_come_back(kind, cls):
    x = first(GREY_CLEAR[kind](), cls)
    assert all(c.tolist() == [[255, 100]] for c in x)

def test_half_a_colour_lies_over_white():
    assert first(Image.new('RGBA', (1, 1), (0, 0, 200, 51))).flatten().tolist() == [204, 204, 244]

@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'CMYK', 'YCbCr', 'HSV', 'LAB', 'RGBX', 'RGBA', 'RGBa', 'PA'])
def test_every_mode_shows_its_colours(mode):
    bright = (250, 250, 250) if mode in ('1', 'L') else (220, 40, 30)
    im = Image.new('RGB', (4, 3), bright)
    try:
        im = (im.convert('RGBA').convert(mode) if mode == 'RGBa' else im.convert('P').convert(mode)
              if mode == 'PA' else im.convert(mode))
    except ValueError: pytest.skip('this Pillow does not make it')
    got = first(im).float().mean((1, 2))
    assert (got - torch.tensor(bright).float()).abs().max() <= (26 if mode in ('P', 'PA') else 6), got

# ---- masks keep their numbers

class MaskList(LabelList):
    kind, spatial = 'mask', True
    def open(self, item): return Image.open(item)

def with_palette(a):
    im = Image.fromarray(a.astype(np.uint8))
    im.putpalette([k//3 for k in range(768)])
    return im

@pytest.mark.parametrize('make, kind', [(lambda a: Image.fromarray(a.astype(np.uint8)), 'PNG'),
                                        (lambda a: Image.fromarray(a.astype(np.uint16)), 'PNG'),
                                        (lambda a: Image.fromarray(a.astype(np.uint16)), 'TIFF'),
                                        (lambda a: Image.frombytes('I;16B', a.shape[::-1],
                                                                   a.astype('>u2').tobytes()), 'TIFF'),
                                        (lambda a: Image.fromarray(a.astype(np.int32)), 'TIFF'),
                                        (lambda a: with_palette(a), 'PNG'),
                                        (lambda a: Image.fromarray(a > 0), 'PNG')])
@pytest.mark.parametrize('cache', [False, True])
def test_masks_keep_the_numbers_of_their_classes(tmp_path, make, kind, cache):
    most = {'I;16': 1000, 'I;16B': 1000, 'I': 70000, '1': 1}.get(make(np.zeros((2, 2), np.int64)).mode, 200)
    a = np.random.default_rng(0).choice([0, 1, most], (12, 16))
    make(a).save(tmp_path/f'm.{kind.lower()}', kind)
    data = ImageList([np.zeros((12, 16, 3), np.uint8)]*4).split_none().label_from_func(
        lambda i: tmp_path/f'm.{kind.lower()}',
        MaskList).transform(size=(12, 16), cache=cache).databunch(bs=4)
    for _ in range(2):
        xb, yb = data.one_batch()
        assert yb.dtype == torch.int64 and (yb == torch.from_numpy(a)).all()
