"""The checks of lesson 19's exercises accept a right answer and name what is wrong with others."""
import math

import pytest
import torch

from exp.callbacks import Callback
from exp.core import check_exercise

def largest_scale(grads):
    top = max(g.abs().max() for g in grads).double()
    if top == 0: return math.inf
    scale = 2.**math.floor(math.log2(65520/top))
    while not (top.float()*scale).half().isfinite(): scale /= 2
    while (top.float()*scale*2).half().isfinite(): scale *= 2
    return scale

def signed(grads): return 2.**math.floor(math.log2(65520/max(g.max().clamp(min=1e-30).item() for g in grads)))
def too_small(grads): return largest_scale(grads)/2
def no_power(grads): return 65504/max(g.abs().max().item() for g in grads)
def whole(grads): return int(largest_scale(grads)) if any(g.any() for g in grads) else math.inf
def zero_is_one(grads): return largest_scale(grads) if any(g.any() for g in grads) else 1.

def round_stochastic(x, generator):
    noise = torch.randint(0, 2**16, x.shape, generator=generator, dtype=torch.int32)
    return ((x.view(torch.int32) + noise) & -65536).view(torch.float32).bfloat16()

def nearest(x, generator): return x.bfloat16()
def float32s(x, generator): return round_stochastic(x, generator).float()
def down(x, generator): return (x.view(torch.int32) & -65536).view(torch.float32).bfloat16()
def half_half(x, generator):
    up = torch.randint(0, 2, x.shape, generator=generator, dtype=torch.int32)*65535
    return ((x.view(torch.int32) + up) & -65536).view(torch.float32).bfloat16()
def too_much(x, generator):
    return (round_stochastic(x, generator)
            .float()*(1 + torch.randint(-1, 2, x.shape, generator=generator)/64)).bfloat16()

class ScaleLog(Callback):
    def before_fit(self): self.scales = []
    def before_backward(self): self.scales.append(self.mixed_precision.scale)

class AfterBatch(ScaleLog):
    before_backward = Callback.__repr__   # nothing
    def after_batch(self):   # a step that is left out has no after_step
        if self.in_train: self.scales.append(self.mixed_precision.scale)

class Keeps(ScaleLog):
    def __init__(self): self.scales = []
    before_fit = Callback.__repr__

class Validation(ScaleLog):
    def after_loss(self): self.scales.append(self.mixed_precision.scale)
    before_backward = Callback.__repr__

class Nothing(Callback): pass

@pytest.mark.parametrize('number, answer',
                         [('19.1', largest_scale), ('19.2', round_stochastic), ('19.3', ScaleLog)])
def test_right_answers_are_right(number, answer): assert check_exercise(number, answer) == f'{number}: right'

@pytest.mark.parametrize('number, answer, says', [
    ('19.1', signed, 'is infinite in fp16'), ('19.1', too_small, 'is still safe'),
    ('19.1', no_power, 'no power of two'), ('19.1', whole, 'not a float'),
    ('19.1', lambda grads: 0., 'no power of two'), ('19.1', lambda grads: -2., 'no power of two'),
    ('19.2', lambda x, generator: None, 'not a tensor'),
    ('19.1', zero_is_one, 'all zero'),
    ('19.2', nearest, 'the mean'), ('19.2', float32s, 'torch.float32'), ('19.2', down, 'the mean'),
    ('19.2', half_half, 'the mean'), ('19.2', too_much, 'should stay|became'),
    ('19.3', AfterBatch, 'the first loss'), ('19.3', Keeps, 'holds 24'), ('19.3', Validation, 'holds 24'),
    ('19.3', Nothing, 'no list'), ('19.3', lambda: 1, 'callbacks'),
])
def test_wrong_answers_are_named(number, answer, says):
    verdict = check_exercise(number, answer)
    assert 'right' not in verdict.split(':')[1][:7] and __import__('re').search(says, verdict), verdict

@pytest.mark.parametrize('number', ['19.1', '19.2', '19.3'])
def test_no_answer_is_not_yet(number): assert check_exercise(number, None) == f'{number}: not yet'
