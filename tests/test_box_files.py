"""Boxes come from files whatever is odd about them, move with their pictures into padded batches, and come
back in the pixels of the user's own picture; what is left out is said."""
import json, warnings
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw

from exp.augmentation import CenterCrop, CenterResizedCrop, PilRandomFlip, RandomResizedCrop
from exp.batch_transforms import RandomDihedral, RandomFlip, RandomZoom, get_transforms
from exp.box_files import (Box, BoxList, BoxProcessor, BoxTable, pad_boxes, read_boxes, read_coco, read_voc)
from exp.core import test_close as assert_close, test_eq as assert_eq
from exp.data_block import ImageList, LabeledData
from exp.downloads import URLs
from exp.standins import bananas_standin, coco_standin

COLOURS = {'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255)}

@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    "Twelve pictures of several sizes with coloured rectangles, none in the first, and their boxes by name."
    root, rng, truth = tmp_path_factory.mktemp('scenes'), np.random.default_rng(0), {}
    for i in range(12):
        im, boxes = Image.new('RGB', (80 + 4*i, 60), (90, 90, 90)), []
        for k in range(i % 4):
            x, y = 4 + 24*k, int(rng.integers(5, 20))
            w, h = int(rng.integers(8, 18)), int(rng.integers(10, 30))
            name = list(COLOURS)[int(rng.integers(3))]
            ImageDraw.Draw(im).rectangle((x, y, x + w - 1, y + h - 1), fill=COLOURS[name])
            boxes.append(Box(name, (float(x), float(y), float(x + w), float(y + h))))
        im.save(root/f'{i:02}.png')
        truth[f'{i:02}.png'] = boxes
    return root, truth

def labeled(scenes, **kw):
    root, truth = scenes
    return (ImageList.from_folder(root, '.png').split_by_func(lambda f: int(f.stem) >= 8)
            .label_from_func(lambda f: truth[f.name], BoxList, **kw))

def bunch(scenes, tfms=None, size=(60, 90), bs=4, **kw):
    return labeled(scenes).transform(tfms, size=size).databunch(bs=bs, seed=1, **kw)

def colour_shares(xb, boxes, labels, classes):
    "Of each real box, the share of its pixels that has the colour of its class."
    shares = []
    for x, bs, ls in zip(xb, boxes, labels):
        h, w = x.shape[-2:]
        for b, i in zip(bs, ls.tolist()):
            if i < 0: continue
            x1, y1, x2, y2 = ((b + 1)/2*torch.tensor([w, h, w, h])).round().int().tolist()
            colour = torch.tensor(COLOURS[classes[i]])[:, None, None]/255
            inside = x[:, y1:max(y2, y1 + 1), x1:max(x2, x1 + 1)]
            shares.append(((inside - colour).abs().amax(0) < 0.5).float().mean().item())
    return shares

# ---- labels and batches

def test_the_processor_learns_names_and_numbers_boxes():
    proc = BoxProcessor()
    proc.learn([[('b', (0, 0, 1, 1))], [], [Box('a', [0, 0, 2, 2])]])
    crowd = Box('a', torch.tensor([0., 0, 1, 1]), None, True)
    boxes, labels = proc.process([('b', np.array([1, 2, 3, 4])), crowd])
    assert boxes.dtype == np.float32 and labels.dtype == np.int64
    assert_eq((proc.classes, labels.tolist()), (['a', 'b'], [1, -2]))
    assert_eq(boxes.tolist(), [[1, 2, 3, 4], [0, 0, 1, 1]])
    empty = proc.process([])
    assert_eq((empty[0].shape, empty[1].shape), ((0, 4), (0,)))
    again = BoxProcessor()
    again.load_state_dict(proc.state_dict())
    assert_eq(again.process([('b', (0, 0, 1, 1))])[1].tolist(), [1])

@pytest.mark.parametrize('item', [[('a', (0, 0, 1))], [('a',)], [3], [('a', None)], [('a', 'left')]])
def test_what_is_no_box_is_said(item):
    with pytest.raises(ValueError, match='no box'): BoxProcessor(['a']).process(item)

def test_unknown_names_and_no_names_are_said():
    with pytest.raises(ValueError, match='no class'): BoxProcessor(['a']).process([('b', (0, 0, 1, 1))])
    with pytest.raises(ValueError, match='no training item'): BoxProcessor().learn([[], []])
    assert_eq(BoxProcessor(['a'], 'other').process([('b', (0, 0, 1, 1))])[1].tolist(), [1])

@pytest.mark.parametrize('box', [(3, 0, 3, 5), (5, 0, 3, 5), (0, 0, np.nan, 5), (0, 0, np.inf, 5)])
def test_boxes_without_an_area_are_left_out_with_a_warning(box):
    with pytest.warns(UserWarning, match='area'):
        boxes, labels = BoxProcessor(['a']).process([('a', box), ('a', (0, 0, 1, 1))])
    assert_eq(boxes.tolist(), [[0, 0, 1, 1]])

def test_pad_boxes_has_a_row_at_least():
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    one = torch.ones(2, 4), torch.tensor([3, 0])
    boxes, labels = pad_boxes([none, one])
    assert_eq((boxes[0].abs().sum().item(), labels.tolist()), (0, [[-1, -1], [3, 0]]))
    boxes, labels = pad_boxes([none, none])
    assert_eq((tuple(boxes.shape), labels.tolist(), boxes.any().item()), ((2, 1, 4), [[-1], [-1]], False))

def test_batches_are_padded_and_boxes_lie_on_their_things(scenes):
    data = bunch(scenes)
    assert_eq((data.classes, data.c, data.kind), (sorted(COLOURS), 3, 'boxes'))
    for dl in data.train_dl, data.valid_dl:
        for xb, yb in dl:
            xb, (boxes, labels) = data.transform_batch(xb, yb, train=False, items=None)
            assert_eq((boxes.dtype, labels.dtype), (torch.float32, torch.int64))
            assert (boxes[labels < 0] == 0).all()
            shares = colour_shares(xb, boxes, labels, data.classes)
            assert all(s > 0.8 for s in shares)

@pytest.mark.parametrize('tfms', [[PilRandomFlip(1.)], [RandomResizedCrop((60, 90), scale=(0.4, 1.))],
                                  [RandomFlip()], [RandomDihedral()], [RandomZoom(1.3)]],
                         ids=lambda t: type(t[0]).__name__)
def test_boxes_move_with_their_pictures(scenes, tfms):
    data = bunch(scenes, (tfms, []), size=64 if isinstance(tfms[0], RandomDihedral) else (60, 90), bs=8)
    for epoch in range(3):
        data.train_dl.set_epoch(epoch)
        for batch in data.train_dl:
            xb, (boxes, labels) = data.transform_batch(*batch, train=True, items=batch.items)
            assert boxes.abs().max() <= 1 and (boxes[labels == -1] == 0).all()
            assert all(s > 0.7 for s in colour_shares(xb, boxes, labels, data.classes))

def test_a_box_that_left_its_picture_goes_with_its_label(scenes):
    data = bunch(scenes, [CenterCrop((20, 20))], size=20)
    for dl in data.train_dl, data.valid_dl:
        for xb, (boxes, labels) in dl:
            area = (boxes[..., 2] - boxes[..., 0])*(boxes[..., 3] - boxes[..., 1])
            assert_eq((area > 0).tolist(), (labels >= 0).tolist())

def test_a_box_reaching_out_of_its_picture_is_cut_and_one_outside_goes(tmp_path):
    Image.new('RGB', (40, 20)).save(tmp_path/'a.png')
    boxes = [('a', (-10, 5, 20, 30)), ('a', (50, 0, 60, 10))]
    split = ImageList.from_folder(tmp_path).split_none().label_from_func(lambda f: boxes, BoxList)
    _, (found, labels) = split.train[0]
    assert_close(found, torch.tensor([[-1., -0.5, 0, 1]]))
    assert_eq(labels.tolist(), [0])

def test_workers_and_a_cache_give_the_same(scenes):
    plain = [yb for _, yb in bunch(scenes).valid_dl]
    for data in (bunch(scenes, num_workers=1),
                 labeled(scenes).transform(size=(60, 90), cache=True).databunch(bs=4, seed=1)):
        for _ in range(2):
            for a, b in zip(plain, (yb for _, yb in data.valid_dl)):
                assert all(map(torch.equal, a, b))

# ---- answers and pictures

@pytest.mark.parametrize('tfms', [[], [CenterResizedCrop((60, 80))], [CenterCrop((50, 70))]], ids=repr)
def test_answers_are_in_pixels_of_the_items_own_image(scenes, tfms):
    root, truth = scenes
    data = bunch(scenes, ([], tfms), size=(60, 80))
    y = data.item_data.y
    for i in range(len(data.valid_ds)):
        item = data.valid_ds.x.items[i]
        _, (boxes, labels) = data.valid_ds[i]
        found = y.answer((boxes, labels, torch.ones(len(labels))), item, data)
        known = {b.label: [] for b in truth[item.name]}
        for b in truth[item.name]: known[b.label].append(b.box)
        for b in found:
            assert b.score == 1 and isinstance(b, Box)
            inside = [k for k in known[b.label] if k[0] - 0.1 <= b.box[0] and b.box[2] <= k[2] + 0.1
                      and k[1] - 0.1 <= b.box[1] and b.box[3] <= k[3] + 0.1]
            assert inside
            if not tfms: assert_close(torch.tensor(b.box), torch.tensor(inside[0]), 0.02)

def test_transforms_that_are_drawn_for_a_batch_cannot_be_undone(scenes):
    data = bunch(scenes, ([], [RandomFlip()]))
    y = data.item_data.y
    with pytest.raises(ValueError, match='move'):
        y.answer((torch.zeros(1, 4), torch.zeros(1).long()), data.valid_ds.x.items[0], data)

def test_truths_and_detections_are_decoded_said_and_drawn(scenes):
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    y = bunch(scenes).item_data.y   # blue, green, red
    boxes = torch.tensor([[-1., -1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [-0.5, -0.5, 0.5, 0.5]])
    labels = torch.tensor([2, 0, -1, -3])
    assert_eq(y.decode((boxes, labels)), [Box('red', (-1, -1, 0, 0)), Box('blue', (0, 0, 1, 1)),
                                          Box('green', (-0.5, -0.5, 0.5, 0.5), None, True)])
    scores = torch.tensor([0.5, 0.25, 0., 0.125])
    assert_eq([b.score for b in y.decode((boxes, labels, scores))], [0.5, 0.25, 0.125])
    assert_eq(y.text((boxes, labels, scores)), 'red 0.50, blue 0.25, green 0.12')
    assert_eq((y.text((boxes[:1].repeat(2, 1), labels[:1].repeat(2))), y.text((boxes[2:3], labels[2:3]))),
              ('2 × red', '(none)'))
    fig, ax = plt.subplots()
    ax.imshow(np.zeros((20, 40, 3)))
    y.show((boxes, labels, scores), ax, 'truth')
    assert_eq((len(ax.lines), [t.get_text() for t in ax.texts]), (3, ['red 0.50', 'blue 0.25', 'green 0.12']))
    assert_eq(ax.lines[0].get_xdata().tolist(), [-0.5, 19.5, 19.5, -0.5, -0.5])
    assert_eq(ax.lines[2].get_linestyle(), '--')
    plt.close('all')
    bunch(scenes, get_transforms()).show_batch(4)
    plt.close('all')

def test_an_exported_list_knows_its_names_again(scenes):
    ds = bunch(scenes).item_data
    again = LabeledData.from_state(json.loads(json.dumps(ds.state())))
    assert_eq((type(again.y), again.y.classes), (BoxList, ds.classes))
    assert 'red' in repr(ds.y) or 'no boxes' in repr(ds.y)

# ---- COCO

def coco(root, **changes):
    found = dict(images=[dict(id=5, file_name='00.png'), dict(id=9, file_name='01.png')],
                 categories=[dict(id=90, name='red'), dict(id=2, name='traffic light')],
                 annotations=[dict(id=1, image_id=9, category_id=90, bbox=[1, 2, 3.5, 4], iscrowd=0),
                              dict(id=2, image_id=9, category_id=2, bbox=[0, 0, 50, 40], iscrowd=1)])
    (root/'x.json').write_text(json.dumps(found | changes))
    return root/'x.json'

def test_coco_with_sparse_ids_crowds_and_an_image_without_boxes(scenes, tmp_path):
    table = read_coco(coco(tmp_path), scenes[0])
    assert_eq((table.classes, len(table)), (['red', 'traffic light'], 2))
    assert_eq(table(scenes[0]/'01.png'), [Box('red', (1, 2, 4.5, 6))])
    assert_eq(table(scenes[0]/'00.png'), [])
    assert scenes[0]/'00.png' in table and scenes[0]/'05.png' not in table
    with pytest.raises(ValueError, match='no row'): table(scenes[0]/'05.png')
    crowds = read_coco(coco(tmp_path), crowds=True)(Path('01.png'))
    assert_eq([(b.label, b.crowd) for b in crowds], [('red', False), ('traffic light', True)])

def test_coco_finds_file_names_with_folders(tmp_path):
    (tmp_path/'images'/'val').mkdir(parents=True)
    (tmp_path/'annotations').mkdir()
    Image.new('RGB', (9, 9)).save(tmp_path/'images'/'val'/'a.png')
    names = [dict(id=5, file_name='images/val/a.png'), dict(id=9, file_name='images\\val\\b.png')]
    table = read_coco(coco(tmp_path/'annotations', images=names))
    assert_eq(len(table(tmp_path/'images'/'val'/'b.png')), 1)
    assert_eq(table(tmp_path/'images'/'val'/'a.png'), [])

@pytest.mark.parametrize('changes', [
    dict(annotations=[dict(id=1, image_id=9, category_id=91, bbox=[1, 2, 3, 4])]),
    dict(annotations=[dict(id=1, image_id=8, category_id=90, bbox=[1, 2, 3, 4])]),
    dict(images=[dict(id=5, file_name='a.png'), dict(id=9, file_name='a.png')])])
def test_coco_that_contradicts_itself_is_said(tmp_path, changes):
    with pytest.raises(ValueError, match='x.json'): read_coco(coco(tmp_path, **changes))

def test_a_json_of_something_else_is_said(tmp_path):
    for text in ('[1, 2]', '{"images": []}'):
        (tmp_path/'y.json').write_text(text)
        with pytest.raises(ValueError, match='no json of COCO'): read_coco(tmp_path/'y.json')

def test_coco_warns_of_boxes_without_an_area(tmp_path):
    flat = [dict(id=i, image_id=9, category_id=90, bbox=[1, 2, i, 4]) for i in range(3)]
    with pytest.warns(UserWarning, match='1 of 3'): table = read_coco(coco(tmp_path, annotations=flat))
    assert_eq(len(table('01.png')), 2)

# ---- Pascal VOC

def voc(file, things, name='whatever.jpg'):
    objects = ''.join(f'<object><name>{n}</name><difficult>{d}</difficult><bndbox><xmin>{b[0]}</xmin>'
                      f'<ymin>{b[1]}</ymin><xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox></object>'
                      for n, b, d in things)
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(f'<annotation><filename>{name}</filename>{objects}</annotation>')

def test_voc_counts_pixels_from_1(tmp_path):
    voc(tmp_path/'a b.v1.xml', [('traffic light', (1, 1, 10, 20), 0), ('dog', (5, 6, 7, 8), 1)])
    voc(tmp_path/'none.xml', [])
    table = read_voc(tmp_path)
    assert_eq(table(tmp_path/'a b.v1.jpg'), [Box('traffic light', (0, 0, 10, 20)), Box('dog', (4, 5, 7, 8))])
    assert_eq((table('none.png'), table.classes), ([], ['dog', 'traffic light']))
    assert_eq(read_voc(tmp_path, first=0)('a b.v1.jpg')[0].box, (1, 1, 10, 20))
    assert_eq(len(read_voc(tmp_path, difficult=False)('a b.v1.jpg')), 1)
    assert 'none.jpg' in table and 'other.jpg' not in table

def test_voc_in_a_folder_beside_the_pictures_or_among_them(tmp_path):
    for sub in 'Annotations', 'JPEGImages': (tmp_path/sub).mkdir()
    Image.new('RGB', (30, 20)).save(tmp_path/'JPEGImages'/'a.jpg')
    voc(tmp_path/'Annotations'/'a.xml', [('dog', (1, 1, 15, 10), 0)])
    split = (ImageList.from_folder(tmp_path/'JPEGImages').split_none()
             .label_from_func(read_voc(tmp_path/'Annotations'), BoxList))
    assert_close(split.train[0][1][0], torch.tensor([[-1., -1, 0, 0]]))
    for part in 'xy': voc(tmp_path/part/'same.xml', [(part, (1, 1, 5, 5), 0)])
    table = read_voc(tmp_path)
    assert_eq([table(tmp_path/part/'same.jpg')[0].label for part in 'xy'], ['x', 'y'])

@pytest.mark.parametrize('text', ['<annotation><object>',
                                  '<annotation><object><name>a</name></object></annotation>',
                                  '<annotation><object><name>a</name><bndbox><xmin>1</xmin></bndbox></object>'
                                  '</annotation>', 'no xml'])
def test_broken_xml_is_said_with_its_name(tmp_path, text):
    (tmp_path/'broken.xml').write_text(text)
    with pytest.raises(ValueError, match='broken.xml'): read_voc(tmp_path)

def test_a_folder_without_xml_is_said(tmp_path):
    with pytest.raises(ValueError, match='no xml'): read_voc(tmp_path)

def test_voc_warns_of_boxes_without_an_area(tmp_path):
    voc(tmp_path/'a.xml', [('dog', (9, 1, 5, 5), 0)])
    with pytest.warns(UserWarning, match='first in a'): assert_eq(read_voc(tmp_path)('a.jpg'), [])

# ---- tables

def test_d2ls_layout_with_several_rows_for_an_image_and_images_without(tmp_path):
    (tmp_path/'label.csv').write_text('img_name,label,xmin,ymin,xmax,ymax\n1.png,0,104,20,143,58\n'
                                      '2.png,1,68,175,118,223\n1.png,0,1.5,2,3,4\n3.png,,,,,\n')
    table = read_boxes(tmp_path/'label.csv')
    assert_eq(table('1.png'), [Box(0, (104, 20, 143, 58)), Box(0, (1.5, 2, 3, 4))])
    assert_eq((table('3.png'), len(table), len(table('2.png'))), ([], 3, 1))
    assert 'images' in repr(table) and isinstance(table, BoxTable)

@pytest.mark.parametrize('form, row', [('corners', (10, 20, 30, 60)), ('sizes', (10, 20, 20, 40)),
                                       ('centers', (20, 40, 20, 40))])
def test_forms_and_names_of_columns(form, row):
    df = pd.DataFrame([['dog', 'a/1.png', *row]], columns=['what', 'file', *'pqrs'])
    table = read_boxes(df, col='file', label_col='what', box_cols=list('pqrs'), form=form)
    assert_eq(table('a/1.png'), [Box('dog', (10, 20, 30, 60))])

@pytest.mark.parametrize('change', [dict(form='corner'), dict(box_cols=list('abcd')), dict(col='nothing')])
def test_wrong_arguments_are_said(change):
    df = pd.DataFrame([['1.png', 'a', 1, 2, 3, 4]], columns=['f', 'l', 'xmin', 'ymin', 'xmax', 'ymax'])
    with pytest.raises(ValueError): read_boxes(df, **change)

def test_a_box_without_a_label_or_half_a_box_is_said():
    cols = ['f', 'l', 'xmin', 'ymin', 'xmax', 'ymax']
    with pytest.raises(ValueError, match='label'):
        read_boxes(pd.DataFrame([['1.png', None, 1, 2, 3, 4]], columns=cols))
    with pytest.warns(UserWarning, match='area'):
        read_boxes(pd.DataFrame([['1.png', 'a', 1, 2, 3, None]], columns=cols))

# ---- the stand-ins

@pytest.mark.slow
def test_the_standins_are_read_without_a_warning(tmp_path):
    for make, name in (coco_standin, 'coco'), (bananas_standin, 'bananas'):
        (tmp_path/name).mkdir()
        make(tmp_path/name)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        table = read_coco(tmp_path/'coco'/'train.json')
        data = (ImageList.from_folder(tmp_path/'coco'/'train').split_random(seed=0)
                .label_from_func(table, partial(BoxList), classes=table.classes)
                .transform(size=64).databunch(bs=8))
        assert_eq(data.c, 6)
        next(iter(data.train_dl))
        bananas = read_boxes(tmp_path/'bananas'/'bananas_val'/'label.csv')
    assert_eq((len(bananas), bananas.classes), (100, [0]))
    assert URLs.COCO_TINY and URLs.BANANAS

def write_xml(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax>'
                    '<ymax>4</ymax></bndbox></object></annotation>')

@pytest.mark.parametrize('pictures, files', [('JPEGImages/a 1.jpg', 'Annotations/a 1.xml'),
                                             ('JPEGImages/day/a.jpg', 'Annotations/day/a.xml'),
                                             ('day/a.png', 'day/a.xml'), ('a.jpg', 'a.xml'),
                                             ('images/train/a.jpg', 'labels/a.xml')])
def test_xml_files_lie_beside_their_pictures_or_in_a_folder_of_their_own(tmp_path, pictures, files):
    (tmp_path/pictures).parent.mkdir(parents=True, exist_ok=True)
    for name in (tmp_path/pictures).name, 'other.jpg':
        Image.new('RGB', (20, 10)).save((tmp_path/pictures).with_name(name))
    write_xml(tmp_path/files)
    boxes = read_voc(tmp_path)
    assert boxes(tmp_path/pictures) == [Box('cat', (0, 0, 5, 4))] and tmp_path/pictures in boxes
    assert len(ImageList.from_folder(tmp_path).filter(boxes.__contains__)) == 1

def test_of_two_folders_with_equal_names_each_picture_has_its_own_boxes(tmp_path):
    for day in ('mon', 'tue'):
        (tmp_path/day).mkdir()
        Image.new('RGB', (20, 10)).save(tmp_path/day/'a.jpg')
    write_xml(tmp_path/'mon'/'a.xml')
    (tmp_path/'tue'/'a.xml').write_text('<annotation/>')
    boxes = read_voc(tmp_path)
    assert [len(boxes(tmp_path/day/'a.jpg')) for day in ('mon', 'tue')] == [1, 0]
