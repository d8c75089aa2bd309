"""Lesson 19's callbacks: mixed precision to the bit PyTorch's own loop, accumulation the large batch,
compiled and channels-last models the same model; and what they leave behind."""
import copy, math, os, pickle, subprocess, sys, warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from exp.callbacks import (Callback, CancelBatchException, CancelEpochException, CancelFitException,
                           CancelStepException, Recorder, Runner)
from exp.faults import NanCheck
from exp.core import listify
from exp.dataloader import DataLoader, Dataset, make_data
from exp.hooks import ActivationStats
from exp.checkpoints import Checkpoint, CheckpointError
from exp.learner import Learner
from exp.inference import load_learner
from exp.losses import CrossEntropy
from exp.metrics import accuracy
from exp.optimizers import adam_opt, lamb_opt, sgd_opt
from exp.precision import ChannelsLast, Compile, GradAccumulation, MixedPrecision
from exp.progress import Progress
from exp.regularization import clip_grads, grad_norm
from exp.schedules import ParamScheduler, cos_1cycle

HALVES = torch.float16, torch.bfloat16


# ---------------------------------------------------------------- what the tests are made of

def points(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=g)
    return x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long()

def bunch(n=40, bs=8, **kw):
    return make_data(Dataset(*points(n)), Dataset(*points(20, 1)), bs=bs, seed=3, **kw)

def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))

def plain_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))

def conv_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Conv2d(8, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 3))

def images(n=24, bs=8):
    g = torch.Generator().manual_seed(0)
    ds = Dataset(torch.randn(n, 3, 6, 7, generator=g), torch.randint(0, 3, (n,), generator=g))
    return make_data(ds, ds, bs=bs)

def learner(data=None, model=None, cbs=None, **kw):
    return Learner(bunch() if data is None else data, network() if model is None else model,
                   **{'lr': 0.01, 'metrics': accuracy, **kw}, cbs=[Progress(False), *listify(cbs)])

def weights(model): return torch.cat([t.flatten().double() for t in model.state_dict().values()])
def same(a, b): return torch.equal(weights(a), weights(b))
def mp(learn): return next(cb for cb in learn.cbs if isinstance(cb, MixedPrecision))

PARTS = 'get_pred', 'get_loss', 'backward', 'step', 'zero_grad'
def untouched(run): return not any(part in vars(run) for part in PARTS)

class Raises(Callback):
    "Raises at an event of one training batch."
    def __init__(self, event, error, at=2):
        self.error, self.at = error, at
        setattr(self, event, self._maybe)
    def _maybe(self):
        if self.in_train and self.n_iter == self.at: raise self.error

class Notes(Callback):
    "The types that a batch meets."
    def before_fit(self): self.inside, self.preds = set(), set()
    def before_batch(self):
        self._hook = self.model[0].register_forward_hook(lambda m, i, o: self.inside.add(o.dtype))
    def after_pred(self): self.preds.add(self.pred.dtype)
    def after_batch(self): self._hook.remove()


# ------------ MixedPrecision: the same training as PyTorch's loop

def bare(model, data, opt, dtype, epochs, *, scaler=None, max_norm=None, static=None):
    "The loop of PyTorch's documentation."
    losses = []
    for epoch in range(epochs):
        data.train_dl.set_epoch(epoch)
        model.train()
        for xb, yb in data.train_dl:
            with torch.autocast('cpu', dtype=dtype): loss = F.cross_entropy(model(xb), yb)
            if scaler is None:
                loss.backward()
                if max_norm: clip_grads(model.parameters(), max_norm)
                opt.step()
            else:
                scaler.scale(loss).backward()
                scaler.unscale_(opt)
                if max_norm: clip_grads(model.parameters(), max_norm)
                scaler.step(opt)
                scaler.update(static)
            opt.zero_grad()
            losses.append(loss.item())
    return losses

class Clip(Callback):
    def __init__(self, max_norm): self.max_norm = max_norm
    def after_backward(self): clip_grads(self.model.parameters(), self.max_norm)

@pytest.mark.slow
@pytest.mark.parametrize('opt_func',
                         [partial(torch.optim.SGD, momentum=0.9), torch.optim.AdamW, adam_opt, lamb_opt])
@pytest.mark.parametrize('max_norm', [None, 0.3])
@pytest.mark.parametrize('init_scale', [2.**16, 2.**40])
def test_fp16_is_to_the_bit_the_loop_with_autocast_and_a_grad_scaler_over_many_steps(opt_func, max_norm,
                                                                                     init_scale):
    data, theirs, ours = bunch(n=80), network(), network()
    scaler = torch.amp.GradScaler('cpu', init_scale=init_scale, growth_interval=7)
    torch.manual_seed(1)
    losses = bare(theirs, data, opt_func([{'params': list(theirs.parameters())}], lr=0.01), torch.float16, 6,
                  scaler=scaler, max_norm=max_norm)
    cb, recorder = MixedPrecision(init_scale=init_scale, growth_interval=7), Recorder()
    run = Runner((data.train_dl, None), ours, loss_func=F.cross_entropy, opt_func=opt_func, lr=0.01,
                 cbs=[cb, recorder, *([Clip(max_norm)] if max_norm else [])])
    torch.manual_seed(1)
    run.fit(6)
    assert same(theirs, ours) and recorder.losses == losses and cb.scale == scaler.get_scale()
    assert (cb.skipped > 15) == (init_scale > 2**20) and untouched(run)

def test_bf16_is_to_the_bit_the_loop_with_autocast_and_needs_no_scaler():
    data, theirs, ours = bunch(n=80), network(), network()
    torch.manual_seed(1)
    bare(theirs, data, torch.optim.AdamW(theirs.parameters(), lr=0.01), torch.bfloat16, 5)
    torch.manual_seed(1)
    run = Runner((data.train_dl, None), ours, loss_func=F.cross_entropy, opt_func=torch.optim.AdamW, lr=0.01,
                 cbs=MixedPrecision(torch.bfloat16))
    run.fit(5)
    assert same(theirs, ours) and run.mixed_precision.scale == 1. and run.mixed_precision.skipped == 0

@pytest.mark.parametrize('scale', [128., 1000., 2.**60])
def test_a_fixed_scale_stays_and_its_overflows_are_skipped(scale):
    data, theirs, ours = bunch(n=80), network(), network()
    torch.manual_seed(1)
    scaler = torch.amp.GradScaler('cpu', init_scale=scale)
    bare(theirs, data, torch.optim.SGD(theirs.parameters(), lr=0.01), torch.float16, 2, scaler=scaler,
         static=scale)
    torch.manual_seed(1)
    run = Runner((data.train_dl, None), ours, loss_func=F.cross_entropy, lr=0.01,
                 cbs=MixedPrecision(loss_scale=scale))
    run.fit(2)
    assert same(theirs, ours) and run.mixed_precision.scale == scale
    assert run.mixed_precision.skipped == (20 if scale > 2**40 else 0)

def test_a_step_with_infinite_gradients_leaves_weights_and_optimizer_and_halves_the_scale():
    class Poison(Callback):
        order = -50
        def before_fit(self): self.seen = []
        def after_backward(self):
            self.before = [p.detach().clone()
                           for p in self.model.parameters()], copy.deepcopy(self.opt.state_dict()['state'])
            if self.n_iter == 3: self.model[0].weight.grad[0, 0] = math.inf
            if self.n_iter == 5: self.model[0].weight.grad[0, 0] = math.nan
        def after_batch(self):   # a step that is left out has no after_step
            moved = not all(torch.equal(p, q) for p, q in zip(self.model.parameters(), self.before[0]))
            steps = [float(s['step']) for s in self.opt.state_dict()['state'].values()]
            self.seen.append((moved, self.mixed_precision.scale,
                              steps == [float(s['step']) for s in self.before[1].values()]))
    cb, poison = MixedPrecision(init_scale=1024.), Poison()
    Runner((bunch(n=64).train_dl, None), network(), loss_func=F.cross_entropy, opt_func=torch.optim.Adam,
           lr=0.01, cbs=[cb, poison]).fit(1)
    assert [m for m, _, _ in poison.seen] == [True, True, True, False, True, False, True, True]
    assert [s for _, s, _ in poison.seen] == [1024.]*3 + [512.]*2 + [256.]*3 and cb.skipped == 2
    assert poison.seen[3][2] and poison.seen[5][2]

def test_callbacks_see_unscaled_gradients_from_after_backward_on():
    class Norms(Callback):
        def __init__(self): self.norms = []
        def after_backward(self): self.norms.append(grad_norm(self.model.parameters()).item())
        def before_step(self): self.norms.append(grad_norm(self.model.parameters()).item())
    full, half = Norms(), Norms()
    for watch, cbs in ((full, []), (half, [MixedPrecision(init_scale=1024.)])):
        Runner((bunch().train_dl, None), plain_network(), loss_func=F.cross_entropy, lr=1e-3,
               cbs=[watch, *cbs]).fit(1)
    assert half.norms == pytest.approx(full.norms, rel=0.02)

def test_what_a_callback_adds_to_the_loss_before_the_backward_pass_is_scaled_too():
    class Penalty(Callback):
        def before_backward(self):
            self.run.loss_grad = self.loss_grad + 0.1*sum(p.pow(2).sum() for p in self.model.parameters())
    ends = []
    for cbs in ([], [MixedPrecision(init_scale=1024.)]):
        run = Runner((bunch().train_dl, None), plain_network(), loss_func=F.cross_entropy, lr=0.1,
                     cbs=[Penalty(), *cbs])
        run.fit(2)
        ends.append(weights(run.model))
    assert torch.allclose(*ends, atol=2e-3)

@pytest.mark.parametrize('dtype', HALVES)
def test_the_model_computes_in_half_and_answers_float32_wherever_it_is_asked(dtype):
    notes = Notes()
    notes.__class__.evaluates = True
    learn = learner(cbs=[MixedPrecision(dtype), notes])
    learn.fit(1)
    assert notes.inside == {dtype} and notes.preds == {torch.float32}
    assert (learn.get_preds()[0].dtype == learn.get_preds(act=False)[0].dtype
            == learn.predict(points(1)[0][0]).probs.dtype == torch.float32)
    assert notes.inside == {dtype} and isinstance(learn.validate()['accuracy'], float)
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32} and learn.recorder.losses

def test_predictions_in_tuples_and_dicts_are_float32_and_other_types_stay():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(5, 3)
        def forward(self, x): return {'a': (self.l(x), torch.arange(len(x))), 'b': x.double()}
    seen = []
    class Look(Callback):
        def after_pred(self): seen.append([t.dtype for t in (*self.pred['a'], self.pred['b'])])
    run = Runner((bunch().train_dl, None), Many(), loss_func=lambda p, y: F.cross_entropy(p['a'][0], y),
                 cbs=[MixedPrecision(torch.bfloat16), Look()])
    run.fit(1)
    assert all(types == [torch.float32, torch.int64, torch.float64] for types in seen)

def test_a_float64_model_stays_what_it_is():
    ds = Dataset(points(16)[0].double(), points(16)[1])
    ends = []
    for cbs in ([], [MixedPrecision(torch.bfloat16)]):
        run = Runner((DataLoader(ds, 4), None), plain_network().double(), loss_func=F.cross_entropy, cbs=cbs)
        run.fit(1)
        ends.append(run.model)
    assert same(*ends)

def test_validation_and_a_look_do_not_touch_the_scaler():
    learn = learner().to_fp16()
    learn.validate()
    learn.get_preds()
    assert mp(learn).scale == 2.**16 and mp(learn).skipped == 0


# ------------ MixedPrecision: called off, broken off, resumed

class Accumulate(Callback):
    "A user's own: every second batch's step is called off."
    def after_backward(self):
        if self.n_iter % 2 == 0: raise CancelStepException

class AccumulateLate(Callback):
    def before_step(self):
        if self.n_iter % 2 == 0: raise CancelStepException

@pytest.mark.parametrize('kind', [Accumulate, AccumulateLate])
def test_steps_that_another_callback_calls_off_add_up_true_gradients(kind):
    ends = []
    for cbs in ([], [MixedPrecision(init_scale=1024.)], [MixedPrecision(init_scale=2.**34)]):
        run = Runner((bunch(n=64).train_dl, None), plain_network(), loss_func=F.cross_entropy, lr=0.1,
                     cbs=[kind(), *cbs])
        run.fit(1)
        ends.append(weights(run.model))
    # the latter skips
    assert torch.allclose(ends[0], ends[1], atol=1e-3) and not torch.allclose(ends[0], ends[2], atol=1e-3)

@pytest.mark.parametrize('event',
                         ['after_loss', 'before_backward', 'after_backward', 'before_step', 'after_step'])
def test_a_cancelled_batch_leaves_gradients_as_without_mixed_precision(event):
    ends = []
    for cbs in ([], [MixedPrecision(init_scale=1024.)]):
        run = Runner((bunch(n=64).train_dl, None), plain_network(), loss_func=F.cross_entropy, lr=0.1,
                     cbs=[Raises(event, CancelBatchException()), *cbs])
        run.fit(2)
        ends.append(weights(run.model))
    assert torch.allclose(*ends, atol=1e-3)

@pytest.mark.slow
@pytest.mark.parametrize('error', [ValueError('mine'), KeyboardInterrupt(), CancelFitException(),
                                   CancelEpochException()])
@pytest.mark.parametrize('event',
                         ['before_batch', 'after_pred', 'after_backward', 'before_step', 'after_step'])
def test_a_fit_that_breaks_off_leaves_nothing_and_the_next_one_trains(event, error):
    learn = learner(cbs=[ChannelsLast(), MixedPrecision(init_scale=1024.), GradAccumulation(16)])
    try: learn.fit(1, cbs=Raises(event, error))
    except (ValueError, KeyboardInterrupt): pass
    assert untouched(learn) and not torch.is_autocast_enabled('cpu') and 'forward' not in vars(learn.model)
    before = weights(learn.model)
    learn.fit(1)
    assert (not torch.equal(before, weights(learn.model)) and weights(learn.model).isfinite().all()
            and mp(learn).skipped == 0)

@pytest.mark.slow
@pytest.mark.parametrize('every', [1, 3])
@pytest.mark.parametrize('at', [3, 6, 7, 12])
def test_a_resumed_fit_in_fp16_with_accumulation_is_the_unbroken_one_to_the_bit(tmp_path, every, at):
    def fit(name, *cbs, every=every, **kw):
        sched = ParamScheduler('lr', cos_1cycle(0.001, 0.02, 1e-5))
        learn = learner(cbs=[MixedPrecision(init_scale=2.**30, growth_interval=2), GradAccumulation(16),
                             Checkpoint(tmp_path/name, every=every), *cbs])
        try: learn.fit(3, cbs=sched, **kw)
        except InterruptedError: pass
        return learn
    whole = fit('whole')
    fit('broken', Raises('before_batch', InterruptedError(), at))
    again = fit('broken', resume=tmp_path/'broken')
    assert (same(whole.model, again.model) and mp(whole).state_dict() == mp(again).state_dict()
            and mp(whole).skipped > 0)
    assert whole.recorder.losses == again.recorder.losses

def test_a_checkpoint_of_another_precision_is_refused(tmp_path):
    def new(cb): return learner(cbs=[cb, Checkpoint(tmp_path/'c', every=2)])
    with pytest.raises(InterruptedError):
        new(MixedPrecision()).fit(1, cbs=Raises('before_batch', InterruptedError()))
    for cb in (MixedPrecision(torch.bfloat16), MixedPrecision(loss_scale=128)):
        with pytest.raises(CheckpointError, match='float16'): new(cb).fit(1, resume=tmp_path/'c')

def test_the_rate_finder_leaves_scale_count_and_weights_as_they_were():
    learn = learner(bunch(n=160), cbs=[GradAccumulation(8)]).to_fp16()
    learn.fit(1)
    before, state = weights(learn.model), mp(learn).state_dict()
    learn.lr_find(40, max_lr=1e6, show=False)
    assert torch.equal(before, weights(learn.model)) and mp(learn).state_dict() == state

def test_the_scale_goes_on_from_fit_to_fit():
    learn = learner(cbs=MixedPrecision(init_scale=2.**10, growth_interval=5))
    learn.fit(1)
    learn.fit(1)
    assert mp(learn).scale == 2.**12

def test_parts_that_other_callbacks_replace_are_called():
    calls = []
    class Before(Callback):
        order = -35
        def before_fit(self):
            for part in PARTS: self._wrap(part, getattr(self.run, part))
        def _wrap(self, part, inner):
            def f():
                calls.append(part)
                return inner()
            setattr(self.run, part, f)
    class After(Before): order = -10
    for kind in (Before, After):
        calls.clear()
        Runner((bunch(n=8).train_dl, None), network(), loss_func=F.cross_entropy,
               cbs=[kind(), MixedPrecision(), GradAccumulation(4)]).fit(1)
        assert calls == list(PARTS)


# ---------------------------------------------------------------- on a learner; what is refused

def test_to_fp16_to_bf16_and_to_fp32_replace_one_another_and_answer_the_learner():
    learn = learner()
    assert learn.to_fp16() is learn and learn.to_fp16(loss_scale=64).mixed_precision.loss_scale == 64
    assert (learn.to_bf16().mixed_precision.dtype == torch.bfloat16
            and sum(isinstance(cb, MixedPrecision) for cb in learn.cbs) == 1)
    assert (learn.to_fp32() is learn and not any(isinstance(cb, MixedPrecision) for cb in learn.cbs)
            and learn.to_fp32() is learn)
    other = learner()
    for l in (learn, other):
        torch.manual_seed(1)
        l.fit(1)
    assert learn.history.column('train_loss') == other.history.column('train_loss')

def test_files_do_not_know_of_precision_compiler_or_memory_order(tmp_path):
    learn = learner(images(), conv_network(), path=tmp_path).to_bf16().channels_last()
    learn.fit(1)
    learn.save('a')
    learn.export('b.pth')
    fresh = learner(images(), conv_network(1), path=tmp_path)
    fresh.load('a')
    assert (same(fresh.model, learn.model)
            and same(load_learner(tmp_path/'b.pth', model=conv_network(2)).model, learn.model))

def test_the_answers_of_another_kind_of_callback_are_the_same_object_afterwards():
    learn = learner().to_fp16()
    cbs = list(learn.cbs)
    learn.fit(1)
    learn.validate()
    assert learn.cbs == cbs

@pytest.mark.parametrize('make, error, says', [
    (lambda: MixedPrecision(torch.float32), ValueError, 'bfloat16'),
    (lambda: MixedPrecision('fp16'), TypeError, 'bfloat16'),
    (lambda: MixedPrecision(loss_scale='static'), TypeError, 'loss_scale'),
    (lambda: MixedPrecision(loss_scale=True), TypeError, 'loss_scale'),
    (lambda: MixedPrecision(loss_scale=0), ValueError, 'loss_scale'),
    (lambda: MixedPrecision(loss_scale=math.inf), ValueError, 'finite'),
    (lambda: MixedPrecision(init_scale=math.nan), ValueError, 'finite'),
    (lambda: MixedPrecision(init_scale='dynamic'), TypeError, 'number'),
    (lambda: MixedPrecision(growth_interval=0), ValueError, 'more'),
    (lambda: GradAccumulation(0), ValueError, 'more'),
    (lambda: GradAccumulation(64.), TypeError, 'whole'),
    (lambda: GradAccumulation(True), TypeError, 'whole'),
    (lambda: MixedPrecision(init_scale=1e-50), ValueError, 'init_scale'),
    (lambda: MixedPrecision(loss_scale=10**400), ValueError, 'loss_scale'),
    (lambda: MixedPrecision(scale=2), TypeError, 'scale'),
])
def test_bad_arguments_are_named_where_they_enter(make, error, says):
    with pytest.raises(error, match=says): make()

@pytest.mark.parametrize('kind', [MixedPrecision, lambda: GradAccumulation(8)])
def test_two_of_a_kind_in_one_fit_are_refused(kind):
    with pytest.raises(ValueError, match='callbacks'): learner(cbs=[kind(), kind()]).fit(1)

@pytest.mark.parametrize('dtype', HALVES)
def test_weights_that_are_in_half_already_are_refused_by_name_but_frozen_ones_are_not(dtype):
    model = plain_network()
    model[0].to(dtype)
    with pytest.raises(ValueError, match='0.weight'):
        learner(model=model, cbs=MixedPrecision(dtype)).fit(1)
    for p in model[0].parameters(): p.requires_grad_(False)
    learner(model=model, cbs=MixedPrecision(dtype)).fit(1)


# ---------------------------------------------------------------- GradAccumulation

def weighted(pred, yb): return F.cross_entropy(pred, yb)

def fit64(sizes, *cbs, loss_func=F.cross_entropy, ds=None, epochs=2,
          opt_func=partial(torch.optim.SGD, momentum=0.9)):
    "A training in float64 with batches of these sizes."
    n = sum(sizes)
    x, y = points(n)
    ds = Dataset(x.double(), y) if ds is None else ds
    edges = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    batches = [list(range(a, b)) for a, b in zip(edges, edges[1:])]
    run = Runner((DataLoader(ds, batch_sampler=batches), None), plain_network().double(), loss_func=loss_func,
                 lr=0.1, opt_func=opt_func, cbs=list(cbs))
    run.fit(epochs)
    return weights(run.model)

def groups(sizes, n_items):
    out, group = [], 0
    for s in sizes:
        group += s
        if group >= n_items:
            out.append(group)
            group = 0
    return out + ([group] if group else [])

@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 20))
def test_accumulated_batches_of_any_sizes_take_the_steps_of_large_ones(sizes, n_items):
    assert (fit64(sizes, GradAccumulation(n_items)) - fit64(groups(sizes, n_items))).abs().max() < 1e-10

@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 20), st.integers(0, 100))
def test_with_a_loss_that_counts_they_do_too_also_where_a_batch_has_nothing_to_count(sizes, n_items, seed):
    n = sum(sizes)
    x, y = points(n)
    unknown = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.6
    ds, loss = Dataset(x.double(), torch.where(unknown, -100, y)), CrossEntropy(ignore_index=-100)
    assert (fit64(sizes, GradAccumulation(n_items), ds=ds,
                  loss_func=loss) - fit64(groups(sizes, n_items), ds=ds, loss_func=loss)).abs().max() < 1e-10

THEIRS = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(torch.tensor([1., 5., 0.2]).double()),
          nn.CrossEntropyLoss(reduction='sum'), F.cross_entropy,
          partial(F.cross_entropy, weight=torch.tensor([0.3, 1., 4.]).double(), ignore_index=1),
          partial(F.cross_entropy, reduction='sum')]

@pytest.mark.slow
@pytest.mark.parametrize('loss', THEIRS)
@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 20), st.integers(0, 100))
def test_with_pytorchs_losses_of_classes_too_which_divide_by_weights(loss, sizes, n_items, seed):
    x, y = points(n := sum(sizes))
    y[torch.rand(n, generator=torch.Generator().manual_seed(seed))
      < 0.4] = (loss.keywords.get('ignore_index', -100) if isinstance(loss, partial) else -100)
    ds, opt = Dataset(x.double(), y), partial(torch.optim.SGD, momentum=0.5)
    ours = fit64(sizes, GradAccumulation(n_items), ds=ds, loss_func=loss, opt_func=opt)
    theirs = fit64(groups(sizes, n_items), ds=ds, loss_func=loss, opt_func=opt)
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-10, equal_nan=True)

def test_mixed_targets_that_do_not_all_count_are_weighed_as_they_are_mixed():
    from exp.mixup import MixUp, mixed_loss
    x, y = points(24)
    y[::3] = y[:6] = -100
    parts, loss = [], CrossEntropy(ignore_index=-100)
    class Keep(Callback):
        order = -10
        def after_loss(self): parts.append((self.xb, self.yb, self.mixup._y2, self.mixup.lam))
    before = plain_network().double()
    run = Runner((DataLoader(Dataset(x.double(), y), 6), None), plain_network().double(), loss_func=loss,
                 lr=1., opt_func=torch.optim.SGD, cbs=[MixUp(1.), Keep(), GradAccumulation(24)])
    run.fit(1)
    x, y1, y2, lam = map(torch.cat, zip(*parts))
    mixed_loss(loss, before(x), y1, y2, lam).backward()
    for p, q in zip(before.parameters(), run.model.parameters()):
        assert torch.allclose(p - p.grad, q, rtol=0, atol=1e-7)   # lam has 32 bits

def test_a_checkpoint_of_groups_of_another_size_is_refused():
    state = GradAccumulation(8).state_dict()
    with pytest.raises(CheckpointError, match='GradAccumulation'):
        GradAccumulation(16).load_state_dict(state)

def test_a_group_of_one_batch_is_the_plain_training_to_the_bit():
    ends = []
    for cbs in ([], [GradAccumulation(8)], [GradAccumulation(1)]):
        learn = learner(cbs=cbs)
        learn.fit(2)
        ends.append(learn.model)
    assert same(ends[0], ends[1]) and same(ends[0], ends[2])

def test_the_last_smaller_group_of_each_epoch_is_stepped_and_schedules_go_on_with_each_batch():
    class Count(Callback):
        def before_fit(self): self.at = []
        def after_step(self): self.at.append((self.epoch, self.iter))
    count, recorder = Count(), Recorder()
    run = Runner((DataLoader(Dataset(*points(36)), 8), None), plain_network(), loss_func=F.cross_entropy,
                 cbs=[GradAccumulation(24), count, recorder,
                      ParamScheduler('lr', cos_1cycle(0.001, 0.02, 1e-5))])
    run.fit(2)
    assert (count.at == [(0, 2), (0, 4), (1, 2), (1, 4)] and run.n_iter == 10 and len(set(recorder.lrs)) == 10
            and untouched(run))

def test_clipping_sees_the_groups_mean_gradient():
    class Norms(Callback):
        def __init__(self): self.norms = []
        def before_step(self): self.norms.append(grad_norm(self.model.parameters()).item())
    a, b = Norms(), Norms()
    fit64([4, 4, 4, 4, 3], GradAccumulation(8), a)
    fit64([8, 8, 3], b)
    assert a.norms == pytest.approx(b.norms, rel=1e-10) and len(a.norms) == 6

def test_mixed_precision_unscales_once_a_step_and_agrees_with_the_large_batch(monkeypatch):
    calls = []
    unscale_ = torch.amp.GradScaler.unscale_
    monkeypatch.setattr(torch.amp.GradScaler, 'unscale_',
                        lambda self, opt: (calls.append(1), unscale_(self, opt))[1])
    x, y = points(40)
    def fit(bs, *cbs):
        run = Runner((DataLoader(Dataset(x, y), bs), None), plain_network(), loss_func=F.cross_entropy,
                     lr=0.1, cbs=[MixedPrecision(init_scale=1024.), *cbs])
        run.fit(2)
        return weights(run.model)
    large = fit(16)
    calls.clear()
    assert torch.allclose(fit(4, GradAccumulation(16)), large, atol=1e-3) and len(calls) == 6

def test_with_mixed_precision_an_overflow_in_one_batch_skips_the_whole_group():
    class Poison(Callback):
        order = -40
        def after_backward(self):
            if self.n_iter == 1: self.model[0].weight.grad[0, 0] = math.inf
    cb = MixedPrecision(init_scale=1024.)
    run = Runner((DataLoader(Dataset(*points(32)), 4), None), plain_network(), loss_func=F.cross_entropy,
                 cbs=[cb, GradAccumulation(16), Poison()])
    run.fit(1)
    assert cb.skipped == 1 and cb.scale == 512. and weights(run.model).isfinite().all()

def test_a_bare_loop_of_mixed_precision_with_accumulation_is_the_same_to_the_bit():
    data, theirs, ours = bunch(n=64), plain_network(), plain_network()
    scaler, opt = torch.amp.GradScaler('cpu', init_scale=2.**34), torch.optim.SGD(theirs.parameters(), lr=0.1)
    for epoch in range(3):
        data.train_dl.set_epoch(epoch)
        for i, (xb, yb) in enumerate(data.train_dl):
            with torch.autocast('cpu', dtype=torch.float16): loss = F.cross_entropy(theirs(xb), yb)
            scaler.scale(loss).backward()
            if i % 2 == 0: continue
            scaler.unscale_(opt)
            for p in theirs.parameters(): p.grad.mul_(0.5)
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
    cb = MixedPrecision(init_scale=2.**34)
    Runner((data.train_dl, None), ours, loss_func=F.cross_entropy, lr=0.1,
           cbs=[cb, GradAccumulation(16)]).fit(3)
    assert same(theirs, ours) and cb.scale == scaler.get_scale() and cb.skipped > 0

def test_a_batch_cancelled_before_its_backward_pass_is_not_of_the_group():
    class Leave(Callback):
        def after_loss(self):
            if self.iter == 1: raise CancelBatchException
    x, y = points(16)
    keep = torch.tensor([i for i in range(16) if not 4 <= i < 8])
    ds = Dataset(x[keep].double(), y[keep])
    assert (fit64([4]*4, GradAccumulation(8), Leave(),
                  epochs=1) - fit64([8, 4], ds=ds, epochs=1)).abs().max() < 1e-10

def test_a_group_whose_step_is_called_off_goes_on():
    class Refuse(Callback):
        def before_step(self):
            if self.iter == 1: raise CancelStepException
    assert (fit64([4]*4, GradAccumulation(8), Refuse(),
                  epochs=1) - fit64([12, 4], epochs=1)).abs().max() < 1e-10

def test_over_several_processes_a_batch_weighs_what_all_have_of_it():
    class Parts(Callback):   # as data-parallel training does: this process has half of each batch's items
        order = -50
        def before_fit(self):
            self.run.ranks, self.run.whole_batch, self.run.whole_weight = 2, lambda: 2*len(
                self.run.items), lambda: torch.tensor(2.*len(self.run.items))
    class Count(Callback):
        n = 0
        def after_step(self): self.n += 1
    count = Count()
    assert ((fit64([4, 4, 3, 4], GradAccumulation(16), Parts(), count) - fit64([8, 7])).abs().max() < 1e-10
            and count.n == 4)

def test_a_loader_that_does_not_name_its_items_is_accumulated_too():
    x, y = points(16)
    dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x.double(), y), 4)
    run = Runner((dl, None), plain_network().double(), loss_func=F.cross_entropy, lr=0.1,
                 opt_func=partial(torch.optim.SGD, momentum=0.9), cbs=GradAccumulation(8))
    run.fit(2)
    assert (weights(run.model) - fit64([8, 8])).abs().max() < 1e-10


# ---------------------------------------------------------------- waiting for the device

class Reads(torch.overrides.TorchFunctionMode):
    n, names = 0, {'item', 'tolist', '__bool__', '__float__', '__int__', '__index__', 'cpu', 'numpy'}
    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.n += getattr(func, '__name__', '') in self.names
        return func(*args, **(kwargs or {}))

@pytest.mark.parametrize('cbs, waits', [([MixedPrecision(torch.bfloat16)], 0), ([MixedPrecision()], 8),
                                        ([MixedPrecision(loss_scale=64)], 8), ([ChannelsLast()], 0),
                                        ([GradAccumulation(16)], 0),
                                        ([MixedPrecision(), GradAccumulation(16)], 4)])
def test_only_the_grad_scaler_reads_a_number_in_python_once_a_step(cbs, waits):
    loss = CrossEntropy(ignore_index=-100)   # its count is a tensor
    def reads(cbs):
        run = Runner((DataLoader(Dataset(*points(64)), 8), None), plain_network(), loss_func=loss, cbs=cbs)
        with Reads() as mode: run.fit(1)
        return mode.n
    assert reads(cbs) - reads([]) == waits


# ---------------------------------------------------------------- ChannelsLast

@pytest.mark.parametrize('opt_func', [torch.optim.AdamW, partial(adam_opt, wd=0.1), sgd_opt])
def test_a_channels_last_training_is_the_plain_one_up_to_rounding(opt_func):
    learns = [learner(images(), conv_network().double(), opt_func=opt_func, cbs=cbs)
              for cbs in ([], [ChannelsLast()])]
    for learn in learns:
        for dl in (learn.data.train_dl, learn.data.valid_dl): dl.ds.x = dl.ds.x.double()
        learn.fit(2)
    assert torch.allclose(*(weights(learn.model) for learn in learns), atol=1e-6)
    assert learns[1].model[0].weight.is_contiguous(memory_format=torch.channels_last)

def test_channels_last_takes_an_optimizer_state_that_was_there_along_and_nested_batches():
    learn = learner(images(), conv_network(), opt_func=torch.optim.Adam)
    learn.fit(1)
    learn.channels_last()
    seen = []
    class Look(Callback):
        def before_batch(self): seen.append(self.xb.is_contiguous(memory_format=torch.channels_last))
    learn.fit(1, cbs=Look())
    states = [v for s in learn.opt.state.values() for v in s.values() if v.ndim == 4]
    assert all(seen) and states and all(v.is_contiguous(memory_format=torch.channels_last) for v in states)
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = conv_network()
        def forward(self, a, b):
            assert a.is_contiguous(memory_format=torch.channels_last) and b.ndim == 2
            return self.net(a)
    xb, yb = next(iter(images().train_dl))
    run = Runner(([((xb, torch.zeros(8, 2)), yb)], None), Two(), loss_func=F.cross_entropy,
                 cbs=ChannelsLast())
    run.fit(1)
    assert learn.channels_last() is learn and sum(isinstance(cb, ChannelsLast) for cb in learn.cbs) == 1
    assert learn.predict(images().train_dl.ds.x[0]).probs.shape == (3,)

@pytest.mark.slow
def test_everything_at_once_trains_and_answers(tmp_path):
    learn = learner(images(), conv_network(),
                    cbs=[GradAccumulation(16), NanCheck(), ActivationStats(every=1)],
                    path=tmp_path).to_fp16().channels_last().compile(backend='eager')
    learn.fit_one_cycle(2, 0.01)
    assert learn.get_preds()[0].dtype == torch.float32 and untouched(learn)
    learn.fit(1)
    assert learn.validate()['loss'] > 0


# ---------------------------------------------------------------- Compile

def compiled(backend='eager', **kw): return learner(model=network(), **kw).compile(backend=backend)
def callback(learn): return next(cb for cb in learn.cbs if isinstance(cb, Compile))

@pytest.mark.slow
@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_a_compiled_training_and_its_answers_are_those_of_the_model(backend):
    torch._dynamo.reset()
    plain, ours = learner(), compiled(backend)
    for learn in (plain, ours):
        torch.manual_seed(1)
        learn.fit(2)
    if backend == 'eager': assert same(plain.model, ours.model)
    assert (torch.allclose(weights(plain.model), weights(ours.model), atol=1e-5)
            and callback(ours).failed is None)
    assert torch.allclose(plain.get_preds()[0], ours.get_preds()[0], atol=1e-5)
    assert plain.validate() == pytest.approx(ours.validate(), abs=1e-5)
    assert (list(plain.model.state_dict()) == list(ours.model.state_dict())
            and 'forward' not in vars(ours.model) and type(ours.model) is nn.Sequential)
    assert copy.deepcopy(ours.model)(points(2)[0]).shape == (2, 3)

@pytest.mark.slow
def test_the_model_runs_compiled_in_training_and_validation_and_not_for_a_single_batch():
    torch._dynamo.reset()
    graphs = []
    def backend(graph, inputs):
        graphs.append(1)
        return graph.forward
    learn = compiled(backend)
    learn.fit(1)
    n = len(graphs)
    assert n >= 2   # training, evaluation
    learn.predict(points(1)[0][0])
    assert len(graphs) == n
    learn.fit(1)
    learn.validate()
    assert len(graphs) == n   # what was compiled is kept from fit to fit

def test_a_failed_compilation_warns_once_and_the_training_is_the_plain_one():
    torch._dynamo.reset()
    def backend(graph, inputs): raise RuntimeError('no compiler to be found')
    plain, ours = learner(), compiled(backend)
    torch.manual_seed(1)
    plain.fit(2)
    torch.manual_seed(1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        ours.fit(2)
        ours.validate()
    assert len([w for w in told if 'torch.compile failed' in str(w.message)]) == 1
    assert ('no compiler to be found' in callback(ours).failed and same(plain.model, ours.model)
            and 'forward' not in vars(ours.model))

def test_where_torch_compile_itself_is_not_supported_it_goes_on_uncompiled(monkeypatch):
    def compile(*a, **kw): raise RuntimeError('torch.compile is not supported on this Python')
    monkeypatch.setattr(torch, 'compile', compile)
    learn = learner().compile()
    with pytest.warns(UserWarning, match='supported'): learn.fit(1)

@pytest.mark.parametrize('wrong', [dict(mode='fast'), dict(backend='inductr')])
def test_a_misspelt_mode_or_backend_is_named_in_the_warning(wrong):
    with pytest.warns(UserWarning, match=next(iter(wrong.values()))): learner().compile(**wrong).fit(1)

def test_an_error_of_the_model_is_not_taken_for_one_of_the_compiler():
    torch._dynamo.reset()
    learn = learner(model=nn.Sequential(nn.Linear(4, 3))).compile(backend='eager')
    with pytest.raises(RuntimeError, match='mat1'): learn.fit(1)
    assert callback(learn).failed is None and 'forward' not in vars(learn.model) and untouched(learn)
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(5, 3)
        def forward(self, x): raise KeyError('mine')
    with pytest.raises(KeyError, match='mine'): learner(model=Odd()).compile(backend='eager').fit(1)

def test_ctrl_c_while_it_compiles_leaves_the_model_usable():
    torch._dynamo.reset()
    def backend(graph, inputs): raise KeyboardInterrupt
    learn = compiled(backend)
    with pytest.raises(KeyboardInterrupt): learn.fit(1)
    assert ('forward' not in vars(learn.model) and untouched(learn)
            and learn.model.eval()(points(2)[0]).shape == (2, 3))

@pytest.mark.slow
def test_a_forward_of_an_instances_own_is_put_back():
    torch._dynamo.reset()
    model = network()
    own = model.forward
    model.forward = lambda x: own(x)
    before = model.forward
    learner(model=model).compile(backend='eager').fit(1)
    assert model.forward is before

@pytest.mark.slow
def test_hooks_see_the_model_run():
    torch._dynamo.reset()
    stats = ActivationStats(every=1)
    learn = compiled(cbs=[stats])
    learn.fit(2)
    assert all(len(v) == 5 for v in stats.means.values()) or all(len(v) == 10 for v in stats.means.values())

def test_a_copy_of_a_compiled_learner_trains_its_own_model_and_leaves_the_first_alone():
    first = learner(model=plain_network()).compile(backend='eager')
    first.fit(1)
    before, second, plain = weights(first.model), copy.deepcopy(first), copy.deepcopy(first)
    plain.remove_cbs([cb for cb in plain.cbs if isinstance(cb, Compile)])
    for learn in (second, plain): learn.fit(1)
    assert torch.equal(weights(first.model), before) and not torch.equal(weights(second.model), before)
    assert same(second.model, plain.model)

def test_compile_can_be_pickled_after_a_fit():
    cb = Compile(backend='eager')
    learner().fit(1, cbs=cb)
    assert pickle.loads(pickle.dumps(cb)).options == cb.options

def test_a_state_can_be_loaded_before_the_first_fit():
    (first := learner(cbs=MixedPrecision(init_scale=2.**60))).fit(1)
    cb = MixedPrecision()
    cb.load_state_dict(mp(first).state_dict())
    assert (cb.scale, cb.skipped) == (mp(first).scale, mp(first).skipped) and cb.skipped > 0
    learner(cbs=cb).fit(1)
    assert cb.scale < 2.**60

@pytest.mark.slow
@pytest.mark.parametrize('dtype', HALVES)
def test_compiled_in_mixed_precision_it_computes_in_half_and_agrees(dtype):
    torch._dynamo.reset()
    plain, ours = (learner(model=plain_network(), cbs=MixedPrecision(dtype)) for _ in range(2))
    ours.compile(backend='aot_eager')
    for learn in (plain, ours): learn.fit(2)
    assert (torch.allclose(weights(plain.model), weights(ours.model), atol=2e-2)
            and ours.get_preds()[0].dtype == torch.float32 and callback(ours).failed is None)

SCRIPT = '''
import warnings, torch
from torch import nn
from exp.dataloader import Dataset, make_data
from exp.learner import Learner
from exp.progress import Progress
import exp.precision
x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
ds = Dataset(x, (x[:, 0] > 0).long())
def learner():
    torch.manual_seed(0)
    return Learner(make_data(ds, ds, bs=16), nn.Sequential(nn.Linear(4, 2), nn.GELU()), lr=0.01,
                   cbs=Progress(False))
plain, ours = learner(), learner().compile()
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter('always')
    plain.fit(1)
    ours.fit(1)
print(sum('torch.compile failed' in str(w.message) for w in told),
      all(torch.allclose(p, q, atol=1e-5) for p, q in zip(plain.model.parameters(), ours.model.parameters())))
'''

def run_script(tmp_path, **env):
    env = {**os.environ, 'TORCHINDUCTOR_CACHE_DIR': str(tmp_path), 'TORCHINDUCTOR_FORCE_DISABLE_CACHES': '1',
           'OMP_NUM_THREADS': '1', **env}
    done = subprocess.run([sys.executable, '-c', SCRIPT], env=env, capture_output=True, text=True,
                          timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()

@pytest.mark.launch
def test_without_a_cpp_compiler_training_goes_on(tmp_path):
    assert run_script(tmp_path, CXX=str(tmp_path/'none'/'g++'), PATH=str(tmp_path)) == ['1', 'True']
