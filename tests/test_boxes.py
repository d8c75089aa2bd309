"""Boxes, anchors, assignment, offsets and suppression equal plain loops, written from the definitions that
torchvision and D2L document; average precision equals pycocotools' and Pascal VOC's rules."""
import contextlib, copy, io, math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.nn.utils.rnn import pad_sequence

from exp.boxes import (AveragePrecision, assign_anchors, average_precision, box_area, box_iou,
                       centers_to_corners, corners_to_centers, corners_to_sizes, decode_boxes, encode_boxes,
                       make_anchors, nms, sizes_to_corners, soft_nms)
from exp.core import set_seed, test_close as assert_close, test_eq as assert_eq
from exp.dataloader import make_data
from exp.learner import Learner
from exp.losses import Loss

def random_boxes(*shape, g, side=0.4, grid=None):
    "Boxes within 0…1.4; on a grid there are ties and boxes without an area."
    corner, size = torch.rand(2, *shape, 2, generator=g)
    boxes = torch.cat([corner, corner + size*side], -1)
    return boxes if grid is None else (boxes*grid).round()/grid

def generator(seed): return torch.Generator().manual_seed(seed)

# ---- forms and overlap

@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([(), (3,), (2, 5), (0,), (2, 0)]))
def test_forms_of_boxes_go_there_and_back(seed, shape):
    b = random_boxes(*shape, g=generator(seed))
    assert_close(centers_to_corners(corners_to_centers(b)), b, 1e-6)
    assert_close(sizes_to_corners(corners_to_sizes(b)), b, 1e-6)
    assert_close(box_area(b), corners_to_sizes(b)[..., 2:].prod(-1), 1e-6)

def plain_iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0)*max(h, 0)
    union = (a[2] - a[0])*(a[3] - a[1]) + (b[2] - b[0])*(b[3] - b[1]) - both
    return both/union if union > 0 else 0.

@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(0, 6), st.integers(0, 6), st.sampled_from([None, 4]))
def test_box_iou_equals_a_plain_loop(seed, n, m, grid):
    g = generator(seed)
    a, b = random_boxes(2, n, g=g, grid=grid).double(), random_boxes(2, m, g=g, grid=grid).double()
    iou = box_iou(a, b)
    assert_eq(tuple(iou.shape), (2, n, m))
    for i in range(2):
        for j in range(n):
            for k in range(m):
                assert abs(iou[i, j, k].item() - plain_iou(a[i, j].tolist(), b[i, k].tolist())) < 1e-9
    assert_close(box_iou(b, a), iou.mT, 1e-12)

def test_box_iou_has_the_numbers_that_torchvision_documents():
    a = torch.tensor([[0., 0, 100, 100], [0, 0, 50, 50], [200, 200, 300, 300]])
    b = torch.tensor([[0., 0, 100, 100], [0, 0, 50, 50], [200, 200, 300, 300]])
    assert_close(box_iou(a, b), torch.tensor([[1, 0.25, 0], [0.25, 1, 0], [0, 0, 1]]))

@pytest.mark.parametrize('dtype', [torch.int64, torch.uint8, torch.float16, torch.bfloat16, torch.float64])
def test_box_iou_takes_any_type(dtype):
    b = torch.tensor([[0, 0, 2, 2], [1, 1, 3, 3]], dtype=dtype)
    assert_close(box_iou(b, b)[0, 1], 1/7, 1e-6)

def test_box_iou_broadcasts_and_has_a_gradient():
    g = generator(0)
    a, b = random_boxes(5, g=g).requires_grad_(), random_boxes(3, 4, g=g)
    assert_eq(tuple(box_iou(a, b).shape), (3, 5, 4))
    near = b[0, :1].add(0.01).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: box_iou(t, b[0].double()), near)

# ---- anchors, assignment, offsets

@pytest.mark.parametrize('h, w, sizes, ratios', [(2, 3, (0.2,), (1,)), (4, 4, (0.2, 0.3), (1, 2, 0.5)),
                                                 (3, 7, (0.5, 0.1, 0.3), (2, 0.5))])
def test_anchors_are_those_of_a_plain_loop(h, w, sizes, ratios):
    kinds = [(s, ratios[0]) for s in sizes] + [(sizes[0], r) for r in ratios[1:]]
    rows = []
    for i in range(h):
        for j in range(w):
            for s, r in kinds:
                x, y, aw, ah = (j + 0.5)/w, (i + 0.5)/h, s*math.sqrt(r)*h/w, s/math.sqrt(r)
                rows.append([x - aw/2, y - ah/2, x + aw/2, y + ah/2])
    assert_close(make_anchors((h, w), sizes, ratios), torch.tensor(rows), 1e-6)

def test_the_anchors_that_d2l_reports():
    anchors = make_anchors((561, 728), (0.75, 0.5, 0.25), (1, 2, 0.5))
    assert_eq(tuple(anchors.shape), (2_042_040, 4))
    here = anchors.view(561, 728, 5, 4)[250, 250, 0]
    assert_eq([round(v, 2) for v in here.tolist()], [0.06, 0.07, 0.63, 0.82])
    ssd = (32, (0.2, 0.272)), (16, (0.37, 0.447)), (8, (0.54, 0.619)), (4, (0.71, 0.79)), (1, (0.88, 0.961))
    assert_eq(sum(len(make_anchors(k, s, (1, 2, 0.5))) for k, s in ssd), 5444)

def plain_assign(anchors, truths, thresh):
    "D2L's loop; a truth that overlaps none of the anchors that are left takes none."
    iou = box_iou(truths, anchors).T.contiguous()
    which = torch.full((len(anchors),), -1)
    for a in range(len(anchors)):
        if len(truths) and iou[a].max() >= thresh: which[a] = iou[a].argmax()
    for _ in range(len(truths)):
        a, t = divmod(int(iou.argmax()), len(truths))
        if iou[a, t] <= 0: break
        which[a] = t
        iou[a], iou[:, t] = -1, -1
    return which

@pytest.mark.parametrize('seed', range(40))
def test_assignment_equals_d2ls_loop(seed):
    g = generator(seed)
    anchors = make_anchors((3, 4), (0.2, 0.4), (1, 2, 0.5))[:None if seed % 4 else 5]   # or fewer than truths
    truths = random_boxes(3, seed % 13, g=g, grid=None if seed % 2 else 8)
    which = assign_anchors(anchors, truths, 0.4)
    for one, boxes in zip(which, truths): assert_eq(one.tolist(), plain_assign(anchors, boxes, 0.4).tolist())
    each = anchors.expand(3, -1, -1)   # anchors of each image's own
    assert_eq(assign_anchors(each, truths, 0.4).tolist(), which.tolist())

def test_padding_and_what_is_not_there_gets_no_anchor():
    g = generator(0)
    anchors, truths = make_anchors((4, 4), (0.3,), (1, 2)), random_boxes(2, 5, g=g)
    there = torch.tensor([[True, True, False, True, False], [False]*5])
    which = assign_anchors(anchors, truths, there=there)
    kept = [0, 1, 3]
    assert_eq(which[0].tolist(), [kept[t] if t >= 0 else -1
                                  for t in assign_anchors(anchors, truths[0, kept]).tolist()])
    assert (which[1] == -1).all()
    padded = torch.cat([truths, torch.zeros(2, 3, 4)], 1)
    assert_eq(assign_anchors(anchors, padded).tolist(), assign_anchors(anchors, truths).tolist())
    for none in (truths[:, :0], torch.zeros(2, 1, 4)):
        assert_eq(assign_anchors(anchors, none).unique().tolist(), [-1])

def test_dog_and_cat():
    truths = torch.tensor([[0.1, 0.08, 0.52, 0.92], [0.55, 0.2, 0.9, 0.88]])
    anchors = torch.tensor([[0, 0.1, 0.2, 0.3], [0.15, 0.2, 0.4, 0.4], [0.63, 0.05, 0.88, 0.98],
                            [0.66, 0.45, 0.8, 0.8], [0.57, 0.3, 0.92, 0.9]])
    which = assign_anchors(anchors, truths)
    assert_eq((which + 1).tolist(), [0, 1, 2, 0, 2])
    found = encode_boxes(anchors[which >= 0], truths[which[which >= 0]])
    assert_close(found, torch.tensor([[1.4, 10, 2.594, 7.175], [-1.2, 0.269, 1.682, -1.565],
                                      [-0.571, -1, 0, 0.626]]), 1e-3)

@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0.1, 300), st.floats(-50, 50))
def test_offsets_go_there_and_back_in_any_unit(seed, scale, shift):
    g = generator(seed)
    a, b = (random_boxes(2, 6, g=g).double() for _ in range(2))
    a[..., 2:] += 0.05
    b[..., 2:] += 0.05
    offsets = encode_boxes(a, b)
    assert_close(decode_boxes(a, offsets), b, 1e-9)
    assert_close(encode_boxes(a*scale + shift, b*scale + shift), offsets, 1e-6)

def test_offsets_of_padding_and_wild_ones_are_finite():
    a = torch.tensor([[0., 0, 1, 1]])
    assert encode_boxes(a, torch.zeros(1, 4)).isfinite().all()
    assert decode_boxes(a, torch.full((1, 4), 1e4)).isfinite().all()

# ---- suppression

def plain_nms(boxes, scores, thresh, labels):
    order = sorted(range(len(boxes)), key=lambda i: -scores[i])   # stable
    iou, kept = box_iou(boxes, boxes), []
    for i in order:
        if not any(iou[j, i] > thresh and labels[i] == labels[j] for j in kept): kept.append(i)
    return kept

@pytest.mark.parametrize('thresh', [0., 0.3, 0.5, 0.9, 1.])
@pytest.mark.parametrize('seed', range(8))
def test_nms_equals_a_plain_loop(seed, thresh):
    g = generator(seed)
    n = [0, 1, 2, 127, 128, 129, 256, 300][seed]   # around the size of a block
    boxes = random_boxes(n, g=g, grid=None if seed % 2 else 16, side=0.2 + seed/8)
    scores = torch.rand(n, generator=g) if seed % 3 else torch.randint(5, (n,), generator=g)/4
    labels = torch.randint(4, (n,), generator=g)
    assert_eq(nms(boxes, scores, thresh).tolist(), plain_nms(boxes, scores.tolist(), thresh, [0]*n))
    assert_eq(nms(boxes, scores, thresh, labels).tolist(),
              plain_nms(boxes, scores.tolist(), thresh, labels.tolist()))

def test_a_long_chain_of_boxes_is_resolved():
    x = torch.arange(200.)[:, None]   # each overlaps its neighbours by 0.54, those beyond by less
    boxes = torch.cat([x, torch.zeros_like(x), x + 3.3, torch.ones_like(x)], 1)
    assert_eq(nms(boxes, -x[:, 0], 0.5).tolist(), list(range(0, 200, 2)))

@pytest.mark.parametrize('name', ['gaussian', 'linear', 'hard'])
@pytest.mark.parametrize('seed', range(4))
def test_soft_nms_equals_a_plain_loop(seed, name):
    decay = {'gaussian': None, 'linear': lambda iou: torch.where(iou > 0.3, 1 - iou, 1.),
             'hard': lambda iou: (iou <= 0.5).float()}[name]
    rule = {'gaussian': lambda v: math.exp(-v*v/0.5), 'linear': lambda v: 1 - v if v > 0.3 else 1.,
            'hard': lambda v: float(v <= 0.5)}[name]
    g = generator(seed)
    boxes, scores = random_boxes(40, g=g), torch.rand(40, generator=g)
    labels = torch.randint(2, (40,), generator=g)
    iou, now, left, chosen = box_iou(boxes, boxes), scores.tolist(), list(range(40)), []
    while left:
        best = max(left, key=lambda i: now[i])
        if now[best] < 0.01: break
        left.remove(best)
        chosen.append((best, now[best]))
        for i in left:
            if labels[i] == labels[best]: now[i] *= rule(iou[best, i].item())
    places, final = soft_nms(boxes, scores, decay, 0.01, labels)
    assert_eq(places.tolist(), [i for i, _ in chosen])
    assert_close(final, torch.tensor([s for _, s in chosen]), 1e-5)
    if name == 'hard': assert_eq(places.tolist(), nms(boxes, scores, 0.5, labels)[:len(places)].tolist())

@pytest.mark.parametrize('n, decay', [(6, lambda iou: 1 - iou), (70, None)])
def test_soft_nms_names_each_box_once(n, decay):
    boxes, scores = torch.tensor([[0., 0, 1, 1]]).repeat(n, 1), torch.linspace(1, 0.5, n)
    places, final = soft_nms(boxes, scores, decay, least=0)
    assert_eq(sorted(places.tolist()), list(range(n)))
    assert (final >= 0).all() and final[0] == 1

def test_soft_nms_of_nothing():
    for n, s in ((0, 1.), (3, 0.)):
        places, final = soft_nms(torch.rand(n, 4), torch.full((n,), s))
        assert_eq((places.tolist(), final.tolist(), places.dtype), ([], [], torch.int64))

# ---- average precision: random cases, and COCO's rules written plainly

SIDE = 64

def random_case(seed):
    "Truths (boxes, classes, crowd) and detections (boxes, classes, scores) of some images, with many ties."
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(1, 12))
    def boxes(n):
        first = rng.integers(0, SIDE - 9, (n, 2))
        return np.concatenate([first, np.minimum(first + rng.integers(1, 24, (n, 2)), SIDE)], 1)
    images = []
    for _ in range(int(rng.integers(1, 8))):
        truths = boxes(int(rng.integers(0, 7))*int(rng.random() > 0.2))
        kinds, crowd = rng.integers(0, classes, len(truths)), rng.random(len(truths)) < 0.25
        around = [np.clip(truths + rng.integers(-2, 3, truths.shape), 0, SIDE)
                  for _ in range(rng.integers(0, 4))]
        stray = boxes(int(rng.integers(0, 5)))
        found = np.concatenate([stray, *around])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        said = np.concatenate([rng.integers(0, classes, len(stray)), np.tile(kinds, len(around))])
        said = np.where(rng.random(len(said)) < 0.15, rng.integers(0, classes, len(said)), said).astype(int)
        images.append(((truths, kinds, crowd), (found, said, rng.integers(1, 9, len(found))/8)))
    return images, classes

def plain_coco(images, classes, thresholds, max_det):
    "COCO's rules, one detection after the other."
    means = []
    for c in range(classes):
        for t in thresholds:
            rows, total = [], 0
            for (truths, kinds, crowd), (found, said, scores) in images:
                mine = sorted(np.flatnonzero(kinds == c), key=lambda i: crowd[i])
                total += sum(not crowd[i] for i in mine)
                taken = set()
                order = sorted(np.flatnonzero(said == c), key=lambda i: -scores[i])[:max_det]
                for d in order:
                    best, hit = min(t, 1 - 1e-10), None
                    for i in mine:
                        if i in taken and not crowd[i]: continue
                        if hit is not None and not crowd[hit] and crowd[i]: break
                        a, b = found[d], truths[i]
                        both = (max(min(a[2], b[2]) - max(a[0], b[0]), 0)
                                *max(min(a[3], b[3]) - max(a[1], b[1]), 0))
                        area = (a[2] - a[0])*(a[3] - a[1])
                        value = both/(area if crowd[i] else area + (b[2] - b[0])*(b[3] - b[1]) - both)
                        if value < best: continue
                        best, hit = value, i
                    if hit is not None: taken.add(hit)
                    if hit is None or not crowd[hit]: rows.append((scores[d], hit is not None))
            if not total: continue
            rows.sort(key=lambda r: -r[0])
            right = np.cumsum([hit for _, hit in rows])
            recall, precision = right/total, right/np.arange(1, len(rows) + 1)
            means.append(np.mean([max([p for p, r in zip(precision, recall) if r >= at], default=0.)
                                  for at in np.linspace(0, 1, 101)]))
    return np.mean(means) if means else float('nan')

def padded(rows, fill): return pad_sequence([torch.as_tensor(r) for r in rows], True, fill)

def as_batch(images):
    "Detections and truths as `AveragePrecision` takes them, in −1…1."
    (truths, kinds, crowd), (found, said, scores) = (zip(*part) for part in zip(*images))
    unit = lambda boxes: [torch.tensor(b, dtype=torch.float32)/(SIDE/2) - 1 for b in boxes]
    labels = [np.where(w, -2 - k, k) for k, w in zip(kinds, crowd)]
    return ((padded(unit(found), 0.), padded(said, -1), padded(scores, 0.)),
            (padded(unit(truths), 0.), padded(labels, -1)))

def measured(images, bs, *args, **kw):
    metric = AveragePrecision(*args, **kw)
    for i in range(0, len(images), bs): metric.update(*as_batch(images[i:i + bs]))
    return metric

def same(a, b): return math.isnan(a) and math.isnan(b) or abs(a - b) <= 1e-9

@pytest.mark.parametrize('seed', range(12))
def test_average_precision_follows_cocos_rules(seed):
    images, classes = random_case(seed)
    max_det = 100 if seed % 2 else 3
    for thresholds in (np.linspace(0.5, 0.95, 10), [0.5], [1.]):
        metric = measured(images, 1 + seed % 3, thresholds, max_det=max_det)
        assert same(metric.compute().item(), plain_coco(images, classes, thresholds, max_det))

@pytest.mark.parametrize('part', range(4))
def test_average_precision_equals_pycocotools_on_random_cases(part):
    for seed in range(50*part, 50*part + 50):
        images, classes = random_case(seed)
        max_det = 100 if seed % 3 else 2
        ours = measured(images, 1 + seed % 4, max_det=max_det).compute().item()
        assert same(ours, by_pycocotools(images, classes, max_det)), seed

def by_pycocotools(images, classes, max_det):
    size = lambda b: [float(v) for v in (b[0], b[1], b[2] - b[0], b[3] - b[1])]
    truths = [dict(image_id=i, category_id=int(k), bbox=size(b), area=size(b)[2]*size(b)[3], iscrowd=int(w))
              for i, (part, _) in enumerate(images, 1) for b, k, w in zip(*part)]
    for i, t in enumerate(truths, 1): t['id'] = i
    found = [dict(image_id=i, category_id=int(k), bbox=size(b), score=float(s))
             for i, (_, part) in enumerate(images, 1) for b, k, s in zip(*part)]
    if not found: return 0. if any(not t['iscrowd'] for t in truths) else float('nan')
    coco = COCO()
    coco.dataset = dict(images=[dict(id=i) for i in range(1, len(images) + 1)], annotations=truths,
                        categories=[dict(id=k) for k in range(classes)])
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        how = COCOeval(coco, coco.loadRes(found), 'bbox')
        how.params.maxDets, how.params.areaRng, how.params.areaRngLbl = [max_det], [[0, 1e10]], ['all']
        how.evaluate()
        how.accumulate()
    precision = how.eval['precision']
    return precision[precision > -1].mean() if (precision > -1).any() else float('nan')

# ---- Pascal VOC's two rules

def plain_voc(hits, total, eleven):
    "Of the numbers of right detections so far; recalls are compared as fractions."
    recall, precision = [Fraction(int(h), total) for h in hits], [h/i for i, h in enumerate(hits, 1)]
    if eleven:
        return sum(max([p for p, r in zip(precision, recall) if r >= Fraction(t, 10)], default=0.)
                   for t in range(11))/11
    r, p = [0., *map(float, recall), 1.], [0., *precision, 0.]
    for i in range(len(p) - 2, -1, -1): p[i] = max(p[i], p[i + 1])
    return sum((r[i + 1] - r[i])*p[i + 1] for i in range(len(r) - 1))

@settings(deadline=None, max_examples=40)
@given(st.lists(st.booleans(), max_size=40), st.integers(0, 6))
def test_both_rules_of_voc(right, missed):
    total = max(sum(right) + missed, 1)
    hits = np.cumsum(right) if right else np.zeros(0)
    recall, precision = hits/total, hits/np.arange(1, len(right) + 1)
    for points, eleven in ((11, True), (None, False)):
        got = average_precision(torch.tensor(recall), torch.tensor(precision), points)
        assert abs(got.item() - plain_voc(hits, total, eleven)) < 1e-9
        narrow = average_precision(*torch.tensor(np.array([recall, precision]), dtype=torch.float32), points)
        assert abs(narrow.item() - got.item()) < 1e-5

@pytest.mark.parametrize('points, value', [(101, 0.668), (11, 0.695), (None, 0.664)])
def test_the_metric_equals_the_function_on_the_lessons_list(points, value):
    right = torch.tensor([1, 1, 0, 1, 0, 0, 1, 0])
    metric = AveragePrecision(0.5, points=points)
    metric.add(scores=torch.arange(8., 0, -1).double(), labels=torch.zeros(8, dtype=torch.long),
               found=right[:, None].char(), truths=torch.zeros(5, dtype=torch.long))
    for dtype in torch.float32, torch.float64:
        hits = right.cumsum(0).to(dtype)
        found = average_precision(hits/5, hits/torch.arange(1, 9), points)
        assert_close(found.double(), metric.compute(), 1e-6)
    assert round(metric.compute().item(), 3) == value

def test_a_perfect_and_a_silent_detector():
    boxes, labels = random_boxes(2, 3, g=generator(0)), torch.tensor([[0, 1, 1], [2, 0, -1]])
    for points in (101, 11, None):
        metric = AveragePrecision(points=points)
        assert metric.compute().isnan()
        metric.update((boxes, labels, torch.rand(2, 3)), (boxes, labels))
        assert_close(metric.compute(), 1.)
        metric.reset()
        metric.update((boxes, torch.full((2, 3), -1), torch.zeros(2, 3)), (boxes, labels))
        assert_eq(metric.compute().item(), 0)
    metric.reset()
    metric.update((boxes[:, :0], labels[:, :0], torch.zeros(2, 0)), (boxes[:, :0], labels[:, :0]))
    assert metric.compute().isnan()   # no truths: nothing is known

def one_image(truths, labels, found):
    "What a metric takes for one image, with detections of one class by falling score."
    k = len(found)
    return ((torch.tensor([found]), torch.zeros(1, k, dtype=torch.long), torch.linspace(0.9, 0.1, k)[None]),
            (torch.tensor([truths]), torch.tensor([labels])))

def ap(thresh, *case):
    metric = AveragePrecision(thresh)
    metric.update(*one_image(*case))
    return metric.compute().item()

@pytest.mark.parametrize('seed', range(20))
def test_without_crowds_a_lower_threshold_is_never_worse(seed):
    images, _ = random_case(seed)
    plain = [((t, k, np.zeros_like(w)), found) for (t, k, w), found in images]
    values = [measured(plain, 4, t).compute().item() for t in (0.5, 0.6, 0.75, 0.9)]
    assert all(math.isnan(a) or a >= b - 1e-12 for a, b in zip(values, values[1:]))

def test_with_crowds_a_lower_threshold_may_be_worse():
    case = ([[0., 0, 10, 10], [50, 50, 60, 60], [-10, 0, 4.9, 10]], [0, 0, -2],
            [[0., 0, 6, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    assert ap(0.5, *case) < ap(0.75, *case) == 1

def test_a_detection_whose_best_truth_is_taken_may_find_the_next_as_with_coco():
    truths, found = [[0., 0, 10, 10], [3, 0, 13, 10]], [[0., 0, 10, 10], [1, 0, 11, 10]]
    assert ap(0.5, truths, [0, 0], found) == 1   # Pascal VOC calls the second wrong

def test_in_a_crowd_the_share_of_the_detections_own_area_counts():
    truths, labels = [[0., 0, 10, 10], [20, 0, 60, 40]], [0, -2]
    inside, half_out = [30., 10, 34, 14], [16., 10, 24.1, 14]
    assert ap(0.5, truths, labels, [inside, inside, half_out, [0., 0, 10, 10]]) == 1
    assert ap(0.75, truths, labels, [inside, half_out, [0., 0, 10, 10]]) == 0.5

def test_classes_and_curves():
    images, _ = random_case(3)
    metric = measured(images, 2)
    classes, each = metric.by_class()
    there = {int(k) for (_, kinds, crowd), _ in images for k, w in zip(kinds, crowd) if not w}
    assert_eq(set(classes.tolist()), there)
    assert_eq(tuple(each.shape), (len(there), 10))
    for label in classes:
        recall, precision = metric.curve(label)
        assert (recall.diff() >= 0).all() and ((precision >= 0) & (precision <= 1)).all()
    assert_eq((AveragePrecision(0.5).name, AveragePrecision(0.75).name, metric.name), ('ap50', 'ap75', 'ap'))

def test_ranks_join_their_states():
    images, classes = random_case(5)
    for i, (truth, (found, said, scores)) in enumerate(images):   # without ties their order is nothing
        images[i] = truth, (found, said, scores + np.arange(len(scores))/997 + i/9973)
    whole, parts = measured(images, 2), [measured(images[i::2], 2) for i in range(2)]
    joined = AveragePrecision()
    for part in parts: joined.add(**part.states())
    assert same(joined.compute().item(), whole.compute().item())

@pytest.mark.parametrize('thresh', [1.5, -0.1, [0.5, 2]])
def test_a_threshold_is_from_0_to_1(thresh):
    with pytest.raises(ValueError): AveragePrecision(thresh)

class SayBoxes(Loss):
    "A stand-in for a detector's loss: it decodes what the model says as it is, with one class."
    def elements(self, pred, yb): return (pred - yb[0])**2
    def decode(self, pred):
        return pred, torch.zeros(pred.shape[:2], dtype=torch.long), pred.new_ones(pred.shape[:2])
    activation = decode

def test_in_a_learner_it_takes_the_losss_answers_and_is_for_validation_alone():
    set_seed(0)
    boxes = random_boxes(8, 2, g=generator(0))
    x, y = boxes.clone(), (boxes, torch.zeros(8, 2, dtype=torch.long))
    class Same(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))
        def forward(self, x): return x*self.scale
    learn = Learner(make_data((x, y), (x, y), bs=4), Same(), loss_func=SayBoxes(),
                    metrics=AveragePrecision(0.5))
    assert_close(learn.validate()['ap50'], 1.)
    with learn.quiet(): learn.fit(1, 1e-3)
    assert_close(learn.validate()['ap50'], 1.)
    assert AveragePrecision.train is False
    copy.deepcopy(AveragePrecision())

@pytest.mark.parametrize('what', ['score', 'box'])
def test_a_detection_that_is_not_a_number_finds_nothing(what):
    box, label, score = torch.tensor([[[-0.5, -0.5, 0.5, 0.5]]]), torch.tensor([[0]]), torch.tensor([[0.9]])
    found = (box, label, score*torch.nan) if what == 'score' else (box*torch.nan, label, score)
    ap = AveragePrecision(0.5)
    ap.update(found, (box, label))
    assert ap.compute() == 0
