"""The rate finder plots always, suggests in the valley or before the rise, says when nothing can be said, and
bears any loss."""
import math, warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.callbacks import Callback, Runner, AvgStats, CancelBatchException, Recorder
from exp.core import set_seed
from exp.dataloader import Dataset, make_data, DataLoader
from exp.faults import NanCheck
from exp.learner import Learner
from exp.metrics import accuracy
from exp.progress import Progress
from exp.schedules import (LRFinder, EarlyStopping, ParamScheduler, ReduceLROnPlateau, SaveBest, sched_exp,
                           sched_no)
from test_schedules import OPTS, Seen, Two, network, same, toy, weights

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
    with pytest.warns(UserWarning, match='rate'): assert f.suggestion is None
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
    for bad, error in (('minimum', ValueError), (3, TypeError), (True, TypeError)):
        with pytest.raises(error, match='rule'): f.suggest(bad)

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
    with pytest.warns(UserWarning, match='rate'): assert learn.lr_find(20) is None
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

def test_the_rate_rises_by_one_factor_in_all_groups():
    finder, seen, rec = LRFinder(30, 1e-5, 1e-2), Seen('lr'), Recorder()
    Two(toy(), network()).fit(1, cbs=[finder, seen, rec])
    expected = [sched_exp(1e-5, 1e-2)(i/29) for i in range(30)]
    assert finder.lrs == expected and len(finder.losses) == 30
    # the last batch ends before others see it
    assert [row[0] for row in seen.rows] == [[lr, lr] for lr in expected[:-1]]
    assert rec.lrs == expected[:-1] and rec.losses == pytest.approx(finder.losses[:-1])

@pytest.mark.parametrize('epochs', [1, 3])
def test_it_goes_on_over_epochs_each_in_its_own_order(epochs):
    class Items(Callback):
        def __init__(self): self.seen = []
        def before_batch(self): self.seen.append(list(self.items))
        def before_validate(self): raise AssertionError('a trial should not validate')
    run, cb = Runner(toy(), network()), Items()
    run.fit(1)
    run.fit(epochs, cbs=[LRFinder(15, 1e-6, 1e-5), cb])
    dl, expected = toy().train_dl, []
    for epoch in (1, 2, 3):
        dl.set_epoch(epoch)
        expected += [list(b.items) for b in dl]
    assert cb.seen == expected[:15]
    assert run.epoch == 1 and run.n_iter == 6

def test_it_stops_where_the_smoothed_loss_is_ten_times_its_best_or_nan():
    finder = LRFinder(100, 1e-4, 1e6)
    Runner(toy(), network()).fit(1, cbs=finder)
    assert len(finder.losses) < 100
    class Nan(Callback):
        def after_pred(self):
            if self.iter == 12: self.run.pred = self.pred*math.nan
    run, finder = Runner(toy(), network(), cbs=NanCheck()), LRFinder()
    before = weights(run.model)
    run.fit(1, cbs=[finder, Nan()])
    assert len(finder.losses) == 13 and math.isnan(finder.losses[-1]) and same(before, weights(run.model))

def test_other_callbacks_see_no_epoch_of_a_trial(tmp_path):
    stats, best = AvgStats(accuracy), SaveBest(tmp_path/'best.pth', load_best=True)
    run = Runner(toy(), network(),
                 cbs=[stats, best, EarlyStopping(patience=1), ReduceLROnPlateau(patience=1)])
    run.fit(1, cbs=LRFinder(40))
    assert len(stats.history) == 0 and not (tmp_path/'best.pth').exists()

def test_a_schedule_of_the_rate_does_not_disturb_it():
    finder = LRFinder(20, 1e-5, 1e-1)
    Runner(toy(), network(), cbs=ParamScheduler('lr', sched_no(5., 5.))).fit(1, cbs=finder)
    assert finder.lrs[-1] == 1e-1 and finder.losses[3] < 2

def test_a_batch_that_is_cancelled_is_not_counted():
    class Skip(Callback):
        def before_batch(self):
            if self.iter % 2: raise CancelBatchException
    finder, stats = LRFinder(20, 1e-5, 1e-1), AvgStats()
    run = Runner(toy(), network(), cbs=stats)
    run.fit(1, cbs=[finder, Skip()])
    assert len(finder.losses) == len(finder.lrs) == 10 and run.epoch == 0 and len(stats.history) == 0

def test_the_data_are_the_runners_own_again():
    data = toy()
    run = Runner(data, network())
    run.fit(1, cbs=LRFinder(20))
    assert run.data is data and isinstance(data.train_dl, DataLoader)

@pytest.mark.parametrize('args, kind', [((5,), ValueError), ((10.5,), TypeError), ((20, 0), ValueError),
                                        ((20, -1, 1), ValueError), ((20, 'a', 1), TypeError)])
def test_bad_arguments_of_the_finder_raise(args, kind):
    with pytest.raises(kind): Runner(toy(), network()).fit(1, cbs=LRFinder(*args))

def test_a_fit_of_no_epochs_and_a_suggestion_without_a_run_raise():
    Runner(toy(), network()).fit(0, cbs=(none := LRFinder()))
    with pytest.raises(ValueError, match='tried'): none.suggestion
    for what in ('suggestion', 'steepest'):
        with pytest.raises(ValueError, match='fit'): getattr(LRFinder(), what)
    with pytest.raises(ValueError, match='fit'): LRFinder().plot()

@pytest.mark.parametrize('losses',
                         [[2.3]*40, [2.3 + 0.01*i for i in range(40)], [2.3 - 1e-4*i for i in range(40)]])
def test_no_valley_no_suggestion(losses):
    finder = LRFinder(40)
    finder.losses, finder.lrs = losses, [10**(-6 + i/6) for i in range(40)]
    for what in (lambda: finder.suggestion, lambda: finder.steepest):
        with pytest.warns(UserWarning, match='rate'): assert what() is None
    assert finder.plot().get_xlabel() == 'learning rate'

def test_the_way_back_from_a_leap_is_no_valley():
    finder = LRFinder(40)
    finder.losses, finder.lrs = [2.3]*15 + [9., 6., 4., 3.] + [2.31]*21, [10**(-6 + i/6) for i in range(40)]
    with pytest.warns(UserWarning, match='rate'): assert finder.suggestion is None

def bowl(n=100, bottom=70, width=12.):
    """Losses flat at 2.3, down to 0.8 at `bottom`, and up again; the steepest slope lies `width` before the
    bottom."""
    return [2.3 - 1.5*math.exp(-((i - bottom)/width)**2/2) for i in range(n)]

@pytest.mark.parametrize('bottom', [40, 70, 85])
def test_the_suggestion_lies_in_the_descent_and_not_beyond_where_the_loss_rises(bottom):
    finder = LRFinder()
    finder.losses, finder.lrs = bowl(bottom=bottom), [sched_exp(1e-6, 10)(i/99) for i in range(100)]
    at = finder.lrs.index(finder.suggestion)
    assert bottom - 12 < at <= bottom + 6
    assert abs(finder.lrs.index(finder.steepest) - (bottom - 5)) <= 5   # the mean comes some batches behind
    assert finder.steepest in finder.lrs and finder.steepest <= finder.suggestion*4

def test_the_longest_run_wins_and_losses_may_end_in_nan():
    finder = LRFinder()
    finder.losses = [*bowl()[:90], math.inf, math.nan]
    finder.lrs = [sched_exp(1e-6, 10)(i/99) for i in range(92)]
    whole = finder.suggestion
    assert 55 < finder.lrs.index(whole) < 80
    assert finder.plot() is not None

def test_the_picture_has_both_points_and_labelled_axes():
    finder = LRFinder()
    Runner(toy(200), network(), opt_func=OPTS['momentum']).fit(1, cbs=finder)
    ax = finder.plot()
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert any(l.startswith('suggestion') for l in labels) and any(l.startswith('steepest') for l in labels)
    assert ax.get_xlabel() == 'learning rate' and ax.get_ylabel() == 'loss' and ax.get_xscale() == 'log'
