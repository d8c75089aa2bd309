"""Masks are read from whatever holds a number for each pixel, move with their images, and train a U-Net; what
is measured equals a plain formula and torchmetrics; what cannot be is said with the file's name."""
import io
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from exp.augmentation import CenterResizedCrop, RandomResizedCrop
from exp.batch_transforms import RandomFlip, RandomRotate, RandomZoom, get_transforms
from exp.callbacks import Callback
from exp.checkpoints import Checkpoint
from exp.core import test_close as assert_close, test_eq as assert_eq
from exp.data_block import ImageList
from exp.image_cache import ImageError, verify_images
from exp.inference import load_learner, load_predictor
from exp.losses import CrossEntropy, item_losses, loss_weight
from exp.mixup import CutMix, LabelSmoothing, MixUp
from exp.segmentation import (ConfusionMetric, Dice, DiceLoss, FocalLoss, MaskList, MaskProcessor, MeanIoU,
                              STREET, PixelAccuracy, WeightedCrossEntropy, code_colours, code_number,
                              codes_of_colours, full_palette, image_of_codes, numbers_in, open_mask,
                              street_scene, write_streets)
from exp.specs import from_spec, to_spec
from exp.transfer import create_cnn
from exp.unet import create_unet
from exp.xresnet import XResNet

CODES = ['ground', 'red', 'blue']
COLOURS = [(0, 0, 0), (220, 40, 40), (40, 40, 220)]

def tiny_net(ni=3, c=10): return XResNet([1, 1], ni, c, widths=(8, 16), stem=(8,), stem_stride=2)

def scene(rng, h=40, w=50, n=3):
    "A picture with red and blue squares, and its mask with a border of void."
    a, m = rng.normal(90, 25, (h, w, 3)), np.zeros((h, w), np.uint8)
    for k in range(n):
        size, code = int(rng.randint(8, 16)), 1 + k % 2
        y, x = int(rng.randint(0, h - size)), int(rng.randint(0, w - size))
        a[y:y + size, x:x + size] = np.array(COLOURS[code]) + rng.normal(0, 25, (size, size, 3))
        m[y:y + size, x:x + size] = 255
        m[y + 1:y + size - 1, x + 1:x + size - 1] = code
    return a.clip(0, 255).astype(np.uint8), m

def save_mask(m, path, how='palette'):
    im = Image.fromarray(m)
    if how == 'palette': im.putpalette([v for c in (COLOURS + [(9, 9, 9)]*253)[:256] for v in c])
    if how == 'rgb': im = Image.fromarray(m).convert('RGB')
    im.save(path)

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Sixteen pictures with masks as PNG with a palette, and a file of codes."
    root, rng = tmp_path_factory.mktemp('squares'), np.random.RandomState(0)
    (root/'images').mkdir()
    (root/'masks').mkdir()
    for i in range(16):
        a, m = scene(rng)
        Image.fromarray(a).save(root/'images'/f'{i:02}.png')
        save_mask(m, root/'masks'/f'{i:02}.png')
    return root

def mask_of(p): return p.parents[1]/'masks'/f'{p.stem}.png'

MASKS = partial(MaskList, codes=CODES, void=255)

def split(folder, label=mask_of, cls=MASKS):
    return ImageList.from_folder(folder/'images').split_by_index(range(4)).label_from_func(label, cls)

def bunch(folder, tfms=None, size=(32, 40), bs=4, **how):
    return split(folder, **how).transform(tfms, size=size).databunch(bs=bs)

def learner(folder, data=None, **how):
    torch.manual_seed(0)
    data = bunch(folder) if data is None else data
    how = dict(pretrained=False, width=8, metrics=[MeanIoU(CODES)], path=folder, **how)
    return create_unet(data, tiny_net, **how)

# ---- what holds a mask

NUMBERS = np.array([[0, 1, 2], [2, 1, 0]])

@pytest.mark.parametrize('item', [
    NUMBERS.astype(np.uint8), NUMBERS, NUMBERS.astype(np.int16), NUMBERS.astype(np.float32),
    torch.tensor(NUMBERS),
    Image.fromarray(NUMBERS.astype(np.uint8)), Image.fromarray(NUMBERS.astype(np.int32)),
    Image.fromarray(NUMBERS.astype(np.uint8)).convert('RGB'),
    Image.fromarray(NUMBERS.astype(np.float32)),
    Image.fromarray(NUMBERS.astype(np.uint8)).convert('LA'), Image.fromarray(NUMBERS.astype(np.uint16))])
def test_numbers_come_through_from_every_holder(item):
    assert_eq(np.asarray(open_mask(item)).astype(int), NUMBERS)
    assert_eq(numbers_in(open_mask(item)), [0, 1, 2])
    opened = MaskList([item], codes=CODES).get(0)
    assert_eq(np.asarray(opened).astype(int), NUMBERS)

@pytest.mark.parametrize('how', ['palette', 'grey', 'rgb'])
def test_numbers_come_through_from_files_bytes_and_open_files(tmp_path, how):
    save_mask(NUMBERS.astype(np.uint8), tmp_path/'m.png', how)
    data = (tmp_path/'m.png').read_bytes()
    for item in (tmp_path/'m.png', 'm.png', data, io.BytesIO(data)):
        assert_eq(np.asarray(MaskList([item], tmp_path, codes=CODES).get(0)).astype(int), NUMBERS)

def test_yes_and_no_are_one_and_zero():
    yes = np.array([[True, False, True]])
    for item in (yes, torch.tensor(yes), Image.fromarray(yes)):
        assert_eq(np.asarray(open_mask(item)).astype(int), yes.astype(int))

@given(st.integers(2, 40), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_colours_become_their_places(n, seed):
    rng = np.random.RandomState(seed)
    colours = rng.permutation(2**24)[:n] if n < 5 else rng.choice(2**20, n, replace=False)
    colours = [(int(v) >> 16, int(v) >> 8 & 255, int(v) & 255) for v in colours]
    m = rng.randint(0, n, (5, 7))
    assert_eq(codes_of_colours(np.array(colours, np.uint8)[m], colours), m)

def test_a_mask_in_colours_needs_the_colours_of_its_codes(tmp_path):
    Image.fromarray(np.array(COLOURS, np.uint8)[NUMBERS]).save(tmp_path/'m.png')
    masks = MaskList(['m.png'], tmp_path, codes=CODES)
    with pytest.raises(ImageError, match=r'm\.png.*colour.*colours='): masks.get(0)
    masks = MaskList(['m.png'], tmp_path, codes=CODES, colours=COLOURS)
    assert_eq(np.asarray(masks.get(0)).astype(int), NUMBERS)
    masks = MaskList(['m.png'], tmp_path, codes=CODES, colours=[(1, 2, 3), *COLOURS[1:]])
    with pytest.raises(ImageError, match=r'\(0, 0, 0\)'): masks.get(0)

def test_black_and_white_masks_need_colours_and_say_so(tmp_path):
    m = np.array([[0, 255], [255, 0]], np.uint8)
    Image.fromarray(m).save(tmp_path/'m.png')
    with pytest.raises(ImageError, match=r'm\.png.*255.*colours=\[\(0, 0, 0\), \(255, 255, 255\)\]'):
        MaskList(['m.png'], tmp_path, codes=['no', 'yes']).get(0)
    for colours, right in ((((0,)*3, (255,)*3), m > 0), (((255,)*3, (0,)*3), m == 0)):
        masks = MaskList(['m.png', m.copy()//255], tmp_path, codes=['no', 'yes'], colours=colours)
        assert_eq(np.asarray(masks.get(0)).astype(int), right.astype(int))
        assert_eq(masks.get(1).mode, 'L')
    numbers = Image.fromarray(np.array([[0, 1]], np.uint8))   # colours for drawing only
    masks = MaskList([numbers], codes=['no', 'yes'], colours=[(0,)*3, (255,)*3])
    assert_eq(np.asarray(masks.get(0)).astype(int), np.array([[0, 1]]))

def test_a_palette_with_the_colours_of_the_codes_stands_for_them_in_any_order(tmp_path):
    rgb = Image.fromarray(np.array(COLOURS, np.uint8)[NUMBERS])
    for im in (rgb.quantize(), rgb.convert('P', palette=Image.Palette.ADAPTIVE)):
        im.save(tmp_path/'m.png')
        assert Image.open(tmp_path/'m.png').mode == 'P'
        masks = MaskList(['m.png'], tmp_path, codes=CODES, colours=COLOURS)
        assert_eq(np.asarray(masks.get(0)).astype(int), NUMBERS)
        assert_eq(masks.counts().tolist(), [2, 2, 2])
    save_mask(NUMBERS.astype(np.uint8), tmp_path/'m.png')   # other colours: its numbers are the codes
    masks = MaskList(['m.png'], tmp_path, codes=CODES, colours=[(1, 2, 3), *COLOURS[1:]])
    assert_eq(np.asarray(masks.get(0)).astype(int), NUMBERS)

@pytest.mark.parametrize('item', [NUMBERS + 0.5, np.zeros((2, 3, 3), int), np.zeros(4, int)])
def test_an_array_that_is_no_mask_is_refused(item):
    with pytest.raises(ValueError, match='mask'): image_of_codes(item)

def test_numbers_below_zero_and_above_a_byte_stay_as_they_are(folder):
    m = np.array([[-1, 0, 300], [1, 2, -1]])
    assert_eq(np.asarray(image_of_codes(m)), m)
    masks = MaskList([m], codes=list(map(str, range(301))), void=-1)
    assert_eq(np.asarray(masks.get(0)), m)

# ---- codes, void

def test_a_number_that_is_no_code_is_named_with_its_file_and_remedy(folder):
    with pytest.raises(ImageError, match=r'00\.png.*255.*0 to 2.*void'):
        bunch(folder, cls=partial(MaskList, codes=CODES)).train_ds.y.open(folder/'masks'/'00.png')
    data = bunch(folder, cls=partial(MaskList, codes=CODES))
    with pytest.raises(ImageError, match='255'): data.one_batch()
    found = verify_images(MaskList([folder/'masks'/'00.png'], codes=CODES))
    assert len(found) == 1 and '255' in found[0][1]

def test_void_is_a_name_or_a_number():
    assert_eq(MaskProcessor(CODES, 'blue').void, 2)
    assert_eq(MaskProcessor(CODES, 255).void, 255)
    assert_eq(MaskProcessor(CODES).void, None)
    assert_eq(MaskProcessor(np.array(CODES), np.int64(1)).classes, CODES)
    assert_eq((code_number(CODES, 'red'), code_number(CODES, np.int64(2))), (1, 2))
    with pytest.raises(ValueError, match='green'): MaskProcessor(CODES, 'green')
    with pytest.raises(ValueError, match='colours'): MaskProcessor(CODES, colours=COLOURS[:2])

def test_masks_without_codes_are_refused_and_can_be_counted(folder):
    with pytest.raises(ValueError, match='codes'): split(folder, cls=MaskList)
    files = sorted((folder/'masks').iterdir())
    found = MaskList(files).counts()
    assert_eq(sorted(found.index), [0, 1, 2, 255])
    assert_eq(int(found.sum()), 16*40*50)
    named = MaskList(files, codes=CODES, void=255).counts()
    assert_eq(named.tolist(), [found[i] for i in range(3)])

def test_codes_may_be_given_as_classes(folder):
    items = ImageList.from_folder(folder/'images').split_none()
    data = items.label_from_func(mask_of, MaskList, classes=CODES, other=255)
    assert_eq((data.classes, data.c, data.train.y.codes.void), (CODES, 3, 255))

def test_missing_masks_are_named_when_they_are_listed(folder):
    with pytest.raises(FileNotFoundError, match='no_04.*function'):
        split(folder, lambda p: mask_of(p).with_name(f'no_{p.name}'))

def test_a_mask_of_another_shape_than_its_image_is_refused_and_a_smaller_one_is_not(folder):
    small = lambda p: np.asarray(Image.open(mask_of(p)))[::2, ::2]
    assert_eq(tuple(bunch(folder, label=small).one_batch()[1].shape), (4, 32, 40))
    turned = lambda p: np.asarray(Image.open(mask_of(p))).T
    with pytest.raises(ValueError, match='40×50.*50×40'): bunch(folder, label=turned).one_batch()

# ---- in step with the image

def shade(a):
    "A picture whose colours tell its codes, with the mask."
    return np.array(COLOURS, np.uint8)[a]

def agrees(x, y, tolerance=0.):
    "The share of pixels whose colour and code do not agree."
    colours = torch.tensor(COLOURS)/255
    nearest = (x.movedim(1, -1)[..., None, :] - colours).square().sum(-1).argmin(-1)
    return ((nearest != y) & (y != 255)).float().mean() <= tolerance

@pytest.mark.parametrize('tfms,tolerance', [
    (None, 0), ([RandomFlip()], 0), ([RandomFlip(vertical=True)], 0), ([RandomRotate(30)], 0.03),
    ([RandomZoom(1.5)], 0.03), ([RandomResizedCrop((32, 40), scale=(0.3, 1))], 0.03),
    ([CenterResizedCrop((32, 40))], 0), (get_transforms(max_lighting=0), 0.03)])
def test_masks_move_with_their_images(tfms, tolerance):
    rng = np.random.RandomState(0)
    masks = [np.kron(rng.randint(0, 3, (4, 5)), np.ones((8, 8), int)).astype(np.uint8) for _ in range(8)]
    data = (ImageList([shade(m) for m in masks]).split_none()
            .label_from_func(unshade, MASKS)
            .transform(tfms, size=(32, 40)).databunch(bs=8))
    xb, yb = data.one_batch()
    assert yb.dtype == torch.int64 and yb.shape == (8, 32, 40) and set(yb.unique().tolist()) <= {0, 1, 2}
    assert agrees(xb, yb, tolerance)

def unshade(a): return codes_of_colours(a, COLOURS).astype(np.uint8)

def test_resizing_a_mask_makes_no_new_numbers(folder):
    for size in ((17, 23), (64, 80)):
        assert set(bunch(folder, size=size).one_batch()[1].unique().tolist()) <= {0, 1, 2, 255}

@pytest.mark.parametrize('how', [dict(cache=True), dict(num_workers=1)], ids=str)
def test_a_cache_and_workers_change_nothing(folder, how):
    cache = how.pop('cache', False)
    def loaded(cache=False, **how):
        data = split(folder).transform(get_transforms(), size=(32, 40), cache=cache)
        return [y for _, y in data.databunch(bs=4, seed=3, **how).train_dl]
    assert_eq(loaded(), loaded(cache, **how))

# ---- metrics

def random_case(seed, c=4, n=3, size=(5, 6), void=None):
    g = torch.Generator().manual_seed(seed)
    pred, y = torch.randn(n, c, *size, generator=g), torch.randint(c, (n, *size), generator=g)
    if seed % 3 == 0: y[y == 1] = 2   # a class that never occurs
    if void is not None: y[torch.rand(y.shape, generator=g) < 0.2] = void
    return pred, y

def by_hand(pred, y, c, void, how):
    "Each class's value by sets of pixels."
    said, y, values = pred.argmax(1).numpy(), y.numpy(), []
    keep = y != void if void is not None else y == y
    for i in range(c):
        if i == void: continue
        t, s = (y == i) & keep, (said == i) & keep
        both = (t & s).sum()
        top, bottom = {'iou': (both, (t | s).sum()), 'dice': (2*both, t.sum() + s.sum())}[how]
        if bottom: values.append(top/bottom)
    return np.mean(values)

@pytest.mark.parametrize('void', [None, 255, 2])
@pytest.mark.parametrize('seed', range(6))
def test_iou_and_dice_equal_a_plain_formula_over_batches(seed, void):
    pred, y = random_case(seed, void=void)
    for cls, how in ((MeanIoU, 'iou'), (Dice, 'dice')):
        metric = cls(4, void)
        for i in range(3): metric.update(pred[i:i + 1], y[i:i + 1])
        assert_close(metric.compute(), by_hand(pred, y, 4, void, how), 1e-12)

@pytest.mark.parametrize('void', [None, 255, 2])
@pytest.mark.parametrize('seed', range(6))
def test_metrics_equal_torchmetrics(seed, void):
    tm = pytest.importorskip('torchmetrics.classification')
    pred, y = random_case(seed, void=void)
    own = {}
    for cls in (MeanIoU, Dice, PixelAccuracy):
        own[cls] = cls(4, void)
        own[cls].update(pred, y)
    iou = tm.MulticlassJaccardIndex(4, ignore_index=void)(pred, y)
    assert_close(own[MeanIoU].compute(), iou.item(), 1e-6)
    accuracy = tm.MulticlassAccuracy(4, average='micro', ignore_index=void)(pred, y)
    assert_close(own[PixelAccuracy].compute(), accuracy.item(), 1e-6)
    if void != 2:
        f1 = tm.MulticlassF1Score(4, average='macro', ignore_index=void)(pred, y)
        assert_close(own[Dice].compute(), f1.item(), 1e-6)

def test_values_by_class_have_names_and_nan_where_nothing_was():
    metric = MeanIoU(CODES, void='ground')
    pred = F.one_hot(torch.tensor([[[1, 1, 0]]]), 3).movedim(-1, 1).float()
    metric.update(pred, torch.tensor([[[1, 0, 1]]]))
    found = metric.per_class()
    assert_eq(list(found.index), ['red', 'blue'])
    assert found['red'] == 0.5 and np.isnan(found['blue']) and metric.compute() == 0.5
    assert_eq((MeanIoU(2).name, Dice(2).name, PixelAccuracy(2).name), ('mean_iou', 'dice', 'pixel_accuracy'))

def test_several_codes_may_be_left_out():
    pred, y = random_case(1, c=3)
    metric = PixelAccuracy(CODES, void=('ground', 'blue'))
    metric.update(pred, y)
    assert_close(metric.compute(), ((pred.argmax(1) == y) & (y == 1)).sum()/(y == 1).sum(), 1e-7)

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_targets_of_any_whole_numbers_count_the_same(dtype):
    pred, y = random_case(1, c=40)
    for cls in (MeanIoU, Dice, PixelAccuracy):
        found, right = cls(np.int64(40), np.int64(3)), cls(40, 3)
        found.update(pred, y.to(dtype))
        right.update(pred, y)
        assert_eq(found.counts, right.counts)
        assert_eq(float(found.compute()), float(right.compute()))

def test_a_metric_counts_over_ranks_and_types():
    pred, y = random_case(2)
    whole, parts = MeanIoU(4), [MeanIoU(4), MeanIoU(4)]
    whole.update(pred, y)
    parts[0].update(pred[:1].bfloat16().float(), y[:1].to(torch.uint8).long())
    parts[1].update(pred[1:].double(), y[1:].int())
    parts[0].add(counts=parts[1].counts)   # as `Distributed` adds states that are declared 'sum'
    assert_close(parts[0].counts.sum(), whole.counts.sum())
    assert isinstance(whole, ConfusionMetric) and whole._how == {'counts': 'sum'}

@pytest.mark.parametrize('pred,y', [((2, 3, 4, 4), (2, 4, 4)), ((2, 4, 4, 4), (2, 4, 5)),
                                    ((2, 4), (2, 4, 4)), ((4, 4, 5, 5), (1, 5, 5))])
def test_a_metric_refuses_other_shapes(pred, y):
    pred, y = torch.zeros(pred), torch.zeros(y).long()
    with pytest.raises(ValueError, match='4 codes'): MeanIoU(4).update(pred, y)

# ---- losses

@pytest.mark.parametrize('reduction', ['mean', 'sum'])
@pytest.mark.parametrize('void', [None, 255, 2])
@pytest.mark.parametrize('weight', [None, [0.1, 0.02, 2., 1.]])
@pytest.mark.parametrize('seed', [0, 1])
def test_weighted_cross_entropy_is_pytorchs(reduction, void, weight, seed):
    pred, y = random_case(seed, void=void)
    theirs = nn.CrossEntropyLoss(None if weight is None else torch.tensor(weight), reduction=reduction,
                                 ignore_index=-100 if void is None else void)
    for p, t in ((pred, y), (pred[:1, :, :1, :1], torch.tensor([[[1]]]))):
        own = WeightedCrossEntropy(weight, reduction, void)
        assert_close(own(p, t), theirs(p, t), 1e-5)
    focal = FocalLoss(0., weight, reduction, void)
    assert_close(focal(pred, y), theirs(pred, y), 1e-5)

def test_a_batchs_mean_is_weighed_by_what_counts():
    pred, y = random_case(1, void=255)
    loss = WeightedCrossEntropy([0.1, 1., 2., 3.], ignore_index=255)
    parts = [(loss(pred[i:i + 1], y[i:i + 1]), loss_weight(loss, y[i:i + 1])) for i in range(3)]
    assert_close(sum(v*w for v, w in parts)/sum(w for _, w in parts), loss(pred, y), 1e-5)

def test_focal_loss_is_its_formula_and_forgives_what_is_right():
    pred, y = random_case(1)
    p = pred.softmax(1).gather(1, y[:, None])[:, 0]
    assert_close(FocalLoss(2.)(pred, y), (-(1 - p)**2*p.log()).mean(), 1e-5)
    sure = F.one_hot(y, 4).movedim(-1, 1)*5.
    assert FocalLoss(2.)(sure, y) < CrossEntropy()(sure, y)/100

def test_focal_loss_has_slopes_where_the_network_is_sure():
    for gamma in (0.5, 1., 2.):
        pred = torch.tensor([[40., 0.], [200., 0.]], requires_grad=True)
        FocalLoss(gamma)(pred, torch.tensor([0, 0])).backward()
        assert bool(pred.grad.isfinite().all())

@pytest.mark.parametrize('loss', [FocalLoss(), DiceLoss(), WeightedCrossEntropy([1., 2., 3.])], ids=str)
def test_scores_in_half_precision_cost_what_they_cost_in_full(loss):
    pred, y = (torch.randn(2, 3, 64, 64)*10).half(), torch.randint(3, (2, 64, 64))
    assert_close(loss(pred, y).float(), loss(pred.float(), y), 1e-4)

def test_losses_refuse_other_shapes_and_other_numbers_of_weights():
    pred, y = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    for loss in (WeightedCrossEntropy([1.]*9), FocalLoss(2., [1.]*9)):
        with pytest.raises(ValueError, match='9 weights for 3 classes'): loss(pred, y)
    with pytest.raises(ValueError, match='DiceLoss'): DiceLoss()(pred, y[:, :2])

@pytest.mark.parametrize('void', [None, 255])
def test_dice_loss_is_its_formula(void):
    pred, y = random_case(0, void=void)
    loss, right = DiceLoss('none', void), []
    for p, t in zip(pred.softmax(1), y):
        values = []
        for i in t[t != (-1 if void is None else void)].unique():
            counts, mine = t != (-1 if void is None else void), (t == i).float()
            both = (p[i]*mine*counts).sum()
            values.append(1 - 2*both/((p[i]*counts).sum() + mine.sum()))
        right.append(torch.stack(values).mean())
    assert_close(loss(pred, y), torch.stack(right), 1e-5)
    assert_close(DiceLoss('mean', void)(pred, y), torch.stack(right).mean(), 1e-5)
    assert_close(item_losses(DiceLoss(ignore_index=void), pred, y), torch.stack(right), 1e-5)
    assert_eq(loss_weight(loss, y), 3)

def test_perfect_dice_is_zero_and_nothing_that_counts_costs_nothing():
    y = torch.randint(3, (2, 6, 6))
    assert DiceLoss()(F.one_hot(y, 3).movedim(-1, 1)*50., y) < 1e-6
    nothing = torch.full((2, 4, 4), 255)
    assert_eq(DiceLoss(ignore_index=255)(torch.randn(2, 3, 4, 4), nothing), torch.tensor(0.))

@pytest.mark.parametrize('loss', [WeightedCrossEntropy([1., 2., 3.], ignore_index=255), FocalLoss(1.5),
                                  DiceLoss(ignore_index=255)], ids=lambda v: type(v).__name__)
def test_a_loss_can_be_written_down(loss):
    again = from_spec(to_spec(loss))
    assert_eq(repr(again), repr(loss))
    pred, y = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    assert_eq(again(pred, y), loss(pred, y))
    assert_close(loss.activation(pred), pred.softmax(1), 1e-6)
    assert_eq(loss.decode(pred), pred.argmax(1))

def test_weights_are_not_negative():
    with pytest.raises(ValueError, match='weight'): WeightedCrossEntropy([1, -1])
    with pytest.raises(ValueError, match='gamma'): FocalLoss(-1)

# ---- a learner, from files to files

@pytest.fixture(scope='module')
def trained(folder):
    learn = learner(folder)
    with learn.quiet(): learn.fit_one_cycle(6, 1e-2)
    return learn

def test_a_learner_learns_and_its_metric_is_that_of_its_predictions(trained):
    found = trained.validate()
    probs, targets = trained.get_preds()
    assert_close(found['mean_iou'], by_hand(probs, targets, 3, 255, 'iou'), 1e-6)
    assert found['mean_iou'] > 0.6
    right = (probs.argmax(1) == targets)[targets != 255].float().mean()
    metric = PixelAccuracy(CODES)
    metric.update(probs, targets)
    assert_close(metric.compute(), right, 1e-6)

def test_prediction_is_an_image_of_codes_that_can_be_saved(trained, folder, tmp_path):
    label, target, probs = trained.predict(folder/'images'/'00.png')
    assert label.mode == 'P' and label.size == (40, 32)
    assert_eq(torch.tensor(np.array(label)).long(), target)
    assert_close(probs.sum(0), torch.ones(32, 40), 1e-5)
    label.save(tmp_path/'answer.png')
    assert_eq(np.asarray(open_mask(tmp_path/'answer.png')), np.asarray(label))

def test_a_decoded_mask_keeps_its_void_in_a_file(tmp_path):
    "PNG with few colours has few bits; what lies above would be cut off."
    y = torch.tensor([[0, 1, 255], [2, 255, 0]])
    MaskList([], codes=CODES, void=255).decode(y).save(tmp_path/'m.png')
    assert_eq(np.asarray(open_mask(tmp_path/'m.png')).astype(int), y.numpy())

@given(st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_streets_have_every_kind_of_light_and_their_masks_hold_codes(seed):
    image, mask = street_scene(np.random.RandomState(seed), (48, 64))
    assert image.size == (64, 48) and image.mode == 'RGB' and mask.shape == (48, 64)
    assert set(np.unique(mask)) <= {*range(len(STREET)), 255} and {0, 1} <= set(np.unique(mask))
    again = street_scene(np.random.RandomState(seed), (48, 64))
    assert_eq((np.array(again[0]), again[1]), (np.array(image), mask))

def test_streets_are_written_as_two_folders_with_codes_and_a_list(tmp_path):
    path = write_streets(tmp_path/'streets', n=6, valid=2, size=(24, 32))
    codes = (path/'codes.txt').read_text().split()
    assert_eq(codes, STREET)
    items = ImageList.from_folder(path/'images').split_by_files(path/'valid.txt')
    data = items.label_from_func(mask_of, partial(MaskList, codes=codes, void=255)).transform(size=None)
    assert_eq((len(data.train), len(data.valid)), (4, 2))
    xb, yb = data.databunch(bs=4).one_batch()
    assert_eq((tuple(xb.shape), tuple(yb.shape)), ((4, 3, 24, 32), (4, 24, 32)))
    assert int(yb.max()) == 255

def test_an_exported_learner_and_a_predictor_say_the_same(trained, folder, tmp_path):
    item = folder/'images'/'01.png'
    right = trained.predict(item)
    file = trained.export(tmp_path/'squares.pth')
    for other in (load_learner(file), load_predictor(file), trained.predictor()):
        assert_eq(other.predict(item).target, right.target)
        assert_eq(np.asarray(other.predict(item).label), np.asarray(right.label))
    again = load_learner(file)
    assert_eq(again.data.classes, CODES)
    assert_eq(again.loss_func.ignore_index, 255)
    again.data = bunch(folder)
    with again.quiet(): again.fit(1, 1e-4)

def test_pictures_of_batches_results_and_losses_have_a_legend(trained):
    import matplotlib.pyplot as plt
    trained.data.show_batch(4)
    trained.show_results(3)
    trained.plot_top_losses(2)
    for figure in map(plt.figure, plt.get_fignums()[-3:]):
        assert_eq([t.get_text() for t in figure.legends[0].get_texts()], CODES)
    plt.close('all')

def test_void_among_the_codes_has_no_place_in_the_legend():
    import matplotlib.pyplot as plt
    fig = plt.figure()
    MaskList([], codes=CODES, void='blue').legend(fig)
    assert_eq([t.get_text() for t in fig.legends[0].get_texts()], CODES[:2])
    plt.close(fig)

def test_void_stays_clear_in_a_picture():
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots()
    MaskList([], codes=CODES, void=255, colours=COLOURS).show(torch.tensor([[0, 1], [255, 2]]), ax)
    drawn = np.asarray(ax.images[0].get_array())
    assert_eq(drawn[..., 3] > 0, np.array([[True, True], [False, True]]))
    assert_close(drawn[0, 1, :3]*255, np.array(COLOURS[1], float), 1e-6)
    plt.close(fig)

@pytest.mark.parametrize('n', [1, 3, 11, 20, 32, 150])
def test_codes_have_colours_of_their_own(n):
    colours = code_colours(n)
    assert len(colours) == n and len(set(colours)) == n
    assert len(full_palette(colours)) == 3*256

def test_words_for_a_mask_name_its_largest_classes():
    masks = MaskList([], codes=CODES, void=255)
    assert_eq(masks.text(torch.tensor([[0, 0, 0, 1], [255, 255, 255, 255]])), 'ground 75 %, red 25 %')
    assert_eq(masks.text(torch.full((2, 2), 255)), '')

def test_top_losses_are_the_largest_and_say_shares(trained):
    table = trained.top_losses(3)
    probs, targets = trained.get_preds(act=False)
    right = item_losses(trained.loss_func, probs, targets).sort(descending=True).values[:3]
    assert_close(torch.tensor(table['loss'].tolist()), right, 1e-5)
    assert 'ground' in table['truth'][0] and table['file'][0].endswith('.png')

def test_a_confusion_matrix_counts_pixels_that_count(trained):
    table, targets = trained.confusion_matrix(), trained.get_preds()[1]
    assert_eq(int(table.values.sum()), int((targets != 255).sum()))
    assert_eq(list(table.index), CODES)

def test_tta_is_the_mean_over_the_image_and_its_mirror_mirrored_back(trained):
    probs, targets = trained.tta()
    data = trained.data
    x = torch.cat([data.transform_batch(*b, train=False, items=b.items)[0] for b in data.valid_dl])
    trained.model.eval()
    with torch.no_grad():
        right = (trained.model(x).softmax(1) + trained.model(x.flip(-1)).softmax(1).flip(-1))/2
    assert_close(probs, right, 1e-5)
    assert_eq(targets, trained.get_preds()[1])
    assert trained.data is data and len(data.batch_tfms[1]) == 1
    assert_eq(tuple(trained.tta('train', act=False)[0].shape), (12, 3, 32, 40))

@pytest.mark.parametrize('cb', [MixUp, CutMix])
@pytest.mark.parametrize('loss', [None, LabelSmoothing(ignore_index=255), FocalLoss(ignore_index=255),
                                  WeightedCrossEntropy([1, 2, 3], ignore_index=255),
                                  DiceLoss(ignore_index=255)], ids=lambda v: type(v).__name__)
def test_masks_can_be_mixed_and_smoothed(folder, cb, loss):
    learn = learner(folder, loss_func=loss)
    with learn.quiet(): learn.fit(1, 1e-3, cbs=cb())
    assert all(bool(p.isfinite().all()) for p in learn.model.parameters())

class Broken(Exception): pass

class BreakOff(Callback):
    order = 10**6   # after the checkpoint
    def after_batch(self):
        if self.in_train and self.n_iter == 4: raise Broken

def test_a_broken_off_fit_resumes_to_the_same_weights(folder, tmp_path):
    def fit(cbs, resume=None):
        learn = learner(folder, bunch(folder, get_transforms()))
        with learn.quiet(): learn.fit_one_cycle(2, 1e-2, cbs=cbs, resume=resume)
        return learn
    file = tmp_path/'fit.pth'
    with pytest.raises(Broken): fit([Checkpoint(file, every=1), BreakOff()])
    for a, b in zip(fit([]).model.parameters(), fit([], file).model.parameters()): assert_eq(a, b)

def test_half_size_then_full_size_goes_on_from_the_same_weights(folder, trained):
    learn = learner(folder)
    learn.model.load_state_dict(trained.model.state_dict())
    learn.data = bunch(folder, size=(39, 50), bs=3)
    assert learn.validate()['mean_iou'] > 0.5
    with learn.quiet(): learn.fit(1, 1e-4)
    assert_eq(tuple(learn.get_preds()[0].shape[2:]), (39, 50))

def test_a_classifier_of_masks_is_refused_by_its_loss(folder):
    learn = create_cnn(bunch(folder), tiny_net, pretrained=False)
    with pytest.raises(ValueError, match='shape'), learn.quiet(): learn.fit(1)

def test_items_of_a_table_and_masks_in_its_columns(folder, tmp_path):
    names = sorted(p.name for p in (folder/'images').iterdir())
    df = pd.DataFrame({'image': names, 'mask': names, 'is_valid': [i < 4 for i in range(16)]})
    items = ImageList.from_df(df, folder, folder='images').split_by_col()
    data = items.label_from_func(mask_of, MASKS).transform(size=(32, 40)).databunch(bs=4)
    assert_eq((len(data.train_ds), len(data.valid_ds)), (12, 4))

def test_pixels_for_which_the_network_says_nan_are_wrong():
    pred, yb = torch.zeros(1, 2, 2, 3), torch.tensor([[[0, 1, 0], [0, 0, 1]]])
    pred[:, 0], pred[:, 1] = 1., torch.nan
    for metric in MeanIoU(2), Dice(2):
        metric.update(pred, yb)
        assert metric.compute() == 0

@pytest.mark.parametrize('ending', ['png', 'jpg'])
def test_a_mask_with_a_note_of_its_turn_lies_on_its_image(tmp_path, ending):
    codes = np.zeros((4, 6), np.uint8)
    codes[0] = 1
    im = Image.fromarray(codes*255)
    exif = im.getexif()
    exif[0x0112] = 6   # a quarter turn to the right when it is shown
    im.save(tmp_path/f'mask.{ending}', exif=exif, **({'quality': 100} if ending == 'jpg' else {}))
    seen = np.asarray(open_mask(tmp_path/f'mask.{ending}'))
    assert_eq((seen > 128).astype(int), np.rot90(codes, -1).astype(int))
