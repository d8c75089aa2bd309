"""Find points on pictures of your own, from a folder and a table to an exported model.

    python examples/train_keypoints.py my_pictures --table points.csv --size 192 256
    python examples/train_keypoints.py --arch small --size 96 --epochs 12

The table has a row for each picture: its path from the folder, then columns such as snout_x and snout_y, in
pixels from the left upper corner; an empty cell is a point that cannot be seen. DeepLabCut's tables are read
as well. Held out are the last fifth of the folders with pictures or, where there is one folder, the last
fifth of its files, by name with numbers by size: neighbours of a video do not go to both sides. --valid
names folders instead. A table beside its pictures may name them from a folder above, as DeepLabCut does.
Points whose names say left and right change places where a picture is mirrored.

Without a folder it draws mice seen from above, a stand-in. The second line above trains a small network on
them from scratch. Otherwise the body is EfficientNet-Lite0 up to its fifth stage, with published weights.
"""
import argparse, re, tempfile, time
from collections import OrderedDict
from pathlib import Path

from torch import nn

from exp.batch_transforms import RandomBrightness, RandomContrast, RandomFlip, RandomRotate, RandomZoom
from exp.core import set_seed
from exp.data_block import ImageList
from exp.keypoints import PCK, PixelError, PointsList, create_heatmaps, read_points
from exp.mice import mice_standin
from exp.transfer import PUBLISHED, efficientnet_lite0, load_published
from exp.xresnet import XResNet

def small(ni=3, c=10): return XResNet([1, 1, 1], ni, c, widths=(32, 64, 128), stem=(16,))

def lite0():
    "EfficientNet-Lite0's stem and first five stages, whose maps are a sixteenth of the picture."
    parts = list(load_published(efficientnet_lite0).named_children())[:6]
    return nn.Sequential(OrderedDict([*parts, ('avgpool', nn.AdaptiveAvgPool2d(1))]))

def in_order(path):
    "A key to sort by: frame2 comes before frame10."
    return [int(part) if i % 2 else part for i, part in enumerate(re.split('([0-9]+)', str(path)))]

def held_out(files, names):
    "The files in folders of these names; without names those of the last folders, or the last of all files."
    folders = sorted({f.parent for f in files}, key=in_order)
    if names: return {f for f in files if f.parent.name in names}
    if len(folders) > 1:
        last = set(folders[-max(1, len(folders)//5):])
        return {f for f in files if f.parent in last}
    return set(sorted(files, key=in_order)[-max(1, len(files)//5):])

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', nargs='?', type=Path, help='with pictures (default: the stand-in)')
    p.add_argument('--table', default='points.csv', help='in the folder, or its path (default: points.csv)')
    p.add_argument('--sep', default=',', help="between the table's columns (default: ',')")
    p.add_argument('--valid', nargs='+', default=[], help='folders to hold out (default: the last fifth)')
    p.add_argument('--arch', choices=('lite0', 'small'), default='lite0', help='of the body (default: lite0)')
    p.add_argument('--size', type=int, nargs='+', default=[192, 256], help='height and width, or one number')
    p.add_argument('--from-above', action='store_true', help='mirror upside down and turn at will as well')
    p.add_argument('--export', type=Path, default=Path('keypoints.pth'), help='(default: keypoints.pth)')
    for name, default, what in (('epochs', 20, 'times through the training pictures'),
                                ('bs', 8, 'pictures in a batch'), ('lr', 0.01, 'highest learning rate'),
                                ('animals', 100, 'of the stand-in'), ('seed', 42, 'of all that is random')):
        p.add_argument(f'--{name}', type=type(default), default=default, help=f'{what} (default: {default})')
    args = p.parse_args()

    set_seed(args.seed)
    folder = args.folder or mice_standin(tempfile.mkdtemp(), args.animals)
    table = (folder/args.table).absolute()
    points = read_points(table, None if table.parent == folder.absolute() else folder, sep=args.sep)
    files = ImageList.from_folder(folder).filter(points.__contains__)
    if not len(files): p.error(f'{folder/args.table} has no row for any picture in {folder}')
    valid = held_out(files.items, args.valid)
    size = args.size[0] if len(args.size) == 1 else tuple(args.size)
    above = args.from_above or args.folder is None
    tfms = [RandomFlip(), *([RandomFlip(vertical=True), RandomRotate(45)] if above else [RandomRotate(15)]),
            RandomZoom(1.2, 0.85), RandomBrightness(0.3), RandomContrast(0.3)]
    data = (files.split_by_func(valid.__contains__).label_from_func(points, PointsList)
            .transform((tfms, []), size=size).databunch(bs=args.bs, seed=args.seed))
    names = ", ".join(points.names)
    print(f"{len(files) - len(valid)} pictures to learn from, {len(valid)} held out; points: {names}")

    pretrained = args.arch == 'lite0'
    data.normalize(PUBLISHED[efficientnet_lite0].stats if pretrained else None)
    learn = create_heatmaps(data, lite0() if pretrained else small, pretrained=pretrained,
                            ups=1 if pretrained else 2, metrics=[PixelError(size), PCK(0.05, size)])
    start = time.perf_counter()
    learn.unfreeze()   # the head is deep, so all learn from the start, a pretrained body at smaller rates
    learn.fit_one_cycle(args.epochs, slice(args.lr/10, args.lr) if pretrained else args.lr)
    reached = learn.validate()
    path = learn.export(args.export.absolute())
    kind = 'stand-in' if args.folder is None else 'yours'
    print(f'{reached["pixel_error"]:.2f} px of {size} on {len(valid)} pictures ({kind}), '
          f'{100*reached["pck"]:.1f} % within a twentieth, {time.perf_counter() - start:.0f} s')
    print(f'written: {path.name}; load_learner({path.name!r}).predict(picture) finds the points')

if __name__ == '__main__': main()
