"""Random transforms of batches: what they move lands together, what they leave alone stays to the bit, and
colours change as PIL's."""
import copy, functools, math, random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, strategies as st
from PIL import Image, ImageEnhance

from exp import augmentation, batch_transforms
from exp.augmentation import *
from exp.batch_transforms import *
from exp.dataloader import Rng
from exp.specs import from_spec, to_spec
from exp.transforms import Normalize, to_byte_tensor
from test_augmentation import (COLOURS, CORNERS, MOVES, NAMES, angles, centres, coords, distance, inner,
                               lands, marked, noise, off, parts, pil, pixel_of, quick, random_matrix, rngs,
                               seeds, sizes, smooth, spot, well_inside, where)

@pytest.mark.slow
@pytest.mark.parametrize('k', range(len(MOVES)), ids=NAMES)
@quick(40)
@given(sizes, seeds, coords, coords)
def test_a_batchs_pixels_points_and_mask_pixels_land_together(k, size, seed, x, y):
    check_batch(MOVES[k](p=0.8), size, seed, x, y)

@pytest.mark.slow
@quick(120)
@given(st.lists(st.integers(0, len(MOVES) - 1), min_size=2, max_size=4), sizes, seeds, coords, coords,
       st.sampled_from(['reflection', 'border', 'zeros']))
def test_under_compositions_too(ks, size, seed, x, y, pad):
    t = Composed([m(p=0.8, pad=pad) for m in parts(ks)], pad=pad)
    check_batch(t, size, seed, x, y)

def check_batch(t, size, seed, x, y, n=3):
    (h, w), seen = size, 0
    m, p = marked(h, w, (x, y))
    xb, mb, pb = spot(h, w, p).expand(n, 3, h, w).contiguous(), m.expand(n, h, w).contiguous(), p.expand(
        n, 2, 2).contiguous()
    move = t.draw(xb, rngs(seed, n))
    xs, ms, ps = t.image(xb, move), t.mask(mb, move), t.points(pb, move)
    assert (xs.shape == xb.shape and ms.shape == mb.shape and ms.dtype == mb.dtype and ps.shape == pb.shape
            and set(ms.unique().tolist()) <= {0, 7})
    for i in range(n):
        if well_inside(ps[i, 0], h, w):
            lands(xs[i, 0], ms[i], ps[i, 0])
            seen += 1
        one = t.draw(xb[i], Rng(seed, i))   # the item alone, by the generator of the same key: the same
        torch.testing.assert_close(t.image(xb[i], one), xs[i], rtol=0, atol=1e-5)
        assert ((t.mask(mb[i], one) != ms[i]).float().mean() < 0.01
                and torch.allclose(t.points(pb[i], one), ps[i], atol=1e-12))
    assume(seen)

@pytest.mark.slow
@quick(80)
@given(st.lists(st.integers(0, len(MOVES) - 1), min_size=1, max_size=3), sizes, seeds, coords, coords)
def test_pil_images_tensors_and_batches_move_alike(ks, size, seed, x, y):
    (h, w), t = size, Composed([m(p=0.8, on='item') for m in parts(ks)], on='item')
    m, p = marked(h, w, (x, y))
    as_bytes = (spot(h, w, p)*255).round().byte().expand(3, h, w).contiguous()
    im, mask = Image.fromarray(as_bytes.movedim(0, -1).contiguous().numpy()), Image.fromarray(m.numpy())
    move = t.draw(im, Rng(seed, 0))
    out, out_m, q = t.image(im, move), t.mask(mask, move), t.points(p[None], move)[0]
    assert out.size == im.size and out.mode == 'RGB' and out_m.mode == mask.mode
    if well_inside(q, h, w):
        lands(to_byte_tensor(out)[0]/255, torch.from_numpy(np.array(out_m)), q, blob=0.45)
    tensor = t.image(as_bytes, t.draw(as_bytes, Rng(seed, 0)))
    batch = t.image(as_bytes[None], t.draw(as_bytes[None], [Rng(seed, 0)]))
    floats = t.image(as_bytes/255, move)
    assert torch.equal(to_byte_tensor(out), tensor) and torch.equal(batch[0], tensor)
    assert (floats*255 - tensor).abs().max() <= 0.501

@quick(25)
@given(sizes, seeds)
def test_a_mask_is_jittered_as_its_image(size, seed):
    "Each pixel is a class of its own, so one sees where it was taken from."
    (h, w), t = size, Composed([RandomJitter(0.3, p=1.), RandomRotate(20, p=1.)])
    number = torch.arange(h*w).view(1, h, w)
    move = t.draw(number[:, None], rngs(seed, 1))
    taken = t.mask(number, move)
    # an image whose colours are x and y
    places = torch.stack([centres(w).expand(h, w), centres(h)[:, None].expand(h, w)])[None]
    x, y = t.image(places, move)[0]
    assert (((taken[0] % w*2 + 1)/w - 1 - x).abs().max() <= 1.001/w
            and ((taken[0]//w*2 + 1)/h - 1 - y).abs().max() <= 1.001/h)
    assert (x - t.image(places, move._replace(jitter=None))[0, 0]).abs().max() > 0.2

@quick(25)
@given(sizes, seeds, coords, coords)
def test_the_inverse_brings_an_image_back_within_a_pixel(size, seed, x, y):
    h, w = size
    matrix = random_matrix(seed, size, (2, 3, 4, 6))
    _, p = marked(h, w, (x, y))
    assume(well_inside(move_points(p[None], matrix)[0], h, w, 5.))
    there = resample(spot(h, w, p)[None], matrix, pad='zeros')
    back = resample(there, torch.linalg.inv(matrix), pad='zeros')
    assert off(where(back[0], p), p, h, w) < 0.3
    x0, y0 = pixel_of(h, w, p)
    row, col = divmod(back[0].argmax().item(), w)
    assert abs(row - y0) <= 1 and abs(col - x0) <= 1

@quick(40)
@given(sizes, angles)
def test_a_turn_is_that_of_pil(size, degrees):
    im = pil(noise(3, *size, seed=1))
    m, theirs = rotation(degrees, size), to_byte_tensor(im.rotate(degrees, Image.Resampling.BILINEAR)).int()
    ours = to_byte_tensor(resample(im, m, pad='zeros')).int()
    inside = inner(m, size)
    # PIL cuts off where we round
    assert inside.float().mean() > 0.2 and (ours - theirs)[inside].abs().max() <= 1

# ---- sampling

@quick(30)
@given(sizes, st.sampled_from([torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]),
       seeds)
def test_what_is_not_moved_stays_bit_for_bit_also_in_a_mixed_batch(size, dtype, seed):
    x = (noise(5, 3, *size, seed=seed)*(255 if dtype == torch.uint8 else 1)).to(dtype)
    assert torch.equal(resample(x, torch.eye(3)), x) and torch.equal(resample(x, torch.eye(3), size), x)
    for moved in ([1], [0, 1, 3], [0, 1, 2, 3]):
        m = torch.eye(3, dtype=torch.float64).repeat(5, 1, 1)
        m[moved] = rotation(17., size)
        out, still = resample(x, m), [i for i in range(5) if i not in moved]
        assert torch.equal(out[still], x[still]) and out.dtype == dtype
        for i in moved:
            torch.testing.assert_close(out[i], resample(x[i], rotation(17., size)), rtol=0, atol=0)
        mixed = resample(x, torch.stack([scaling(-1, 1), rotation(9.), torch.eye(3, dtype=torch.float64),
                                         scaling(-1), scaling(1, -1)]))
        assert (torch.equal(mixed[0], x[0].flip(-1)) and torch.equal(mixed[2], x[2])
                and torch.equal(mixed[3], x[3].flip(-1, -2)) and torch.equal(mixed[4], x[4].flip(-2)))

def test_what_a_transform_leaves_alone_stays_bit_for_bit():
    x = noise(40, 3, 20, 26)
    for t in (RandomRotate(p=0.4), RandomWarp(p=0.4), Composed([RandomZoom(p=0.3), RandomShear(p=0.3)])):
        move = t.draw(x, rngs(1, 40))
        same = (move.matrix == torch.eye(3)).flatten(1).all(1)
        assert 8 < same.sum() < 32 and torch.equal(t.image(x, move)[same], x[same])
        assert all(not torch.equal(a, b) for a, b in zip(t.image(x, move)[~same], x[~same]))

def test_items_that_no_jitter_hits_stay_bit_for_bit():
    x, t = noise(40, 3, 20, 26), RandomJitter(0.05, p=0.5)
    move = t.draw(x, rngs(1, 40))
    hit = move.jitter.flatten(1).any(1)
    out = t.image(x, move)
    assert (8 < hit.sum() < 32 and torch.equal(out[~hit], x[~hit])
            and all(not torch.equal(a, b) for a, b in zip(out[hit], x[hit])))

@pytest.mark.parametrize('dtype, bound', [(torch.float64, 1e-5), (torch.float32, 1e-4)])
@pytest.mark.parametrize('size', [(1, 1), (2, 3), (17, 40), (128, 128), (511, 200), (512, 512)])
def test_identity_through_the_sampler_returns_the_input(size, dtype, bound):
    x = noise(2, 3, *size, dtype=dtype)
    x[1] = (torch.arange(size[0])[:, None] + torch.arange(size[1])) % 2          # the steepest there is
    m = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    for pad in ('reflection', 'border', 'zeros'):
        assert (batch_transforms._sampled(x, m, size, pad=pad) - x).abs().max() < bound
    nearly = torch.eye(3, dtype=torch.float64) + 1e-15
    assert (resample(x, nearly) - x).abs().max() < bound
    assert torch.equal(resample(x, nearly, mode='nearest'), x)

@quick(25)
@given(st.integers(3, 40), seeds)
def test_right_angles_are_exact_on_squares(n, seed):
    x = noise(8, 2, n, n, seed=seed)
    for quarter in range(4): assert torch.equal(resample(x, rotation(90*quarter)), x.rot90(quarter, (-2, -1)))
    for quarter in range(-4, 5):
        assert torch.equal(resample(x, rotation(90*quarter) @ scaling(-1, 1)),
                           x.rot90(quarter, (-2, -1)).flip(-1))

def test_a_quarter_turn_of_an_oblong_image_keeps_its_shape_and_its_scale():
    h, w, p = 30, 50, torch.tensor([0.1, 0.3], dtype=torch.float64)
    out = resample(spot(h, w, p)[None], rotation(90, (h, w)))
    q = move_points(p[None], rotation(90, (h, w)))[0]
    assert out.shape == (1, h, w) and off(where(out[0], q), q, h, w) < 0.1
    assert off(q, torch.tensor([0.3*h/w, -0.1*w/h]), h, w) < 1e-6

@quick(25)
@given(sizes, seeds, st.sampled_from(['bilinear', 'nearest', 'bicubic']),
       st.sampled_from(['reflection', 'border', 'zeros']))
def test_one_interpolation_is_affine_grid_and_grid_sample(size, seed, mode, pad):
    x, m = noise(2, 3, *size, seed=seed, dtype=torch.float64), random_matrix(seed, size, (3, 4, 5, 6))
    grid = F.affine_grid(m[:2].expand(2, 2, 3), x.shape, align_corners=False)
    ours, theirs = resample(x, m, mode=mode, pad=pad), F.grid_sample(x, grid, mode, pad, align_corners=False)
    same = (ours - theirs).abs() < 1e-9
    assert same.all() if mode != 'nearest' else same.float().mean() > 0.99       # a tie between two pixels

@quick(20)
@given(sizes, seeds)
def test_fill_is_what_lies_outside_and_nothing_else(size, seed):
    x, m = noise(2, 3, *size, seed=seed, dtype=torch.float64), scaling(0.5) @ rotation(20., size)
    filled, black = resample(x, m, pad='zeros', fill=0.4), resample(x, m, pad='zeros')
    share = resample(torch.ones_like(x), m, pad='zeros')
    torch.testing.assert_close(filled, black + 0.4*(1 - share), rtol=0, atol=1e-12)
    im = pil(x[0])
    assert abs(np.array(resample(im, m, pad='zeros', fill=0.4))[0, 0].astype(int) - 102).max() <= 1
    mask = RandomRotate(pad='zeros', void=9).mask(torch.ones(2, *size, dtype=torch.long),
                                                  Move(m.expand(2, 3, 3), size))
    assert set(mask.unique().tolist()) == {1, 9} and mask.dtype == torch.int64

@pytest.mark.parametrize('dtype, bound', [(torch.float64, 1e-6), (torch.float16, 1e-3),
                                          (torch.bfloat16, 8e-3), (torch.uint8, 0.51/255)])
@quick(6)
@given(sizes, seeds)
def test_the_types_of_numbers_agree_within_their_rounding(dtype, bound, size, seed):
    "Colours of half the precision are rounded several times."
    scale = 255 if dtype == torch.uint8 else 1
    x = (smooth(3, *size, seed)*scale).to(dtype)
    for t in [m(p=0.8) for m in MOVES] + [C(p=0.8) for C in COLOURS]:
        out, ref = t(x, rngs(seed, 3)), t(x.float()/scale, rngs(seed, 3))
        assert out.dtype == dtype and out.shape == x.shape
        assert (out.float()/scale - ref).abs().max() <= bound*(
            1 if isinstance(t, Geometric_) or dtype in (torch.uint8, torch.float64) else 4)

Geometric_ = batch_transforms.Geometric

@pytest.mark.slow
@quick(10)
@given(sizes, seeds)
def test_the_layout_in_memory_changes_nothing(size, seed):
    x = noise(4, 3, *size, seed=seed)
    for t in [m(p=0.7) for m in MOVES] + [C(p=0.7) for C in COLOURS]:
        want = t(x, rngs(seed, 4))
        for y in (x.contiguous(memory_format=torch.channels_last),
                  x.transpose(2, 3).contiguous().transpose(2, 3), x.flip(0).flip(0)):
            kept = y.clone()
            torch.testing.assert_close(t(y, rngs(seed, 4)), want, rtol=0, atol=2e-6)
            assert torch.equal(y, kept)                                          # nothing is changed in place

@pytest.mark.parametrize('t', [m(p=1.) for m in MOVES] + [C(p=1.) for C in COLOURS]
                         + [Composed([RandomFlip(), RandomWarp(), RandomJitter()]),
                            batch_transforms.ComposedLighting([RandomHue(), RandomContrast()])], ids=repr)
def test_batches_of_one(t):
    x = noise(3, 3, 20, 31)
    torch.testing.assert_close(t(x[1:2], [Rng(1, 1)])[0], t(x, rngs(1, 3))[1], rtol=0, atol=1e-6)
    assert t(x[:1]).shape == (1, 3, 20, 31) and t(noise(2, 1, 9, 8)).shape == (2, 1, 9, 8)
    # alone, without a generator: anew each time
    a, b, _c = t(x), t(x), t(x[0])
    assert isinstance(t, RandomDihedral | RandomFlip) or not torch.equal(a, b)
    random.seed(3)
    a = t(x)
    random.seed(3)
    assert torch.equal(t(x), a)

def test_one_displacement_for_all_images():
    x, jitter = noise(3, 3, 8, 8), 0.05*torch.randn(1, 8, 8, 2)
    assert torch.equal(resample(x, torch.eye(3), jitter=jitter),
                       resample(x, torch.eye(3), jitter=jitter.repeat(3, 1, 1, 1)))

def test_a_number_of_pixels_is_a_square_for_resample_too():
    x = noise(2, 3, 20, 30)
    assert torch.equal(resample(x, rotation(5), 16), resample(x, rotation(5), (16, 16)))
    assert (resample(x, torch.eye(3), (40, 15)).shape == (2, 3, 40, 15)
            and resample(pil(x[0]), torch.eye(3), (40, 15)).size == (15, 40))

@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'HSV', 'I', 'F', 'I;16'])
def test_pil_images_keep_their_mode(mode):
    im = Image.new(mode, (20, 16))
    for t in (RandomRotate(20, p=1.), RandomFlip(p=1.), RandomDihedral()):
        out = t(im, Rng(0))
        assert (out.mode, out.size) == (im.mode, im.size), t

def test_images_of_sixteen_bits_are_mirrored_exactly():
    a = np.arange(12, dtype=np.uint16).reshape(3, 4)*5000
    assert (np.array_equal(np.array(RandomFlip(p=1.)(Image.fromarray(a))), a[:, ::-1])
            and np.array_equal(np.array(RandomFlip(True, p=1.)(Image.fromarray(a))), a[::-1]))
    square = torch.from_numpy(a[:, :3].copy())[None]
    assert torch.equal(resample(square, rotation(90)).int(), square.int().rot90(1, (1, 2)))

def test_masks_of_sixteen_bits_keep_their_classes():
    m = Image.fromarray(np.full((20, 30), 40000, np.uint16))
    out = RandomRotate(p=1.).mask(m, Move(rotation(10), (20, 30)))
    assert out.mode == m.mode and set(np.array(out).flatten().tolist()) == {40000}

# ---- composition

@quick(30)
@given(st.lists(st.integers(0, len(MOVES) - 1), min_size=2, max_size=5), sizes, seeds)
def test_composed_is_the_product_of_the_matrices_in_their_order(ks, size, seed):
    tfms = [m(p=0.8) for m in parts(ks)]
    whole, mine = Composed(tfms).draw(noise(3, 1, *size), rngs(seed, 3)), rngs(seed, 3)
    # the same generators, one transform after the other
    steps = [t.matrices(mine, size) for t in tfms]
    torch.testing.assert_close(whole.matrix, functools.reduce(torch.matmul, steps), rtol=0, atol=1e-12)
    p = noise(3, 4, 2, seed=seed, dtype=torch.float64) - 0.5
    torch.testing.assert_close(move_points(p, whole.matrix), functools.reduce(move_points, steps, p), rtol=0,
                               atol=1e-9)
    joined = functools.reduce(lambda a, b: a.joined(b), tfms)
    assert isinstance(joined, Composed) and joined.tfms == tfms
    torch.testing.assert_close(joined.draw(noise(3, 1, *size), rngs(seed, 3)).matrix, whole.matrix, rtol=0,
                               atol=0)

def test_one_interpolation_keeps_what_several_blur():
    x = noise(1, 3, 40, 40)
    back_and_forth = [rotation(13.), rotation(-13.)]
    several = functools.reduce(resample, back_and_forth, x)
    once = resample(x, back_and_forth[0] @ back_and_forth[1])
    error = lambda y: (y - x)[..., 8:-8, 8:-8].abs().mean()
    assert error(once) < 1e-6 and error(several) > 0.05

def test_transforms_are_joined_only_where_their_settings_agree():
    a = RandomRotate()
    for other in (RandomZoom(pad='zeros'), RandomZoom(min_visible=0.1), RandomZoom(void=255),
                  RandomZoom(on='item'), RandomBrightness(), PilRandomFlip(), Normalize([0.], [1.])):
        assert a.joined(other) is None and other.joined(a) is None
    assert (RandomContrast().joined(RandomHue(on='item')) is None
            and RandomContrast().joined(RandomHue()).on == 'batch')
    z = RandomRotate(pad='zeros', min_visible=0.1, void=255,
                     on='item').joined(RandomZoom(pad='zeros', min_visible=0.1, void=255, on='item'))
    assert (z.pad, z.min_visible, z.void, z.on, z.order) == ('zeros', 0.1, 255, 'item', 40)

# ---- colours

def one_after_another(tfms, xb, seed):
    gens = rngs(seed, len(xb))
    for t in tfms:
        d = t.draw(xb, gens)
        xb = t.image(xb, d)
    return xb

@quick(40)
@given(st.lists(st.sampled_from(COLOURS), min_size=1, max_size=5), sizes, seeds, st.sampled_from([1, 3]))
def test_colours_joined_are_those_one_after_another_where_nothing_saturates(classes, size, seed, channels):
    tfms = [C(0.1, p=0.8) for C in classes]
    x = 0.45 + 0.1*noise(4, channels, *size, seed=seed, dtype=torch.float64)
    steps, joined = one_after_another(tfms, x, seed), functools.reduce(lambda a, b: a.joined(b) , tfms)
    assume(steps.min() > 0 and steps.max() < 1)
    torch.testing.assert_close(joined(x, rngs(seed, 4)), steps, rtol=0, atol=1e-6)
    torch.testing.assert_close(joined(x.float(), rngs(seed, 4)).double(), steps, rtol=0, atol=1e-6)

@quick(20)
@given(st.sampled_from(COLOURS), sizes, seeds)
def test_grey_images_are_changed_as_their_three_equal_channels_are(C, size, seed):
    x = noise(3, 1, *size, seed=seed)
    grey, rgb = C(p=1.)(x, rngs(seed, 3)), C(p=1.)(x.expand(3, 3, *size), rngs(seed, 3))
    assert grey.shape == x.shape
    for c in range(3): torch.testing.assert_close(rgb[:, c], grey[:, 0], rtol=0, atol=1e-6)
    if C in (RandomSaturation, RandomHue): torch.testing.assert_close(grey, x, rtol=0, atol=1e-6)

def fixed(C, value):
    "A change of colour by this number, each time."
    class Fixed(C):
        def amount(self, rng): return value
    return Fixed(p=1.)

def test_a_subclass_of_lighting_says_what_it_draws_and_how_colours_change():
    class Half(Lighting):
        def amount(self, rng): return 0.5
        def recolour(self, f): return f*torch.eye(3), 0*torch.eye(3)
    x = noise(2, 3, 5, 6)
    draw = Half(p=1.).draw(x, rngs(0, 2))
    assert isinstance(draw, Recolour) and draw.own.shape == draw.mean.shape == (2, 3, 3)
    torch.testing.assert_close(Half(p=1.).image(x, draw), x/2)
    assert Half(p=0.).draw(x, rngs(0, 2)) is None

def test_a_third_of_the_circle_of_hues_exchanges_the_channels():
    x = torch.eye(3)[:, :, None, None]*0.9                                       # red, green, blue
    out = fixed(RandomHue, 1/3)(x)
    assert torch.allclose(out, x.roll(1, 1), atol=1e-6) or torch.allclose(out, x.roll(-1, 1), atol=1e-6)
    assert torch.allclose(fixed(RandomHue, 1/3)(out), fixed(RandomHue, -1/3)(x), atol=1e-6)
    image = noise(2, 3, 8, 9)
    # the mean of a pixel stays
    torch.testing.assert_close(fixed(RandomHue, 0.1)(image*0.2 + 0.4).mean(1), (image*0.2 + 0.4).mean(1))
    redder = fixed(RandomHue, 0.05)(torch.tensor([0.9, 0., 0.])[None, :, None, None])[0, :, 0, 0]
    # a little further: towards orange
    assert redder[1] > 0.1 and redder[2] == 0

@pytest.mark.parametrize('C, theirs, bound', [(RandomBrightness, ImageEnhance.Brightness, 1),
                                              (RandomContrast, ImageEnhance.Contrast, 2),
                                              (RandomSaturation, ImageEnhance.Color, 2)])
@quick(30)
@given(sizes, seeds, st.floats(0.2, 1.8))
def test_brightness_contrast_and_saturation_are_those_of_pil_within_rounding(C, theirs, bound, size, seed, f):
    im = pil(noise(3, *size, seed=seed))
    ours = to_byte_tensor(fixed(C, f)(im)).int()
    assert (ours - to_byte_tensor(theirs(im).enhance(f)).int()).abs().max() <= bound

@quick(20)
@given(st.sampled_from(COLOURS), sizes, seeds)
def test_colours_of_bytes_floats_pil_images_and_items_agree(C, size, seed):
    x, t = (noise(1, 3, *size, seed=seed)*255).round().byte(), C(p=1.)
    as_bytes, as_floats = t(x, rngs(seed, 1)), t(x.float()/255, rngs(seed, 1))
    assert ((as_bytes/255 - as_floats).abs().max() <= 0.501/255 and 0 <= as_floats.min()
            and as_floats.max() <= 1)
    assert (torch.equal(t(x[0], Rng(seed, 0)), as_bytes[0]) and torch.equal(to_byte_tensor(
        t(Image.fromarray(x[0].movedim(0, -1).contiguous().numpy()), Rng(seed, 0))), as_bytes[0]))
    assert t(Image.fromarray(x[0, 0].numpy()), Rng(seed, 0)).mode == 'L'

def test_colours_that_the_dice_leave_alone_stay_bit_for_bit():
    x = noise(40, 3, 9, 8)
    for t in [C(0.5, p=0.5) for C in COLOURS]:
        same = torch.tensor([(t(x[i], Rng(4, i)) == x[i]).all() for i in range(40)])
        assert 8 < same.sum() < 32 and torch.equal(t(x, rngs(4, 40))[same], x[same])

@pytest.mark.slow
@pytest.mark.parametrize('p', [0., 0.3, 1.])
def test_each_image_has_its_own_chance(p):
    n, x = 1500, noise(1, 3, 6, 6)
    for t in (RandomFlip(p=p), RandomRotate(p=p), RandomWarp(p=p), RandomBrightness(p=p)):
        hit = sum(not torch.equal(y, x[0]) for y in t(x.expand(n, 3, 6, 6), rngs(2, n)))/n
        assert abs(hit - p) <= 3.3*math.sqrt(p*(1 - p)/n)
    for t in (PilRandomFlip(p), PilRandomWarp(p=p)):
        im = pil(x[0])
        hit = sum(np.array(t(im, Rng(2, k))).tobytes() != im.tobytes() for k in range(300))/300
        assert abs(hit - p) <= 3.3*math.sqrt(p*(1 - p)/300)

@pytest.mark.parametrize('make, low, high, of', [
    (lambda: RandomRotate(30, p=1.), -30, 30, lambda m: math.degrees(math.atan2(m[1, 0], m[0, 0]))),
    (lambda: RandomZoom(1.5, 0.8, p=1.), 0.8, 1.5, lambda m: 1/m[0, 0].item()),
    (lambda: RandomShift(0.2, p=1.), -0.2, 0.2, lambda m: -m[0, 2].item()/2),
    (lambda: RandomShift(0.2, p=1.), -0.2, 0.2, lambda m: -m[1, 2].item()/2),
    (lambda: RandomShear(20, p=1.), -20, 20, lambda m: math.degrees(math.atan(m[0, 1])))],
                         ids=['turn', 'zoom', 'right', 'down', 'shear'])
def test_amounts_are_spread_evenly_over_what_is_asked_for(make, low, high, of):
    n = 1500
    values = np.array([of(m) for m in make().matrices(rngs(3, n), (10, 10))])
    assert (distance(values, lambda v: (v - low)/(high - low)) < 1.63/math.sqrt(n)
            and values.min() >= low - 1e-9 and values.max() <= high + 1e-9)

def test_a_zoom_in_sees_no_edge():
    m = RandomZoom(2., p=1.).matrices(rngs(0, 500), (12, 18))
    # where the corners of the output take their colours from
    windows = move_points(torch.tensor(CORNERS).expand(500, 4, 2), torch.linalg.inv(m))
    assert windows.abs().max() <= 1 + 1e-12 and windows.abs().max() > 0.999

# ---- get_transforms

def names(tfms): return [type(t).__name__ for t in tfms]

def test_get_transforms_leaves_out_what_is_0():
    train, valid = get_transforms()
    assert (valid == [] and names(train) == ['RandomFlip', 'RandomRotate', 'RandomZoom', 'RandomWarp',
                                             'RandomBrightness', 'RandomContrast'])
    without = lambda **k: set(names(train)) - set(names(get_transforms(**k)[0]))
    assert (without(do_flip=False) == {'RandomFlip'} and without(max_rotate=0) == {'RandomRotate'}
            and without(max_zoom=1.) == {'RandomZoom'} and without(max_warp=0.) == {'RandomWarp'})
    assert (without(max_lighting=0.) == {'RandomBrightness', 'RandomContrast'}
            and without(flip_vert=True) == {'RandomFlip'})
    assert names(get_transforms(flip_vert=True)[0])[0] == 'RandomDihedral'
    assert get_transforms(False, False, 0, 1, 0, 0) == ([], [])

def test_get_transforms_hands_its_numbers_on():
    train, _ = get_transforms(True, False, 20., 1.3, 0.1, 0.4, p_affine=0.5, p_lighting=0.6,
                              xtra_tfms=RandomHue())
    flip, turn, zoom, warp, bright, contrast, hue = train
    assert ((turn.max_degrees, zoom.max_zoom, warp.max_warp, bright.max_change,
             contrast.max_change) == (20., 1.3, 0.1, 0.4, 0.4) and isinstance(hue, RandomHue))
    assert [t.p for t in train[:6]] == [0.5, 0.5, 0.5, 0.5, 0.6, 0.6]
    assert (names(get_transforms(xtra_tfms=[RandomHue(), PilRandomFlip()])[0])[-2:]
            == ['RandomHue', 'PilRandomFlip'])
    assert names(train) == names(get_transforms(xtra_tfms=RandomHue())[0])

# ---- export

EVERY = [RandomFlip(), RandomFlip(True, p=0.2), RandomDihedral(p=0.9),
         RandomRotate(20, p=1., pad='zeros', void=3), RandomZoom(1.3, 0.9), RandomShift(0.2, on='item'),
         RandomShear(5), RandomWarp(0.1, min_visible=0.5),
         RandomJitter(0.02), Composed([RandomRotate(5), RandomZoom()], pad='border'), PilRandomFlip(0.4),
         PilRandomDihedral(0.4), PilRandomWarp(0.1, 0.5), RandomCrop((20, 30), 0.1), CenterCrop(9),
         RandomResizedCrop(20, (0.2, 0.9), (0.5, 2.), 0.4), CenterResizedCrop((9, 8), zoom=1.2),
         RandomBrightness(0.3), RandomContrast(p=0.2), RandomSaturation(on='item'), RandomHue(0.2),
         ComposedLighting([RandomBrightness(0.3), RandomHue()])]

@pytest.mark.parametrize('t', EVERY, ids=lambda t: type(t).__name__)
def test_every_transform_can_be_written_and_made_again(t):
    other = from_spec(to_spec(t))
    assert type(other) is type(t) and to_spec(other) == to_spec(t) and to_spec(eval(repr(t))) == to_spec(t)
    im = pil(noise(3, 26, 34))
    for kind in (im, to_byte_tensor(im)) if t.on == 'batch' or t.order >= 40 else (im,):
        a, b = (f(kind, Rng(5)) for f in (t, other))
        assert a == b if isinstance(a, Image.Image) else torch.equal(a, b)
    assert np.array(copy.deepcopy(t)(im, Rng(5))).tobytes() == np.array(t(im, Rng(5))).tobytes()

def test_every_transform_of_the_module_is_tested_above():
    classes = {getattr(m, n) for m in (augmentation, batch_transforms)
               for n in m.__all__ if isinstance(getattr(m, n), type)}
    made = {type(t) for t in EVERY}
    assert {c for c in classes if '_spec_name' in vars(c)} == made

# ---- bad input

BAD = {
    'p': (lambda: RandomRotate(p=1.5), r'\bp\b'), 'negative p': (lambda: PilRandomFlip(-0.1), r'\bp\b'),
    'p of a warp': (lambda: PilRandomWarp(p=2), r'\bp\b'), 'p of light': (lambda: RandomHue(p=3), r'\bp\b'),
    'warp': (lambda: RandomWarp(0.5), 'max_warp'),
    'negative warp': (lambda: RandomWarp(-0.1), 'max_warp'),
    'PIL warp': (lambda: PilRandomWarp(0.6), 'max_warp'),
    'PIL warp that folds': (lambda: PilRandomWarp(0.4), 'max_warp'),
    'shear': (lambda: RandomShear(120.), '120'),
    'min_visible of boxes': (lambda: move_boxes(torch.zeros(3, 4), rotation(1), 25), 'min_visible'),
    'pad': (lambda: RandomZoom(p=1., pad='mirror')(noise(1, 3, 8, 8)), 'mirror'),
    'on': (lambda: RandomShift(on='items'), "'items'"), 'on of light': (lambda: RandomHue(on='x'), "'x'"),
    'change': (lambda: RandomBrightness(1.1), 'max_change'),
    'scale over 1': (lambda: RandomResizedCrop(9, scale=(0.5, 2.)), 'scale'),
    'size 0': (lambda: RandomResizedCrop(0), 'size'), 'crop 0': (lambda: RandomCrop((0, 4)), 'size'),
    'center': (lambda: CenterCrop('a'), 'size'),
    'center zoom': (lambda: CenterResizedCrop(9, zoom=0.5), 'zoom'),
    'get_transforms': (lambda: get_transforms(max_warp=0.7), 'max_warp'),
    'p_affine': (lambda: get_transforms(p_affine=7), r'\bp\b'),
    'mode': (lambda: resample(noise(1, 3, 8, 8), rotation(3), mode='cubic'), "'cubic'"),
    'pad of resample': (lambda: resample(noise(1, 3, 8, 8), rotation(3), pad='x'), "'x'"),
    'output of size 0': (lambda: resample(noise(1, 3, 8, 8), rotation(3), 0), 'size'),
    'chances of Composed': (lambda: Composed([RandomFlip()], p=0.1), 'chances'),
}

# What Python and PyTorch refuse themselves.
REFUSED = {
    'points and matrices': (lambda: move_points(torch.zeros(3, 2), rotation(1).expand(4, 3, 3)),
                            RuntimeError),
    'boxes and matrices': (lambda: move_boxes(torch.zeros(3, 5, 4), rotation(1).expand(4, 3, 3)),
                           RuntimeError),
    'matrix of points': (lambda: move_points(torch.zeros(3, 2), torch.eye(2)), RuntimeError),
    'jitter': (lambda: resample(noise(2, 3, 8, 8), rotation(3), jitter=torch.ones(2, 4, 4, 2)), RuntimeError),
    'scaling 0': (lambda: scaling(0), ZeroDivisionError),
    'points': (lambda: move_points(torch.zeros(3, 3), rotation(1)), RuntimeError),
    'boxes': (lambda: move_boxes(torch.zeros(3, 5), rotation(1)), ValueError),
    'four points': (lambda: homography(CORNERS[:3], CORNERS[:3]), RuntimeError),
    'matrices': (lambda: resample(noise(4, 3, 8, 8), rotation(3).expand(3, 3, 3)), RuntimeError),
    'colours of four channels': (lambda: RandomHue(p=1.)(noise(1, 4, 8, 8)), RuntimeError),
    'in a line': (lambda: homography([[0., 0], [1, 1], [2, 2], [0, 1]], CORNERS), RuntimeError),
    'two by two': (lambda: resample(noise(4, 3, 8, 8), torch.eye(2)), RuntimeError),
    'rank': (lambda: resample(noise(8, 8), rotation(3)), IndexError),
    'generators': (lambda: RandomRotate(p=1.)(noise(4, 3, 8, 8), [Rng(0)]*3), RuntimeError),
    'generators of light': (lambda: RandomHue(p=1.)(noise(4, 3, 8, 8), [Rng(0)]*3), RuntimeError),
    'a flip of PIL images': (lambda: PilRandomFlip(1.)(noise(3, 8, 8), Rng(0)), TypeError),
    'a warp of PIL images': (lambda: PilRandomWarp(p=1.)(noise(3, 8, 8), Rng(0)), AttributeError),
    'a crop of PIL images': (lambda: RandomResizedCrop(4)(noise(3, 8, 8), Rng(0)), AttributeError),
    'light among moves': (lambda: Composed([RandomRotate(), RandomHue()])(noise(1, 3, 8, 8)), AttributeError),
    'jitter of one image': (lambda: resample(noise(3, 3, 8, 8), rotation(3), jitter=torch.ones(2, 8, 8, 2)),
                            RuntimeError),
    'an array': (lambda: resample(np.zeros((3, 8, 8)), rotation(3)), AttributeError),
    'zero of NumPy': (lambda: scaling(np.float64(0)), ZeroDivisionError),
    'colours of two channels': (lambda: RandomHue(p=1.)(noise(1, 2, 8, 8)), RuntimeError),
    'colours of a plane': (lambda: RandomHue(p=1.)(noise(8, 8), [Rng(0)]*8), IndexError),
}

@pytest.mark.parametrize('name', REFUSED)
def test_bad_input_is_an_error(name):
    call, error = REFUSED[name]
    with pytest.raises(error): call()

@pytest.mark.parametrize('name', BAD)
def test_bad_input_gets_a_clear_error(name):
    call, match = BAD[name]
    with pytest.raises(TypeError if name == 'center' else ValueError, match=match): call()
