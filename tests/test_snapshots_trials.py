"""A trial leaves what a loss and callbacks remember as it was."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.callbacks import Callback, Runner
from exp.dataloader import make_data
from exp.learner import Learner
from exp.mixup import MixUp
from exp.precision import GradAccumulation, MixedPrecision
from exp.progress import Progress
from exp.schedules import EMA, EarlyStopping, LRFinder
from test_checkpoints_losses import Break, Lazy, kinds, learner, points, same, seen

@pytest.mark.slow
@kinds
@pytest.mark.parametrize('how', ['lr_find', 'LRFinder', 'broken off'])
def test_a_trial_leaves_the_loss_as_it_was(kind, how):
    def training(trial):
        learn, holder = learner(kind)
        learn.fit(1)
        if trial and how == 'lr_find': learn.lr_find(30, max_lr=1, show=False)
        if trial and how == 'LRFinder': Runner.fit(learn, 1, None, LRFinder(30, max_lr=1))
        if trial and how == 'broken off':
            with pytest.raises(InterruptedError):
                Runner.fit(learn, 1, None, [LRFinder(30, max_lr=1), Break(12)])
        learn.fit(1)
        return seen(learn, holder)
    assert same(training(True), training(False))

def test_a_trial_puts_back_a_parameter_that_only_the_optimizer_has():
    stray = nn.Parameter(torch.tensor(1.))
    learn, _ = learner()
    learn.loss_func = lambda pred, yb: F.cross_entropy(pred*stray, yb)
    learn.opt_func = lambda groups, lr: torch.optim.SGD([*groups, {'params': [stray]}], lr=lr)
    learn.lr_find(20, show=False)
    assert stray == 1.

@pytest.mark.parametrize('fits', [0, 1])
def test_a_trial_leaves_what_a_loss_counts_and_has_not_yet_as_it_was(fits):
    learn = Learner(make_data(points(40, 1), points(16, 2), bs=8), nn.Linear(4, 3),
                    loss_func=(loss := Lazy()), cbs=Progress(False))
    learn.fit(fits)
    was = loss.mean, loss.n
    learn.lr_find(20, show=False)
    assert (loss.mean, loss.n) == was

class OwnAverages(Callback):
    "An averaging callback of one's own."
    def before_fit(self):
        self.averages = ({n: p.detach().clone() for n, p in self.model.named_parameters()}
                         if not hasattr(self, 'averages') else self.averages)
    def after_step(self):
        for n, p in self.model.named_parameters(): self.averages[n].lerp_(p.detach(), 0.1)
    def state_dict(self): return {'averages': self.averages}
    def load_state_dict(self, state): self.averages = state['averages']

class Counts(Callback):
    n = 0
    def after_step(self): self.n += 1
    def state_dict(self): return {'n': self.n}
    def load_state_dict(self, state): self.n = state['n']

STATEFUL = {'averages': OwnAverages, 'counts': Counts, 'ema': lambda: EMA(0.9),
            'fp16': lambda: MixedPrecision(init_scale=8., growth_interval=3),
            'accumulation': lambda: GradAccumulation(16),
            'mixup': MixUp, 'stopping': lambda: EarlyStopping(patience=9),
            'lasting': lambda: EarlyStopping(patience=9, reset_on_fit=False)}

def plain(state):
    return ({k: plain(v) for k, v in state.items()} if isinstance(state, dict) else [plain(v) for v in state]
            if isinstance(state, (list, tuple)) else state.tolist() if isinstance(state, torch.Tensor)
            else state)

@pytest.mark.slow
@pytest.mark.parametrize('before', [0, 1])
@pytest.mark.parametrize('kind', STATEFUL)
def test_a_trial_leaves_callbacks_with_a_state_as_they_were(kind, before):
    cb = STATEFUL[kind]()
    learn, _ = learner(cbs=[cb])
    if before: learn.fit(1)
    try: was = plain(copy.deepcopy(cb.state_dict()))
    except AttributeError: was = None
    names = set(vars(cb))
    for trial in (lambda: learn.lr_find(20, show=False), lambda: Runner.fit(learn, 1, None, LRFinder(20))):
        trial()
        assert set(vars(cb)) == names
        if was is not None: assert plain(cb.state_dict()) == was
