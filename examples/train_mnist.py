"""Train a two-layer network on MNIST, with a bar, a table and a checkpoint to go on from.

    python examples/train_mnist.py --epochs 5
    torchrun --nproc-per-node 2 examples/train_mnist.py --epochs 5

The second line trains with two processes, on two GPUs where there are as many, else on the CPU. Each takes
half of every batch, so that the training is the same; a checkpoint of one line is gone on with by the other.
"""
import argparse

from torch import nn

from exp.core import set_seed
from exp.dataloader import Dataset, make_data
from exp.datasets import mnist, standardize
from exp.distributed import distributed, is_first
from exp.checkpoints import Checkpoint
from exp.learner import Learner
from exp.metrics import accuracy

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument('--epochs', type=int, default=5)
    p.add_argument('--bs', type=int, default=64, help='images in a batch, over all processes')
    p.add_argument('--lr', type=float, default=3e-3, help='highest learning rate of one cycle, AdamW')
    p.add_argument('--hidden', type=int, default=100, help='units in the hidden layer')
    p.add_argument('--seed', type=int, default=None, help='None: the setting seed')
    p.add_argument('--checkpoint', default=None, help='a file to write to, and to go on from if it is there')
    args = p.parse_args()
    with distributed(): train(args)

def train(args):
    set_seed(args.seed)
    (x, y), (xv, yv) = mnist('train'), mnist('valid')
    mean, std = x.float().mean(), x.float().std()
    x, xv = (standardize(t.flatten(1), mean, std) for t in (x, xv))
    data = make_data(Dataset(x, y.long()), Dataset(xv, yv.long()), bs=args.bs, seed=args.seed)
    model = nn.Sequential(nn.Linear(784, args.hidden), nn.ReLU(), nn.Linear(args.hidden, 10))
    learn = Learner(data, model, metrics=accuracy, cbs=[Checkpoint(args.checkpoint, every=500)]
                    if args.checkpoint else None).to_distributed()
    learn.fit_one_cycle(args.epochs, args.lr, resume=bool(args.checkpoint))
    if is_first():
        print(f'accuracy on {len(xv):,} validation images: {100*learn.validate()["accuracy"]:.2f} %')

if __name__ == '__main__': main()
