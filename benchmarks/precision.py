"""MixedPrecision, GradAccumulation, ChannelsLast and Compile against the same written by hand in a bare loop:
epochs in turn, medians of paired ratios.

    python benchmarks/precision.py
    python benchmarks/precision.py --device cuda --size 128 --bs 256 --width 64
    python benchmarks/precision.py --threads 1 --clock cpu    on a busy machine: processor seconds

Each callback is added to a Runner without any other; `bare` is the loop of PyTorch's documentation. The
second table is each way against float32, by hand.
"""
import argparse, contextlib, statistics, time
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from exp.callbacks import Runner
from exp.core import default_device, set_seed
from exp.hooks import DeviceCallback
from exp.precision import ChannelsLast, Compile, GradAccumulation, MixedPrecision

SGD = partial(torch.optim.SGD, momentum=0.9)
LR = 0.01

def network(width):
    set_seed()
    def conv(ni, nf):
        return nn.Conv2d(ni, nf, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(nf), nn.ReLU()
    return nn.Sequential(*conv(3, width), *conv(width, 2*width), *conv(2*width, 4*width),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4*width, 10))

def wait(device):
    if device.type == 'cuda': torch.cuda.synchronize()
    if device.type == 'mps': torch.mps.synchronize()

def by_hand(device, model, batches, dtype=None, group=1, last=False, compiled=False):
    "An epoch of the loop without a library."
    model = model.to(device)
    if last: model = model.to(memory_format=torch.channels_last)
    call = torch.compile(model) if compiled else model
    opt, scaler = SGD(model.parameters(),
                      lr=LR), torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    def epoch():
        model.train()
        for i, (xb, yb) in enumerate(batches):
            xb, yb = xb.to(device, non_blocking=True), yb.to(device, non_blocking=True)
            if last: xb = xb.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext():
                loss = F.cross_entropy(call(xb), yb)
            scaler.scale(loss/group).backward()
            if (i + 1) % group: continue
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
    return epoch

def with_runner(device, model, batches, *cbs):
    run = Runner((batches, None), model.to(device), loss_func=F.cross_entropy, opt_func=SGD, lr=LR,
                 cbs=[DeviceCallback(device), *cbs])
    return lambda: run.fit(1)

def measured(make, device, clock):
    "Seconds of an epoch, measured from idle to idle."
    epoch = make()
    def seconds():
        wait(device)
        start = clock()
        epoch()
        wait(device)
        return clock() - start
    return seconds

def paired(runs, rounds, budget):
    "Seconds of each run in turn, the order turned around from round to round; the first round warms up."
    times, start = {name: [] for name in runs}, time.perf_counter()
    for i in range(rounds + 1):
        for name in list(runs)[::-1 if i % 2 else 1]:
            t = runs[name]()
            if i: times[name].append(t)
        if i >= 3 and time.perf_counter() - start > budget: break
    return times

def ratio(ts, base):
    rs = sorted(t/b for t, b in zip(ts, base))
    q = len(rs)//4
    return f'{statistics.median(rs):7.3f} ({rs[q]:.3f} to {rs[-1 - q]:.3f})'

def main(device=None, threads=2, clock=time.perf_counter, n=12, bs=64, size=32, width=16, rounds=20,
         budget=60, compiled=True):
    torch.set_num_threads(threads)
    device = torch.device(device) if device else default_device()
    g = torch.Generator().manual_seed(1)
    batches = [(torch.randn(bs, 3, size, size, generator=g), torch.randint(0, 10, (bs,), generator=g))
               for _ in range(n)]
    hand = lambda **kw: lambda: by_hand(device, network(width), batches, **kw)
    ours = lambda *cbs: lambda: with_runner(device, network(width), batches, *[make() for make in cbs])
    half, brain = partial(MixedPrecision, torch.float16), partial(MixedPrecision, torch.bfloat16)
    ways = {'float32': (hand(), ours()), 'bf16': (hand(dtype=torch.bfloat16), ours(brain)),
            'fp16': (hand(dtype=torch.float16), ours(half)),
            'four batches a step': (hand(group=4), ours(partial(GradAccumulation, 4*bs))),
            'fp16, four batches': (hand(dtype=torch.float16, group=4),
                                   ours(half, partial(GradAccumulation, 4*bs))),
            'channels last': (hand(last=True), ours(ChannelsLast)),
            'bf16, channels last': (hand(dtype=torch.bfloat16, last=True), ours(brain, ChannelsLast))}
    if compiled: ways['compiled'] = hand(compiled=True), ours(Compile)
    card = (torch.cuda.get_device_name(device) if device.type == 'cuda'
            else f'{torch.get_num_threads()} threads')
    print(f'torch {torch.__version__}, {device} ({card}); {n} batches of {bs} images of {size} px, width '
          f'{width}; {"wall clock" if clock is time.perf_counter else "processor time"}')
    print(f'{"":<22}{"by hand":>10}{"exp":>10}   exp / by hand (quartiles)    by hand / float32')
    base = measured(hand(), device, clock)
    for name, (theirs, mine) in ways.items():
        runs = {'base': base, 'theirs': measured(theirs, device, clock),
                'mine': measured(mine, device, clock)}
        try: t = paired(runs, rounds, budget)
        except RuntimeError as e:
            print(f'{name:<22} left out: {type(e).__name__}: {str(e).strip().splitlines()[0][:90]}')
            continue
        ms = {k: 1000*statistics.median(v)/n for k, v in t.items()}
        print(f'{name:<22}{ms["theirs"]:7.2f} ms{ms["mine"]:7.2f} ms {ratio(t["mine"], t["theirs"])}  '
              f'{ratio(t["theirs"], t["base"])}', flush=True)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device')
    parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall')
    for name, default in (('threads', 2), ('n', 12), ('bs', 64), ('size', 32), ('width', 16), ('rounds', 20)):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--no-compile', dest='compiled', action='store_false')
    args = vars(parser.parse_args())
    args['clock'] = time.perf_counter if args['clock'] == 'wall' else time.process_time
    main(**args)
