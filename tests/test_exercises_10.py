"The checks of lesson 10's exercises take a right answer and name what is wrong with a wrong one."
import math

import pytest
import torch
from torch import nn

from exp.core import check_exercise
from exp.layers import init_cnn


def sub_for(leak, mu, sigma):
    t = mu/sigma
    density, below = math.exp(-t*t/2)/math.sqrt(2*math.pi), (1 + math.erf(t/math.sqrt(2)))/2
    positive = sigma*density + mu*below
    return positive + leak*(mu - positive)

class BothHalves(nn.Module):
    def forward(self, x): return torch.cat((x.relu(), (-x).relu()), 1)

def fair(model):
    init_cnn(model)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    return model

RIGHT = {'10.1': sub_for, '10.2': BothHalves, '10.3': fair}

class Interleaved(nn.Module):
    def forward(self, x): return torch.stack((x.relu(), (-x).relu()), 2).flatten(1, 2)
class Abs(nn.Module):
    def forward(self, x): return x.abs()
class SecondWrong(nn.Module):
    def forward(self, x): return torch.cat((x.relu(), x.relu()), 1)
class InPlace(nn.Module):
    def forward(self, x):
        negative = (-x).relu()
        return torch.cat((x.data.relu_(), negative), 1)
class Detached(nn.Module):
    def forward(self, x): return torch.cat((x.relu(), (-x.detach()).relu()), 1)

def copies(model):
    import copy
    return fair(copy.deepcopy(model))
def all_zero(model):
    for p in model.parameters(): nn.init.zeros_(p)
    return model
def small(model):
    init_cnn(model)
    with torch.no_grad(): model[-1][-1].weight.mul_(0.1)
    return model
def default_start(model):
    nn.init.zeros_(model[-1][-1].weight)
    nn.init.zeros_(model[-1][-1].bias)
    return model

WRONG = [
    ('10.1', lambda leak, mu, sigma: 0.4, 'is right'),
    ('10.1', lambda leak, mu, sigma: (1 - leak)*sigma/math.sqrt(2*math.pi), 'mu 1.0'),
    ('10.1', lambda leak, mu, sigma: sub_for(0., mu, sigma), 'leak 0.1'),
    ('10.1', lambda leak, mu, sigma: -sub_for(leak, mu, sigma), 'is right'),
    ('10.2', BothHalves(), 'give the class'),
    ('10.2', Abs, '2×3×4×5'),
    ('10.2', Interleaved, 'first channels'),
    ('10.2', SecondWrong, 'last channels'),
    ('10.2', InPlace, 'changes its input|first channels'),
    ('10.2', Detached, 'gradient'),
    ('10.3', copies, 'the model that it was given'),
    ('10.3', all_zero, 'only the last layer'),
    ('10.3', small, 'the loss is'),
    ('10.3', init_cnn, 'the loss is'),
    ('10.3', default_start, 'bias should be zero'),
]

@pytest.mark.parametrize('name', RIGHT)
def test_right_answers_are_right(name): assert check_exercise(name, RIGHT[name]) == f'{name}: right'

@pytest.mark.parametrize('name, answer, words', WRONG)
def test_wrong_answers_are_told_what_is_wrong(name, answer, words):
    import re
    verdict = check_exercise(name, answer)
    assert re.search(words, verdict), verdict

@pytest.mark.parametrize('name', RIGHT)
def test_no_answer_is_not_yet(name): assert check_exercise(name, None) == f'{name}: not yet'
