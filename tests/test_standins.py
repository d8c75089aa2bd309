"""The stand-ins have the real sets' formats, tell the truth, repeat themselves, and leak nothing from
training to validation."""
import csv, hashlib, json, random, re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from exp import standins as D

pytestmark = pytest.mark.slow

STANDINS = {'imagenette': D.imagenette_standin, 'mnist_tiny': D.mnist_tiny_standin,
            'planet': D.planet_standin, 'camvid': D.camvid_standin, 'camvid_11': D.camvid_11_standin,
            'biwi': D.biwi_standin, 'coco': D.coco_standin, 'bananas': D.bananas_standin,
            'imdb': D.imdb_standin}

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The folder of a stand-in, made at the first use; `made.digits[name]` are the places in MNIST of the
    digits it took, in order."""
    folders, digits = {}, {}
    def make(name):
        if name not in folders:
            folders[name], digits[name] = tmp_path_factory.mktemp(name), []
            class Bag(D._DigitBag):
                def take(self, d):
                    i = next(self.heaps[d])
                    digits[name].append(i)
                    return self.images[i]
            with pytest.MonkeyPatch.context() as m:
                m.setattr(D, '_DigitBag', Bag)
                STANDINS[name](folders[name])
        return folders[name]
    make.digits = digits
    return make

def sums(folder):
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in folder.rglob('*') if p.is_file()}

def array(path): return np.asarray(Image.open(path))
def kinds(paths): return {(im.format, im.mode, im.size) for im in map(Image.open, paths)}
def rows(path):
    raw = path.read_bytes()
    assert b'\r' not in raw and raw.endswith(b'\n')
    with open(path, encoding='utf-8', newline='') as f: return list(csv.reader(f))

# what all have in common

@pytest.mark.parametrize('name', STANDINS)
def test_two_makes_are_equal_and_leave_the_global_generators_alone(name, made, tmp_path):
    first = made(name)
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    STANDINS[name](tmp_path)
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())
    assert sums(tmp_path) == sums(first)

@pytest.mark.parametrize('name', STANDINS)
def test_a_folder_that_is_missing_or_in_use_is_refused(name, tmp_path):
    with pytest.raises(FileNotFoundError): STANDINS[name](tmp_path/'nowhere')
    (tmp_path/'mine.txt').write_text('mine')
    with pytest.raises(ValueError, match='empty'): STANDINS[name](tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['mine.txt']

@pytest.mark.parametrize('name', ['planet', 'camvid', 'camvid_11', 'biwi', 'coco', 'bananas'])
def test_no_digit_is_drawn_in_two_scenes(name, made):
    made(name)
    taken = made.digits[name]
    assert len(taken) == len(set(taken)) > 50 and max(taken) < 50_000

def test_a_folder_may_be_given_as_a_string(tmp_path):
    D.coco_standin(str(tmp_path))
    assert (tmp_path/'train.json').is_file()

# drawing

def digit(rng):
    images, _ = D.mnist('train')
    return images[rng.randint(1000)].numpy()

@pytest.mark.parametrize('seed', range(5))
def test_a_drawn_digit_changes_only_the_pixels_of_its_ink(seed):
    rng = np.random.RandomState(seed)
    canvas = D._texture(rng, 60, 90, (0, 0, 0), (90, 90, 90), 5)
    before = canvas.copy()
    ink = D.draw_digit(canvas, digit(rng), 20, 10, 40, (255, 250, 245))
    assert (canvas[ink == 0] == before[ink == 0]).all()
    share = ink[..., None]/255
    assert (np.abs(canvas - (share*(255, 250, 245) + (1 - share)*before)).max() <= .5 + 1e-9
            and ink.max() > 240)

@pytest.mark.parametrize('seed', range(5))
def test_the_box_of_a_mask_is_the_smallest(seed):
    rng = np.random.RandomState(seed)
    mask = rng.rand(30, 40) > .99
    x1, y1, x2, y2 = D.mask_box(mask)
    ys, xs = mask.nonzero()
    assert (x1, y1, x2 - 1, y2 - 1) == (xs.min(), ys.min(), xs.max(), ys.max())
    assert all(type(v) is int for v in (x1, y1, x2, y2))

def test_bad_input_to_the_drawing_is_named():
    with pytest.raises(ValueError, match='empty'): D.mask_box(np.zeros((3, 3), bool))
    canvas = np.zeros((20, 20, 3), np.uint8)
    for x, y, size in (-1, 0, 10), (0, 15, 10), (18, 0, 10), (0, 0, 21):
        with pytest.raises(ValueError, match='canvas'):
            D.draw_digit(canvas, digit(np.random.RandomState(0)), x, y, size, (9, 9, 9))
    with pytest.raises(ValueError, match='height'):
        D.draw_digit(canvas, digit(np.random.RandomState(0)), 0, 0, 0, (9, 9, 9))
    assert not canvas.any()
    for wrong in np.zeros((20, 20, 3)), np.zeros((20, 20), np.uint8), np.zeros((20, 20, 4), np.uint8):
        with pytest.raises(ValueError, match='bytes'):
            D.draw_digit(wrong, digit(np.random.RandomState(0)), 0, 0, 10, (9, 9, 9))
    rng = np.random.RandomState(0)
    with pytest.raises(ValueError, match='smallest'):
        D.scatter_digits(canvas, [digit(rng)], rng, (10, 8))
    with pytest.raises(ValueError, match='colors'):
        D.scatter_digits(canvas, [digit(rng)]*2, rng, (8, 10), [(9, 9, 9)])

@pytest.mark.parametrize('seed', range(5))
def test_scattered_digits_share_no_pixel_and_keep_their_colours(seed):
    rng = np.random.RandomState(seed)
    canvas = np.zeros((100, 100, 3), np.uint8)
    colors = [(250, 10*i, 0) for i in range(8)]
    inks = D.scatter_digits(canvas, [digit(rng) for _ in colors], rng, (20, 40), colors)
    assert len(inks) == 8 and any(ink is not None for ink in inks)
    drawn = [(ink, c) for ink, c in zip(inks, colors) if ink is not None]
    assert np.sum([ink > 127 for ink, _ in drawn], axis=0).max() == 1
    # a later digit's faint border may lie over it
    for ink, color in drawn: assert np.median(np.abs(canvas - ink[..., None]/255*color)[ink > 127]) < 1

def test_a_digit_too_large_for_the_canvas_is_left_out():
    rng = np.random.RandomState(0)
    canvas = np.zeros((16, 16, 3), np.uint8)
    assert D.scatter_digits(canvas, [digit(rng)], rng, (24, 24)) == [None] and not canvas.any()

# Imagenette and MNIST

def test_imagenette_has_the_real_folders_and_fashions_images(made):
    path = made('imagenette')
    wnids = ('n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 n03445777 '
             'n03888257'.split())
    assert sorted(p.name for p in path.iterdir()) == ['train', 'val']
    for part, split, n in ('train', 'train', 300), ('val', 'valid', 100):
        images, labels = D.fashion_mnist(split)
        assert sorted(p.name for p in (path/part).iterdir()) == wnids
        for c, wnid in enumerate(wnids):
            files = sorted((path/part/wnid).iterdir())
            assert len(files) == n
            for f in files[::50]:
                i = int(re.fullmatch(rf'{wnid}_(\d+)\.png', f.name).group(1))
                assert labels[i] == c and (array(f) == images[i].numpy()).all()
    assert kinds(path.glob('*/*/*')) == {('PNG', 'L', (28, 28))}

def test_imagenettes_names_are_the_clothes_for_the_standin_and_the_real_ones_otherwise(made, tmp_path):
    names = D.imagenette_names(made('imagenette'))
    assert tuple(names.values()) == tuple(D.FASHION_CLASSES)
    (tmp_path/'train'/'n01440764').mkdir(parents=True)
    Image.new('RGB', (8, 8)).save(tmp_path/'train'/'n01440764'/'n01440764_1.JPEG')
    real = D.imagenette_names(tmp_path)
    assert list(real) == list(names) and real['n01440764'] == 'tench'

@pytest.mark.parametrize('name, parts',
                         [('imagenette', ('train', 'val')), ('mnist_tiny', ('train', 'valid', 'test'))])
def test_no_image_is_in_two_parts(name, parts, made):
    pixels = [{array(f).tobytes() for f in (made(name)/part).rglob('*.png')} for part in parts]
    assert len(set.union(*pixels)) == sum(map(len, pixels))

def test_mnist_tiny_has_the_real_files(made):
    path = made('mnist_tiny')
    header, *table = rows(path/'labels.csv')
    assert header == ['name', 'label'] and {label for _, label in table} == {'3', '7'}
    assert (sorted(name for name, _ in table) == sorted(p.relative_to(path).as_posix()
                                                        for p in path.glob('[tv]*/[37]/*.png')))
    assert all(name.split('/')[1] == label for name, label in table)
    assert (sorted(p.name for p in path.iterdir()) == ['labels.csv', 'test', 'train', 'valid']
            and len(list(path.glob('test/*.png'))) == 20)
    for part in 'train', 'valid':
        images, labels = D.mnist(part)
        for name, label in table[::40]:
            if name.startswith(part):
                assert (labels[int(Path(name).stem)] == int(label)
                        and (array(path/name) == images[int(Path(name).stem)].numpy()).all())

# Planet

def test_planet_has_the_real_format(made):
    path = made('planet')
    header, *table = rows(path/'labels.csv')
    assert header == ['image_name', 'tags'] and len(table) == 1000
    assert all(re.fullmatch(r'train_\d+', name) for name, _ in table)
    assert sorted(p.name for p in (path/'train').iterdir()) == sorted(f'{name}.jpg' for name, _ in table)
    assert kinds(list((path/'train').iterdir())[:50]) == {('JPEG', 'CMYK', (256, 256))}
    tags = [t.split(' ') for _, t in table]
    assert all(t == sorted(set(t)) for t in tags) and len({x for t in tags for x in t}) == 17

def test_planets_digits_are_those_of_its_tags(monkeypatch):
    rng = np.random.RandomState(0)
    drawn = []
    monkeypatch.setattr(D, 'draw_digit', lambda canvas, digit, *a, draw=D.draw_digit: (
        drawn.append(digit), draw(canvas, digit, *a))[1])
    bag = D._DigitBag(rng)
    _, labels = D.mnist('train')
    label = {bag.images[i].tobytes(): D._DIGIT_NAMES[labels[i]] for i in range(50_000)}
    for _ in range(60):
        drawn.clear()
        canvas, tags = D._planet_scene(rng, bag, side=96)
        assert tags & set(D._DIGIT_NAMES) == {label[d.tobytes()] for d in drawn}
        assert (len(tags & {'clear', 'partly_cloudy', 'haze', 'cloudy'}) == 1
                and ('cloudy' not in tags or tags == {'cloudy'}))

# CamVid

@pytest.mark.parametrize('name, suffix, n, codes, lists', [
    ('camvid', '.png', 100, 32, {}), ('camvid_11', '.jpg', 400, 12, {'valid': 60, 'test': 100})])
def test_camvid_has_the_real_format(name, suffix, n, codes, lists, made):
    path = made(name)
    text = (path/'codes.txt').read_bytes()
    assert b'\r' not in text and text.endswith(b'\n') and len(text.split()) == codes
    frames, masks = sorted((path/'images').iterdir()), sorted((path/'labels').iterdir())
    assert len(frames) == n and {f.suffix for f in frames} == {suffix}
    assert [m.name for m in masks] == [f'{f.stem}_P.png' for f in frames]
    assert (kinds(frames) == {('PNG' if suffix == '.png' else 'JPEG', 'RGB', (128, 96))}
            and kinds(masks) == {('PNG', 'L', (128, 96))})
    assert (sorted(p.name for p in path.iterdir())
            == sorted(['codes.txt', 'images', 'labels'] + [f'{part}.txt' for part in lists]))
    listed = {part: (path/f'{part}.txt').read_text().splitlines() for part in lists}
    assert {part: len(set(v)) for part, v in listed.items()} == lists
    everywhere = [f for v in listed.values() for f in v]
    assert len(everywhere) == len(set(everywhere)) and set(everywhere) < {f.name for f in frames}

def test_camvids_codes_are_the_real_ones_in_order(made):
    assert ((made('camvid')/'codes.txt').read_text().split()[::5]
            == ['Animal', 'Car', 'LaneMkgsDriv', 'ParkingBlock', 'SignSymbol', 'Train', 'Void'])
    assert (made('camvid_11')/'codes.txt').read_text().split() == \
        ['Sky', 'Building', 'Pole', 'Road', 'Pavement', 'Tree', 'SignSymbol', 'Fence', 'Car', 'Pedestrian',
         'Bicyclist', 'Void']

@pytest.mark.parametrize('name', ['camvid', 'camvid_11'])
def test_masks_hold_codes_and_the_background_has_their_colours(name, made):
    path = made(name)
    codes = (path/'codes.txt').read_text().split()
    pairs = [(array(f).astype(int), array(path/'labels'/f'{f.stem}_P.png'))
             for f in sorted((path/'images').iterdir())[:100]]
    used = {codes[v] for _, mask in pairs for v in np.unique(mask)}
    assert (used == {'Sky', 'Building', 'Tree', 'Road', 'Car', 'Pedestrian', 'Bicyclist', 'SignSymbol',
                     'Fence', 'Void'})
    pixels = lambda code: np.concatenate([im[mask == codes.index(code)] for im, mask in pairs])
    for code, (low, high) in D._STREET.items():
        assert ((pixels(code) >= np.array(low) - 30)
                & (pixels(code) <= np.array(high) + 30)).all(1).mean() > .97
    for code in ('Car', 'Pedestrian', 'Bicyclist', 'SignSymbol', 'Fence'):
        assert pixels(code).max(1).mean() > 200

# BIWI

def test_biwi_has_the_real_format_and_its_centres_are_in_the_heads(made):
    path = made('biwi')
    assert sorted(p.name for p in path.iterdir()) == [f'{i:02}' for i in range(1, 25)]
    cal = np.genfromtxt(path/'01'/'rgb.cal', skip_footer=6)
    assert cal.shape == (3, 3) and (cal[2] == (0, 0, 1)).all()
    shares = []
    for person in sorted(path.iterdir())[::6]:
        frames = sorted(person.glob('*_rgb.jpg'))
        assert len(frames) == 40 and kinds(frames) == {('JPEG', 'RGB', (160, 120))}
        assert (sorted(p.name for p in person.iterdir())
                == sorted(['rgb.cal'] + [f.name[:-7] + s for f in frames for s in ('rgb.jpg', 'pose.txt')]))
        ims = np.stack([array(f).astype(int) for f in frames])
        for f, gone in zip(frames, np.abs(ims - np.median(ims, 0)).sum(3) > 120):
            pose = f.with_name(f'{f.name[:-7]}pose.txt')
            rotation, (X, Y, Z) = np.genfromtxt(pose, skip_footer=1), np.genfromtxt(pose, skip_header=3)
            assert (rotation == np.eye(3)).all() and 400 < Z < 1200
            x, y, half = X*cal[0, 0]/Z + cal[0, 2], Y*cal[1, 1]/Z + cal[1, 2], cal[1, 1]*D._HEAD/Z/2
            near = gone[max(0, round(y - half)):round(y + half), max(0, round(x - half)):round(x + half)]
            shares.append(near.sum()/gone.sum())
    # most of what moved lies around the centre, at the size that Z tells
    assert np.mean(np.array(shares) > .5) > .9

def test_a_persons_head_is_in_one_folder_only(monkeypatch, tmp_path):
    heads = []
    def spy(canvas, digits, *args, scatter=D.scatter_digits):
        if len(digits) == 1: heads.append(digits[0].tobytes())
        return scatter(canvas, digits, *args)
    monkeypatch.setattr(D, 'scatter_digits', spy)
    D.biwi_standin(tmp_path)
    per_person = [set(heads[i:i + 40]) for i in range(0, 960, 40)]
    assert all(len(h) == 1 for h in per_person) and len(set.union(*per_person)) == 24

# COCO and bananas

def test_coco_has_the_real_format(made):
    path = made('coco')
    coco = json.loads((path/'train.json').read_text(encoding='utf-8'))
    assert list(coco) == ['categories', 'images', 'annotations']
    assert ([c['id'] for c in coco['categories']] == [62, 63, 72, 75, 84, 86]
            and all(set(c) == {'id', 'name'} for c in coco['categories']))
    assert all(set(im) == {'id', 'file_name'} and im['file_name'] == f'{im["id"]:012}.jpg'
               for im in coco['images'])
    assert (sorted(p.name for p in (path/'train').iterdir())
            == sorted(im['file_name'] for im in coco['images']))
    assert kinds((path/'train').iterdir()) == {('JPEG', 'RGB', (128, 128))} and len(coco['images']) == 200
    for a in coco['annotations']:
        x, y, w, h = a['bbox']
        assert set(a) == {'image_id', 'bbox', 'category_id'} and a['category_id'] in (62, 63, 72, 75, 84, 86)
        assert (all(type(v) is float for v in a['bbox']) and x >= 0 and y >= 0 and w >= 2 and h >= 8
                and x + w <= 128 and y + h <= 128)
    assert {a['image_id'] for a in coco['annotations']} == {im['id'] for im in coco['images']}
    assert (set(np.bincount([[62, 63, 72, 75, 84, 86].index(a['category_id']) for a in coco['annotations']])
                > 60) == {True})

def test_coco_has_all_bright_pixels_in_boxes(made):
    path = made('coco')
    coco = json.loads((path/'train.json').read_text())
    for im in coco['images']:
        bright = array(path/'train'/im['file_name']).max(2) > 190
        total = bright.sum()
        for a in coco['annotations']:
            x, y, w, h = map(int, a['bbox'])
            if a['image_id'] == im['id']: bright[max(0, y - 1):y + h + 1, max(0, x - 1):x + w + 1] = False
        assert total > 0 and bright.sum() <= .02*total

def test_bananas_have_the_real_format_and_their_boxes_a_yellow_seven(made):
    path = made('bananas')
    assert sorted(p.name for p in path.iterdir()) == ['bananas_train', 'bananas_val']
    for part, n in ('bananas_train', 500), ('bananas_val', 100):
        header, *table = rows(path/part/'label.csv')
        assert (header == ['img_name', 'label', 'xmin', 'ymin', 'xmax', 'ymax']
                and [r[0] for r in table] == [f'{i}.png' for i in range(n)])
        assert (sorted(p.name for p in (path/part).iterdir()) == ['images', 'label.csv']
                and len(list((path/part/'images').iterdir())) == n)
        for name, label, *box in table[::10]:
            im = Image.open(path/part/'images'/name)
            assert (im.format, im.mode, im.size, label) == ('PNG', 'RGB', (256, 256), '0')
            x1, y1, x2, y2 = map(int, box)
            r, g, b = np.asarray(im).astype(int).transpose(2, 0, 1)
            yellow = ((r > 140) & (g > 130) & (b < 110))[y1:y2, x1:x2]
            a, u, c, v = D.mask_box(yellow)
            assert max(a, u, x2 - x1 - c, y2 - y1 - v) <= 4   # yellow reaches all four sides

# IMDB

def test_imdb_has_the_real_format_and_no_chapter_in_two_parts(made):
    path = made('imdb')
    assert ([p.name for p in path.iterdir()] == ['texts.csv']
            and rows(path/'texts.csv')[0] == ['label', 'text', 'is_valid'])
    table = pd.read_csv(path/'texts.csv')
    assert table.is_valid.dtype == bool and table.is_valid.tolist() == [False]*800 + [True]*200
    assert (table.groupby(['is_valid', 'label']).size().to_dict() == {
        (False, 'negative'): 400, (False, 'positive'): 400, (True, 'negative'): 100, (True, 'positive'): 100})
    assert table.text.is_unique and not table.text.str.contains('\n|>>>|\u2019|\u201c', regex=True).any()
    from pydoc_data.topics import topics
    for label, sources in ('positive', topics.items()), ('negative', D._docstrings()):
        where = {}
        for name, text in sorted(sources) if label == 'positive' else sources:
            for p in D._passages(text): where.setdefault(p, name)
        part = table[table.label == label]
        homes = [{where[t] for t in part.text[part.is_valid == v]} for v in (False, True)]
        assert not homes[0] & homes[1] and len(homes[1]) >= 5

def test_texts_that_no_parser_should_trip_over_are_written_and_read_back(tmp_path):
    D._write_csv(tmp_path/'t.csv', ['a', 'b'], [('he said "no", then', 'x'), ('ü, ∑', 'y')])
    assert pd.read_csv(tmp_path/'t.csv').values.tolist() == [['he said "no", then', 'x'], ['ü, ∑', 'y']]
