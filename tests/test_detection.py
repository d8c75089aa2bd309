"""Detectors say of every anchor, or cell, what it should; their losses count each picture once; candidates
become detections in the user's pixels, and what is exported answers the same."""
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import nn

from exp.batch_transforms import RandomFlip
from exp.box_files import BoxList, read_boxes
from exp.boxes import AveragePrecision, box_iou, encode_boxes, make_anchors, nms
from exp.core import set_seed, test_close as assert_close, test_eq as assert_eq
from exp.data_block import ImageList
from exp.detection import (RATIOS, SSD, CornerError, DetectionLoss, SSDHeads, SSDLoss, SSDTop, TinySSD,
                           TinyYOLO, YOLOLoss, anchor_sizes, anchor_targets, anchors_for, create_ssd,
                           detections, find_duplicates, flat_maps, halving, hardest, pick_best, picture_hash,
                           ssd_loss)
from exp.inference import load_learner, load_predictor
from exp.learner import Learner
from exp.losses import item_losses, loss_parts
from exp.mixup import MixUp
from exp.specs import from_spec, to_spec
from exp.xresnet import XResNet

def body(ni=3, c=10): return XResNet([1, 1, 1], ni, c, widths=(8, 16, 24), stem=(8,))

def random_boxes(g, *shape):
    a, b = (torch.rand(*shape, 2, generator=g)*2 - 1 for _ in 'ab')
    return torch.cat([torch.minimum(a, b) - 0.05, torch.maximum(a, b) + 0.05], -1).clamp(-1, 1)

def truths(g, n=3, m=4, c=2, least=0):
    "Boxes and labels of n pictures with `least` to m things."
    boxes, labels = random_boxes(g, n, m), torch.randint(c, (n, m), generator=g)
    there = torch.arange(m) < torch.randint(least, m + 1, (n, 1), generator=g)
    return boxes*there[..., None], labels.masked_fill(~there, -1)

def made(g, n=3, c=2, side=4):
    "What an SSD might say: anchors in 0…1, scores, offsets."
    anchors = anchors_for(((side, side), (2, 2)), anchor_sizes(2), RATIOS)
    a = anchors.shape[1]
    return anchors, torch.randn(n, a, c + 1, generator=g), torch.randn(n, 4*a, generator=g)

seeds = st.integers(0, 2**31)
def generator(seed): return torch.Generator().manual_seed(seed)

# ---- anchors and maps

def test_the_sizes_of_five_maps_are_those_of_d2l():
    assert_eq(anchor_sizes(5), ((0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)))
    assert_eq(anchor_sizes(1, 0.2, 0.45), ((0.2, 0.3),))

def test_anchors_of_several_maps_follow_each_other():
    sizes = anchor_sizes(2)
    both = anchors_for(((4, 6), (2, 3)), sizes, RATIOS)
    assert_eq(both, torch.cat([make_anchors((4, 6), sizes[0], RATIOS),
                               make_anchors((2, 3), sizes[1], RATIOS)])[None])
    with pytest.raises(ValueError): anchors_for(((4, 6),), sizes, RATIOS)

def test_flat_maps_keep_the_numbers_of_a_cell_together():
    maps = [torch.randn(2, 6, 3, 4), torch.randn(2, 6, 1, 2)]
    flat = flat_maps(maps).view(2, -1, 6)
    assert_eq(flat[1, 4*2 + 1], maps[0][1, :, 2, 1])
    assert_eq(flat[0, 12 + 1], maps[1][0, :, 0, 1])

@pytest.mark.parametrize('size,n', [((256, 256), 5444), ((128, 128), 1364), ((96, 160), None)])
def test_tiny_ssd_has_d2l_s_shapes(size, n):
    anchors, scores, offsets = TinySSD(1)(torch.zeros(2, 3, *size))
    a = anchors.shape[1]
    assert n in (a, None)
    assert_eq([tuple(t.shape) for t in (anchors, scores, offsets)], [(1, a, 4), (2, a, 2), (2, 4*a)])

def test_d2l_s_shapes_in_a_batch_of_32():
    heads = TinySSD(1).head
    maps = [torch.zeros(32, nf, s, s) for nf, s in zip((64, 128, 128, 128, 128), (32, 16, 8, 4, 1))]
    assert_eq([tuple(t.shape) for t in heads(maps)], [(1, 5444, 4), (32, 5444, 2), (32, 21776)])

def test_a_score_belongs_to_the_anchor_at_its_place():
    heads = SSDHeads((1,), 1, ((0.2, 0.3),), (1., 2., 0.5))
    for layer in (*heads.classes, *heads.boxes):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    heads.classes[0].weight.data[2*2 + 1, 0, 1, 1] = 1.   # of the third anchor, its class 1: the map itself
    m = torch.zeros(1, 1, 4, 4)
    m[0, 0, 1, 2] = 5.
    anchors, scores, _ = heads([m])
    best = scores[0, :, 1].argmax()
    assert_close(((anchors[0, best, :2] + anchors[0, best, 2:])/2), torch.tensor([2.5/4, 1.5/4]), 1e-6)
    assert_eq(best.item() % 4, 2)

def test_halving_halves():
    assert_eq(halving(3, 5)(torch.zeros(2, 3, 8, 12)).shape, (2, 5, 4, 6))

# ---- what anchors should say

@settings(deadline=None, max_examples=30)
@given(seeds)
def test_targets_are_the_class_and_box_of_the_assigned_truth(seed):
    g = generator(seed)
    anchors, yb = random_boxes(g, 1, 30), truths(g)
    classes, boxes = anchor_targets(anchors, yb)
    iou = box_iou(anchors, yb[0])*(yb[1] >= 0)[:, None]
    for i in range(3):
        for a in range(30):
            if classes[i, a]:
                j = (yb[0][i] == boxes[i, a]).all(-1).nonzero()[0, 0]
                assert yb[1][i, j] + 1 == classes[i, a]
                # by its overlap, or as the truth's own
                assert iou[i, a, j] >= 0.5 or iou[i, a, j] > 0
            else: assert iou[i, a].max() < 0.5 and not boxes[i, a].any()
        assert len(boxes[i][classes[i] > 0].unique(dim=0)) <= (yb[1][i] >= 0).sum()

@pytest.mark.parametrize('m', [0, 1, 3])
def test_pictures_without_things_are_all_background(m):
    yb = torch.zeros(2, m, 4), torch.full((2, m), -1)
    pred = made(generator(0), 2)
    classes, _ = anchor_targets(pred[0]*2 - 1, yb)
    assert not classes.any()
    for loss in (SSDLoss(), SSDLoss(neg='focal'), SSDLoss(neg='all')):
        classes, offsets = loss.parts(pred, yb)
        assert (classes > 0).all() and not offsets.any()
    assert YOLOLoss()(torch.randn(2, 7, 3, 3), yb).isfinite()

def test_crowds_are_no_truths():
    g = generator(1)
    boxes, labels = truths(g, least=2)
    crowd = labels.clone()
    crowd[:, 1] = -2 - crowd[:, 1]
    gone = labels.clone()
    gone[:, 1] = -1
    for loss, pred in ((SSDLoss(), made(g)), (YOLOLoss(), torch.randn(3, 7, 3, 3, generator=g))):
        assert_close(loss(pred, (boxes, crowd)), loss(pred, (boxes, gone)), 1e-5)

# ---- SSD's loss

def test_hard_negatives_are_the_costliest_without_a_truth():
    costs = torch.tensor([[5., 1, 4, 3, 2, 9], [1, 2, 3, 4, 5, 6]])
    there = torch.tensor([[True, False, False, False, False, False], [False]*6])
    assert_eq(hardest(costs, there, 2), torch.tensor([[False, False, True, False, False, True],
                                                      [False, False, False, False, True, True]]))

def by_hand(pred, yb, neg, ratio=3, gamma=2.):
    "The loss of each picture, anchor by anchor."
    anchors, scores, offsets = pred
    anchors = anchors*2 - 1
    classes, boxes = anchor_targets(anchors, yb)
    costs = []
    for i in range(len(scores)):
        p = scores[i].softmax(-1)
        each = [-p[a, classes[i, a]].log() for a in range(len(p))]
        there = [a for a in range(len(p)) if classes[i, a]]
        others = sorted((each[a] for a in range(len(p)) if not classes[i, a]), reverse=True)
        if neg == 'hard': c = sum(each[a] for a in there) + sum(others[:ratio*max(1, len(there))])
        elif neg == 'focal': c = sum((1 - (-e).exp())**gamma*e for e in each)
        else: c = sum(each)
        b = torch.zeros(())
        for a in there:
            d = (offsets[i].view(-1, 4)[a] - encode_boxes(anchors[0, a], boxes[i, a])).abs()
            b = b + torch.where(d < 1, d**2/2, d - 0.5).sum()
        costs.append((c + b)/max(1, len(there)))
    return torch.stack(costs)

@pytest.mark.parametrize('neg', ['hard', 'focal', 'all'])
@pytest.mark.parametrize('seed', range(5))
def test_ssd_s_loss_is_the_one_written_out_by_hand(neg, seed):
    g = generator(seed)
    pred, yb = made(g), truths(g)
    want = by_hand(pred, yb, neg)
    assert_close(SSDLoss('none', neg=neg)(pred, yb), want, 1e-3)
    assert_close(SSDLoss(neg=neg)(pred, yb), want.mean(), 1e-3)
    assert_close(ssd_loss(pred, yb, neg=neg, reduction='sum'), want.sum(), 1e-2)

def test_the_weight_of_boxes_is_of_that_part_alone():
    g = generator(2)
    pred, yb = made(g), truths(g, least=1)
    classes, offsets = SSDLoss().parts(pred, yb)
    assert_close(SSDLoss('none', box_weight=7.)(pred, yb), classes + 7*offsets, 1e-4)
    with pytest.raises(ValueError): SSDLoss(neg='soft')
    with pytest.raises(ValueError): SSDLoss(box_weight=-1)

LOSSES = {'ssd': (SSDLoss, made), 'focal': (lambda *a: SSDLoss(*a, neg='focal'), made),
          'yolo': (YOLOLoss, lambda g: torch.randn(3, 7, 3, 3, generator=g))}

@pytest.mark.parametrize('make,pred', LOSSES.values(), ids=LOSSES)
def test_a_picture_s_loss_is_its_own(make, pred):
    g = generator(3)
    pred, yb = pred(g), truths(g, least=1)
    each = make('none')(pred, yb)
    assert_eq(each.shape, (3,))
    assert_close(make()(pred, yb), each.mean(), 1e-4)
    assert_close(item_losses(make(), pred, yb), each, 1e-5)
    assert make().count(yb) == 3
    # padding changes nothing
    wide = F.pad(yb[0], (0, 0, 0, 3)), F.pad(yb[1], (0, 3), value=-1)
    assert_close(make('none')(pred, wide), each, 1e-5)
    one = (pred[0], pred[1][1:2], pred[2][1:2]) if isinstance(pred, tuple) else pred[1:2]
    assert_close(make('none')(one, (yb[0][1:2], yb[1][1:2])), each[1:2], 1e-5)

@pytest.mark.parametrize('make,pred', LOSSES.values(), ids=LOSSES)
def test_gradients_are_finite_in_half_precision_too(make, pred):
    g = generator(4)
    said = pred(g)
    said = said[1:] if isinstance(said, tuple) else (said,)   # without anchors
    leaves = [t.bfloat16().requires_grad_() for t in said]
    pred = (made(g)[0], *leaves) if len(leaves) > 1 else leaves[0]
    make()(pred, truths(g, least=1)).backward()
    assert all(t.grad.isfinite().all() for t in leaves)
    assert make().activation(pred)[0].dtype == torch.float32

def test_perfect_answers_are_decoded_to_the_truth():
    g = generator(5)
    anchors, _, _ = made(g, 4)
    yb = truths(g, 4, m=3, least=1)
    classes, boxes = anchor_targets(anchors*2 - 1, yb)
    pred = anchors, 30.*F.one_hot(classes, 3), encode_boxes(anchors*2 - 1, boxes).flatten(1)
    found, labels, scores = SSDLoss(overlap=0.9).decode(pred)
    for i in range(4):
        told = labels[i] >= 0
        for box, label in zip(yb[0][i][yb[1][i] >= 0], yb[1][i][yb[1][i] >= 0]):
            if not (boxes[i] == box).all(-1).any(): continue   # it overlaps no free anchor
            iou = box_iou(box[None], found[i][told & (labels[i] == label)])
            assert iou.numel() and iou.max() > 0.99
        assert (scores[i][told] > 0.99).all()

# ---- candidates become detections

@settings(deadline=None, max_examples=30)
@given(seeds)
def test_detections_of_a_batch_are_those_of_each_picture(seed):
    g = generator(seed)
    boxes, probs = random_boxes(g, 3, 40), torch.rand(3, 40, 2, generator=g)**4
    found = detections(boxes, probs, 0.4, max_det=12, least=0.05)
    assert_eq([tuple(t.shape) for t in found], [(3, 12, 4), (3, 12), (3, 12)])
    for i in range(3):
        rows = [(probs[i, a, c].item(), boxes[i, a], c) for a in range(40) for c in range(2)
                if probs[i, a, c] >= 0.05]
        rows.sort(key=lambda r: -r[0])
        kept = nms(torch.stack([r[1] for r in rows]), torch.tensor([r[0] for r in rows]), 0.4,
                   torch.tensor([r[2] for r in rows]))[:12].tolist() if rows else []
        there = found[1][i] >= 0
        assert_eq(there.sum().item(), len(kept))
        assert_eq(found[1][i][there].tolist(), [rows[k][2] for k in kept])
        assert_close(found[2][i][there], torch.tensor([rows[k][0] for k in kept]), 1e-6)
        assert (found[2][i].diff() <= 0).all() and not found[0][i][~there].any()

def test_a_batch_with_nothing_has_empty_rows():
    boxes, labels, scores = detections(torch.zeros(2, 5, 4), torch.zeros(2, 5, 3), max_det=4)
    assert (labels == -1).all() and not boxes.any() and not scores.any() and labels.shape == (2, 4)

def test_boxes_are_cut_at_the_edges_and_those_outside_go():
    boxes = torch.tensor([[[-3., -0.5, 0, 0.5], [1.5, 0, 2, 1]]])
    found, labels, _ = detections(boxes, torch.full((1, 2, 1), 0.9), max_det=3)
    assert_eq(labels.tolist(), [[0, -1, -1]])
    assert_eq(found[0, 0].tolist(), [-1, -0.5, 0, 0.5])

def test_decode_keeps_the_sure_ones():
    pred = made(generator(6))
    loss = SSDLoss(thresh=0.6)
    every, sure = loss.activation(pred), loss.decode(pred)
    told = sure[1] >= 0
    assert (every[1] >= 0).sum() > told.sum() > 0 and (sure[2][told] >= 0.6).all()
    assert_eq(told, (every[2] >= 0.6) & (every[1] >= 0))
    assert not sure[0][~told].any() and not sure[2][~told].any()

def test_mirrored_boxes_come_back_and_are_joined():
    box = torch.tensor([[[-0.8, -0.5, -0.2, 0.5]]])
    mirror = torch.tensor([[[0.2, -0.5, 0.8, 0.5]]])
    one = torch.zeros(1, 1, dtype=torch.long)
    boxes, labels, scores = SSDLoss(max_det=3).join_mirrored((box, one, torch.tensor([[0.6]])),
                                                             (mirror, one, torch.tensor([[0.7]])))
    assert_eq(labels.tolist(), [[0, -1, -1]])
    assert_close(boxes[0, 0], box[0, 0], 1e-6)
    assert_close(scores[0, 0], torch.tensor(0.7), 1e-6)

def test_pick_best_leaves_other_classes_and_pictures_alone():
    boxes = torch.tensor([[[-0.5, -0.5, 0.5, 0.5]]*3]*2)
    labels = torch.tensor([[0, 1, 0], [0, 0, -1]])
    found = pick_best(boxes, labels, torch.tensor([[0.5, 0.6, 0.7], [0.3, 0.2, 0.9]]), max_det=3)
    assert_eq(found[1].tolist(), [[0, 1, -1], [0, -1, -1]])
    assert_close(found[2], torch.tensor([[0.7, 0.6, 0], [0.3, 0, 0]]), 1e-6)

@pytest.mark.parametrize('options', [dict(thresh=1.5), dict(overlap=-1), dict(max_det=0)])
@pytest.mark.parametrize('make', [SSDLoss, YOLOLoss])
def test_settings_out_of_range_are_refused(make, options):
    with pytest.raises(ValueError): make(**options)

def test_a_detector_s_loss_has_to_say_what_its_candidates_are():
    with pytest.raises(NotImplementedError, match='candidates'): DetectionLoss().activation(None)

def test_a_loss_is_written_down_as_it_is_now():
    loss = SSDLoss(neg='focal', box_weight=2.)
    loss.thresh = 0.3
    again = from_spec(to_spec(loss))
    assert (again.neg, again.box_weight, again.thresh) == ('focal', 2., 0.3)
    assert from_spec(to_spec(YOLOLoss(empty_weight=0.25))).empty_weight == 0.25

def test_the_loss_as_a_function_has_its_parts():
    pred = made(generator(7))
    for name in ('activation', 'decode'):
        for a, b in zip(getattr(loss_parts(ssd_loss), name)(pred), getattr(SSDLoss(), name)(pred)):
            assert_eq(a, b)

@pytest.mark.parametrize('gamma', [0., 0.5, 1., 2.])
def test_the_focal_loss_of_a_saturated_anchor_has_a_finite_gradient(gamma):
    anchors, scores, offsets = made(generator(0), 1, 1)
    scores = torch.tensor([200., -200]).expand_as(scores).clone().requires_grad_()
    loss = SSDLoss(neg='focal', gamma=gamma)
    loss((anchors, scores, offsets), (torch.zeros(1, 1, 4), torch.full((1, 1), -1))).backward()
    assert scores.grad.isfinite().all()

# ---- YOLO

@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_yolo_s_decoding_undoes_its_targets(seed, h, w):
    g = generator(seed)
    box = random_boxes(g, 1)[0]
    x1, y1, x2, y2 = ((box + 1)/2).tolist()
    column, row = (min(int((a + b)/2*n), n - 1) for a, b, n in ((x1, x2, w), (y1, y2, h)))
    inside = torch.tensor([(x1 + x2)/2*w - column, (y1 + y2)/2*h - row, (x2 - x1)**0.5, (y2 - y1)**0.5])
    m = torch.full((1, 8, h, w), -25.)
    m[0, :, row, column] = torch.cat([torch.tensor([25.]), torch.logit(inside, 1e-7),
                                      torch.tensor([-25., 25., -25.])])
    found, labels, scores = YOLOLoss().decode(m)
    assert_eq((labels >= 0).sum().item(), 1)
    assert_close(found[0, 0], box, 1e-3)
    assert labels[0, 0] == 1 and scores[0, 0] > 0.99
    assert YOLOLoss()(m, (box[None, None], torch.tensor([[1]]))) < 1e-3

def test_yolo_s_parts_have_their_weights():
    m, yb = torch.randn(1, 6, 2, 2), (torch.tensor([[[-0.9, -0.9, -0.2, -0.1]]]), torch.tensor([[0]]))
    base = YOLOLoss(box_weight=0., empty_weight=0.)(m, yb)
    assert_close(base, F.softplus(-m[0, 0, 0, 0]), 1e-5)   # with one class, its cross-entropy is 0
    empty = F.softplus(m[0, 0]).sum() - F.softplus(m[0, 0, 0, 0])
    assert_close(YOLOLoss(box_weight=0.)(m, yb), base + empty/2, 1e-5)
    said, want = m[0, 1:5, 0, 0].sigmoid(), torch.tensor([0.45, 0.5, 0.35**0.5, 0.4**0.5])
    assert_close(YOLOLoss(empty_weight=0.)(m, yb), base + 5*((said - want)**2).sum(), 1e-4)

def test_a_middle_on_the_far_edge_belongs_to_the_last_cell():
    yb = torch.tensor([[[1., 1, 1, 1]]]), torch.tensor([[0]])
    assert YOLOLoss()(torch.zeros(1, 6, 4, 4), yb).isfinite()

def test_of_things_that_share_a_cell_the_first_is_learned():
    m, boxes = torch.randn(2, 7, 4, 4), torch.tensor([[-0.9, -0.9, -0.5, -0.4], [-1., -1, -0.3, -0.4],
                                                      [0.1, 0.1, 0.7, 0.9]]).expand(2, -1, -1)
    labels = torch.tensor([[0, 1, 1], [-1, 1, 1]])   # in the second picture, each has a cell of its own
    alone = torch.tensor([[0, -1, 1], [-1, 1, 1]])
    for loss in (YOLOLoss(), YOLOLoss(reduction='none')):
        assert_close(loss(m, (boxes, labels)), loss(m, (boxes, alone)), 1e-6)

def test_tiny_yolo_has_a_cell_for_16_pixels():
    assert_eq(TinyYOLO(3, ni=1)(torch.zeros(2, 1, 64, 96)).shape, (2, 8, 4, 6))

# ---- SSD on a body

def test_ssd_takes_the_maps_before_each_halving():
    model = SSD(body()[:-3], 2, finest=8, extra=1, width=16)
    anchors, scores, offsets = model(torch.zeros(2, 3, 64, 64))
    # an eighth, a sixteenth (which comes out at the end), and one more of half the size
    n = 4*(8*8 + 4*4 + 2*2)
    assert_eq([tuple(t.shape) for t in (anchors, scores, offsets)], [(1, n, 4), (2, n, 3), (2, 4*n)])
    finer = SSD(body()[:-3], 2, finest=4, extra=1, width=16)
    assert_eq(finer(torch.zeros(1, 3, 64, 64))[0].shape[1], 4*(16*16 + 8*8 + 4*4 + 2*2))

@pytest.mark.parametrize('size', [(64, 64), (50, 70), (33, 95)])
def test_ssd_takes_pictures_of_any_size(size):
    anchors, scores, _ = SSD(body()[:-3], 1, extra=2, width=16)(torch.zeros(1, 3, *size))
    assert anchors.shape[1] == scores.shape[1]

def test_the_top_joins_finer_maps_with_coarser_ones():
    top = SSDTop((4, 6), 1, extra=0, width=8).eval()
    fine, coarse = torch.randn(1, 4, 4, 4), torch.randn(1, 6, 2, 2)
    before = top([fine, coarse])[1][0, :64].clone()
    assert not torch.equal(before, top([fine, coarse + 1])[1][0, :64])
    assert torch.equal(top([fine, coarse])[1][0, 64:], top([fine + 1, coarse])[1][0, 64:])

# ---- with a Learner

@pytest.fixture(scope='module')
def squares(tmp_path_factory):
    "24 pictures with up to two squares, red or green, and a table of their boxes; every sixth is empty."
    root, rng, rows = tmp_path_factory.mktemp('squares'), np.random.default_rng(0), []
    for i in range(24):
        w, h = 60 + i, 48
        im = Image.new('RGB', (w, h), (60, 60, 60))
        draw = ImageDraw.Draw(im)
        things = 0 if i % 6 == 0 else 1 + (i > 16)   # so that batches have several widths
        for k in range(things):
            label, side = ('red', 'green')[rng.integers(2)], int(rng.integers(14, 22))
            x, y = k*w//2 + int(rng.integers(0, w//2 - side)), int(rng.integers(0, h - side))
            fill = (230, 0, 0) if label == 'red' else (0, 200, 0)
            draw.rectangle((x, y, x + side - 1, y + side - 1), fill=fill)
            rows.append((f'{i:02}.png', label, x, y, x + side, y + side))
        if not things: rows.append((f'{i:02}.png', None, *[None]*4))
        im.save(root/f'{i:02}.png')
    names = ['file', 'label', 'xmin', 'ymin', 'xmax', 'ymax']
    pd.DataFrame(rows, columns=names).to_csv(root/'boxes.csv', index=False)
    return root

def bunch(root, tfms=None, size=64, bs=8):
    boxes = read_boxes(root/'boxes.csv')
    split = ImageList.from_folder(root, '.png').split_by_func(lambda p: int(p.stem) % 4 == 3)
    return (split.label_from_func(boxes, BoxList).transform((tfms, []), size=size).databunch(bs=bs, seed=1)
            .normalize())

DETECTORS = {'TinySSD': lambda c: (TinySSD(c), SSDLoss()), 'TinyYOLO': lambda c: (TinyYOLO(c), YOLOLoss()),
             'SSD': lambda c: (SSD(body()[:-3], c, extra=1, width=16), SSDLoss(neg='focal')),
             'a function': lambda c: (TinySSD(c), ssd_loss)}
each_detector = pytest.mark.parametrize('make', DETECTORS.values(), ids=DETECTORS)

def learner(root, make, **options):
    set_seed()
    data = bunch(root, **options)
    model, loss = make(data.c)
    return Learner(data, model, loss_func=loss, metrics=[AveragePrecision(0.5), CornerError()], path=root)

@each_detector
def test_a_learner_trains_each_and_asks_it(squares, make):
    learn = learner(squares, make, tfms=[RandomFlip()])
    with learn.quiet(): learn.fit_one_cycle(2, 2e-3)
    first, last = learn.history
    assert last['train_loss'] < first['train_loss'] and 'train_ap50' not in last
    (boxes, labels, scores), (truth, _) = learn.get_preds()
    assert_eq([tuple(t.shape) for t in (boxes, labels, scores)], [(6, 100, 4), (6, 100), (6, 100)])
    assert len(truth) == 6 and (scores.diff() <= 0).all()
    if hasattr(learn.loss_func, 'join_mirrored'): assert_eq(learn.tta()[0][0].shape, boxes.shape)
    learn.show_results(2)
    learn.plot_top_losses(2)
    worst = learn.top_losses(3)
    assert (worst['loss'].diff().dropna() <= 0).all()

@each_detector
def test_what_is_exported_answers_the_same(squares, make, tmp_path):
    learn = learner(squares, make)
    with learn.quiet(): learn.fit(1, 1e-3)
    if hasattr(learn.loss_func, 'thresh'): learn.loss_func.thresh = 0.02
    file = squares/'03.png'
    path = learn.export(tmp_path/'detector.pth') if make is not DETECTORS['a function'] else None
    if path is None: return
    said = learn.predict(file)
    assert len(said.label) > 0
    for again in (load_learner(path).predict(file), load_predictor(path).predict(file)):
        assert [(b.label, b.box) for b in again.label] == [(b.label, b.box) for b in said.label]
    w, h = Image.open(file).size
    for b in said.label: assert -0.01 <= b.box[0] < b.box[2] <= w + 0.01 and b.label in ('red', 'green')

class Teller(nn.Module):
    "Says the truth of the upright strip in a picture: SSD's output with one anchor."
    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        bright = (x.mean(1) > x.mean((1, 2, 3))[:, None, None]).float()
        places = [b.nonzero() for b in bright]
        n = x.shape[-1]
        boxes = torch.stack([torch.cat([p.amin(0).flip(0), p.amax(0).flip(0) + 1])/n for p in places])
        anchor = torch.tensor([[[0.25, 0.25, 0.75, 0.75]]])
        scores = torch.tensor([[[0., 9.]]]).expand(len(x), 1, 2) + self.nothing
        return anchor, scores, encode_boxes(anchor*2 - 1, boxes[:, None]*2 - 1).flatten(1)

def test_tta_joins_what_is_found_in_the_mirror(tmp_path):
    rows = []
    for i in range(4):
        im = Image.new('RGB', (64, 64), (40, 40, 40))
        ImageDraw.Draw(im).rectangle((4 + 8*i, 10, 15 + 8*i, 50), fill=(220, 220, 220))
        im.save(tmp_path/f'{i:02}.png')
        rows.append((f'{i:02}.png', 'strip', 4 + 8*i, 10, 16 + 8*i, 51))
    pd.DataFrame(rows, columns=['file', 'label', 'xmin', 'ymin', 'xmax', 'ymax']).to_csv(
        tmp_path/'boxes.csv', index=False)
    learn = Learner(bunch(tmp_path, bs=2), Teller(), loss_func=SSDLoss())
    (once, labels, _), (truth, _) = learn.get_preds()
    (twice, again, _), _ = learn.tta()
    assert_close(once[:, 0], truth[:, 0], 1e-4)
    assert_close(twice[:, 0], truth[:, 0], 1e-4)
    assert (labels >= 0).sum() == (again >= 0).sum() == 1   # both found the same, and one stayed

def test_predictions_of_batches_of_several_widths_are_joined(squares):
    learn = learner(squares, DETECTORS['TinySSD'], bs=1)
    widths = {yb[0].shape[1] for _, yb in learn.data.valid_dl}
    assert widths == {1, 2}
    found, (boxes, labels) = learn.get_preds()
    assert_eq([tuple(t.shape) for t in (boxes, labels)], [(6, 2, 4), (6, 2)])
    assert_eq((labels >= 0).sum(1).tolist(), [1, 1, 1, 1, 2, 2])
    assert_eq(learn.tta()[1][1], labels)
    one_by_one, metric = learn.validate()['ap50'], AveragePrecision(0.5)
    metric.update(found, (boxes, labels))
    assert_close(metric.compute(), torch.tensor(one_by_one).double(), 1e-9)

def test_create_ssd_freezes_a_trained_body_and_has_three_groups(squares):
    data = bunch(squares)
    scratch = create_ssd(data, body, pretrained=False, extra=1, width=16)
    assert_eq(len(scratch.layer_groups()), 3)
    assert all(p.requires_grad for p in scratch.model.parameters())
    trained = create_ssd(data, scratch.model, extra=1, width=16, loss_func=SSDLoss(neg='focal'))
    assert trained.loss_func.neg == 'focal' and trained.model.head.heads.c == data.c == 2
    assert not trained.model.body[0][0].conv.weight.requires_grad
    with trained.quiet(): trained.fine_tune(1, 1e-3)
    assert trained.predict(squares/'01.png').label is not None

def test_mixup_of_detectors_is_refused_or_finite(squares):
    learn = learner(squares, DETECTORS['TinySSD'])
    try:
        with learn.quiet(): learn.fit(1, 1e-3, cbs=MixUp())
    except (TypeError, ValueError): return
    assert math.isfinite(learn.history[-1]['train_loss'])

# ---- the error of corners

def test_corner_error_is_of_the_surest_that_fits():
    truth = torch.tensor([[[-0.5, -0.5, 0.5, 0.5], [0, 0, 0, 0]]]), torch.tensor([[1, -1]])
    def found(*rows):
        boxes, labels, scores = zip(*rows)
        return torch.tensor([boxes]), torch.tensor([labels]), torch.tensor([scores])
    near, exact = (-0.5, -0.5, 0.5, 0.6), (-0.5, -0.5, 0.5, 0.5)
    metric = CornerError()
    metric.update(found((near, 0, 0.9), (near, 1, 0.8), (exact, 1, 0.7)), truth)
    assert_close(metric.compute(), torch.tensor(0.1/4/2), 1e-6)
    metric.update(found(((0.5, 0.5, 1, 1), 1, 0.9), (near, 0, 0.8), (near, -1, 0.)), truth)   # not found
    assert_close(metric.compute(), torch.tensor(0.1/4/2), 1e-6)
    metric.reset()
    assert metric.compute().isnan()

# ---- pictures that come twice

def texture(seed, size=(64, 48)):
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)

@pytest.mark.parametrize('change', ['size', 'quality', 'light', 'format'])
def test_a_copy_is_found_and_others_are_not(tmp_path, change):
    for i in range(6): texture(i).save(tmp_path/f'{i}.png')
    im = texture(2)
    if change == 'size': im = im.resize((150, 90))
    if change == 'light': im = im.point(lambda v: int(0.8*v + 20))
    im.save(tmp_path/('copy.png' if change == 'format' else 'copy.jpg'), quality=50)
    files = sorted(tmp_path.iterdir())
    (group,) = find_duplicates(files, alike=5)
    assert sorted(f.stem for f in group) == ['2', 'copy']

def test_the_same_picture_has_the_same_number_and_chains_are_one_group(tmp_path):
    assert picture_hash(texture(0)) == picture_hash(texture(0)) != picture_hash(texture(1))
    for i in range(3): texture(0).save(tmp_path/f'{i}.png')
    assert_eq([len(g) for g in find_duplicates(tmp_path.iterdir())], [3])
    assert_eq(find_duplicates([]), [])

def test_what_is_not_a_number_is_no_answer_and_hides_none():
    boxes = torch.tensor([[[-0.5, -0.5, 0.5, 0.5]]*3])
    probs = torch.tensor([[[torch.nan], [0.8], [torch.nan]]])
    _, labels, scores = detections(boxes, probs, max_det=2, candidates=1)
    assert labels.tolist() == [[0, -1]] and scores[0, 0] == probs[0, 1, 0]
    truth = boxes[:, :1], torch.tensor([[0]])
    lost = CornerError()
    lost.update((boxes[:, :1]*torch.nan, torch.tensor([[0]]), torch.tensor([[0.9]])), truth)
    assert lost.total == 0 and lost.n == 0

def test_a_photograph_and_its_copy_that_was_turned_upright_are_one(tmp_path):
    rng = np.random.default_rng(0)
    im = Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).resize((120, 90), Image.Resampling.BOX)
    exif = im.getexif()
    exif[0x0112] = 6   # a quarter turn to the right when it is shown
    im.save(tmp_path/'camera.png', exif=exif)
    im.rotate(-90, expand=True).save(tmp_path/'copy.png')
    assert len(find_duplicates([tmp_path/'camera.png', tmp_path/'copy.png'])) == 1
