"""Random transforms in training: they depend on seed, epoch and item alone, targets follow, files keep them,
and `tta` averages over them."""
import copy, random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.data
from torch import nn

from exp.augmentation import *
from exp.batch_transforms import *
from exp.callbacks import Callback
from exp.checkpoints import Checkpoint
from exp.data_block import ImageList, LabeledData
from exp.dataloader import DataLoader, Dataset, Rng, TransformedDataset, make_data
from exp.inference import load_learner
from exp.learner import Learner
from exp.progress import Progress
from exp.transforms import OnBatch
from test_augmentation import noise
from test_batch_transforms import names
from test_data_block_kinds import (H, W, boxes, masks, points, same_with_workers, scenes, shows,  # noqa: F401
                                   value_at)

# ---- random state

def photos(n=24, size=(40, 52)):
    g = np.random.default_rng(0)
    return [g.integers(0, 255, (*size, 3), np.uint8) for _ in range(n)]

def item_and_batch():
    return ([PilRandomFlip(), RandomResizedCrop(24), PilRandomWarp(), RandomRotate(on='item'),
             RandomZoom(1.3, on='item'), RandomContrast(on='item')] + get_transforms()[0])

def augmented(workers=0, seed=1, items=None, tfms=None):
    items = photos() if items is None else items
    split = ImageList(items).split_by_index(range(18, 24)).label_from_func(lambda a: int(a.mean() > 127))
    return split.transform((item_and_batch() if tfms is None else tfms, [CenterResizedCrop(24)]),
                           size=24).databunch(6, num_workers=workers, seed=seed)

def epoch_of(data, epoch):
    "What training sees, by item."
    data.train_dl.set_epoch(epoch)
    out = {}
    for b in data.train_dl:
        xb, _ = data.transform_batch(*b, train=True, items=b.items)
        out.update(zip(b.items, xb))
    return out

def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.slow
def test_items_are_changed_alike_by_no_one_and_four_workers_and_anew_in_each_epoch():
    seen = {}
    for n in (0, 1, 4):
        data = augmented(n)
        try: seen[n] = [epoch_of(data, e) for e in (0, 1)]
        finally: data.train_dl.close()
    assert all(equal(seen[0][e], seen[n][e]) for n in (1, 4) for e in (0, 1))
    assert not any(torch.equal(seen[0][0][i], seen[0][1][i]) for i in seen[0][0])
    other = epoch_of(augmented(seed=2), 0)
    assert not any(torch.equal(seen[0][0][i], other[i]) for i in other)
    assert equal(epoch_of(augmented(), 1), seen[0][1])                           # whatever came before

def test_two_workers_draw_differently():
    "One picture 24 times, no batch transforms: equal random numbers would make equal items."
    data = augmented(2, items=[photos(1)[0]]*24, tfms=[RandomResizedCrop(24), RandomRotate(30, on='item')])
    try: items = epoch_of(data, 0)
    finally: data.train_dl.close()
    assert len({x.numpy().tobytes() for x in items.values()}) == len(items) == 18

def test_a_batchs_items_are_changed_as_they_are_in_any_other_batch():
    a, b = augmented(), augmented()
    xa, ia = next((xb, b_.items) for b_ in a.train_dl
                  for xb, yb in [a.transform_batch(*b_, train=True, items=b_.items)])
    part = b.transform_batch(torch.stack([b.train_ds.get(i, Rng(1, 0, i))[0] for i in ia[2:4]]), None,
                             train=True, items=ia[2:4])[0]
    torch.testing.assert_close(part, xa[2:4], rtol=0, atol=1e-5)

class Broken(Exception): pass

class Watch(Callback):
    "Keeps what the model is shown; may break off."
    def __init__(self, stop=None): self.seen, self.stop = [], stop
    def after_pred(self):
        if self.in_train: self.seen.append(((self.epoch, *self.items), self.xb.detach().clone()))
    def after_batch(self):
        if self.in_train and len(self.seen) == self.stop: raise Broken

def small(data, **kw):
    torch.manual_seed(0)
    return Learner(data, nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(),
                                       nn.Linear(4*6*6, 2)), lr=0.01, cbs=[Progress(False)], **kw)

@pytest.mark.slow
def test_a_resumed_run_draws_what_the_uninterrupted_one_would_have(tmp_path):
    whole, before, after, learn = Watch(), Watch(stop=4), Watch(), small(augmented())
    learn.fit(3, cbs=[whole])
    with pytest.raises(Broken): small(augmented()).fit(3, cbs=[before, Checkpoint(tmp_path/'c.pth', every=2)])
    resumed = small(augmented())
    resumed.fit(3, cbs=[after, Checkpoint(tmp_path/'c.pth', every=2)], resume=tmp_path/'c.pth')
    assert len(whole.seen) == 9 and 5 <= len(after.seen) < 9 and after.seen[0][0][0] in (0, 1)
    for (name, x), (other, y) in zip(whole.seen[::-1], after.seen[::-1]):
        assert name == other and torch.equal(x, y)
    for a, b in zip(learn.model.parameters(), resumed.model.parameters()): assert torch.equal(a, b)

# ---- the data block

def asked(): return get_transforms(flip_vert=True, max_lighting=0.1, max_zoom=1.05, max_warp=0.)

def test_the_sentence_of_the_course_for_images_and_masks(scenes):
    data = masks(scenes, asked(), size=(H, H))
    xb, yb = data.one_batch()
    assert (xb.shape == (6, 3, H, H) and yb.shape == (6, H, H) and yb.dtype == torch.int64
            and set(yb.unique().tolist()) <= {0, 1, 2, 3})
    bright = (xb.amax(1) > 0.5) != (yb > 0)
    edges = (F.max_pool2d((yb > 0).float()[:, None], 3, 1,
                          1) - 1 + F.max_pool2d(1 - (yb > 0).float()[:, None], 3, 1, 1))
    # they differ at most along the edges
    assert bright.float().mean() < 0.1 and not (bright & (edges[:, 0] == 0)).any()
    still = masks(scenes, [], size=(H, H)).one_batch()
    assert (sum(torch.equal(a, b) for a, b in zip(yb, still[1])) <= 3
            and torch.equal(data.one_batch(False)[1], masks(scenes, [], size=(H, H)).one_batch(False)[1]))
    assert ([type(t.tfm).__name__
             for t in data.batch_tfms[0]] == ['ToFloatTensor', 'Composed', 'ComposedLighting']
            and [type(t.tfm).__name__ for t in data.batch_tfms[1]] == ['ToFloatTensor'])
    assert all(len(ax.images) == 2 for ax in shows(data))

@pytest.mark.slow
@pytest.mark.parametrize('size', [(H, W), (60, 40)])
def test_and_points(scenes, size):
    data = points(scenes, asked(), size=size)
    xb, yb = data.one_batch()
    inside = yb.abs().amax((1, 2)) < 0.95
    assert inside.sum() >= 12 and (value_at(xb, yb).amax(1)[inside] > 0.6).all()
    assert all(len(ax.lines) == 1 for ax in shows(data))
    left = points(scenes, asked(), size=size, tfm_y=False)
    xb, yb = left.one_batch()
    # points that stay behind, if one says so
    assert (value_at(xb, yb).amax(1) < 0.1).any()

def test_and_boxes(scenes):
    data = boxes(scenes, asked())
    for xb, (at, label) in (data.one_batch(), data.one_batch(False)):
        assert (at.shape == (len(xb), 3, 4) and at.abs().max() <= 1 and (at[label < 0] == 0).all()
                and (at[..., 0] <= at[..., 2]).all() and label.max() <= 2)
    xb, (at, label) = data.one_batch()
    # the last square lies on top of the others
    top = [(x, at[i, k], k) for i, x in enumerate(xb) for k in [int(label[i].max())] if k >= 0]
    for x, b, k in top:
        middle = (b[:2] + b[2:])/2
        assert value_at(x[None], middle[None, None].float())[0, k] > 0.6
    assert len(top) >= 4 and sum(len(ax.patches) for ax in shows(data)) >= 4

@pytest.mark.slow
def test_kinds_of_targets_come_alike_from_two_processes(scenes):
    tfms = ([RandomResizedCrop((30, 40), scale=(0.5, 1.)), PilRandomFlip(), *asked()[0]],
            [CenterResizedCrop((30, 40))])
    same_with_workers(lambda n: masks(scenes, tfms, workers=n))
    same_with_workers(lambda n: points(scenes, tfms, workers=n))
    same_with_workers(lambda n: boxes(scenes, tfms, workers=n))

def test_crops_take_the_place_of_resizing(scenes):
    data = masks(scenes, ([RandomResizedCrop(20)], [CenterResizedCrop(20)]), size=50)
    assert (data.one_batch()[0].shape == data.one_batch(False)[0].shape == (6, 3, 20, 20)
            and data.one_batch()[1].shape == (6, 20, 20))
    assert not any(type(t).__name__ == 'ResizeFixed' for t in data.train_ds.tfms)

def test_items_before_the_first_random_transform_are_cached_and_the_rest_drawn_anew():
    items = photos()
    make = lambda cache: ImageList(items).split_by_index(range(18, 24)).label_from_func(lambda a: int(
        a.mean() > 127)).transform((item_and_batch()[3:], []), size=24, cache=cache).databunch(6, seed=1)
    a, b = make(False), make(True)
    for e in (0, 1): assert equal(epoch_of(a, e), epoch_of(b, e))

def test_transforms_of_validation_survive_export(tmp_path):
    learn = small(augmented())
    learn.fit(1)
    learn.path = tmp_path
    loaded, item = load_learner(learn.export('m.pth'),
                                model=copy.deepcopy(learn.model)), photos(3, (60, 33))[2]
    assert loaded.data.item_data.tfms[1].__class__ is CenterResizedCrop
    assert torch.equal(loaded.predict(item).probs, learn.predict(item).probs)

def test_random_transforms_of_validation_survive_export_too(tmp_path):
    tfms = ([], [CenterResizedCrop(24, zoom=1.1), *get_transforms()[0]])
    split = ImageList(photos()).split_by_index(range(18, 24)).label_from_func(lambda a: int(a.mean() > 127))
    learn = small(split.transform(tfms, size=24).databunch(6, seed=1))
    learn.path = tmp_path
    loaded = load_learner(learn.export('m.pth'), model=copy.deepcopy(learn.model))
    assert (repr(loaded.data.batch_tfms[1]) == repr(learn.data.batch_tfms[1])
            and loaded.predict(photos()[0]).probs.shape == (2,))

# ---- test-time augmentation

def test_tta_is_the_mean_of_the_plain_pass_and_the_others():
    "By hand: item transforms by the generators of its passes, batch transforms by theirs."
    data, n, beta = augmented(), 3, 0.3
    learn = small(data)
    preds, targets = learn.tta(n=n, beta=beta)
    plain, truth = learn.get_preds()
    assert (torch.equal(targets, truth) and preds.shape == plain.shape
            and not torch.allclose(preds, plain, atol=1e-4))
    passes = []
    for k in range(n):
        ds = LabeledData(data.valid_ds.x, data.valid_ds.y, data.train_ds.tfms)
        dl = DataLoader(ds, data.valid_dl.bs, seed=Rng(data.valid_dl.seed, 'tta', k).number)
        here = copy.copy(data)
        here.valid_dl, here.batch_tfms = dl, (data.batch_tfms[0],)*2
        xs = torch.cat([here.transform_batch(*b, train=False, items=b.items)[0] for b in dl])
        with torch.no_grad(): passes.append(F.softmax(learn.model.eval()(xs), 1))
    assert not torch.allclose(passes[0], passes[1], atol=1e-4)
    torch.testing.assert_close(preds, beta*plain + (1 - beta)*sum(passes)/n, rtol=0, atol=1e-6)
    logits = learn.tta(n=1, beta=0., act=False)[0]
    torch.testing.assert_close(F.softmax(logits, 1), passes[0], rtol=0, atol=1e-6)

def test_tta_with_beta_1_is_get_preds_and_twice_the_same_is_the_same():
    learn = small(augmented())
    assert torch.equal(learn.tta(n=1, beta=1.)[0], learn.get_preds()[0])
    first = learn.tta(n=2)
    learn.fit(0)
    random.seed(9)
    torch.manual_seed(9)
    learn.get_preds()
    again = learn.tta(n=2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    for dl in ('train', learn.data.valid_dl): assert torch.isfinite(learn.tta(dl, n=1)[0]).all()
    assert (learn.tta('train', n=1)[0].shape == (18, 2)
            and torch.equal(learn.tta('train', n=1)[1], learn.get_preds('train')[1]))
    torch.testing.assert_close(first[0].sum(1), torch.ones(6))

def test_tta_is_the_same_with_workers():
    a, data = small(augmented()).tta(n=2)[0], augmented(2)
    try: b = small(data).tta(n=2)[0]
    finally:
        data.train_dl.close()
        data.valid_dl.close()
    torch.testing.assert_close(a, b, rtol=0, atol=0)

def test_tta_puts_the_data_back_after_an_error_too():
    class Fails(nn.Module):
        calls = 0
        def forward(self, x):
            self.calls += 1
            if self.calls == 3: raise Broken
            return x.mean((2, 3))
    data = augmented()
    learn = Learner(data, Fails(), cbs=[Progress(False)])
    tfms, valid = data.batch_tfms, data.valid_dl
    with pytest.raises(Broken): learn.tta(n=4)
    assert learn.data is data and data.batch_tfms is tfms and data.valid_dl is valid
    learn.tta(n=2)
    assert learn.data is data and data.batch_tfms is tfms and data.valid_dl is valid

class FlipSome:
    "A batch transform that is no `Transform`."
    on, order = 'batch', 20
    def __call__(self, xb, yb, ctx):
        flip = torch.tensor([Rng(ctx.seed, ctx.epoch, i, 'flip').random() < 0.5 for i in ctx.items])
        return torch.where(flip[:, None, None, None], xb.flip(-1), xb), yb

def shift_far(x, rng): return x.roll(rng.randint(3, 9), -1)

@pytest.mark.parametrize('how', ['batch function', 'placed', 'items', 'items and batch'])
def test_tta_works_where_make_data_made_the_data(how):
    x, y = noise(24, 3, 24, 24), torch.arange(24) % 2
    train = TransformedDataset(Dataset(x, y), [shift_far]) if 'items' in how else Dataset(x, y)
    tfms = {'batch function': [FlipSome()], 'placed': [OnBatch(RandomRotate(30), 0)], 'items': [],
            'items and batch': [FlipSome()]}[how]
    learn = small(make_data(train, Dataset(x[:8], y[:8]), bs=6, batch_tfms=(tfms, [])))
    preds, targets = learn.tta(n=2, beta=0.5)
    assert (torch.equal(targets, y[:8]) and preds.shape == (8, 2)
            and not torch.allclose(preds, learn.get_preds()[0], atol=1e-5))
    assert (torch.equal(preds, learn.tta(n=2, beta=0.5)[0])
            and torch.equal(learn.tta(n=1, beta=1.)[0], learn.get_preds()[0]))

def test_tta_without_random_transforms_is_get_preds():
    x, y = noise(24, 3, 24, 24), torch.arange(24) % 2
    learn = small(make_data(Dataset(x, y), Dataset(x[:8], y[:8]), bs=6))
    torch.testing.assert_close(learn.tta(n=3)[0], learn.get_preds()[0], rtol=0, atol=1e-7)

def test_tta_refuses_a_model_of_several_predictions():
    class Two(nn.Module):
        def forward(self, x): return x.mean((2, 3)), x.mean((2, 3))
    data = augmented()
    learn = Learner(data, Two(), loss_func=lambda pred, yb: F.cross_entropy(pred[0], yb), metrics=(),
                    cbs=[Progress(False)])
    with pytest.raises(TypeError): learn.tta(n=1, act=False)
    assert learn.data is data

@pytest.mark.parametrize('arguments, error, match',
                         [({'n': 0}, ValueError, r'\bn\b'), ({'n': True}, TypeError, 'whole'),
                          ({'n': 1.5}, TypeError, 'whole'), ({'dl': 'test'}, ValueError, 'test'),
                          ({'dl': 'valud'}, ValueError, 'valud')])
def test_tta_refuses_arguments_that_make_no_sense(arguments, error, match):
    with pytest.raises(error, match=match): small(augmented()).tta(**arguments)

def test_tta_refuses_points_and_loaders_of_others(scenes):
    data = masks(scenes, get_transforms(), size=(24, 24))
    learn = Learner(data, nn.Conv2d(3, 4, 1), loss_func=nn.CrossEntropyLoss(), cbs=[Progress(False)])
    for ds in (data.train_ds, data.valid_ds): ds.y.kind = 'points'
    with pytest.raises(ValueError, match='move'): learn.tta()
    x, y = noise(12, 3, 24, 24), torch.arange(12) % 2
    theirs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 6)
    with pytest.raises(TypeError, match='DataLoader'): small(augmented()).tta(theirs)

def test_batch_transforms_can_be_given_to_make_data_as_they_are():
    x, y = noise(24, 3, 24, 24), torch.arange(24) % 2
    data = make_data(Dataset(x, y), Dataset(x[:8], y[:8]), bs=6, batch_tfms=(get_transforms()[0], []), seed=1)
    xb, yb = data.one_batch()
    assert xb.shape == (6, 3, 24, 24) and yb.shape == (6,) and torch.equal(data.one_batch()[0], xb)
    small(data).fit(1)

def test_transforms_are_done_in_an_order_that_makes_sense():
    """What may change an image's shape comes before its size is fixed; the rest of items after it, PIL images
    before bytes; batches move before their colours change."""
    split = ImageList(photos(6)).split_by_index([4, 5]).label_from_func(lambda a: int(a.mean() > 127))
    data = split.transform([RandomBrightness(), RandomRotate(), RandomHue(on='item'), RandomShear(on='item'),
                            PilRandomWarp(), RandomResizedCrop(9),
                            PilRandomDihedral()]).databunch(2).normalize(([0.]*3, [1.]*3))
    assert (names(data.train_ds.tfms) == ['MakeRGB', 'PilRandomDihedral', 'RandomResizedCrop',
                                          'PilRandomWarp', 'ToByteTensor', 'RandomShear', 'RandomHue'])
    assert (names(t.tfm for t in data.batch_tfms[0]) == ['ToFloatTensor', 'RandomRotate', 'RandomBrightness',
                                                         'Normalize'])
