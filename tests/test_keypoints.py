"""Points go from pixels to −1…1 and back, move with their image, are exchanged in a mirror and missing where
they left it; losses and metrics count those that are there; answers are in pixels of the user's picture."""
import csv, math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import nn

from exp.augmentation import (CenterCrop, CenterResizedCrop, PilRandomFlip, PilRandomWarp, RandomCrop,
                              RandomResizedCrop, translation)
from exp.batch_transforms import (RandomDihedral, RandomFlip, RandomRotate, RandomShift, RandomWarp,
                                  RandomZoom, get_transforms)
from exp.callbacks import Callback
from exp.checkpoints import Checkpoint
from exp.core import set_seed, test_close as assert_close, test_eq as assert_eq
from exp.data_block import ImageList
from exp.dataloader import make_data
from exp.inference import load_learner, load_predictor
from exp.keypoints import (PCK, HeatmapLoss, MirrorMean, PixelError, PointsList, PointsLoss,
                           PointsProcessor, PointsTable, create_heatmaps, gaussian_cells, heatmap_head,
                           map_places, mirror_pairs, pixel_distances, pixel_error, read_points, soft_argmax,
                           to_pixels, to_unit)
from exp.learner import Learner
from exp.mixup import CutMix, MixUp
from exp.transfer import create_cnn
from exp.xresnet import XResNet

NAN = float('nan')
COLOURS = dict(left_eye=(255, 0, 0), right_eye=(0, 255, 0), mouth=(0, 0, 255))

def arch(ni=3, c=10): return XResNet([1, 1], ni, c, widths=(8, 16), stem=(8,))

def draw_face(rng, w=60, h=40):
    "A grey picture with a square of its own colour at each point, and the points (x, y)."
    im = Image.new('RGB', (w, h), (60, 60, 60))
    d, points = ImageDraw.Draw(im), {}
    places = [(0.3, 0.3), (0.7, 0.3), (0.5, 0.7)]
    for (name, colour), (u, v) in zip(COLOURS.items(), places):
        x, y = int(u*w + rng.integers(-4, 5)), int(v*h + rng.integers(-4, 5))
        d.rectangle((x - 3, y - 3, x + 2, y + 2), fill=colour)   # six pixels around the corner (x, y)
        points[name] = (float(x), float(y))
    return im, points

@pytest.fixture(scope='module')
def faces(tmp_path_factory):
    "Sixteen pictures of several sizes, with a table of their points; the mouth is missing in every fourth."
    root, rng = tmp_path_factory.mktemp('faces'), np.random.default_rng(0)
    with open(root/'points.csv', 'w', newline='') as f:
        out = csv.writer(f)
        out.writerow(['file', *(f'{name}_{c}' for name in COLOURS for c in 'xy')])
        for i in range(16):
            im, points = draw_face(rng, 60 + i, 40)
            im.save(root/f'{i:02}.png')
            if i % 4 == 3: points['mouth'] = ('', '')
            out.writerow([f'{i:02}.png', *(v for name in COLOURS for v in points[name])])
    return root

def labeled(root, cls=PointsList, label=None):
    split = ImageList.from_folder(root, '.png').split_by_func(lambda p: int(p.stem) % 4 == 3)
    return split.label_from_func(label or read_points(root/'points.csv'), cls)

def bunch(root, tfms=None, size=(40, 60), bs=4, cls=PointsList):
    return labeled(root, cls).transform(tfms, size=size).databunch(bs=bs, seed=1)

def colour_at(xb, p):
    "The number of the strongest channel at each point, n×k; −1 for a missing point, or grey."
    x = nn.functional.grid_sample(xb, p.nan_to_num()[:, :, None], align_corners=False)[..., 0]
    best = x.argmax(1)
    return best.where((x.amax(1) > 2*x.sum(1)/3 + 0.1) & ~p.isnan().any(-1), -1)

# ---- pixels and parts of the image

@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**31))
def test_pixels_come_back_from_parts_of_the_image(h, w, seed):
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(3, 4, 2, generator=g)*torch.tensor([w, h])
    assert_close(to_pixels(to_unit(p, (h, w)), (h, w)), p, 1e-3)
    assert to_unit(p, (h, w)).abs().max() <= 1 + 1e-6

def test_corners_and_the_middle_of_the_first_pixel():
    assert_eq(to_unit(torch.tensor([[0., 0.], [640., 480.], [320., 240.]]), (480, 640)).tolist(),
              [[-1, -1], [1, 1], [0, 0]])
    assert_close(to_unit(torch.tensor([0.5, 0.5]), (2, 4)), torch.tensor([-0.75, -0.5]))

# ---- forms of points

FORMS = {'pairs': [(1, 2), (3, 4)], 'an array': np.array([[1, 2], [3, 4]]),
         'a tensor': torch.tensor([[1., 2], [3, 4]]),
         'a flat row': (1, 2, 3, 4), 'a series': pd.Series([1, 2, 3, 4]), 'names': {'a': (1, 2), 'b': (3, 4)},
         'visible triples': [(1, 2, 2), (3, 4, 1)],
         'pairs of tensors': [torch.tensor([1, 2]), np.array([3, 4])]}

@pytest.mark.parametrize('item', FORMS.values(), ids=FORMS)
def test_points_come_in_the_forms_that_people_have_them(item):
    proc = PointsProcessor()
    proc.learn([item])
    assert_eq(proc.process(item).tolist(), [[1, 2], [3, 4]])

MISSING = {'None': [(1, 2), None], 'NaN': [(1, 2), (NAN, NAN)], 'half of it': [(1, 2), (3, NAN)],
           'not visible': [(1, 2, 2), (3, 4, 0)], 'no such name': {'0': (1, 2)},
           'None by name': {'0': (1, 2), '1': None},
           'triples and None': [(1, 2, 1), None], 'a flat row': [1, 2, NAN, NAN]}

@pytest.mark.parametrize('item', MISSING.values(), ids=MISSING)
def test_a_missing_point_is_nan(item):
    proc = PointsProcessor(names=['0', '1'])
    proc.learn([item])
    p = proc.process(item)
    assert p.dtype == np.float32 and p[0].tolist() == [1, 2] and np.isnan(p[1]).all()

def test_rows_and_columns_are_turned_into_x_and_y_once():
    proc = PointsProcessor('yx')
    proc.learn([[(1, 2)]])
    assert_eq(proc.process([(1, 2)]).tolist(), [[2, 1]])

@pytest.mark.parametrize('item', [[(1, 2)], [(1, 2, 3, 4)], 'nose', [1, 2, 3], 7, {'c': (1, 2)},
                                  [(1, 'x'), (2, 3)]])
def test_what_is_no_points_is_refused(item):
    proc = PointsProcessor()
    proc.learn([{'a': (1, 2), 'b': (3, 4)}])
    with pytest.raises((ValueError, TypeError)): proc.process(item)

def test_an_error_names_the_item(faces):
    label = lambda p: [(1, 2)] if p.stem == '05' else [(1, 2), (3, 4)]
    with pytest.raises(ValueError) as e: labeled(faces, label=label)
    assert '05.png' in ''.join(e.value.__notes__)

@pytest.mark.parametrize('names,pairs', [
    (['snout', 'leftear', 'rightear', 'tail'], [('leftear', 'rightear')]),
    (['L_eye', 'R_eye', 'collar'], [('L_eye', 'R_eye')]),
    (['Right Hand', 'Left Hand'], [('Right Hand', 'Left Hand')]),
    (['eye.l', 'eye.r', 'lower'], [('eye.l', 'eye.r')]), (['earL', 'earR', 'earLobe'], [('earL', 'earR')]),
    (['REar', 'LEar', 'Roof'], [('REar', 'LEar')]), (['LEFT', 'RIGHT'], [('LEFT', 'RIGHT')]),
    (['left_only', 'nose'], []), (['0', '1'], [])])
def test_left_and_right_are_found_in_names(names, pairs): assert_eq(mirror_pairs(names), pairs)

def test_pairs_can_be_given_and_have_to_be_names():
    proc = PointsProcessor(names=['a', 'b'], pairs=[('a', 'b')])
    proc.learn([])
    assert_eq(proc.pairs, [('a', 'b')])
    with pytest.raises(ValueError, match='c'): PointsProcessor(names=['a'], pairs=[('a', 'c')]).learn([])
    with pytest.raises(ValueError, match='twice'):
        PointsProcessor(names=['a', 'b', 'c'], pairs=[('a', 'b'), ('b', 'c')]).learn([])
    assert PointsProcessor(names=['left', 'right'], pairs=()).pairs == []

def test_a_flat_row_of_triples_is_read_where_names_are_known_and_else_refused():
    row = [1, 2, 2, 3, 4, 0]
    proc = PointsProcessor(names=['a', 'b'])
    proc.learn([row])
    assert proc.process(row)[0].tolist() == [1, 2] and np.isnan(proc.process(row)[1]).all()
    for learnt in (row, [1, 2, 3, 4]):   # two points without names: a row of six may be three
        with pytest.raises(ValueError, match='names'):
            proc = PointsProcessor()
            proc.learn([learnt])
            proc.process(row)
    proc = PointsProcessor(names=['a', 'b', 'c'])
    proc.learn([row])
    assert_eq(proc.process(row).tolist(), [[1, 2], [2, 3], [4, 0]])

# ---- tables

def test_a_table_has_names_pairs_and_missing_points(faces):
    table = read_points(faces/'points.csv')
    assert isinstance(table, PointsTable) and len(table) == 16 and table.names == list(COLOURS)
    assert table(faces/'03.png')['mouth'] is None and len(table(faces/'02.png')['mouth']) == 2
    assert faces/'03.png' in table and faces/'99.png' not in table
    with pytest.raises(ValueError, match='99.png'): table(faces/'99.png')

def test_a_data_frame_does_as_well(faces):
    df = pd.read_csv(faces/'points.csv')
    assert_eq(read_points(df, faces)(faces/'01.png'), read_points(faces/'points.csv')(faces/'01.png'))

def test_visibility_zero_is_a_missing_point(tmp_path):
    head = 'file;nose.x;nose.y;nose.v;ear x;ear y\na.png;1;2;0;3;4\n'
    (tmp_path/'p.csv').write_text(f'{head}b.png;1;2;1;3,5;\n')
    with pytest.raises(ValueError): read_points(tmp_path/'p.csv', sep=';')   # a decimal comma
    (tmp_path/'p.csv').write_text(f'{head}b.png;1;2;1;3;\n')
    table = read_points(tmp_path/'p.csv', sep=';')
    assert_eq(table('a.png'), {'nose': None, 'ear': (3, 4)})
    assert_eq(table('b.png'), {'nose': (1, 2), 'ear': None})

@pytest.mark.parametrize('paths', [('labeled-data/m1/a.png', 'labeled-data/m1/b.png'),
                                   ('labeled-data,m1,a.png', 'labeled-data,m1,b.png')])
def test_three_rows_of_headers_are_read(tmp_path, paths):
    first = ','*paths[0].count(',')
    rows = [f'scorer{first},X,X,X,X', f'bodyparts{first},snout,snout,tail,tail', f'coords{first},x,y,x,y',
            f'{paths[0]},1.5,2,3,4', f'{paths[1]},5,6,,']
    (tmp_path/'CollectedData_X.csv').write_text('\n'.join(rows))
    table = read_points(tmp_path/'CollectedData_X.csv', tmp_path)
    assert table.names == ['snout', 'tail']
    assert_eq(table(tmp_path/'labeled-data'/'m1'/'a.png'), {'snout': (1.5, 2), 'tail': (3, 4)})
    assert_eq(table(tmp_path/'labeled-data'/'m1'/'b.png'), {'snout': (5, 6), 'tail': None})

def test_a_table_beside_its_pictures_finds_the_folder_that_its_names_start_from(tmp_path):
    folder = tmp_path/'labeled-data'/'m1'
    folder.mkdir(parents=True)
    Image.new('RGB', (8, 8)).save(folder/'a.png')
    (folder/'p.csv').write_text('file,nose_x,nose_y\nlabeled-data/m1/a.png,1,2\n')
    table = read_points(folder/'p.csv')
    assert folder/'a.png' in table and table(folder/'a.png') == {'nose': (1, 2)}

def test_a_table_without_points_or_with_a_file_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match='nose_x'):
        read_points(pd.DataFrame({'file': ['a'], 'label': ['b']}))
    twice = pd.DataFrame({'file': ['a', 'a'], 'n_x': [1, 2], 'n_y': [1, 2]})
    with pytest.raises(ValueError, match='two rows'): read_points(twice)

# ---- points in step with their image

TFMS = {'turn': [RandomRotate(40, p=1.)], 'zoom': [RandomZoom(1.3, p=1.)], 'warp': [RandomWarp(0.2, p=1.)],
        'shift': [RandomShift(0.2, p=1.)], 'all but flips': get_transforms(do_flip=False)[0],
        'warp of items': [PilRandomWarp(p=1.)], 'crop': [RandomCrop((30, 50))],
        'resized crop': [RandomResizedCrop((40, 60), scale=(0.4, 1.))], 'middle': [CenterCrop((30, 50))],
        'two flips and a turn': [PilRandomFlip(p=1.), RandomFlip(p=1.), RandomRotate(20, p=1.)]}

@pytest.mark.parametrize('tfms', TFMS.values(), ids=TFMS)
def test_points_stay_on_what_they_mark(faces, tfms):
    xb, yb = bunch(faces, tfms, bs=12).one_batch()
    assert yb.dtype == torch.float32 and not (yb.abs() > 1).any()
    found = colour_at(xb, yb)
    checked = (found >= 0) & ~(yb.abs() > 0.9).any(-1)
    assert (found == torch.arange(3))[checked].all() and checked.float().mean() > 0.3

def test_the_eight_ways_to_lay_a_picture_keep_the_mouth_and_may_exchange_the_eyes(faces):
    xb, yb = bunch(faces, [RandomDihedral()], bs=12).one_batch()
    found = colour_at(xb, yb)
    assert (found[:, 2] == 2).all()
    eyes = {tuple(row) for row in found[:, :2].tolist()}
    assert eyes == {(0, 1), (1, 0)}

@pytest.mark.parametrize('tfm', [RandomFlip(p=1.), RandomFlip(vertical=True, p=1.), PilRandomFlip(p=1.)])
def test_a_mirror_exchanges_left_and_right(faces, tfm):
    xb, yb = bunch(faces, [tfm], bs=12).one_batch()
    assert (colour_at(xb, yb) == torch.tensor([1, 0, 2])).all()
    xb, yb = bunch(faces, [tfm], bs=12, cls=partial(PointsList, pairs=())).one_batch()
    assert (colour_at(xb, yb) == torch.arange(3)).all()

def test_two_mirrors_exchange_nothing_and_a_turn_neither(faces):
    for tfms in ([PilRandomFlip(p=1.), RandomFlip(p=1.)], [RandomRotate(10, p=1.)]):
        xb, yb = bunch(faces, tfms, bs=12).one_batch()
        assert (colour_at(xb, yb) == torch.arange(3)).all()

def test_a_point_that_leaves_is_missing_and_does_not_come_back(faces):
    class Far(RandomShift):
        way = 5.
        def matrix(self, rng, size): return translation(self.way)
    class Back(Far): way = -5.
    _, yb = bunch(faces, [Far(p=1., pad='zeros')], bs=12).one_batch()
    assert yb.isnan().all()
    _, yb = bunch(faces, [Far(p=1., pad='zeros'), Back(p=1.)], bs=12).one_batch()   # not joined: pads differ
    assert yb.isnan().all()

def test_a_point_outside_of_the_picture_itself_is_missing(faces):
    data = labeled(faces, label=lambda p: [(-3, 5), (10, 10), (10, 41)]).transform(size=32).databunch(bs=4)
    _, yb = data.one_batch()
    assert yb[:, [0, 2]].isnan().all() and not yb[:, 1].isnan().any()

@pytest.mark.parametrize('cache', [False, True])
@pytest.mark.parametrize('workers', [0, 2])
def test_workers_and_caches_give_the_same_points(faces, cache, workers):
    def batches(**how):
        data = labeled(faces).transform(get_transforms(), size=32, cache=how.get('cache', False)).databunch(
            bs=4, num_workers=how.get('num_workers', 0), seed=1)
        return [data.transform_batch(*b, train=True, items=b.items)[1] for b in data.train_dl]
    for a, b in zip(batches(), batches(cache=cache, num_workers=workers)):
        torch.testing.assert_close(a, b, equal_nan=True)

# ---- losses

@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))
def test_the_loss_is_the_mean_square_over_what_is_there(n, k, seed):
    g = torch.Generator().manual_seed(seed)
    pred = torch.randn(n, 2*k, generator=g, requires_grad=True)
    yb = torch.randn(n, k, 2, generator=g)
    yb[torch.rand(n, k, generator=g) < 0.4] = NAN
    there = ~yb.isnan()
    loss = PointsLoss()(pred, yb)
    right = (pred.view_as(yb) - yb)[there].square().mean() if there.any() else torch.tensor(0.)
    assert_close(loss, right)
    loss.backward()
    assert pred.grad.isfinite().all() and (pred.grad.view_as(yb)[~there] == 0).all()
    assert_close(PointsLoss('sum')(pred, yb), right*there.sum(), 1e-4)
    assert_eq(tuple(PointsLoss('none')(pred, yb).shape), (n,))
    assert_eq(int(PointsLoss().count(yb)), int(there.sum()))

def test_another_number_of_points_is_refused():
    with pytest.raises(ValueError, match='PointsLoss'): PointsLoss()(torch.zeros(2, 6), torch.zeros(2, 4, 2))
    with pytest.raises(ValueError, match='HeatmapLoss'):
        HeatmapLoss()(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 2))
    with pytest.raises(ValueError, match='distances'):
        pixel_distances(torch.zeros(2, 6), torch.zeros(2, 4, 2), 9)

@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9), st.integers(0, 2**31))
def test_the_heatmap_loss_is_a_cross_entropy_with_bells(n, k, h, w, seed):
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(n, k, h, w, generator=g, requires_grad=True)
    yb = torch.rand(n, k, 2, generator=g)*2 - 1
    yb[0, 0] = NAN
    right = []
    for i in range(n):
        for j in range(k):
            if yb[i, j].isnan().any(): continue
            x, y = to_pixels(yb[i, j], (h, w)) - 0.5   # in cells
            rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing='ij')
            bell = (-((columns - x)**2 + (rows - y)**2)/2).exp()
            right.append(-(bell/bell.sum()*maps[i, j].flatten().log_softmax(0).view(h, w)).sum())
    loss = HeatmapLoss(1.)(maps, yb)
    assert_close(loss, torch.stack(right).mean() if right else torch.tensor(0.), 1e-4)
    loss.backward()
    assert maps.grad.isfinite().all() and (maps.grad[0, 0] == 0).all()

@settings(deadline=None)
@given(st.integers(1, 30), st.floats(-1, 1), st.floats(0.3, 3))
def test_a_bell_sums_to_one_and_is_highest_near_its_place(n, x, sigma):
    bell = gaussian_cells(torch.tensor(x), n, sigma)
    cells = (2*torch.arange(n) + 1)/n - 1
    assert_close(bell.sum(), torch.tensor(1.))
    assert (cells[bell.argmax()] - x).abs() <= 1/n + 1e-5

# ---- maps

def test_the_mean_place_of_a_sharp_map_is_its_cell_and_of_a_flat_one_the_middle():
    maps = torch.zeros(1, 2, 4, 8)
    maps[0, 0, 3, 0] = 1e4
    assert_close(soft_argmax(maps, None), torch.tensor([[[-7/8, 3/4], [0., 0.]]]))
    assert_close(soft_argmax(maps)[0, 0], torch.tensor([-7/8, 3/4]))

@settings(deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.sampled_from([None, 0, 1, 2]), st.integers(0, 2**31))
def test_the_mean_place_is_that_of_a_loop_over_the_window(h, w, radius, seed):
    m = torch.randn(h, w, generator=torch.Generator().manual_seed(seed))
    row, column = divmod(int(m.argmax()), w)
    x = y = total = 0.
    for i in range(h):
        for j in range(w):
            if radius is not None and max(abs(i - row), abs(j - column)) > radius: continue
            p = m[i, j].exp().item()
            x, y, total = x + p*((2*j + 1)/w - 1), y + p*((2*i + 1)/h - 1), total + p
    assert_close(soft_argmax(m[None, None], radius)[0, 0], torch.tensor([x/total, y/total]), 1e-4)

def test_far_weight_pulls_the_mean_of_all_cells_and_not_that_of_the_window():
    maps = torch.zeros(1, 1, 20, 20)
    maps[0, 0, 3, 3] = 6.
    right = torch.full((2,), 7/20 - 1)
    assert_close(soft_argmax(maps, 1)[0, 0], right, 1e-5)
    assert (soft_argmax(maps, None)[0, 0] > right + 0.1).all()

@settings(deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.floats(0.4, 1.), st.integers(0, 2**31))
def test_a_perfect_map_means_its_place_up_to_the_edge(h, w, sigma, seed):
    p = 2*torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(seed)) - 1
    p[0, 0], p[0, 1] = 1., -1.
    x, y = gaussian_cells(p[..., 0], w, sigma), gaussian_cells(p[..., 1], h, sigma)
    maps = (y[..., :, None]*x[..., None, :]).clamp_min(1e-30).log()
    cells = to_pixels(map_places(maps, sigma), (h, w)) - to_pixels(p, (h, w))
    assert cells.abs().max() < 0.1
    assert_close(HeatmapLoss(sigma).decode(maps), map_places(maps, sigma))

def test_a_mean_over_maps_of_no_number_is_none():
    maps = torch.full((1, 1, 4, 4), NAN)
    assert map_places(maps).isnan().all()

def test_half_precision_is_widened():
    assert soft_argmax(torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16)).dtype == torch.float32

@pytest.mark.parametrize('ups', [0, 1, 3])
def test_each_step_up_doubles_the_map(ups):
    maps = heatmap_head(8, 3, ups, width=4)(torch.randn(2, 8, 3, 5))
    assert_eq(tuple(maps.shape), (2, 3, 3*2**ups, 5*2**ups))

# ---- metrics

@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31))
def test_the_error_is_the_mean_distance_in_pixels(n, k, seed):
    g = torch.Generator().manual_seed(seed)
    pred, yb = (torch.rand(n, k, 2, generator=g)*2 - 1 for _ in range(2))
    yb[torch.rand(n, k, generator=g) < 0.3] = NAN
    d = [math.hypot((a[0] - b[0])*320, (a[1] - b[1])*240) for p, y in zip(pred.tolist(), yb.tolist())
         for a, b in zip(p, y) if b[0] == b[0]]
    got = pixel_error(pred.flatten(1), yb, (480, 640))
    assert math.isnan(got) if not d else abs(got - sum(d)/len(d)) < 1e-2

@pytest.mark.parametrize('metric', [PixelError(50), PCK(0.2, 50), PCK(1.5, 50, between=(0, 2))],
                         ids=['error', 'pck', 'pck between'])
def test_metrics_over_batches_are_those_over_all(metric):
    g = torch.Generator().manual_seed(3)
    pred, yb = (torch.rand(40, 3, 2, generator=g)*2 - 1 for _ in range(2))
    yb[torch.rand(40, 3, generator=g) < 0.3] = NAN
    def over(sizes):
        metric.reset()
        for p, y in zip(pred.split(sizes), yb.split(sizes)): metric.update(p, y)
        return float(metric.compute())
    assert abs(over([40]) - over([1, 20, 3, 16])) < 1e-5
    # two ranks: states add up
    states = []
    for rank in (0, 1):
        metric.reset()
        metric.update(pred[rank::2], yb[rank::2])
        states.append(metric.states())
    total, n = (sum(s[name] for s in states) for name in ('total', 'n'))
    assert abs(float(total/n) - over([40])) < 1e-5

def test_pck_counts_what_is_near_enough():
    yb = torch.tensor([[[0., 0.], [1., 0.], [NAN, NAN]]])
    pred = torch.tensor([[[0.1, 0.], [0.5, 0.], [0., 0.]]])   # 5 and 25 pixels off
    def of(metric):
        metric.update(pred, yb)
        return float(metric.compute())
    assert_eq([of(PCK(within, 100)) for within in (0.04, 0.06, 0.3)], [0, 0.5, 1])
    assert_eq(of(PCK(0.2, 100, between=(0, 1))), 0.5)   # 50 pixels apart, 10 are allowed
    assert math.isnan(of(PCK(0.2, 100, between=(0, 2))))
    assert PCK(0.1, 9).name == 'pck' and PixelError(9).name == 'pixel_error'

def test_a_prediction_that_is_no_number_is_wrong_and_not_left_out():
    yb = torch.tensor([[[0., 0.], [0.5, 0.], [NAN, NAN]]])
    pred = torch.tensor([[[0., 0.], [NAN, NAN], [0., 0.]]])
    assert math.isnan(pixel_error(pred, yb, 10))
    for metric, right in (PixelError(10), NAN), (PCK(0.1, 10), 0.5), (PCK(0.1, 10, between=(0, 1)), 0.5):
        metric.update(pred, yb)
        assert_close(metric.compute(), torch.tensor(right)) if right == right else None
        assert math.isnan(metric.compute()) == (right != right)

def test_points_maps_and_rows_are_measured_alike():
    maps, yb = torch.randn(3, 4, 6, 6), torch.rand(3, 4, 2)
    p = map_places(maps)
    right = torch.linalg.vector_norm(25*(p - yb), dim=-1)
    for pred in (maps, p, p.flatten(1)): assert_close(pixel_distances(pred, yb, 50), right, 1e-4)

# ---- training, answers, files

@pytest.fixture(scope='module')
def learn(faces):
    set_seed(1)
    data = bunch(faces, get_transforms(max_warp=0.), size=(32, 48))
    metrics = [PixelError((40, 60)), PCK(0.1, (40, 60))]
    learn = create_heatmaps(data, arch, pretrained=False, metrics=metrics, width=16, path=faces)
    with learn.quiet(): learn.fit_one_cycle(30, 0.02)
    return learn

@pytest.mark.slow
def test_maps_learn_to_find_coloured_squares(learn): assert learn.validate()['pixel_error'] < 6

@pytest.mark.slow
def test_numbers_learn_too(faces):
    set_seed(1)
    learn = create_cnn(bunch(faces, size=(32, 48)), arch, pretrained=False, metrics=PixelError((40, 60)))
    assert learn.model.head.fc.out_features == 6 and isinstance(learn.loss_func, PointsLoss)
    before = learn.validate()['pixel_error']
    with learn.quiet(): learn.fit_one_cycle(30, 0.02)
    assert learn.validate()['pixel_error'] < before/2

@pytest.mark.slow
@pytest.mark.parametrize('tfms', [None, [CenterResizedCrop((32, 48), zoom=1.2)], [CenterCrop((36, 50))]],
                         ids=['pressed', 'cropped', 'cut out'])
def test_an_answer_is_in_pixels_of_the_users_picture(faces, tfms):
    data = bunch(faces, tfms, size=(32, 48))
    class Oracle(nn.Module):
        "Finds each colour: a map that is high in the middle of its pixels."
        def forward(self, x):
            strong = (x > 0.6) & (x.sum(1, keepdim=True) < 1.6)
            return nn.functional.avg_pool2d(strong.float(), 5, 1, 2)*50   # highest in the middle
    learn = Learner(data, Oracle(), loss_func=HeatmapLoss())
    table = read_points(faces/'points.csv')
    for i in (1, 14):
        said, target, _ = learn.predict(faces/f'{i:02}.png')
        for name, right in table(faces/f'{i:02}.png').items():
            if right is not None: assert math.dist(said[name], right) < 1.5
        assert_eq(tuple(target.shape), (3, 2))
        assert target.abs().max() <= 1
    turned = partial(PointsList, order='yx', names=list(COLOURS))
    label = lambda p: [None if v is None else v[::-1] for v in table(p).values()]
    other = labeled(faces, turned, label).transform(tfms, size=(32, 48)).databunch(bs=4, seed=1)
    again = Learner(other, Oracle(), loss_func=HeatmapLoss()).predict(faces/'14.png').label
    for name, right in said.items(): assert math.dist(again[name][::-1], right) < 1e-4

def test_answers_are_refused_where_batches_of_validation_move(faces):
    moving = labeled(faces).transform([RandomFlip()], size=(32, 48)).databunch(bs=4)
    still = labeled(faces).transform(([RandomFlip()], []), size=(32, 48)).databunch(bs=4)
    for data, refused in (moving, True), (still, False):
        learn = create_cnn(data, arch, pretrained=False)
        if not refused: assert learn.predict(faces/'00.png').label.keys() == COLOURS.keys()
        else:
            with pytest.raises(ValueError, match="training's"): learn.predict(faces/'00.png')

def test_points_without_names_come_as_a_list(faces):
    data = labeled(faces, label=lambda p: [(5, 6), (7, 8)]).transform(size=16).databunch(bs=4)
    learn = Learner(data, nn.Sequential(nn.Flatten(), nn.Linear(768, 4)))
    said = learn.predict(faces/'00.png').label
    assert isinstance(said, list) and len(said) == 2 and len(said[0]) == 2

@pytest.mark.slow
def test_an_exported_model_answers_the_same(learn, faces):
    path = learn.export('points.pth')
    paths = [faces/'00.png', faces/'07.png']
    for other in (load_learner(path), load_predictor(path), learn.predictor()):
        for a, b in zip(other.predict_batch(paths), learn.predict_batch(paths)):
            assert_close(a.target, b.target, 1e-5)
            assert a.label.keys() == b.label.keys() == COLOURS.keys()
            for name in a.label: assert math.dist(a.label[name], b.label[name]) < 1e-3

@pytest.mark.slow
def test_batches_results_and_the_worst_are_shown(learn):
    import matplotlib.pyplot as plt
    learn.data.show_batch(4)
    drawn = [len(ax.lines) for ax in plt.gcf().axes if ax.images]
    assert drawn and all(2 <= n <= 3 for n in drawn)
    learn.show_results(3)
    learn.plot_top_losses(2)
    plt.close('all')
    worst = learn.top_losses(3)
    assert 'left_eye' in worst.truth[0] and 'mouth –' in worst.truth[0]
    assert worst.loss.is_monotonic_decreasing

@pytest.mark.slow
def test_a_fit_that_breaks_off_resumes(faces):
    def fresh():
        set_seed(2)
        data = bunch(faces, get_transforms(), size=32)
        return create_heatmaps(data, arch, pretrained=False, width=8, path=faces)
    class Stop(Callback):
        order = 90
        def after_epoch(self): raise KeyboardInterrupt
    whole, first, second = fresh(), fresh(), fresh()
    with whole.quiet():
        whole.fit(2, 0.01)
        with pytest.raises(KeyboardInterrupt): first.fit(2, 0.01, cbs=[Checkpoint(faces/'run.pth'), Stop()])
        second.fit(2, 0.01, resume=faces/'run.pth')
    for a, b in zip(whole.model.parameters(), second.model.parameters()): assert_close(a, b, 1e-6)

@pytest.mark.slow
def test_mixup_skips_missing_points_and_cutmix_is_refused(faces):
    data = bunch(faces, size=(32, 48))
    learn = create_cnn(data, arch, pretrained=False)
    with learn.quiet(): learn.fit(1, 0.01, cbs=MixUp(0.4))
    assert math.isfinite(learn.validate()['loss'])
    with pytest.raises(ValueError, match='points'): learn.fit(1, 0.01, cbs=CutMix())
    with pytest.raises(ValueError, match='move'): learn.tta()

# ---- both sides of the mirror

def test_the_mean_over_the_mirror_moves_points_back():
    class Halves(nn.Module):
        "Says where the bright pixel of the left half is, and that of the right half."
        def forward(self, x):
            left = (torch.arange(8) < 4).expand(x.shape)
            return torch.cat([x.where(left, -1e4), x.where(~left, -1e4)], 1)
    x = torch.zeros(1, 1, 4, 8)
    x[0, 0, 1, 2] = x[0, 0, 3, 7] = 1e4
    right = map_places(Halves()(x))
    assert_close(right[:, 0], torch.tensor([[-3/8, -1/4]]), 0.02)
    assert_close(MirrorMean(Halves(), [1, 0])(x), right)
    assert not torch.allclose(MirrorMean(Halves(), [0, 1])(x), right, atol=0.1)

@pytest.mark.slow
def test_flips_at_test_time_keep_the_error_low(learn):
    p, y = learn.tta_flip()
    plain, _ = learn.get_preds()
    assert_eq(p.shape, plain.shape)
    assert not torch.equal(p, plain)
    size = (40, 60)
    assert pixel_error(p, y, size) < pixel_error(plain, y, size) + 2
    nothing = torch.zeros(4, 3), torch.zeros(4)
    with pytest.raises(ValueError, match='points'):
        Learner(make_data(nothing, nothing, bs=2), nn.Linear(3, 2)).tta_flip()
