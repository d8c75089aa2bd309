"""A training step of a U-Net on EfficientNet-Lite0: create_unet's network beside the same network written
plainly, with stages and sizes by hand, and segmentation_models_pytorch's where it imports; in turn, as
medians of paired ratios, with the memory that a step keeps.

    python benchmarks/unet.py
    python benchmarks/unet.py --threads 1 --clock cpu    on a busy machine: processor seconds
"""
import argparse, statistics, time

import torch
import torch.nn.functional as F
from torch import nn

from exp.transfer import create_body, efficientnet_lite0
from exp.unet import Unet

def conv(ni, nf, ks=3):
    return nn.Sequential(nn.Conv2d(ni, nf, ks, padding=ks//2, bias=False), nn.BatchNorm2d(nf), nn.ReLU())

class Plain(nn.Module):
    "The same layers, with the places of the copies and the channels written down."
    copies, outs = (3, 16, 24, 40, 112), (16, 32, 64, 128, 256)
    def __init__(self, body, c):
        super().__init__()
        self.body, ni = body, 1280
        self.ups, self.norms, self.convs = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for n, nf in reversed(list(zip(self.copies, self.outs))):
            self.ups.append(nn.Sequential(conv(ni, 4*nf, 1), nn.PixelShuffle(2)))
            self.norms.append(nn.BatchNorm2d(n))
            self.convs.append(nn.Sequential(conv(nf + n, nf), conv(nf, nf)))
            ni = nf
        self.last = nn.Conv2d(ni, c, 1)

    def forward(self, x):
        b, copies = self.body, [x]
        x = b.stage1(b.stem(x))
        copies.append(x)
        x = b.stage2(x)
        copies.append(x)
        x = b.stage3(x)
        copies.append(x)
        x = b.stage5(b.stage4(x))
        copies.append(x)
        x = b.top(b.stage7(b.stage6(x)))
        for up, norm, convs, across in zip(self.ups, self.norms, self.convs, reversed(copies)):
            h, w = across.shape[2:]
            x = convs(torch.cat([up(x)[..., :h, :w], norm(across)], 1))
        return self.last(x)

def theirs(c):
    "The U-Net of segmentation_models_pytorch on the same encoder; None without the package."
    try: import segmentation_models_pytorch as smp
    except ImportError: return None
    return smp.Unet('timm-tf_efficientnet_lite0', encoder_weights=None, classes=c)

def same(ours, plain, x):
    "Do both compute the same from the same weights, which come in the same order?"
    plain.body.load_state_dict(ours.body.state_dict())
    for block, up, norm, convs in zip(ours.head.blocks, plain.ups, plain.norms, plain.convs):
        for mine, other in ((block.up, up), (block.norm, norm), (block.convs, convs)):
            values = mine.state_dict().values(), other.state_dict().values()
            for a, b in zip(*values, strict=True): b.copy_(a)
    plain.last.load_state_dict(ours.head.last.state_dict())
    with torch.no_grad(): return torch.allclose(ours.eval()(x), plain.eval()(x), atol=1e-4)

def step(model, opt, x, y, clock):
    "Seconds of one step."
    start = clock()
    F.cross_entropy(model(x), y).backward()
    opt.step()
    opt.zero_grad()
    return clock() - start

def saved(model, x):
    "Megabytes that a forward pass keeps for the backward pass."
    kept = {}
    def see(t):
        kept[t.data_ptr()] = t.nbytes
        return t
    with torch.autograd.graph.saved_tensors_hooks(see, lambda t: t): model(x)
    return sum(kept.values())/2**20

if __name__ == '__main__':
    how = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(description=__doc__, **how)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--threads', type=int)
    parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall')
    parser.add_argument('--size', type=int, nargs=2, default=(180, 240))
    args = parser.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.clock == 'wall' else time.process_time
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, *args.size), torch.randint(12, (8, *args.size))
    models = {'exp create_unet': Unet(create_body(efficientnet_lite0), 12),
              'written plainly': Plain(create_body(efficientnet_lite0), 12)}
    print('the same answers from the same weights:', same(*models.values(), x[:1]))
    if (smp := theirs(12)) is not None: models['segmentation_models_pytorch'] = smp
    else: print('segmentation_models_pytorch does not import here')
    for layout in (torch.contiguous_format, torch.channels_last):
        images, opts = x.contiguous(memory_format=layout), {}
        for name, model in models.items():
            model.train().to(memory_format=layout)
            opts[name] = torch.optim.AdamW(model.parameters(), 1e-4)
            step(model, opts[name], images, y, clock)   # warm
        times = {name: [] for name in models}
        for i in range(args.rounds):
            order = list(models.items())[::1 if i % 2 else -1]
            for name, model in order: times[name].append(step(model, opts[name], images, y, clock))
        floor = times['written plainly']
        print(f'\n{str(layout).split(".")[-1]}, 8 images of {args.size[0]}×{args.size[1]}, '
              f'{torch.get_num_threads()} threads')
        for name, ts in times.items():
            ratio = statistics.median(a/b for a, b in zip(ts, floor))
            print(f'{name:32} {1000*statistics.median(ts):7.0f} ms   ratio {ratio:.2f}   '
                  f'kept {saved(models[name], images):5.0f} MB')
