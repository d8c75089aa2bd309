"""Train a two-layer network on MNIST with what the first lessons built.

    python examples/train_mnist.py --epochs 5
"""
import argparse

import torch
from torch import nn

from exp.core import default_device, set_seed
from exp.dataloader import Dataset, eval_simple, fit_simple, make_data
from exp.datasets import mnist, standardize
from exp.losses import accuracy

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument('--epochs', type=int, default=5)
    p.add_argument('--bs', type=int, default=64, help='images in a batch')
    p.add_argument('--lr', type=float, default=0.1, help='learning rate of plain SGD')
    p.add_argument('--hidden', type=int, default=100, help='units in the hidden layer')
    p.add_argument('--seed', type=int, default=None, help='None: the setting seed')
    args = p.parse_args()

    set_seed(args.seed)
    (x, y), (xv, yv) = mnist('train'), mnist('valid')
    mean, std = x.float().mean(), x.float().std()
    x, xv = (standardize(t.flatten(1), mean, std) for t in (x, xv))
    data = make_data(Dataset(x, y.long()), Dataset(xv, yv.long()), bs=args.bs, seed=args.seed)
    model = nn.Sequential(nn.Linear(784, args.hidden), nn.ReLU(), nn.Linear(args.hidden, 10)).to(default_device())
    opt = torch.optim.SGD(model.parameters(), lr=args.lr)
    for row in fit_simple(args.epochs, model, nn.functional.cross_entropy, opt, data, metrics=accuracy):
        print('  '.join(f'{name} {value:.4g}' for name, value in row.items()))

if __name__ == '__main__': main()
