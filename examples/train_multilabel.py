"""Train a network that puts any number of labels on each picture of a folder, and export it.

    python examples/train_multilabel.py          # Planet's sample, or scenes that stand in for it
    python examples/train_multilabel.py my_folder --csv tags.csv --delim ';' --folder pictures

The CSV file in the folder has a line for each picture: its name and its labels, with --delim between them, in
the columns --name-col and --label-col. A cell without labels is a picture with none. A fifth of the pictures
is held out; on them the threshold is chosen, and F2 and each label's precision and recall are printed. The
model is saved as model.pth in the folder --out and exported as tags.pth, for

    import exp.multilabel, exp.transfer   # they know what is in the file
    from exp.inference import load_predictor
    load_predictor('tags.pth').predict('a.jpg').label
"""
import argparse
from pathlib import Path

import torch

from exp.batch_transforms import get_transforms
from exp.core import set_seed
from exp.data_block import ImageList
from exp.downloads import DataUnavailable, URLs, data_kind, untar_data
from exp.losses import BinaryCrossEntropy
from exp.multilabel import MultiCategoryList, choose_thresh, fbeta, tag_table
from exp.scenes import aerial_standin
from exp.sources import cell_labels, read_table
from exp.transfer import PUBLISHED, create_cnn, efficientnet_lite0, weights_file
import exp.checkpoints   # noqa: F401 (gives the learner save)

def column(text): return int(text) if text.lstrip('-').isdigit() else text

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('path', nargs='?',
                   help="a folder with pictures and a table (default: Planet's sample)")
    for name, default, what in (('csv', 'labels.csv', 'the table, in the folder'),
                                ('delim', ' ', 'between labels'), ('sep', ',', 'between columns'),
                                ('folder', '', 'from the folder to the pictures'),
                                ('suffix', '', 'what names lack, as .jpg'),
                                ('epochs', 4, 'with everything learning, after one of the head'),
                                ('size', 128, 'pixels of the side'), ('bs', 16, 'pictures in a batch'),
                                ('lr', 0.01, "the head's highest rate"),
                                ('seed', 42, 'of split and training'),
                                ('out', '.', 'folder for what is saved')):
        p.add_argument(f'--{name}', type=type(default), default=default,
                       help=f'{what} (default: {default!r})')
    p.add_argument('--name-col', type=column, default=0, help='name or number of the column with names')
    p.add_argument('--label-col', type=column, default=1, help='name or number of the column with labels')
    p.add_argument('--upright', action='store_true',
                   help='pictures have an up and a down: flip sideways only')
    p.add_argument('--scratch', action='store_true', help='without published weights')
    args = p.parse_args()

    set_seed(args.seed)
    if args.path is None:
        path = untar_data(URLs.PLANET_SAMPLE, fallback=aerial_standin)
        args.folder, args.suffix = 'train', '.jpg'
    else: path = Path(args.path)
    kind = 'own pictures' if args.path else data_kind(path)

    table = read_table(path/args.csv, args.sep, [args.name_col, args.label_col])
    classes = sorted({tag for tags in cell_labels(table, args.label_col, args.delim) for tag in tags})
    items = ImageList.from_df(table, path, col=args.name_col, folder=args.folder, suffix=args.suffix)
    tfms = get_transforms(flip_vert=not args.upright, max_lighting=0.1, max_zoom=1.05,
                          max_warp=0.2 if args.upright else 0.)
    data = (items.split_random(seed=args.seed)
            .label_from_df(table, col=args.name_col, label_col=args.label_col, folder=args.folder,
                           suffix=args.suffix, label_delim=args.delim, label_cls=MultiCategoryList,
                           classes=classes)
            .transform(tfms, size=args.size, cache=True).databunch(bs=args.bs, seed=args.seed))
    print(data, flush=True)

    pretrained = not args.scratch
    if pretrained:
        try: weights_file(PUBLISHED[efficientnet_lite0])
        except DataUnavailable as e:
            print(f'{e}\nIt goes on from scratch.')
            pretrained = False
    if not pretrained: data.normalize()
    learn = create_cnn(data, efficientnet_lite0, metrics=fbeta, pretrained=pretrained,
                       path=args.out)
    learn.model.to(memory_format=torch.channels_last)
    if pretrained: learn.fine_tune(args.epochs, args.lr)
    else: learn.fit_one_cycle(args.epochs + 1, args.lr)

    probs, targets = learn.get_preds()
    learn.loss_func = BinaryCrossEntropy(thresh=choose_thresh(probs, targets))
    learn.save('model')
    exported = learn.export('tags.pth')
    print(tag_table(probs, targets, classes, learn.loss_func.thresh).round(2).to_string())
    print(f'F2 {learn.validate()["fbeta"]:.4f} on {len(targets)} pictures ({kind}), yes above '
          f'{learn.loss_func.thresh:.2f}, which was chosen on them; exported as {exported}')

if __name__ == '__main__': main()
