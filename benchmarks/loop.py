"""The training loop: Runner against a bare loop of the same steps, and peers, in turn, as medians of paired
ratios.

    python benchmarks/loop.py
    python benchmarks/loop.py --threads 1 --clock cpu    on a busy machine: processor seconds
"""
import argparse, contextlib, importlib, io, logging, statistics, time, warnings

import torch
import torch.nn.functional as F
import torch.utils.data
from torch import nn

from exp.callbacks import AvgStats, Recorder, Runner
from exp.core import set_seed
from exp.dataloader import DataLoader, Dataset
from exp.datasets import mnist
from exp.metrics import accuracy

LR = 0.1

def network():
    "2019's small network: four convolutions of stride 2."
    def conv(ni, nf, ks): return nn.Conv2d(ni, nf, ks, stride=2, padding=ks//2), nn.ReLU()
    return nn.Sequential(*conv(1, 8, 5), *conv(8, 16, 3), *conv(16, 32, 3), *conv(32, 32, 3),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

def bare(model, dl):
    "An epoch of the loop without a library."
    opt = torch.optim.SGD(model.parameters(), lr=LR)
    def epoch():
        model.train()
        for xb, yb in dl:
            loss = F.cross_entropy(model(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
    return epoch

def with_runner(*cbs):
    def make(model, dl):
        run = Runner((dl, None), model, loss_func=F.cross_entropy, opt_func=torch.optim.SGD, lr=LR,
                     cbs=[make_cb() for make_cb in cbs])
        return lambda: run.fit(1)
    return make

def with_lightning(lightning):
    class Module(lightning.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model
        def training_step(self, batch, i):
            xb, yb = batch
            return F.cross_entropy(self.model(xb), yb)
        def configure_optimizers(self): return torch.optim.SGD(self.model.parameters(), lr=LR)
    def make(model, dl):
        logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
        module = Module(model)
        def epoch():
            # a Trainer fits once, so that each epoch pays for one, as run.fit(1) pays for its own beginning
            # and end
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                lightning.Trainer(max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False,
                                  enable_progress_bar=False,
                                  enable_model_summary=False).fit(module, dl)
        return epoch
    return make

def with_fastai(fastai):
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import SGD
    def make(model, dl):
        learn = Learner(DataLoaders(dl, dl), model, loss_func=F.cross_entropy, opt_func=SGD, lr=LR)
        def epoch():
            with learn.no_bar(), learn.no_logging(): learn.fit(1, lr=LR)
        learn.dls.valid = []
        return epoch
    return make

def peers():
    "The libraries that are here, by name; those that are not are named."
    found = {}
    for name, wrap in (('lightning', with_lightning), ('fastai', with_fastai)):
        try: found[name] = wrap(importlib.import_module(name))
        except ImportError as e: print(f'{name}: left out, it does not import ({e})')
    return found

def seconds(epoch, clock):
    start = clock()
    epoch()
    return clock() - start

def compare(title, entries, loaders, rounds, clock, budget):
    """Epochs in turn, the order turned around from round to round, for `rounds` or `budget` seconds; medians,
    also of ratios to the first."""
    epochs = {}
    for name, (make, loader, cbs) in entries.items():
        set_seed()
        epochs[name] = make(network(), loaders[loader])
    times = {name: [] for name in entries}
    start = time.perf_counter()
    for i in range(rounds + 1):
        for name in list(entries)[::-1 if i % 2 else 1]:
            t = seconds(epochs[name], clock)
            if i: times[name].append(t)   # the first round warms up
        if i >= 3 and time.perf_counter() - start > budget: break
    print(f'\n{title}, {i} rounds')
    first = next(iter(times.values()))
    batches = len(loaders['exp'])
    for name, ts in times.items():
        ratios = sorted(t/f for t, f in zip(ts, first))
        q = len(ratios)//4
        spread = f'({ratios[q]:.3f} to {ratios[-1 - q]:.3f})'
        extra = 1e6*statistics.median(t - f for t, f in zip(ts, first))/batches
        print(f'{name:<26}{1000*statistics.median(ts):7.0f} ms {statistics.median(ratios):7.3f} x bare '
              f'{spread:<17} {extra:6.0f} µs a batch more   callbacks: {entries[name][2]}')

class NoWork(nn.Module):
    "A model of one number, so that the loop's own cost is all there is."
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
    def forward(self, x): return self.w

def floor(clock, rounds=15, batches=500):
    "What the loop itself costs a batch, over a bare loop, where the network costs nothing."
    loader = [(torch.zeros(1, 1), torch.zeros(1))]*batches
    def loss_func(pred, yb): return pred.sum()
    def by_hand(model):
        opt = torch.optim.SGD(model.parameters(), lr=LR)
        def epoch():
            model.train()
            for xb, yb in loader:
                loss_func(model(xb), yb).backward()
                opt.step()
                opt.zero_grad()
        return epoch
    def total(pred, yb): return pred.sum()
    runs = {'bare': by_hand(NoWork())}
    for name, cbs in (('Runner', []), ('Runner, AvgStats+Recorder', [lambda: AvgStats(total), Recorder])):
        run = Runner((loader, None), NoWork(), loss_func=loss_func, lr=LR, cbs=[make() for make in cbs])
        runs[name] = lambda run=run: run.fit(1)
    times = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, epoch in runs.items():
            t = seconds(epoch, clock)
            if i: times[name].append(t/batches*1e6)
    print(f'\nno network, {batches} batches, {rounds} rounds: the smallest and median microseconds a batch')
    for name, ts in times.items():
        print(f'{name:<26}{min(ts):7.1f} {statistics.median(ts):7.1f}   {min(ts) - min(times["bare"]):+6.1f} '
              'over bare')

def main(threads=2, clock=time.perf_counter, bs=64, n=12_800, rounds=12):
    torch.set_num_threads(threads)
    warnings.filterwarnings('ignore', module='lightning')
    x, y = mnist('train')
    x, y = x[:n, None].float()/255, y[:n].long()
    x = (x - x.mean())/x.std()
    loaders = {'exp': DataLoader(Dataset(x, y), bs, shuffle=True),
               'torch': torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), bs, shuffle=True)}
    none, own = 'none', 'train/eval'
    print(f'{n:,} digits an epoch, batch size {bs}, {torch.get_num_threads()} threads, SGD, no validation; '
          f'{"wall clock" if clock is time.perf_counter else "processor time"}')
    compare('The same loader, exp.DataLoader',
            {'bare loop': (bare, 'exp', none), 'Runner': (with_runner(), 'exp', own)}, loaders, 2*rounds,
            clock, 30)
    compare('With means and a record', {'bare loop': (bare, 'exp', none),
            'Runner, more callbacks': (with_runner(lambda: AvgStats(accuracy), Recorder), 'exp',
                                       own + ', AvgStats(accuracy), Recorder')}, loaders, rounds, clock, 20)
    others = {name: (make, 'torch', f"{name}'s own; logger, checkpoints, bar and summary off")
              for name, make in peers().items()}
    compare('Peers, all with torch.utils.data.DataLoader',
            {'bare loop': (bare, 'torch', none), 'bare loop, exp.DataLoader': (bare, 'exp', none),
            'Runner': (with_runner(), 'torch', own), **others}, loaders, rounds//2, clock, 25)
    floor(clock)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall')
    args = parser.parse_args()
    main(args.threads, time.perf_counter if args.clock == 'wall' else time.process_time)
