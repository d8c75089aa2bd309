"""What is gathered over batches is applied however an epoch ends, clipped as a whole, and moved by PyTorch's
schedulers; fp16 without gradients."""
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.callbacks import (Callback, CancelBatchException, CancelEpochException, CancelFitException,
                           CancelStepException, Runner)
from exp.faults import GradClip
from exp.dataloader import DataLoader, Dataset
from exp.checkpoints import Checkpoint
from exp.learner import Learner
from exp.optimizers import adam_opt
from exp.precision import GradAccumulation, MixedPrecision
from exp.progress import Progress
from exp.regularization import grad_norm
from exp.schedules import TorchScheduler, get_hyper

S = torch.optim.lr_scheduler
PRECISIONS = {'float64': (), 'bf16': (torch.bfloat16,), 'fp16': (torch.float16,)}

def points(n):
    g = torch.Generator().manual_seed(0)
    return torch.randn(64, 5, generator=g)[:n], torch.randint(0, 3, (64,), generator=g)[:n]

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))

class Says:
    "A loader whose length is not what it gives, as islice or an IterableDataset with an estimate."
    def __init__(self, dl, says): self.dl, self.says = dl, says
    def __len__(self): return self.says
    def __iter__(self): return iter(self.dl)

class CancelAt(Callback):
    def __init__(self, event, error, at):
        self.error, self.at = error, at
        setattr(self, event, self._maybe)
    def _maybe(self):
        if self.in_train and self.iter in self.at: raise self.error

class Steps(Callback):
    order = 95
    def before_fit(self): self.norms = []
    def before_step(self): self.norms.append(float(grad_norm(self.model.parameters())))

def fit(n, bs, cbs, precision=(), epochs=1, says=None, lr=0.1):
    x, y = points(n)
    model = net() if precision else net().double()
    dl = DataLoader(Dataset(x if precision else x.double(), y), bs)
    run = Runner((dl if says is None else Says(dl, says), None), model, loss_func=F.cross_entropy, lr=lr,
                 cbs=[*cbs, *(MixedPrecision(d, **({'init_scale': 1024.} if d == torch.float16 else {}))
                              for d in precision)])
    run.fit(epochs)
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])

def tol(precision): return 2e-2 if precision else 1e-10

@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('says', (3, 4, 5, 9, 100))
def test_a_loader_of_another_length_than_it_says_loses_nothing(says, precision):
    p = PRECISIONS[precision]
    right = fit(40, 24, [steps := Steps()], p, epochs=2)   # steps of 24 and 16
    got = fit(40, 8, [GradAccumulation(24), mine := Steps()], p, epochs=2, says=says)
    if says != 3 and says != 4:
        assert len(mine.norms) == len(steps.norms) == 4 and (got - right).abs().max() < tol(p)
    else: assert not torch.equal(got, fit(24, 8, [GradAccumulation(24)], p, epochs=2))

@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('event', ('before_batch', 'after_pred', 'after_loss', 'before_backward'))
@pytest.mark.parametrize('error', (CancelBatchException, CancelEpochException, CancelFitException))
def test_what_was_gathered_before_a_cancelled_batch_is_applied(error, event, precision):
    p = PRECISIONS[precision]
    # two batches of 8, and the third is cancelled
    right = fit(16, 16, [], p)
    got = fit(24, 8, [GradAccumulation(24), CancelAt(event, error, (2,)), steps := Steps()], p)
    assert len(steps.norms) == 1 and (got - right).abs().max() < tol(p)

@pytest.mark.parametrize('precision', PRECISIONS)
def test_the_late_step_has_all_its_events_once_and_may_be_called_off(precision):
    class Log(Callback):
        def before_fit(self): self.log = []
        def after_backward(self): self.log.append('after_backward')
        def before_step(self): self.log.append('before_step')
        def after_step(self): self.log.append('after_step')
        def after_train(self): self.log.append('after_train')
    p = PRECISIONS[precision]
    fit(24, 8, [GradAccumulation(24), CancelAt('after_pred', CancelBatchException, (2,)), log := Log()], p)
    assert log.log == ['after_backward', 'before_step', 'after_step', 'after_train']
    for error in (CancelStepException, CancelBatchException):
        class Off(Callback):
            def before_step(self):
                if self.epoch == 0: raise error
        ends = [fit(16, bs, [GradAccumulation(n), Off()], p, epochs=2) for bs, n in ((8, 40), (16, 40))]
        assert (ends[0] - ends[1]).abs().max() < tol(p)   # the group goes on into the next epoch

def test_an_error_drops_what_was_gathered():
    model = net()
    run = Runner((DataLoader(Dataset(*points(24)), 8), None), model, loss_func=F.cross_entropy,
                 cbs=[GradAccumulation(24), CancelAt('after_pred', ValueError('mine'), (2,))])
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match='mine'): run.fit(1)
    assert torch.equal(before, model[0].weight) and model[0].weight.grad is None


# fp16 without gradients

class Zero(Callback):
    def before_backward(self): self.run.loss_grad = self.loss_grad*0

class Forget(Callback):
    "Gradients that do not reach the optimizer in some batches."
    order = -100
    def after_backward(self):
        if self.iter % 2: self.opt.zero_grad()

class Frozen(nn.Module):
    "What learns is not in the optimizer."
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 3).requires_grad_(False), nn.Linear(5, 3)
    def forward(self, x): return self.a(x) + self.b(x)

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(10, 3, sparse=True)
    def forward(self, x): return self.e(x.abs().long().clamp(max=9)).sum(1)

@pytest.mark.parametrize('accumulate', (False, True))
@pytest.mark.parametrize('scale', ('dynamic', 128.))
@pytest.mark.parametrize('case', ('zero', 'forgotten', 'frozen', 'sparse', 'empty'))
def test_fp16_trains_through_batches_without_gradients_as_float32_does(case, scale, accumulate):
    ends = []
    for half in (False, True):
        torch.manual_seed(0)
        model = {'frozen': Frozen, 'sparse': Words}.get(case, net)()
        opt_func = {'frozen': lambda groups, lr: torch.optim.SGD(model.a.parameters(),
                                                                 lr=lr)}.get(case, torch.optim.SGD)
        if case == 'empty': model.extra = nn.Parameter(torch.empty(0))
        cbs = [*({'zero': [Zero()], 'forgotten': [Forget()]}.get(case, [])),
               *([GradAccumulation(16)] if accumulate else []),
               *([MixedPrecision(loss_scale=scale, **({'init_scale': 1024.} if scale == 'dynamic' else {}))]
                 if half else [])]
        Runner((DataLoader(Dataset(*points(40)), 8), None), model, loss_func=F.cross_entropy,
               opt_func=opt_func, lr=0.1, cbs=cbs).fit(2)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert ends[1].isfinite().all() and torch.allclose(*ends, atol=3e-3)


@pytest.mark.parametrize('cancel', (CancelEpochException, CancelFitException))
@pytest.mark.parametrize('precision', PRECISIONS)
def test_who_ends_epoch_or_fit_before_each_step_ends_it_and_no_step_is_taken(cancel, precision):
    class Never(Callback):
        def before_step(self): raise cancel
    never = fit(32, 8, [GradAccumulation(24), Never()], PRECISIONS[precision])
    assert torch.equal(never, fit(32, 8, [Never()], PRECISIONS[precision]))

# GradClip

@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('own', (False, True))
def test_the_whole_gradient_is_clipped_at_the_step(precision, own):
    class EverySecond(Callback):
        def before_step(self):
            if self.n_iter % 2 == 0: raise CancelStepException
    p = PRECISIONS[precision]
    clipped = fit(32, 8, [EverySecond() if own else GradAccumulation(16), GradClip(0.05), steps := Steps()],
                  p, epochs=2)
    assert len(steps.norms) == 4 and all(n == pytest.approx(0.05, rel=1e-3) for n in steps.norms)
    if not own: assert (clipped - fit(32, 16, [GradClip(0.05)], p, epochs=2)).abs().max() < tol(p)

@pytest.mark.parametrize('kw', (dict(norm=0.05), dict(value=0.01), dict(norm=0.02, value=0.01)))
def test_norm_and_value_are_pytorchs(kw):
    got, model = fit(32, 8, [GradClip(**kw)]), net().double()
    opt, (x, y) = torch.optim.SGD(model.parameters(), lr=0.1), points(32)
    for i in range(0, 32, 8):
        opt.zero_grad()
        F.cross_entropy(model(x[i:i+8].double()), y[i:i+8]).backward()
        if 'value' in kw: nn.utils.clip_grad_value_(model.parameters(), kw['value'])
        if 'norm' in kw: nn.utils.clip_grad_norm_(model.parameters(), kw['norm'])
        opt.step()
    torch.testing.assert_close(got, torch.cat([p.detach().flatten() for p in model.parameters()]))

@pytest.mark.parametrize('kw, error', (({}, ValueError), (dict(norm=-1), ValueError),
                                       (dict(value=float('nan')), ValueError), (dict(norm='1'), TypeError),
                                       (dict(value=True), TypeError)))
def test_gradclip_refuses_what_is_no_limit(kw, error):
    with pytest.raises(error): GradClip(**kw)

def test_gradclip_takes_missing_gradients():
    for case in (GradClip(1.), GradClip(value=1.)):
        Runner((DataLoader(Dataset(*points(8)), 8), None), Frozen(), loss_func=F.cross_entropy,
               cbs=case).fit(1)


# TorchScheduler

PER_BATCH = dict(one_cycle=lambda o: S.OneCycleLR(o, max_lr=0.1, total_steps=20),
                 cosine=lambda o: S.CosineAnnealingLR(o, 20),
                 warm=lambda o: S.CosineAnnealingWarmRestarts(o, 7),
                 multi=lambda o: S.MultiStepLR(o, [4, 9]),
                 cyclic=lambda o: S.CyclicLR(o, 1e-3, 0.1, step_size_up=3),
                 func=lambda o: S.LambdaLR(o, lambda e: 1/(e + 1)),
                 sequence=lambda o: S.SequentialLR(o, [S.LinearLR(o), S.ExponentialLR(o, 0.9)], [3]),
                 chain=lambda o: S.ChainedScheduler([S.ConstantLR(o), S.ExponentialLR(o, 0.9)]))
PLATEAU = lambda o: S.ReduceLROnPlateau(o, patience=0, threshold=10.)   # nothing is good enough

def learner(cbs, **kw):
    dl = DataLoader(Dataset(*points(40)), 8, shuffle=True, seed=1)
    return Learner((dl, dl), net(), loss_func=F.cross_entropy, lr=0.02, cbs=[Progress(False), *cbs], **kw)

@pytest.mark.slow
@pytest.mark.parametrize('opt_func', (partial(torch.optim.SGD, momentum=0.9), adam_opt))
@pytest.mark.parametrize('name', PER_BATCH)
def test_rates_are_those_of_pytorchs_loop_in_each_fit_and_then_as_before(name, opt_func):
    learn = learner([TorchScheduler(PER_BATCH[name])], opt_func=opt_func)
    for lr in (0.02, 0.05):
        opt = opt_func(net().parameters(), lr=lr)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            sched, want = PER_BATCH[name](opt), []
            for _ in range(20):
                want.append(opt.param_groups[0]['lr'])
                opt.step()
                sched.step()
        with warnings.catch_warnings():
            warnings.filterwarnings('error', 'Detected call')
            learn.fit(4, lr)
        assert learn.recorder.lrs == pytest.approx(want)
        assert ({g['lr'] for g in learn.opt.param_groups} == {lr}
                and not {'initial_lr', 'max_lr'} & set(learn.opt.param_groups[0]))
        for key in {'momentum', 'betas'} & set(opt.param_groups[0]):
            assert learn.opt.param_groups[0][key] == opt_func(net().parameters(), lr=lr).param_groups[0][key]

@pytest.mark.parametrize('cbs', ([GradAccumulation(16)], [MixedPrecision(init_scale=2.**60)]))
def test_a_step_that_is_called_off_makes_no_warning(cbs):
    learn = learner([TorchScheduler(PER_BATCH['cosine']), *cbs])
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'Detected call')
        learn.fit(1)

def test_per_epoch_and_plateau_step_once_an_epoch():
    for make, per in ((lambda o: S.ExponentialLR(o, 0.5), 'epoch'),
                      (lambda o: S.ReduceLROnPlateau(o, factor=0.5, patience=0, mode='max', threshold=10.),
                       'batch')):
        learn = learner([TorchScheduler(make, per, monitor='valid_loss')])
        learn.fit(4)
        lrs = learn.recorder.lrs[::5]
        assert (lrs == pytest.approx([0.02, 0.01, 0.005, 0.0025] if per == 'epoch'
                                     else [0.02, 0.02, 0.01, 0.005]))

@pytest.mark.parametrize('monitor', ('valid_los', 'accuracy'))
def test_a_plateau_needs_a_number_that_is_there(monitor):
    with pytest.raises(ValueError, match=monitor): learner([TorchScheduler(PLATEAU, monitor=monitor)]).fit(1)
    with pytest.raises(ValueError, match='AvgStats'):
        Runner((DataLoader(Dataset(*points(8)), 8), None), net(), cbs=TorchScheduler(PLATEAU)).fit(1)
    with pytest.raises(ValueError, match='per'): TorchScheduler(PLATEAU, 'step')
    with pytest.raises(TypeError, match='function'):
        TorchScheduler(PER_BATCH['cosine'](torch.optim.SGD(net().parameters(), lr=0.1)))
    with pytest.raises(ValueError, match='ParamScheduler'):
        learner([TorchScheduler(PLATEAU)]).fit_one_cycle(1)

@pytest.mark.parametrize('make', (3, None, S.StepLR(torch.optim.SGD(net().parameters(), lr=0.1), 3)))
def test_what_makes_no_scheduler_is_refused(make):
    with pytest.raises(TypeError, match='make'): TorchScheduler(make)

def test_a_schedule_of_ours_beside_it_is_refused_and_only_where_it_moves_the_rate():
    learn = learner([TorchScheduler(PER_BATCH['cosine'])])
    with pytest.raises(ValueError, match='ParamScheduler'): learn.fit_one_cycle(1)
    learn.fit(1, wd=0.1)
    learn.lr_find(show=False)

@pytest.mark.slow
@pytest.mark.parametrize('name', (*PER_BATCH, 'plateau'))
def test_a_resumed_fit_is_the_unbroken_one_to_the_bit(name, tmp_path):
    class Break(Callback):
        def before_batch(self):
            if self.n_iter == 13: raise InterruptedError
    def fit(*cbs, **kw):
        learn = learner([TorchScheduler(PER_BATCH.get(name, PLATEAU)), GradClip(0.1),
                         Checkpoint(tmp_path/'c', every=1)])
        try: learn.fit(4, cbs=list(cbs), **kw)
        except InterruptedError: pass
        return learn
    whole = fit()
    fit(Break())
    again = fit(resume=tmp_path/'c')
    for p, q in zip(whole.model.parameters(), again.model.parameters()): assert torch.equal(p, q)
    assert (whole.recorder.lrs == again.recorder.lrs
            and get_hyper(whole.opt, 'lr') == get_hyper(again.opt, 'lr'))
