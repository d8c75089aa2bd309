"""Pictures show the brightness that their numbers have, whatever their type and wherever their channels
are."""
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from exp.core import image_array, show_image, show_images
from exp.data_block import ImageList

def drawn(im):
    "What matplotlib is to draw, as RGBA in 0…1."
    ax = show_image(im)
    artist = ax.images[0]
    a = np.ma.filled(artist.get_array())
    rgba = artist.to_rgba(a) if a.ndim == 2 else a/255. if a.dtype == np.uint8 else a
    plt.close(ax.figure)
    return np.asarray(rgba)

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

@pytest.mark.slow
@pytest.mark.parametrize('shape', [(6, 5), (1, 6, 5), (3, 6, 5)])
@pytest.mark.parametrize('value', [0., 0.25, 0.5, 1.])
@pytest.mark.parametrize('dtype', FLOATS)
def test_a_constant_image_of_floats_shows_its_brightness(dtype, value, shape):
    for im in (torch.full(shape, value, dtype=dtype),
               torch.full(shape, value, dtype=dtype, requires_grad=True)):
        got = drawn(im)
        assert got.shape[:2] == (6, 5) and np.allclose(got[..., :3], value, atol=1/254)

@pytest.mark.slow
@pytest.mark.parametrize('shape', [(6, 5), (1, 6, 5), (3, 6, 5), (6, 5, 3)])
@pytest.mark.parametrize('value', [0, 64, 128, 255])
def test_and_of_bytes_and_of_sixteen_bits(value, shape):
    for im in (np.full(shape, value, np.uint8), torch.full(shape, value, dtype=torch.uint8),
               np.full(shape, value*257, np.uint16)):
        assert np.allclose(drawn(im)[..., :3], value/255, atol=1/254)
    if shape == (6, 5):
        for im in (Image.new('L', (5, 6), value), Image.new('RGB', (5, 6), (value,)*3)):
            assert np.allclose(drawn(im)[..., :3], value/255, atol=1/254)

@pytest.mark.parametrize('value', [False, True])
@pytest.mark.parametrize('of', [np.full, torch.full])
@pytest.mark.parametrize('shape', [(6, 5), (3, 6, 5)])
def test_and_of_truths(value, of, shape): assert np.allclose(drawn(of(shape, value))[..., :3], float(value))

def test_two_greys_keep_their_difference_and_signed_numbers_are_spread():
    a = torch.tensor([[0.4, 0.6]])
    assert np.allclose(drawn(a)[0, :, 0], [0.4, 0.6], atol=1/254)
    assert (drawn(torch.tensor([[-3., 5.]]))[0, :, 0].tolist() == [0., 1.] and drawn(
        torch.full((3, 3), 7.))[0, 0, 0] == 1. and drawn(torch.full((3, 3), -7.))[0, 0, 0] == 0.)
    assert drawn(np.array([[0, 3]], np.uint8))[0, :, 0].tolist() == [0., 1.]   # a mask of classes

@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('im', [torch.tensor([[0., float('nan')], [1., 0.5]]),
                                torch.full((3, 2, 2), float('nan')), torch.full((2, 2), float('nan')),
                                torch.full((2, 2), float('inf')), torch.randn(3, 4, 4)*9,
                                np.zeros((4, 4), np.int64), torch.randint(-5, 300, (3, 4, 4)),
                                np.zeros((4, 4), np.int32), torch.zeros(4, 4, dtype=torch.int8)])
def test_odd_numbers_are_drawn_without_complaint(im): assert drawn(im).shape[2] in (3, 4)

@pytest.mark.parametrize('shape, of, want',
                         [((3, 6, 4), torch.zeros, (6, 4, 3)), ((3, 6, 4), np.zeros, (6, 4, 3)),
                          ((3, 6, 3), torch.zeros, (6, 3, 3)), ((3, 6, 3), np.zeros, (3, 6, 3)),
                          ((4, 6, 3), torch.zeros, (6, 3, 4)),
                          ((4, 6, 3), np.zeros, (4, 6, 3)), ((1, 6, 4), torch.zeros, (6, 4)),
                          ((6, 4, 1), torch.zeros, (6, 4)), ((6, 5, 4), torch.zeros, (6, 5, 4)),
                          ((1, 1, 1), np.zeros, (1, 1)), ((3, 3, 4), torch.zeros, (3, 4, 3))])
def test_one_rule_says_where_the_channels_are(shape, of, want):
    assert image_array(of(shape)).shape == want and show_image(of(shape)).images[0].get_array().shape == want
    plt.close('all')

@pytest.mark.parametrize('mode', ['P', 'PA', 'LA', 'CMYK', 'YCbCr', 'HSV'])
def test_pil_images_of_other_modes_show_their_colours(mode):
    im = Image.new('RGB', (5, 6), (220, 40, 30))
    im = (im.convert('L').convert(mode) if mode == 'LA' else im.convert('P').convert(mode) if mode == 'PA'
          else im.convert(mode))
    want = (87, 87, 87) if mode == 'LA' else (220, 40, 30)
    assert np.abs(drawn(im)[..., :3].mean((0, 1))*255 - want).max() <= 26

def test_lists_show_what_the_numbers_say():
    ax = plt.figure().gca()
    ImageList([]).show(torch.full((1, 4, 4), 0.5), ax)
    assert ax.images[0].get_clim() == (0, 1)
    show_images([torch.zeros(3, 3), torch.ones(3, 3).bfloat16()])
    plt.close('all')

@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('shape', [(4, 4), (4, 4, 3)])
def test_sixteen_bits_of_either_byte_order_are_shown_alike(order, shape):
    shown = show_image(np.full(shape, 32768, f'{order}u2')).images[0]
    assert (np.asarray(shown.norm(shown.get_array()) if len(shape) == 2 else shown.get_array(),
                       float).mean() == pytest.approx(0.5, abs=0.01))
