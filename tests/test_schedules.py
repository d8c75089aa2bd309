"""Schedules, hyper-parameters by name, and the callbacks that watch a number."""
import copy, math

import numpy as np
import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st
from torch import nn

from exp.callbacks import AvgStats, Callback, CancelFitException, Runner
from exp.core import load_state, save_state
from exp.dataloader import DataBunch, DataLoader, Dataset
from exp.metrics import accuracy
from exp.schedules import (EarlyStopping, LRFinder, ParamScheduler, ReduceLROnPlateau, SaveBest, Tracker,
                           combine_scheds, cos_1cycle, get_hyper, sched_cos, sched_exp, sched_lin, sched_no,
                           set_hyper)

numbers = st.floats(1e-6, 1e3)
unit = st.floats(0, 1)

def toy(n=48, bs=8, valid=True, seed=1):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=g)
    y = (x[:, 0] + x[:, 1]*x[:, 2] > 0).long()
    train = DataLoader(Dataset(x, y), bs, shuffle=True, seed=seed)
    return DataBunch(train, DataLoader(Dataset(x, y), 2*bs) if valid else None)

def network():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
OPTS = dict(sgd=torch.optim.SGD, momentum=lambda g, lr: torch.optim.SGD(g, lr=lr, momentum=0.9),
            adam=torch.optim.Adam,
            amsgrad=lambda g, lr: torch.optim.AdamW(g, lr=lr, amsgrad=True),
            rmsprop=lambda g, lr: torch.optim.RMSprop(g, lr=lr, momentum=0.5, centered=True))
def weights(model): return {k: v.clone() for k, v in model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

# ---- schedules
@given(start=numbers, end=numbers)
def test_every_annealer_meets_its_ends_exactly(start, end):
    for make in (sched_lin, sched_cos, sched_exp):
        assert make(start, end)(0) == start and make(start, end)(1) == end
    assert sched_no(start, end)(0) == sched_no(start, end)(1) == start

@given(start=numbers, end=numbers, pos=unit)
def test_an_annealer_stays_between_its_ends(start, end, pos):
    low, high = sorted((start, end))
    for make in (sched_lin, sched_cos, sched_exp, sched_no):
        assert low*(1 - 1e-12) <= make(start, end)(pos) <= high*(1 + 1e-12)

@given(pos=unit)
def test_annealers_follow_their_formulas(pos):
    assert math.isclose(sched_lin(2, 5)(pos), 2 + 3*pos, rel_tol=1e-12)
    assert math.isclose(sched_cos(2, 5)(pos), 2 + 1.5*(1 - math.cos(math.pi*pos)), rel_tol=1e-12)
    assert math.isclose(sched_exp(2, 5)(pos), 2*2.5**pos, rel_tol=1e-12)

def test_an_exponential_needs_positive_ends():
    for ends in ((0, 1), (1, 0), (-1, 1)):
        with pytest.raises(ValueError, match='more'): sched_exp(*ends)

@given(weights=st.lists(st.integers(1, 100), min_size=1, max_size=8), pos=unit)
def test_combined_schedules_are_each_run_through_in_turn(weights, pos):
    fractions = [w/sum(weights) for w in weights]
    # continuous: i at the i-th border
    both = combine_scheds(fractions, [sched_lin(i, i + 1) for i in range(len(weights))])
    assert both(0) == 0 and both(1) == len(weights)
    i = next((i for i in range(len(weights)) if pos < sum(fractions[:i + 1])), len(weights) - 1)
    assert math.isclose(both(pos), i + (pos - sum(fractions[:i]))/fractions[i], abs_tol=1e-9)

def test_a_border_belongs_to_the_later_schedule():
    step = combine_scheds([0.5, 0.5], [sched_no(1, 1), sched_no(2, 2)])
    assert [step(p) for p in (0, 0.49, 0.5, 1)] == [1, 1, 2, 2]

@pytest.mark.parametrize('fractions', [[0.3, 0.6], [0.3, 0.8], [1.], [0.2, 0.3, 0.5], [0., 1.], [-0.5, 1.5],
                                       [math.nan, 1.], []])
def test_bad_fractions_raise(fractions):
    with pytest.raises(ValueError, match='fractions'):
        combine_scheds(fractions, [sched_lin(0, 1), sched_lin(1, 0)])

def test_a_peak_that_lies_at_an_end_raises():
    for pct in (0, 1, -0.1, 1.2, math.nan):
        with pytest.raises(ValueError, match='fractions'): cos_1cycle(1, 2, 3, pct)

def test_tenths_count_as_one_although_their_float_sum_is_less():
    assert combine_scheds([0.1]*10, [sched_no(i, i) for i in range(10)])(1) == 9

@hypothesis_settings(max_examples=25, deadline=None)
@given(total=st.integers(10, 200), pct=st.floats(0.15, 0.85), high=st.floats(1e-3, 3), div=st.floats(2, 50),
       final=st.floats(2, 1e4))
def test_cos_1cycle_is_torchs_one_cycle(total, pct, high, div, final):
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1., momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(opt, high, total_steps=total, pct_start=pct, div_factor=div,
                                                 final_div_factor=final)
    # PyTorch counts in steps: the last is step total − 1, the peak lies at pct·total − 1
    peak = (pct*total - 1)/(total - 1)
    lr, mom = cos_1cycle(high/div, high, high/div/final, peak), cos_1cycle(0.95, 0.85, 0.95, peak)
    for step in range(total):
        pos = step/(total - 1)
        assert math.isclose(get_hyper(opt, 'lr')[0], lr(pos), rel_tol=1e-9, abs_tol=1e-12)
        assert math.isclose(get_hyper(opt, 'mom')[0], mom(pos), rel_tol=1e-9)
        opt.step()
        if step < total - 1: theirs.step()

# ---- hyper-parameters
def one(make, **kwargs): return make([nn.Parameter(torch.zeros(2))], lr=0.1, **kwargs)

@pytest.mark.parametrize('make, key, name, place', [
    (torch.optim.SGD, 'momentum', 'mom', None), (torch.optim.SGD, 'weight_decay', 'wd', None),
    (torch.optim.Adam, 'betas', 'mom', 0),
    (torch.optim.AdamW, 'betas', 'sqr_mom', 1), (torch.optim.Adam, 'eps', 'eps', None),
    (torch.optim.RMSprop, 'alpha', 'sqr_mom', None),
    (torch.optim.RMSprop, 'momentum', 'mom', None), (torch.optim.NAdam, 'betas', 'mom', 0),
    (torch.optim.Adamax, 'betas', 'sqr_mom', 1),
    (torch.optim.Adadelta, 'eps', 'eps', None), (torch.optim.Adagrad, 'lr', 'lr', None)])
def test_our_names_reach_pytorchs_keys(make, key, name, place):
    opt = one(make)
    before = copy.deepcopy({k: v for k, v in opt.param_groups[0].items() if k != 'params'})
    set_hyper(opt, name, 0.25)
    assert get_hyper(opt, name) == [0.25]
    group = opt.param_groups[0]
    assert (group[key] if place is None else group[key][place]) == 0.25
    after = {k: v for k, v in group.items() if k != 'params'}
    if place is not None: assert len(after[key]) == 2 and after[key][1 - place] == before[key][1 - place]
    before.pop(key), after.pop(key)
    assert before == after

@pytest.mark.parametrize('make, name, there', [
    (torch.optim.SGD, 'eps', 'lr, mom, wd'), (torch.optim.SGD, 'sqr_mom', 'lr, mom, wd'),
    (torch.optim.Adagrad, 'mom', 'lr, eps, wd'),
    (torch.optim.ASGD, 'mom', 'lr, '), (torch.optim.Rprop, 'wd', 'lr')])
def test_what_an_optimizer_has_not_raises_and_says_what_it_has(make, name, there):
    for f in (lambda: get_hyper(one(make), name), lambda: set_hyper(one(make), name, 0.1)):
        with pytest.raises(ValueError, match=there): f()

@pytest.mark.parametrize('name', ['momentum', 'weight_decay', 'betas', 'ls', 'sqr_mo', 'learning_rate'])
def test_an_unknown_name_raises_with_those_that_there_are(name):
    with pytest.raises(ValueError, match='sqr_mom'):
        get_hyper(one(torch.optim.SGD), name)

def groups():
    return [{'params': [nn.Parameter(torch.zeros(1))]}, {'params': [nn.Parameter(torch.zeros(1))], 'lr': 0.5}]

def test_one_number_serves_all_groups_and_a_list_each():
    opt = torch.optim.Adam(groups(), lr=0.1)
    assert get_hyper(opt, 'lr') == [0.1, 0.5]
    set_hyper(opt, 'lr', 0.2)
    assert get_hyper(opt, 'lr') == [0.2, 0.2]
    set_hyper(opt, 'mom', [0.8, 0.7])
    assert get_hyper(opt, 'mom') == [0.8, 0.7]
    set_hyper(opt, 'sqr_mom', np.array([0.9, 0.99]))
    assert get_hyper(opt, 'sqr_mom') == [0.9, 0.99]
    for wrong in ([0.1], [0.1, 0.2, 0.3], []):
        with pytest.raises(ValueError, match='groups'): set_hyper(opt, 'lr', wrong)

@pytest.mark.parametrize('name, value, kind', [('lr', -0.1, ValueError), ('lr', math.nan, ValueError),
                                               ('lr', math.inf, ValueError), ('lr', 'big', TypeError),
                                               ('lr', None, TypeError), ('lr', True, TypeError),
                                               ('mom', 1., ValueError), ('sqr_mom', 1.2, ValueError)])
def test_a_bad_value_raises_and_changes_nothing(name, value, kind):
    opt = torch.optim.Adam(groups(), lr=0.1)
    before = get_hyper(opt, name)
    with pytest.raises(kind, match=name): set_hyper(opt, name, [before[0]/2, value])
    assert get_hyper(opt, name) == before

def test_a_rate_that_is_a_tensor_stays_one_and_groups_do_not_share_it():
    opt = torch.optim.Adam([{'params': g['params']} for g in groups()], lr=torch.tensor(0.1), capturable=True)
    set_hyper(opt, 'lr', [0.25, 0.5])
    assert ([type(v) for v in get_hyper(opt, 'lr')] == [torch.Tensor]*2
            and [float(v) for v in get_hyper(opt, 'lr')] == [0.25, 0.5])
    set_hyper(opt, 'lr', get_hyper(opt, 'lr'))
    assert [float(v) for v in get_hyper(opt, 'lr')] == [0.25, 0.5]

# ---- ParamScheduler
class Seen(Callback):
    order = 30
    def __init__(self, *names): self.names, self.rows = names, []
    def after_loss(self):
        if self.in_train: self.rows.append([get_hyper(self.opt, n) for n in self.names])

class Two(Runner):
    def param_groups(self):
        return [{'params': list(self.model[0].parameters())}, {'params': list(self.model[4].parameters())}]

def test_each_batch_has_its_value_and_the_fit_leaves_the_old_one():
    seen = Seen('lr', 'mom', 'sqr_mom')
    run = Runner(toy(), network(), opt_func=torch.optim.Adam)
    run.fit(3, lr=0.01, cbs=[ParamScheduler('lr', sched_cos(0.1, 0.)),
                             ParamScheduler('mom', sched_lin(0.95, 0.85)), seen])
    for i, (lr, mom, sqr_mom) in enumerate(seen.rows):
        assert (lr == [pytest.approx(sched_cos(0.1, 0.)(i/18))]
                and mom == [pytest.approx(sched_lin(0.95, 0.85)(i/18))] and sqr_mom == [0.999])
    assert len(seen.rows) == 18   # the last at 17/18
    assert get_hyper(run.opt, 'lr') == [0.01] and get_hyper(run.opt, 'mom') == [0.9]

def test_a_list_schedules_each_group_and_must_fit_them():
    seen = Seen('lr')
    Two(toy(), network()).fit(1, cbs=[ParamScheduler('lr', [sched_lin(0., 1.), sched_no(2., 2.)]), seen])
    assert [row[0] for row in seen.rows] == [[pytest.approx(i/6), 2.] for i in range(6)]
    with pytest.raises(ValueError, match='groups'):
        Two(toy(), network()).fit(1, cbs=ParamScheduler('lr', [sched_no(1, 1)]*3))

@pytest.mark.parametrize('name, sched, match', [('sqr_mom', sched_no(0.9, 0.9), 'sqr_mom'),
                                                ('momentum', sched_no(1, 1), "'mom'"),
                                                ('lr', sched_lin(0.1, -0.1), 'lr'),
                                                ('mom', sched_lin(1.5, 0.5), 'mom')])
def test_what_cannot_work_raises_before_any_training_and_changes_nothing(name, sched, match):
    run, seen = Runner(toy(), network()), Seen('lr')
    with pytest.raises(ValueError, match=match): run.fit(1, cbs=[ParamScheduler(name, sched), seen])
    assert not seen.rows and run.n_iter == 0
    assert get_hyper(run.opt, 'lr') == [0.01] and get_hyper(run.opt, 'mom') == [0]

class Boom(Callback):
    def __init__(self, at, error=RuntimeError): self.at, self.error, self.n = at, error, 0
    def after_backward(self):
        self.n += 1
        if self.n == self.at: raise self.error('boom')

@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_after_an_error_the_hyper_parameter_is_what_it_was(error):
    run = Runner(toy(), network(), opt_func=OPTS['momentum'])
    with pytest.raises(error): run.fit(1, cbs=[ParamScheduler('mom', sched_lin(0.5, 0.6)), Boom(3, error)])
    assert get_hyper(run.opt, 'mom') == [0.9]

def test_a_scheduler_that_resumes_knows_what_was_before():
    run, sched = Runner(toy(), network(),
                        opt_func=OPTS['momentum']), ParamScheduler('mom', sched_lin(0.5, 0.6))
    class Keep(Callback):
        def after_epoch(self): self.state = sched.state_dict()
    keep = Keep()
    run.fit(1, cbs=[sched, keep])
    set_hyper(run.opt, 'mom', 0.55)   # as a checkpoint from the middle has it
    again = ParamScheduler('mom', sched_lin(0.5, 0.6))
    again.load_state_dict(keep.state)
    run.fit(1, cbs=again)
    assert get_hyper(run.opt, 'mom') == [0.9]

# ---- watching a number
class Script:
    "A metric that says what it was told, epoch by epoch."
    name = 'score'
    def __init__(self, values): self.values, self.n = values, -1
    def reset(self): self.n += 1
    def update(self, pred, yb): pass
    def compute(self): return torch.tensor(self.values[self.n], dtype=torch.float64)

def scripted(values, cb, epochs=None, lr=0.1, **kwargs):
    "A run whose valid_score takes these `values`; (history, rates of the epochs)."
    class Rates(Callback):
        def __init__(self): self.rates = []
        def after_train(self): self.rates += get_hyper(self.opt, 'lr')
    run = Runner(toy(), network(), cbs=[AvgStats(Script(values)), rates := Rates(), cb], **kwargs)
    run.fit(len(values) if epochs is None else epochs, lr=lr)
    return run, rates.rates

@pytest.mark.slow
@pytest.mark.parametrize('values, patience, min_delta, mode, epochs', [
    ([5, 4, 3, 2, 1], 1, 0, 'min', 5), ([5, 4, 4, 2, 1], 1, 0, 'min', 3), ([5, 4, 4, 4, 1], 3, 0, 'min', 5),
    ([5, 4, 4, 4, 4, 1], 3, 0, 'min', 5),
    ([1, 2, 3, 2, 2], 2, 0, 'max', 5), ([1, 2, 3, 2, 2, 9], 2, 0, 'max', 5),
    ([5, 4.9, 4.8, 4.7, 4.6], 3, 0.25, 'min', 5), ([5, 4.9, 4.8, 4.7], 2, 0.35, 'min', 3),
    ([1, math.nan, math.nan, 9], 2, 0, 'max', 3), ([math.nan, math.nan, 1], 2, 0, 'min', 2)])
def test_early_stopping_counts_epochs_without_improvement(values, patience, min_delta, mode, epochs):
    stop = EarlyStopping('valid_score', min_delta, patience, mode)
    run, _ = scripted(values, stop)
    assert len(run.avg_stats.history) == epochs == run.epoch

@pytest.mark.slow
@hypothesis_settings(max_examples=15, deadline=None)
@given(values=st.lists(st.floats(0, 10), min_size=1, max_size=12), patience=st.integers(1, 3),
       min_delta=st.sampled_from([0., 0.5]), mode=st.sampled_from(['min', 'max']))
def test_reduce_on_plateau_is_torchs_with_one_epoch_less_patience(values, patience, min_delta, mode):
    cb = ReduceLROnPlateau('valid_score', min_delta, patience, mode, factor=0.5, min_lr=0.01)
    _, rates = scripted(values, cb)
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs, expected = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, mode, 0.5, patience - 1, min_delta,
                                                                  'abs', min_lr=0.01), []
    for v in values:
        expected.append(opt.param_groups[0]['lr'])
        theirs.step(v)
    assert rates == pytest.approx(expected)

def test_a_rate_below_the_floor_is_not_raised_to_it():
    _, rates = scripted([1, 1, 1, 1], ReduceLROnPlateau('valid_score', patience=1, mode='min', min_lr=0.5),
                        lr=0.1)
    assert rates == [0.1]*4

def test_each_group_keeps_its_ratio():
    run = Two(toy(), network(),
              cbs=[AvgStats(Script([1, 1, 1])), ReduceLROnPlateau('valid_score', patience=1, mode='min')])
    run.fit(1)
    class Rates(Callback):
        def before_train(self): set_hyper(self.opt, 'lr', [0.5, 0.05]) if self.epoch == 1 else None
    run.avg_stats.metrics['valid']['score'].n = -1
    run.fit(2, cbs=Rates())
    assert get_hyper(run.opt, 'lr') == pytest.approx([0.05, 0.005])

def test_reduce_on_plateau_refuses_a_schedule_beside_it():
    run = Runner(toy(), network(),
                 cbs=[AvgStats(), ReduceLROnPlateau(), ParamScheduler('lr', sched_no(0.1, 0.1))])
    with pytest.raises(ValueError, match='undo'): run.fit(1)
    assert run.n_iter == 0

@pytest.mark.parametrize('name, mode',
                         [('valid_loss', 'min'), ('train_loss', 'min'), ('valid_accuracy', 'max'),
                          ('valid_error_rate', 'min'), ('valid_f1', 'max'),
                          ('valid_top5_accuracy', 'max'), ('valid_mean_iou', 'max'),
                          ('valid_perplexity', 'min')])
def test_the_mode_is_inferred_from_the_name(name, mode):
    assert EarlyStopping(name).mode == mode and EarlyStopping(name, mode='max').mode == 'max'

@pytest.mark.parametrize('make',
                         [EarlyStopping, lambda *a, **k: SaveBest('best.pth', *a, **k), ReduceLROnPlateau])
def test_bad_arguments_of_the_trackers_raise(make):
    with pytest.raises(ValueError, match='mode'): make(mode='up')
    with pytest.raises(ValueError, match='min_delta'): make(min_delta=-1)
    with pytest.raises(AttributeError): make(3)

@pytest.mark.parametrize('make', [EarlyStopping, lambda *a: SaveBest('best.pth', *a), ReduceLROnPlateau])
def test_a_mode_that_the_name_does_not_tell_is_asked_for_before_training(make):
    for name in ('beauty', 'loss_of_accuracy'):
        metric = Script([1.])
        metric.name = name
        run = Runner(toy(), network(), cbs=AvgStats(metric))
        with pytest.raises(ValueError, match='tell'): run.fit(1, cbs=make(f'valid_{name}'))
        assert run.n_iter == 0

def test_bad_patience_raises():
    for make in (EarlyStopping, ReduceLROnPlateau):
        with pytest.raises(ValueError, match='patience'): make(patience=0)
        for wrong in (1.5, True, '3'):
            with pytest.raises(TypeError, match='patience'): make(patience=wrong)

@pytest.mark.parametrize('make', [EarlyStopping, lambda *a: SaveBest('best.pth', *a), ReduceLROnPlateau])
def test_without_avg_stats_or_its_column_a_fit_raises_before_it_trains(make):
    run = Runner(toy(), network())
    with pytest.raises(ValueError, match='AvgStats'): run.fit(1, cbs=make())
    run.add_cbs(AvgStats(accuracy))
    with pytest.raises(ValueError, match='valid_accuracy'):
        run.fit(1, cbs=make('valid_acuracy'))
    run.data = toy(valid=False)
    with pytest.raises(ValueError, match='train_accuracy'): run.fit(1, cbs=make())
    assert run.n_iter == 0

class Weigh(Callback):
    order = 70
    def __init__(self): self.states = []
    def after_epoch(self):
        if self.over == 'epoch': self.states.append(weights(self.model))

def test_save_best_keeps_the_best_epochs_weights(tmp_path):
    path, weigh = tmp_path/'deep'/'best.pth', Weigh()
    run = Runner(toy(), network(), cbs=[AvgStats(Script([1, 3, 2, 3, 0])), weigh,
                                        best := SaveBest(path, 'valid_score', mode='max')])
    run.fit(5)
    assert same(load_state(path), weigh.states[1]) and (best.best, best.best_epoch) == (3, 1)
    assert same(weights(run.model), weigh.states[4])
    assert [p.name for p in path.parent.iterdir()] == ['best.pth']

@pytest.mark.parametrize('error', [None, RuntimeError, KeyboardInterrupt])
def test_save_best_loads_the_best_weights_back_whatever_ends_the_fit(tmp_path, error):
    weigh = Weigh()
    run = Runner(toy(), network(),
                 cbs=[AvgStats(Script([3, 1, 2, 2])), weigh,
                      SaveBest(tmp_path/'best.pth', 'valid_score', mode='min', load_best=True)])
    if error is None: run.fit(4)
    else:
        with pytest.raises(error): run.fit(4, cbs=Boom(20, error))
    assert same(weights(run.model), weigh.states[1])

def test_a_save_that_fails_leaves_the_older_file_whole(tmp_path, monkeypatch):
    path, weigh = tmp_path/'best.pth', Weigh()
    real, n = torch.save, [0]
    def save(state, f, *args, **kwargs):
        n[0] += 1
        if n[0] == 2:
            with open(f, 'wb') as out: out.write(b'half of it')
            raise OSError('no space left on device')
        return real(state, f, *args, **kwargs)
    monkeypatch.setattr(torch, 'save', save)
    run = Runner(toy(), network(),
                 cbs=[AvgStats(Script([3, 2, 1])), weigh, SaveBest(path, 'valid_score', mode='min')])
    with pytest.raises(OSError, match='space'): run.fit(3)
    assert same(load_state(path), weigh.states[0]) and [p.name for p in tmp_path.iterdir()] == ['best.pth']

def test_an_epoch_that_is_broken_off_counts_for_nothing(tmp_path):
    run = Runner(toy(), network(), cbs=[AvgStats(Script([3, 2, 1])),
                                        best := SaveBest(tmp_path/'best.pth', 'valid_score', mode='min')])
    class Stop(Callback):
        def before_batch(self):
            if self.epoch == 1: raise CancelFitException
    run.fit(3, cbs=Stop())
    assert (best.best, best.best_epoch, best.bad) == (3, 0, 0)

def test_a_fit_begins_anew():
    stop = EarlyStopping('valid_score', patience=2, mode='min')
    run = Runner(toy(), network(), cbs=[AvgStats(Script([1, 2, 2, 5, 4, 3])), stop])
    run.fit(6)
    assert run.epoch == 3
    run.fit(3)
    assert run.epoch == 6 and stop.best == 3

@pytest.mark.slow
@pytest.mark.parametrize('when', ['before', 'within'])
def test_a_resumed_training_goes_on_counting(when, tmp_path):
    values, kwargs = [5, 4, 4.5, 4.2, 4.1, 3, 2], dict(monitor='valid_score', mode='min')
    makes = [lambda: EarlyStopping(patience=3, **kwargs),
             lambda: ReduceLROnPlateau(patience=2, factor=0.5, **kwargs),
             lambda: SaveBest(tmp_path/'best.pth', load_best=True, **kwargs)]
    for make in makes:
        whole, rates = scripted(values, make())
        first = make()
        half, _ = scripted(values[:3], first)
        save_state(tmp_path/'state.pth', first.state_dict())
        second, state = make(), load_state(tmp_path/'state.pth')
        class Load(Callback):
            order = 80 if when == 'within' else -50
            def before_fit(self): second.load_state_dict(state) if when == 'within' else None
        if when == 'before': second.load_state_dict(state)
        run = Runner(toy(), network(), cbs=[AvgStats(Script(values[3:])), Load(), second])
        run.epoch = 3
        lrs = []
        class Rates(Callback):
            def after_train(self): lrs.extend(get_hyper(self.opt, 'lr'))
        run.fit(4, lr=0.1, cbs=Rates())
        assert run.epoch == whole.epoch and lrs == pytest.approx(rates[3:])
        expected = next(cb for cb in whole.cbs if type(cb) is type(second))
        assert ((second.best, second.best_epoch,
                 second.bad) == (expected.best, expected.best_epoch, expected.bad))
        assert not second._loaded

def test_a_tracker_says_when_its_number_is_better_and_when_its_patience_ends():
    class Notes(Tracker):
        notes = []
        def improved(self): self.notes.append(('better', self.epoch))
        def waited(self): self.notes.append(('waited', self.epoch))
    cb = Notes('valid_score', min_delta=0.1, patience=2, mode='min')
    scripted([5., 4.95, 4.8, 4.9, 4.9, 4.9, 1.], cb)
    assert ([what for what, _ in cb.notes] == ['better', 'better', 'waited', 'waited', 'better']
            and [n - cb.notes[0][1] for _, n in cb.notes] == [0, 2, 4, 5, 6] and cb.best == 1.)

def test_trackers_show_what_they_watch():
    assert repr(EarlyStopping()) == "EarlyStopping('valid_loss', mode='min')"
    assert (repr(ParamScheduler('lr', sched_no(1, 1))) == "ParamScheduler('lr')"
            and repr(LRFinder()) == 'LRFinder(100, 1e-06, 10)')
