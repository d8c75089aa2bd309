"""Rates and decays that groups have of themselves: kept in proportion in every fit, by Runner and Learner,
found, cycled, resumed, or set by hand."""
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from exp.callbacks import Callback, Runner
from exp.checkpoints import Checkpoint
from exp.core import listify
from exp.dataloader import Dataset, make_data
from exp.learner import Learner
from exp.optimizers import adam_opt, sgd_opt
from exp.progress import Progress
from exp.schedules import LRFinder, get_hyper, set_hyper

def data(n=32):
    g = torch.Generator().manual_seed(0)
    ds = Dataset(torch.randn(n, 4, generator=g), torch.randint(0, 3, (n,), generator=g))
    return make_data(ds, ds, bs=8)

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

def absolute(groups, lr):
    "Rates of 0.1 and 0.5, whatever is asked for."
    ps = [p for g in groups for p in g['params']]
    return torch.optim.SGD([{'params': ps[:2], 'lr': 0.1}, {'params': ps[2:], 'lr': 0.5}], lr=lr)

def relative(groups, lr, make=sgd_opt):
    ps = [p for g in groups for p in g['params']]
    return make([{'params': ps[:2]}, {'params': ps[2:], 'lr': 5*lr}], lr=lr)

class Rates(Callback):
    def before_fit(self): self.seen = []
    def after_step(self): self.seen.append(tuple(float(g['lr']) for g in self.opt.param_groups))

def runner(opt_func, cbs=(), **kw):
    return Runner(data(), net(), opt_func=opt_func, cbs=list(cbs), **{'lr': 0.01, **kw})
def learner(opt_func=adam_opt, cbs=(), **kw):
    return Learner(data(), net(), opt_func=opt_func, cbs=[Progress(False), *listify(cbs)],
                   **{'lr': 0.01, **kw})
KINDS = [runner, learner]

@pytest.mark.parametrize('opt_func, own', ((absolute, (0.1, 0.5)), (relative, (0.01, 0.05)),
                                           (partial(relative, make=adam_opt), (0.01, 0.05))))
@pytest.mark.parametrize('new', KINDS)
def test_each_fit_keeps_the_proportion_of_opt_func(new, opt_func, own):
    run = new(opt_func, [rates := Rates()])
    for lr, factor in ((None, 1.), (None, 1.), (0.02, 2.), (0.01, 1.), (np.float64(0.03), 3.), (None, 1.)):
        run.fit(1, lr)
        assert rates.seen == [pytest.approx([factor*r for r in own], rel=1e-12)]*4
        if factor == 1.: assert rates.seen[0] == own

@pytest.mark.parametrize('new', KINDS)
def test_a_group_that_is_added_later_keeps_its_proportion_too(new):
    run = new(relative)
    run.fit(1)
    run.opt.add_param_group({'params': [nn.Parameter(torch.zeros(2))], 'lr': 0.07})
    for lr, want in ((None, 0.07), (0.02, 0.14), (0.02, 0.14), (None, 0.07)):
        run.fit(0, lr)
        assert get_hyper(run.opt, 'lr')[2] == pytest.approx(want)

@pytest.mark.parametrize('new', KINDS)
def test_an_optimizer_set_by_hand_keeps_its_rates_until_a_fit_is_given_one(new):
    run = new(None)
    ps = list(run.model.parameters())
    run.opt = torch.optim.SGD([{'params': ps[:2], 'lr': 0.1}, {'params': ps[2:], 'lr': 0.5}], lr=1.)
    for lr, want in ((None, [0.1, 0.5]), (None, [0.1, 0.5]), (0.05, [0.01, 0.05]), (0.05, [0.01, 0.05]),
                     (5., [1., 5.])):
        run.fit(0, lr)
        assert get_hyper(run.opt, 'lr') == pytest.approx(want)
    set_hyper(run.opt, 'lr', [0.2, 0.3])
    run.fit(0)
    assert get_hyper(run.opt, 'lr') == [0.2, 0.3]

@pytest.mark.parametrize('opt_func, factor', ((absolute, 5), (relative, 5)))
def test_finder_and_one_cycle_keep_the_proportion(opt_func, factor):
    learn = learner(opt_func, [rates := Rates()])
    learn.fit_one_cycle(1, 0.2, div=10)
    assert all(b == pytest.approx(factor*a) for a, b in rates.seen) and len(set(rates.seen)) == 4
    first = {r for r in rates.seen}
    learn.fit_one_cycle(1, 0.2, div=10)
    assert set(rates.seen) == first
    learn.remove_cbs(rates)
    for run in (learn, runner(opt_func)):
        run.fit(1, cbs=[LRFinder(20), rates])
        assert len(rates.seen) > 10 and all(b == pytest.approx(factor*a) for a, b in rates.seen)

def test_slices_and_the_groups_own_proportion_multiply():
    def tuned(groups, lr):
        return torch.optim.SGD([{**g, 'lr': lr*(3 if g['layer'] else 1)} for g in groups], lr=lr)
    learn = learner(tuned, splitter=lambda m: [m[0], m[2]])
    for _ in range(2):
        learn.fit(1, slice(1e-4, 1e-2))
        assert {(g['layer'], round(g['lr'], 10)) for g in learn.opt.param_groups} == {(0, 1e-4), (1, 3e-2)}
    learn.opt = torch.optim.SGD(learn.param_groups(), lr=1.)
    for _ in range(3):
        learn.fit(1, slice(1e-4, 1e-2))
        assert {(g['layer'], round(g['lr'], 10)) for g in learn.opt.param_groups} == {(0, 1e-4), (1, 1e-2)}

def test_a_resumed_fit_has_the_groups_rates(tmp_path):
    class Break(Callback):
        def before_batch(self):
            if self.n_iter == 6: raise InterruptedError
    ends = []
    for broken in (False, True):
        learn = learner(relative, Checkpoint(tmp_path/'c', every=1))
        learn.fit(1, 0.02)
        if broken:
            with pytest.raises(InterruptedError): learn.fit(2, 0.02, cbs=Break())
            learn = learner(relative, [Checkpoint(tmp_path/'c', every=1)])
        learn.add_cbs(rates := Rates())
        learn.fit(2, 0.02, resume=tmp_path/'c' if broken else None)
        assert set(rates.seen) == {(0.02, 0.1)}
        learn.fit(1, 0.01)
        assert set(rates.seen) == {(0.01, 0.05)}
        ends.append(torch.cat([p.detach().flatten() for p in learn.model.parameters()]))
    assert torch.equal(*ends)

def test_a_rate_that_is_a_tensor_stays_one():
    run = runner(lambda groups, lr: torch.optim.Adam(groups, lr=torch.tensor(float(lr))))
    for lr in (None, 0.02, None): run.fit(1, lr)
    assert (isinstance(run.opt.param_groups[0]['lr'], torch.Tensor)
            and float(run.opt.param_groups[0]['lr']) == pytest.approx(0.01))


# weight decay

def decays(learn):
    return [(all(p.ndim < 2 for p in g['params']), g['weight_decay']) for g in learn.opt.param_groups]

@pytest.mark.parametrize('opt_func',
                         (None, sgd_opt, torch.optim.SGD, torch.optim.AdamW,
                          lambda groups, lr: sgd_opt([p for g in groups for p in g['params']], lr=lr)))
@pytest.mark.parametrize('wd', (0.3, 0, np.float64(0.3), np.float32(0.25)))
def test_a_learners_decay_reaches_all_groups_but_biases(opt_func, wd, tmp_path):
    learn = learner(opt_func, wd=wd, path=tmp_path)
    learn.fit(1)
    assert decays(learn) == [(flat, 0. if flat else pytest.approx(float(wd))) for flat, _ in decays(learn)]
    learn.save('a')
    learn.wd = 0.1
    learn.fit_one_cycle(1)
    assert {d for flat, d in decays(learn) if not flat} == {0.1}
    learn.load('a')

@pytest.mark.parametrize('shape', ((), (3,)))
def test_a_losss_temperature_is_not_decayed(shape):
    t = nn.Parameter(torch.ones(shape))
    def loss(pred, yb): return nn.functional.cross_entropy(pred*t, yb)
    learn = learner(lambda groups, lr: adam_opt([*groups, {'params': [t]}], lr=lr), loss_func=loss, wd=0.1)
    learn.fit(1, wd=0.2)
    assert decays(learn) == [(False, 0.1), (True, 0.), (True, 0.)]

@pytest.mark.slow
@pytest.mark.parametrize('own', (None, 0.1))
@pytest.mark.parametrize('fit', ('fit', 'fit_one_cycle'))
def test_a_fits_decay_is_for_that_fit(fit, own, tmp_path):
    class Decays(Callback):
        def after_step(self): self.seen = decays(self)
    learn = learner(cbs=[seen := Decays(), Checkpoint(tmp_path/'c', every=1)], wd=own)
    for wd, here in ((None, own or 0.), (np.float64(0.4), 0.4), (None, own or 0.), (0, 0.)):
        getattr(learn, fit)(1, wd=wd)
        assert set(seen.seen) == {(False, here), (True, 0.)}
        assert set(decays(learn)) == {(False, own or 0.), (True, 0.)}

def test_decay_alone_shrinks_weights_and_no_biases():
    class NoGrads(Callback):
        def before_step(self):
            for p in self.model.parameters(): p.grad.zero_()
    learn = learner(cbs=NoGrads())
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.fit(1, 0.1, wd=1.)
    for p, b in zip(learn.model.parameters(), before):
        torch.testing.assert_close(p.detach(), b*(0.9**4 if p.ndim > 1 else 1.))

@pytest.mark.parametrize('wd, error', ((-1., ValueError), ('0.1', TypeError), (True, TypeError),
                                       (float('nan'), ValueError)))
def test_a_decay_that_is_none_is_refused(wd, error):
    with pytest.raises(error): learner(wd=wd).fit(1)
    for fit in ('fit', 'fit_one_cycle'):
        with pytest.raises(error): getattr(learner(), fit)(1, wd=wd)

@pytest.mark.parametrize('values', ([np.float32(0.5), np.int64(1)], np.array([0.5, 1.]), (0.5, 1),
                                    torch.tensor([0.5, 1.])))
def test_numbers_of_numpy_become_pythons_where_they_are_set(values):
    opt = relative(net().parameters() and [{'params': list(net().parameters())}], 0.1)
    set_hyper(opt, 'lr', values)
    assert [float(v) for v in get_hyper(opt, 'lr')] == [0.5, 1.]
    if not isinstance(values, torch.Tensor): assert {type(v) for v in get_hyper(opt, 'lr')} == {float}

def test_a_wrong_decay_is_called_so():
    with pytest.raises(TypeError, match='wd'): learner().fit(1, wd='a')
