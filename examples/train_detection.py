"""Find things on pictures of your own, from a folder with boxes to an exported model.

    python examples/train_detection.py my_pictures --size 256 384
    python examples/train_detection.py --arch tiny --epochs 5

Boxes are read from COCO's json, from Pascal VOC's xml files, one for each picture, or from a table with a row
for each box (CSV: file, label, xmin, ymin, xmax, ymax). --labels names the file, or the folder of the xml
files; without it the folder is searched for a json, then a csv, then xml files. Pictures without boxes are
kept: they teach what is nothing. A fifth of the pictures, drawn at random, is held out, or the folders that
--valid names; frames of a video, or pictures of one place, should not go to both sides.

Without a folder it learns to find a yellow seven among other digits, a stand-in for D2L's bananas. The body
is EfficientNet-Lite0 with published weights; --arch tiny, yolo or two takes a small detector from scratch.
"""
import argparse, tempfile, time
from pathlib import Path

import pandas as pd
import torch

from exp.batch_transforms import RandomBrightness, RandomContrast, RandomFlip, RandomShift, RandomZoom
from exp.box_files import BoxList, read_boxes, read_coco, read_voc
from exp.boxes import AveragePrecision
from exp.core import set_seed
from exp.data_block import ImageList
from exp.detection import CornerError, SSDLoss, TinySSD, TinyYOLO, YOLOLoss, create_ssd
from exp.learner import Learner
from exp.sources import get_files
from exp.standins import bananas_standin
from exp.transfer import PUBLISHED, efficientnet_lite0
from exp.two_stage import TwoStage, TwoStageLoss

SMALL = {'tiny': (TinySSD, SSDLoss), 'yolo': (TinyYOLO, YOLOLoss), 'two': (TwoStage, TwoStageLoss)}

def labels_in(folder, labels):
    "The file or folder that holds the boxes."
    if labels is not None: return labels if labels.exists() else folder/labels
    for ending in ('.json', '.csv'):
        if found := get_files(folder, ending): return found[0]
    return folder

def read(folder, labels):
    "Boxes by picture."
    if labels.suffix == '.json': return read_coco(labels)
    if labels.suffix == '.csv': return read_boxes(labels)
    return read_voc(labels)

def standin():
    "(the pictures' folder, boxes by picture, the names of folders to hold out)."
    folder, tables = Path(tempfile.mkdtemp()), {}
    bananas_standin(folder)
    for part in ('bananas_train', 'bananas_val'):
        rows = pd.read_csv(folder/part/'label.csv').assign(label='seven')
        rows['img_name'] = f'{part}/images/' + rows['img_name']
        tables[part] = rows
    return folder, read_boxes(pd.concat(tables.values()), folder)

def is_valid(args, files):
    "Which pictures are held out: a function of a path."
    if args.folder is None: return lambda f: f.parent.parent.name == 'bananas_val'
    if args.valid: return lambda f: f.parent.name in args.valid
    g = torch.Generator().manual_seed(args.seed)
    drawn = torch.randperm(len(files), generator=g)[:max(1, len(files)//5)].tolist()
    chosen = {files[i] for i in drawn}
    return lambda f: f in chosen

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', nargs='?', type=Path, help='with pictures (default: the stand-in)')
    p.add_argument('--labels', type=Path, help='json, csv, or a folder of xml files (default: searched for)')
    p.add_argument('--valid', nargs='+', default=[], help='folders to hold out (default: a random fifth)')
    p.add_argument('--arch', choices=('lite0', *SMALL), default='lite0', help='(default: lite0)')
    p.add_argument('--size', type=int, nargs='+', default=[128], help='height and width, or one number')
    p.add_argument('--finest', type=int, default=8, help='finest map of lite0, 4 for very small things')
    p.add_argument('--least', type=float, default=0.1, help='size of its anchors, in sides (default: 0.1)')
    p.add_argument('--upright', action='store_true', help='do not mirror pictures: for digits and writing')
    p.add_argument('--images', type=int, help='take so many pictures, to try it')
    p.add_argument('--export', type=Path, default=Path('detector.pth'), help='(default: detector.pth)')
    for name, default, what in (('epochs', 10, 'times through the training pictures'),
                                ('bs', 16, 'pictures in a batch'), ('lr', 0.005, 'highest learning rate'),
                                ('seed', 42, 'of all that is random')):
        p.add_argument(f'--{name}', type=type(default), default=default, help=f'{what} (default: {default})')
    return p, p.parse_args()

def learner(data, args):
    metrics = [AveragePrecision(0.5), AveragePrecision(), CornerError()]
    if args.arch in SMALL:
        model, loss = SMALL[args.arch]
        return Learner(data, model(data.c), loss_func=loss(), metrics=metrics)
    learn = create_ssd(data, efficientnet_lite0, finest=args.finest, least=args.least, metrics=metrics)
    learn.unfreeze()   # the top is deep, so all learn from the start, the body at smaller rates
    return learn

def main():
    p, args = arguments()
    set_seed(args.seed)
    if args.folder is None: folder, boxes = standin()
    else: folder, boxes = args.folder, read(args.folder, labels_in(args.folder, args.labels))
    files = ImageList.from_folder(folder).filter(boxes.__contains__)
    if not len(files): p.error(f'no picture in {folder} has boxes in the files given; see --labels')
    if args.images: files = files.filter(set(files.items[::max(1, len(files)//args.images)]).__contains__)
    size = args.size[0] if len(args.size) == 1 else tuple(args.size)
    flips = [] if args.upright or args.folder is None else [RandomFlip()]
    tfms = [*flips, RandomShift(0.15), RandomZoom(1.2, 0.85), RandomBrightness(0.2), RandomContrast(0.2)]
    data = (files.split_by_func(is_valid(args, files.items)).label_from_func(boxes, BoxList)
            .transform((tfms, []), size=size).databunch(bs=args.bs, seed=args.seed))
    print(f'{len(data.train_ds)} pictures to learn from, {len(data.valid_ds)} held out; '
          f'{data.c} classes: {", ".join(map(str, data.classes[:8]))}')

    data.normalize(PUBLISHED[efficientnet_lite0].stats if args.arch == 'lite0' else None)
    start, learn = time.perf_counter(), learner(data, args)
    learn.fit_one_cycle(args.epochs, slice(args.lr/10, args.lr) if args.arch == 'lite0' else args.lr)
    reached, each = learn.validate(), AveragePrecision(0.5)
    each.update(*learn.get_preds())
    classes, values = each.by_class()
    for i, v in zip(classes.tolist(), values[:, 0].tolist()): print(f'{data.classes[i]!s:20} AP50 {v:.3f}')
    path = learn.export(args.export.absolute())
    kind = 'stand-in' if args.folder is None else 'yours'
    print(f'AP50 {reached["ap50"]:.3f}, AP {reached["ap"]:.3f}, corners {100*reached["corner_error"]:.2f} % '
          f'of the side, on {len(data.valid_ds)} pictures ({kind}), {time.perf_counter() - start:.0f} s')
    print(f'written: {path.name}; load_learner({path.name!r}).predict(picture) finds the things')

if __name__ == '__main__': main()
