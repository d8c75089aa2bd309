"""The rate finder's suggestion against the best of nine rates: validation accuracy of short trainings, two
networks, three seeds.

    python benchmarks/lr_finder.py

Each training is 2 epochs of the 50,000 training images at batch size 64, in one cycle (cosine) whose peak is
the rate: a tenth of it at first, a thousandth at the end. Weights start by Kaiming's rule. It takes some
minutes, and prints how many.
"""
import time
from functools import partial

import torch
from torch import nn

from exp.callbacks import AvgStats, Runner
from exp.core import set_seed
from exp.dataloader import Dataset, make_data
from exp.datasets import fashion_mnist, mnist, standardize
from exp.metrics import accuracy
from exp.regularization import init_kaiming
from exp.schedules import LRFinder, ParamScheduler, cos_1cycle

RATES = [1e-3 * 3000**(i/8) for i in range(9)]

def conv(ni, nf, ks): return nn.Sequential(nn.Conv2d(ni, nf, ks, stride=2, padding=ks//2), nn.ReLU())

def cnn():
    return nn.Sequential(conv(1, 8, 5), conv(8, 16, 3), conv(16, 32, 3), conv(32, 32, 3),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(),
                         nn.Linear(50, 10))

CASES = {'CNN 8-16-32-32, MNIST, SGD': (mnist, cnn, torch.optim.SGD),
         'MLP 100-50, Fashion-MNIST, momentum 0.9': (fashion_mnist, mlp,
                                                     partial(torch.optim.SGD, momentum=0.9))}

def kaiming(model):
    for m in model.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            init_kaiming(m.weight)
            nn.init.zeros_(m.bias)
    return model

def get_data(read, seed):
    (x, y), (xv, yv) = read('train'), read('valid')
    mean, std = x.float().mean(), x.float().std()
    x, xv = (standardize(t[:, None], mean, std) for t in (x, xv))
    return make_data(Dataset(x, y.long()), Dataset(xv, yv.long()), bs=64, seed=seed)

def new_runner(data, make, opt_func, seed, cbs=None):
    set_seed(seed)
    return Runner(data, kaiming(make()), opt_func=opt_func, cbs=cbs)

def reached(data, make, opt_func, seed, lr, epochs):
    "Validation accuracy in percent of one cycle with the peak `lr`."
    run = new_runner(data, make, opt_func, seed, [AvgStats(accuracy)])
    run.fit(epochs, cbs=ParamScheduler('lr', cos_1cycle(lr/10, lr, lr/1000)))
    return 100*run.avg_stats.history[-1]['valid_accuracy']

def main(seeds=(1, 2, 3), epochs=2):
    start = time.perf_counter()
    print(f'{"network, data, optimizer":<40} seed  suggested  reached   best of nine, at   difference')
    for name, (read, make, opt_func) in CASES.items():
        differences = []
        for seed in seeds:
            data = get_data(read, seed)
            finder = LRFinder()
            new_runner(data, make, opt_func, seed).fit(1, cbs=finder)
            found = reached(data, make, opt_func, seed, finder.suggestion, epochs)
            nine = [reached(data, make, opt_func, seed, lr, epochs) for lr in RATES]
            best = max(nine)
            differences.append(found - best)
            print(f'{name:<40} {seed:>4}  {finder.suggestion:>9.3g}  {found:6.2f} %  {best:6.2f} %, '
                  f'{RATES[nine.index(best)]:<8.3g}  {found - best:+6.2f}', flush=True)
            print(' '*47 + '  '.join(f'{lr:.2g}: {acc:.1f}' for lr, acc in zip(RATES, nine)), flush=True)
        print(f'{name:<40} mean difference {sum(differences)/len(differences):+.2f}', flush=True)
    print(f'{time.perf_counter() - start:.0f} s, {torch.get_num_threads()} threads')

if __name__ == '__main__': main()
