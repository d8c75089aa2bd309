"""Train a small residual network on all of Fashion-MNIST, with several seeds, and report their mean.

    python examples/train_fashion.py --epochs 6 --seed 1 2 3

The network is lesson 22's, trained for longer than a lesson has time for. With --held-out it learns from
50,000 images and is judged on the other 10,000 of the training set: so settings are chosen. Without, it
learns from 60,000 and is judged on the test images, which is for the final figure alone. The line above
reached 92.51 % (92.63, 92.57, 92.32); an epoch takes about half a minute on one core.
"""
import argparse, statistics, time
from functools import partial

import torch
from torch import nn

from exp.convnets import resnet
from exp.core import set_seed
from exp.dataloader import Dataset, make_data
from exp.datasets import fashion_mnist, standardize
from exp.learner import Learner
from exp.metrics import accuracy
from exp.optimizers import adam_opt

def images_of(*splits, n=60_000):
    "The first `n` images and labels of these splits in one data set."
    x, y = (torch.cat(parts)[:n] for parts in zip(*map(fashion_mnist, splits)))
    return Dataset(standardize(x[:, None], 73., 90.), y.long())

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, what in (('epochs', 6, 'times through the training images'),
                                ('images', 60_000, 'how many to learn from'),
                                ('bs', 64, 'images in a batch'), ('width', 0.25, 'of the channels'),
                                ('lr', 0.015, 'highest learning rate'), ('wd', 0.01, 'weight decay')):
        p.add_argument(f'--{name}', type=type(default), default=default, help=f'{what} (default: {default})')
    p.add_argument('--seed', type=int, nargs='+', default=[1, 2, 3], help='one run for each (default: 1 2 3)')
    p.add_argument('--held-out', action='store_true', help='judge on held-out images of the training set')
    args = p.parse_args()

    parts = (['train'], ['valid']) if args.held_out else (['train', 'valid'], ['test'])
    train, judge = images_of(*parts[0], n=args.images), images_of(*parts[1])
    results = []
    for seed in args.seed:
        set_seed(seed)
        start = time.perf_counter()
        net = resnet((1, 1, 1, 1), 4, 10, args.width, small=True)
        model = nn.Sequential(nn.PixelUnshuffle(2), net).to(memory_format=torch.channels_last)
        learn = Learner(make_data(train, None, bs=args.bs, seed=seed, drop_last=True), model,
                        opt_func=partial(adam_opt, wd=args.wd))
        learn.fit_one_cycle(args.epochs, args.lr)
        judged = make_data(judge, judge, bs=500)
        results.append(100*Learner(judged, learn.model, metrics=accuracy).validate()['accuracy'])
        print(f'seed {seed}: {results[-1]:.2f} %, {time.perf_counter() - start:.0f} s', flush=True)
    print(f'{statistics.mean(results):.2f} % of {len(judge):,} {parts[1][0]} images, '
          f'mean of {len(results)} seeds')

if __name__ == '__main__': main()
