"""Checkpoints that do not fit are refused and leave all as it was; a fit that breaks off resumes in its
learner or another."""
import errno, pickle, random
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import exp.core
from exp.callbacks import Callback
from exp.checkpoints import Checkpoint, CheckpointError
from exp.core import load_state, save_state
from exp.dataloader import Dataset, make_data
from exp.learner import Learner
from exp.metrics import accuracy
from exp.optimizers import lamb_opt, sgd_opt
from exp.progress import CSVLog, Progress
from exp.schedules import EarlyStopping

def same(a, b, where='it'):
    "Assert equality to the bit, with the place of the first difference."
    assert type(a) is type(b), f'{where}: {type(a)} and {type(b)}'
    if isinstance(a, dict):
        assert list(a) == list(b), f'{where}: {list(a)} and {list(b)}'
        for k in a: same(a[k], b[k], f'{where}[{k!r}]')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), f'{where}: lengths {len(a)} and {len(b)}'
        for i, (v, w) in enumerate(zip(a, b)): same(v, w, f'{where}[{i}]')
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), f'{where} differs'
    else: assert a == b, f'{where}: {a!r} and {b!r}'


# ------------ checkpoints that do not belong here, in this process

class Broken(Exception): pass

class Break(Callback):
    "Ends a fit by an error in its n-th batch."
    def __init__(self, n): self.left = n
    def after_backward(self):
        self.left -= 1
        if not self.left: raise Broken

class Other(Callback):
    "A callback with a state."
    def state_dict(self): return {}
    def load_state_dict(self, state): pass

def network(width=6, norm=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width) if norm else nn.Identity(), nn.ReLU(),
                         nn.Dropout(0.3), nn.Linear(width, 3))

def bunch(n=40, bs=8, seed=1):
    g = torch.Generator().manual_seed(0)
    return make_data(Dataset(torch.randn(n, 5, generator=g), torch.randint(3, (n,), generator=g)),
                     Dataset(torch.randn(10, 5, generator=g), torch.arange(10) % 3), bs=bs, seed=seed)

def learner(data=None, model=None, cbs=(), **kw):
    return Learner(bunch() if data is None else data, network() if model is None else model,
                   metrics=[accuracy], lr=0.01, cbs=[Progress(False), *cbs], **kw)

def unbroken():
    "A learner after the fit that `ckpt` is of."
    learn = learner()
    learn.fit_one_cycle(3)
    return learn

@pytest.fixture
def ckpt(tmp_path):
    "The checkpoint of a fit of 3 epochs of 5 batches, broken off in the 8th."
    path = tmp_path/'fit.ckpt'
    with pytest.raises(Broken): learner().fit_one_cycle(3, cbs=[Checkpoint(path, every=3), Break(8)])
    assert load_state(path)['n_iter'] == 6
    return path

def copied(o):
    if isinstance(o, torch.Tensor): return o.detach().clone()
    if isinstance(o, dict): return {k: copied(v) for k, v in o.items()}
    return type(o)(map(copied, o)) if isinstance(o, (list, tuple)) else o

def everything(learn):
    "What a refused call must leave as it is."
    return copied({'model': learn.model.state_dict(),
                   'grads': [p.grad is None for p in learn.model.parameters()],
                   'learn': [p.requires_grad for p in learn.model.parameters()],
                   'opt': learn.opt.state_dict() if learn.opt else None, 'epoch': learn.epoch,
                   'n_iter': learn.n_iter, 'callbacks': [repr(cb) for cb in learn.cbs],
                   'training': [m.training for m in learn.model.modules()]})

def refused(learn, call, errors, match, folder):
    """`call` raises; the learner, which has been trained a bit, is as it was, it can go on, and no file came
    or went."""
    learn.fit(1)
    before, files = everything(learn), {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    with pytest.raises(errors, match=match): call(learn)
    same(everything(learn), before)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == files
    assert not learn.fitting

READERS = {'resume': lambda path: lambda learn: learn.fit_one_cycle(3, resume=path),
           'load': lambda path: lambda learn: learn.load(path)}
readers = pytest.mark.parametrize('reader', READERS)

@pytest.mark.slow
@readers
def test_a_file_that_was_cut_short_is_refused_at_every_length(ckpt, reader):
    whole, learn = ckpt.read_bytes(), learner()
    learn.fit(1)
    before = everything(learn)
    for length in sorted({*range(0, len(whole), len(whole)//150), *range(20),
                          *range(len(whole) - 40, len(whole))}):
        ckpt.write_bytes(whole[:length])
        with pytest.raises(ValueError, match='fit.ckpt'): READERS[reader](ckpt)(learn)
    same(everything(learn), before)
    ckpt.write_bytes(whole)
    learner().fit_one_cycle(3, cbs=[Checkpoint(ckpt)], resume=ckpt)

@readers
def test_a_file_with_a_changed_byte_is_refused_or_harmless(ckpt, reader):
    "Each part of the file has a sum; what is not covered by it says nothing of the training."
    whole, right, rng = ckpt.read_bytes(), load_state(ckpt), random.Random(0)
    for _ in range(60):
        i = rng.randrange(len(whole))
        ckpt.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << rng.randrange(8))]) + whole[i + 1:])
        try: state = load_state(ckpt)
        except ValueError as e: assert 'fit.ckpt' in str(e)
        else: same(state, right)

class Hostile:
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return open, (self.marker, 'w')

@readers
@pytest.mark.parametrize('how', ['torch', 'old torch', 'pickle', 'in a checkpoint'])
def test_a_hostile_file_is_refused_and_runs_nothing(ckpt, tmp_path, reader, how):
    marker = tmp_path/'it ran'
    if how == 'torch': torch.save(Hostile(marker), ckpt)
    elif how == 'old torch': torch.save(Hostile(marker), ckpt, _use_new_zipfile_serialization=False)
    elif how == 'pickle': ckpt.write_bytes(pickle.dumps(Hostile(marker), 2))
    else: torch.save({**load_state(ckpt), 'model': Hostile(marker)}, ckpt)
    refused(learner(), READERS[reader](ckpt), ValueError, 'refused', tmp_path)
    assert not marker.exists()
    with open(ckpt, 'rb') as f:   # the file is really one that would have
        if how == 'pickle': pickle.load(f).close()
        else: torch.load(f, weights_only=False)
    assert marker.exists()

@readers
@pytest.mark.parametrize('content', [b'', b'hello', b'PK\x03\x04', bytes(5000)],
                         ids=['empty', 'text', 'the beginning of a zip', 'zeros'])
def test_a_file_that_is_something_else_is_refused(ckpt, tmp_path, reader, content):
    ckpt.write_bytes(content)
    refused(learner(), READERS[reader](ckpt), ValueError, 'fit.ckpt', tmp_path)

@readers
def test_a_folder_and_a_missing_file_are_refused(tmp_path, reader):
    for path in (tmp_path, tmp_path/'none.ckpt'):
        refused(learner(), READERS[reader](path), OSError, path.name, tmp_path)

@readers
@pytest.mark.parametrize('state', [[1, 2], {'weight': torch.zeros(3)}, {}],
                         ids=['a list', 'another state dict', 'nothing'])
def test_a_state_of_another_kind_is_refused(ckpt, tmp_path, reader, state):
    save_state(ckpt, state)
    refused(learner(), READERS[reader](ckpt), ValueError, 'fit.ckpt', tmp_path)

ELSEWHERE = {   # a learner, and what the error must name
    'a wider model':         (lambda: learner(model=network(7)), ValueError,
                              '0.weight'),
    'a model without norm':  (lambda: learner(model=network(norm=False)), ValueError,
                              '1.weight'),
    'a larger set':          (lambda: learner(bunch(48)), CheckpointError, '48'),
    'another batch size':    (lambda: learner(bunch(bs=10)), CheckpointError, 'batch'),
    'another seed':          (lambda: learner(bunch(seed=2)), CheckpointError, 'seed'),
    'another optimizer':     (lambda: learner(opt_func=partial(sgd_opt, mom=0.9)), ValueError, 'optimizer'),
    "torch's optimizer":     (lambda: learner(opt_func=torch.optim.AdamW), ValueError, 'optimizer'),
    'LAMB':                  (lambda: learner(opt_func=lamb_opt), ValueError, 'optimizer'),
    'more layer groups':     (lambda: learner(splitter=lambda m: [m[:3], m[3:]]), ValueError,
                              'optimizer|group'),
    'one callback more':     (lambda: learner(cbs=[Other()]), CheckpointError, 'other'),
    'two trackers more':     (lambda: learner(cbs=[Other(), EarlyStopping()]), CheckpointError,
                              'early_stopping'),
}


@pytest.mark.parametrize('what', ELSEWHERE)
def test_a_checkpoint_of_another_training_is_refused(ckpt, tmp_path, what):
    make, errors, match = ELSEWHERE[what]
    refused(make(), lambda learn: learn.fit_one_cycle(3, resume=ckpt), errors, match, tmp_path)

def test_a_checkpoint_of_another_fit_is_refused(ckpt, tmp_path):
    for epochs in (2, 4):
        refused(learner(), lambda learn: learn.fit_one_cycle(epochs, resume=ckpt), CheckpointError,
                'epochs', tmp_path)
    refused(learner(), lambda learn: learn.fit(3, resume=ckpt), CheckpointError,
            'param_scheduler', tmp_path)
    refused(learner(), lambda learn: learn.fit_one_cycle(3, moms=None, resume=ckpt), CheckpointError,
            'missing', tmp_path)
    refused(learner(), lambda learn: learn.fit_one_cycle(3, cbs=CSVLog(tmp_path/'log.csv'), resume=ckpt),
            CheckpointError, 'csv_log', tmp_path)

def test_a_checkpoint_with_frozen_layers_is_refused_where_they_learn(tmp_path):
    path, halves = tmp_path/'fit.ckpt', lambda m: [m[:3], m[3:]]
    first = learner(splitter=halves)
    first.freeze()
    with pytest.raises(Broken): first.fit(3, cbs=[Checkpoint(path, every=3), Break(8)])
    refused(learner(splitter=halves), lambda learn: learn.fit(3, cbs=Checkpoint(path), resume=True),
            CheckpointError, 'freeze', tmp_path)

def test_the_refused_fit_can_be_mended(ckpt):
    "After a refusal the same learner resumes, once it is asked for rightly."
    learn = learner()
    with pytest.raises(CheckpointError): learn.fit_one_cycle(4, resume=ckpt)
    learn.fit_one_cycle(3, resume=ckpt)
    same(everything(learn), everything(unbroken()))

def test_resume_asks_for_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match='Checkpoint'): learner().fit(1, resume=True)
    learner().fit(1, cbs=Checkpoint(tmp_path/'a'/'b.ckpt'), resume=True)   # none yet; folders are made
    assert [p.name for p in (tmp_path/'a').iterdir()] == ['b.ckpt']
    with pytest.raises(OSError, match=tmp_path.name): learner().fit(1, cbs=Checkpoint(tmp_path))
    for every, error in ((0, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match='every'): Checkpoint(tmp_path/'c', every)


# ---------------------------------------------------------------- a full disk

def full(state, f):
    "As `torch.save` on a disk that is full after 1,000 bytes."
    Path(f).write_bytes(bytes(1000))
    raise OSError(errno.ENOSPC, 'No space left on device')

def test_on_a_full_disk_the_fit_ends_and_the_last_checkpoint_stays(ckpt, tmp_path, monkeypatch):
    before = ckpt.read_bytes()
    learn = learner()
    with monkeypatch.context() as m:
        m.setattr(exp.core.torch, 'save', full)
        with pytest.raises(OSError, match='space'):
            learn.fit_one_cycle(3, cbs=Checkpoint(ckpt, every=3), resume=True)
        with pytest.raises(OSError, match='space'): learn.save(tmp_path/'weights')
        with pytest.raises(OSError, match='space'): learn.export(tmp_path/'export.pth')
    assert ckpt.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['fit.ckpt']
    learn = learner()
    learn.fit_one_cycle(3, cbs=Checkpoint(ckpt, every=3), resume=True)
    same(everything(learn), everything(unbroken()))


# ---------------------------------------------------------------- what a user does besides

@pytest.mark.slow
def test_fits_before_and_after_go_on_counting(tmp_path):
    """A frozen fit, then one with checkpoints that is broken off: it resumes in a new learner, and a third
    follows."""
    path, halves = tmp_path/'fit.ckpt', lambda m: [m[:3], m[3:]]
    def run(learn, breaks=(), resume=None):
        if not resume:
            learn.freeze()
            learn.fit(1)
            learn.unfreeze()
        learn.fit_one_cycle(2, slice(1e-3, 1e-2), cbs=[Checkpoint(path, every=2), *breaks], resume=resume)
        learn.fit(1, 1e-3)
        return everything(learn), [row['epoch'] for row in learn.history]
    unbroken = run(learner(splitter=halves))
    with pytest.raises(Broken): run(learner(splitter=halves), [Break(8)])
    same(run(learner(splitter=halves), resume=True), unbroken)

def test_an_interrupted_fit_resumes_in_the_same_learner(tmp_path):
    learn, path = learner(), tmp_path/'fit.ckpt'
    with pytest.raises(Broken): learn.fit_one_cycle(3, cbs=[Checkpoint(path, every=2), Break(12)])
    learn.fit_one_cycle(3, cbs=Checkpoint(path, every=2), resume=True)
    same(everything(learn), everything(unbroken()))

def test_a_torch_loader_resumes_at_the_beginning_of_an_epoch_only(tmp_path):
    "Its order is its own; checkpoints come when an epoch has ended."
    def make():
        g = torch.Generator().manual_seed(0)
        ds = torch.utils.data.TensorDataset(torch.randn(40, 5, generator=g),
                                            torch.randint(3, (40,), generator=g))
        dl = lambda **kw: torch.utils.data.DataLoader(ds, 8, generator=torch.Generator().manual_seed(2), **kw)
        return learner((dl(shuffle=True), dl()))
    path = tmp_path/'fit.ckpt'
    with pytest.raises(Broken): make().fit(3, cbs=[Checkpoint(path, every=2), Break(8)])
    assert load_state(path)['n_iter'] == 5
    learn = make()
    learn.fit(3, cbs=Checkpoint(path), resume=True)
    right = make()
    right.fit(3)
    same(everything(learn), everything(right))

@pytest.mark.slow
def test_a_csv_log_has_each_epoch_once(tmp_path):
    path, rows = tmp_path/'fit.ckpt', lambda name: [line.split(',')[:-1]
                                                    for line in (tmp_path/name).read_text().split()]
    # whose reading cuts the sums of the loss in the same places
    learner().fit(4, cbs=[CSVLog(tmp_path/'whole.csv'), Checkpoint(tmp_path/'whole.ckpt', every=2)])
    for n in (3, 9, 7):
        with pytest.raises(Broken):
            learner().fit(4, cbs=[CSVLog(tmp_path/'log.csv'), Checkpoint(path, every=2), Break(n)],
                          resume=True)
    learner().fit(4, cbs=[CSVLog(tmp_path/'log.csv'), Checkpoint(path, every=2)], resume=True)
    assert rows('log.csv') == rows('whole.csv')

def test_the_name_of_a_checkpoint_may_hold_any_character(tmp_path):
    path = tmp_path/'fit [1].ckpt'
    left, other = tmp_path/'.fit [1].ckpt.abc.part', tmp_path/'.fit 1.ckpt.abc.part'
    left.touch()
    other.touch()
    learner().fit(1, cbs=Checkpoint(path))
    assert not left.exists() and other.exists()
