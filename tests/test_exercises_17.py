"""The checks of lesson 17's exercises accept a right answer and name what is wrong with others."""
import math

import pytest
import torch

from exp.augmentation import scaling, translation
from exp.batch_transforms import Geometric
from exp.core import check_exercise

class Stretch(Geometric):
    def __init__(self, max_stretch):
        super().__init__()
        self.max_stretch = max_stretch
    def matrix(self, rng, size):
        f = rng.uniform(1, self.max_stretch)
        return scaling(f, 1/f) if rng.random() < 0.5 else scaling(1/f, f)

class Grows(Stretch):
    def matrix(self, rng, size): return scaling(rng.uniform(1, self.max_stretch))

class Wider(Stretch):
    def matrix(self, rng, size):
        f = rng.uniform(1, self.max_stretch)
        return scaling(f, 1/f)

class Always(Stretch):
    def matrix(self, rng, size):
        f = self.max_stretch
        return scaling(f, 1/f) if rng.random() < 0.5 else scaling(1/f, f)

class TooFar(Stretch):
    def matrix(self, rng, size):
        f = rng.uniform(1, 2*self.max_stretch)
        return scaling(f, 1/f) if rng.random() < 0.5 else scaling(1/f, f)

class Moved(Stretch):
    def matrix(self, rng, size): return super().matrix(rng, size) @ translation(0.1)

class PointsStay(Stretch):
    def points(self, p, move): return p

def edges(old, boxes):
    real, (h, w) = boxes[boxes.any(1)], old
    if not len(real): return None
    at = (real + 1)/2*torch.tensor([w, h, w, h])
    return math.floor(at[:, 0].min() + 1e-4), math.floor(at[:, 1].min() + 1e-4), math.ceil(
        at[:, 2].max() - 1e-4), math.ceil(at[:, 3].max() - 1e-4)

def safe_crop(rng, old, boxes):
    h, w = old
    l, t, r, b = edges(old, boxes) or (w//2, h//2, w//2 + 1, h//2 + 1)
    return rng.randint(0, l), rng.randint(0, t), rng.randint(r, w), rng.randint(b, h)

def cuts(rng, old, boxes):
    l, t, r, b = safe_crop(rng, old, boxes)
    return l + 30, t, r, b
def padding_counts(rng, old, boxes):
    at = (boxes + 1)/2*torch.tensor([old[1], old[0]]*2)
    l, t, r, b = int(at[:, 0].min()), int(at[:,
                                             1].min()), math.ceil(at[:, 2].max()), math.ceil(at[:, 3].max())
    return rng.randint(0, l), rng.randint(0, t - 10), rng.randint(r, old[1]), rng.randint(b, old[0])
def never_moves(rng, old, boxes): return edges(old, boxes) or (0, 0, old[1], old[0])
def leaves(rng, old, boxes):
    l, t, r, b = safe_crop(rng, old, boxes)
    return l, t, r + 100, b
def in_floats(rng, old, boxes): return tuple(map(float, safe_crop(rng, old, boxes)))
def mostly_small(rng, old, boxes):
    l, t, r, b = edges(old, boxes) or (50, 50, 51, 51)
    return round(l*rng.random()**4), rng.randint(0, t), rng.randint(r, old[1]), rng.randint(b, old[0])
def fails_without_boxes(rng, old, boxes):
    l, t, r, b = edges(old, boxes) or (0, 0, 0, 0)
    return rng.randint(0, l), rng.randint(0, t), rng.randint(r, old[1]), rng.randint(b, old[0])

def rectangle(rng, h, w, low=0.02, high=0.4, shape=0.3):
    while True:
        area, r = h*w*rng.uniform(low, high), math.exp(rng.uniform(math.log(shape), -math.log(shape)))
        eh, ew = round(math.sqrt(area*r)), round(math.sqrt(area/r))
        if 0 < eh <= h and 0 < ew <= w:
            t, l = rng.randint(0, h - eh), rng.randint(0, w - ew)
            return slice(t, t + eh), slice(l, l + ew)

def erase(x, rng, place=rectangle, fill=None):
    (c, h, w), out = x.shape, x.clone()
    ys, xs = place(rng, h, w)
    shape = c, ys.stop - ys.start, xs.stop - xs.start
    out[:, ys, xs] = torch.rand(shape, generator=rng.generator()) if fill is None else fill
    return out

def in_place(x, rng):
    ys, xs = rectangle(rng, *x.shape[1:])
    x[:, ys, xs] = 0.
    return x
def black(x, rng): return erase(x, rng, fill=0.)
def too_much(x, rng): return erase(x, rng, lambda rng, h, w: rectangle(rng, h, w, high=0.8))
def too_little(x, rng): return erase(x, rng, lambda rng, h, w: rectangle(rng, h, w, high=0.1))
def squares(x, rng): return erase(x, rng, lambda rng, h, w: rectangle(rng, h, w, shape=0.999))
def one_channel(x, rng):
    out = erase(x, rng)
    out[1:] = x[1:]
    return out
def in_the_corner(x, rng):
    def place(rng, h, w):
        ys, xs = rectangle(rng, h, w)
        return slice(0, ys.stop - ys.start), slice(0, xs.stop - xs.start)
    return erase(x, rng, place)
def global_noise(x, rng):
    ys, xs = rectangle(rng, *x.shape[1:])
    out = x.clone()
    out[:, ys, xs] = torch.rand_like(out[:, ys, xs])
    return out

@pytest.mark.parametrize('name, answer', [('17.1', Stretch), ('17.2', safe_crop), ('17.3', erase)])
def test_a_right_answer_is_right(name, answer): assert check_exercise(name, answer) == f'{name}: right'

@pytest.mark.parametrize('name, answer, match', [
    ('17.1', Grows, 'areas should stay'), ('17.1', Wider, 'about half is right'),
    ('17.1', Always, 'drawn for each image'), ('17.1', TooFar, 'close to 1.5'),
    ('17.1', Moved, 'only the diagonal'), ('17.1', PointsStay, 'do not follow'),
    ('17.1', lambda m: None, 'subclass of Geometric'),
    ('17.2', cuts, 'cuts one'), ('17.2', padding_counts, 'the top edge lies'),
    ('17.2', never_moves, 'it may lie between'), ('17.2', leaves, 'leaves the image'),
    ('17.2', in_floats, 'four whole numbers'), ('17.2', mostly_small, 'not drawn evenly'),
    ('17.2', fails_without_boxes, 'all boxes are padding'),
    ('17.3', in_place, 'work on a clone'), ('17.3', black, 'random numbers, each pixel'),
    ('17.3', too_much, '2 to 40 % is right'), ('17.3', too_little, 'come close'),
    ('17.3', squares, '0.3 and 3.3'), ('17.3', one_channel, 'all channels'),
    ('17.3', in_the_corner, 'random place'), ('17.3', global_noise, 'come from rng')])
def test_a_wrong_answer_is_told_what_is_wrong(name, answer, match):
    assert match in check_exercise(name, answer)

def test_no_answer_is_not_yet():
    for name in ('17.1', '17.2', '17.3'): assert check_exercise(name, None) == f'{name}: not yet'
