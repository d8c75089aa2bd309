"""Batches of tensors in memory: our DataLoader, PyTorch's, and indexing by hand, in turn, as medians of
paired ratios.

    python benchmarks/loader.py
"""
import statistics, time

import torch
import torch.utils.data

from exp.dataloader import DataLoader, Dataset
from exp.datasets import mnist

def by_hand(x, y, bs):
    order = torch.randperm(len(x))
    for rows in order.split(bs): yield x.index_select(0, rows), y.index_select(0, rows)

def seconds(batches):
    start = time.perf_counter()
    for xb, yb in batches: pass
    return time.perf_counter() - start

def main(bs=64, repeats=9):
    x, y = mnist('train')
    x, y = x.flatten(1).float()/255, y.long()
    ours = DataLoader(Dataset(x, y), bs, shuffle=True)
    theirs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), bs, shuffle=True)
    runs = {'by hand': lambda: by_hand(x, y, bs), 'exp.DataLoader': lambda: ours,
            'torch DataLoader': lambda: theirs}
    times = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, make in runs.items():
            t = seconds(make())
            if repeat: times[name].append(t)   # the first round warms up
    print(f'{len(x):,} rows of 784 floats, batch size {bs}, {torch.get_num_threads()} threads, {repeats} '
          'rounds; no callbacks')
    for name, ts in times.items():
        ratio = statistics.median(t/h for t, h in zip(ts, times['by hand']))
        print(f'{name:<18}{1000*statistics.median(ts):8.1f} ms an epoch   {ratio:6.2f} x by hand')

if __name__ == '__main__': main()
