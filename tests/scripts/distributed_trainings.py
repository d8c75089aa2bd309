"""python script.py FOLDER NAME …: trainings, of which each process writes what came out to
FOLDER/NAME.PROCESSES.RANK."""
import os, random, shutil, signal, sys, time, traceback
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.data
from torch import nn

import exp.inference   # noqa: F401 (methods of Learner)
import exp.precision   # noqa: F401 (methods of Learner)
from exp.callbacks import Callback
from exp.faults import NanCheck
from exp.core import load_state
from exp.data_block import ImageList
from exp.transforms import Transform
from exp.dataloader import DataLoader, Dataset, Rng, Sampler, TransformedDataset, make_data
from exp.distributed import (Distributed, RankLoader, barrier, distributed, gather_over_ranks, is_first, rank,
                             sum_over_ranks, world_size)
from exp.checkpoints import Checkpoint
from exp.learner import Learner
from exp.losses import CrossEntropy
from exp.metrics import MeanMetric, Metric, accuracy
from exp.optimizers import adam_opt, lamb_opt
from exp.progress import CSVLog
from exp.schedules import EarlyStopping, ReduceLROnPlateau, SaveBest

# six batches of 7, which neither two nor three processes share evenly, and a last one of 1 item
N, BS = 43, 7
SGD = partial(torch.optim.SGD, momentum=0.9)

# ---------------------------------------------------------------- data, networks, metrics: all in float64

def items(n=N, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g, dtype=torch.float64)
    return x, (x[:, :3].sum(1) > 0).long() + (x[:, 3] > 1).long()

def bunch(n=N, bs=BS, tfms=(), batch_tfms=(), num_workers=0, y=lambda y: y):
    (x, labels), (xv, yv) = items(n), items(20, 2)
    train = Dataset(x, y(labels))
    return make_data(TransformedDataset(train, list(tfms)) if tfms else train, Dataset(xv, y(yv)), bs=bs,
                     seed=5, num_workers=num_workers, batch_tfms=(list(batch_tfms), []))

def network(*more):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *more, nn.Linear(8, 3)).double()

def halves(model): return [model[:1], model[1:]]

class Hits(Metric):
    "Two states that are added up, one of them a count."
    def __init__(self):
        super().__init__()
        self.add_state('hits', torch.zeros(3, dtype=torch.int64), 'sum')
        self.add_state('certain', torch.zeros((), dtype=torch.float64), 'sum')
    def update(self, pred, yb):
        self.add(hits=F.one_hot(pred.argmax(-1)[pred.argmax(-1) == yb], 3).sum(0),
                 certain=pred.softmax(-1).amax(-1).sum())
    def compute(self): return self.hits[1]*100 + self.hits[0] + self.certain

class Median(Metric):
    "A state that is laid end to end."
    def __init__(self):
        super().__init__()
        self.add_state('margins', torch.empty(0, 2, dtype=torch.float64), 'cat')
    def update(self, pred, yb): self.add(margins=torch.stack((pred[:, 0] - pred[:, 1], yb.double()), 1))
    def compute(self): return self.margins[:, 0].median() + 1000*len(self.margins)

def certainty(pred, yb): return pred.softmax(-1).amax(-1).mean()
def squares(pred, yb): return pred.square().mean()

def metrics(): return [accuracy, certainty, MeanMetric(squares), Hits(), Median()]

class Clip(Callback):
    def __init__(self): self.norms = []
    def before_step(self): self.norms.append(nn.utils.clip_grad_norm_(self.model.parameters(), 0.05).item())

def result(learn, **more):
    return {'weights': {k: v.clone() for k, v in learn.model.state_dict().items()},
            'history': [{k: v for k, v in row.items() if k != 'seconds'} for row in learn.history],
            'losses': learn.recorder.losses, 'valid_losses': learn.recorder.valid_losses,
            'lrs': learn.recorder.lrs, 'epoch': learn.epoch, 'n_iter': learn.n_iter, **more}

def training(folder, *, data=None, model=None, opt_func=SGD, epochs=3, one_cycle=False, lr=0.05, cbs=(),
             fit_cbs=(), **kwargs):
    learn = Learner(bunch() if data is None else data, network() if model is None else model,
                    opt_func=opt_func, metrics=metrics(), cbs=list(cbs), path=folder,
                    **kwargs).to_distributed()
    if one_cycle: learn.fit_one_cycle(epochs, lr, cbs=list(fit_cbs))
    else: learn.fit(epochs, lr, cbs=list(fit_cbs))
    return learn

def simple(**kwargs): return lambda folder: result(training(folder, **kwargs))

# ---------------------------------------------------------------- scenarios for any number of processes

def clipped(folder):
    clip = Clip()
    return result(training(folder, opt_func=adam_opt, cbs=[clip]), norms=clip.norms)

def frozen(folder):
    learn = training(folder, splitter=halves, opt_func=adam_opt, one_cycle=True, lr=slice(1e-3, 3e-2))
    learn.freeze()
    learn.fit(1, 0.01)
    learn.unfreeze()
    learn.fit_one_cycle(2, [1e-3, 1e-2])
    return result(learn)

# three of four do not count, now and then all of a rank's part
def ignored(y): return torch.where(torch.arange(len(y)) % 4 > 0, -1, y)

class Reversed(Sampler):
    "A sampler of the user's own."
    def order(self, epoch, skip_items=0): return list(range(self.n - 1, -1, -1))[skip_items:]

def odd_batches(folder):
    "Batches of sizes that differ, as a batch sampler of the user's gives them."
    x, y = items()
    batches = [list(range(10)), [10], [11, 12], *[list(range(i, i + 6)) for i in range(13, 43, 6)]]
    return result(training(folder, data=(DataLoader(Dataset(x, y), batch_sampler=batches),
                                         DataLoader(Dataset(x[:5], y[:5]), 4))))

def noise(x, rng): return x + 0.1*torch.randn(x.shape, generator=rng.generator(), dtype=x.dtype)

class Mirror:
    "Changes the sign of some items of a batch, as `BatchContext` says."
    on, order = 'batch', 20
    def __call__(self, xb, yb, ctx):
        flip = torch.tensor([Rng(ctx.seed, ctx.epoch, i, 'flip').random() < 0.5 for i in ctx.items])
        return torch.where(flip[:, None], -xb, xb), yb

class Brighten(Transform):
    order, random = 40, True
    def draw(self, x, rng): return rng.uniform(0.7, 1.)
    def image(self, x, draw): return (x*draw).to(torch.uint8)

class Shade(Transform):
    order, on, random = 50, 'batch', True
    def draw(self, xb, rngs): return torch.tensor([r.uniform(0.8, 1.2) for r in rngs])
    def image(self, xb, draw): return xb*draw[:, None, None, None]

def label(im): return int(im[0].float().mean() > 127)

def pictures(num_workers=0):
    x = torch.randint(256, (N + 9, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    split = ImageList(list(x)).split_by_index(range(N, N + 9)).label_from_func(label)
    return split.transform(([Brighten(), Shade()], []),
                           size=8).databunch(BS, num_workers=num_workers,
                                             seed=5).normalize(([0.5]*3, [0.3]*3))

class ToDouble(Callback):
    order = -70
    def before_batch(self): self.run.xb = self.xb.double()

class Seen(Callback):
    "What the network gets, item by item."
    def __init__(self): self.inputs, self.sizes = {}, []
    def after_pred(self):
        if not self.in_train: return
        for i, x in zip(self.items, self.xb): self.inputs[self.epoch, int(i)] = x.clone()
        self.sizes.append((len(self.items), self.run.whole_batch(), sorted(map(int, self.items))))

def seen(**kwargs):
    def scenario(folder):
        cb = Seen()
        learn = training(folder, cbs=[cb, ToDouble()], epochs=2, **{k: f() for k, f in kwargs.items()})
        if (close := getattr(learn.data.train_dl, 'close', None)): close()
        return result(learn, inputs=cb.inputs, sizes=cb.sizes)
    return scenario

def picture_network():
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).double()

def stopped(folder):
    cbs = EarlyStopping('valid_loss', min_delta=0.02,
                        patience=2), SaveBest(folder/f'best.{world_size()}', 'valid_accuracy', load_best=True)
    learn = training(folder, epochs=40, lr=0.4, fit_cbs=cbs)
    return result(learn, best=cbs[1].best, best_epoch=cbs[1].best_epoch,
                  file=load_state(folder/f'best.{world_size()}'))

def plateau(folder):
    return result(training(folder, epochs=8, lr=2.,
                           fit_cbs=[ReduceLROnPlateau('valid_loss', patience=1, factor=0.3)]))

class Two(nn.Module):
    "Two inputs, two outputs, in a dict; a part that some batches do not use, and one that none does."
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.seldom, self.never = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(
            3, 3), nn.Linear(2, 2)
        self.double()
    def forward(self, left, right):
        out = self.a(left) + self.b(right)
        large = left.sum(1) > 2
        if large.any(): out = out.index_add(0, large.nonzero()[:, 0], self.seldom(left[large]))
        return {'classes': out, 'size': out.square().sum(1)}

def both(pred, y): return F.cross_entropy(pred['classes'], y) + 0.1*pred['size'].mean()
def right(pred, y): return accuracy(pred['classes'], y)

def dicts(folder):
    (x, y), (xv, yv) = items(), items(20, 2)
    sets = [Dataset({'left': x[:, :3].contiguous(), 'right': x[:, 3:].contiguous()}, y)
            for x, y in ((x, y), (xv, yv))]
    learn = Learner(make_data(*sets, bs=BS, seed=5), Two(), loss_func=both, opt_func=SGD,
                    metrics=[right]).to_distributed(find_unused_parameters=True)
    learn.fit(3, 0.05)
    return result(learn)

def ones(folder):
    "One number for each item, which the loss must not broadcast."
    x, y = items()
    torch.manual_seed(3)
    learn = Learner((DataLoader(Dataset(x, x.sum(1, keepdim=True)), BS, shuffle=True, seed=5),
                     DataLoader(Dataset(x[:7], x[:7].sum(1, keepdim=True)), 2)), nn.Linear(6, 1).double(),
                    loss_func=nn.MSELoss(),
                    opt_func=adam_opt).to_distributed(gradient_as_bucket_view=True, bucket_cap_mb=0.0001)
    learn.fit_one_cycle(3, 0.05)
    return result(learn)

def in_parts(folder):
    "Several fits, one after the other, and questions between them."
    learn = Learner(bunch(), network(), opt_func=SGD, metrics=metrics()).to_distributed()
    answers = []
    for epochs, lr in ((1, 0.05), (2, 0.02), (0, 0.1), (1, 0.1)):
        learn.fit(epochs, lr)
        answers += [learn.validate(), learn.get_preds()[0]]
    return result(learn, answers=answers)

def accumulated(folder, **kwargs):
    from exp.precision import GradAccumulation
    return result(training(folder, cbs=[GradAccumulation(15)], **kwargs))

class Broken(Exception): "The training is broken off."

class Break(Callback):
    "Ends the training, in all processes alike, before a batch."
    def __init__(self, n): self.n = n
    def before_batch(self):
        if self.in_train and self.n_iter == self.n: raise Broken

def checkpointed(folder, path, *, breaks=None, resume=None, model=None, every=3):
    data = bunch(tfms=[noise], batch_tfms=[Mirror()])
    learn = Learner(data, network() if model is None else model, splitter=halves, metrics=metrics(),
                    cbs=[Checkpoint(path, every)], path=folder).to_distributed()
    try:
        learn.fit_one_cycle(4, slice(1e-3, 3e-2), cbs=[] if breaks is None else [Break(breaks)],
                            resume=resume)
    except Broken: return {}
    return result(learn, leftovers=sorted(vars(learn.cbs[-1])),
                  files=sorted(p.name for p in path.parent.iterdir()))

def own_folder(folder, name):
    path = folder/f'{name}.{world_size()}'
    path.mkdir(exist_ok=True)
    return path

def whole(folder): return checkpointed(folder, own_folder(folder, 'whole')/'fit.ckpt')
def broken(at):
    return lambda folder: checkpointed(folder, own_folder(folder, f'broken at {at}')/'fit.ckpt', breaks=at)

def resumed(start, at):
    "Goes on where `start` processes had been broken off."
    def scenario(folder):
        path = own_folder(folder, f'resumed from {start} at {at}')/'fit.ckpt'
        if is_first(): shutil.copy(folder/f'broken at {at}.{start}'/'fit.ckpt', path)
        barrier()
        return checkpointed(folder, path, resume=path)
    return scenario

# ---------------------------------------------------------------- scenarios for two processes

def norms(folder):
    torch.manual_seed(3)
    states = []
    class Look(Callback):
        def before_validate(self): states.append({k: v.clone() for k, v in self.model.named_buffers()})
    learn = training(folder, model=nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(),
                                                 nn.Linear(8, 3)).double(), data=bunch(n=42), cbs=[Look()])
    return result(learn, states=states)

class Mask(nn.Dropout):
    def forward(self, x):
        out = super().forward(x)
        if self.training: self.masks.append((out == 0).clone())
        return out

def with_dropout(folder, path, **kwargs):
    drop = Mask(0.5)
    drop.masks = []
    out = checkpointed(folder, path, model=network(drop), **kwargs)
    after = torch.rand(5)
    return {**out, 'masks': drop.masks, 'after': after}

def dropout(folder): return with_dropout(folder, own_folder(folder, 'dropout')/'fit.ckpt')
def dropout_broken(folder):
    path = own_folder(folder, 'dropout broken')/'fit.ckpt'
    with_dropout(folder, path, breaks=16)
    return with_dropout(folder, path, resume=path)

def unequal_starts(folder):
    "Each process begins with other weights; those of the first count."
    torch.manual_seed(10 + rank())
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    model[1].running_mean += rank()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    learn = Learner(bunch(n=42), model, opt_func=torch.optim.SGD).to_distributed()
    learn.fit(1, 0.)
    return {'before': before, 'after': {k: v.clone() for k, v in learn.model.state_dict().items()}}

def mixed(folder):
    from exp.mixup import CutMix, MixUp
    return result(training(folder, cbs=[MixUp()]), cut=result(
        training(folder, data=pictures(), model=picture_network(), cbs=[ToDouble(), CutMix()])))

def halved(folder):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    outs = {}
    class ToFloat(ToDouble):
        def before_batch(self): self.run.xb = self.xb.float()
    for name in ('to_bf16', 'to_fp16'):
        import copy
        learn = Learner(bunch(), copy.deepcopy(model), opt_func=SGD, metrics=[accuracy],
                        cbs=[ToFloat()]).to_distributed()
        # a dynamic scale may be too large for parts of a batch where it is not for the whole
        learn.to_bf16() if name == 'to_bf16' else learn.to_fp16(1024.)
        learn.fit(3, 0.05)
        outs[name] = result(learn)
    return outs

class marked(Metric):
    "Its name is in a table's head."
    name = 'the_marked_metric'
    def __init__(self):
        super().__init__()
        self.add_state('n', 0, 'sum')
    def update(self, pred, yb): self.add(n=len(yb))
    def compute(self): return self.n

class Shows(Callback):
    rank_zero = True
    def before_fit(self): self.events = ['before_fit']
    def after_batch(self): self.events.append('after_batch')
    def after_fit(self): self.events.append('after_fit')

def printed(folder):
    learn = Learner(bunch(), network(), metrics=[marked()],
                    cbs=[CSVLog(folder/'log.csv'), Shows()]).to_distributed()
    learn.shows.events = []
    learn.fit(3, 0.01)
    barrier()   # rank 0 alone writes, and nobody waits for its log
    return {'history': learn.history, 'csv': (folder/'log.csv').read_text(), 'events': learn.shows.events}

def finds(folder):
    learn = Learner(bunch(), network(), opt_func=SGD).to_distributed()
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    suggestion = learn.lr_find(max_iter=40, show=False)
    return {'suggestion': suggestion,
            'same': all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items()),
            'epoch': learn.epoch}

def nan(folder):
    "A loss that becomes NaN ends the fit at the same batch in all processes."
    import warnings
    class Poison(Callback):
        order = -10
        def after_pred(self):
            # the batch of items 28 to 34, of which rank 0 has this one
            if self.in_train and self.n_iter == 4 and 28 in self.items:
                self.run.pred = self.pred*float('nan')
    data = DataLoader(Dataset(*items()), BS), None
    learn = Learner(data, network(), opt_func=SGD, cbs=[NanCheck(), Poison()]).to_distributed()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter('always')
        learn.fit(3, 0.1)
    return {'n_iter': learn.n_iter, 'where': learn.nan_check.where, 'losses': len(learn.recorder.losses)}

def collectives(folder):
    r = rank()
    return {'sum': sum_over_ranks(torch.tensor([1., r])), 'whole': sum_over_ranks(torch.tensor(3 + r)),
            'bool': sum_over_ranks(torch.tensor([True, r == 0])),
            'cat': gather_over_ranks(torch.arange(r + 1)), 'none': gather_over_ranks(torch.empty(0, 3)),
            'some': gather_over_ranks(torch.full((2*r, 2), 7.)),
            'flags': gather_over_ranks(torch.tensor([r == 0]*2)),
            'first': is_first(), 'ranks': (rank(), world_size()), 'device': os.environ.get('EXP_DEVICE')}

def raises(f):
    try: f()
    except Exception as e: return type(e).__name__, str(e)
    return None

class Plain:
    "A metric without states."
    name = 'plain'
    def reset(self): pass
    def update(self, pred, yb): pass
    def compute(self): return 0.

def bad_input(folder):
    out, ds = {}, torch.utils.data.TensorDataset(*items())
    torchs = lambda: torch.utils.data.DataLoader(ds, BS)
    ours = lambda: DataLoader(Dataset(*items()), BS)
    for name, data in {'torch loader': (torchs(), None), 'torch loader for validation': (ours(), torchs()),
                       'a list': ([items()], None)}.items():
        learn = Learner(data, network(), opt_func=SGD).to_distributed()
        out[name] = raises(lambda: learn.fit(1, 0.1))
        out[f'{name}, data'] = learn.data.train_dl is data[0]
        out[f'{name}, parts'] = sorted(set(vars(learn)) & {'get_pred', 'get_loss', 'gather', 'measure',
                                                           'batch_weight', 'whole_batch', 'rank',
                                                           'write_state', 'delayed_read', 'whole_weight'})
    learn = Learner(bunch(), network(), opt_func=SGD, metrics=[Plain()]).to_distributed()
    out['plain metric'] = raises(lambda: learn.fit(1, 0.1))
    learn = Learner(bunch(), network(), opt_func=SGD).to_distributed()
    out['afterwards'] = raises(lambda: learn.fit(1, 0.1))
    for what, fit in {'epochs': lambda: Learner(bunch(), network()).to_distributed().fit(1 + rank()),
                      'bs': lambda: Learner(bunch(bs=BS + rank()), network()).to_distributed().fit(1),
                      'rates': lambda: Learner(bunch(), network()).to_distributed().fit(
                          1, 0.1 + rank())}.items(): out[f'unlike {what}'] = raises(fit)
    import exp.callbacks
    save = exp.callbacks.save_state
    def full(path, state): raise OSError(28, 'no space left')
    exp.callbacks.save_state = full
    learn = Learner(bunch(), network(), opt_func=SGD,
                    cbs=[Checkpoint(folder/'never.ckpt', 2)]).to_distributed()
    try: out['no space'] = raises(lambda: learn.fit(1, 0.1))
    finally: exp.callbacks.save_state = save
    out['two callbacks'] = raises(lambda: Learner(bunch(), network(),
                                                  cbs=[Distributed()]).fit(1, cbs=[Distributed()]))
    out['called twice'] = sum(isinstance(cb, Distributed) for cb in learn.to_distributed().cbs)
    out['a group in a group'] = raises(lambda: distributed().__enter__())
    out['no such rank'] = raises(lambda: RankLoader(ours(), 2, 2))
    return out

def undone(folder):
    "What a fit leaves, after it ended, was cancelled, failed or was interrupted."
    out, data = {}, bunch()
    loaders = data.train_dl, data.valid_dl
    checkpoint = Checkpoint(folder/f'undone.{world_size()}', 2)
    best = SaveBest(folder/f'undone best.{world_size()}')
    learn = Learner(data, network(), opt_func=SGD, metrics=metrics(), cbs=[checkpoint, best]).to_distributed()
    before = sorted(k for k in vars(learn)), sorted(vars(checkpoint)), sorted(vars(best)), len(
        learn.cbs), len(list(learn.model.parameters())[0]._backward_hooks or ())
    class Ends(Callback):
        def __init__(self, how): self.how = how
        def after_backward(self):
            if self.n_iter % 7 == 2 and self.how is not None: raise self.how
    for how in (None, RuntimeError('a failure'), KeyboardInterrupt('as Ctrl-C')):
        try: learn.fit(1, 0.05, cbs=[Ends(how)])
        except (RuntimeError, KeyboardInterrupt): pass
        vars_now = sorted(set(vars(learn)) & {'get_pred', 'get_loss', 'gather', 'measure', 'batch_weight',
                                              'whole_batch', 'rank', 'write_state', 'delayed_read',
                                              'whole_weight'})
        kept = sorted({k for o in (checkpoint, best) for k in vars(o)} - {*before[1], *before[2]})
        out[repr(how)] = (learn.data is data and (data.train_dl, data.valid_dl) == loaders, vars_now, kept,
                          len(learn.cbs) == before[3], [type(m).__name__ for m in learn.model.modules()])
    preds, _ = learn.get_preds()
    out['preds'] = preds
    return out

SCENARIOS = {
    'sgd': simple(), 'adam': simple(opt_func=partial(adam_opt, wd=0.1)),
    'fused adam': simple(opt_func=lambda ps, **kw: adam_opt(ps, **kw).fuse()),
    'lamb': simple(opt_func=lamb_opt),
    'one cycle': simple(opt_func=adam_opt, one_cycle=True, splitter=halves, lr=[1e-3, 3e-2]),
    'clipped': clipped, 'frozen': frozen, 'dicts': dicts, 'ones': ones, 'in parts': in_parts,
    'odd batches': odd_batches, 'stopped': stopped, 'plateau': plateau, 'accumulated': accumulated,
    'single items': lambda folder: result(training(folder, data=bunch(n=5, bs=1))),
    'pairs': lambda folder: result(training(folder, data=bunch(n=11, bs=2))),
    'ignored': lambda folder: result(training(folder, data=bunch(y=ignored),
                                              loss_func=CrossEntropy(ignore_index=-1))),
    'class weights': simple(loss_func=nn.CrossEntropyLoss(
        weight=torch.tensor([1., 5., 0.2], dtype=torch.float64), label_smoothing=0.1)),
    'class weights of a function': simple(
        loss_func=partial(F.cross_entropy, weight=torch.tensor([1., 5., 0.2], dtype=torch.float64))),
    'ignored by PyTorch': lambda folder: result(training(folder, data=bunch(
        y=lambda y: torch.where(ignored(y) < 0, -100, y)), loss_func=nn.CrossEntropyLoss())),
    'a large seed': lambda folder: result(
        training(folder, data=(DataLoader(Dataset(*items()), BS, shuffle=True, seed=2**63 + 1), None))),
    'accumulated class weights': partial(
        accumulated, loss_func=nn.CrossEntropyLoss(weight=torch.tensor([1., 5., 0.2], dtype=torch.float64))),
    'accumulated sums': partial(accumulated, loss_func=nn.CrossEntropyLoss(reduction='sum'), lr=0.005),
    'summed': simple(loss_func=nn.CrossEntropyLoss(reduction='sum'), lr=0.005),
    'a function': simple(loss_func=F.cross_entropy),
    'own sampler': lambda folder: result(training(folder, data=(
        DataLoader(Dataset(*items()), BS, sampler=Reversed(N)), DataLoader(Dataset(*items(20, 2)), 6)))),
    'no validation': lambda folder: result(training(
        folder, data=(DataLoader(Dataset(*items()), BS, shuffle=True, seed=5, drop_last=True), None))),
    'item transforms': seen(data=lambda: bunch(tfms=[noise])),
    'batch transforms': seen(data=lambda: bunch(tfms=[noise], batch_tfms=[Mirror()])),
    'transforms in workers': seen(data=lambda: bunch(tfms=[noise], batch_tfms=[Mirror()], num_workers=2)),
    'pictures': seen(data=pictures, model=picture_network),
    'pictures in workers': seen(data=lambda: pictures(2), model=picture_network),
    'whole': whole, **{f'broken at {at}': broken(at) for at in (10, 14, 20)},
    **{f'resumed from {n} at {at}': resumed(n, at) for n in (1, 2, 3) for at in (10, 14, 20)},
    'mixed': mixed, 'halved': halved, 'norms': norms, 'dropout': dropout, 'dropout broken': dropout_broken,
    'unequal starts': unequal_starts, 'printed': printed, 'finds': finds, 'nan': nan,
    'collectives': collectives, 'bad input': bad_input, 'undone': undone}

def run(folder, names):
    for name in names:
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        try: out = SCENARIOS[name](Path(folder))
        except BaseException:
            torch.save({'error': traceback.format_exc()}, Path(folder)/f'{name}.{world_size()}.{rank()}')
            raise
        torch.save(out, Path(folder)/f'{name}.{world_size()}.{rank()}')

# ---------------------------------------------------------------- trainings that end badly

class Slow(Callback):
    "Takes its time, so that a signal can come in the middle; and says how far it is."
    def __init__(self, folder, seconds=0.01): self.folder, self.seconds = Path(folder), seconds
    def before_batch(self): time.sleep(self.seconds)
    def after_batch(self): (self.folder/f'at.{rank()}').write_text(str(self.n_iter))

class Kill(Callback):
    "Kills this process, as the system does when memory runs out."
    order = 10**7
    def __init__(self, folder, victim, event, n):
        self.folder, self.victim, self.n = Path(folder), victim, n
        if event == 'writing': self._in_write()
        else: setattr(self, event, self._count)
    def _in_write(self):
        """While a checkpoint is written, which rank 0 does: it lies beside its place, and is not renamed any
        more."""
        rename = os.replace
        def replace(a, b):
            self._count()
            rename(a, b)
        os.replace = replace
    def _count(self):
        if rank() != self.victim or self.n_iter < self.n or not self.in_train: return
        (self.folder/'killed').write_text(repr(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

class Fails(Callback):
    def after_loss(self):
        if self.n_iter == 9 and rank() == 1: raise ArithmeticError('rank 1 fails on purpose')

def long_training(folder, cbs=(), seconds=0.):
    path = Path(folder)/'fit.ckpt'
    learn = Learner(bunch(tfms=[noise], num_workers=0), network(), splitter=halves, metrics=metrics(),
                    cbs=[Checkpoint(path, 2), *([Slow(folder, seconds)] if seconds else [])]).to_distributed()
    learn.fit_one_cycle(6, slice(1e-3, 3e-2), cbs=list(cbs), resume=True)
    return result(learn)

def main(folder, what, *args):
    with distributed(timeout=30):
        Path(folder, f'pid.{rank()}').write_text(str(os.getpid()))
        if what == 'run': run(folder, args)
        elif what == 'kill': long_training(folder, [Kill(folder, int(args[0]), args[1], int(args[2]))])
        elif what == 'wait': long_training(folder, seconds=0.5)
        elif what == 'fail': long_training(folder, [Fails()])
        if is_first(): print('the script came to its end')
    names = ([(t/'comm').read_text().strip() for t in Path('/proc/self/task').iterdir()]
             if Path('/proc/self/task').exists() else [])
    sys.stdout.flush()
    os.write(1, f'threads: {names}\n'.encode())   # at once, so that the lines of two processes do not mix

if __name__ == '__main__':
    torch.set_num_threads(1)
    main(*sys.argv[1:])
