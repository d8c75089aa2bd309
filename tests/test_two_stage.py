"""Regions of maps are cut out as torchvision's kernels do it, forward and backward, which are written out
here as loops from their documentation; and a detector of two stages trains and answers."""
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from exp.box_files import BoxList, read_boxes
from exp.boxes import AveragePrecision
from exp.core import set_seed, test_close as assert_close, test_eq as assert_eq
from exp.data_block import ImageList
from exp.detection import SSDLoss
from exp.inference import load_learner
from exp.learner import Learner
from exp.losses import item_losses
from exp.specs import from_spec, to_spec
from exp.two_stage import TwoStage, TwoStageLoss, roi_align, roi_pool

def pool_loop(maps, rois, size, scale):
    "torchvision.ops.roi_pool, cell by cell."
    (_, c, H, W), (ph, pw) = maps.shape, size
    out = torch.zeros(len(rois), c, ph, pw, dtype=maps.dtype)
    def rounded(v): return int(math.copysign(math.floor(abs(v) + 0.5), v))
    for k, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (rounded(v*scale) for v in box)
        high, wide = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        for i in range(ph):
            for j in range(pw):
                rows = math.floor(i*high/ph) + y1, math.ceil((i + 1)*high/ph) + y1
                columns = math.floor(j*wide/pw) + x1, math.ceil((j + 1)*wide/pw) + x1
                (a, b), (u, v) = ([min(max(r, 0), H) for r in rows], [min(max(s, 0), W) for s in columns])
                if b > a and v > u: out[k, :, i, j] = maps[int(image), :, a:b, u:v].flatten(1).max(1).values
    return out

def interpolated(f, y, x):
    "A map c×H×W between its cells; 0 further than a cell outside."
    _, H, W = f.shape
    if not (-1 <= y <= H and -1 <= x <= W): return torch.zeros(len(f), dtype=f.dtype)
    y, x = max(y, 0.), max(x, 0.)
    (i, y), (j, x) = ((n - 1, float(n - 1)) if int(v) >= n - 1 else (int(v), v) for v, n in ((y, H), (x, W)))
    down, right = min(i + 1, H - 1), min(j + 1, W - 1)
    v, u = y - i, x - j
    return ((1 - v)*(1 - u)*f[:, i, j] + (1 - v)*u*f[:, i, right]
            + v*(1 - u)*f[:, down, j] + v*u*f[:, down, right])

def align_loop(maps, rois, size, scale, ratio, aligned):
    "torchvision.ops.roi_align, sample by sample."
    (_, c, _, _), (ph, pw) = maps.shape, size
    out = torch.zeros(len(rois), c, ph, pw, dtype=maps.dtype)
    for k, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (v*scale - aligned*0.5 for v in box)
        wide, high = (v if aligned else max(v, 1.) for v in (x2 - x1, y2 - y1))
        rows, columns = (ratio if ratio > 0 else math.ceil(v/n) for v, n in ((high, ph), (wide, pw)))
        for i in range(ph):
            for j in range(pw):
                samples = [interpolated(maps[int(image)], y1 + (i + (a + 0.5)/rows)*high/ph,
                                        x1 + (j + (b + 0.5)/columns)*wide/pw)
                           for a in range(rows) for b in range(columns)]
                if samples: out[k, :, i, j] = torch.stack(samples).sum(0)/max(rows*columns, 1)
    return out

def case(seed):
    "Maps, regions (some of them reach out of the picture, or are empty), a size and a scale."
    g = torch.Generator().manual_seed(seed)
    h, w = torch.randint(1, 8, (2,), generator=g).tolist()
    scale = (1., 0.5, 1/16)[seed % 3]
    maps = torch.randn(2, 3, h, w, dtype=torch.float64, generator=g)
    a, b = ((torch.rand(4, 2, generator=g)*1.6 - 0.3)*torch.tensor([w, h])/scale for _ in 'ab')
    if seed % 4 == 0: b[0] = a[0]
    boxes = torch.cat([torch.minimum(a, b), torch.maximum(a, b)], 1).double()
    image = torch.randint(2, (4, 1), generator=g).double()
    return maps, torch.cat([image, boxes], 1), tuple(torch.randint(1, 4, (2,), generator=g).tolist()), scale

def same(ours, loop, maps):
    "Are values and gradients alike?"
    mine, theirs = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    a, b = ours(mine), loop(theirs)
    assert_close(a, b, 1e-6)
    weights = torch.randn(a.shape, dtype=a.dtype, generator=torch.Generator().manual_seed(0))
    if not b.requires_grad: return
    (a*weights).sum().backward()
    (b*weights).sum().backward()
    assert_close(mine.grad, theirs.grad, 1e-6)

seeds = st.integers(0, 2**31)

@settings(deadline=None, max_examples=60)
@given(seeds)
def test_roi_pool_is_torchvision_s(seed):
    maps, rois, size, scale = case(seed)
    same(lambda m: roi_pool(m, rois, size, scale), lambda m: pool_loop(m, rois, size, scale), maps)

@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('ratio', [-1, 0, 1, 2, 3])
@settings(deadline=None, max_examples=25)
@given(seed=seeds)
def test_roi_align_is_torchvision_s(seed, ratio, aligned):
    maps, rois, size, scale = case(seed)
    same(lambda m: roi_align(m, rois, size, scale, ratio, aligned),
         lambda m: align_loop(m, rois, size, scale, ratio, aligned), maps)

def test_d2l_s_regions():
    m = torch.arange(16.).view(1, 1, 4, 4)
    rois = torch.tensor([[0, 0, 0, 20, 20], [0, 0, 10, 30, 30.]])
    assert_eq(roi_pool(m, rois, 2, 0.1)[:, 0].tolist(), [[[5, 6], [9, 10]], [[9, 11], [13, 15]]])

@pytest.mark.parametrize('f', [roi_pool, roi_align])
def test_a_list_of_boxes_for_each_picture_is_the_same(f):
    maps, rois, size, scale = case(5)
    rois = rois[rois[:, 0].argsort()]
    by_image = [rois[rois[:, 0] == i, 1:] for i in range(2)]
    assert_eq(f(maps, by_image, size, scale), f(maps, rois, size, scale))
    assert_eq(f(maps, [torch.zeros(0, 4).double()]*2, size).shape, (0, 3, *size))
    assert_eq(f(maps, rois, 2).shape[-2:], (2, 2))

@pytest.mark.parametrize('f', [roi_pool, roi_align])
def test_maps_in_half_precision_stay_so(f):
    maps, rois, size, scale = case(6)
    assert f(maps.bfloat16(), rois.float(), size, scale).dtype == torch.bfloat16

def test_of_equal_maxima_the_first_gets_the_gradient():
    m = torch.zeros(1, 1, 3, 3, requires_grad=True)
    roi_pool(m, torch.tensor([[0, 0, 0, 2, 2.]]), 1).sum().backward()
    assert_eq(m.grad[0, 0].tolist(), [[1, 0, 0], [0, 0, 0], [0, 0, 0]])

# ---- the detector

def test_two_stages_have_anchors_and_proposals():
    model = TwoStage(3, ni=1, k=7)
    first, second = model(torch.zeros(2, 1, 32, 48))
    a = 4*6*5   # cells of 8 pixels; three sizes and two more ratios
    assert_eq([tuple(t.shape) for t in first], [(1, a, 4), (2, a, 2), (2, 4*a)])
    assert_eq([tuple(t.shape) for t in second], [(2, 7, 4), (2, 7, 4), (2, 28)])
    assert not second[0].requires_grad
    assert ((second[0] >= 0) & (second[0] <= 1)).all()
    assert (second[0][..., 2:] > second[0][..., :2]).all()

def test_fewer_proposals_than_k_are_filled_with_the_whole_picture():
    _, (boxes, _, _) = TwoStage(1, k=400)(torch.zeros(1, 3, 16, 16))
    assert_eq(boxes[0, -1].tolist(), [0, 0, 1, 1])

def test_the_loss_is_the_sum_of_both_stages():
    set_seed(0)
    pred = TwoStage(2, k=6)(torch.randn(2, 3, 32, 32))
    yb = torch.tensor([[[-0.5, -0.5, 0.5, 0.5], [0, 0, 0.9, 0.9]], [[-0.9, -0.9, 0, 0], [0, 0, 0, 0]]]), \
        torch.tensor([[1, 0], [1, -1]])
    each = TwoStageLoss('none')(pred, yb)
    one_class = yb[0], torch.tensor([[0, 0], [0, -1]])
    assert_close(each, SSDLoss('none')(pred[0], one_class) + SSDLoss('none')(pred[1], yb), 1e-5)
    assert_close(item_losses(TwoStageLoss(), pred, yb), each, 1e-6)
    again = from_spec(to_spec(TwoStageLoss(thresh=0.25)))
    assert again.thresh == 0.25

@pytest.mark.parametrize('wrong', [dict(k=0), dict(cells=0)])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError): TwoStage(1, **wrong)

def test_a_learner_trains_it_asks_it_and_writes_it_down(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for i in range(12):
        im, (x, y) = Image.new('RGB', (48, 48), (50, 50, 50)), rng.integers(0, 30, 2).tolist()
        ImageDraw.Draw(im).rectangle((x, y, x + 15, y + 15), fill=(230, 60, 0))
        im.save(tmp_path/f'{i:02}.png')
        rows.append((f'{i:02}.png', 'square', x, y, x + 16, y + 16))
    pd.DataFrame(rows, columns=['file', 'label', 'xmin', 'ymin', 'xmax', 'ymax']).to_csv(tmp_path/'boxes.csv',
                                                                                         index=False)
    set_seed(0)
    data = (ImageList.from_folder(tmp_path, '.png').split_by_func(lambda p: int(p.stem) > 8)
            .label_from_func(read_boxes(tmp_path/'boxes.csv'), BoxList).transform(size=48).databunch(bs=3))
    learn = Learner(data, TwoStage(1, k=8), loss_func=TwoStageLoss(thresh=0.02),
                    metrics=AveragePrecision(0.5), path=tmp_path)
    with learn.quiet(): learn.fit_one_cycle(3, 3e-3)
    assert learn.history[-1]['train_loss'] < learn.history[0]['train_loss']
    found, _ = learn.tta()
    assert_eq(found[1].shape, (3, 100))
    learn.show_results(2)
    assert len(learn.top_losses(2)) == 2
    file = tmp_path/'11.png'
    said, again = learn.predict(file).label, load_learner(learn.export('two.pth')).predict(file).label
    assert said and [b.box for b in said] == [b.box for b in again]
