"""The rate finder plots always, suggests in the valley or before the rise, says when nothing can be said, and
bears any loss."""
import math, warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.callbacks import Callback, Runner
from exp.core import set_seed
from exp.dataloader import Dataset, make_data
from exp.learner import Learner
from exp.progress import Progress
from exp.schedules import LRFinder

LRS = [10**(-6 + 7*i/99) for i in range(100)]

def noise(i, size, seed=0): return size*math.sin(12.9898*i + seed)*math.cos(78.233*i)

def good(at, level=0.02, size=0.5, seed=0):
    "What a good model gives: flat and noisy, and from `at` on rising tenfold within a decade."
    return [level*(1 + noise(i, size, seed)) + (level*(10**((i - at)/14) - 1) if i > at else 0)
            for i in range(min(100, at + 18))]

SHAPES = {'flat, then rising': (lambda: good(60), 45, 68), 'later': (lambda: good(80), 65, 88),
          'with less noise': (lambda: good(60, size=0.05), 45, 68),
          'without noise': (lambda: good(60, size=0.), 45, 68),
          'a high first batch': (lambda: [0.2, *good(60)[1:]], 45, 68),
          'a low first batch': (lambda: [0.0001, *good(60)[1:]], 45, 68),
          'negative': (lambda: [v - 5 for v in good(60, level=0.3)], 45, 68),
          'ending in NaN': (lambda: [*good(60)[:61], math.nan], 45, 68),
          'ending in infinity': (lambda: [*good(60)[:61], math.inf], 45, 68)}

def finder(losses, **kwargs):
    f = LRFinder(**kwargs)
    f.losses, f.lrs = list(losses), LRS[:len(losses)]
    return f

@pytest.mark.parametrize('shape', SHAPES)
def test_where_nothing_falls_a_tenth_of_the_point_before_the_rise_is_suggested(shape):
    make, low, high = SHAPES[shape]
    f = finder(make())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert LRS[low]/10 <= f.suggestion <= LRS[high]/10
    f.plot()
    plt.close('all')

NOTHING = {'constant': [2.3]*100, 'zero': [0.]*100,
           'a little noise': [2.3 + noise(i, 0.01) for i in range(100)],
           'much noise': [2.3 + noise(i, 1.) for i in range(100)],
           'NaN from the start': [math.nan], 'infinity from the start': [math.inf],
           'rising from the start': [1. + 0.1*i for i in range(40)], 'negative and constant': [-3.]*100,
           'one': [1.]}

@pytest.mark.parametrize('what', NOTHING)
def test_where_nothing_can_be_said_none_and_a_warning(what):
    f = finder(NOTHING[what])
    with pytest.warns(UserWarning, match='no rate'): assert f.suggestion is None
    assert f.plot().get_ylabel() == 'loss'
    plt.close('all')

def test_the_user_chooses_the_rule():
    losses = [2.3 - 1.5*math.exp(-((i - 60)/12)**2/2) for i in range(100)]
    f = finder(losses)
    assert f.suggest('steep') == f.steepest < f.suggest('valley') == f.suggestion
    lowest = f.suggest(lambda lrs, losses: lrs[int(np.argmin(losses))]/10)
    assert lowest == LRS[60]/10 and type(lowest) is float
    assert finder(losses, rule='steep').suggestion == f.steepest
    assert finder(losses, rule=lambda lrs, losses: np.float64(1.)).suggestion == 1.
    for bad in ('minimum', 3, True):
        with pytest.raises((TypeError, ValueError), match='rule'): f.suggest(bad)

def data(n=64, bs=8):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=g)
    return make_data(Dataset(x, x[:, :3].argmax(1)), Dataset(x, x[:, :3].argmax(1)), bs=bs)

def learner(loss_func=None):
    set_seed(1)
    return Learner(data(), nn.Linear(4, 3), loss_func=loss_func, cbs=Progress(False))

LOSSES = {'negative': lambda p, y: F.cross_entropy(p, y) - 10.,
          'through zero': lambda p, y: F.cross_entropy(p, y) - 1.,
          'likelihood': lambda p, y: -p.softmax(1).gather(1, y[:, None]).mean(),
          'zero': lambda p, y: 0*p.sum(), 'hinge': lambda p, y: F.multi_margin_loss(p, y)}

@pytest.mark.parametrize('what', LOSSES)
def test_it_does_not_stop_at_once_for_losses_of_any_sign(what):
    f = LRFinder(60, 1e-6, 1e-1)
    Runner.fit(learner(LOSSES[what]), 1, None, f)
    assert len(f.losses) == 60

@pytest.mark.parametrize('what', ['positive', 'negative'])
def test_it_stops_when_the_loss_has_run_away(what):
    f = LRFinder(100, 1e-3, 1e6)
    set_seed(1)
    Runner(data(), nn.Linear(4, 3), loss_func=lambda p, y: F.mse_loss(p, F.one_hot(y, 3).float())
           - (3. if what == 'negative' else 0.)).fit(1, cbs=f)
    assert 20 < len(f.losses) < 95

def test_a_lucky_first_batch_does_not_end_it():
    class Lucky(Callback):
        order = -300
        def after_loss(self): self.run.loss = torch.tensor(0.001 if self.iter == 0 else 0.05)
    f = LRFinder(40, 1e-6, 1e-3)
    Runner.fit(learner(), 1, None, [f, Lucky()])
    assert len(f.losses) == 40

@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_losses_that_are_no_numbers_end_it_with_none(value):
    learn = learner(lambda p, y: p.sum()*value)
    with pytest.warns(UserWarning, match='no rate'): assert learn.lr_find(20) is None
    plt.close('all')

def test_lr_find_takes_the_rule_and_numpys_numbers():
    learn = learner()
    lr = learn.lr_find(np.int64(30), np.float32(1e-5), np.float64(10.), show=False,
                       rule=lambda lrs, losses: lrs[3])
    assert type(lr) is float and 1e-5 < lr < 1e-3
    with pytest.raises(ValueError, match='rule'): learn.lr_find(rule='best')
    assert learn.lr_find(30, show=False) is None or True

@pytest.mark.parametrize('max_iter', [10, 37])
def test_more_batches_than_the_loader_has(max_iter):
    f = LRFinder(max_iter, 1e-6, 1e-4)
    run = Runner(data(16), nn.Linear(4, 3))
    run.fit(1, cbs=f)
    assert len(f.losses) == max_iter and run.n_iter == 0

@pytest.mark.slow
def test_a_good_model_gets_a_rate():
    learn = learner()
    learn.fit(40, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        lr = learn.lr_find(show=False)
    assert 1e-5 < lr < 1
