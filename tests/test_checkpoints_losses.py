"""What a training changes beside the model is part of its state: a loss that learns or remembers, the
optimizer's other parameters. It is saved, exported, resumed, moved, and evaluated as the model is."""
import copy, functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.callbacks import AvgStats, Callback, Runner
from exp.checkpoints import Checkpoint, CheckpointError
from exp.core import set_seed
from exp.dataloader import Dataset, make_data
from exp.inference import load_learner
from exp.learner import Learner
from exp.losses import CrossEntropy
from exp.precision import GradAccumulation, MixedPrecision
from exp.progress import Progress
from exp.schedules import SaveBest
from exp.specs import register


# ---------------------------------------------------------------- losses with a state

@register
class Warm(nn.Module):
    "A learned temperature, a buffer that counts and one that no state dict shows, and dropout."
    def __init__(self, reduction='mean'):
        super().__init__()
        self.log_t, self.reduction = nn.Parameter(torch.tensor(0.)), reduction
        self.register_buffer('calls', torch.zeros(()))
        self.register_buffer('hidden', torch.zeros(3), persistent=False)
        self.drop = nn.Dropout(0.1)
    def forward(self, pred, yb):
        if self.training and torch.is_grad_enabled():
            self.calls += 1
            self.hidden += pred.detach().mean(0)
        return F.cross_entropy(self.drop(pred)/self.log_t.exp(), yb, reduction=self.reduction)

class Ours(CrossEntropy):
    "One of our own losses, with a parameter and a tensor that is replaced."
    def __init__(self):
        super().__init__()
        self.log_t, self.calls = nn.Parameter(torch.tensor(0.)), torch.zeros(())
    def elements(self, pred, yb):
        if torch.is_grad_enabled(): self.calls = self.calls + 1
        return super().elements(pred/self.log_t.exp(), yb)

class OwnState:
    "No module, but with a state_dict."
    def __init__(self): self.t, self.n = nn.Parameter(torch.tensor(0.)), [0]
    def __call__(self, pred, yb):
        if torch.is_grad_enabled(): self.n[0] += 1
        return F.cross_entropy(pred/self.t.exp(), yb)
    def state_dict(self): return {'t': self.t.detach(), 'n': list(self.n)}
    def load_state_dict(self, state):
        self.t.data.copy_(state['t'])
        self.n = list(state['n'])
    log_t = property(lambda self: self.t)
    calls = property(lambda self: torch.tensor(float(self.n[0])))

class Parts:
    "A plain object with modules in a list."
    def __init__(self): self.parts = [nn.CrossEntropyLoss(), Warm()]
    def __call__(self, pred, yb): return self.parts[1](pred, yb)
    def compute(self, pred, yb): return self(pred, yb)

def closed():
    inner = Warm()
    def loss(pred, yb): return inner(pred, yb)
    return loss, inner

def _parts():
    loss = Parts()
    return loss, loss.parts[1]

def _method():
    loss = Parts()
    return loss.compute, loss.parts[1]

def _partial():
    inner = Warm()
    return functools.partial(inner), inner

def _itself(kind):
    loss = kind()
    return loss, loss

IN_THE_FILE = Warm()

def used(pred, yb): return IN_THE_FILE(pred, yb)

def _named():
    globals()['IN_THE_FILE'] = inner = Warm()
    return lambda pred, yb: used(pred, yb), inner

def _default():
    inner = Warm()
    def loss(pred, yb, inner=inner): return inner(pred, yb)
    return loss, inner

LOSSES = {'named': _named, 'default': _default, 'module': lambda: _itself(Warm), 'partial': _partial,
          'ours': lambda: _itself(Ours), 'own state': lambda: _itself(OwnState),
          'in a list': _parts, 'method': _method, 'closure': closed}
kinds = pytest.mark.parametrize('kind', LOSSES)

def points(n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g)
    return Dataset(x, x[:, :3].argmax(1))

def learner(kind='module', cbs=(), model=None, **kwargs):
    "A learner, and the object in its loss that has the state."
    set_seed(1)
    loss, holder = LOSSES[kind]() if isinstance(kind, str) else (kind, kind)
    def opt_func(groups, lr):
        return torch.optim.SGD([*groups, {'params': [holder.log_t]}], lr=lr, momentum=0.9)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) if model is None else model
    return Learner(make_data(points(40, 1), points(16, 2), bs=8, seed=3), model, loss_func=loss,
                   opt_func=opt_func, lr=0.1, cbs=[Progress(False), *cbs], **kwargs), holder

def seen(learn, holder):
    "All that should be the same."
    more = [getattr(holder, 'hidden', torch.zeros(()))]
    return [t.detach().clone() for t in (*learn.model.parameters(), holder.log_t, holder.calls, *more)]

def same(a, b): return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))

class Break(Callback):
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.in_train and self.n_iter == self.at: raise InterruptedError


class Lazy:
    "Keeps an average that is not there before the first batch, and a count."
    def __init__(self): self.mean, self.n = None, 0
    def __call__(self, pred, yb):
        if torch.is_grad_enabled():
            self.mean, self.n = pred.detach().mean() + (0 if self.mean is None else self.mean), self.n + 1
        return F.cross_entropy(pred, yb)


def test_an_average_that_begins_with_the_first_batch_is_resumed(tmp_path):
    def make():
        set_seed(1)
        return Learner(make_data(points(40, 1), points(16, 2), bs=8, seed=3), nn.Linear(4, 3),
                       loss_func=Lazy(), cbs=Progress(False))
    whole, first, again = make(), make(), make()
    whole.fit(2)
    with pytest.raises(InterruptedError):
        first.fit(2, cbs=[Checkpoint(tmp_path/'fit.ckpt', every=1), Break(7)])
    again.fit(2, cbs=Checkpoint(tmp_path/'fit.ckpt', every=1), resume=True)
    assert again.loss_func.mean == whole.loss_func.mean


# ---------------------------------------------------------------- files

@pytest.mark.slow
@kinds
@pytest.mark.parametrize('with_opt', [True, False])
def test_saved_and_loaded(kind, with_opt, tmp_path):
    learn, holder = learner(kind)
    learn.fit(2)
    learn.path = tmp_path
    learn.save('it', with_opt)
    other, there = learner(kind)
    other.path = tmp_path
    other.load('it', with_opt)
    assert same(seen(learn, holder)[:-1], seen(other, there)[:-1]) and there.calls > 0

@pytest.mark.slow
@kinds
@pytest.mark.parametrize('at', [3, 7, 10])
def test_a_resumed_training_ends_as_one_that_was_not_broken_off(kind, at, tmp_path):
    whole, holder = learner(kind)
    whole.fit(2)
    first, _ = learner(kind)
    try: first.fit(2, cbs=[Checkpoint(tmp_path/'fit.ckpt', every=1), Break(at)])
    except InterruptedError: pass
    again, there = learner(kind)
    again.fit(2, cbs=Checkpoint(tmp_path/'fit.ckpt', every=1), resume=True)
    assert same(seen(whole, holder), seen(again, there))

def test_gradients_of_a_loss_that_wait_in_a_group_are_resumed(tmp_path):
    whole, holder = learner(cbs=[GradAccumulation(16)])
    whole.fit(2)
    first, _ = learner(cbs=[GradAccumulation(16)])
    with pytest.raises(InterruptedError):
        first.fit(2, cbs=[Checkpoint(tmp_path/'fit.ckpt', every=1), Break(7)])
    again, there = learner(cbs=[GradAccumulation(16)])
    again.fit(2, cbs=Checkpoint(tmp_path/'fit.ckpt', every=1), resume=True)
    assert same(seen(whole, holder), seen(again, there))

@pytest.mark.parametrize('kind', ['module', 'partial', 'ours', 'own state'])
def test_exported(kind, tmp_path):
    learn, holder = learner(kind)
    learn.fit(2)
    path = learn.export(tmp_path/'it.pth')
    loss, there = LOSSES[kind]()
    load_learner(path, model=learner()[0].model, loss_func=loss)
    assert torch.equal(there.log_t, holder.log_t) and torch.equal(there.calls, holder.calls)

def test_a_registered_loss_is_exported_with_its_state(tmp_path):
    learn, holder = learner()
    learn.fit(2)
    again = load_learner(learn.export(tmp_path/'it.pth'), model=learner()[0].model)
    assert again.loss_func is not holder and torch.equal(again.loss_func.log_t, holder.log_t)

def test_a_parameter_that_the_optimizer_alone_holds_is_resumed(tmp_path):
    def strays():
        learn, _ = learner()
        stray = nn.Parameter(torch.tensor(1.))
        class Pull(Callback):
            def before_step(self): stray.grad = stray.detach() + self.loss
        learn.loss_func = F.cross_entropy
        learn.opt_func = lambda groups, lr: torch.optim.SGD([*groups, {'params': [stray]}], lr=lr)
        learn.add_cbs(Pull())
        return learn, stray
    whole, pulled = strays()
    whole.fit(2)
    first, _ = strays()
    with pytest.raises(InterruptedError):
        first.fit(2, cbs=[Checkpoint(tmp_path/'fit.ckpt', every=1), Break(7)])
    again, there = strays()
    again.fit(2, cbs=Checkpoint(tmp_path/'fit.ckpt', every=1), resume=True)
    assert torch.equal(there, pulled) and pulled != 1.

def test_the_state_of_another_loss_is_refused_or_said(tmp_path):
    learn, _ = learner()
    learn.fit(1)
    learn.path = tmp_path
    learn.save('it')
    other = Learner(learn.data, copy.deepcopy(learn.model), loss_func=nn.CrossEntropyLoss(torch.ones(3)),
                    opt_func=lambda g, lr: torch.optim.SGD([*g, {'params': [nn.Parameter(torch.tensor(0.))]}],
                                                           lr=lr, momentum=.9), cbs=Progress(False),
                    path=tmp_path)
    before = [p.detach().clone() for p in other.model.parameters()]
    with pytest.raises(ValueError, match='loss'): other.load('it')
    assert same(before, list(other.model.parameters()))
    with pytest.warns(UserWarning, match='loss'): other.load('it', with_opt=False)

def test_a_checkpoint_of_a_loss_whose_parameters_are_frozen_is_refused_where_they_learn(tmp_path):
    learn, holder = learner()
    holder.log_t.requires_grad_(False)
    with pytest.raises(InterruptedError):
        learn.fit(2, cbs=[Checkpoint(tmp_path/'fit.ckpt', every=1), Break(3)])
    with pytest.raises(CheckpointError, match='learn'):
        learner()[0].fit(2, cbs=Checkpoint(tmp_path/'fit.ckpt'), resume=True)

def test_the_best_weights_come_back_with_the_loss_they_had(tmp_path):
    class Worse:
        "A metric that is best in epoch 1."
        name = 'score'
        def __init__(self): self.n = 0
        def reset(self): pass
        def update(self, pred, yb): pass
        def compute(self):
            self.n += 1
            return float(abs(self.n - 2))
    class Note(Callback):
        order = 90
        def __init__(self): self.states = []
        def after_epoch(self): self.states.append(seen(self.run, self.loss_func))
    note = Note()
    learn, holder = learner(cbs=[AvgStats(Worse()), SaveBest(tmp_path/'best.pth', 'valid_score', mode='min',
                                                             load_best=True), note])
    learn.fit(4)
    assert same(seen(learn, holder)[:-1], note.states[1][:-1]) and not same(note.states[1], note.states[3])


# ---------------------------------------------------------------- modes, devices, precision, steps

@pytest.mark.parametrize('kind', ['module', 'partial', 'in a list', 'method', 'closure', 'named', 'default'])
def test_a_loss_is_evaluated_in_evaluation_mode_and_has_its_own_mode_else(kind):
    class Modes(Callback):
        def __init__(self): self.seen = []
        def after_loss(self): self.seen.append((self.in_train, holder.training, holder.drop.training))
    learn, holder = learner(kind)
    holder.drop.eval()   # on purpose
    learn.fit(1, cbs=(modes := Modes()))
    assert set(modes.seen) == {(True, True, False), (False, False, False)}
    learn.validate()
    assert holder.training and not holder.drop.training

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a second device')
@kinds
def test_a_loss_moves_with_the_model(kind):
    learn, holder = learner(kind)
    p = holder.log_t
    learn.fit(1)   # DeviceCallback is one of a learner's own
    assert (holder.log_t is p and p.device.type == 'cuda' and p != 0.
            and next(learn.model.parameters()).device.type == 'cuda')

def test_half_parameters_of_a_loss_are_refused_under_mixed_precision():
    learn, holder = learner(cbs=[MixedPrecision()])
    holder.half()
    with pytest.raises(ValueError, match='log_t'): learn.fit(1)

def test_a_loss_that_holds_the_model_or_the_learner_adds_nothing():
    learn, _ = learner()
    model = learn.model
    learn.loss_func = (lambda pred, yb: F.cross_entropy(pred, yb) + 0.1*model[0].weight.norm()
                       + 0*learn.model[2].bias.sum())
    assert learn.stateful == [model] and learn.loss_state() == {}

@pytest.mark.parametrize('where', ['fit', 'fit_one_cycle', 'lr_find', 'Runner', 'fp16', 'accumulation'])
def test_where_nothing_learns_it_is_said(where):
    learn, holder = learner(cbs={'fp16': [MixedPrecision()],
                                 'accumulation': [GradAccumulation(16)]}.get(where, ()))
    for p in (*learn.model.parameters(), holder.log_t): p.requires_grad_(False)
    call = {'fit_one_cycle': lambda: learn.fit_one_cycle(1), 'lr_find': lambda: learn.lr_find(show=False),
            'Runner': lambda: Runner(learn.data, learn.model).fit(1)}.get(where, lambda: learn.fit(1))
    with pytest.raises(ValueError, match='learns'): call()

def test_tied_weights_stand_once_in_a_group_and_not_in_two():
    tied = nn.Linear(4, 4)
    model = nn.Sequential(tied, nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = tied.weight
    learn, _ = learner(model=model, splitter=lambda m: [[m[0], m[2]], m[3]])
    assert [len(g) for g in learn.layer_groups()] == [3, 2]
    learn.fit(1)
    with pytest.raises(ValueError, match='places'):
        learner(model=model, splitter=lambda m: [m[0], [m[2], m[3]]])

@pytest.mark.parametrize('part', ['0.weight', {'params': []}, None, 3])
def test_a_splitter_of_something_else_is_refused(part):
    with pytest.raises(TypeError, match='group'): learner(splitter=lambda m: [part, m])

@pytest.mark.parametrize('fit', ['fit', 'fit_one_cycle'])
def test_no_epochs_train_nothing(fit):
    learn, holder = learner()
    before = seen(learn, holder)
    getattr(learn, fit)(0)
    assert same(before, seen(learn, holder)) and learn.epoch == learn.n_iter == 0 and learn.history == []
    learn.fit(1)
    assert learn.epoch == 1
