"""Batch transforms of 64 RGB images of 128 pixels: exp's with one interpolation, the same one after another,
one by one in PIL, and kornia's RandomAffine, in turn.

    python benchmarks/augment.py [--rounds 15] [--threads 1 2] [--bs 64] [--size 128]

Images per second, and medians of paired ratios: all run one after the other in each round, the order turned
around from round to round, so that whatever else the machine does meets all alike; where it is crowded the
ratio of processor time says more than that of time, on one thread; several threads wait for each other by
spinning, and where others take the cores that is all one measures. Every way draws its random numbers within
the time that is measured: exp from one generator for each image, as its loader makes them; PIL from Python's;
kornia from torch's. PIL turns PIL images into PIL images, black outside, on as many threads as PyTorch has;
the way to tensors is not counted. exp and kornia continue the image by reflection; kornia is left out where
it cannot be imported (pip install kornia; no part of exp needs it).
"""
import argparse, functools, math, os, random, statistics, time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image, ImageEnhance

from exp.batch_transforms import (RandomBrightness, RandomContrast, RandomHue, RandomRotate, RandomSaturation,
                                  RandomShear, RandomShift, RandomZoom, get_transforms)
from exp.dataloader import Rng

try: import kornia.augmentation as kornia
except ImportError as e: kornia, why = None, e

BILINEAR = Image.Resampling.BILINEAR

def generators(n, epoch): return [Rng(42, epoch, i, 'batch', 0) for i in range(n)]

class Epochs:
    "A number that is one more each time, so that no run sees the random numbers of another."
    def __init__(self): self.n = 0
    def __call__(self):
        self.n += 1
        return self.n

def joined(tfms, x):
    epoch = Epochs()
    t = functools.reduce(lambda a, b: a.joined(b), tfms)
    return lambda: t(x, generators(len(x), epoch()))

def one_by_one(tfms, x):
    epoch = Epochs()
    def run():
        y = x
        for t in tfms: y = t(y, generators(len(x), epoch()))
        return y
    return run

# ---- PIL

def affine(im, a, b, c, d):
    # about the centre
    return im.transform(im.size, Image.Transform.AFFINE, (a, b, (1 - a)*im.width/2 - b*im.height/2, c, d,
                                                          (1 - d)*im.height/2 - c*im.width/2), BILINEAR)
def turned(im, degrees=10): return im.rotate(random.uniform(-degrees, degrees), BILINEAR)
def zoomed(im, most=1.1):
    s = random.uniform(1, most)
    w, h = im.width/s, im.height/s
    l, t = random.uniform(0, im.width - w), random.uniform(0, im.height - h)
    return im.transform(im.size, Image.Transform.EXTENT, (l, t, l + w, t + h), BILINEAR)
def shifted(im, most=0.1):
    return im.transform(im.size, Image.Transform.AFFINE, (1, 0, random.uniform(-most, most)*im.width, 0, 1,
                                                          random.uniform(-most, most)*im.height), BILINEAR)
def sheared(im, degrees=10):
    return affine(im, 1, math.tan(math.radians(random.uniform(-degrees, degrees))), 0, 1)
def flipped(im): return im.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else im
def warped(im, most=0.2):
    w, h = im.size
    tx, ty = random.uniform(-most, most), random.uniform(-most, most)
    rows, values = [], []
    for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        x, y, u, v = (1 + a)*w/2, (1 + b)*h/2, (1 + a*(1 + tx*b))*w/2, (1 + b*(1 + ty*a))*h/2
        rows += [(x, y, 1, 0, 0, 0, -u*x, -u*y), (0, 0, 0, x, y, 1, -v*x, -v*y)]
        values += [u, v]
    return im.transform(im.size, Image.Transform.PERSPECTIVE, np.linalg.solve(rows, values).tolist(),
                        BILINEAR)
def sometimes(f): return lambda im: f(im) if random.random() < 0.75 else im
def brighter(im, most=0.2): return ImageEnhance.Brightness(im).enhance(random.uniform(1 - most, 1 + most))
def starker(im, most=0.2): return ImageEnhance.Contrast(im).enhance(random.uniform(1 - most, 1 + most))

def in_pil(steps, images, pool):
    def through(im):
        for f in steps: im = f(im)
        return im
    return lambda: list((map if pool is None else pool.map)(through, images))

# ---- in turn

def seconds(run):
    "(time, processor time of all threads)."
    cpu, start = time.process_time(), time.perf_counter()
    run()
    return time.perf_counter() - start, time.process_time() - cpu

def compare(title, ways, n, rounds):
    "Each way's images per second, and how much longer than the first it takes."
    for run in ways.values():
        run()
        run()   # warms up
    times = {name: [] for name in ways}
    for r in range(rounds):
        for name in list(ways)[::1 if r % 2 else -1]: times[name].append(seconds(ways[name]))
    print(f'\n{title}')
    ours = times[next(iter(ways))]
    for name, ts in times.items():
        wall, cpu = (sorted(t[k]/o[k] for t, o in zip(ts, ours)) for k in (0, 1))
        spread = f'{wall[len(wall)//4]:.2f} to {wall[-1 - len(wall)//4]:.2f} in the middle half'
        ratio = ('' if ts is ours else f'   {statistics.median(wall):6.2f} x the time of the first '
                 f'({spread}), {statistics.median(cpu):6.2f} x its processor time')
        print(f'  {name:<26}{n/statistics.median(t[0] for t in ts):9,.0f} images per second{ratio}',
              flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (('rounds', 15), ('bs', 64), ('size', 128)):
        p.add_argument(f'--{name}', type=int, default=default)
    p.add_argument('--threads', type=int, nargs='*', default=[1, 2])
    args = p.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    x = torch.rand(args.bs, 3, args.size//8,
                   args.size//8).repeat_interleave(8, 2).repeat_interleave(8, 3).contiguous()
    images = [Image.fromarray((im*255).byte().permute(1, 2, 0).contiguous().numpy()) for im in x]
    print(f'{args.bs} RGB images of {x.shape[-1]} pixels, {args.rounds} rounds; {os.cpu_count()} cores, '
          f'torch {torch.__version__}, Pillow {Image.__version__}, {torch.backends.cpu.get_cpu_capability()}')
    if kornia is None: print(f'kornia is left out: {why}')
    for threads in args.threads:
        torch.set_num_threads(threads)
        pool, many = (ThreadPoolExecutor(threads) if threads > 1
                      else None), f'{threads} thread{"s"*(threads > 1)}'
        both = functools.partial(compare, n=args.bs, rounds=args.rounds)
        four = [RandomRotate(10, p=1.), RandomZoom(1.1, p=1.), RandomShift(0.1, p=1.), RandomShear(10, p=1.)]
        ways = {'exp, one interpolation': joined(four, x), 'exp, one after another': one_by_one(four, x),
                'PIL, one by one': in_pil([turned, zoomed, shifted, sheared], images, pool)}
        if kornia is not None:
            theirs = kornia.RandomAffine(10., translate=(0.1, 0.1), scale=(1., 1.1), shear=10., p=1.,
                                         padding_mode='reflection')
            ways['kornia RandomAffine'] = lambda: theirs(x)
        both(f'turn, zoom, shift and shear of each image; {many}', ways)
        train = get_transforms()[0]
        moves, light = train[:4], train[4:]
        pil_moves = [flipped, sometimes(turned), sometimes(zoomed), sometimes(warped)]
        both(f'flip, turn, zoom and warp, as get_transforms() chooses; {many}',
             {'exp, one interpolation': joined(moves, x), 'exp, one after another': one_by_one(moves, x),
              'PIL, one by one': in_pil(pil_moves, images, pool)})
        colours = [RandomBrightness(p=1.), RandomContrast(p=1.), RandomSaturation(p=1.), RandomHue(p=1.)]
        both(f'brightness, contrast, saturation and hue of each image; {many}',
             {'exp, in one pass': joined(colours, x), 'exp, one after another': one_by_one(colours, x)})
        geometry, colour = joined(moves, x), functools.reduce(lambda a, b: a.joined(b), light)
        both(f'all that get_transforms() chooses; {many}',
             {'exp, joined': lambda: colour(geometry(), generators(len(x), 0)),
              'exp, one after another': one_by_one(train, x),
              'PIL, one by one': in_pil([*pil_moves, sometimes(brighter), sometimes(starker)], images, pool)})
        if pool is not None: pool.shutdown()

if __name__ == '__main__': main()
