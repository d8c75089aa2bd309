"""JPEG files to normalised batches of 128 pixels: exp.data_block and a plain PyTorch pipeline in turn, at 0,
2 and 4 workers; and a cached set's second epoch.

    python benchmarks/images.py [--images 3000] [--rounds 7] [--workers 0 2 4] [--bs 64] [--size 128]

Ratios are medians over rounds in which all run one after the other, so that whatever else the machine does
meets all alike; where it is crowded the ratio of processor time (of this process and its workers, Linux) says
more than that of time. The floor is the decoder alone: open and decode at the smallest size that is large
enough, no resizing, no tensors, nothing sent. Plain: PIL with draft, RGB, bilinear resize, bytes 3×h×w,
PyTorch's DataLoader with its collate function and workers that stay, then in place /255, -mean, /std on the
batch.
"""
import argparse, os, statistics, time, warnings

import numpy as np
import torch
import torch.utils.data as torch_data
from PIL import Image

from exp.data_block import ImageList
from exp.downloads import URLs, data_kind, untar_data
from exp.standins import imagenette_standin
import exp.transforms   # noqa: F401 (SplitData.transform)

MEAN, STD = [0.465, 0.458, 0.429], [0.285, 0.281, 0.301]   # of Imagenette

class Plain(torch_data.Dataset):
    def __init__(self, files, labels, size): self.files, self.labels, self.size = files, labels, (size, size)
    def __len__(self): return len(self.files)
    def __getitem__(self, i):
        with Image.open(self.files[i]) as im:
            im.draft('RGB', self.size)
            im = im if im.mode == 'RGB' else im.convert('RGB')
            im = im.resize(self.size, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(im)).permute(2, 0, 1).contiguous(), self.labels[i]

class Decoder(Plain):
    def __getitem__(self, i):
        with Image.open(self.files[i]) as im:
            im.draft('RGB', self.size)
            im.load()
        return 0

def plain_batches(files, labels, size, bs, workers):
    dl = torch_data.DataLoader(Plain(files, labels, size), bs, shuffle=True, num_workers=workers,
                               persistent_workers=workers > 0)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    def batches():
        for xb, yb in dl: yield xb.float().div_(255).sub_(mean).div_(std), yb
    return batches

def decoder_batches(files, labels, size, bs, workers):
    dl = torch_data.DataLoader(Decoder(files, labels, size), bs, shuffle=True, num_workers=workers,
                               persistent_workers=workers > 0)
    return lambda: dl

def exp_data(files, path, size, bs, workers, cache=False):
    items = ImageList(files, path).split_none().label_from_folder().transform(size=size, cache=cache)
    return items.databunch(bs, num_workers=workers).normalize((MEAN, STD))

def exp_batches(data):
    def batches():
        for b in data.train_dl: yield data.transform_batch(*b, train=True, items=b.items)
    return batches

def workers_time():
    "Processor time of this process's children so far, in seconds; None where the system does not say."
    try:
        ticks = 0
        for pid in open(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read().split():
            words = open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()
            ticks += int(words[11]) + int(words[12])
        return ticks/os.sysconf('SC_CLK_TCK')
    except OSError: return None

def epoch(batches):
    "Seconds of one pass: (time, processor time of all processes or None)."
    kids, cpu, start = workers_time(), time.process_time(), time.perf_counter()
    for batch in batches(): pass
    wall, cpu, after = time.perf_counter() - start, time.process_time() - cpu, workers_time()
    return wall, None if kids is None or after is None or after < kids else cpu + after - kids

def ratio(a, b, k):
    pairs = [x[k]/y[k] for x, y in zip(a, b) if x[k] is not None and y[k] is not None]
    return f'{statistics.median(pairs):5.2f}' if pairs else '    –'

def largest_difference(files, labels, path, size, n=256):
    "Between the grey levels of both pipelines, on images from all over the set."
    step = max(1, len(files)//n)
    plain, ours = Plain(files[::step], labels[::step],
                        size), exp_data(files[::step], path, size, 2, 0).train_ds
    return max((plain[i][0].int() - ours[i][0].int()).abs().max().item() for i in range(len(plain)))

def compare(files, labels, path, size, bs, workers, rounds):
    data = exp_data(files, path, size, bs, workers)
    runs = {'decoder alone': decoder_batches(files, labels, size, bs, workers),
            'plain PyTorch': plain_batches(files, labels, size, bs, workers), 'exp': exp_batches(data)}
    times = {name: [] for name in runs}
    for r in range(rounds + 1):
        for name, batches in runs.items():
            t = epoch(batches)
            if r: times[name].append(t)   # the first round warms up, and starts the workers
    data.train_dl.close()
    for name, ts in times.items():
        cpu = [t[1] for t in ts if t[1] is not None]
        per = lambda v: f'{1e6*statistics.median(v)/len(files):7.0f}' if v else '      –'
        print(f'{workers} workers  {name:<14} {per([t[0] for t in ts])} µs an image, {per(cpu)} of '
              f'processors;   plain takes {ratio(times["plain PyTorch"], ts, 0)} x its time, '
              f'{ratio(times["plain PyTorch"], ts, 1)} x its processor time', flush=True)

def cached(files, path, size, bs, workers, rounds):
    firsts, seconds = [], []
    for r in range(rounds + 1):
        data = exp_data(files, path, size, bs, workers, cache=True)
        # the third is as the second; the least of both is less noise
        passes = [epoch(exp_batches(data)) for _ in range(3)]
        data.train_dl.close()
        if r:
            firsts.append(passes[0])
            seconds.append(min(passes[1:], key=lambda t: t[0]))
    at = lambda ts: f'{1e6*statistics.median(t[0] for t in ts)/len(files):.0f}'
    print(f'{workers} workers  cached: the first epoch takes {at(firsts)} µs an image, the second '
          f'{at(seconds)}: {ratio(firsts, seconds, 0).strip()} x', flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (('images', 3000), ('rounds', 7), ('bs', 64), ('size', 128)):
        p.add_argument(f'--{name}', type=int, default=default)
    p.add_argument('--workers', type=int, nargs='*', default=[0, 2, 4])
    args = p.parse_args()
    warnings.filterwarnings('ignore', 'This DataLoader will create')   # more workers than cores are asked for
    path = untar_data(URLs.IMAGENETTE_160, fallback=imagenette_standin)
    every = ImageList.from_folder(path, include='train').items
    files = [every[i] for i in torch.randperm(
        len(every), generator=torch.Generator().manual_seed(0))[:args.images].tolist()]
    names = sorted({f.parent.name for f in files})
    labels = [names.index(f.parent.name) for f in files]
    kind = data_kind(path)
    print(f'{len(files):,} of {len(every):,} images from {kind} data, to {args.size}×{args.size}, batches of '
          f'{args.bs}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, '
          f'{args.rounds} rounds; torch {torch.__version__}, Pillow {Image.__version__}, '
          f'{torch.backends.cpu.get_cpu_capability()}')
    if kind == 'stand-in':
        print('THE STAND-IN: 28×28 grey PNG files, not JPEG photographs. The ratios below say nothing about '
              'the goal; set EXP_DATA_MIRROR or let Imagenette be downloaded.')
    print(f'the pictures of both differ by at most {largest_difference(files, labels, path, args.size)} grey '
          'levels')
    for workers in args.workers: compare(files, labels, path, args.size, args.bs, workers, args.rounds)
    for workers in (w for w in args.workers if w < 4):
        cached(files, path, args.size, args.bs, workers, min(args.rounds, 3))

if __name__ == '__main__': main()
