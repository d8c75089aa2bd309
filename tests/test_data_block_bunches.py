"""What one bunch of a split changes is its own."""
import copy

import numpy as np
import pytest
import torch
from torch import nn

from exp.batch_transforms import get_transforms
from exp.data_block import CategoryList, FloatList, ImageList
from exp.transforms import Normalize, ToFloatTensor
from exp.dataloader import DataBunch, Dataset, make_data
from exp.learner import Learner
from exp.losses import CrossEntropy

def split(tfms=None, cache=False):
    ims = [np.full((10, 12, 3), 20*k, np.uint8) for k in range(10)]
    return ImageList(ims).split_by_index([8, 9]).label_from_func(
        lambda a: 'dark' if a.mean() < 100 else 'light').transform(tfms, size=8, cache=cache)

def batch(data, train=True): return data.one_batch(train)[0]

@pytest.mark.parametrize('tfms', [None, get_transforms()], ids=['plain', 'augmented'])
@pytest.mark.parametrize('cache', [False, True])
def test_normalising_one_bunch_leaves_the_others_as_they_were(tfms, cache):
    sd = split(tfms, cache)
    before = sd.databunch(bs=4, seed=0)
    plain = batch(before)
    one = sd.databunch(bs=4, seed=0).normalize(([0.5]*3, [0.25]*3))
    two = sd.databunch(bs=4, seed=0)
    for data in (before, two):
        for train in (True, False):
            assert batch(data, train).dtype == torch.float32 and batch(data, train).max() <= 1
    assert (torch.equal(batch(before), plain) and torch.equal(batch(two), plain)
            and torch.allclose(batch(one), (plain - 0.5)/0.25, atol=1e-5))
    two.normalize(([0.]*3, [0.5]*3))
    assert (torch.allclose(batch(two), plain/0.5, atol=1e-5)
            and torch.allclose(batch(one), (plain - 0.5)/0.25, atol=1e-5))
    assert torch.equal(batch(sd.databunch(bs=4, seed=0)), plain)

def test_what_is_added_to_or_taken_from_one_bunchs_transforms_stays_there():
    sd = split()
    one, two = sd.databunch(bs=4), sd.databunch(bs=8)
    one.batch_tfms[0].append(lambda xb: xb*0)
    one.batch_tfms[1].clear()
    one.batch_tfms[0][0].order = 99
    assert (batch(one).abs().max() == 0 and batch(two).max() > 0 and len(two.batch_tfms[0])
            == len(two.batch_tfms[1]) == len(sd.databunch(bs=4).batch_tfms[1]) == 1)
    assert two.batch_tfms[0][0].order == 0

def test_losses_and_names_of_classes_are_each_bunchs_own():
    sd = split()
    one, two = sd.databunch(bs=4), sd.databunch(bs=4)
    one.loss_func.reduction = 'sum'
    one.classes[0] = 'black'
    assert (two.loss_func.reduction == sd.databunch(bs=4).loss_func.reduction
            == CategoryList.loss_func.reduction == 'mean' and isinstance(two.loss_func, CrossEntropy))
    assert two.classes == sd.classes == ['dark', 'light'] and one.train_ds.y.decode(0) == 'dark'
    assert FloatList.loss_func is not ImageList([np.zeros((4, 4), np.uint8)]*2).split_none().label_from_func(
        lambda a: 1.).databunch(bs=2).loss_func

def test_transforming_a_split_anew_leaves_a_bunch_that_is_there():
    sd = split()
    one = sd.databunch(bs=4)
    two = sd.transform(size=4).databunch(bs=4)
    assert (batch(one).shape[2:] == (8, 8) and batch(two).shape[2:] == (4, 4)
            and one.item_data.tfms is not two.item_data.tfms)

def test_a_test_set_that_is_added_later_is_in_later_bunches_only():
    sd = split()
    one = sd.databunch(bs=4)
    two = sd.add_test([np.zeros((4, 4), np.uint8)]).databunch(bs=4)
    assert one.test_dl is None and len(two.test_ds) == 1

@pytest.mark.parametrize('first, second', [(0, 0), (0, 2)])
def test_bunches_with_a_cache_give_what_they_gave(first, second):
    sd = split(cache=True)
    one = sd.databunch(bs=4, seed=1, num_workers=first)
    want = [xb.clone() for xb, _ in one.train_dl]
    two = sd.databunch(bs=4, seed=1, num_workers=second)
    try:
        one.train_dl.set_epoch(0)
        for dl in (two.train_dl, one.train_dl):
            assert all(torch.equal(a, xb) for a, (xb, _) in zip(want, dl, strict=True))
    finally: two.train_dl.close()

def test_two_learners_of_two_bunches_see_their_own_images():
    sd = split()
    seen = []
    class Keep(nn.Flatten):
        def forward(self, x):
            seen.append(x.abs().max().item())
            return super().forward(x)
    for data in (sd.databunch(bs=4).normalize(([0.]*3, [0.01]*3)), sd.databunch(bs=4)):
        Learner(data, nn.Sequential(Keep(), nn.Linear(192, 2))).predict(np.full((9, 9, 3), 255, np.uint8))
    assert seen == pytest.approx([100., 1.], rel=1e-4)

def test_a_bunch_made_by_hand_of_one_list_for_both_sets_normalises_each_once():
    x = torch.rand(8, 3, 4, 4)
    tfms = [ToFloatTensor()]
    one, two = (make_data(Dataset(x, torch.arange(8)), Dataset(x, torch.arange(8)), bs=8, batch_tfms=tfms)
                for _ in range(2))
    one.normalize(([0.5]*3, [0.5]*3))
    assert (len(tfms) == 1 and all(len(t) == 2 for t in one.batch_tfms)
            and all(len(t) == 1 for t in two.batch_tfms))
    assert (isinstance(one, DataBunch) and torch.allclose(batch(one, False), (x - 0.5)/0.5, atol=1e-6)
            and torch.equal(batch(two, False), x))

def test_a_deep_copy_of_a_bunch_is_another():
    one = split().databunch(bs=4, seed=0)
    two = copy.deepcopy(one).normalize(([0.5]*3, [0.25]*3))
    assert (batch(one).max() <= 1 and batch(one).min() >= 0 and batch(two).min() < 0
            and not any(isinstance(t.tfm, Normalize) for t in one.batch_tfms[0]))
