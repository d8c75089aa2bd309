"Each exercise of lesson 02 takes a right answer and says what is wrong with a wrong one."
import pytest
import torch

from exp.core import check_exercise
from exp.tensors import logsumexp, variance


def distances(a, b): return (a**2).sum(1, keepdim=True) + (b**2).sum(1) - 2*a @ b.t()

def standardize_rows(x):
    d, s = x - x.mean(1, keepdim=True), variance(x, 1, keepdim=True).sqrt()
    return torch.where(s > 0, d/s, 0.)

def log_sigmoid(x): return -logsumexp(torch.stack([torch.zeros_like(x), -x]), 0)

def distances_by_loops(a, b):
    out = a.new_zeros(len(a), len(b))
    for i in range(len(a)):
        for j in range(len(b)): out[i, j] = (a[i] - b[j]).pow(2).sum()
    return out

def distances_by_rows(a, b): return torch.stack([(b - row).pow(2).sum(1) for row in a])

def distances_by_lists(a, b):
    a, b = a.tolist(), b.tolist()
    return torch.tensor([[sum((p - q)**2 for p, q in zip(r, s)) for s in b] for r in a], dtype=torch.float64)

def one_wrong(a, b):
    out = distances(a, b)
    out[7, 3] += 1
    return out

def one_row_wrong(x):
    out = standardize_rows(x)
    out[1] = 0.
    return out

@pytest.mark.parametrize('name,answer',
                         [('02.1', distances), ('02.2', standardize_rows), ('02.3', log_sigmoid)])
def test_right_answers_are_right(name, answer):
    assert check_exercise(name, None) == f'{name}: not yet'
    assert check_exercise(name, answer) == f'{name}: right'

@pytest.mark.parametrize('name,answer,says', [
    ('02.1', lambda a, b: ((a[:, None] - b)**2).sum(-1), 'builds a tensor of 30,000'),
    ('02.1', lambda a, b: torch.cdist(a, b), 'squares are asked for'),
    ('02.1', lambda a, b: distances(b, a), r'shape is (30, 20)'),
    ('02.1', lambda a, b: a @ b.t(), 'squared distance'),
    ('02.1', distances_by_loops, 'it loops over rows'),
    ('02.1', distances_by_rows, 'it loops over rows'),
    ('02.1', distances_by_lists, 'stay with tensors'),
    ('02.1', one_wrong, 'row 7 of a and row 3 of b'),
    ('02.2', one_row_wrong,
     'the row (0, 0, 0, 1) becomes (0, 0, 0, 0); it should be (-0.5774, -0.5774, -0.5774, 1.732)'),
    ('02.2', lambda x: (x - x.mean(1, keepdim=True))/variance(x, 1, keepdim=True).sqrt(), 'becomes NaN'),
    ('02.2', lambda x: (x - x.mean(1, keepdim=True))/(x.std(1, keepdim=True) + 1e-9),
     'sample standard deviation'),
    ('02.2', lambda x: standardize_rows(x.t()).t(), 'becomes'),
    ('02.2', lambda x: x.sub_(x.mean(1, keepdim=True)), 'changes its argument'),
    ('02.2', lambda x: x[0], 'shape is (4,)'),
    ('02.3', lambda x: x.sigmoid().log(), 'for -1000 it answers -inf; it should be -1000'),
    ('02.3', lambda x: logsumexp(torch.stack([torch.zeros_like(x), -x]), 0),
     'for -1000 it answers 1000; it should be -1000'),
    ('02.3', lambda x: logsumexp(x), 'shape is (2,)'),
    ('02.3', 3, 'raised TypeError')])
def test_wrong_answers_are_told_why(name, answer, says): assert says in check_exercise(name, answer)
