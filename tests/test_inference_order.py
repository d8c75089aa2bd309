"Answers come in the order of the set, for all of its items, without chance, whatever loader brings them."
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import (BatchSampler, RandomSampler, SubsetRandomSampler, TensorDataset,
                              WeightedRandomSampler)

import exp.augmentation, exp.inference   # what they add to Learner
from exp.data_block import ImageList
from exp.workers import Batch
from exp.dataloader import (DataBunch, DataLoader, Dataset, Sampler, TransformedDataset, make_data)
from exp.learner import Learner
from exp.metrics import accuracy
from exp.progress import Progress

N = 22
def gen(seed=5): return torch.Generator().manual_seed(seed)
def points(n=N, seed=0):
    x = torch.randn(n, 5, generator=gen(seed))
    return x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long()

class Balanced(Sampler):
    "Other items in each epoch."
    def order(self, epoch, skip_items=0):
        return torch.randperm(self.n, generator=gen(epoch))[:10][skip_items:]

class BySize:
    "Batches of odd and of even items, the last ones left out."
    def __init__(self, tensors=False): self.tensors = tensors
    def __len__(self): return 4
    def __iter__(self):
        batches = [b for parity in (1, 0) for b in torch.randperm(11).mul(2).add(parity).split(5)[:2]]
        return iter(batches if self.tensors else [b.tolist() for b in batches])

ALL = {   # keywords of a loader that brings, at some time, every item
    'plain': lambda ds: dict(bs=4), 'shuffle': lambda ds: dict(bs=4, shuffle=True),
    'drop_last': lambda ds: dict(bs=4, drop_last=True),
    'shuffle drop_last': lambda ds: dict(bs=4, shuffle=True, drop_last=True),
    'random': lambda ds: dict(bs=4, sampler=RandomSampler(ds, generator=gen())),
    'some': lambda ds: dict(bs=4, sampler=RandomSampler(ds, num_samples=9)),
    'replacement': lambda ds: dict(bs=4, sampler=RandomSampler(ds, replacement=True)),
    'weighted': lambda ds: dict(bs=4, sampler=WeightedRandomSampler([1.]*N, N)),
    'balanced': lambda ds: dict(bs=4, sampler=Balanced(N)),
    'reversed': lambda ds: dict(bs=4, sampler=range(N - 1, -1, -1)),
    'doubled': lambda ds: dict(bs=4, sampler=[i for i in range(N) for _ in 'ab'][::-1]),
    'by size': lambda ds: dict(batch_sampler=BySize()),
    'by size, tensors': lambda ds: dict(batch_sampler=BySize(True)),
    'batches': lambda ds: dict(batch_sampler=BatchSampler(RandomSampler(ds), 4, True)),
    'overlapping': lambda ds: dict(batch_sampler=[[21, 3, 3], [3, 4], list(range(21))]),
}
SOME = {'subset': lambda ds: dict(bs=4, sampler=SubsetRandomSampler([9, 2, 5, 17, 11])),
        'list': lambda ds: dict(bs=4, sampler=[9, 2, 5, 17, 11]),
        'batches of some': lambda ds: dict(batch_sampler=[[9, 2], [17, 5], [11]])}

def ours(ds, **k): return DataLoader(ds, **k)
def theirs(ds, bs=None, **k):
    return torch.utils.data.DataLoader(ds, **({} if bs is None else {'batch_size': bs}), **k)
LOADERS = {'exp': ours, 'torch': theirs}

def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))

def learner(train, valid=None):
    return Learner((train, train if valid is None else valid), network(), metrics=accuracy,
                   cbs=Progress(False))

def by_hand(items=range(N)):
    x, y = points()
    with torch.no_grad(): return network().eval()(x)[list(items)], y[list(items)]

@pytest.mark.slow
@pytest.mark.parametrize('which', ['train', 'valid', 'test', 'loader'])
@pytest.mark.parametrize('how', [*ALL, *SOME])
@pytest.mark.parametrize('loader', LOADERS)
def test_all_items_come_in_order(loader, how, which):
    ds, items = TensorDataset(*points()), range(N) if how in ALL else [2, 5, 9, 11, 17]
    dl, other = LOADERS[loader](ds, **{**ALL, **SOME}[how](ds)), DataLoader(TensorDataset(*points(8, 3)), 4)
    l = learner(dl if which == 'train' else other, dl if which == 'valid' else other)
    l.data.test_dl = dl if which == 'test' else None
    which = dl if which == 'loader' else which
    preds, targets = by_hand(items)
    got, truth = l.get_preds(which, act=False)
    assert torch.equal(truth, targets) and torch.allclose(got, preds, atol=1e-6)
    assert (l.validate(which) == pytest.approx({'loss': F.cross_entropy(preds, targets).item(), 'accuracy': (
        preds.argmax(1) == targets).float().mean().item()}, abs=1e-6))
    losses = F.cross_entropy(preds, targets, reduction='none')
    table = l.top_losses(4, which)
    assert (table['item'].tolist() == [items[i] for i in losses.topk(4).indices]
            and table['loss'].tolist() == pytest.approx(losses.topk(4).values.tolist(), abs=1e-5))
    counts = l.confusion_matrix(which).values
    assert counts.sum() == len(items) and counts.diagonal().sum() == (preds.argmax(1) == targets).sum()
    if loader == 'exp':
        assert (torch.allclose(l.tta(which, n=1, act=False)[0], preds, atol=1e-6)
                and torch.equal(l.tta(which, n=1)[1], targets))

def test_batches_of_one_size_stay_together():
    xs = [torch.ones(2 + i % 2, 5)*i for i in range(N)]
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.eye(5)[:, :3].clone())
        def forward(self, x): return x.mean(1) @ self.w
    for make in LOADERS.values():
        dl = make(Dataset(xs, [0]*N), batch_sampler=BySize())
        preds, _ = Learner((dl, dl), Sum()).get_preds(act=False)
        assert torch.equal(preds, torch.arange(N).float()[:, None].expand(N, 3))

def test_a_data_set_of_whole_batches_keeps_its_order():
    x, y = points()
    class Whole(torch.utils.data.Dataset):
        def __len__(self): return 11
        def __getitem__(self, i): return x[2*i:2*i + 2], y[2*i:2*i + 2]
    dl = torch.utils.data.DataLoader(Whole(), batch_size=None, shuffle=True)
    assert torch.equal(learner(dl).get_preds('train')[1], y)
    ds = TensorDataset(x, y)
    dl = torch.utils.data.DataLoader(ds, batch_size=None,
                                     sampler=BatchSampler(RandomSampler(ds), 4, drop_last=True))
    assert (torch.equal(learner(dl).get_preds('train')[1], y)
            and learner(dl).top_losses(N, 'train')['item'].nunique() == N)

def test_nested_answers_are_put_in_order_too():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 3)
        def forward(self, x): return {'a': self.a(x), 'b': (x[:, 0], x)}
    x, y = points()
    ds = Dataset(x, {'y': y})
    dl = DataLoader(ds, batch_sampler=BySize())
    loss = lambda pred, yb: F.cross_entropy(pred['a'], yb['y'])
    loss.activation = loss.decode = lambda pred: pred
    preds, targets = Learner((dl, dl), Two(), loss_func=loss).get_preds('train')
    assert (torch.equal(preds['b'][1], x) and torch.equal(preds['b'][0], x[:, 0])
            and torch.equal(targets['y'], y))

# ---------------------------------------------------------------- loaders whose items have no places

class Stream(torch.utils.data.IterableDataset):
    def __init__(self, n=N): self.n = n
    def __iter__(self): return iter(zip(*points(self.n)))
    def __len__(self): return self.n

class Own:
    def __init__(self, items): self.items = items
    def __len__(self): return 2
    def __iter__(self):
        x, y = points()
        for part in torch.arange(N).flip(0).split(11):
            yield Batch((x[part], y[part]), part if self.items else None)

@pytest.mark.parametrize('dl', [lambda: torch.utils.data.DataLoader(Stream(), 4), lambda: Own(False)],
                         ids=['stream', 'own'])
def test_items_without_places_are_refused(dl):
    l = learner(DataLoader(TensorDataset(*points()), 4), dl())
    for ask in (l.get_preds, l.top_losses, l.plot_top_losses, l.tta):
        with pytest.raises(TypeError): ask()
    # a mean needs no order
    assert l.validate()['loss'] == pytest.approx(F.cross_entropy(*by_hand()).item(), abs=1e-6)

def test_a_loader_of_ones_own_that_names_its_items_is_put_in_order():
    l = learner(DataLoader(TensorDataset(*points()), 4), Own(True))
    assert (torch.equal(l.get_preds()[1], points()[1]) and l.top_losses(3)['item'].tolist()
            == F.cross_entropy(*by_hand(), reduction='none').topk(3).indices.tolist())

def test_a_list_of_batches_has_the_order_it_has():
    x, y = points()
    batches = list(zip(x.split(5), y.split(5)))
    assert torch.equal(learner(DataLoader(Dataset(x, y), 4), batches).get_preds()[1], y)

def test_a_stream_without_length_says_so():
    with pytest.raises(TypeError, match='length'):
        learner(DataLoader(Dataset(*points()), 4)).get_preds(b for b in ())

# ---------------------------------------------------------------- random changes

def shifted(x, rng): return x + rng.random()
def scaled(x, rng): return 2*x

@pytest.mark.parametrize('train, valid, want', [
    (lambda ds: TransformedDataset(ds, shifted), lambda ds: ds, lambda x: x),
    (lambda ds: TransformedDataset(ds, [scaled, shifted]), lambda ds: TransformedDataset(ds, scaled),
     lambda x: 2*x),
    (lambda ds: TransformedDataset(TransformedDataset(ds, scaled), shifted),
     lambda ds: TransformedDataset(TransformedDataset(ds, scaled), scaled), lambda x: 4*x),
    (lambda ds: TransformedDataset(ds, shifted), lambda ds: None, lambda x: x),
], ids=['plain', 'scaled', 'nested', 'no valid'])
@pytest.mark.parametrize('loader', LOADERS)
def test_random_changes_of_a_data_set_are_left_out(loader, train, valid, want):
    x, y = points()
    held_out = valid(Dataset(*points(8, 3)))
    ds = train(Dataset(x, y))
    dl = LOADERS[loader](ds, bs=4, shuffle=True)
    l = Learner(DataBunch(dl, None if held_out is None else DataLoader(held_out, 4)), network(),
                cbs=Progress(False))
    with torch.no_grad(): right = network().eval()(want(x))
    for which in ('train', dl, LOADERS[loader](ds, bs=7)):
        assert torch.allclose(l.get_preds(which, act=False)[0], right, atol=1e-6)

def turned(im): return im.rotate(random.choice([90, 180, 270]))

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp('colours'), np.random.RandomState(0)
    for part, n in (('train', 5), ('valid', 3)):
        for name in ('dark', 'light'):
            (root/part/name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.randint(0, 100, (12, 14, 3), dtype=np.uint8)
                                + np.uint8(150*(name == 'light'))).save(root/part/name/f'{i}.png')
    return root

def image_learner(data):
    torch.manual_seed(2)
    return Learner(data, nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), cbs=Progress(False))

@pytest.mark.parametrize('split', ['split_by_folder', 'split_none'])
@pytest.mark.parametrize('loader', ['exp', 'torch'])
def test_images_come_without_their_random_changes(folder, loader, split):
    def data(tfms):
        return getattr(ImageList.from_folder(folder),
                       split)().label_from_folder().transform(tfms, size=8).databunch(4, drop_last=True)
    bunch, plain = data(([turned, exp.batch_transforms.RandomFlip()], [])), image_learner(data([]))
    if loader == 'torch':
        bunch.train_dl = torch.utils.data.DataLoader(bunch.train_ds, 4, shuffle=True, drop_last=True)
    l, want = image_learner(bunch), torch.stack([plain.predict(f).probs for f in bunch.train_ds.x.items])
    for which in ('train', bunch.train_dl): assert torch.allclose(l.get_preds(which)[0], want, atol=1e-6)
    assert torch.allclose(torch.stack([l.predict(f).probs for f in bunch.train_ds.x.items]), want, atol=1e-6)
    table = l.top_losses(len(want), 'train')
    assert (sorted(table['item']) == list(range(len(want)))
            and all(row.truth in row.file for row in table.itertuples()))

@pytest.mark.parametrize('loader', ['exp', 'torch'])
def test_the_worst_are_shown_with_their_own_pictures(folder, loader, monkeypatch):
    bunch = ImageList.from_folder(folder).split_by_folder().label_from_folder().transform(size=8).databunch(4)
    if loader == 'torch': bunch.train_dl = torch.utils.data.DataLoader(bunch.train_ds, 4, shuffle=True)
    l, shown = image_learner(bunch), []
    monkeypatch.setattr(ImageList, 'show', lambda self, x, ax, title=None: shown.append(x))
    l.plot_top_losses(3, 'train')
    want = torch.stack([bunch.train_ds[i][0] for i in l.top_losses(3, 'train')['item']]).float()/255
    assert torch.allclose(torch.stack(shown), want)

def test_a_validation_loader_in_order_is_taken_as_it_is():
    data = make_data(Dataset(*points()), Dataset(*points(8, 3)), bs=4)
    l = Learner(data, network())
    assert l.in_order(data.valid_dl) is data.valid_dl
