"""Lesson 18: label smoothing is PyTorch's; mixtures are the formula's, the same for any workers and after a
resume; validation and the runner are left alone."""
from functools import partial

import re
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from exp.callbacks import (AvgStats, Callback, CancelBatchException, CancelFitException, CancelStepException,
                           Recorder, Runner)
from exp.specs import from_spec, to_spec
from exp.dataloader import Dataset, Rng, make_data
from exp.hooks import ActivationStats
from exp.checkpoints import Checkpoint, CheckpointError
from exp.learner import Learner
from exp.inference import load_learner
from exp.losses import BinaryCrossEntropy, CrossEntropy, HuberLoss, SquaredLoss, loss_parts
from exp.metrics import accuracy
from exp.mixup import CutMix, LabelSmoothing, MixUp, _boxes, _inside, _ring, mixed_loss
from exp.progress import Progress
from exp.schedules import EarlyStopping, SaveBest

quick = settings(deadline=None, max_examples=40)


# ---------------------------------------------------------------- what the tests are made of

H, W = 6, 9

def images(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, H, W, generator=g), torch.randint(0, 4, (n,), generator=g)

def bunch(n=36, bs=8, **kw):
    return make_data(Dataset(*images(n)), Dataset(*images(20, 1)), bs=bs, seed=3, **kw)

def network(nf=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 5, 3, 2), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
                         nn.Linear(5*2*4, nf))

def learner(*cbs, data=None, model=None, metrics=(accuracy,), **kw):
    return Learner(bunch() if data is None else data, network() if model is None else model, metrics=metrics,
                   cbs=[Progress(False), *cbs], lr=0.01, **kw)

def weights(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

class Seen(Callback):
    "What the model got, what it said, and what came of it; `which`: the mixer."
    def __init__(self, which='mixup'): self.which, self.train, self.valid = which, [], []
    def after_loss(self):
        cb = getattr(self.run, self.which, None)
        row = dict(x=self.xb, y=self.yb, pred=self.pred.detach(), loss=self.loss, items=self.items,
                   epoch=self.epoch,
                   lam=getattr(cb, 'lam', None), partner=getattr(cb, 'partner', None))
        (self.train if self.in_train else self.valid).append(row)

both = pytest.mark.parametrize('Mixer', [MixUp, CutMix])
ways = pytest.mark.parametrize('mixers', [lambda: [MixUp()], lambda: [CutMix()],
                                          lambda: [MixUp(1.), CutMix(0.5)]], ids=['mixup', 'cutmix', 'both'])


# ---------------------------------------------------------------- label smoothing

@quick
@given(st.integers(1, 5), st.integers(2, 7), st.lists(st.integers(1, 4), max_size=3), st.floats(0, 1),
       st.sampled_from(['mean', 'sum']),
       st.booleans(), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 99))
def test_label_smoothing_is_pytorchs_in_value_and_gradient(n, k, more, eps, reduction, ignore, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    pred = torch.randn(n, k, *more, generator=g, dtype=dtype).mul_(3).requires_grad_()
    yb = torch.randint(0, k, (n, *more), generator=g)
    if ignore: yb.view(-1)[0] = (1 + yb.view(-1)[-1])%k if yb.numel() > 1 else yb.view(-1)[0]
    index = int(yb.view(-1)[0]) if ignore else None
    if ignore and (yb == index).all(): index = -7
    ours = LabelSmoothing(eps, reduction, ignore_index=index)(pred, yb)
    theirs = F.cross_entropy(pred, yb, label_smoothing=eps, reduction=reduction,
                             ignore_index=-100 if index is None else index)
    tol = 1e-4 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(ours, theirs, rtol=tol, atol=tol)
    torch.testing.assert_close(*(torch.autograd.grad(loss, pred)[0] for loss in (ours, theirs)), rtol=tol,
                               atol=tol)
    elements = F.cross_entropy(pred, yb, label_smoothing=eps, reduction='none')
    torch.testing.assert_close(LabelSmoothing(eps).elements(pred, yb), elements, rtol=tol, atol=tol)
    torch.testing.assert_close(LabelSmoothing(eps, 'none')(pred, yb), elements.reshape(n, -1).mean(1),
                               rtol=tol, atol=tol)

def test_label_smoothing_takes_classes_in_the_last_dimension_and_half_precision():
    pred, yb = torch.randn(3, 7, 5), torch.randint(0, 5, (3, 7))
    torch.testing.assert_close(LabelSmoothing(0.1, dim=-1)(pred, yb),
                               F.cross_entropy(pred.movedim(-1, 1), yb, label_smoothing=0.1))
    half = LabelSmoothing(0.1, dim=-1)(pred.bfloat16(), yb)
    assert half.dtype == torch.float32

def test_where_nothing_counts_the_smoothed_loss_is_zero_with_zero_gradients():
    pred, yb = torch.randn(3, 5, requires_grad=True), torch.full((3,), 255)
    loss = LabelSmoothing(0.1, ignore_index=255)(pred, yb)
    assert loss == 0 and not torch.autograd.grad(loss, pred)[0].any()

@pytest.mark.parametrize('eps', [-0.1, 1.1, float('nan')])
def test_eps_outside_0_to_1_is_refused(eps):
    with pytest.raises(ValueError, match='eps'): LabelSmoothing(eps)

@pytest.mark.parametrize('eps', ['0.1', None, True])
def test_eps_must_be_a_number(eps):
    with pytest.raises(TypeError, match='eps'): LabelSmoothing(eps)

def test_label_smoothing_names_what_is_wrong_as_cross_entropy_does():
    with pytest.raises(IndexError, match='Target 4'):
        LabelSmoothing()(torch.randn(2, 4), torch.tensor([0, 4]))
    with pytest.raises(TypeError, match='argmax'): LabelSmoothing()(torch.randn(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match='average'): LabelSmoothing(0.1, 'average')

def test_label_smoothing_is_written_and_read_by_name(tmp_path):
    loss = from_spec(to_spec(LabelSmoothing(0.2, ignore_index=3)))
    assert type(loss) is LabelSmoothing and (loss.eps, loss.ignore_index, loss.reduction) == (0.2, 3, 'mean')
    learn = learner(loss_func=LabelSmoothing(0.3))
    learn.fit(1)
    again = load_learner(learn.export(tmp_path/'a.pth'), network())
    assert type(again.loss_func) is LabelSmoothing and again.loss_func.eps == 0.3
    x = images(1)[0][0]
    torch.testing.assert_close(again.predict(x).probs, learn.predict(x).probs)
    assert abs(again.predict(x).probs.sum() - 1) < 1e-5
    assert ('eps=0.3' in repr(again.loss_func)
            and loss_parts(loss).decode(torch.eye(4)).tolist() == [0, 1, 2, 3])

@pytest.mark.parametrize('eps,k', [(0.1, 10), (0.3, 4), (0.05, 100)])
def test_the_gap_at_which_the_smoothed_loss_is_least_is_the_derived_one(eps, k):
    gap = torch.log(torch.tensor(1 + k*(1 - eps)/eps, dtype=torch.float64))
    z = torch.zeros(1, k, dtype=torch.float64)
    z[0, 0] = gap
    z.requires_grad_()
    g, = torch.autograd.grad(LabelSmoothing(eps)(z, torch.tensor([0])), z)
    assert g.abs().max() < 1e-12


# ---------------------------------------------------------------- the loss of a mixture

def class_batch(n=6, k=5, more=()):
    g = torch.Generator().manual_seed(2)
    return (torch.randn(n, k, *more, generator=g), torch.randint(0, k, (n, *more), generator=g),
            torch.randint(0, k, (n, *more), generator=g), torch.rand(n, generator=g))

W5 = torch.tensor([0.5, 1., 2., 0.1, 3.])
def name_of(f): return re.sub(' at 0x[0-9a-f]+', '', str(f))

CLASS_LOSSES = [CrossEntropy(), CrossEntropy('sum'), CrossEntropy(ignore_index=1), LabelSmoothing(0.1),
                LabelSmoothing(0.1, ignore_index=0), F.cross_entropy,
                partial(F.cross_entropy, label_smoothing=0.1), partial(F.cross_entropy, reduction='sum'),
                partial(F.cross_entropy, ignore_index=2),
                partial(F.cross_entropy, weight=W5), nn.CrossEntropyLoss(), nn.CrossEntropyLoss(W5),
                nn.CrossEntropyLoss(W5, ignore_index=1),
                nn.CrossEntropyLoss(label_smoothing=0.2), nn.CrossEntropyLoss(reduction='sum')]

@pytest.mark.parametrize('loss', CLASS_LOSSES, ids=name_of)
@pytest.mark.parametrize('more', [(), (3, 2)], ids=['classes', 'masks'])
def test_unmixed_the_mixed_loss_is_the_loss(loss, more):
    pred, y1, y2, _ = class_batch(more=more)
    pred.requires_grad_()
    for lam, yb in ((torch.ones(6), y1), (torch.zeros(6), y2)):
        ours, theirs = mixed_loss(loss, pred, y1, y2, lam), loss(pred, yb)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(v, pred)[0] for v in (ours, theirs)))

@pytest.mark.parametrize('more', [(), (3, 2)], ids=['classes', 'masks'])
@pytest.mark.parametrize('eps', [0., 0.1])
def test_a_mixture_of_losses_is_the_loss_on_mixed_targets(more, eps):
    pred, y1, y2, lam = class_batch(more=more)
    l = lam.view(-1, 1, *[1]*len(more))
    soft = l*F.one_hot(y1, 5).movedim(-1, 1) + (1 - l)*F.one_hot(y2, 5).movedim(-1, 1)
    torch.testing.assert_close(mixed_loss(LabelSmoothing(eps), pred, y1, y2, lam),
                               F.cross_entropy(pred, soft, label_smoothing=eps))

def test_targets_that_do_not_count_or_count_more_are_weighted_by_their_shares():
    pred, y1, y2, lam = class_batch()
    w = W5.clone()
    w[1] = 0
    each = lambda yb: F.cross_entropy(pred, yb, weight=w, reduction='none')
    by_hand = (lam*each(y1) + (1 - lam)*each(y2)).sum()/(lam*w[y1] + (1 - lam)*w[y2]).sum()
    torch.testing.assert_close(mixed_loss(nn.CrossEntropyLoss(w), pred, y1, y2, lam), by_hand)
    torch.testing.assert_close(mixed_loss(nn.CrossEntropyLoss(W5, ignore_index=1), pred, y1, y2, lam),
                               by_hand)

def test_a_mixture_in_which_nothing_counts_costs_nothing():
    pred, _, _, lam = class_batch()
    none = torch.full((6,), 3)
    for loss in (CrossEntropy(ignore_index=3), nn.CrossEntropyLoss(ignore_index=3)):
        assert mixed_loss(loss, pred, none, none, lam) == 0

@pytest.mark.parametrize('loss', [SquaredLoss(), HuberLoss(), nn.MSELoss(), F.l1_loss, BinaryCrossEntropy(),
                                  nn.BCEWithLogitsLoss()], ids=name_of)
def test_losses_of_numbers_mix_item_by_item(loss):
    g = torch.Generator().manual_seed(1)
    pred, (y1, y2), lam = torch.randn(5, 3, generator=g), torch.rand(2, 5, 3,
                                                                     generator=g), torch.rand(5, generator=g)
    by_hand = torch.stack([l*loss(p[None], a[None]) + (1 - l)*loss(p[None], b[None])
                           for p, a, b, l in zip(pred, y1, y2, lam)]).mean()
    torch.testing.assert_close(mixed_loss(loss, pred, y1, y2, lam), by_hand)

def test_a_loss_that_answers_one_number_in_spite_of_its_reduction_is_refused():
    def stubborn(pred, yb, reduction='mean'): return F.cross_entropy(pred, yb)
    with pytest.raises(ValueError, match='value'): mixed_loss(stubborn, *class_batch())

def test_a_loss_of_pytorch_that_would_broadcast_is_refused():
    with pytest.raises(ValueError, match='shape'):
        mixed_loss(F.mse_loss, torch.randn(4, 1), torch.randn(4), torch.randn(4), torch.rand(4))

@pytest.mark.parametrize('loss,error,match', [
    (lambda pred, yb: F.cross_entropy(pred, yb), ValueError, 'reduction'),
    (CrossEntropy('none'), ValueError, 'reduction'),
    (nn.KLDivLoss(reduction='batchmean'), ValueError, 'batchmean'),
    (nn.CrossEntropyLoss, ValueError, 'CrossEntropyLoss')])
def test_a_loss_that_cannot_be_mixed_is_refused_by_mixed_loss_too(loss, error, match):
    with pytest.raises(error, match=match): mixed_loss(loss, *class_batch())

@pytest.mark.parametrize('lam', [0.5, [0.5]*6, torch.tensor(0.5), torch.full((6, 1), 0.5)], ids=str)
def test_shares_that_are_not_one_number_for_each_item_are_refused(lam):
    pred, y1, y2, _ = class_batch()
    with pytest.raises(ValueError, match='share'): mixed_loss(CrossEntropy(), pred, y1, y2, lam)

def test_the_loss_function_is_left_as_it_is():
    loss = nn.CrossEntropyLoss()
    mixed_loss(loss, *class_batch())
    assert loss.reduction == 'mean'


# ---------------------------------------------------------------- partners and boxes

@quick
@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_in_a_ring_each_is_a_partner_once_and_nobody_his_own(keys):
    partner, n = _ring(keys), len(keys)
    assert sorted(partner.tolist()) == list(range(n)) and (partner != torch.arange(n)).all()
    at, seen = 0, set()
    while at not in seen:
        seen.add(at)
        at = int(partner[at])
    assert len(seen) == n   # one ring, so from three on no pair comes twice

@quick
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_share_of_a_box_is_that_of_the_pixels_that_stay(h, w, lam, row, column):
    boxes, stays = _boxes(torch.tensor([lam]), torch.tensor([[row, column]]), h, w)
    top, left, bottom, right = boxes[0].tolist()
    assert 0 <= top <= bottom <= h and 0 <= left <= right <= w
    mask = _inside(boxes, h, w)
    assert mask.shape == (1, h, w)
    assert abs(1 - mask.float().mean() - stays[0]) < 1e-6
    if lam == 1: assert stays[0] == 1

def test_a_box_in_the_middle_has_the_share_it_was_drawn_for():
    _, stays = _boxes(torch.linspace(0, 1, 11), torch.full((11, 2), 0.5), 100, 200)
    torch.testing.assert_close(stays, torch.linspace(0, 1, 11), atol=0.01, rtol=0)


# ---------------------------------------------------------------- what the model gets and learns from

def test_mixup_trains_on_the_formula():
    learn = learner(MixUp(0.7), seen := Seen())
    learn.fit(2)
    x, y = images(36)
    for b in seen.train:
        own, l = x[b['items']], b['lam'][:, None, None, None]
        assert torch.equal(b['x'], l*own + (1 - l)*own[b['partner']]) and torch.equal(b['y'], y[b['items']])
        e = lambda yb: F.cross_entropy(b['pred'], yb, reduction='none')
        torch.testing.assert_close(b['loss'],
                                   (b['lam']*e(b['y']) + (1 - b['lam'])*e(b['y'][b['partner']])).mean())
        for lam, item in zip(b['lam'].tolist(), b['items']):
            rng = Rng(3, b['epoch'], item, 'mixup')
            rng.random()
            assert lam == pytest.approx(rng.betavariate(0.7, 0.7), abs=1e-6)

def test_cutmix_pastes_boxes_and_counts_their_pixels():
    learn = learner(CutMix(), seen := Seen('cutmix'))
    learn.fit(1)
    x, _ = images(36)
    for b in seen.train:
        own = x[b['items']]
        pasted = (b['x'] != own).any(1)
        torch.testing.assert_close(1 - pasted.float().mean((1, 2)), b['lam'])
        assert torch.equal(torch.where(pasted[:, None], own[b['partner']], own), b['x'])
        for one in pasted:
            rows, columns = one.any(1), one.any(0)
            assert (torch.equal(one, rows[:, None] & columns) and rows.int().diff().ne(0).sum() <= 2
                    and columns.int().diff().ne(0).sum() <= 2)
        e = lambda yb: F.cross_entropy(b['pred'], yb, reduction='none')
        torch.testing.assert_close(b['loss'],
                                   (b['lam']*e(b['y']) + (1 - b['lam'])*e(b['y'][b['partner']])).mean())

def test_shares_have_the_beta_distributions_mean_and_spread():
    data = make_data(Dataset(torch.zeros(6000, 1), torch.zeros(6000, 1)), None, bs=500, seed=1)
    for alpha in (0.2, 1., 5.):
        learn = learner(MixUp(alpha), seen := Seen(), data=data, model=nn.Linear(1, 1),
                        loss_func=SquaredLoss(), metrics=())
        learn.fit(1)
        lam = torch.cat([b['lam'] for b in seen.train])
        assert abs(lam.mean() - 0.5) < 0.03 and abs(lam.var() - 0.25/(2*alpha + 1)) < 0.01

@ways
def test_validation_is_never_mixed(mixers):
    learn = learner(*mixers(), seen := Seen())
    learn.fit(1)
    x, y = images(20, 1)
    assert (torch.equal(torch.cat([b['x'] for b in seen.valid]), x)
            and torch.equal(torch.cat([b['y'] for b in seen.valid]), y))
    bare = learner(model=learn.model)
    assert bare.validate() == learn.validate()
    assert all(map(torch.equal, bare.get_preds(), learn.get_preds()))
    row = learn.history[-1]
    assert (row['valid_loss'] == pytest.approx(learn.validate()['loss'], rel=1e-6)
            and row['valid_accuracy'] == pytest.approx(learn.validate()['accuracy']))

@both
def test_a_batch_of_one_is_trained_as_it_is(Mixer):
    data = make_data(Dataset(*images(9)), None, bs=4, seed=3)   # 4, 4, 1
    learn = learner(Mixer(), seen := Seen(), data=data,
                    model=nn.Sequential(nn.Flatten(), nn.Linear(2*H*W, 4)))
    learn.fit(1)
    last = seen.train[-1]
    assert torch.equal(last['x'], images(9)[0][last['items']])
    torch.testing.assert_close(last['loss'], F.cross_entropy(last['pred'], last['y']))

def test_several_mixers_take_turns_by_batches():
    class Who(Callback):
        def before_fit(self): self.seen = []
        def after_pred(self):
            if self.in_train: self.seen.append([cb._y2 is not None for cb in (self.mixup, self.cutmix)])
    learn = learner(MixUp(), CutMix(), who := Who(), data=bunch(800))
    learn.fit(1)
    # of 100 batches
    assert all(sum(row) == 1 for row in who.seen) and 30 < sum(mixup for mixup, _ in who.seen) < 70

def test_inputs_may_be_nested():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(2*H*W, 4)
        def forward(self, numbers, image): return self.a(numbers) + self.b(image.flatten(1))
    g = torch.Generator().manual_seed(0)
    numbers, (im, y) = torch.randn(16, 3, generator=g), images(16)
    for x in ((numbers, im), {'numbers': numbers, 'image': im}):
        learn = learner(MixUp(), seen := Seen(), data=make_data(Dataset(x, y), None, bs=8, seed=3),
                        model=Two())
        learn.fit(1)
        for b in seen.train:
            got = list(b['x'].values()) if isinstance(b['x'], dict) else b['x']
            for t, own in zip(got, (numbers[b['items']], im[b['items']])):
                l = b['lam'].view(-1, *[1]*(t.ndim - 1))
                assert torch.equal(t, l*own + (1 - l)*own[b['partner']])
        with pytest.raises(ValueError, match='images'):
            learner(CutMix(), data=make_data(Dataset(x, y), None, bs=8), model=Two()).fit(1)

def test_cutmix_pastes_in_every_image_of_a_nested_input():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()
        def forward(self, a, b): return self.net(a) + self.net(b)
    im, y = images(16)
    learn = learner(CutMix(), seen := Seen('cutmix'),
                    data=make_data(Dataset((im, im + 100), y), None, bs=8, seed=3), model=Pair())
    learn.fit(1)
    for b in seen.train: torch.testing.assert_close(b['x'][0] + 100, b['x'][1])

def masks(n):
    x, _ = images(n)
    return x, torch.randint(0, 3, (n, H, W), generator=torch.Generator().manual_seed(8))

def segmenter():
    torch.manual_seed(0)
    return nn.Conv2d(2, 3, 3, padding=1)

def test_cutmix_pastes_masks_with_their_images():
    x, y = masks(16)
    learn = learner(CutMix(), seen := Seen('cutmix'),
                    data=make_data(Dataset(x, y), Dataset(x, y), bs=8, seed=3), model=segmenter())
    learn.fit(1)
    for b in seen.train:
        pasted = (b['x'] != x[b['items']]).any(1)
        assert torch.equal(b['y'], torch.where(pasted, y[b['items']][b['partner']], y[b['items']]))
        torch.testing.assert_close(b['loss'], F.cross_entropy(b['pred'], b['y']))
    assert 'train_accuracy' in learn.history[-1]

def test_cutmix_pastes_the_mask_and_mixes_the_class_of_items_that_have_both():
    x, mask = masks(16)
    _, y = images(16)
    class Items:
        def __len__(self): return 16
        def __getitem__(self, i): return x[i], {'class': y[i], 'mask': mask[i]}
    class Both:
        reduction = 'mean'
        def __call__(self, pred, yb):
            by_item = (F.cross_entropy(pred.mean((2, 3)), yb['class'], reduction='none')
                       + F.cross_entropy(pred[:, :3], yb['mask'], reduction='none').mean((1, 2)))
            return by_item if self.reduction == 'none' else by_item.mean()
    torch.manual_seed(0)
    learn = learner(CutMix(), seen := Seen('cutmix'), data=make_data(Items(), None, bs=8, seed=3),
                    model=nn.Conv2d(2, 4, 3, padding=1), loss_func=Both(), metrics=())
    learn.fit(1)
    for b in seen.train:
        own, partner, l = mask[b['items']], b['partner'], b['lam']
        pasted = (b['x'] != x[b['items']]).any(1)
        assert (torch.equal(b['y']['class'], y[b['items']])
                and torch.equal(b['y']['mask'], torch.where(pasted, own[partner], own)))
        e = lambda yb: F.cross_entropy(b['pred'].mean((2, 3)), yb, reduction='none')
        by_hand = ((l*e(b['y']['class']) + (1 - l)*e(b['y']['class'][partner])).mean()
                   + F.cross_entropy(b['pred'][:, :3], b['y']['mask']))
        torch.testing.assert_close(b['loss'], by_hand)

def test_mixup_of_masks_mixes_their_losses():
    x, y = masks(16)
    y[y == 2] = 1
    y[:, 0] = 2   # void
    loss = CrossEntropy(ignore_index=2)
    learn = learner(MixUp(), seen := Seen(), data=make_data(Dataset(x, y), None, bs=6, seed=3),
                    model=segmenter(), loss_func=loss)
    learn.fit(1)
    for b in seen.train:
        torch.testing.assert_close(b['loss'],
                                   mixed_loss(loss, b['pred'], b['y'], b['y'][b['partner']], b['lam']))
    expected = sum(b['loss']*loss.count(b['y'])
                   for b in seen.train)/sum(loss.count(b['y']) for b in seen.train)
    assert learn.history[-1]['train_loss'] == pytest.approx(float(expected), rel=1e-5)

def test_regression_learns_as_from_mixed_targets():
    x, _ = images(32)
    y = torch.randn(32, 1, generator=torch.Generator().manual_seed(3))
    class MixTargets(Callback):
        order = -59
        def before_batch(self):
            if not self.in_train: return
            lam = self.mixup.lam[:, None]
            self.run.yb = lam*self.yb + (1 - lam)*self.yb[self.mixup.partner]
            self.mixup._y2 = None   # one target again
    data = lambda: make_data(Dataset(x.double(), y.double()), None, bs=8, seed=3)
    model = lambda: (torch.manual_seed(0), nn.Sequential(nn.Flatten(), nn.Linear(2*H*W, 1)).double())[1]
    a = learner(MixUp(), data=data(), model=model(), loss_func=SquaredLoss(), metrics=())
    b = learner(MixUp(), MixTargets(), data=data(), model=model(), loss_func=SquaredLoss(), metrics=())
    for learn in (a, b): learn.fit(2)
    for k, v in weights(a).items(): torch.testing.assert_close(v, weights(b)[k])


# ---------------------------------------------------------------- metrics

def top2(pred, yb): return (pred.topk(2).indices == yb[:, None]).any(1).float().mean()

@both
def test_training_metrics_are_those_of_the_mixture_weighted_by_items(Mixer):
    learn = learner(Mixer(), seen := Seen(Mixer.name), metrics=[accuracy, top2])
    learn.fit(1)
    total = sum((b['lam']*accuracy.per_item(b['pred'], b['y']) + (1 - b['lam'])*accuracy.per_item(
        b['pred'], b['y'][b['partner']])).sum() for b in seen.train)
    row = learn.history[-1]
    assert row['train_accuracy'] == pytest.approx(float(total)/36, rel=1e-6)   # batches of 8, 8, 8, 8 and 4
    assert 'train_top2' not in row and {'valid_top2', 'valid_accuracy', 'train_loss'} <= set(row)
    assert (row['train_loss'] == pytest.approx(float(sum(b['loss']*len(b['y']) for b in seen.train))/36,
                                               rel=1e-5))

def test_metrics_weigh_a_batch_by_its_items_whatever_the_loss_ignores():
    data = make_data(Dataset(images(30)[0], images(30)[1]), None, bs=8, seed=3)
    learn = learner(MixUp(), seen := Seen(), data=data, loss_func=CrossEntropy(ignore_index=1))
    learn.fit(1)
    value = lambda b: (b['lam']*accuracy.per_item(b['pred'], b['y'])
                       + (1 - b['lam'])*accuracy.per_item(b['pred'], b['y'][b['partner']])).mean()
    assert (learn.history[-1]['train_accuracy']
            == pytest.approx(float(sum(value(b)*len(b['y']) for b in seen.train))/30, rel=1e-5))

def test_with_the_callback_off_metrics_come_back():
    learn = learner(MixUp(), metrics=[accuracy, top2])
    learn.fit(1)
    learn.remove_cbs(learn.mixup)
    learn.fit(1)
    assert 'train_top2' in learn.history[-1]


# ---------------------------------------------------------------- the same numbers everywhere

@pytest.mark.slow
@ways
def test_any_number_of_workers_gives_the_same_weights(mixers):
    got = []
    for workers in (0, 1, 3):
        learn = learner(*mixers(), data=bunch(num_workers=workers))
        learn.fit(2)
        got.append(weights(learn))
    assert same(got[0], got[1]) and same(got[0], got[2])

def test_an_items_share_does_not_depend_on_its_batch():
    shares = []
    for bs in (4, 12):
        learn = learner(MixUp(), seen := Seen(), data=bunch(bs=bs))
        learn.fit(2)
        shares.append({(b['epoch'], i): l for b in seen.train for i, l in zip(b['items'], b['lam'].tolist())})
    assert shares[0] == shares[1] and len(shares[0]) == 72
    assert shares[0][0, 5] != shares[0][1, 5]

class Break(Callback):
    order = 5
    def __init__(self, at): self.at = at
    def after_backward(self):
        if self.n_iter == self.at: raise InterruptedError

@pytest.mark.slow
@ways
@pytest.mark.parametrize('at', [2, 5, 6, 7, 13])   # of 5 batches an epoch
def test_a_resumed_fit_ends_as_one_that_was_never_broken_off(mixers, at, tmp_path):
    whole = learner(*mixers(), metrics=[accuracy, top2])
    whole.fit_one_cycle(3)
    file = tmp_path/'fit.pth'
    with pytest.raises(InterruptedError):
        learner(*mixers(), metrics=[accuracy, top2]).fit_one_cycle(3,
                                                                   cbs=[Checkpoint(file, every=2), Break(at)])
    again = learner(*mixers(), metrics=[accuracy, top2])
    again.fit_one_cycle(3, cbs=Checkpoint(file, every=2), resume=file)
    assert same(weights(again), weights(whole))
    # sums of an epoch that are added in two parts round differently
    for row, other in zip(again.history, whole.history, strict=True):
        assert (row.keys() == other.keys()
                and all(row[k] == pytest.approx(other[k], rel=1e-6) for k in row if k != 'seconds'))

def test_a_fit_does_not_go_on_with_another_alpha_or_without(tmp_path):
    file = tmp_path/'fit.pth'
    learner(MixUp(0.4)).fit(1, cbs=Checkpoint(file))
    with pytest.raises(ValueError, match='MixUp'):
        learner(MixUp(1.)).fit(1, cbs=Checkpoint(file), resume=file)
    with pytest.raises(CheckpointError, match='mixup'):
        learner().fit(1, cbs=Checkpoint(file), resume=file)

def test_it_draws_nothing_from_the_global_generators():
    learn = learner(MixUp(), CutMix(), model=nn.Sequential(nn.Flatten(), nn.Linear(2*H*W, 4)))   # no dropout
    before = torch.get_rng_state()
    learn.fit(1)
    assert torch.equal(before, torch.get_rng_state())

def test_a_loader_of_pytorch_is_mixed_too():
    def fit():
        torch.manual_seed(5)
        data = [torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images(n)), 8, shuffle=n == 36)
                for n in (36, 20)]
        learn = learner(MixUp(1.), seen := Seen(), data=data)
        learn.fit(2)
        return learn, seen
    (a, seen), (b, _) = fit(), fit()
    assert same(weights(a), weights(b))
    first, sixth = seen.train[0]['lam'], seen.train[5]['lam']
    assert len(set(first.tolist())) == 8 and not torch.equal(first, sixth)


# ---------------------------------------------------------------- beside other callbacks

def untouched(learn, loss):
    return (learn.loss_func is loss and not {'get_loss', 'measure'} & set(vars(learn))
            and all(cb._y2 is None for cb in learn.cbs if isinstance(cb, (MixUp, CutMix))))

class Raise(Callback):
    order = 30
    def __init__(self, error, event):
        setattr(self, event, self.now)
        self.error = error
    def now(self):
        if self.n_iter >= 2: raise self.error

@ways
@pytest.mark.parametrize('error,event', [(ValueError('x'), 'after_pred'), (ValueError('x'), 'after_loss'),
                                         (KeyboardInterrupt(), 'before_backward'),
                                         (CancelBatchException(), 'after_pred'),
                                         (CancelFitException(), 'after_loss'), (None, 'after_step')], ids=str)
def test_what_it_installs_is_gone_after_the_fit(mixers, error, event):
    loss = CrossEntropy()
    learn = learner(*mixers(), *([] if error is None else [Raise(error, event)]), loss_func=loss)
    if isinstance(error, (ValueError, KeyboardInterrupt)):
        with pytest.raises(type(error)): learn.fit(2)
    else: learn.fit(2)
    assert untouched(learn, loss)

def test_an_error_within_the_loss_leaves_the_loss_function_in_place():
    def bad(pred, yb, reduction='mean'): raise ZeroDivisionError
    learn = learner(MixUp(), loss_func=bad, metrics=())
    with pytest.raises(ZeroDivisionError): learn.fit(1)
    assert untouched(learn, bad)

def test_a_callback_that_replaced_the_loss_before_is_still_asked():
    class Half(Callback):
        order = -70
        def before_fit(self):
            inner = self.run.get_loss
            self.run.get_loss = lambda: inner()/2
    halved, full = (learner(*extra, MixUp(), Recorder(), opt_func=torch.optim.SGD)
                    for extra in ([Half()], []))
    for learn in (halved, full):
        torch.manual_seed(1)
        learn.fit(1, lr=0.)   # the same dropout
    torch.testing.assert_close(torch.tensor(halved.recorder.losses)*2, torch.tensor(full.recorder.losses))

def test_one_that_replaces_the_loss_later_gets_the_mixtures():
    class After(Callback):
        def before_fit(self):
            inner, self.losses = self.run.get_loss, []
            def get_loss():
                self.losses.append(inner())
                return self.losses[-1]
            self.run.get_loss = get_loss
    learn = learner(MixUp(), after := After(), seen := Seen())
    learn.fit(1)
    for kept, b in zip(after.losses, seen.train): assert torch.equal(kept.detach(), b['loss'])

@ways
def test_lr_find_leaves_all_as_it_was(mixers):
    learn = learner(*mixers(), data=bunch(200))
    before = weights(learn)
    try: learn.lr_find(20, show=False)
    except ValueError as e: assert 'fall' in str(e) or 'loss' in str(e)   # on noise it may fall nowhere
    assert same(before, weights(learn)) and untouched(learn, learn.loss_func)

@ways
def test_it_works_with_everything_else_on(mixers, tmp_path):
    class Accumulate(Callback):
        def after_backward(self):
            if self.n_iter % 2 == 0: raise CancelStepException
    class Clip(Callback):
        def after_backward(self): nn.utils.clip_grad_norm_(self.model.parameters(), 1.)
    learn = learner(*mixers(), Accumulate(), Clip(), ActivationStats(), EarlyStopping(patience=5),
                    SaveBest(tmp_path/'best.pth', load_best=True),
                    loss_func=LabelSmoothing(0.1), splitter=lambda m: [m[:3], m[3:]])
    learn.freeze()
    learn.fit_one_cycle(2, cbs=Checkpoint(tmp_path/'fit.pth'))
    learn.unfreeze()
    learn.fit(1)
    assert all(torch.isfinite(v).all() for v in weights(learn).values()) and len(learn.history) == 1

@both
def test_a_bare_runner_is_enough(Mixer):
    stats = AvgStats(accuracy)
    Runner(bunch(), network(), cbs=[Mixer(), stats]).fit(2)
    assert len(stats.history) == 2 and 'train_accuracy' in stats.history[-1]

def test_half_precision_inputs_stay_in_theirs():
    x, y = images(16)
    learn = learner(MixUp(), seen := Seen(), data=make_data(Dataset(x.bfloat16(), y), None, bs=8),
                    model=network().bfloat16())
    learn.fit(1)
    assert seen.train[0]['x'].dtype == torch.bfloat16 and seen.train[0]['loss'].dtype == torch.float32


# ---------------------------------------------------------------- bad input

@both
def test_alpha_is_checked(Mixer):
    for alpha in (0, -1., float('nan'), float('inf')):
        with pytest.raises(ValueError, match='alpha'): Mixer(alpha)
    for alpha in ('1', None, True):
        with pytest.raises(TypeError, match='alpha'): Mixer(alpha)

@both
def test_a_loss_that_cannot_give_each_item_a_value_is_refused_before_training(Mixer):
    learn = learner(Mixer(), loss_func=lambda pred, yb: F.cross_entropy(pred, yb))
    before = weights(learn)
    with pytest.raises(ValueError, match='reduction'): learn.fit(1)
    assert same(before, weights(learn))
    with pytest.raises(ValueError, match='reduction'): learner(Mixer(), loss_func=CrossEntropy('none')).fit(1)

def test_mixup_of_whole_numbers_is_refused():
    x, y = torch.randint(0, 255, (16, 2, H, W), dtype=torch.uint8), images(16)[1]
    with pytest.raises(TypeError, match='torch.uint8'):
        learner(MixUp(), data=make_data(Dataset(x, y), None, bs=8)).fit(1)

def test_cutmix_of_masks_that_are_smaller_than_their_images_is_refused():
    x, _ = images(8)
    data = make_data(*[Dataset(x, torch.zeros(8, H//2, W//2, dtype=torch.long))]*2, bs=4)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.AdaptiveAvgPool2d((H//2, W//2)))
    learn = Learner(data, model, loss_func=CrossEntropy(), cbs=[Progress(False), CutMix()])
    with pytest.raises(ValueError, match='places'): learn.fit(1)

def test_a_tracker_of_a_metric_that_mixing_leaves_out_says_so():
    def own(pred, yb): return (pred.argmax(1) == yb).float().mean()
    with pytest.raises(KeyError, match='train_own'):
        learner(MixUp(), metrics=[own]).fit(2, cbs=EarlyStopping('train_own', mode='max'))

def test_cutmix_of_what_is_no_image_is_refused():
    x, y = torch.randn(16, 5), images(16)[1]
    with pytest.raises(ValueError, match='images'):
        learner(CutMix(), data=make_data(Dataset(x, y), None, bs=8), model=nn.Linear(5, 4)).fit(1)

@pytest.mark.parametrize('kind', ['points', 'boxes'])
def test_cutmix_of_points_and_boxes_is_refused(kind):
    data = bunch()
    data.kind = kind
    with pytest.raises(ValueError, match='come'): learner(CutMix(), data=data).fit(1)

@both
def test_without_targets_the_runner_says_so(Mixer):
    with pytest.raises(ValueError, match='targets'):
        learner(Mixer(), data=make_data(Dataset(images(16)[0]), None, bs=8), metrics=()).fit(1)

def test_representations():
    assert repr(MixUp()) == 'MixUp(0.4)' and repr(CutMix()) == 'CutMix(1.0)'

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@both
def test_on_a_gpu_nothing_waits_in_a_batch(Mixer):
    learn = learner(Mixer(), loss_func=LabelSmoothing(0.1))
    learn.fit(1)   # what is made once is made
    class NoWaiting(Callback):
        order = -70
        def before_batch(self): torch.cuda.set_sync_debug_mode('error' if self.in_train else 'default')
        def after_loss(self): torch.cuda.set_sync_debug_mode('default')
    try: learn.fit(1, cbs=NoWaiting())
    finally: torch.cuda.set_sync_debug_mode('default')
