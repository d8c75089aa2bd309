"""Images, masks, points and boxes move together; colours change as they should; random changes depend on
seed, epoch and item alone."""
import copy, functools, io, math, random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.data
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st
from PIL import Image, ImageEnhance
from torch import nn

from exp import augmentation, batch_transforms
from exp.augmentation import *
from exp.batch_transforms import *
from exp.callbacks import Callback
from exp.specs import from_spec, to_spec
from exp.data_block import ImageList, LabeledData
from exp.transforms import Normalize, ToByteTensor, OnBatch, to_byte_tensor
from exp.dataloader import DataLoader, Dataset, Rng, TransformedDataset, make_data
from exp.checkpoints import Checkpoint
from exp.learner import Learner
from exp.inference import load_learner
from exp.progress import Progress
from test_data_block_kinds import (H, W, boxes, known, masks, points, same_with_workers, scenes,  # noqa: F401
                                   shows, value_at)

def quick(n):
    return settings(max_examples=n, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

sizes  = st.tuples(st.integers(24, 56), st.integers(24, 56))
seeds  = st.integers(0, 10**6)
angles = st.floats(-180, 180)
coords = st.floats(-0.4, 0.4)

# every transform by a number of its own, as strongly as a marked place in the middle bears
MOVES = [lambda **k: RandomFlip(**k), lambda **k: RandomFlip(vertical=True, **k),
         lambda **k: RandomDihedral(**k), lambda **k: RandomRotate(180, **k),
         lambda **k: RandomZoom(1.4, 0.7, **k), lambda **k: RandomShift(0.2, **k),
         lambda **k: RandomShear(25, **k), lambda **k: RandomWarp(0.2, **k),
         lambda **k: RandomJitter(0.01, **k)]
COLOURS = [RandomBrightness, RandomContrast, RandomSaturation, RandomHue]
NAMES = ['RandomFlip', 'vertical', 'RandomDihedral', 'RandomRotate', 'RandomZoom', 'RandomShift',
         'RandomShear', 'RandomWarp', 'RandomJitter']

def parts(ks): return [MOVES[k] for k in ks]
def rngs(seed, n): return [Rng(seed, i) for i in range(n)]
def noise(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
def smooth(n, h, w, seed=0, dtype=torch.float32):
    "Images without steps: a few waves in each channel."
    g, (y, x) = torch.Generator().manual_seed(seed), torch.meshgrid(torch.linspace(0, 1, h),
                                                                    torch.linspace(0, 1, w), indexing='ij')
    f, phase = 2*torch.rand(n, 3, 2, 1, 1, generator=g), 6.3*torch.rand(n, 3, 1, 1, generator=g)
    return (0.5 + 0.4*torch.sin(3.14*(f[:, :, 0]*y + f[:, :, 1]*x) + phase)).to(dtype)
def pil(x): return Image.fromarray((x*255).round().byte().movedim(0, -1).contiguous().numpy())

# ---- a marked place, in every form

def centres(n): return (torch.arange(n, dtype=torch.float64)*2 + 1)/n - 1
def spot(h, w, p, radius=2.):
    "An image with a smooth blob at the point `p`."
    d2 = ((centres(w) - p[0])*w/2)**2 + ((centres(h)[:, None] - p[1])*h/2)**2
    return torch.exp(-d2/(2*radius**2)).float()
# column, row
def pixel_of(h, w, p): return round(((float(p[0]) + 1)*w - 1)/2), round(((float(p[1]) + 1)*h - 1)/2)
def marked(h, w, p):
    "A mask with 3×3 pixels of class 7 about a pixel, and the point of that pixel."
    x, y = pixel_of(h, w, p)
    m = torch.zeros(h, w, dtype=torch.uint8)
    m[y - 1:y + 2, x - 1:x + 2] = 7
    return m, torch.tensor([(2*x + 1)/w - 1, (2*y + 1)/h - 1], dtype=torch.float64)

def where(im, p, reach=6.):
    "Centre of mass in −1…1 of what lies within `reach` pixels of p; None if there is nothing."
    h, w = im.shape
    im = im.double()*((((centres(w) - p[0])*w/2)**2 + ((centres(h)[:, None] - p[1])*h/2)**2) <= reach**2)
    if im.amax() < 0.3: return None
    return torch.stack([(im*centres(w)).sum(), (im*centres(h)[:, None]).sum()])/im.sum()
def off(a, b, h, w): return ((a - b)*torch.tensor([w, h])/2).abs().max().item()   # in pixels
def well_inside(p, h, w, margin=7.): return bool(((1 - p.abs())*torch.tensor([w, h])/2 > margin).all())

def lands(image, mask, p, blob=0.35, nearest=1.):
    "Image (h×w, 0…1), mask and point are at one place: the blob's centre of mass, the mask's pixels."
    h, w = image.shape
    found = where(image, p)
    assert found is not None, 'the image has nothing where the point is'
    assert off(found, p, h, w) < blob, f'{off(found, p, h, w)} pixels apart'
    found = where((mask == 7).float(), p)
    assert found is not None and off(found, p, h, w) < nearest, 'the mask is elsewhere'

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

# ---- transforms of PIL images

def pil_tfms(size):
    h, w = size
    return {'flip': PilRandomFlip(1.), 'dihedral': PilRandomDihedral(), 'warp': PilRandomWarp(0.15, 1.),
            'random crop': RandomCrop((h - 5, w - 7)), 'padded': RandomCrop((h + 6, w - 4)),
            'center crop': CenterCrop((h - 4, w - 9)),
            'resized crop': RandomResizedCrop((h, w), scale=(0.4, 1.)),
            'square': RandomResizedCrop(40, scale=(0.5, 1.)),
            'center resized': CenterResizedCrop((w, h), zoom=1.1)}

@pytest.mark.slow
@pytest.mark.parametrize('name', pil_tfms((30, 30)))
@quick(30)
@given(sizes, seeds, coords, coords)
def test_a_pil_images_pixels_points_and_mask_pixels_land_together(name, size, seed, x, y):
    (h, w), t = size, pil_tfms(size)[name]
    m, p = marked(h, w, (x, y))
    im, mask = pil(spot(h, w, p).expand(3, h, w)), Image.fromarray(m.numpy())
    move = t.draw(im, Rng(seed))
    out, out_m, q = t.image(im, move), t.mask(mask, move), t.points(p[None], move)[0]
    assert out.size == out_m.size == move.size[::-1]
    assume(well_inside(q, *move.size))
    lands(to_byte_tensor(out)[0]/255, torch.from_numpy(np.array(out_m)), q)

@quick(30)
@given(sizes, seeds, coords, coords)
def test_a_whole_pipeline_of_items_keeps_them_together(size, seed, x, y):
    """Dihedral, crop, flip and warp of PIL images, bytes, and joined turns of items: through a data set, as
    training has it."""
    h, w = size
    m, p = marked(h, w, (x, y))
    tfms = [PilRandomDihedral(), RandomResizedCrop((48, 44), scale=(0.6, 1.)), PilRandomFlip(),
            PilRandomWarp(0.1), ToByteTensor(),
            Composed([RandomRotate(20, on='item'), RandomZoom(1.2, on='item')], on='item')]
    class Kind:
        spatial, relate = True, staticmethod(lambda y, x: y)
        def __init__(self, kind, y): self.kind, self.y = kind, y
        def get(self, i): return self.y
        def __len__(self): return 1
    class Images(ImageList): pass
    im = pil(spot(h, w, p).expand(3, h, w))
    (xa, mask), (xb, q) = (LabeledData(Images([im]), Kind(kind, y), tfms, tfm_y=True).get(0, Rng(seed))
                           for kind, y in (('mask', Image.fromarray(m.numpy())), ('points', p[None])))
    assert torch.equal(xa, xb) and xa.shape == (3, 48, 44) and mask.shape == (48, 44)
    assume(well_inside(q[0], 48, 44))
    # three roundings to bytes, and to the nearest pixel, the later ones of larger pixels
    lands(xa[0]/255, mask, q[0], blob=0.6, nearest=2.)

# ---- points and boxes

def random_matrix(seed, size, ks=(2, 3, 4, 5, 6, 7)):
    return Composed([MOVES[k](p=0.9) for k in ks]).matrices([Rng(seed)], size)[0]

@quick(60)
@given(sizes, seeds)
def test_points_moved_one_after_another_are_moved_by_the_product_and_come_back_by_the_inverse(size, seed):
    a, b = random_matrix(seed, size), random_matrix(seed + 1, size)
    p = noise(9, 2, seed=seed, dtype=torch.float64)*1.2 - 0.6
    torch.testing.assert_close(move_points(move_points(p, a), b), move_points(p, a @ b), rtol=0, atol=1e-10)
    torch.testing.assert_close(move_points(move_points(p, a), torch.linalg.inv(a)), p, rtol=0, atol=1e-10)

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

def boxes_by_hand(b, matrix, min_visible):
    "One box after the other, one corner after the other."
    inverse, out = np.linalg.inv(matrix.numpy()), []
    for x1, y1, x2, y2 in b.tolist():
        corners = [inverse @ (x, y, 1) for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))]
        xs, ys = [c[0]/c[2] for c in corners], [c[1]/c[2] for c in corners]
        new = min(xs), min(ys), max(xs), max(ys)
        cut = [min(max(v, -1), 1) for v in new]
        whole, seen = (new[2] - new[0])*(new[3] - new[1]), (cut[2] - cut[0])*(cut[3] - cut[1])
        share = seen/whole if whole else 0.
        out.append((cut, share))
    return out

@pytest.mark.slow
@quick(80)
@given(sizes, seeds, st.floats(0, 1))
def test_a_box_is_the_smallest_upright_rectangle_of_its_moved_corners_cut_and_dropped_under_min_visible(
    size, seed, min_visible):
    n, k = 2, 6
    m = torch.stack([random_matrix(seed + i, size) for i in range(n)])
    b = noise(n, k, 4, seed=seed, dtype=torch.float64)*2 - 1
    b = torch.cat([torch.minimum(b[..., :2], b[..., 2:]), torch.maximum(b[..., :2], b[..., 2:])], -1)
    label = torch.arange(n*k).view(n, k)
    b[:, -1], label[:, -1] = 0, -1   # padding
    t = RandomRotate(min_visible=min_visible)
    new, new_label = t.boxes((b, label), Move(m, size))
    assert torch.equal(new, move_boxes(b, m, min_visible)) and torch.equal(t.boxes(b, Move(m, size)), new)
    assert (new[:, -1] == 0).all() and (new_label[:, -1] == -1).all()
    for i in range(n):
        for j, (cut, share) in enumerate(boxes_by_hand(b[i, :-1], m[i], min_visible)):
            if abs(share - min_visible) < 1e-9: continue
            if share > min_visible:
                assert np.allclose(new[i, j], cut, rtol=0, atol=1e-9) and new_label[i, j] == label[i, j]
            else: assert (new[i, j] == 0).all() and new_label[i, j] == -1
    alone = torch.stack([move_boxes(b[i], m[i], min_visible) for i in range(n)])   # k×4 by a 3×3
    torch.testing.assert_close(alone, new, rtol=0, atol=1e-12)

def test_a_box_of_which_nothing_is_left_is_dropped_even_if_nothing_has_to_be():
    b = torch.tensor([[-0.9, -0.9, -0.5, -0.5], [0.1, 0.1, 0.4, 0.4]])
    new, label = RandomShift(min_visible=0.).boxes((b, torch.tensor([4, 5])),
                                                   Move(translation(-1.), (10, 10)))
    assert (new[0].tolist() == [0, 0, 0, 0] and label.tolist() == [-1, 5]
            and torch.allclose(new[1], torch.tensor([-0.9, 0.1, -0.6, 0.4])))

def test_padded_boxes_stay_zero_and_a_box_in_the_very_middle_is_none():
    b = torch.tensor([[0., 0., 0., 0.], [-0.1, -0.1, 0., 0.]])
    new = move_boxes(b, translation(0.1, 0.1))
    assert (new[0].tolist() == [0, 0, 0, 0]
            and torch.allclose(new[1], torch.tensor([0., 0., 0.1, 0.1]), atol=1e-7))

def test_boxes_and_labels_that_are_given_are_not_changed():
    b, label = torch.tensor([[-0.9, -0.9, -0.5, -0.5]]), torch.tensor([4])
    RandomShift().boxes((b, label), Move(translation(-1.), (10, 10)))
    assert b.tolist() == torch.tensor([[-0.9, -0.9, -0.5, -0.5]]).tolist() and label.item() == 4

def test_a_box_behind_the_horizon_is_dropped_and_a_point_there_is_never_inside():
    m = RandomWarp(0.49, p=1.).matrices([Rng(1174)], (10, 10))[0]
    b = torch.tensor([[0.1240, -0.8624, 0.5240, -0.4624]], dtype=torch.float64)
    corners = F.pad(torch.tensor([[0.1240, -0.8624], [0.5240, -0.8624]], dtype=torch.float64), (0, 1),
                    value=1.) @ torch.linalg.inv(m).T
    # else the example says nothing
    assert corners[0, 2] > 0 > corners[1, 2]
    assert (move_boxes(b, m) == 0).all()
    assert move_points(b[:, [2, 1]], m).abs().max() > 100

def test_a_matrix_for_each_image_and_one_for_all_agree():
    m, p, b = random_matrix(3, (20, 30)), noise(4, 5, 2) - 0.5, torch.tensor([[-0.3, -0.2, 0.1, 0.4]]).expand(
        4, 1, 4)
    each = m.expand(4, 3, 3)
    torch.testing.assert_close(move_points(p, each), move_points(p, m))
    # one point for each image
    torch.testing.assert_close(move_points(p[:, 0], each), move_points(p, m)[:, 0])
    torch.testing.assert_close(move_boxes(b, each), move_boxes(b, m))
    x = noise(4, 3, 20, 30)
    torch.testing.assert_close(resample(x, each), resample(x, m))
    torch.testing.assert_close(resample(x[0], m), resample(x, m)[0])

# ---- matrices

@quick(60)
@given(sizes, angles)
def test_a_turn_keeps_angles_and_lengths_in_pixels_of_oblong_images_too(size, degrees):
    h, w = size
    pixels = torch.diag(torch.tensor([w/2, h/2, 1.], dtype=torch.float64))
    m = (pixels @ rotation(degrees, size) @ torch.linalg.inv(pixels))[:2, :2]
    torch.testing.assert_close(m @ m.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert abs(torch.linalg.det(m).item() - 1) < 1e-12
    right = move_points(torch.tensor([[0.5/w, 0.]], dtype=torch.float64),
                        rotation(degrees, size))[0]*torch.tensor([w, h])/0.5
    # counter-clockwise, y down
    np.testing.assert_allclose(right, [math.cos(math.radians(degrees)), -math.sin(math.radians(degrees))],
                               atol=1e-12)
    torch.testing.assert_close(rotation(degrees, size) @ rotation(-degrees, size),
                               torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)

def test_the_matrices_do_what_their_names_say():
    p = torch.tensor([[0.2, 0.1]], dtype=torch.float64)
    moved = lambda m: pytest.approx(move_points(p, m)[0].tolist(), abs=1e-12)
    assert ([0.4, 0.2] == moved(scaling(2)) and [0.4, 0.3] == moved(scaling(2, 3))
            and [-0.2, 0.1] == moved(scaling(-1, 1)))
    assert ([0.5, -0.3] == moved(translation(0.3, -0.4))
            and [0.2 - 0.1*30/40, 0.1] == moved(shearing(45, (30, 40))))
    assert [0.1, -0.2] == moved(rotation(90))

def by_svd(src, dst):
    "The direct linear transform: the null space of eight equations in nine numbers."
    rows = []
    for (x, y), (u, v) in zip(src, dst):
        rows += [[x, y, 1, 0, 0, 0, -u*x, -u*y, -u], [0, 0, 0, x, y, 1, -v*x, -v*y, -v]]
    h = np.linalg.svd(np.array(rows))[2][-1]
    return (h/h[-1]).reshape(3, 3)

CORNERS = np.array([[-1., -1.], [1., -1.], [1., 1.], [-1., 1.]])

@quick(60)
@given(seeds)
def test_a_homography_takes_four_points_to_four_and_is_the_one_by_svd(seed):
    g = np.random.default_rng(seed)
    src, dst = CORNERS + g.uniform(-0.35, 0.35, (4, 2)), CORNERS + g.uniform(-0.35, 0.35, (4, 2))
    h = homography(src, dst)
    q = F.pad(torch.tensor(src), (0, 1), value=1.) @ h.T
    np.testing.assert_allclose(q[:, :2]/q[:, 2:], dst, atol=1e-12)
    np.testing.assert_allclose(h, by_svd(src, dst), atol=1e-10)
    many = homography(CORNERS, torch.tensor(np.stack([dst, CORNERS])))
    torch.testing.assert_close(many[0], homography(CORNERS, dst))
    torch.testing.assert_close(many[1], torch.eye(3, dtype=torch.float64))

@quick(20)
@given(sizes, seeds)
def test_pils_perspective_takes_our_eight_numbers(size, seed):
    h, w = size
    g = np.random.default_rng(seed)
    # from corners of the output to places of the input
    dst = CORNERS*(1 - g.uniform(0, 0.4, (4, 2)))
    m = homography(CORNERS, dst)
    to_pixels = lambda p: (p + 1)/2*np.array([w, h])
    # as one finds them on the web
    by_pixels = by_svd(to_pixels(CORNERS), to_pixels(dst)).flatten()[:8]
    np.testing.assert_allclose(augmentation.pil_coefficients(m, size, size), by_pixels, rtol=1e-7, atol=1e-8)
    im = pil(smooth(1, h, w, seed)[0])
    theirs = to_byte_tensor(im.transform((w, h), Image.Transform.PERSPECTIVE, tuple(by_pixels),
                                         Image.Resampling.BILINEAR)).int()
    ours = to_byte_tensor(resample(im, m)).int()
    assert (ours - theirs)[inner(m, size)].abs().max() <= 1                      # PIL cuts off where we round
    assert (to_byte_tensor(PilRandomWarp().image(im, Move(m, size))).int() == theirs).all()

def inner(matrix, size, channels=3):
    "The pixels whose four neighbours in the input all exist."
    h, w = size
    p = torch.stack(torch.meshgrid(centres(h), centres(w), indexing='ij')[::-1], -1)
    q = F.pad(p, (0, 1), value=1.) @ matrix.T
    q = (q[..., :2]/q[..., 2:]).abs()
    return (q < 1 - 1/torch.tensor([w, h])).all(-1).expand(channels, h, w)

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

# ---- crops

def drawn_boxes(t, old, n, seed=0): return np.array([t.box(Rng(seed, i), old) for i in range(n)], float)

def distance(values, cdf):
    "Kolmogorov and Smirnov: the largest distance between the share of values below v and the probability."
    v = np.sort(values)
    p, n = cdf(v), len(v)
    return max((np.arange(1, n + 1)/n - p).max(), (p - np.arange(n)/n).max())

@pytest.mark.parametrize('size, old',
                         [(64, (3000, 3000)), ((50, 80), (2500, 4000)), ((80, 50), (4000, 2500))])
def test_resized_crops_have_areas_shared_evenly_and_ratios_evenly_in_their_logarithm(size, old):
    # all of these fit at the first try
    n, t = 4000, RandomResizedCrop(size, scale=(0.1, 0.5), ratio=(3/4, 4/3))
    l, top, r, b = drawn_boxes(t, old, n).T
    (h, w), shape = old, t.size[1]/t.size[0]
    area, ratio = (r - l)*(b - top)/(h*w), (r - l)/(b - top)/shape
    # passed by one in a hundred samples that are right
    bound = 1.63/math.sqrt(n)
    assert distance(area, lambda v: (v - 0.1)/0.4) < bound
    assert distance(np.log(ratio), lambda v: (v - math.log(3/4))/math.log(16/9)) < bound
    # evenly in the ratio itself is something else
    assert distance(ratio, lambda v: (v - 3/4)/(4/3 - 3/4)) > bound
    assert (distance(l/(w - (r - l)), lambda v: v) < bound
            and distance(top/(h - (b - top)), lambda v: v) < bound)
    assert (l >= 0).all() and (top >= 0).all() and (r <= w).all() and (b <= h).all()

@quick(60)
@given(st.integers(1, 400), st.integers(1, 400), seeds,
       st.sampled_from([(0.08, 1.), (0.9, 1.), (1., 1.), (0.01, 0.02)]))
@example(1, 400, 0, (0.08, 1.))
@example(400, 1, 0, (1., 1.))
def test_a_resized_crop_of_any_shape_lies_within_the_image(h, w, seed, scale):
    t = RandomResizedCrop((20, 30), scale=scale)
    l, top, r, b = t.box(Rng(seed), (h, w))
    assert 0 <= l < r <= w and 0 <= top < b <= h
    out = t(Image.new('RGB', (w, h), (9, 9, 9)), Rng(seed))
    assert out.size == (30, 20) and set(np.array(out).flatten().tolist()) == {9}

def test_where_no_attempt_fits_the_middle_is_taken_with_the_nearest_ratio():
    t = RandomResizedCrop(32, scale=(1., 1.), ratio=(3/4, 4/3))
    # as wide as 4/3 allows
    assert t.box(Rng(0), (100, 1000)) == pytest.approx((500 - 400/6, 0, 500 + 400/6, 100))
    assert t.box(Rng(0), (1000, 100)) == pytest.approx((0, 500 - 400/6, 100, 500 + 400/6))
    wide = RandomResizedCrop((10, 100), scale=(1., 1.), ratio=(0.9, 1.1))
    # of the size's shape
    assert wide.box(Rng(0), (100, 1000)) == pytest.approx((0, 0, 1000, 100))

@quick(25)
@given(sizes, st.integers(1, 70), st.integers(1, 70), seeds)
def test_crops_of_pixels_are_those_of_the_array_and_black_outside(size, h, w, seed):
    a = (noise(*size, 3, seed=seed)*254 + 1).byte().numpy()
    im, (H0, W0) = Image.fromarray(a), size
    padded = np.zeros((H0 + 200, W0 + 200, 3), np.uint8)
    padded[100:100 + H0, 100:100 + W0] = a
    for t in (RandomCrop((h, w)), CenterCrop((h, w))):
        l, top, r, b = t.box(Rng(seed), size)
        assert (r - l, b - top) == (w, h) and (0 <= l and r <= W0 if w <= W0 else l <= 0 and r >= W0)
        assert (np.array(t(im, Rng(seed))) == padded[100 + top:100 + b, 100 + l:100 + r]).all()
    l, top, r, b = CenterCrop((h, w)).box(None, size)
    assert abs(l + r - W0) <= 1 and abs(top + b - H0) <= 1

def jpeg(h, w, quality=95):
    file = io.BytesIO()
    pil(smooth(1, h, w, 5)[0]*0.8 + 0.2*smooth(1, h//8, w//8, 6)[0].repeat_interleave(8, 1)
        .repeat_interleave(8, 2)).save(file, 'JPEG', quality=quality)
    return file.getvalue()

@pytest.mark.slow
def test_a_crop_of_a_large_jpeg_is_that_of_the_decoded_image():
    data, drafted = jpeg(960, 1280), 0
    t = RandomResizedCrop(128, scale=(0.2, 1.))
    for seed in range(12):
        file, whole = ImageList([data]).get(0), Image.open(io.BytesIO(data)).convert('RGB')
        a, b = (to_byte_tensor(t(im, Rng(seed))).float() for im in (file, whole))
        drafted += file.size != (1280, 960)
        l, top, r, b_ = t.box(Rng(seed), (960, 1280))
        # never decoded at fewer pixels than are wanted
        assert (r - l)*file.size[0]/1280 > 127 and (b_ - top)*file.size[1]/960 > 127
        shifted = to_byte_tensor(t.image(whole, t.draw(whole, Rng(seed))._replace(
            matrix=translation(2/128) @ t.draw(whole, Rng(seed)).matrix))).float()
        assert (a - b).abs().max() <= 4 and (a - b).abs().mean() < 0.6
        # a pixel beside would be seen
        assert (a - shifted).abs().mean() > 2*(a - b).abs().mean()
    assert drafted >= 6
    center = CenterResizedCrop((60, 80))
    a, b = center(ImageList([data]).get(0)), center(Image.open(io.BytesIO(data)).convert('RGB'))
    assert (to_byte_tensor(a).int() - to_byte_tensor(b).int()).abs().max() <= 4

@quick(30)
@given(sizes, st.integers(8, 40), st.integers(8, 40), st.floats(1, 2))
def test_the_center_crop_is_the_largest_of_its_shape_in_the_middle(old, h, w, zoom):
    l, top, r, b = CenterResizedCrop((h, w), zoom=zoom).box(None, old)
    assert ((r - l)/(b - top) == pytest.approx(w/h) and l + r == pytest.approx(old[1])
            and top + b == pytest.approx(old[0]))
    assert max((r - l)/old[1], (b - top)/old[0]) == pytest.approx(1/zoom)

# ---- chances

EIGHT = [lambda x, k=k, f=f: (x.flip(-1) if f else x).rot90(k, (-2, -1)) for f in (0, 1) for k in range(4)]

def chi_square(counts): return sum((c - sum(counts)/len(counts))**2/(sum(counts)/len(counts)) for c in counts)

@pytest.mark.slow
def test_the_eight_ways_to_lay_a_square_come_equally_often_and_exactly():
    n, x = 2000, noise(1, 5, 5)
    def way(y): return [i for i, f in enumerate(EIGHT) if torch.equal(f(x), y)]
    batch = RandomDihedral()(x.expand(n, 1, 5, 5), rngs(0, n))
    im, pil_tfm = Image.fromarray((x[0]*255).byte().numpy()), PilRandomDihedral()
    of_pil = [[i for i, f in enumerate(EIGHT)
               if torch.equal(f(to_byte_tensor(im)), to_byte_tensor(pil_tfm(im, Rng(1, k))))]
              for k in range(n)]
    for ways in ([way(y) for y in batch], of_pil):
        assert all(len(w) == 1 for w in ways)
        assert chi_square([ways.count([i]) for i in range(8)]) < 24.3            # passed by one in a thousand
    oblong = RandomDihedral()(noise(1, 1, 4, 6).expand(n, 1, 4, 6), rngs(0, n))
    four = [lambda x: x, lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.flip(-1, -2)]
    counts = [sum(torch.equal(f(noise(1, 1, 4, 6)[0]), y) for y in oblong) for f in four]
    assert sum(counts) == n and chi_square(counts) < 16.3
    turned = [PilRandomDihedral()(Image.new('L', (4, 6)), Rng(k)).size for k in range(200)]
    # of PIL images half are laid on their side
    assert 60 < turned.count((6, 4)) < 140

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

def test_a_warp_of_pil_images_has_no_empty_corner():
    im = Image.new('L', (30, 20), 200)
    # up to a third the four corners never fold
    assert all((np.array(PilRandomWarp(0.33, 1.)(im, Rng(k))) == 200).all() for k in range(200))

def test_transforms_are_done_in_an_order_that_makes_sense():
    """What may change an image's shape comes before its size is fixed; the rest of items after it, PIL images
    before bytes; batches move before their colours change."""
    split = ImageList(photos(6)).split_by_index([4, 5]).label_from_func(lambda a: int(a.mean() > 127))
    data = split.transform([RandomBrightness(), RandomRotate(), RandomHue(on='item'), RandomShear(on='item'),
                            PilRandomWarp(), RandomResizedCrop(9),
                            PilRandomDihedral()]).databunch(2).normalize(([0.]*3, [1.]*3))
    assert (names(data.train_ds.tfms) == ['MakeRGB', 'PilRandomDihedral', 'RandomResizedCrop',
                                          'PilRandomWarp', 'ToByteTensor', 'RandomShear', 'RandomHue'])
    assert (names(t.tfm for t in data.batch_tfms[0]) == ['ToFloatTensor', 'RandomRotate', 'RandomBrightness',
                                                         'Normalize'])

# ---- random state

def photos(n=24, size=(40, 52)):
    g = np.random.default_rng(0)
    return [g.integers(0, 255, (*size, 3), np.uint8) for _ in range(n)]

def item_and_batch():
    return ([PilRandomFlip(), RandomResizedCrop(24), PilRandomWarp(), RandomRotate(on='item'),
             RandomZoom(1.3, on='item'), RandomContrast(on='item')] + get_transforms()[0])

def augmented(workers=0, seed=1, items=None, tfms=None):
    items = photos() if items is None else items
    split = ImageList(items).split_by_index(range(18, 24)).label_from_func(lambda a: int(a.mean() > 127))
    return split.transform((item_and_batch() if tfms is None else tfms, [CenterResizedCrop(24)]),
                           size=24).databunch(6, num_workers=workers, seed=seed)

def epoch_of(data, epoch):
    "What training sees, by item."
    data.train_dl.set_epoch(epoch)
    out = {}
    for b in data.train_dl:
        xb, _ = data.transform_batch(*b, train=True, items=b.items)
        out.update(zip(b.items, xb))
    return out

def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.slow
def test_items_are_changed_alike_by_no_one_and_four_workers_and_anew_in_each_epoch():
    seen = {}
    for n in (0, 1, 4):
        data = augmented(n)
        try: seen[n] = [epoch_of(data, e) for e in (0, 1)]
        finally: data.train_dl.close()
    assert all(equal(seen[0][e], seen[n][e]) for n in (1, 4) for e in (0, 1))
    assert not any(torch.equal(seen[0][0][i], seen[0][1][i]) for i in seen[0][0])
    other = epoch_of(augmented(seed=2), 0)
    assert not any(torch.equal(seen[0][0][i], other[i]) for i in other)
    assert equal(epoch_of(augmented(), 1), seen[0][1])                           # whatever came before

def test_two_workers_draw_differently():
    "One picture 24 times, no batch transforms: equal random numbers would make equal items."
    data = augmented(2, items=[photos(1)[0]]*24, tfms=[RandomResizedCrop(24), RandomRotate(30, on='item')])
    try: items = epoch_of(data, 0)
    finally: data.train_dl.close()
    assert len({x.numpy().tobytes() for x in items.values()}) == len(items) == 18

def test_a_batchs_items_are_changed_as_they_are_in_any_other_batch():
    a, b = augmented(), augmented()
    xa, ia = next((xb, b_.items) for b_ in a.train_dl
                  for xb, yb in [a.transform_batch(*b_, train=True, items=b_.items)])
    part = b.transform_batch(torch.stack([b.train_ds.get(i, Rng(1, 0, i))[0] for i in ia[2:4]]), None,
                             train=True, items=ia[2:4])[0]
    torch.testing.assert_close(part, xa[2:4], rtol=0, atol=1e-5)

class Broken(Exception): pass

class Watch(Callback):
    "Keeps what the model is shown; may break off."
    def __init__(self, stop=None): self.seen, self.stop = [], stop
    def after_pred(self):
        if self.in_train: self.seen.append(((self.epoch, *self.items), self.xb.detach().clone()))
    def after_batch(self):
        if self.in_train and len(self.seen) == self.stop: raise Broken

def small(data, **kw):
    torch.manual_seed(0)
    return Learner(data, nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(),
                                       nn.Linear(4*6*6, 2)), lr=0.01, cbs=[Progress(False)], **kw)

@pytest.mark.slow
def test_a_resumed_run_draws_what_the_uninterrupted_one_would_have(tmp_path):
    whole, before, after, learn = Watch(), Watch(stop=4), Watch(), small(augmented())
    learn.fit(3, cbs=[whole])
    with pytest.raises(Broken): small(augmented()).fit(3, cbs=[before, Checkpoint(tmp_path/'c.pth', every=2)])
    resumed = small(augmented())
    resumed.fit(3, cbs=[after, Checkpoint(tmp_path/'c.pth', every=2)], resume=tmp_path/'c.pth')
    assert len(whole.seen) == 9 and 5 <= len(after.seen) < 9 and after.seen[0][0][0] in (0, 1)
    for (name, x), (other, y) in zip(whole.seen[::-1], after.seen[::-1]):
        assert name == other and torch.equal(x, y)
    for a, b in zip(learn.model.parameters(), resumed.model.parameters()): assert torch.equal(a, b)

# ---- the data block

def asked(): return get_transforms(flip_vert=True, max_lighting=0.1, max_zoom=1.05, max_warp=0.)

def test_the_sentence_of_the_course_for_images_and_masks(scenes):
    data = masks(scenes, asked(), size=(H, H))
    xb, yb = data.one_batch()
    assert (xb.shape == (6, 3, H, H) and yb.shape == (6, H, H) and yb.dtype == torch.int64
            and set(yb.unique().tolist()) <= {0, 1, 2, 3})
    bright = (xb.amax(1) > 0.5) != (yb > 0)
    edges = (F.max_pool2d((yb > 0).float()[:, None], 3, 1,
                          1) - 1 + F.max_pool2d(1 - (yb > 0).float()[:, None], 3, 1, 1))
    # they differ at most along the edges
    assert bright.float().mean() < 0.1 and not (bright & (edges[:, 0] == 0)).any()
    still = masks(scenes, [], size=(H, H)).one_batch()
    assert (sum(torch.equal(a, b) for a, b in zip(yb, still[1])) <= 3
            and torch.equal(data.one_batch(False)[1], masks(scenes, [], size=(H, H)).one_batch(False)[1]))
    assert ([type(t.tfm).__name__
             for t in data.batch_tfms[0]] == ['ToFloatTensor', 'Composed', 'ComposedLighting']
            and [type(t.tfm).__name__ for t in data.batch_tfms[1]] == ['ToFloatTensor'])
    assert all(len(ax.images) == 2 for ax in shows(data))

@pytest.mark.slow
@pytest.mark.parametrize('size', [(H, W), (60, 40)])
def test_and_points(scenes, size):
    data = points(scenes, asked(), size=size)
    xb, yb = data.one_batch()
    inside = yb.abs().amax((1, 2)) < 0.95
    assert inside.sum() >= 12 and (value_at(xb, yb).amax(1)[inside] > 0.6).all()
    assert all(len(ax.lines) == 1 for ax in shows(data))
    left = points(scenes, asked(), size=size, tfm_y=False)
    xb, yb = left.one_batch()
    # points that stay behind, if one says so
    assert (value_at(xb, yb).amax(1) < 0.1).any()

def test_and_boxes(scenes):
    data = boxes(scenes, asked())
    for xb, (at, label) in (data.one_batch(), data.one_batch(False)):
        assert (at.shape == (len(xb), 3, 4) and at.abs().max() <= 1 and (at[label < 0] == 0).all()
                and (at[..., 0] <= at[..., 2]).all() and label.max() <= 2)
    xb, (at, label) = data.one_batch()
    # the last square lies on top of the others
    top = [(x, at[i, k], k) for i, x in enumerate(xb) for k in [int(label[i].max())] if k >= 0]
    for x, b, k in top:
        middle = (b[:2] + b[2:])/2
        assert value_at(x[None], middle[None, None].float())[0, k] > 0.6
    assert len(top) >= 4 and sum(len(ax.patches) for ax in shows(data)) >= 4

@pytest.mark.slow
def test_kinds_of_targets_come_alike_from_two_processes(scenes):
    tfms = ([RandomResizedCrop((30, 40), scale=(0.5, 1.)), PilRandomFlip(), *asked()[0]],
            [CenterResizedCrop((30, 40))])
    same_with_workers(lambda n: masks(scenes, tfms, workers=n))
    same_with_workers(lambda n: points(scenes, tfms, workers=n))
    same_with_workers(lambda n: boxes(scenes, tfms, workers=n))

def test_crops_take_the_place_of_resizing(scenes):
    data = masks(scenes, ([RandomResizedCrop(20)], [CenterResizedCrop(20)]), size=50)
    assert (data.one_batch()[0].shape == data.one_batch(False)[0].shape == (6, 3, 20, 20)
            and data.one_batch()[1].shape == (6, 20, 20))
    assert not any(type(t).__name__ == 'ResizeFixed' for t in data.train_ds.tfms)

def test_items_before_the_first_random_transform_are_cached_and_the_rest_drawn_anew():
    items = photos()
    make = lambda cache: ImageList(items).split_by_index(range(18, 24)).label_from_func(lambda a: int(
        a.mean() > 127)).transform((item_and_batch()[3:], []), size=24, cache=cache).databunch(6, seed=1)
    a, b = make(False), make(True)
    for e in (0, 1): assert equal(epoch_of(a, e), epoch_of(b, e))

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

def test_transforms_of_validation_survive_export(tmp_path):
    learn = small(augmented())
    learn.fit(1)
    learn.path = tmp_path
    loaded, item = load_learner(learn.export('m.pth'),
                                model=copy.deepcopy(learn.model)), photos(3, (60, 33))[2]
    assert loaded.data.item_data.tfms[1].__class__ is CenterResizedCrop
    assert torch.equal(loaded.predict(item).probs, learn.predict(item).probs)

def test_random_transforms_of_validation_survive_export_too(tmp_path):
    tfms = ([], [CenterResizedCrop(24, zoom=1.1), *get_transforms()[0]])
    split = ImageList(photos()).split_by_index(range(18, 24)).label_from_func(lambda a: int(a.mean() > 127))
    learn = small(split.transform(tfms, size=24).databunch(6, seed=1))
    learn.path = tmp_path
    loaded = load_learner(learn.export('m.pth'), model=copy.deepcopy(learn.model))
    assert (repr(loaded.data.batch_tfms[1]) == repr(learn.data.batch_tfms[1])
            and loaded.predict(photos()[0]).probs.shape == (2,))

# ---- bad input

BAD = {
    'p': (lambda: RandomRotate(p=1.5), 'p is 1.5'), 'negative p': (lambda: PilRandomFlip(-0.1), 'p is -0.1'),
    'p of a warp': (lambda: PilRandomWarp(p=2), 'p is 2'), 'p of light': (lambda: RandomHue(p=3), 'p is 3'),
    'warp': (lambda: RandomWarp(0.5), 'max_warp is 0.5'),
    'negative warp': (lambda: RandomWarp(-0.1), 'max_warp'),
    'PIL warp': (lambda: PilRandomWarp(0.6), 'max_warp is 0.6'),
    'PIL warp that folds': (lambda: PilRandomWarp(0.4), 'max_warp is 0.4'),
    'shear': (lambda: RandomShear(120.), '120'),
    'min_visible of boxes': (lambda: move_boxes(torch.zeros(3, 4), rotation(1), 25), 'min_visible is 25'),
    'pad': (lambda: RandomZoom(p=1., pad='mirror')(noise(1, 3, 8, 8)), 'mirror'),
    'on': (lambda: RandomShift(on='items'), "'items'"), 'on of light': (lambda: RandomHue(on='x'), "'x'"),
    'change': (lambda: RandomBrightness(1.1), 'max_change is 1.1'),
    'scale over 1': (lambda: RandomResizedCrop(9, scale=(0.5, 2.)), 'scale'),
    'size 0': (lambda: RandomResizedCrop(0), 'size is 0'), 'crop 0': (lambda: RandomCrop((0, 4)), 'size is'),
    'center': (lambda: CenterCrop('a'), 'size'),
    'center zoom': (lambda: CenterResizedCrop(9, zoom=0.5), 'zoom is 0.5'),
    'get_transforms': (lambda: get_transforms(max_warp=0.7), 'max_warp is 0.7'),
    'p_affine': (lambda: get_transforms(p_affine=7), 'p is 7'),
    'mode': (lambda: resample(noise(1, 3, 8, 8), rotation(3), mode='cubic'), "'cubic'"),
    'pad of resample': (lambda: resample(noise(1, 3, 8, 8), rotation(3), pad='x'), "'x'"),
    'output of size 0': (lambda: resample(noise(1, 3, 8, 8), rotation(3), 0), 'size is 0'),
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

def test_one_displacement_for_all_images():
    x, jitter = noise(3, 3, 8, 8), 0.05*torch.randn(1, 8, 8, 2)
    assert torch.equal(resample(x, torch.eye(3), jitter=jitter),
                       resample(x, torch.eye(3), jitter=jitter.repeat(3, 1, 1, 1)))

@pytest.mark.parametrize('name', BAD)
def test_bad_input_gets_a_clear_error(name):
    call, match = BAD[name]
    with pytest.raises((TypeError, ValueError), match=match): call()

@pytest.mark.parametrize('call, match', [(lambda: move_points(torch.tensor([[0, 1]]), rotation(3)), 'int64'),
                                         (lambda: move_boxes(torch.tensor([[0, 0, 1, 1]]), rotation(3)),
                                          'int64')])
def test_what_is_of_the_wrong_kind_is_refused(call, match):
    with pytest.raises(TypeError, match=match): call()

def test_a_number_of_pixels_is_a_square_for_resample_too():
    x = noise(2, 3, 20, 30)
    assert torch.equal(resample(x, rotation(5), 16), resample(x, rotation(5), (16, 16)))
    assert (resample(x, torch.eye(3), (40, 15)).shape == (2, 3, 40, 15)
            and resample(pil(x[0]), torch.eye(3), (40, 15)).size == (15, 40))

@pytest.mark.parametrize('n, m', [(1, 4), (4, 4), (16, 16), (4, 1), (1, 1)])
def test_one_box_for_each_image_moves_by_the_matrix_of_its_image(n, m):
    "n×4 boxes and m matrices; one matrix stands for all, and one box for each of several matrices."
    matrices = torch.stack([rotation(7*i) @ translation(0.02*i, -0.01*i) for i in range(m)])
    boxes = torch.tensor([-0.5, -0.4, 0.2, 0.3]) + 0.01*torch.arange(n)[:, None]
    out = move_boxes(boxes, matrices)
    assert out.shape == (max(n, m), 4)
    for i in range(max(n, m)):
        b, matrix = boxes[i % n], matrices[i % m]
        torch.testing.assert_close(out[i], move_boxes(b[None], matrix)[0])
        torch.testing.assert_close(out[i, :2], move_points(b[torch.tensor([[0, 1], [2, 1], [2, 3], [0, 3]])],
                                                           matrix).amin(0).clamp(-1, 1))

def test_one_box_for_each_image_keeps_its_label():
    t, x = RandomShift(0.4, p=1.), noise(6, 3, 20, 30)
    boxes, labels = torch.tensor([[-0.9, -0.9, -0.5, -0.5]]).repeat(6, 1), torch.arange(6)
    move = t.draw(x, rngs(3, 6))
    where, label = t.boxes((boxes, labels), move)
    each, each_label = t.boxes((boxes[:, None], labels[:, None]), move)
    assert (torch.equal(where, each[:, 0]) and torch.equal(label, each_label[:, 0]) and (label < 0).any()
            and (label >= 0).any())

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

# ---- test-time augmentation

def test_tta_is_the_mean_of_the_plain_pass_and_the_others():
    "By hand: item transforms by the generators of its passes, batch transforms by theirs."
    data, n, beta = augmented(), 3, 0.3
    learn = small(data)
    preds, targets = learn.tta(n=n, beta=beta)
    plain, truth = learn.get_preds()
    assert (torch.equal(targets, truth) and preds.shape == plain.shape
            and not torch.allclose(preds, plain, atol=1e-4))
    passes = []
    for k in range(n):
        ds = LabeledData(data.valid_ds.x, data.valid_ds.y, data.train_ds.tfms)
        dl = DataLoader(ds, data.valid_dl.bs, seed=Rng(data.valid_dl.seed, 'tta', k).number)
        here = copy.copy(data)
        here.valid_dl, here.batch_tfms = dl, (data.batch_tfms[0],)*2
        xs = torch.cat([here.transform_batch(*b, train=False, items=b.items)[0] for b in dl])
        with torch.no_grad(): passes.append(F.softmax(learn.model.eval()(xs), 1))
    assert not torch.allclose(passes[0], passes[1], atol=1e-4)
    torch.testing.assert_close(preds, beta*plain + (1 - beta)*sum(passes)/n, rtol=0, atol=1e-6)
    logits = learn.tta(n=1, beta=0., act=False)[0]
    torch.testing.assert_close(F.softmax(logits, 1), passes[0], rtol=0, atol=1e-6)

def test_tta_with_beta_1_is_get_preds_and_twice_the_same_is_the_same():
    learn = small(augmented())
    assert torch.equal(learn.tta(n=1, beta=1.)[0], learn.get_preds()[0])
    first = learn.tta(n=2)
    learn.fit(0)
    random.seed(9)
    torch.manual_seed(9)
    learn.get_preds()
    again = learn.tta(n=2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    for dl in ('train', learn.data.valid_dl): assert torch.isfinite(learn.tta(dl, n=1)[0]).all()
    assert (learn.tta('train', n=1)[0].shape == (18, 2)
            and torch.equal(learn.tta('train', n=1)[1], learn.get_preds('train')[1]))
    torch.testing.assert_close(first[0].sum(1), torch.ones(6))

def test_tta_is_the_same_with_workers():
    a, data = small(augmented()).tta(n=2)[0], augmented(2)
    try: b = small(data).tta(n=2)[0]
    finally:
        data.train_dl.close()
        data.valid_dl.close()
    torch.testing.assert_close(a, b, rtol=0, atol=0)

def test_tta_puts_the_data_back_after_an_error_too():
    class Fails(nn.Module):
        calls = 0
        def forward(self, x):
            self.calls += 1
            if self.calls == 3: raise Broken
            return x.mean((2, 3))
    data = augmented()
    learn = Learner(data, Fails(), cbs=[Progress(False)])
    tfms, valid = data.batch_tfms, data.valid_dl
    with pytest.raises(Broken): learn.tta(n=4)
    assert learn.data is data and data.batch_tfms is tfms and data.valid_dl is valid
    learn.tta(n=2)
    assert learn.data is data and data.batch_tfms is tfms and data.valid_dl is valid

class FlipSome:
    "A batch transform that is no `Transform`."
    on, order = 'batch', 20
    def __call__(self, xb, yb, ctx):
        flip = torch.tensor([Rng(ctx.seed, ctx.epoch, i, 'flip').random() < 0.5 for i in ctx.items])
        return torch.where(flip[:, None, None, None], xb.flip(-1), xb), yb

def shift_far(x, rng): return x.roll(rng.randint(3, 9), -1)

@pytest.mark.parametrize('how', ['batch function', 'placed', 'items', 'items and batch'])
def test_tta_works_where_make_data_made_the_data(how):
    x, y = noise(24, 3, 24, 24), torch.arange(24) % 2
    train = TransformedDataset(Dataset(x, y), [shift_far]) if 'items' in how else Dataset(x, y)
    tfms = {'batch function': [FlipSome()], 'placed': [OnBatch(RandomRotate(30), 0)], 'items': [],
            'items and batch': [FlipSome()]}[how]
    learn = small(make_data(train, Dataset(x[:8], y[:8]), bs=6, batch_tfms=(tfms, [])))
    preds, targets = learn.tta(n=2, beta=0.5)
    assert (torch.equal(targets, y[:8]) and preds.shape == (8, 2)
            and not torch.allclose(preds, learn.get_preds()[0], atol=1e-5))
    assert (torch.equal(preds, learn.tta(n=2, beta=0.5)[0])
            and torch.equal(learn.tta(n=1, beta=1.)[0], learn.get_preds()[0]))

def test_tta_without_random_transforms_is_get_preds():
    x, y = noise(24, 3, 24, 24), torch.arange(24) % 2
    learn = small(make_data(Dataset(x, y), Dataset(x[:8], y[:8]), bs=6))
    torch.testing.assert_close(learn.tta(n=3)[0], learn.get_preds()[0], rtol=0, atol=1e-7)

def test_tta_refuses_a_model_of_several_predictions():
    class Two(nn.Module):
        def forward(self, x): return x.mean((2, 3)), x.mean((2, 3))
    data = augmented()
    learn = Learner(data, Two(), loss_func=lambda pred, yb: F.cross_entropy(pred[0], yb), metrics=(),
                    cbs=[Progress(False)])
    with pytest.raises(TypeError): learn.tta(n=1, act=False)
    assert learn.data is data

@pytest.mark.parametrize('arguments, error, match',
                         [({'n': 0}, ValueError, 'n is 0'), ({'n': True}, TypeError, 'whole'),
                          ({'n': 1.5}, TypeError, 'whole'), ({'dl': 'test'}, ValueError, 'test'),
                          ({'dl': 'valud'}, ValueError, 'valud')])
def test_tta_refuses_arguments_that_make_no_sense(arguments, error, match):
    with pytest.raises(error, match=match): small(augmented()).tta(**arguments)

def test_tta_refuses_targets_that_lie_on_the_image_and_loaders_of_others(scenes):
    data = masks(scenes, get_transforms(), size=(24, 24))
    learn = Learner(data, nn.Conv2d(3, 4, 1), loss_func=nn.CrossEntropyLoss(), cbs=[Progress(False)])
    with pytest.raises(ValueError, match='move with their images'): learn.tta()
    x, y = noise(12, 3, 24, 24), torch.arange(12) % 2
    theirs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 6)
    with pytest.raises(TypeError, match="exp's DataLoader"): small(augmented()).tta(theirs)

def test_batch_transforms_can_be_given_to_make_data_as_they_are():
    x, y = noise(24, 3, 24, 24), torch.arange(24) % 2
    data = make_data(Dataset(x, y), Dataset(x[:8], y[:8]), bs=6, batch_tfms=(get_transforms()[0], []), seed=1)
    xb, yb = data.one_batch()
    assert xb.shape == (6, 3, 24, 24) and yb.shape == (6,) and torch.equal(data.one_batch()[0], xb)
    small(data).fit(1)
