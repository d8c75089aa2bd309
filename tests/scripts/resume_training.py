"""Trainings that kill themselves where they are told, for tests/test_checkpoints_killed.py.

    python resume_training.py '{"setup": "images", "folder": "…", "kill": ["after_step", 7, -1000]}'
    python resume_training.py --serve    reads such lines, each run in a forked process
"""
import json, multiprocessing, os, random, signal, sys, traceback
from functools import partial
from pathlib import Path

if __name__ == '__main__': sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import nn

from exp.callbacks import Callback, CancelStepException
from exp.data_block import ImageList
from exp.transforms import Transform
from exp.dataloader import Dataset, Rng, TransformedDataset, make_data, random_shift
from exp.checkpoints import Checkpoint
from exp.learner import Learner
from exp.metrics import accuracy
from exp.optimizers import adam_opt, lamb_opt, sgd_opt
from exp.schedules import EarlyStopping, ReduceLROnPlateau

N, N_VALID, BS, EPOCHS = 43, 17, 8, 4   # the last batch of 6 has 3 items

# ---------------------------------------------------------------- data, with randomness at every place

def items():
    g = torch.Generator().manual_seed(1)
    x = torch.randint(256, (N + N_VALID, 3, 8, 8), generator=g, dtype=torch.uint8)
    return x, (x[:, 0].float().mean((1, 2)) > 127).long()

def noise(x, rng): return x + 0.1*torch.randn(x.shape, generator=rng.generator())

class FlipSome:
    "Mirrors some items of a batch, as `BatchContext` says."
    on, order = 'batch', 20
    def __call__(self, xb, yb, ctx):
        flip = torch.tensor([Rng(ctx.seed, ctx.epoch, i, 'flip').random() < 0.5 for i in ctx.items])
        return torch.where(flip[:, None, None, None], xb.flip(-1), xb), yb

class Brighten(Transform):
    order, random = 40, True
    def draw(self, x, rng): return rng.uniform(0.7, 1.)
    def image(self, x, draw): return (x*draw).to(torch.uint8)

class Shade(Transform):
    order, on, random = 50, 'batch', True
    def draw(self, xb, rngs): return torch.tensor([r.uniform(0.8, 1.2) for r in rngs])
    def image(self, xb, draw): return xb*draw[:, None, None, None]

def tensors(num_workers=0):
    x, y = items()
    x = x.float()/255
    train = TransformedDataset(Dataset(x[:N], y[:N]), [random_shift, noise])
    return make_data(train, Dataset(x[N:], y[N:]), bs=BS, num_workers=num_workers,
                     batch_tfms=([FlipSome()], []))

def label(im): return int(im[0].float().mean() > 127)

def images(num_workers=0):
    x, _ = items()
    split = ImageList(list(x)).split_by_index(range(N, N + N_VALID)).label_from_func(label)
    return split.transform(([Brighten(), Shade()], []),
                           size=8).databunch(BS, num_workers=num_workers).normalize(([0.5]*3, [0.3]*3))

# ---------------------------------------------------------------- networks and callbacks

class Counted(nn.Module):
    "Scales by a number that grows with each batch of training, in a buffer that a state dict leaves out."
    def __init__(self):
        super().__init__()
        self.register_buffer('n', torch.zeros(()), persistent=False)
    def forward(self, x):
        if self.training: self.n += 1
        return x*(1 + self.n/1000)

def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), Counted(), nn.Flatten(),
                         nn.Dropout(0.3), nn.Linear(54, 2))

def halves(model): return [model[:3], model[3:]]

class Jolt(Callback):
    "Draws from all three global generators, and remembers what it drew."
    def __init__(self): self.sum = 0.
    def before_batch(self):
        if not self.in_train: return
        self.sum += random.random() + np.random.rand()
        self.run.xb = self.xb + 0.01*self.sum*torch.rand_like(self.xb)
    def state_dict(self): return {'sum': self.sum}
    def load_state_dict(self, state): self.sum = state['sum']

class Accumulate(Callback):
    "A step for each three batches."
    def __init__(self): self.n = 0
    def before_step(self):
        self.n += 1
        if self.n % 3: raise CancelStepException
    def state_dict(self): return {'n': self.n}
    def load_state_dict(self, state): self.n = state['n']

class Kill(Callback):
    "Ends the process at the n-th call of an event."
    def __init__(self, event, n, order=-1000):
        self.order, self.left = order, n
        setattr(self, event, self.count)
    def count(self):
        self.left -= 1
        if not self.left: die()

def die(): os.kill(os.getpid(), signal.SIGKILL)

def kill_in_write(n, how):
    """Let the process end within the n-th writing of a file: with half of it written, before it is renamed,
    or after that."""
    import exp.core
    replace, save, left = os.replace, torch.save, [n]
    def half(state, f):
        save(state, f)
        left[0] -= 1
        if not left[0]:
            os.truncate(f, os.path.getsize(f)//2)
            die()
    def rename(a, b):
        left[0] -= 1
        if not left[0]:
            if how == 'renamed': replace(a, b)
            die()
        replace(a, b)
    if how == 'half': exp.core.torch.save = half
    else: os.replace = rename

# ------------ trainings: each a function of (folder, callbacks), which trains and answers the learner

def checkpoint(folder, every): return [Checkpoint(Path(folder)/'fit.ckpt', every)] if every else []

def one_cycle(data, splitter, lr, moms, folder, cbs, every, more=(), opt_func=adam_opt):
    learn = Learner(data, network(), metrics=[accuracy], splitter=splitter, opt_func=opt_func,
                    cbs=[Jolt(), *checkpoint(folder, every), *(c() for c in more)], path=folder)
    learn.fit_one_cycle(EPOCHS, lr, moms=moms, cbs=cbs, resume=True if every else None)
    return learn

def plain(data, opt_func, trackers, folder, cbs, every):
    learn = Learner(data, network(), metrics=[accuracy], opt_func=opt_func,
                    cbs=[Jolt(), *checkpoint(folder, every)], path=folder)
    learn.fit(2*EPOCHS, 0.02, cbs=[*(make() for make in trackers), *cbs], resume=True if every else None)
    return learn

SETUPS = {
    'tensors':  lambda **kw: one_cycle(tensors(), halves, slice(1e-3, 1e-2), (0.95, 0.85, 0.95), **kw),
    'images':   lambda **kw: one_cycle(images(), None, 1e-2, None, **kw),
    'workers':  lambda **kw: one_cycle(tensors(2), None, 1e-2, (0.95, 0.85, 0.95), **kw),
    'image workers': lambda **kw: one_cycle(images(2), halves, [1e-3, 1e-2], (0.95, 0.85, 0.95), **kw),
    'images with two workers': lambda **kw: one_cycle(images(2), None, 1e-2, None, **kw),
    'accumulated': lambda **kw: one_cycle(tensors(), None, 2e-2, (0.95, 0.85, 0.95), more=[Accumulate],
                                          opt_func=partial(lamb_opt, wd=0.1), **kw),
    'plateau':  lambda **kw: plain(tensors(), partial(sgd_opt, mom=0.9, nesterov=True, wd=1e-3), [
        partial(ReduceLROnPlateau, patience=1, factor=0.5), partial(EarlyStopping, patience=6)], **kw),
    # ends in epoch 2
    'stopped':  lambda **kw: plain(tensors(), torch.optim.RMSprop,
                                   [partial(EarlyStopping, min_delta=0.5, patience=2)], **kw),
    'torch adam': lambda **kw: plain(images(), torch.optim.AdamW,
                                     [partial(ReduceLROnPlateau, min_delta=0.05, patience=1, factor=0.5)],
                                     **kw),
}

def results(learn):
    return {'model': learn.model.state_dict(), 'counted': learn.model[3].n, 'opt': learn.opt.state_dict(),
            'epoch': learn.epoch, 'n_iter': learn.n_iter,
            'history': [{k: v for k, v in row.items() if k != 'seconds'} for row in learn.history],
            'losses': learn.recorder.losses, 'lrs': learn.recorder.lrs,
            'valid_losses': learn.recorder.valid_losses, 'jolt': learn.jolt.sum,
            'rows': [row['epoch'] for row in learn.progress.rows],
            'generators': [repr(random.getstate()), repr(np.random.get_state()), torch.get_rng_state()]}

def train(setup, folder, kill=None, kill_write=None, every=2, result='result'):
    "Train, or die; what came out goes to a file in `folder`."
    torch.set_num_threads(1)
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    if kill_write: kill_in_write(*kill_write)
    learn = SETUPS[setup](folder=folder, cbs=[Kill(*kill)] if kill else [], every=every)
    torch.save(results(learn), Path(folder)/f'{result}.part')
    os.rename(Path(folder)/f'{result}.part', Path(folder)/result)

def in_child(job):
    signal.alarm(60)   # whatever happens
    os.setpgid(0, 0)   # with its workers a group of its own
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.open(Path(job['folder'])/'log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try: train(**job)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)

def serve():
    multiprocessing.set_start_method('fork')   # as everything here: to save the imports
    torch.set_num_threads(1)
    adam_opt(network().parameters(), 0.1).zero_grad()   # here torch imports the rest of itself
    print('ready', flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if not pid: in_child(json.loads(line))
        _, status = os.waitpid(pid, 0)
        try: os.killpg(pid, signal.SIGKILL)   # its workers, which would notice only after some seconds
        except ProcessLookupError: pass
        print(os.waitstatus_to_exitcode(status), flush=True)

if __name__ == '__main__':
    if sys.argv[1] == '--serve': serve()
    else: train(**json.loads(sys.argv[1]))
