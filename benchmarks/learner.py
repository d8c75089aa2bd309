"""Learner.fit with all its callbacks against the bare loop of benchmarks/loop.py, epochs in turn, medians of
paired ratios; and what each callback costs.

    python benchmarks/learner.py
    python benchmarks/learner.py --threads 1 --clock cpu    on a busy machine: processor seconds
"""
import argparse, contextlib, io, statistics, time, warnings
from functools import partial

import torch
import torch.nn.functional as F
import torch.utils.data
from torch import nn

from exp.callbacks import AvgStats, Recorder, Runner
from exp.datasets import mnist
from exp.dataloader import DataLoader, Dataset
from exp.hooks import BatchTransform, DeviceCallback
from exp.learner import Learner
from exp.metrics import accuracy
from exp.progress import Progress
from exp.schedules import ParamScheduler, cos_1cycle
from loop import LR, compare, peers, seconds   # this folder's

SGD = partial(torch.optim.SGD, momentum=0.9)
GOAL = 1.08

class Terminal(io.TextIOBase):
    "A terminal that swallows what is written."
    written = 0
    def isatty(self): return True
    def write(self, s):
        Terminal.written += len(s)
        return len(s)

@contextlib.contextmanager
def terminal():
    with contextlib.redirect_stdout(Terminal()), contextlib.redirect_stderr(Terminal()): yield

def bare(model, dl):
    "An epoch of the loop without a library."
    opt = SGD(model.parameters(), lr=LR)
    def epoch():
        model.train()
        for xb, yb in dl:
            loss = F.cross_entropy(model(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
    return epoch

def with_learner(make_cbs=lambda: [], **kwargs):
    def make(model, dl):
        learn = Learner((dl, None), model, loss_func=F.cross_entropy, opt_func=SGD, metrics=accuracy,
                        cbs=make_cbs(), **kwargs)
        def epoch():
            with terminal(): learn.fit_one_cycle(1, LR)
        return epoch
    return make

class NoWork(nn.Module):
    "A model that answers its parameters, so that the loop's own cost is all there is."
    def __init__(self, bs):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(bs, 10))
    def forward(self, x): return self.w

def total(pred, yb): return pred.sum()

PARTS = {'DeviceCallback': lambda: DeviceCallback('cpu'), 'AvgStats(accuracy)': lambda: AvgStats(accuracy),
         'AvgStats()': AvgStats, 'Recorder': Recorder, 'Progress': Progress,
         'ParamScheduler lr': lambda: ParamScheduler('lr', cos_1cycle(0.01, 0.1, 1e-6)),
         'ParamScheduler mom': lambda: ParamScheduler('mom', cos_1cycle(0.95, 0.85, 0.95)),
         'a BatchTransform': lambda: BatchTransform(lambda xb: xb)}

def parts(clock, rounds=15, batches=500, bs=64):
    "Microseconds a batch for each callback alone, over a Runner without it, where the network costs nothing."
    loader = [(torch.zeros(bs, 1), torch.zeros(bs, dtype=torch.long))]*batches
    def run(*cbs):
        runner = Runner((loader, None), NoWork(bs), loss_func=total, opt_func=SGD, lr=1e-3, cbs=list(cbs))
        def epoch():
            with terminal(): runner.fit(1)
        return epoch
    def whole():
        learn = Learner((loader, None), NoWork(bs), loss_func=total, opt_func=SGD, lr=1e-3, metrics=accuracy)
        def epoch():
            with terminal(): learn.fit_one_cycle(1)
        return epoch
    runs = {'Runner': run(), **{name: run(make()) for name, make in PARTS.items()},
            'Learner.fit_one_cycle': whole()}
    times = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name in list(runs)[::-1 if i % 2 else 1]:
            t = seconds(runs[name], clock)
            if i: times[name].append(t/batches*1e6)
    print(f'\nno network, {batches} batches of {bs}, {rounds} rounds: microseconds a batch, and more than '
          'Runner alone (median of pairs)')
    for name, ts in times.items():
        print(f'{name:<26}{statistics.median(ts):7.1f} '
              f'{statistics.median(t - f for t, f in zip(ts, times["Runner"])):+7.1f}')

def main(threads=2, clock=time.perf_counter, bs=64, n=12_800, rounds=24):
    torch.set_num_threads(threads)
    warnings.filterwarnings('ignore', module='lightning')
    x, y = mnist('train')
    x, y = x[:n, None].float()/255, y[:n].long()
    x = (x - x.mean())/x.std()
    loaders = {'exp': DataLoader(Dataset(x, y), bs, shuffle=True),
               'torch': torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), bs, shuffle=True)}
    print(f'{n:,} digits an epoch, batch size {bs}, {torch.get_num_threads()} threads, SGD with momentum, no '
          f'validation; {"wall clock" if clock is time.perf_counter else "processor time"}')
    every = ('train/eval, device, batch_tfms, AvgStats(accuracy), Recorder, Progress (terminal), lr and '
             'momentum')
    compare(f'The same loader; the goal is {GOAL} x bare',
            {'bare loop': (bare, 'exp', 'none'), 'Learner.fit_one_cycle': (with_learner(), 'exp', every),
            '  without bars': (with_learner(lambda: [Progress(False)]), 'exp', 'the same without Progress')},
            loaders, rounds, clock, 90)
    print(f'{Terminal.written:,} characters went to the terminal')
    others = {name: (make, 'torch', f"{name}'s own; without momentum, metrics, schedule, logger and bar")
              for name, make in peers().items()}
    if others:
        compare('Peers, with torch.utils.data.DataLoader',
                {'bare loop': (bare, 'torch', 'none'),
                 'Learner.fit_one_cycle': (with_learner(), 'torch', every), **others}, loaders, rounds//4,
                clock, 40)
    parts(clock)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall')
    args = parser.parse_args()
    main(args.threads, time.perf_counter if args.clock == 'wall' else time.process_time)
