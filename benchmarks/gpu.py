"""All that benchmarks/ measures, on the device that exp takes by itself: one run of under eight minutes,
which prints a table and keeps it.

    python benchmarks/gpu.py                         writes benchmarks/results_<card>.md
    python benchmarks/gpu.py --only waits loop       these parts alone; printed, not written
    python benchmarks/gpu.py --device cpu --quick    small, on the CPU, to see that it runs; not written

It needs torch, numpy, pillow, matplotlib, pandas, tqdm and exp, no network, and no data but data/. Without a
GPU it says so and does nothing. What is compared runs in turn, the order turned around from round to round,
and the clock is read when the device has done all its work; values are medians, ratios medians of pairs. A
part that fails, or for which something is missing, is a row that says so. The part `waits` counts, in the
steps of a fit, the calls that wait for the device (PyTorch's sync debug mode, and torch.cuda.synchronize) and
the copies to it from memory that is not pinned, which the driver may wait for without saying so.
"""
import argparse, copy, datetime, gc, importlib, os, platform, re, statistics, sys, tempfile, time, warnings
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.data
from PIL import Image
from torch import nn

import images, learner, lr_finder, norms, optimizers   # this folder's
from exp.callbacks import AvgStats, Callback, Recorder, Runner
from exp.faults import NanCheck
from exp.core import atomic_path, default_device, to_device
from exp.data_block import ImageList
from exp.transforms import Normalize
from exp.dataloader import DataBunch, DataLoader, Dataset, Rng, TransformedDataset
from exp.datasets import mnist
from exp.hooks import ActivationStats, DeviceCallback
from exp.learner import Learner
from exp.metrics import accuracy
from exp.optimizers import adam_opt, sgd_opt
from loop import network

LIMIT = 460.   # seconds; a part that would not end before is left out
SGD = partial(torch.optim.SGD, momentum=0.9)

def find(name):
    "A module of exp, or None where it is not there yet."
    try: return importlib.import_module(f'exp.{name}')
    except ModuleNotFoundError as e:
        if e.name != f'exp.{name}': raise

# ---------------------------------------------------------------- the table

class Table:
    "Rows (part, what, value, compared with), printed as they come."
    def __init__(self): self.rows = []
    def add(self, part, what, value, against=''):
        self.rows.append((part, what, value, against))
        print(f'{part:<13} {what:<62} {value:>18}   {against}', flush=True)

    def text(self, heading):
        cell = lambda s: str(s).replace('|', '\\|')
        lines = ['| part | what | value | compared |', '|---|---|---:|---|',
                 *('| ' + ' | '.join(map(cell, row)) + ' |' for row in self.rows)]
        return f'{heading}\n' + '\n'.join(lines) + '\n'

def reason(e): return f'{type(e).__name__}: {(str(e).splitlines() or [""])[0][:160]}'

class Bench:
    "The device, the clock, and the table."
    def __init__(self, device, quick):
        self.device, self.quick, self.table, self.begun = device, quick, Table(), time.perf_counter()

    cuda = property(lambda self: self.device.type == 'cuda')
    def pick(self, full, quick): return quick if self.quick else full
    def left(self): return LIMIT - (time.perf_counter() - self.begun)   # seconds

    def sync(self):
        "Until the device has done all that it was given."
        if self.cuda: torch.cuda.synchronize(self.device)
        elif self.device.type == 'mps': torch.mps.synchronize()

    def seconds(self, run):
        self.sync()
        start = time.perf_counter()
        run()
        self.sync()
        return time.perf_counter() - start

    def ready(self, part, makers):
        "The runs that these functions make, warmed up twice; those that cannot be made, or fail, are rows."
        runs = {}
        for name, make in makers.items():
            try:
                run = make()
                for _ in range(2): self.seconds(run)
                runs[name] = run
            except Exception as e: self.table.add(part, name, 'failed', reason(e))
        return runs

    def in_turn(self, part, makers, budget, least=5, most=100):
        """Seconds of each run, as lists by name, for as long as `budget` allows, but for at least `least`
        rounds."""
        runs = self.ready(part, makers)
        times, least, end = ({name: [] for name in runs}, self.pick(least, 1),
                             time.perf_counter() + self.pick(budget, 0.))
        for i in range(most if runs else 0):
            for name in list(runs)[::-1 if i % 2 else 1]: times[name].append(self.seconds(runs[name]))
            if i + 1 >= least and time.perf_counter() > end: break
        return times

    def compare(self, part, title, makers, budget, *, per, unit='ms', scale=1e3, rate=False, least=5,
                to=None):
        """Rows with the value of each run, and its ratio to the first, or to the one that the dict `to` names
        for it: time, or, with `rate`, things in a second; `per` is how many a run has."""
        times = self.in_turn(part, makers, budget, least)
        for name, ts in times.items():
            base = (to or {}).get(name)
            base = base if base in times else next(iter(times))
            middle = statistics.median(ts)
            value = (f'{per/middle:,.0f} {unit}' if rate else f'{scale*middle/per:,.3g} {unit}'
                     if scale*middle/per < 1000 else f'{scale*middle/per:,.0f} {unit}')
            ratio = statistics.median(f/t if rate else t/f for t, f in zip(ts, times[base]))
            self.table.add(part, f'{title}: {name}', value, '1' if name == base else f'{ratio:.3f} x {base}')

    def batches(self, n, bs, shape, classes=10):
        "`n` batches that lie on the device."
        g = torch.Generator().manual_seed(0)
        return [to_device((torch.randn(bs, *shape, generator=g), torch.randint(classes, (bs,), generator=g)),
                          self.device) for _ in range(n)]

class OnBatch:
    "A transform of batches as the data block calls it: with a generator for each item."
    on, order = 'batch', 0
    def __init__(self, tfm, place=0): self.tfm, self.place = tfm, place
    def __call__(self, xb, yb, ctx):
        return self.tfm(xb, [Rng(ctx.seed, ctx.epoch, i, 'batch', self.place) for i in ctx.items]), yb

def cpu_count():
    try: return len(os.sched_getaffinity(0))
    except AttributeError: return os.cpu_count() or 1

# ---------------------------------------------------------------- networks and loops

class Block(nn.Module):
    def __init__(self, ni, nf, stride):
        super().__init__()
        conv = lambda a, b, s: (nn.Conv2d(a, b, 3, s, 1, bias=False), nn.BatchNorm2d(b))
        self.body = nn.Sequential(*conv(ni, nf, stride), nn.ReLU(inplace=True), *conv(nf, nf, 1))
        self.past = (nn.Identity() if ni == nf and stride == 1
                     else nn.Sequential(nn.Conv2d(ni, nf, 1, stride, bias=False), nn.BatchNorm2d(nf)))
    def forward(self, x): return F.relu(self.body(x) + self.past(x))

def resnet(w=64):
    "18 layers: the network of most GPU comparisons."
    stem = nn.Conv2d(3, w, 7, 2, 3,
                     bias=False), nn.BatchNorm2d(w), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    blocks = [Block(w*2**max(i - (j == 0), 0), w*2**i, 2 if i and j == 0 else 1) for i in range(4)
              for j in range(2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8*w, 10))

def small_with_norms(ni):
    conv = lambda ni, nf: (nn.Conv2d(ni, nf, 3, 2, 1), nn.BatchNorm2d(nf), nn.ReLU())
    return nn.Sequential(*conv(ni, 8), *conv(8, 16), *conv(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(32, 10))

def bare(model, batches, device, dtype=None, scaled=False, forward=None, memory_format=None, lr=0.01):
    "An epoch of the loop without a library, as one writes it."
    opt, scaler = SGD(model.parameters(), lr=lr), torch.amp.GradScaler(device.type) if scaled else None
    forward = model if forward is None else forward
    def epoch():
        model.train()
        for xb, yb in batches:
            if memory_format is not None: xb = xb.contiguous(memory_format=memory_format)
            with torch.autocast(device.type, dtype) if dtype else nullcontext():
                loss = F.cross_entropy(forward(xb), yb)
            if scaler is None:
                loss.backward()
                opt.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(opt)
                scaler.update()
            opt.zero_grad()
    return epoch

def with_runner(model, batches, cbs=()):
    run = Runner((batches, None), model, loss_func=F.cross_entropy, opt_func=SGD, lr=0.01, cbs=list(cbs))
    return lambda: run.fit(1)

def with_learner(model, batches, prepare=None, cbs=(), opt_func=SGD):
    learn = Learner((batches, None), model, loss_func=F.cross_entropy, opt_func=opt_func, metrics=accuracy,
                    cbs=list(cbs))
    if prepare is not None: prepare(learn)
    def epoch():
        with learner.terminal(): learn.fit_one_cycle(1, 0.01)
    return epoch

# ---------------------------------------------------------------- waits

SAYS = 'called a synchronizing CUDA operation'   # PyTorch's own words

class Watch(Callback):
    """Counts, over `n` training steps from batch `first` on and from one `before_batch` to another, what
    waits for the device, and where."""
    order = -10**6   # before all others
    def __init__(self, n=20, first=5):
        self.n, self.first, self.places, self.unpinned, self._undo = n, first, Counter(), 0, []

    def before_batch(self):
        if not self.in_train: return
        if self.iter == self.first: self._begin()
        elif self.iter == self.first + self.n: self._end()

    def after_train(self): self._end()
    def after_fit(self): self._end()

    waits = property(lambda self: sum(self.places.values()))

    def _begin(self):
        self.places, self.unpinned = Counter(), 0
        catch = warnings.catch_warnings(record=True)
        caught = catch.__enter__()
        self._undo.append(lambda: catch.__exit__(None, None, None))
        warnings.simplefilter('always')
        self._undo.append(lambda: self.places.update(f'{Path(w.filename).name}:{w.lineno}'
                                                     for w in caught if SAYS in str(w.message)))
        self._replace(torch.cuda, 'synchronize', self._counted_synchronize(torch.cuda.synchronize))
        self._replace(torch.Tensor, 'to', self._counted_to(torch.Tensor.to))
        torch.cuda.set_sync_debug_mode('warn')
        self._undo.append(lambda: torch.cuda.set_sync_debug_mode('default'))

    def _end(self):
        while self._undo: self._undo.pop()()

    def _replace(self, o, name, new):
        own, old = name in vars(o), getattr(o, name)
        setattr(o, name, new)
        self._undo.append(lambda: setattr(o, name, old) if own else delattr(o, name))

    def _counted_synchronize(self, inner):
        def synchronize(*args, **kwargs):
            self.places['torch.cuda.synchronize'] += 1
            return inner(*args, **kwargs)
        return synchronize

    def _counted_to(self, inner):
        def to(t, *args, **kwargs):
            out = inner(t, *args, **kwargs)
            if t.device.type == 'cpu' and out.device.type == 'cuda' and not t.is_pinned(): self.unpinned += 1
            return out
        return to

class Reader(Callback):
    "What must be counted, or nothing is: it waits once in each batch."
    def after_loss(self): self.loss.item()

def waits(b):
    """Calls that wait for the device, in a step of a fit. The goal of all but the first is 0; gradient
    scaling by PyTorch waits once."""
    if not b.cuda:
        return b.table.add('waits', 'calls that wait for the device', 'left out',
                           'PyTorch counts them on CUDA alone')
    n, bs, shape = b.pick(400, 20), b.pick(64, 4), (1, 28, 28)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn((n + 10)*bs, *shape, generator=g), torch.randint(10, ((n + 10)*bs,), generator=g)
    on_device = b.batches(n + 10, bs, shape)
    def memory(): return DataLoader(Dataset(x, y), bs, shuffle=True)
    def workers(): return DataLoader(TransformedDataset(Dataset(x, y), []), bs, shuffle=True, num_workers=2)
    def there(): return DataLoader(Dataset(*to_device((x, y), b.device)), bs, shuffle=True)
    def bunch(*tfms):
        return lambda: DataBunch(memory(), None, batch_tfms=([OnBatch(t, i) for i, t in enumerate(tfms)], []))
    clip = type('ClipGrads', (Callback,),
                {'before_step': lambda self: nn.utils.clip_grad_norm_(self.model.parameters(), 1.)})
    entries = {   # name: (data, prepare, callbacks, optimizer)
        'control: loss.item() in each batch': (lambda: on_device, None, [Reader], SGD),
        'Learner, torch SGD, batches on the device': (lambda: on_device, None, [], SGD),
        'Learner, torch SGD, DataLoader in memory': (memory, None, [], SGD),
        'Learner, torch SGD, two workers': (workers, None, [], SGD),
        'Learner, torch SGD, data set on the device': (there, None, [], SGD),
        'Learner, torch AdamW': (lambda: on_device, None, [], torch.optim.AdamW),
        'Learner, adam_opt': (lambda: on_device, None, [], adam_opt),
        'Learner, adam_opt, fuse()': (lambda: on_device, None, [],
                                      lambda ps, **kw: adam_opt(ps, **kw).fuse()),
        'Learner, sgd_opt with momentum': (lambda: on_device, None, [], partial(sgd_opt, mom=0.9)),
        'Learner, NanCheck': (lambda: on_device, None, [NanCheck], SGD),
        'Learner, gradients clipped by PyTorch': (lambda: on_device, None, [clip], SGD),
        'Learner, ActivationStats(every=5)': (lambda: on_device, None, [lambda: ActivationStats(every=5)],
                                              SGD),
        'Learner, Normalize': (bunch(Normalize([0.], [1.])), None, [], SGD)}
    if A := find('batch_transforms'):
        moves, colours = [A.RandomRotate(p=1.), A.RandomZoom(p=1.),
                          A.RandomWarp(p=1.)], [A.RandomBrightness(p=1.), A.RandomContrast(p=1.)]
        entries['Learner, RandomRotate, Zoom and Warp composed'] = bunch(A.Composed(moves)), None, [], SGD
        entries['Learner, RandomFlip'] = bunch(A.RandomFlip()), None, [], SGD
        entries['Learner, RandomDihedral'] = bunch(A.RandomDihedral()), None, [], SGD
        entries['Learner, RandomJitter'] = bunch(A.RandomJitter(p=1.)), None, [], SGD
        entries['Learner, brightness and contrast composed'] = bunch(
            A.ComposedLighting(colours)), None, [], SGD
        def pictures():
            ims = list(torch.randint(256, (min(1024, (n + 10)*bs), 3, 32, 32), generator=g,
                                     dtype=torch.uint8))
            return ImageList(ims*(-(-(n + 10)*bs//len(ims)))).split_none().label_from_func(lambda im: int(
                im[0, 0, 0])//26).transform(A.get_transforms(), size=32).databunch(bs).normalize()
        entries['Learner, ImageList, get_transforms(), normalize()'] = pictures, None, [], SGD
    else: b.table.add('waits', 'augmentation', 'left out', 'exp.augmentation is not there')
    if M := find('mixup'):
        for name in ('MixUp', 'CutMix'):
            entries[f'Learner, {name}, DataLoader in memory'] = memory, None, [getattr(M, name)], SGD
            entries[f'Learner, {name}, batches that do not say their items'] = lambda: on_device, None, [
                getattr(M, name)], SGD
    else: b.table.add('waits', 'MixUp, CutMix', 'left out', 'exp.mixup is not there')
    if (P := find('precision')) and hasattr(Learner, 'to_bf16'):
        entries['Learner.to_bf16()'] = lambda: on_device, lambda l: l.to_bf16(), [], SGD
        entries['Learner.to_fp16(), dynamic scale'] = lambda: on_device, lambda l: l.to_fp16(), [], adam_opt
        entries['Learner.to_fp16(1024.), static scale'] = lambda: on_device, lambda l: l.to_fp16(
            1024.), [], adam_opt
        entries['Learner, GradAccumulation'] = lambda: on_device, None, [
            lambda: P.GradAccumulation(4*bs)], SGD
        entries['Learner.channels_last()'] = lambda: on_device, lambda l: l.channels_last(), [], SGD
    else:
        b.table.add('waits', 'bf16, fp16, accumulation, channels-last', 'left out',
                    'exp.precision is not there')
    for name, (data, prepare, cbs, opt_func) in entries.items():
        try:
            torch.manual_seed(0)
            data = data()
            data = data if isinstance(data, DataBunch) else (data, None)
            watch = Watch(n)
            learn = Learner(data, small_with_norms(3 if 'ImageList' in name else 1),
                            loss_func=F.cross_entropy, opt_func=opt_func, metrics=accuracy,
                            cbs=[watch, *(make() for make in cbs)])
            if prepare is not None: prepare(learn)
            with learner.terminal(): learn.fit_one_cycle(1, 0.01)
            where = ', '.join(f'{place} {count/n:.2f}' for place, count in watch.places.most_common(4))
            b.table.add('waits', name, f'{watch.waits/n:.2f} a step', '; '.join(filter(None, [
                where, f'{watch.unpinned/n:.2f} copies from unpinned memory' if watch.unpinned else ''])))
        except Exception as e: b.table.add('waits', name, 'failed', reason(e))

# ---------------------------------------------------------------- the loop and its callbacks

def loop(b):
    """The bare loop, Runner and Learner on batches that lie on the device: a network that costs little, and
    one that costs much."""
    torch.manual_seed(0)
    cases = {'small network, batches of 64': (network(),
                                              b.batches(b.pick(200, 4), b.pick(64, 8), (1, 28, 28)), 15),
             f'ResNet-18, {b.pick(128, 4)} images of {b.pick(128, 32)} px': (resnet(b.pick(64, 4)), b.batches(
                 b.pick(12, 1), b.pick(128, 4), (3, *[b.pick(128, 32)]*2)), 20)}
    M = find('mixup')
    for title, (model, batches, budget) in cases.items():
        new = lambda: copy.deepcopy(model).to(b.device)
        makers = {'bare loop': lambda: bare(new(), batches, b.device),
                  'Runner': lambda: with_runner(new(), batches),
                  'Runner, AvgStats(accuracy), Recorder': lambda: with_runner(
                      new(), batches, [AvgStats(accuracy), Recorder()]),
                  'Learner.fit_one_cycle, accuracy, bars': lambda: with_learner(new(), batches)}
        if M: makers['the same with MixUp'] = lambda: with_learner(new(), batches, cbs=[M.MixUp()])
        b.compare('loop', title, makers, budget, per=len(batches), unit='ms a batch')

def callbacks(b):
    "What each callback costs a batch, where the network costs nothing: microseconds more than Runner alone."
    n, bs = b.pick(300, 5), 64
    batches = to_device([(torch.zeros(bs, 1), torch.zeros(bs, dtype=torch.long)) for _ in range(n)], b.device)
    def run(*cbs):
        runner = Runner((batches, None), learner.NoWork(bs).to(b.device), loss_func=learner.total,
                        opt_func=SGD, lr=1e-3, cbs=list(cbs))
        def epoch():
            with learner.terminal(): runner.fit(1)
        return epoch
    parts = {**learner.PARTS, 'DeviceCallback': lambda: DeviceCallback(b.device), 'NanCheck': NanCheck}
    times = b.in_turn('callbacks', {'Runner alone': run,
                                    **{name: lambda make=make: run(make()) for name, make in parts.items()}},
                      12)
    for name, ts in times.items():
        more = statistics.median(t - f for t, f in zip(ts, times['Runner alone']))
        b.table.add('callbacks', name, f'{1e6*statistics.median(ts)/n:.1f} µs a batch',
                    '' if name == 'Runner alone' else f'{1e6*more/n:+.1f} µs')

# ---------------------------------------------------------------- precision

def precision(b):
    "Numbers of 16 bits, channels-last and the compiler: the bare loop with each, and Learner with the same."
    torch.manual_seed(0)
    bs, size = b.pick(128, 4), b.pick(128, 32)
    model, batches = resnet(b.pick(64, 4)), b.batches(b.pick(12, 1), bs, (3, size, size))
    title, last = f'ResNet-18, {bs} images of {size} px', torch.channels_last
    there, here = find('precision') is not None and hasattr(Learner, 'to_bf16'), b.device
    def new(memory_format=None):
        return (copy.deepcopy(model).to(here) if memory_format is None
                else copy.deepcopy(model).to(here, memory_format=memory_format))
    def compiled(memory_format=None, **kw):
        m = new(memory_format)
        return bare(m, batches, here, forward=torch.compile(m), memory_format=memory_format, **kw)
    half, pairs = dict(dtype=torch.bfloat16), {
        'float32': (lambda: bare(new(), batches, here), lambda l: None),
        'bf16': (lambda: bare(new(), batches, here, **half), lambda l: l.to_bf16()),
        'fp16, dynamic scale': (lambda: bare(new(), batches, here, torch.float16, scaled=True),
                                lambda l: l.to_fp16()),
        'channels-last': (lambda: bare(new(last), batches, here, memory_format=last),
                          lambda l: l.channels_last()),
        'bf16, channels-last': (lambda: bare(new(last), batches, here, memory_format=last, **half),
                                lambda l: (l.to_bf16(), l.channels_last()))}
    if not b.quick:
        pairs['compiled'] = compiled, lambda l: l.compile()
        pairs['compiled, bf16, channels-last'] = lambda: compiled(last, **half), lambda l: (
            l.to_bf16(), l.channels_last(), l.compile())
    else: b.table.add('precision', 'compiled', 'left out', '--quick')
    # where 16-bit convolutions of a few channels, slow anyway, have crashed the process on some processors
    if here.type == 'cpu':
        pairs = {'float32': pairs['float32']}
        b.table.add('precision', 'bf16, fp16, channels-last', 'left out', 'on the CPU')
    makers = {}
    for name, (plain, prepare) in pairs.items():
        makers[f'bare loop, {name}'] = plain
        if there or name == 'float32':
            makers[f'Learner, {name}'] = lambda prepare=prepare: with_learner(new(), batches, prepare)
    if not there:
        b.table.add('precision', 'Learner.to_bf16 and the rest', 'left out', 'exp.precision is not there')
    b.compare('precision', title, makers, 40, per=len(batches)*bs, unit='images/s', rate=True, least=3,
              to={f'Learner, {name}': f'bare loop, {name}' for name in pairs})
    b.table.add('precision', 'float32 on tensor cores (TF32): convolutions, products',
                f'{torch.backends.cudnn.allow_tf32}, {torch.backends.cuda.matmul.allow_tf32}',
                "PyTorch's settings here")

# ---------------------------------------------------------------- optimizers, norms

def params(shapes, device):
    made = optimizers.params(shapes)
    ps = [nn.Parameter(p.detach().to(device)) for p in made]
    for p, q in zip(ps, made): p.grad = q.grad.to(device)
    return ps

def optimizer_steps(b):
    """One step: exp's part by part and fused, PyTorch's foreach and fused, and the floor, the bytes that must
    move."""
    sets = {'6 small tensors': [(16, 8), (16,)]*3} if b.quick else optimizers.SETS
    for kind in ('SGD with momentum', 'AdamW', 'LAMB'):
        bytes_each, makers = optimizers.contest(kind, None)
        for title, shapes in sets.items():
            n, steps = sum(torch.Size(s).numel() for s in shapes), b.pick(20, 2)
            def many(make):
                def made():
                    step = make()
                    def run():
                        for _ in range(steps): step()
                    return run
                return made
            runs = {name: many(lambda make=make: make(params(shapes, b.device)).step)
                    for name, make in makers.items()}
            def floor():
                # as many bytes, moved by a multiplication in place
                x = torch.ones(n*bytes_each//8, device=b.device)
                return lambda: x.mul_(1.)
            runs[f'floor, {bytes_each*n/1e6:.1f} MB moved'] = many(floor)
            b.compare('optimizers', f'{kind}, {title}', runs, 4, per=steps, unit='ms a step')

def norm_layers(b):
    "Norm layers in a small network: a whole training step."
    for bs in b.pick((32, 512), (4,)):
        (x, y), = b.batches(1, bs, (1, 28, 28))
        steps = b.pick(20, 2)
        def make(norm):
            model = norms.network(norm).to(b.device)
            opt = torch.optim.SGD(model.parameters(), lr=0.1)
            def run():
                for _ in range(steps): norms.step(model, opt, x, y)
            return run
        b.compare('norms', f'batches of {bs}',
                  {name: partial(make, norm) for name, norm in norms.NORMS.items()}, 5, per=steps,
                  unit='ms a step')

# ---------------------------------------------------------------- data

def loader(b):
    """Batches from memory to the device, in a new order: by hand, by exp's loader, by PyTorch's with pinned
    memory; and where all lies on the device."""
    x, y = mnist('train')
    n = b.pick(25_600, 512)
    x, y, bs = x[:n].flatten(1).float()/255, y[:n].long(), 64
    def passing(batches):
        def epoch():
            for xb, yb in batches(): to_device((xb, yb), b.device)
        return lambda: epoch
    def by_hand(x, y):
        def batches():
            for rows in torch.randperm(len(x), device=x.device).split(bs):
                yield x.index_select(0, rows), y.index_select(0, rows)
        return batches
    ours = DataLoader(Dataset(x, y), bs, shuffle=True)
    theirs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=None,
                                         pin_memory=b.cuda,
                                         sampler=torch.utils.data.BatchSampler(
                                             torch.utils.data.RandomSampler(x), bs, False))
    there = to_device((x, y), b.device)
    ours_there = DataLoader(Dataset(*there), bs, shuffle=True)
    makers = {'by hand, from memory': passing(by_hand(x, y)),
              'exp.DataLoader, from memory': passing(lambda: ours),
              "PyTorch's DataLoader, rows at once, pinned": passing(lambda: theirs),
              'by hand, on the device': passing(by_hand(*there)),
              'exp.DataLoader, on the device': passing(lambda: ours_there)}
    b.compare('loader', f'{bs} rows of 784 floats', makers, 10, per=-(-n//bs), unit='µs a batch', scale=1e6)
    if not b.cuda: return b.table.add('loader', 'pinned memory', 'left out', 'it is of use with CUDA alone')
    xb = torch.randint(256, (64, 3, 128, 128), dtype=torch.uint8)
    pinned, many = xb.pin_memory(), 50
    def copying(t, non_blocking=True):
        def run():
            for _ in range(many): t.to(b.device, non_blocking=non_blocking)
        return lambda: run
    def pin_first():
        for _ in range(many): xb.pin_memory().to(b.device, non_blocking=True)
    makers = {'not pinned': copying(xb), 'pinned': copying(pinned),
              'pinned, blocking': copying(pinned, False), 'pinned first, then copied': lambda: pin_first}
    b.compare('loader', f'copy of {xb.nbytes/1e6:.1f} MB of bytes', makers, 3, per=many, unit='µs', scale=1e6)

def made_photographs(folder, n, size):
    """JPEG files of clouds of colour with some grain, in ten folders: as much to decode as a photograph of
    that size."""
    rng, files = np.random.default_rng(0), []
    for i in range(n):
        rough = Image.fromarray(rng.integers(0, 256, (12, 16, 3),
                                             dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 8, (size[1], size[0], 1))
        file = Path(folder)/f'class_{i % 10}'/f'{i}.jpg'
        file.parent.mkdir(exist_ok=True)
        Image.fromarray((np.asarray(rough) + grain).clip(0, 255).astype(np.uint8)).save(file, quality=90)
        files.append(file)
    return files

def image_files(b):
    """JPEG files to normalised batches on the device: exp.data_block, a plain PyTorch pipeline, and the
    decoder alone, which makes no tensors."""
    n, bs, size = b.pick(1024, 16), b.pick(64, 8), b.pick(128, 32)
    with tempfile.TemporaryDirectory() as folder:
        files = made_photographs(folder, n, b.pick((256, 192), (64, 48)))
        labels = [int(f.parent.name[-1]) for f in files]
        mean, std = (torch.tensor(t, device=b.device)[:, None, None] for t in (images.MEAN, images.STD))
        for workers in b.pick(sorted({0, min(8, cpu_count())}), [0]):
            def torch_loader(kind):
                return torch.utils.data.DataLoader(kind(files, labels, size), bs, shuffle=True,
                                                   num_workers=workers, persistent_workers=workers > 0,
                                                   pin_memory=b.cuda)
            def decoder():
                dl = torch_loader(images.Decoder)
                def epoch():
                    for _ in dl: pass
                return epoch
            def plain():
                dl = torch_loader(images.Plain)
                def epoch():
                    for xb, yb in dl:
                        xb, yb = to_device((xb, yb), b.device)
                        xb.float().div_(255).sub_(mean).div_(std)
                return epoch
            def ours(cache=False):
                data = images.exp_data(files, folder, size, bs, workers, cache)
                def epoch():
                    for batch in data.train_dl:
                        data.transform_batch(*to_device(tuple(batch), b.device), train=True,
                                             items=batch.items)
                return epoch
            makers = {'plain PyTorch': plain, 'exp': ours, 'decoder alone': decoder}
            if not workers: makers['exp, cached, after the first epoch'] = partial(ours, True)
            b.compare('images', f'{n} JPEG files to {size} px, {workers} workers', makers, 15, per=n,
                      unit='images/s', rate=True, least=2)
            gc.collect()   # the loaders, and with them their workers

def augmentation(b):
    """Transforms of a batch on the device, drawing included; the floor is one interpolation with matrices
    that lie there."""
    A = find('batch_transforms')
    if A is None:
        return b.table.add('augmentation', 'batch transforms', 'left out', 'exp.augmentation is not there')
    bs, size = b.pick(64, 4), b.pick(128, 32)
    (x, _), = b.batches(1, bs, (3, size, size))
    x = x.sigmoid()
    theta = torch.eye(2, 3, device=b.device).repeat(bs, 1, 1) + 0.01*torch.randn(bs, 2, 3, device=b.device)
    many = b.pick(20, 1)
    def repeat(f):
        def run():
            for _ in range(many): f()
        return lambda: run
    def through(*tfms):
        data = DataBunch([(x, None)], None, batch_tfms=([OnBatch(t, i) for i, t in enumerate(tfms)], []))
        return repeat(lambda: data.transform_batch(x, None, train=True, items=range(bs)))
    moves = lambda: [A.RandomRotate(p=1.), A.RandomZoom(p=1.), A.RandomWarp(p=1.)]
    lights = lambda: [A.RandomBrightness(p=1.), A.RandomContrast(p=1.), A.RandomSaturation(p=1.)]
    matrix = torch.eye(3, dtype=torch.float64).repeat(bs, 1, 1)
    matrix[:, :2] += theta.double().cpu() - torch.eye(2, 3, dtype=torch.float64)
    entries = {'F.affine_grid and F.grid_sample': lambda: repeat(lambda: F.grid_sample(x, F.affine_grid(
        theta, x.shape, align_corners=False), padding_mode='reflection', align_corners=False)),
               'resample, matrices given': lambda: repeat(lambda: A.resample(x, matrix)),
               'RandomFlip': lambda: through(A.RandomFlip()),
               'rotation, zoom and warp, composed': lambda: through(A.Composed(moves())),
               'rotation, zoom and warp, one by one': lambda: through(*moves()),
               'three changes of colour, composed': lambda: through(A.ComposedLighting(lights())),
               'three changes of colour, one by one': lambda: through(*lights())}
    b.compare('augmentation', f'{bs} images of {size} px',
              {name: lambda make=make: make()() for name, make in entries.items()}, 12, per=many*bs,
              unit='images/s', rate=True)

# ---------------------------------------------------------------- memory, and the rate finder

def memory(b):
    """The most memory that an epoch takes beyond what was taken before it, model and optimizer state
    included; and what is left of it after the fit."""
    if not b.cuda: return b.table.add('memory', 'peak', 'left out', 'PyTorch counts it on CUDA alone')
    batches = b.batches(4, 128, (3, 128, 128))
    torch.manual_seed(0)
    model = resnet()
    def mb(n): return f'{n/2**20:,.1f} MB'
    makers = {'bare loop': lambda m: bare(m, batches, b.device),
              'Learner': lambda m: with_learner(m, batches)}
    if find('precision') and hasattr(Learner, 'to_bf16'):
        makers['Learner, bf16'] = lambda m: with_learner(m, batches, lambda l: l.to_bf16())
        makers['Learner, bf16, channels-last'] = lambda m: with_learner(
            m, batches, lambda l: (l.to_bf16(), l.channels_last()))
    base = None
    for name, make in makers.items():
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(b.device)
        epoch = make(copy.deepcopy(model).to(b.device))
        b.seconds(epoch)
        torch.cuda.reset_peak_memory_stats(b.device)
        after_one = torch.cuda.memory_allocated(b.device)
        b.seconds(epoch)
        peak, left = torch.cuda.max_memory_allocated(b.device) - before, torch.cuda.memory_allocated(
            b.device) - after_one
        base = peak if base is None else base
        b.table.add('memory', f'ResNet-18, 128 images of 128 px: {name}', mb(peak),
                    f'{peak/base:.3f} x bare loop; the second fit left {mb(left)} more')
        del epoch

def finder(b):
    """The rate finder's suggestion against the best of nine rates, one seed: validation accuracy of short
    trainings, data on the device."""
    def read(part):
        x, y = lr_finder.mnist(part) if which is lr_finder.mnist else lr_finder.fashion_mnist(part)
        n = len(x) if not b.quick else 256
        return x[:n].to(b.device), y[:n].to(b.device)
    for name, (which, make, opt_func) in lr_finder.CASES.items():
        data = lr_finder.get_data(read, 1)
        on_device = lambda: make().to(b.device)
        suggestion = 0.1
        if not b.quick:   # too few batches for it
            found = lr_finder.LRFinder()
            lr_finder.new_runner(data, on_device, opt_func, 1).fit(1, cbs=found)
            suggestion = found.suggestion
        accuracy_at = lambda lr: lr_finder.reached(data, on_device, opt_func, 1, lr, b.pick(2, 1))
        reached, nine = accuracy_at(suggestion), [
            accuracy_at(lr) for lr in (lr_finder.RATES if not b.quick else lr_finder.RATES[4:5])]
        b.table.add('lr_finder', name, f'{reached:.2f} %',
                    f'at {suggestion:.3g}; the best of {len(nine)} rates reaches {max(nine):.2f} %')

PARTS = {'waits': waits, 'loop': loop, 'callbacks': callbacks, 'optimizers': optimizer_steps,
         'norms': norm_layers, 'loader': loader, 'images': image_files,
         'augmentation': augmentation, 'memory': memory, 'precision': precision, 'lr_finder': finder}
NEEDS = {'precision': 160, 'lr_finder': 60}   # seconds, about; the others 40

# ---------------------------------------------------------------- the run

def card(device):
    "The device's name."
    if device.type == 'cuda': return torch.cuda.get_device_name(device)
    return f'{platform.processor() or platform.machine()} {device.type}'

def file_name(card): return f'results_{re.sub(r"[^A-Za-z0-9]+", "_", card).strip("_")}.md'

def heading(b, seconds):
    facts = [f'torch {torch.__version__}',
             *([f'CUDA {torch.version.cuda}', f'cuDNN {torch.backends.cudnn.version()}'] if b.cuda else []),
             f'Python {platform.python_version()}', f'{cpu_count()} cores',
             f'{torch.get_num_threads()} threads']
    return (f'# {card(b.device)}\n\n{datetime.date.today().isoformat()}; {", ".join(facts)}; {seconds:.0f} '
            f'seconds{"; --quick: small, and of no weight" if b.quick else ""}\n\n'
            'Written by `python benchmarks/gpu.py`, which says what the parts are. Medians; ratios are '
            'medians of pairs.\n')

def run(b, names):
    for name in names:
        if b.left() < NEEDS.get(name, 40) and not b.quick:
            b.table.add(name, 'all of it', 'left out',
                        f'the time would not do ({b.left():.0f} s of {LIMIT:.0f} s are left)')
            continue
        start = time.perf_counter()
        try: PARTS[name](b)
        except Exception as e: b.table.add(name, 'the rest of it', 'failed', reason(e))
        gc.collect()
        if b.cuda: torch.cuda.empty_cache()
        print(f'{name:<13} {time.perf_counter() - start:.0f} s', flush=True)

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', help="the setting `device` for this run; by itself what exp takes")
    p.add_argument('--quick', action='store_true', help='small sizes, one round: to see that all runs')
    p.add_argument('--only', nargs='+', choices=list(PARTS), metavar='PART',
                   help=f'some parts: {", ".join(PARTS)}')
    p.add_argument('--out', help='folder for the results; given, they are written in any case')
    args = p.parse_args(argv)
    if args.device: os.environ['EXP_DEVICE'] = args.device
    device = default_device()
    if device.type == 'cpu' and not args.device:
        print('There is no GPU here, so there is nothing to measure and nothing was written; --device cpu '
              '--quick shows that all runs.')
        return
    if device.type == 'cuda':
        device = torch.device('cuda', torch.cuda.current_device() if device.index is None else device.index)
        torch.cuda.set_device(device)
    warnings.filterwarnings('ignore', 'This DataLoader will create')
    b = Bench(device, args.quick)
    print(f'{card(device)}, torch {torch.__version__}', flush=True)
    run(b, args.only or PARTS)
    text = b.table.text(heading(b, time.perf_counter() - b.begun))
    print('\n' + text)
    if not args.out and (args.only or args.quick or device.type == 'cpu'): return
    path = Path(args.out or HERE)/file_name(card(device))
    with atomic_path(path) as part: Path(part).write_text(text, encoding='utf-8')
    print('written to', path)

if __name__ == '__main__': main()
