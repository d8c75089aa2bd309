"""What is gathered over batches is applied however an epoch ends; fp16 trains through batches without
gradients."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.callbacks import (Callback, CancelBatchException, CancelEpochException, CancelFitException,
                           CancelStepException, Runner)
from exp.dataloader import DataLoader, Dataset
from exp.precision import GradAccumulation, MixedPrecision
from exp.regularization import grad_norm

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
