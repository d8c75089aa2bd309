"""The checks of lesson 18's exercises accept a right answer and name what is wrong with others."""
import math

import pytest
import torch
import torch.nn.functional as F

from exp.callbacks import Callback
from exp.core import check_exercise
from exp.dataloader import Rng

def confidence(eps, k): return 1 - eps + eps/k, math.log(1 + k*(1 - eps)/eps)

def soft_targets(y1, y2, lam, k): return lam[:, None]*F.one_hot(y1, k) + (1 - lam)[:, None]*F.one_hot(y2, k)

def overwrites(y1, y2, lam, k):
    out, rows = torch.zeros(len(y1), k), torch.arange(len(y1))
    out[rows, y1] = lam
    out[rows, y2] = 1 - lam
    return out

class CutOut(Callback):
    order = -60
    def __init__(self, size): self.size = size
    def place(self, item):
        rng, (h, w) = Rng(1, self.epoch, item, 'cutout'), self.xb.shape[-2:]
        return rng.randrange(h - self.size + 1), rng.randrange(w - self.size + 1)
    def before_batch(self):
        if not self.in_train: return
        xb = self.xb.clone()
        for im, i in zip(xb, self.items):
            r, c = self.place(i)
            im[..., r:r + self.size, c:c + self.size] = 0
        self.run.xb = xb

class InValidationToo(CutOut):
    def before_batch(self):
        keep, self.run.in_train = self.in_train, True
        super().before_batch()
        self.run.in_train = keep

class OneForAll(CutOut):
    def place(self, item): return super().place(0)

class EachEpochTheSame(CutOut):
    def place(self, item): return Rng(1, item).randrange(8), Rng(2, item).randrange(5)

class OverTheEdge(CutOut):
    def place(self, item):
        return Rng(1, self.epoch, item).randrange(12), Rng(2, self.epoch, item).randrange(9)

class Square(CutOut):
    def place(self, item): return Rng(1, self.epoch, item).randrange(5), Rng(2, self.epoch, item).randrange(4)

class InPlace(CutOut):
    def before_batch(self):
        super().before_batch()
        if self.in_train: self.dl.ds.x.zero_()

@pytest.mark.parametrize('name,answer', [('18.1', confidence), ('18.2', soft_targets), ('18.3', CutOut)])
def test_a_right_answer_is_right(name, answer): assert check_exercise(name, answer) == f'{name}: right'

@pytest.mark.parametrize('name,answer,why', [
    ('18.1', lambda eps, k: (1 - eps, math.log(k*(1 - eps)/eps)), 'its part of eps too'),
    ('18.1', lambda eps, k: (1 - eps + eps/k, math.log((1 - eps)/eps)), 'gives a probability'),
    ('18.1', lambda eps, k: 1 - eps, 'two numbers'),
    ('18.1', lambda eps, k: (math.nan, math.nan), 'finite numbers'),
    ('18.1', lambda eps, k: (1 - eps + eps/k, math.inf), 'finite numbers'),
    ('18.2', overwrites, 'overwrite'),
    ('18.2', lambda y1, y2, lam, k: soft_targets(y2, y1, lam, k), 'share of y1'),
    ('18.2', lambda y1, y2, lam, k: 2*soft_targets(y1, y2, lam, k), 'add up to 1'),
    ('18.2', lambda y1, y2, lam, k: lam*y1 + (1 - lam)*y2, 'a row for each item'),
    ('18.3', InValidationToo, 'validation images are cut'),
    ('18.3', OneForAll, 'each should have its own'),
    ('18.3', EachEpochTheSame, 'same square in each epoch'),
    ('18.3', OverTheEdge, 'whole square'),
    ('18.3', Square, 'keep to the upper left'),
    ('18.3', InPlace, 'data set itself has changed'),
])
def test_a_wrong_answer_is_told_what_is_wrong(name, answer, why): assert why in check_exercise(name, answer)

def test_no_answer_is_not_yet():
    for name in ('18.1', '18.2', '18.3'): assert check_exercise(name, None) == f'{name}: not yet'
