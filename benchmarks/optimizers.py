"""One optimizer step: exp's part by part and fused, PyTorch's foreach and fused, timm's Lamb, and the floor
(the bytes that must move), in turn, as medians of paired ratios.

    python benchmarks/optimizers.py
    python benchmarks/optimizers.py --threads 1 --clock cpu    on a busy machine: processor seconds
    python benchmarks/optimizers.py --stub FILE    a Python file to run before timm is imported
"""
import argparse, importlib, runpy, statistics, time

import torch
from torch import nn

from exp.optimizers import adam_opt, lamb_opt, lion_opt, muon_opt, sgd_opt

LR, WD = 1e-6, 0.01

def resnet34():
    "The shapes of ResNet-34's parameters: 110 tensors, 21.8 million numbers."
    def conv_bn(ni, nf, ks): return [(nf, ni, ks, ks), (nf,), (nf,)]
    shapes, ni = conv_bn(3, 64, 7), 64
    for nf, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for _ in range(blocks):
            shapes += conv_bn(ni, nf, 3) + conv_bn(nf, nf, 3) + (conv_bn(ni, nf, 1) if ni != nf else [])
            ni = nf
    return shapes + [(1000, 512), (1000,)]

SETS = {"ResNet-34's parameters": resnet34(), '400 small tensors': [(64,), (32, 32)]*200}

def params(shapes):
    g = torch.Generator().manual_seed(0)
    ps = [nn.Parameter(torch.randn(s, generator=g)) for s in shapes]
    for p in ps: p.grad = torch.randn(p.shape, generator=g)
    return ps

def matrices(ps):
    "What has two dimensions or more, as two: torch's Muon takes nothing else."
    flat = [nn.Parameter(p.detach().flatten(1)) for p in ps if p.ndim > 1]
    for q, p in zip(flat, (p for p in ps if p.ndim > 1)): q.grad = p.grad.flatten(1)
    return flat

def floor(n, bytes_each):
    "As many bytes moved by a multiplication in place, which reads 4 and writes 4 for each number."
    x = torch.ones(n*bytes_each//8)
    return lambda: x.mul_(1.)

def contest(kind, timm):
    """What is compared: {name: function of parameters that answers a step}; the first is what ratios refer
    to. And the bytes that a step must move for each number."""
    T = torch.optim
    if kind == 'SGD with momentum':
        return 20, {
        'torch SGD fused=True': lambda ps: T.SGD(ps, lr=LR, momentum=0.9, fused=True),
            'torch SGD foreach=True': lambda ps: T.SGD(ps, lr=LR, momentum=0.9, foreach=True),
        'exp sgd_opt': lambda ps: sgd_opt(ps, LR, mom=0.9),
            'exp sgd_opt, fuse()': lambda ps: sgd_opt(ps, LR, mom=0.9).fuse()}
    if kind == 'AdamW':
        return 28, {
        'torch AdamW fused=True': lambda ps: T.AdamW(ps, lr=LR, weight_decay=WD, fused=True),
            'torch AdamW foreach=True': lambda ps: T.AdamW(ps, lr=LR, weight_decay=WD, foreach=True),
        'exp adam_opt': lambda ps: adam_opt(ps, LR, wd=WD),
            'exp adam_opt, fuse()': lambda ps: adam_opt(ps, LR, wd=WD).fuse()}
    if kind == 'Muon':
        return 20, {
        'torch Muon, matrices alone': lambda ps: T.Muon(matrices(ps), lr=LR, weight_decay=WD,
                                                        adjust_lr_fn='match_rms_adamw'),
        'exp muon_opt': lambda ps: muon_opt(ps, LR, wd=WD)}
    lamb = ({} if timm is None else {
        "timm Lamb": lambda ps: timm.Lamb(ps, lr=LR, weight_decay=WD),
        'timm Lamb, no clipping': lambda ps: timm.Lamb(ps, lr=LR, weight_decay=WD, max_grad_norm=None)})
    return 28, {**lamb, 'exp lamb_opt': lambda ps: lamb_opt(ps, LR, wd=WD),
                'exp lamb_opt, fuse()': lambda ps: lamb_opt(ps, LR, wd=WD).fuse(),
                'exp lion_opt': lambda ps: lion_opt(ps, LR, wd=WD)}

def seconds(step, clock, repeats):
    start = clock()
    for _ in range(repeats): step()
    return (clock() - start)/repeats

def compare(kind, title, shapes, timm, rounds, clock):
    bytes_each, makers = contest(kind, timm)
    n = sum(torch.Size(s).numel() for s in shapes)
    steps = {name: make(params(shapes)).step for name, make in makers.items()}
    steps[f'floor: {bytes_each*n/1e6:.1f} MB moved'] = floor(n, bytes_each)
    for step in steps.values():
        step()
        step()
    repeats = max(1, round(0.005/seconds(next(iter(steps.values())), clock, 3)))
    times = {name: [] for name in steps}
    for i in range(rounds):
        for name in list(steps)[::-1 if i % 2 else 1]:
            times[name].append(seconds(steps[name], clock, repeats))
    print(f'\n{kind}, {title}: {len(shapes)} tensors, {n/1e6:.2f} million numbers, {rounds} rounds of '
          f'{repeats} steps')
    first = next(iter(times))
    for name, ts in times.items():
        ratios = sorted(t/f for t, f in zip(ts, times[first]))
        q = len(ratios)//4
        print(f'{name:<28}{1000*statistics.median(ts):9.3f} ms {statistics.median(ratios):7.3f} x {first} '
              f'({ratios[q]:.3f} to {ratios[-1 - q]:.3f})')

def find_timm(stub):
    if stub: runpy.run_path(stub)
    try: return importlib.import_module('timm.optim')
    except Exception as e:
        print(f'timm: left out, it does not import ({type(e).__name__}: {str(e).splitlines()[0]})')

def main(threads=2, clock=time.perf_counter, rounds=30, stub=None):
    torch.set_num_threads(threads)
    timm = find_timm(stub)
    print(f'{torch.get_num_threads()} threads, torch {torch.__version__}; '
          f'{"wall clock" if clock is time.perf_counter else "processor time"}')
    for kind in ('SGD with momentum', 'AdamW', 'LAMB', 'Muon'):
        for title, shapes in SETS.items(): compare(kind, title, shapes, timm, rounds, clock)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall')
    parser.add_argument('--rounds', type=int, default=30)
    parser.add_argument('--stub', help='a Python file to run before timm is imported')
    args = parser.parse_args()
    main(args.threads, time.perf_counter if args.clock == 'wall' else time.process_time, args.rounds,
         args.stub)
