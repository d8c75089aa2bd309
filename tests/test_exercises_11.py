"The checks of lesson 11's exercises take a right answer and name what is wrong with a wrong one."
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.core import check_exercise


def fold(conv, norm):
    scale = norm.weight/(norm.running_var + norm.eps).sqrt()
    new = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    with torch.no_grad():
        new.weight.copy_(conv.weight*scale[:, None, None, None])
        new.bias.copy_(((0 if conv.bias is None else conv.bias) - norm.running_mean)*scale + norm.bias)
    return new

def ghost_norm(x, size):
    return torch.cat([F.batch_norm(part, None, None, training=True) for part in x.split(size)])

def combine(n1, mean1, var1, n2, mean2, var2):
    n, gap = n1 + n2, mean2 - mean1
    return n, mean1 + gap*n2/n, (n1*var1 + n2*var2)/n + gap**2*n1*n2/n**2

RIGHT = {'11.1': fold, '11.2': ghost_norm, '11.3': combine}

def fold_in_place(conv, norm):
    new = fold(conv, norm)
    with torch.no_grad(): conv.weight.copy_(new.weight)
    return new

def fold_without_stride(conv, norm):
    new = fold(conv, norm)
    new.stride = (1, 1)
    return new

def fold_forgetting_bias(conv, norm):
    conv = copy.deepcopy(conv)
    conv.bias = None
    return fold(conv, norm)

def fold_unscaled_bias(conv, norm):
    new = fold(conv, norm)
    if conv.bias is None: return new
    with torch.no_grad(): new.bias.add_(conv.bias)
    return new

def ghost_in_place(x, size): return x.copy_(ghost_norm(x, size))
def ghost_unbiased(x, size):
    parts = x.split(size)
    return torch.cat([(p - p.mean((0, 2, 3), keepdim=True))/(p.var((0, 2, 3), keepdim=True) + 1e-5).sqrt()
                      for p in parts])
def combine_without_gap(n1, mean1, var1, n2, mean2, var2):
    n = n1 + n2
    return n, (n1*mean1 + n2*mean2)/n, (n1*var1 + n2*var2)/n
def combine_by_squares(n1, mean1, var1, n2, mean2, var2):
    n = n1 + n2
    mean = (n1*mean1 + n2*mean2)/n
    return n, mean, (n1*(var1 + mean1**2) + n2*(var2 + mean2**2))/n - mean**2
def combine_unweighted(n1, mean1, var1, n2, mean2, var2): return n1 + n2, (mean1 + mean2)/2, (var1 + var2)/2

WRONG = [
    ('11.1', lambda conv, norm: nn.Sequential(conv, norm), 'should answer an nn.Conv2d'),
    ('11.1', fold_in_place, 'changes the convolution'),
    ('11.1', fold_without_stride, 'stride and padding'),
    ('11.1', fold_forgetting_bias, 'off by up to'),
    ('11.1', fold_unscaled_bias, 'off by up to'),
    ('11.2', ghost_in_place, 'changes its argument'),
    ('11.2', lambda x, size: ghost_norm(x, len(x)), 'as a whole'),
    ('11.2', lambda x, size: ghost_norm(x, size)[:4], 'it answers'),
    ('11.2', ghost_unbiased, 'off by up to'),
    ('11.3', lambda *a: (a[0], a[1], a[2]), '27'),
    ('11.3', combine_unweighted, 'the mean is'),
    ('11.3', combine_without_gap, 'the variance is'),
    ('11.3', combine_by_squares, 'cancel'),
]


@pytest.mark.parametrize('name', RIGHT)
def test_a_right_answer_is_right(name): assert 'right' in check_exercise(name, RIGHT[name])

@pytest.mark.parametrize('name,answer,why', WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(name, answer, why): assert why in check_exercise(name, answer)

@pytest.mark.parametrize('name', RIGHT)
def test_none_is_not_yet(name): assert 'not yet' in check_exercise(name, None)
