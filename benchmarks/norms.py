"""Norm layers in a small network: PyTorch's batch norm, ours, RunningBatchNorm, and RunningBatchNorm written
plainly, in turn, as medians of paired ratios.

    python benchmarks/norms.py
"""
import math, statistics, time

import torch
import torch.nn.functional as F
from torch import nn

from exp.norms import BatchNorm, RunningBatchNorm

class PlainRunningBatchNorm(nn.Module):
    "2019's formulas, one tensor operation each; autograd goes through all of them."
    def __init__(self, nf, mom=0.1, eps=1e-5):
        super().__init__()
        self.mom, self.eps = mom, eps
        self.weight, self.bias = nn.Parameter(torch.ones(nf)), nn.Parameter(torch.zeros(nf))
        for name in ('sums', 'sqrs'): self.register_buffer(name, torch.zeros(nf))
        for name in ('counts', 'items'): self.register_buffer(name, torch.tensor(0.))

    def forward(self, x):
        sums, sqrs = self.sums, self.sqrs
        if self.training:
            mom1, dims = 1 - (1 - self.mom)/math.sqrt(len(x) - 1), (0, 2, 3)
            sums, sqrs = sums*(1 - mom1) + x.sum(dims)*mom1, sqrs*(1 - mom1) + (x*x).sum(dims)*mom1
            with torch.no_grad():
                self.sums.copy_(sums)
                self.sqrs.copy_(sqrs)
                self.counts.mul_(1 - mom1).add_(mom1*x[:, 0].numel())
                self.items += len(x)
        mean = sums/self.counts
        var = sqrs/self.counts - mean*mean
        var = torch.where(self.items < 20, var.clamp_min(0.01), var)
        scale = (var + self.eps).rsqrt()*self.weight
        return (x - mean.view(-1, 1, 1))*scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)

NORMS = {'nn.BatchNorm2d': nn.BatchNorm2d, 'BatchNorm': BatchNorm, 'RunningBatchNorm': RunningBatchNorm,
         'written plainly': PlainRunningBatchNorm}

def network(norm):
    torch.manual_seed(0)
    blocks = [[nn.Conv2d(ni, nf, ks, 2, ks//2, bias=False), nn.ReLU(), norm(nf)]
              for ni, nf, ks in ((1, 8, 5), (8, 16, 3), (16, 32, 3), (32, 64, 3), (64, 64, 3))]
    return nn.Sequential(*sum(blocks, []), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

def step(model, opt, x, y):
    "Seconds of forward, backward and the whole training step."
    start = time.perf_counter()
    loss = F.cross_entropy(model(x), y)
    forward = time.perf_counter()
    loss.backward()
    backward = time.perf_counter()
    opt.step()
    opt.zero_grad()
    return forward - start, backward - forward, time.perf_counter() - start

def compare(bs, seconds, threads):
    "Steps of all networks in turn, for `seconds`."
    torch.set_num_threads(threads)
    x, y = torch.randn(bs, 1, 28, 28), torch.randint(10, (bs,))
    models = {name: network(norm) for name, norm in NORMS.items()}
    opts = {name: torch.optim.SGD(model.parameters(), lr=0.1) for name, model in models.items()}
    times, rounds, end = {name: [] for name in NORMS}, 0, time.perf_counter() + seconds
    while rounds < 20 or time.perf_counter() < end:
        for name in NORMS:
            t = step(models[name], opts[name], x, y)
            if rounds >= 10: times[name].append(t)   # the first rounds warm up
        rounds += 1
    print(f'\nbatch size {bs}, {threads} thread{"s"*(threads > 1)}, {rounds - 10} '
          f'rounds{"forward":>14}{"backward":>12}{"step":>12}')
    for name, ts in times.items():
        cells = [f'{1e6*statistics.median(col):7.0f} µs' for col in zip(*ts)]
        ratios = [statistics.median(a/b for a, b in zip(col, base))
                  for col, base in zip(zip(*ts), zip(*times['nn.BatchNorm2d']))]
        print(f'{name:<24}' + '   '.join(f'{c} {r:5.2f} x' for c, r in zip(cells, ratios)))

def main(seconds=7.):
    cores = torch.get_num_threads()
    print('five convolutions of stride 2 on 28 × 28 pixels, 8 to 64 channels, a norm after each; SGD. x: of '
          'nn.BatchNorm2d, medians of paired ratios')
    for threads in sorted({1, cores}):
        for bs in (2, 32, 512): compare(bs, seconds, threads)

if __name__ == '__main__': main()
