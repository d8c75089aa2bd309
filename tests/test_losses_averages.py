"""What is averaged over batches or ranks is what it would be over the whole set at once: for each loss and
metric, in each place, at each batch size."""
import functools, os, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from exp.callbacks import AvgStats, Callback, Runner
from exp.core import load_state
from exp.dataloader import DataLoader, Dataset, eval_simple
from exp.learner import Learner
from exp.losses import (BinaryCrossEntropy, CrossEntropy, HuberLoss, Loss, SquaredLoss, is_sum, loss_weight,
                        target_weights)
from exp.metrics import MeanMetric, accuracy, binary_accuracy
from exp.mixup import LabelSmoothing, MixUp
from exp.precision import GradAccumulation
from exp.progress import CSVLog, Progress

ROOT = Path(__file__).resolve().parents[1]
N, K = 64, 3
WEIGHTS = torch.tensor([1., 5., 0.2])
g = torch.Generator().manual_seed(2)
X, Y, NUMBERS = torch.randn(N, 4, generator=g), torch.randint(0, K, (N,),
                                                              generator=g), torch.randn(N, K, generator=g)

def ignoring(index, rows):
    y = Y.clone()
    y[rows] = index
    return y
FIRST, SPREAD = slice(0, 20), slice(0, 60, 3)   # of the first, whole batches of 7 and 16 do not count

class Marked(Loss):
    "A user's loss, which says with `mask` which targets count."
    def elements(self, pred, yb): return F.cross_entropy(pred, yb, reduction='none', ignore_index=-7)
    def mask(self, yb): return yb != -7

class Own:
    "A user's loss, which says with `count` by what it divides."
    def __call__(self, pred, yb):
        return (F.cross_entropy(pred, yb, reduction='none')*(yb + 1)).sum()/(yb + 1).sum()
    def count(self, yb): return (yb + 1).sum()

class Inherits(nn.CrossEntropyLoss): pass

LOSSES = {
    'ours': (CrossEntropy(), Y),
    'ours, −1 ignored': (CrossEntropy(ignore_index=-1), ignoring(-1, FIRST)),
    'ours, spread': (CrossEntropy(ignore_index=-1), ignoring(-1, SPREAD)),
    'ours, sum': (CrossEntropy('sum', ignore_index=-1), ignoring(-1, FIRST)),
    'function': (F.cross_entropy, ignoring(-100, FIRST)),
    'module': (nn.CrossEntropyLoss(), ignoring(-100, SPREAD)),
    'class weights': (nn.CrossEntropyLoss(weight=WEIGHTS), Y),
    'class weights, ignored': (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=-1), ignoring(-1, FIRST)),
    'partial': (functools.partial(F.cross_entropy, ignore_index=2), Y),
    'partial, weights': (functools.partial(F.cross_entropy, weight=WEIGHTS), ignoring(-100, FIRST)),
    'smoothed by PyTorch': (nn.CrossEntropyLoss(label_smoothing=0.2, weight=WEIGHTS), ignoring(-100, SPREAD)),
    'smoothed': (LabelSmoothing(0.2, ignore_index=-1), ignoring(-1, FIRST)),
    'sum': (nn.CrossEntropyLoss(reduction='sum'), ignoring(-100, FIRST)),
    'partial sum': (functools.partial(F.cross_entropy, reduction='sum', weight=WEIGHTS), Y),
    'a subclass': (Inherits(weight=WEIGHTS), ignoring(-100, FIRST)),
    'probabilities': (nn.CrossEntropyLoss(weight=WEIGHTS), NUMBERS.softmax(1)),
    'mask': (Marked(), ignoring(-7, FIRST)),
    'count': (Own(), Y),
    'squared': (SquaredLoss(), NUMBERS),
    'mse': (nn.MSELoss(), NUMBERS),
    'huber': (HuberLoss(0.5), NUMBERS),
    'binary': (BinaryCrossEntropy(), (NUMBERS > 0).float()),
    'binary, ours, weighted': (BinaryCrossEntropy(pos_weight=WEIGHTS), (NUMBERS > 0).float()),
    'binary, weighted': (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), (NUMBERS > 0).float()),
}
def model():
    torch.manual_seed(1)
    return nn.Linear(4, K)
def first_right(pred, yb): return (pred[:, 0] > 0).float().mean()
def as_numpy(pred, yb): return np.float64(pred.abs().mean().item())
def metrics_of(y):
    classes = ([accuracy] if not y.is_floating_point() else [binary_accuracy]
               if set(y.unique().tolist()) <= {0., 1.} else [])
    return [first_right, as_numpy, *classes]
def whole(loss, y, metrics):
    with torch.no_grad(): pred = model()(X)
    return {'loss': float(loss(pred, y)), **{m.__name__: float(m(pred, y)) for m in metrics}}
def close(got, want): assert got == {k: pytest.approx(v, rel=2e-5, abs=1e-6) for k, v in want.items()}

@pytest.mark.slow
@pytest.mark.parametrize('bs', [1, 7, 16, 64])
@pytest.mark.parametrize('name', LOSSES)
def test_an_epochs_numbers_are_those_of_the_whole_set_at_once(name, bs, tmp_path):
    loss, y = LOSSES[name]
    metrics = metrics_of(y)
    want, dl = whole(loss, y, metrics), DataLoader(Dataset(X, y), bs)
    learn = Learner((dl, dl), model(), loss_func=loss, opt_func=torch.optim.SGD, lr=0., metrics=metrics,
                    cbs=[bars := Progress(False), _log := CSVLog(tmp_path/'log.csv')])
    learn.fit(1)
    row = learn.history[0]
    for which in ('train', 'valid'): close({k: row[f'{which}_{k}'] for k in want}, want)
    close(learn.validate(), want)
    assert learn.recorder.valid_losses == [pytest.approx(want['loss'], rel=2e-5)]
    head, line = (tmp_path/'log.csv').read_text().splitlines()
    written = dict(zip(head.split(','), map(float, line.split(','))))
    assert written == pytest.approx(row) and bars.rows == learn.history
    if not is_sum(loss): close(eval_simple(model(), loss, (dl, dl), metrics), want)

@pytest.mark.parametrize('name', [n for n in LOSSES if n != 'probabilities'])
def test_a_step_of_small_batches_is_that_of_the_whole_set(name):
    loss, y = LOSSES[name]
    want = model()
    loss(want(X), y).backward()
    learn = Runner((DataLoader(Dataset(X, y), 7), None), got := model(), loss_func=loss, lr=1.,
                   cbs=GradAccumulation(N))
    learn.fit(1)
    assert (model().weight - got.weight).detach() == pytest.approx(want.weight.grad, rel=1e-4, abs=1e-5)

def test_ignored_targets_leave_one_accuracy_for_all_batch_sizes():
    y = ignoring(-1, FIRST)
    got = {bs: Learner((DataLoader(Dataset(X, y), bs),)*2, model(), loss_func=CrossEntropy(ignore_index=-1),
                       metrics=[accuracy]).validate()['accuracy'] for bs in (7, 16, 64)}
    with torch.no_grad(): assert list(got.values()) == pytest.approx([float(accuracy(model()(X), y))]*3)

class Seen(Callback):
    order = 30
    def before_fit(self): self.parts = []
    def after_loss(self):
        lam, partner = self.mixup.lam, self.mixup.partner
        weight = (lam*WEIGHTS[self.yb] + (1 - lam)*WEIGHTS[self.yb[partner]]).sum()
        self.parts.append((float(self.loss), float(weight)))

def test_mixtures_are_averaged_by_what_their_mean_was_divided_by():
    run = Runner((DataLoader(Dataset(X, Y), 10), None), model(),
                 loss_func=nn.CrossEntropyLoss(weight=WEIGHTS), lr=0.,
                 cbs=[MixUp(), seen := Seen(), stats := AvgStats()])
    run.fit(1)
    assert (stats.history[0]['train_loss']
            == pytest.approx(sum(v*w for v, w in seen.parts)/sum(w for _, w in seen.parts), rel=1e-5))

def test_a_mean_of_nothing_adds_nothing_and_another_nan_stays():
    m = MeanMetric(lambda pred, yb: pred.mean(), len)
    for pred, yb in ((torch.ones(2), torch.ones(2)), (torch.empty(0), torch.empty(0))): m.update(pred, yb)
    assert float(m.compute()) == 1
    m.update(torch.full((2,), float('nan')), torch.ones(2))
    assert np.isnan(float(m.compute()))

@pytest.mark.parametrize('name', LOSSES)
def test_the_weight_is_what_the_loss_divides_its_sum_by(name):
    loss, y = LOSSES[name]
    weights = target_weights(loss, y)
    if weights is not None: assert float(weights.sum()) == pytest.approx(float(loss_weight(loss, y)))
    if weights is None or is_sum(loss): return
    with torch.no_grad(): pred = model()(X)
    sums = sum(float(loss(p[None], t[None]))*float(w) for p, t, w in zip(pred, y, weights.float()) if w)
    assert sums/float(weights.sum()) == pytest.approx(float(loss(pred, y)), rel=1e-4)

# ---------------------------------------------------------------- two processes

SCRIPT = '''
import sys, torch
sys.path.insert(0, sys.argv[2])
from test_losses_averages import *
from exp.core import save_state
from exp.distributed import distributed, rank
out = {}
with distributed():
    for name, (loss, y) in LOSSES.items():
        dl = DataLoader(Dataset(X, y), 7)
        learn = Learner((dl, dl), model(), loss_func=loss, opt_func=torch.optim.SGD, lr=0.,
                        metrics=metrics_of(y), cbs=Progress(False)).to_distributed()
        learn.fit(1)
        out[name] = {**learn.history[0], 'recorded': learn.recorder.valid_losses[0]}
    save_state(f'{sys.argv[1]}/{rank()}.pth', out)
'''

@pytest.mark.launch
@pytest.mark.skipif(os.name == 'nt' or not dist.is_available() or not dist.is_gloo_available(),
                    reason='needs torchrun with gloo')
def test_two_processes_have_the_numbers_of_the_whole_set(tmp_path):
    (tmp_path/'script.py').write_text(SCRIPT)
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
           'EXP_DEVICE': 'cpu', 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2',
               str(tmp_path/'script.py'), str(tmp_path), str(ROOT/'tests')]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_state(tmp_path/f'{r}.pth') for r in (0, 1))
    for name, (loss, y) in LOSSES.items():
        want = whole(loss, y, metrics_of(y))
        for rank in (first, second):
            for which in ('train', 'valid'): close({k: rank[name][f'{which}_{k}'] for k in want}, want)
            assert rank[name]['recorded'] == pytest.approx(want['loss'], rel=2e-5), name
