"""The time of one answer: a Predictor beside transform, forward pass and decode by hand, in turn, with equal
answers.

    python benchmarks/predict.py [--rounds 30] [--calls 20]

Prints medians of processor time in µs, and ratios, for digits in memory and for images from files. A
Predictor may take at most 1.5 times the time by hand. `learn.predict` of a learner with training data goes
through the loop, with all callbacks that have a say, and is shown for comparison."""
import argparse, statistics, tempfile, time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from exp.core import set_seed
from exp.data_block import ImageList
from exp.dataloader import Dataset, make_data
from exp.inference import load_learner
from exp.learner import Learner
from exp.progress import Progress


def medians(functions, rounds, calls):
    "µs of processor time a call of each function, median over rounds in which they take turns."
    times = {name: [] for name in functions}
    for f in functions.values(): f()
    for _ in range(rounds):
        for name, f in functions.items():
            start = time.process_time()
            for _ in range(calls): f()
            times[name].append(1e6*(time.process_time() - start)/calls)
    return {name: statistics.median(v) for name, v in times.items()}

def small_net(ni, c):
    conv = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
    return nn.Sequential(conv(ni, 8), conv(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, c))

def digits(folder):
    "A learner of rows in memory, an item, and the way by hand."
    g = torch.Generator().manual_seed(0)
    xs, ys = torch.randn(64, 1, 28, 28, generator=g), torch.arange(64) % 10
    learn = Learner(make_data(Dataset(xs, ys), Dataset(xs, ys), bs=16), small_net(1, 10), path=folder,
                    cbs=Progress(False))
    learn.fit(1)
    model, loss, x = learn.model.eval(), learn.loss_func, xs[0]
    def by_hand():
        with torch.no_grad(): pred = model(x[None])
        return int(loss.decode(pred)[0]), loss.activation(pred)[0]
    return learn, x, by_hand

def pictures(folder):
    "A learner of files, one of them, and the way by hand."
    rng = np.random.RandomState(0)
    for part, n in (('train', 8), ('valid', 2)):
        for name in ('dark', 'light'):
            (folder/part/name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.randint(0, 100, (48, 64, 3), dtype=np.uint8) + np.uint8(150*(name == 'light'))
                Image.fromarray(pixels).save(folder/part/name/f'{i}.png')
    split = ImageList.from_folder(folder).split_by_folder().label_from_folder()
    data = split.transform(size=32).databunch(4).normalize(([.5]*3, [.3]*3))
    learn = Learner(data, small_net(3, 2), path=folder, cbs=Progress(False))
    learn.fit(1)
    model, loss, file, names = learn.model.eval(), learn.loss_func, data.valid_ds.x[0], data.classes
    tfms = data.valid_ds.tfms[:-1]
    mean, std = (torch.tensor(v)[:, None, None] for v in ([.5]*3, [.3]*3))
    def by_hand():
        with Image.open(file) as im: im.load()
        for t in tfms: im = t(im)
        x = torch.from_numpy(np.array(im)).movedim(-1, 0).contiguous()[None].float()
        x.mul_(1/(255*std)).sub_(mean/std)
        with torch.no_grad(): pred = model(x)
        return names[int(loss.decode(pred)[0])], loss.activation(pred)[0]
    return learn, file, by_hand

def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=30)
    parser.add_argument('--calls', type=int, default=20)
    args = parser.parse_args()
    for make in (digits, pictures):
        set_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            learn, item, by_hand = make(Path(folder))
            predictor, loaded = learn.predictor(), load_learner(learn.export())
            for answer in (predictor.predict(item), loaded.predict(item), learn.predict(item)):
                label, probs = by_hand()
                assert answer.label == label and torch.allclose(answer.probs, probs, atol=1e-6)
            got = medians({'by hand': by_hand, 'Predictor': lambda: predictor.predict(item),
                           'loaded learner': lambda: loaded.predict(item),
                           'learner with training data': lambda: learn.predict(item)}, args.rounds,
                          args.calls)
            print(make.__name__)
            for name, t in got.items(): print(f'  {name:28}{t:8.0f} µs  {t/got["by hand"]:5.2f}')

if __name__ == '__main__': main()
