"""Batches of tensors in memory: DataLoader against indexing the same tensors by hand, in turn. The goal is 3
%.

    python benchmarks/memory.py [--rounds 31] [--bs 64]

A loop by hand draws an order, cuts it and takes the rows, as one writes it, x[rows], and by index_select, the
least that anyone who trains in shuffled order must do. The loader does the same and yields batches that carry
the indices of their items. Three sets: MNIST's bytes and floats in rows, and bytes of small colour images.
Each round runs both, the first of the two in turn; the ratio is the median over rounds, of time and of
processor time (which a crowded machine disturbs less), with its middle half.
"""
import argparse, gc, os, statistics, time

import torch
import torch.utils.data

from exp.dataloader import DataLoader, Dataset
from exp.datasets import mnist

def by_hand(x, y, bs):
    def batches():
        for rows in torch.randperm(len(x)).split(bs): yield x[rows], y[rows]
    return batches

def by_select(x, y, bs):
    def batches():
        for rows in torch.randperm(len(x)).split(bs): yield x.index_select(0, rows), y.index_select(0, rows)
    return batches

def by_loader(x, y, bs):
    dl = DataLoader(Dataset(x, y), bs, shuffle=True)
    return lambda: dl

def by_torch(x, y, bs):
    dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), bs, shuffle=True)
    return lambda: dl

def epoch(batches):
    gc.collect()
    cpu, start = time.process_time(), time.perf_counter()
    for xb, yb in batches(): pass
    return time.perf_counter() - start, time.process_time() - cpu

def quartiles(values):
    low, middle, high = statistics.quantiles(values, n=4)
    return f'{middle:.3f} ({low:.3f} to {high:.3f})'

def compare(what, x, y, bs, rounds):
    ours, theirs = by_loader(x, y, bs), by_torch(x, y, bs)
    for name, hand in (('x[rows]', by_hand(x, y, bs)), ('index_select', by_select(x, y, bs))):
        pair(f'{what}, {name}', hand, ours, theirs, rounds)

def pair(what, hand, ours, theirs, rounds):
    pairs = []
    for r in range(rounds + 1):
        order = (hand, ours) if r % 2 else (ours, hand)
        times = {run: epoch(run) for run in order}
        if r: pairs.append((times[hand], times[ours]))   # the first round warms up
    peer = statistics.median(epoch(theirs)[0]/epoch(hand)[0] for _ in range(3))
    print(f'{what}: by hand {1000*statistics.median(h[0] for h, _ in pairs):.1f} ms an epoch; DataLoader '
          f'takes {quartiles([o[0]/h[0] for h, o in pairs])} x the time, '
          f'{quartiles([o[1]/h[1] for h, o in pairs])} x the processor time; PyTorch\'s {peer:.1f} x the '
          'time', flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=31)
    p.add_argument('--bs', type=int, default=64)
    args = p.parse_args()
    x, y = mnist('train')
    sets = {'50,000 rows of 784 floats': x.flatten(1).float()/255, '50,000 rows of 784 bytes': x.flatten(1),
            '3,200 images of 3×64×64 bytes': x[:3200, None].repeat(1, 3, 3, 3)[..., :64, :64].contiguous()}
    print(f'batches of {args.bs}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, {args.rounds} '
          f'rounds; median (middle half); torch {torch.__version__}')
    for what, rows in sets.items(): compare(what, rows, y[:len(rows)].long(), args.bs, args.rounds)

if __name__ == '__main__': main()
