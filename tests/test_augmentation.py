"""Images, masks, points and boxes move together: the geometry, and the transforms of PIL images."""
import io, math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st
from PIL import Image

from exp import augmentation
from exp.augmentation import *
from exp.batch_transforms import *
from exp.data_block import ImageList, LabeledData
from exp.dataloader import Rng
from exp.transforms import ToByteTensor, to_byte_tensor

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
        spatial, relate, moved = True, staticmethod(lambda y, x: y), staticmethod(lambda y, draw: y)
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

def test_a_subclass_that_draws_and_moves_images_moves_masks_and_points_too():
    class Upside(PilGeometric):
        def draw(self, im, rng): return Move(scaling(1, -1), im.size[::-1])
        def image(self, im, move, mode=None): return im.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    h, w = 30, 40
    m, p = marked(h, w, (0.2, -0.3))
    im, mask, t = pil(spot(h, w, p).expand(3, h, w)), Image.fromarray(m.numpy()), Upside()
    move = t.draw(im, Rng(0))
    lands(to_byte_tensor(t.image(im, move))[0]/255, torch.from_numpy(np.array(t.mask(mask, move))),
          t.points(p[None], move)[0])

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

def test_a_warp_of_pil_images_has_no_empty_corner():
    im = Image.new('L', (30, 20), 200)
    # up to a third the four corners never fold
    assert all((np.array(PilRandomWarp(0.33, 1.)(im, Rng(k))) == 200).all() for k in range(200))

@pytest.mark.parametrize('call, match', [(lambda: move_points(torch.tensor([[0, 1]]), rotation(3)), 'int64'),
                                         (lambda: move_boxes(torch.tensor([[0, 0, 1, 1]]), rotation(3)),
                                          'int64')])
def test_what_is_of_the_wrong_kind_is_refused(call, match):
    with pytest.raises(TypeError, match=match): call()

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
