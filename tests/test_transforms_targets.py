"""Targets that lie on images move with them by default, and a mask moves as its image does, whatever its own
size."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from exp.augmentation import (CenterCrop, CenterResizedCrop, PilRandomDihedral, PilRandomFlip, PilRandomWarp,
                              RandomCrop, RandomResizedCrop)
from exp.batch_transforms import (Composed, RandomDihedral, RandomFlip, RandomJitter, RandomRotate,
                                  RandomShear, RandomShift, RandomWarp, RandomZoom, get_transforms)
from exp.data_block import FloatList, ImageList, LabeledData, LabelList
from exp.transforms import ResizeFixed, ToByteTensor, Transform
from exp.dataloader import Rng

H, W = 96, 128

def blob(h=H, w=W):
    "A lopsided shape, in parts of the sides."
    y, x = np.mgrid[:h, :w]
    u, v = (x + 0.5)/w, (y + 0.5)/h
    return ((abs(u - 0.35) < 0.2) & (abs(v - 0.4) < 0.25) | (u > 0.6) & (v > 0.7)).astype(np.uint8)

def iou(a, b): return ((a & b).sum()/(a | b).sum()).item() if (a | b).any() else 1.

ON_PIL = {'resize': ResizeFixed((48, 64)), 'crop': RandomResizedCrop((48, 64), scale=(0.3, 1.)),
          'middle': CenterResizedCrop((48, 64), zoom=1.2), 'window': RandomCrop((60, 80)),
          'middle window': CenterCrop((60, 80)),
          'window beyond': RandomCrop((120, 150)), 'middle window beyond': CenterCrop((150, 150)),
          'flip': PilRandomFlip(1.), 'dihedral': PilRandomDihedral(), 'warp': PilRandomWarp(0.2, p=1.)}

@pytest.mark.parametrize('part', [2, 3, 0.5])
@pytest.mark.parametrize('name', ON_PIL)
def test_a_mask_of_another_size_shows_the_same_after_a_move_of_pil_images(name, part):
    t, im = ON_PIL[name], Image.fromarray(blob()*255).convert('RGB')
    full, other = Image.fromarray(blob()), Image.fromarray(blob(int(H/part), int(W/part)))
    for seed in range(8):
        move = t.draw(im, Rng(seed))
        a, b = (t.mask(m, move) for m in (full, other))
        # these keep the size
        if name in ('flip', 'dihedral', 'warp'): b = b.resize(a.size, Image.Resampling.NEAREST)
        assert a.size == b.size and iou(np.array(a) > 0, np.array(b) > 0) > (0.85 if part == 3 else 0.9)

ON_TENSORS = {t.__class__.__name__: t
              for t in (RandomFlip(p=1.), RandomDihedral(), RandomRotate(30, p=1.), RandomZoom(1.5, p=1.),
                                                    RandomShift(0.2, p=1.), RandomShear(20, p=1.),
                                                    RandomWarp(0.3, p=1.), RandomJitter(0.02, p=1.),
                                                    Composed([RandomRotate(20, p=1.), RandomJitter(
                                                        0.01, p=1.), RandomZoom(1.3, p=1.)]))}

@pytest.mark.parametrize('pad', ['reflection', 'zeros'])
@pytest.mark.parametrize('name', ON_TENSORS)
def test_and_after_a_move_of_tensors_and_of_batches(name, pad):
    t = ON_TENSORS[name]
    t.pad = pad
    full, half = torch.from_numpy(blob()), torch.from_numpy(blob(H//2, W//2))
    for seed in range(3):
        one, rngs = t.draw(torch.zeros(3, H, W), Rng(seed)), [Rng(seed, k) for k in range(4)]
        many = t.draw(torch.zeros(4, 3, H, W), rngs)
        pairs = [(t.mask(full, one), t.mask(half, one)),
                 *zip(t.mask(full.expand(4, H, W).contiguous(), many),
                      t.mask(half.expand(4, H//2, W//2).contiguous(), many))]
        for a, b in pairs:
            assert iou(a > 0, F.interpolate(b[None, None].float(), (H, W))[0, 0]
                       > 0) > (0.8 if 'Jitter' in name or name == 'Composed' else 0.9)

class MaskList(LabelList):
    kind, spatial = 'mask', True
    def open(self, item): return Image.open(item)

class Points(FloatList):
    kind, spatial = 'points', True
    def open(self, item): return torch.tensor(item, dtype=torch.float32).reshape(-1, 2)
    def relate(self, obj, x): return obj*2/torch.tensor(x.size) - 1
    def column(self): return None

@pytest.fixture(scope='module')
def streets(tmp_path_factory):
    root = tmp_path_factory.mktemp('streets')
    for k in range(6):
        Image.fromarray(np.roll(blob(), 9*k, 1)*255).convert('RGB').save(root/f'{k}.png')
        for part in (1, 2):
            Image.fromarray(np.roll(blob(), 9*k, 1)).resize(
                (W//part, H//part), Image.Resampling.NEAREST).save(root/f'{k}_{part}.tif')
    return root

def masks(root, part, tfms, **kw):
    split = ImageList([root/f'{k}.png' for k in range(6)]).split_by_index([5]).label_from_func(
        lambda p: p.with_name(f'{p.stem}_{part}.tif'), MaskList)
    return split.transform((tfms, []), **kw).databunch(bs=5, seed=3)

@pytest.mark.parametrize('tfms', [[], [PilRandomWarp(0.2, p=1.), PilRandomFlip()],
                                  [RandomResizedCrop((48, 64), scale=(0.3, 1.))],
                                  get_transforms(max_rotate=20)[0], [RandomCrop((120, 150))]], ids=str)
def test_batches_with_masks_of_half_the_size_are_those_of_the_full_size(streets, tfms):
    (xa, a), (xb, b) = (masks(streets, part, tfms, size=(48, 64)).one_batch() for part in (1, 2))
    assert (torch.equal(xa, xb) and a.shape == b.shape == (5, *xa.shape[2:])
            and all(iou(p > 0, q > 0) > 0.9 for p, q in zip(a, b)))
    assert (all(iou(p > 0, x.amax(0) > 0.5) > 0.85 for p, x in zip(a, xa))
            or any('Light' in repr(t) or 'Bright' in repr(t) for t in tfms))

# ---- by default

@pytest.mark.parametrize('how', [{}, {'tfm_y': None}, {'tfm_y': True}])
@pytest.mark.parametrize('size', [16, (20, 12)])
def test_masks_come_in_the_size_of_their_images(streets, how, size):
    xb, yb = masks(streets, 1, [], size=size, **how).one_batch()
    assert yb.shape[1:] == xb.shape[2:] and yb.dtype == torch.int64

def test_points_follow_and_stay_only_if_one_says_so():
    im = Image.new('RGB', (64, 64))
    im.putpixel((10, 30), (255, 255, 255))
    make = lambda **kw: ImageList([im]*4).split_none().label_from_func(
        lambda _: [10.5, 30.5], Points).transform([PilRandomFlip(1.)], size=None, **kw).databunch(bs=4)
    value = lambda data: F.grid_sample(*(lambda xb, yb: (xb, yb[:, :, None]))(*data.one_batch()),
                                       mode='nearest', align_corners=False)
    assert ((value(make()) == 1).all() and (value(make(tfm_y=True)) == 1).all()
            and (value(make(tfm_y=False)) == 0).all())
    assert LabeledData(ImageList([im]), Points([[10.5, 30.5]]),
                       [PilRandomFlip(1.), ToByteTensor()])[0][1][0, 0] > 0

def test_classes_have_no_place_and_nothing_changes_for_them():
    data = ImageList([Image.new('RGB', (8, 8))]*4).split_none().label_from_func(lambda _: 'x').transform(
        [PilRandomFlip(1.)], size=4)
    assert data.train.tfm_y is False and data.databunch(bs=4).one_batch()[1].tolist() == [0]*4

def test_a_move_without_a_rule_is_refused_without_being_asked(streets):
    class OnlyImages(Transform):
        order, moves = 10, True
        def image(self, im, draw): return im
    with pytest.raises(TypeError, match='OnlyImages'): masks(streets, 1, [OnlyImages()])

def test_a_test_set_that_comes_later_follows_too(streets):
    split = ImageList([streets/f'{k}.png' for k in range(5)]).split_by_index([4]).label_from_func(
        lambda p: p.with_name(f'{p.stem}_2.tif'), MaskList).transform(size=16)
    assert split.add_test([streets/'5.png'], labeled=True).test[0][1].shape == (16, 16)
