"""Where the time of a detector's training step goes: loading, transforms, network, loss, optimizer; and what
an answer costs: network, candidates, non-maximum suppression. On the stand-in of bananas, processor seconds
of this process, medians of rounds. No step should spend more than 15 % of its time outside the network.

    python benchmarks/detection.py --threads 1
"""
import argparse, statistics, tempfile, time
from pathlib import Path

import pandas as pd
import torch

from exp.batch_transforms import RandomBrightness, RandomContrast, RandomShift, RandomZoom
from exp.box_files import BoxList, read_boxes
from exp.core import set_seed, tree_map
from exp.data_block import ImageList
from exp.detection import SSD, SSDLoss, TinySSD, TinyYOLO, YOLOLoss
from exp.optimizers import adam_opt
from exp.standins import bananas_standin
from exp.transfer import create_body, efficientnet_lite0
from exp.two_stage import TwoStage, TwoStageLoss

MODELS = {'TinySSD': (TinySSD, SSDLoss()), 'TinySSD, focal': (TinySSD, SSDLoss(neg='focal')),
          'SSD on EfficientNet-Lite0': (lambda c: SSD(create_body(efficientnet_lite0), c), SSDLoss()),
          'TinyYOLO': (TinyYOLO, YOLOLoss()), 'TwoStage': (TwoStage, TwoStageLoss())}

def bunch(size, bs):
    folder = Path(tempfile.mkdtemp())
    bananas_standin(folder)
    boxes = read_boxes(folder/'bananas_train'/'label.csv', folder/'bananas_train'/'images')
    tfms = [RandomShift(0.15), RandomZoom(1.2, 0.85), RandomBrightness(0.2), RandomContrast(0.2)]
    return (ImageList.from_folder(folder/'bananas_train').split_by_index(range(bs))
            .label_from_func(boxes, BoxList).transform((tfms, []), size=size, cache=True).databunch(bs=bs)
            .normalize())

def timed(clock, f):
    start = clock()
    return f(), clock() - start

def detached(pred):
    "The output with leaves in the place of what needs a gradient."
    return tree_map(lambda t: t.detach().requires_grad_() if t.requires_grad else t.detach(), pred)

def leaves(pred):
    found = []
    tree_map(lambda t: found.append(t) or t, pred)
    return found

def step(data, model, loss, opt, batches, clock):
    "Seconds of each part of one training step."
    batch, load = timed(clock, lambda: next(batches))
    (xb, yb), tfms = timed(clock, lambda: data.transform_batch(*batch, train=True, items=batch.items))
    pred, forward = timed(clock, lambda: model(xb))
    cut = detached(pred)
    _, of_loss = timed(clock, lambda: loss(cut, yb).backward())
    pairs = [(p, c.grad) for p, c in zip(leaves(pred), leaves(cut)) if c.grad is not None]
    _, backward = timed(clock, lambda: torch.autograd.backward(*zip(*pairs)))
    _, update = timed(clock, lambda: (opt.step(), opt.zero_grad()))
    return dict(load=load, transforms=tfms, network=forward + backward, loss=of_loss, optimizer=update)

def forever(dl):
    while True: yield from (b for b in dl if len(b[0]) == dl.bs)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=10)
    p.add_argument('--threads', type=int)
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--bs', type=int, default=16)
    p.add_argument('--clock', choices=('wall', 'cpu'), default='cpu')
    args = p.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.clock == 'wall' else time.process_time
    set_seed()
    data, rows, answers = bunch(args.size, args.bs), {}, {}
    for name, (make, loss) in MODELS.items():
        model = make(data.c).train()
        opt, batches = adam_opt([{'params': list(model.parameters())}], lr=1e-3), forever(data.train_dl)
        each = [step(data, model, loss, opt, batches, clock) for _ in range(args.rounds + 2)][2:]
        rows[name] = {part: 1000*statistics.median(e[part] for e in each) for part in each[0]}
        xb, _ = data.one_batch(train=False)
        with torch.no_grad():
            model.eval()
            pred, network = timed(clock, lambda: model(xb))   # noqa: B023
            times = [timed(clock, lambda: loss.activation(pred))[1] for _ in range(args.rounds)]   # noqa: B023
        answers[name] = dict(network=1000*network, detections=1000*statistics.median(times))
    table = pd.DataFrame(rows).T
    table['outside (%)'] = 100*(1 - (table.network + table.optimizer)/table.sum(axis=1))
    print(f'a step of {args.bs} pictures of {args.size} pixels, milliseconds ({args.clock}, '
          f'{torch.get_num_threads()} threads)\n{table.round(1).to_string()}\n')
    print(f'an answer for {len(xb)} pictures, milliseconds\n{pd.DataFrame(answers).T.round(1).to_string()}')

if __name__ == '__main__': main()
