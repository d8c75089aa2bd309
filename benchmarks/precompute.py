"""Epochs of the head on a frozen body: images through the body each time, and features kept by `precompute`.
Photographs' size, random pixels: what is computed does not depend on them.

    python benchmarks/precompute.py
"""
import statistics, time

import torch

from exp.core import set_seed
from exp.dataloader import Dataset, make_data
from exp.transfer import create_cnn, efficientnet_lite0

def epochs(learn, n):
    "The seconds of each of `n` epochs."
    with learn.quiet(): learn.fit(n, 0.01)
    return [h['seconds'] for h in learn.history[-n:]]

def main(n=640, size=160, bs=64):
    set_seed()
    data = make_data(Dataset(torch.randn(n, 3, size, size), torch.arange(n) % 10), None, bs=bs)
    learn = create_cnn(data, efficientnet_lite0(c=10))   # a network to start from: random weights do
    learn.freeze(train_bn=False)
    learn.model.to(memory_format=torch.channels_last)
    slow = epochs(learn, 2)[1:]
    start = time.perf_counter()
    head = learn.precompute()
    once = time.perf_counter() - start
    fast = epochs(head, 20)[1:]
    ratio = statistics.median(slow)/statistics.median(fast)
    print(f'{n} images of {size}×{size}, EfficientNet-Lite0, batches of {bs}, {torch.get_num_threads()} '
          'threads')
    print(f'an epoch on images {slow[0]:.2f} s, computing features once {once:.2f} s, '
          f'an epoch on features {1000*statistics.median(fast):.1f} ms: {ratio:.0f} times as fast')

if __name__ == '__main__': main()
