"The checks of lesson 06's exercises take a right answer and name what is wrong with a wrong one."
import pytest
import torch

from exp.core import check_exercise
from exp.regularization import Dropout, k_fold


def drop_channels(x, p):
    keep = torch.rand(x.shape[:2]) >= p
    return x*keep[:, :, None, None]/(1 - p)

def gain_of(act):
    z = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    density = torch.exp(-z**2/2)/(2*torch.pi)**0.5
    return 1/torch.trapezoid(act(z)**2*density, z).sqrt()

def stratified(y, k, seed):
    g = torch.Generator().manual_seed(seed)
    part = torch.empty_like(y)
    for c in y.unique():
        places = (y == c).nonzero().flatten()
        part[places[torch.randperm(len(places), generator=g)]] = torch.arange(len(places)) % k
    return [((part != i).nonzero().flatten(), (part == i).nonzero().flatten()) for i in range(k)]

RIGHT = {'06.1': drop_channels, '06.2': gain_of, '06.3': stratified}

def in_place(x, p): return x.mul_(torch.rand(x.shape[:2])[:, :, None, None] >= p).div_(1 - p)

WRONG = [
    ('06.1', lambda x, p: Dropout(p)(x), 'within a channel'),
    ('06.1', lambda x, p: drop_channels(x, p)*(1 - p), 'should be 1.25'),
    ('06.1', lambda x, p: x*(torch.rand(x.shape[1]) >= p)[:, None, None]/(1 - p), 'fall out together'),
    ('06.1', lambda x, p: x*(torch.rand(len(x)) >= p)[:, None, None, None]/(1 - p), 'fall out together'),
    ('06.1', lambda x, p: drop_channels(x, 1 - p)*p/(1 - p), 'a share of 0.8'),
    ('06.1', lambda x, p: x*1, 'should be 1.25'),
    ('06.1', lambda x, p: x*1.25, 'a share of 0.000'),
    ('06.1', in_place, 'changes its argument'),
    ('06.1', lambda x, p: drop_channels(x, p)[0], 'it answers'),
    ('06.2', lambda act: 2**0.5, 'for the identity'),
    ('06.2', lambda act: 1/act(torch.randn(100_000)).std(), 'for relu'),
    ('06.2', lambda act: torch.tensor(1.), 'for relu'),
    ('06.3', lambda y, k, seed: list(k_fold(len(y), k, seed)), 'in a class'),
    ('06.3', lambda y, k, seed: stratified(y, k, 1), 'another seed'),
    ('06.3', lambda y, k, seed: stratified(y, k + 1, seed), 'answers 4 pairs'),
    ('06.3', lambda y, k, seed: stratified(y, k, int(torch.randint(10**9, (1,)))), 'the same seed'),
    ('06.3', lambda y, k, seed: [(v, v) for _, v in stratified(y, k, seed)], 'train and valid together'),
    ('06.3', lambda y, k, seed: [stratified(y, k, seed)[0]]*k, 'exactly one validation part'),
    ('06.3', lambda y, k, seed: 1/0, 'ZeroDivisionError'),
]

@pytest.mark.parametrize('name', RIGHT)
def test_a_right_answer_is_right(name):
    torch.manual_seed(0)
    assert check_exercise(name, RIGHT[name]) == f'{name}: right'

@pytest.mark.parametrize('name, answer, says', WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(name, answer, says):
    torch.manual_seed(0)
    verdict = check_exercise(name, answer)
    assert verdict != f'{name}: right' and says in verdict

@pytest.mark.parametrize('name', RIGHT)
def test_no_answer_is_not_yet(name): assert check_exercise(name, None) == f'{name}: not yet'
