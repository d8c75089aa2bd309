"""The checks of lesson 13's exercises accept a right answer and name what is wrong with others."""
import hashlib
import math
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from exp.core import check_exercise
from exp.data_block import Processor
from exp.transforms import Transform

def by_name(path): return zlib.crc32(Path(path).name.encode()) % 5 == 0
def by_digest(path): return int(hashlib.sha256(Path(path).name.encode()).hexdigest(), 16) % 5 == 0
def by_path(path): return zlib.crc32(Path(path).as_posix().encode()) % 5 == 0
def by_hash(path): return hash(Path(path).name) % 5 == 0
def half(path): return zlib.crc32(Path(path).name.encode()) % 2 == 0
def in_blocks(path): return int(Path(path).stem.split('_')[1]) < 600

class Pad(Transform):
    order, role, moves = 20, 'size', True
    def __init__(self, size): self.size = size
    def draw(self, im, rng):
        scale = self.size/max(im.size)
        return round(im.width*scale), round(im.height*scale)
    def image(self, im, draw):
        out = Image.new(im.mode, (self.size, self.size))
        out.paste(im.resize(draw), ((self.size - draw[0])//2, (self.size - draw[1])//2))
        return out
    def points(self, p, draw): return p*torch.tensor(draw)/self.size

class PadAndForgetPoints(Pad):
    def points(self, p, draw): return p

class PadInPlace(Pad):
    def points(self, p, draw): return p.mul_(torch.tensor(draw)/self.size)

class PadCorner(Pad):
    def image(self, im, draw):
        out = Image.new(im.mode, (self.size, self.size))
        out.paste(im.resize(draw), (0, 0))
        return out

class PadNoRole(Pad): role = None

class Squash(Pad):
    def image(self, im, draw): return im.resize((self.size, self.size))

class Standardize(Processor):
    def learn(self, items):
        self.mean = sum(items)/len(items)
        self.std = math.sqrt(sum((v - self.mean)**2 for v in items)/len(items)) or 1.
    def process(self, item): return (item - self.mean)/self.std
    def decode(self, item): return item*self.std + self.mean
    def state_dict(self): return {'mean': self.mean, 'std': self.std}
    def load_state_dict(self, state): self.mean, self.std = state['mean'], state['std']

class Unbiased(Standardize):
    def learn(self, items):
        super().learn(items)
        if len(items) > 1: self.std *= math.sqrt(len(items)/(len(items) - 1))

class NoState(Standardize):
    def state_dict(self): return {}
    def load_state_dict(self, state): self.learn([0., 1.])

class ByZero(Standardize):
    def learn(self, items):
        self.mean = sum(items)/len(items)
        self.std = math.sqrt(sum((v - self.mean)**2 for v in items)/len(items))

class NoWayBack(Standardize):
    def decode(self, item): return item

@pytest.mark.parametrize('name, answer',
                         [('13.1', by_name), ('13.1', by_digest), ('13.2', Pad), ('13.3', Standardize)])
def test_a_right_answer_is_right(name, answer): assert check_exercise(name, answer) == f'{name}: right'

@pytest.mark.parametrize('name, answer, match', [
    ('13.1', by_path, 'not by the folder'), ('13.1', by_hash, 'another in each process'),
    ('13.1', half, 'about 20 %'), ('13.1', in_blocks, 'spread evenly'),
    ('13.2', PadAndForgetPoints, 'they should come to'), ('13.2', PadInPlace, 'changes its argument'),
    ('13.2', PadCorner, 'in the middle'),
    ('13.2', PadNoRole, 'role'), ('13.2', Squash, 'should fill'),
    ('13.3', Unbiased, 'is right'), ('13.3', NoState, 'state_dict'), ('13.3', ByZero, 'ZeroDivisionError'),
    ('13.3', NoWayBack, 'way back')])
def test_a_wrong_answer_is_told_what_is_wrong(name, answer, match):
    assert match in check_exercise(name, answer)

def test_no_answer_is_not_yet():
    for name in ('13.1', '13.2', '13.3'): assert check_exercise(name, None) == f'{name}: not yet'
