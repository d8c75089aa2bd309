"""EMA: the averages are those by hand, validation and SaveBest see them, training does not, and whatever
happens the raw weights come back."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.callbacks import Callback, Runner
from exp.core import load_state, set_seed
from exp.dataloader import Dataset, make_data
from exp.checkpoints import Checkpoint
from exp.learner import Learner
from exp.precision import GradAccumulation, MixedPrecision
from exp.progress import Progress
from exp.schedules import EMA, EarlyStopping, LRFinder, SaveBest

def points(n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g)
    return Dataset(x, x[:, :3].argmax(1))

def learner(*cbs, opt_func=None):
    set_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    return Learner(make_data(points(40, 1), points(16, 2), bs=8, seed=3), model, lr=0.05,
                   cbs=[Progress(False), *cbs], opt_func=opt_func)

def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]
def states(learn): return copy.deepcopy(learn.model.state_dict())
def same(a, b): return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))
def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

class Note(Callback):
    "The weights after each real step, and those that validation sees."
    order = 90
    def __init__(self): self.steps, self.seen = [], []
    def after_step(self): self.steps.append(weights(self.run))
    def before_validate(self): self.seen.append(weights(self.run))

def by_hand(steps, decay):
    "Σ decay^age · weights / Σ decay^age."
    shares = [decay**(len(steps) - 1 - i) for i in range(len(steps))]
    return [sum(s*w.double() for s, w in zip(shares, ws))/sum(shares) for ws in zip(*steps)]

@pytest.mark.parametrize('cbs',
                         [(), (lambda: GradAccumulation(16),), (lambda: MixedPrecision(torch.bfloat16),),
                          (lambda: MixedPrecision(init_scale=2.**20, growth_interval=2),)],
                         ids=['plain', 'accumulated', 'bf16', 'fp16 with skipped steps'])
@pytest.mark.parametrize('decay', [0., 0.5, 0.99])
def test_the_average_is_that_of_the_steps_by_hand(decay, cbs):
    note, ema = Note(), EMA(decay)
    learn = learner(ema, note, *(make() for make in cbs))
    learn.fit(2)
    assert ema.n == len(note.steps)
    skipped = sum(cb.skipped for cb in learn.cbs if isinstance(cb, MixedPrecision))
    if skipped: assert 0 < ema.n == 10 - skipped
    order = {id(p): i for i, p in enumerate(p for g in learn.opt.param_groups for p in g['params'])}
    for p, hand in zip(learn.model.parameters(), by_hand(note.steps, decay)):
        torch.testing.assert_close(ema.averages[order[id(p)]].double(), hand, rtol=1e-5, atol=1e-6)
    last = [ema.averages[order[id(p)]] for p in learn.model.parameters()]
    assert same(note.seen[-1], last) and same(weights(learn), note.steps[-1])

@pytest.mark.parametrize('make', [lambda: [], lambda: [GradAccumulation(16)],
                                  lambda: [MixedPrecision(torch.bfloat16)]])
def test_training_is_the_same_to_the_bit(make):
    (raw := learner(*make())).fit(3)
    (averaged := learner(EMA(0.9), *make())).fit(3)
    assert equal(states(raw), states(averaged))
    assert raw.history.column('train_loss') == averaged.history.column('train_loss')
    assert raw.history.column('valid_loss') != averaged.history.column('valid_loss')

class Stop(Callback):
    "Raises in the middle of a validation."
    order = 80
    def __init__(self, error, event):
        self.error = error
        setattr(self, event, self.stop)
    def stop(self):
        if not self.in_train and self.epoch == 1: raise self.error

@pytest.mark.parametrize('event', ['before_validate', 'after_pred', 'after_validate'])
@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_a_validation_that_is_broken_off_leaves_the_raw_weights(error, event):
    note = Note()
    learn = learner(EMA(0.9), note)
    with pytest.raises(error): learn.fit(3, cbs=Stop(error, event))
    assert same(weights(learn), note.steps[-1])

def test_save_best_writes_the_averages_and_puts_them_back(tmp_path):
    class Seen(Callback):
        order = 10
        def after_validate(self): self.state = states(self.run)
    seen = Seen()
    learn = learner(EMA(0.9), SaveBest(tmp_path/'best.pth', 'train_loss'), seen)
    learn.fit(1)
    assert equal(load_state(tmp_path/'best.pth'), seen.state) and not equal(states(learn), seen.state)
    learn = learner(EMA(0.9, load_average=True), SaveBest(tmp_path/'best.pth', load_best=True),
                    EarlyStopping(patience=1))
    learn.fit(5)
    assert equal(states(learn), load_state(tmp_path/'best.pth'))

def test_the_averages_can_be_left_in_the_model():
    ema = EMA(0.9, load_average=True)
    learn = learner(ema)
    learn.fit(3)
    assert learn.validate()['loss'] == pytest.approx(learn.history[-1]['valid_loss'], rel=1e-6)

@pytest.mark.slow
@pytest.mark.parametrize('at', [3, 7, 10, 12])
def test_a_resumed_fit_is_the_unbroken_one_to_the_bit(at, tmp_path):
    class Break(Callback):
        def after_batch(self):
            if self.in_train and self.n_iter == at: raise InterruptedError
    def run(*cbs, **kwargs):
        ema = EMA(0.9)
        learn = learner(ema)
        try: learn.fit(3, cbs=[Checkpoint(tmp_path/'fit.ckpt', every=1), *cbs], **kwargs)
        except InterruptedError: pass
        return learn, ema
    whole, first = run()
    (tmp_path/'fit.ckpt').unlink()
    run(Break())
    again, second = run(resume=True)
    assert (equal(states(whole), states(again)) and second.n == first.n
            and same(first.averages, second.averages))
    assert whole.history.column('valid_loss') == again.history.column('valid_loss')

def test_a_state_is_loaded_before_a_fit_too_and_each_fit_begins_anew():
    first = EMA(0.9)
    learner(first).fit(1)
    second = EMA(0.9)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    learn = learner(second)
    learn.fit(1)
    assert second.n == 10
    learn.fit(1)
    assert second.n == 5

def test_a_trial_changes_nothing():
    learns = []
    for trial in (False, True):
        ema = EMA(0.9)
        learn = learner(ema)
        learn.fit(1)
        n, averages = ema.n, [a.clone() for a in ema.averages]
        if trial:
            learn.lr_find(30, show=False)
            Runner.fit(learn, 1, None, LRFinder(30))
            assert ema.n == n and same(averages, ema.averages)
        learn.fit(1)
        learns.append((states(learn), ema.averages))
    assert equal(learns[0][0], learns[1][0]) and same(learns[0][1], learns[1][1])

def test_averages_of_halves_are_kept_in_float32():
    ema = EMA(0.999)
    model = nn.Linear(4, 3).bfloat16()
    ds = Dataset(torch.randn(400, 4).bfloat16(), torch.randint(3, (400,)))
    Runner(make_data(ds, ds, bs=4), model, loss_func=lambda p, y: F.cross_entropy(p.float(), y), lr=0.5,
           cbs=ema).fit(1)
    assert all(a.dtype == torch.float32 for a in ema.averages) and model.weight.dtype == torch.bfloat16

def test_frozen_parameters_stay_exactly_what_they_are():
    ema = EMA(0.9)
    learn = learner(ema)
    learn.model[0].requires_grad_(False)
    learn.fit(2)
    assert any(torch.equal(a, learn.model[0].weight) for a in ema.averages if a.shape == (8, 4))

@pytest.mark.parametrize('make', [lambda **kw: EarlyStopping(patience=3, **kw),
                                  lambda **kw: SaveBest('unused.pth', **kw)],
                         ids=['EarlyStopping', 'SaveBest'])
def test_reset_on_fit_false_lets_several_fits_count_as_one(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for reset in (True, False):
        cb = make(reset_on_fit=reset)
        learn = learner(cb)
        learn.fit(2)
        cb.best, cb.best_epoch, cb.bad = -1., 0, 1   # nothing is better
        learn.fit(1)
        assert (cb.best == -1. and cb.bad == 2) != reset

@pytest.mark.parametrize('decay', [-0.1, 1, 1.5, float('nan')])
def test_a_decay_that_makes_no_sense_is_refused(decay):
    with pytest.raises(ValueError, match='decay'): EMA(decay)

def test_two_averages_in_one_fit_are_refused():
    with pytest.raises(ValueError, match='EMA'): learner(EMA(0.9), EMA(0.5)).fit(1)
