"""The data block carries kinds of data that come in later lessons: each is sketched here in a few lines, from
items to `show_batch`."""
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from exp.core import load_state, save_state
from exp.specs import register
from exp.data_block import (CategoryProcessor, FloatList, ImageList, ItemList, LabeledData, LabelList,
                            Processor)
from exp.transforms import Transform
from exp.dataloader import Rng

W, H = 40, 30   # all pictures here

class MoveLR(Transform):
    """Turns left and right with a probability: one rule for each kind. Works on PIL images and masks, before
    they are resized."""
    order, random, moves = 10, True, True
    def draw(self, x, rng): return rng.random() < 0.5
    def image(self, im, draw): return im.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw else im
    mask = image
    def points(self, p, draw): return p*torch.tensor([-1., 1.]) if draw else p
    def boxes(self, b, draw):
        if not draw: return b
        where, label = b
        return where[:, [2, 1, 0, 3]]*torch.tensor([-1., 1., -1., 1.]), label

class BatchLR(MoveLR):
    "The same on a batch of tensors, all items alike."
    order, on = 30, 'batch'
    def draw(self, xb, rngs): return torch.tensor([r.random() < 0.5 for r in rngs])
    def image(self, xb, draw): return torch.where(draw.view(-1, *[1]*(xb.ndim - 1)), xb.flip(-1), xb)
    mask = image
    def points(self, p, draw): return torch.where(draw[:, None, None], p*torch.tensor([-1., 1.]), p)

class Darken(Transform):
    "A change of colours has no rule for targets, and leaves them."
    order = 40
    def image(self, x, draw): return x//2

@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Pictures with a bright square on black, and what later lessons want to know about it: tags, a mask, its
    centre, its box."""
    root = tmp_path_factory.mktemp('scenes')
    g = np.random.default_rng(0)
    known = {}
    (root/'images').mkdir()
    (root/'masks').mkdir()
    for k in range(24):
        im, mask, boxes = np.zeros((H, W, 3), np.uint8), np.zeros((H, W), np.uint8), []
        for n in range(1 + k % 3):
            x, y, s = int(g.integers(0, W - 8)), int(g.integers(0, H - 8)), int(g.integers(5, 9))
            im[y:y + s, x:x + s, n] = 255
            mask[y:y + s, x:x + s] = n + 1
            boxes.append([x, y, x + s, y + s])
        Image.fromarray(im).save(root/'images'/f'{k:02}.png')
        Image.fromarray(mask).save(root/'masks'/f'{k:02}.png')
        known[f'{k:02}.png'] = boxes
    (root/'boxes.json').write_text(json.dumps(known))
    return root

def split(scenes): return ImageList.from_folder(scenes/'images').split_by_func(lambda p: p.stem >= '18')
def known(scenes): return json.loads((scenes/'boxes.json').read_text())

def shows(data, n=4):
    "`show_batch` draws n pictures of both sets; the axes of training."
    for train in (False, True):
        data.show_batch(n=n, train=train)
        axs = [ax for ax in plt.gcf().axes if ax.axison or ax.images or ax.texts]
        assert len([ax for ax in plt.gcf().axes if ax.images or ax.texts]) == n
    plt.close('all')
    return axs

def same_with_workers(make):
    "Training batches are the same from two processes."
    a, b = make(0), make(2)
    try:
        for p, q in zip(a.train_dl, b.train_dl, strict=True):
            flat = lambda v: [t for part in v for t in flat(part)] if isinstance(v, (tuple, list)) else [v]
            assert (p.items == q.items
                    and all(torch.equal(u, v) for u, v in zip(flat(p), flat(q), strict=True)))
    finally: b.train_dl.close()

# ---- several labels

@register
class ManyProcessor(CategoryProcessor):
    def learn(self, items): super().learn([tag for tags in items for tag in tags])
    def process(self, item): return [super(ManyProcessor, self).process(tag) for tag in item]
    def decode(self, item): return [self.classes[i] for i in item]

@register
class ManyList(LabelList):
    kind, processors = 'multi-category', (ManyProcessor,)
    classes = property(lambda self: self.processors[0].classes)
    c = property(lambda self: len(self.classes))
    def open(self, item): return F.one_hot(torch.tensor(item), self.c).sum(0).float()
    def decode(self, y): return self.processors[0].decode(y.nonzero().flatten().tolist())
    def text(self, obj): return ', '.join(self.decode(obj))

def tags(path): return [['red'], ['red', 'green'], ['red', 'green', 'blue']][int(path.stem) % 3]

def multi(scenes, workers=0):
    return split(scenes).label_from_func(tags, ManyList).transform(size=16).databunch(
        bs=6, num_workers=workers, seed=1)

def test_several_labels_for_an_item(scenes, tmp_path):
    data = multi(scenes)
    assert data.classes == ['blue', 'green', 'red'] and data.c == 3 and data.kind == 'multi-category'
    xb, yb = data.one_batch()
    assert xb.shape == (6, 3, 16, 16) and yb.shape == (6, 3) and yb.dtype == torch.float32
    x, y = data.train_ds[1]
    assert y.tolist() == [0., 1., 1.] and data.train_ds.y.decode(y) == ['green', 'red']
    assert all('red' in ax.get_title() for ax in shows(data))
    save_state(tmp_path/'s', data.valid_ds.state())
    assert (LabeledData.from_state(load_state(tmp_path/'s')).y.decode(torch.tensor([1., 0., 1.]))
            == ['blue', 'red'])
    with pytest.raises(ValueError, match="'pink'"):
        split(scenes).label_from_func(lambda p: ['pink'] if p.stem == '20' else ['red'], ManyList)

def test_several_labels_from_two_processes(scenes): same_with_workers(lambda n: multi(scenes, n))

# ---- masks

@register(name='SceneMaskList')
class MaskList(LabelList):
    kind, spatial = 'mask', True
    classes = ['nothing', 'one', 'two', 'three']
    c = 4
    def open(self, item): return Image.open(item)
    def show(self, obj, ax, title=None): ax.imshow(obj, alpha=0.4, vmin=0, vmax=3)

def mask_of(path): return path.parent.parent/'masks'/path.name

def masks(scenes, tfms=None, tfm_y=True, workers=0, size=(15, 20)):
    return split(scenes).label_from_func(mask_of, MaskList).transform(tfms, size=size, tfm_y=tfm_y).databunch(
        bs=6, num_workers=workers, seed=1)

@pytest.mark.slow
@pytest.mark.parametrize('flip', [MoveLR, BatchLR])
def test_a_mask_moves_with_its_image(scenes, flip):
    data = masks(scenes, [flip(), Darken()], size=(H, W))
    xb, yb = data.one_batch()
    assert (yb.shape == (6, H, W) and yb.dtype == torch.int64 and set(yb.unique().tolist()) <= {0, 1, 2, 3}
            and data.c == 4)
    top = torch.where(xb.amax(1) > 0, 1, 0)
    assert torch.equal(top, (yb > 0).long())                                     # pixel by pixel
    still = masks(scenes, [], size=(H, W)).one_batch()
    moved = [not torch.equal(a, b) for a, b in zip(yb, still[1])]
    assert any(moved) and not all(moved) and xb.max() <= 0.5
    assert all(len(ax.images) == 2 for ax in shows(data))

def test_a_mask_is_resized_to_its_nearest_class_and_never_between(scenes):
    _, yb = masks(scenes, [MoveLR()], size=(11, 13)).one_batch()
    assert yb.shape == (6, 11, 13) and set(yb.unique().tolist()) <= {0, 1, 2, 3}

def test_masks_from_two_processes(scenes): same_with_workers(lambda n: masks(scenes, [MoveLR()], workers=n))

def test_a_move_without_a_rule_for_masks_is_refused_where_it_is_asked_for(scenes):
    class OnlyImages(Transform):
        order, moves = 10, True
        def image(self, im, draw): return im
    with pytest.raises(TypeError, match='OnlyImages'): masks(scenes, [OnlyImages()])
    masks(scenes, [OnlyImages()], tfm_y=False, size=None)
    class OnBatch(OnlyImages): on = 'batch'
    with pytest.raises(TypeError, match='OnBatch'): masks(scenes, [OnBatch()])

def test_a_rule_may_come_later_from_elsewhere(scenes):
    class Later(Transform):
        order, moves = 10, True
        def image(self, im, draw): return im
    Later.mask = lambda self, m, draw: m
    assert masks(scenes, [Later()]).one_batch()[1].shape == (6, 15, 20)

def test_masks_are_cached_with_their_images(scenes):
    make = lambda cache: split(scenes).label_from_func(mask_of, MaskList).transform(
        size=(15, 20), tfm_y=True, cache=cache).databunch(bs=6, seed=1)
    plain, cached = make(False), make(True)
    for _ in range(2):
        for (xa, ya), (xc, yc) in zip(plain.train_dl, cached.train_dl, strict=True):
            assert torch.equal(xa, xc) and torch.equal(ya, yc)

# ---- points

@register
class PlainPoints(FloatList):
    kind, spatial = 'points', True
    def open(self, item): return torch.tensor(item, dtype=torch.float32)
    # pixels to -1…1, align_corners=False
    def relate(self, obj, x): return (obj*2 + 1)/torch.tensor(x.size) - 1
    def column(self): return None                                                # they need the image's size
    def show(self, obj, ax, title=None):
        (x0, x1), (y0, y1) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
        ax.plot(x0 + (obj[:, 0] + 1)/2*(x1 - x0), y0 + (obj[:, 1] + 1)/2*(y1 - y0), 'wo', markersize=3)

def centre(root):
    boxes = known(root)
    # of the square on top
    return lambda p: [[(b[0] + b[2] - 1)/2, (b[1] + b[3] - 1)/2] for b in boxes[p.name][-1:]]

def points(scenes, tfms=None, tfm_y=True, workers=0, size=(H, W)):
    return split(scenes).label_from_func(centre(scenes), PlainPoints).transform(
        tfms, size=size, tfm_y=tfm_y).databunch(bs=18, num_workers=workers, seed=1)

def value_at(xb, p): return F.grid_sample(xb, p[:, :, None], mode='nearest', align_corners=False)[:, :, 0, 0]

@pytest.mark.slow
@pytest.mark.parametrize('flip', [MoveLR, BatchLR])
@pytest.mark.parametrize('size', [(H, W), (60, 40)])
def test_points_stay_on_what_they_mark(scenes, flip, size):
    data = points(scenes, [flip()], size=size)
    xb, yb = data.one_batch()
    assert yb.shape == (18, 1, 2) and yb.dtype == torch.float32 and yb.abs().max() <= 1
    assert (value_at(xb, yb).amax(1) > 0.9).all()
    mirrored = value_at(xb, yb*torch.tensor([-1., 1.])).amax(1)
    # so that the check above says something
    assert (mirrored < 0.1).any()
    assert all(len(ax.lines) == 1 for ax in shows(data))

def test_points_that_stay_behind_are_left_so_only_if_one_says_so(scenes):
    xb, yb = points(scenes, [MoveLR()], tfm_y=False).one_batch()
    assert (value_at(xb, yb).amax(1) < 0.1).any()

@pytest.mark.parametrize('cache', [False, True])
@pytest.mark.parametrize('ending', ['.png', '.jpg'])
def test_points_of_a_turned_photograph_are_those_of_the_upright_image(tmp_path, ending, cache):
    # 60 wide; as it is seen: 40 wide and 60 high
    sensor = np.zeros((40, 60, 3), dtype=np.uint8)
    # as it is seen: rows 50 to 53, columns 31 to 34
    sensor[5:9, 50:54] = 255
    im = Image.fromarray(sensor)
    exif = im.getexif()
    exif[0x0112] = 6
    for i in range(4): im.save(tmp_path/f'{i}{ending}', exif=exif)
    data = ImageList.from_folder(tmp_path).split_by_func(lambda p: p.stem > '1').label_from_func(lambda p: [
        [32.5, 51.5]], PlainPoints).transform(size=(60, 40), tfm_y=True, cache=cache).databunch(bs=2, seed=1)
    for xb, yb in (*data.train_dl, *data.valid_dl):
        assert (xb.shape[2:] == (60, 40)
                and torch.allclose(yb, torch.tensor([66/40 - 1, 104/60 - 1]).expand_as(yb), atol=1e-6))
        assert (value_at(xb.float(), yb) > 200).all()

@pytest.mark.parametrize('label', ['a', 1.5])
def test_predict_sees_a_turned_photograph_as_training_does(tmp_path, label):
    "Whatever the targets are: an upright image, before the first transform."
    sensor = np.zeros((40, 60, 3), dtype=np.uint8)
    sensor[5:9, 50:54] = 255
    im = Image.fromarray(sensor)
    exif = im.getexif()
    exif[0x0112] = 6
    for i in range(4): im.save(tmp_path/f'{i}.png', exif=exif)
    data = (ImageList.from_folder(tmp_path).split_none().label_from_func(lambda p: label)
            .transform(size=(60, 40)).databunch(bs=4))
    x, _ = data.train_ds[0]
    assert x.shape[1:] == (60, 40) and data.one_batch()[0].shape[2:] == (60, 40)
    for given in (tmp_path/'0.png', Image.open(tmp_path/'0.png'), (tmp_path/'0.png').read_bytes()):
        assert torch.equal(data.train_ds.prepare(given), x)

def test_points_from_two_processes(scenes): same_with_workers(lambda n: points(scenes, [MoveLR()], workers=n))

# ---- boxes

def pad_boxes(samples):
    "As many boxes for each item as the fullest has: zeros, with label -1."
    xs, ys = zip(*samples)
    most = max(len(label) for _, label in ys)
    where = torch.stack([F.pad(w, (0, 0, 0, most - len(w))) for w, _ in ys])
    return torch.stack(xs), (where,
                             torch.stack([F.pad(label, (0, most - len(label)), value=-1) for _, label in ys]))

@register
class BoxesList(LabelList):
    kind, spatial, classes, c = 'boxes', True, ['red', 'green', 'blue'], 3
    collate = staticmethod(pad_boxes)
    def open(self, item): return torch.tensor(item, dtype=torch.float32), torch.arange(len(item))
    def relate(self, obj, x): return obj[0]*2/torch.tensor(x.size*2) - 1, obj[1]
    def show(self, obj, ax, title=None):
        (x0, x1), (y0, y1) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
        at = (obj[0] + 1)/2*torch.tensor([x1 - x0, y1 - y0]*2) + torch.tensor([x0, y0]*2)
        for (a, b, c, d), label in zip(at.tolist(), obj[1].tolist()):
            if label >= 0: ax.add_patch(plt.Rectangle((a, b), c - a, d - b, fill=False, color='w'))

def boxes(scenes, tfms=None, workers=0):
    boxes = known(scenes)
    return split(scenes).label_from_func(lambda p: boxes[p.name], BoxesList).transform(
        tfms, size=(H, W), tfm_y=True).databunch(bs=6, num_workers=workers, seed=1)

def test_boxes_are_padded_and_move_along(scenes):
    data = boxes(scenes, [MoveLR()])
    for (xb, (where, label)) in (data.one_batch(), data.one_batch(False)):
        assert (where.shape == (len(xb), 3, 4) and label.shape == (len(xb), 3)
                and set(label.unique().tolist()) == {-1, 0, 1, 2})
        assert (where[label < 0] == 0).all() and (where[..., 0] <= where[..., 2]).all()
    xb, (where, label) = data.one_batch()
    pixels = ((where + 1)/2*torch.tensor([W, H, W, H])).round().int()
    for x, bs, ls in zip(xb, pixels, label):
        last = int(ls.max())
        # the last square lies on top of the others
        a, b, c, d = bs[last].tolist()
        assert (x[last, b:d, a:c] > 0.9).all()
    assert sum(len(ax.patches) for ax in shows(data)) >= 4

def test_boxes_from_two_processes(scenes): same_with_workers(lambda n: boxes(scenes, [MoveLR()], workers=n))

# ---- texts

class Tokens(Processor):
    "Words to numbers; 0 pads, 1 is a word that training has not."
    def learn(self, items):
        self.vocab = ['<pad>', '<new>', *sorted({w for text in items for w in text.split()})]
    def process(self, item): return [self.vocab.index(w) if w in self.vocab else 1 for w in item.split()]
    def state_dict(self): return {'vocab': self.vocab}
    def load_state_dict(self, state): self.vocab = list(state['vocab'])
register(Tokens)

def pad_texts(samples):
    xs, ys = zip(*samples)
    return torch.nn.utils.rnn.pad_sequence(xs, batch_first=True), torch.stack(ys)

class ByLength:
    "Batches of texts of about one length, in an order of their own in each epoch."
    def __init__(self, lengths, bs, train, seed):
        self.lengths, self.bs, self.train, self.seed, self.epoch = lengths, bs, train, seed, 0
    def set_epoch(self, epoch): self.epoch = epoch
    def __len__(self): return -(-len(self.lengths)//self.bs)
    def __iter__(self):
        order = sorted(range(len(self.lengths)), key=lambda i: self.lengths[i])
        batches = [order[i:i + self.bs] for i in range(0, len(order), self.bs)]
        if self.train: Rng(self.seed, self.epoch).shuffle(batches)
        return iter(batches)

@register
class LongOrShort(ItemList):
    kind, processors, extensions = 'text', (Tokens,), None
    collate = staticmethod(pad_texts)
    def open(self, item): return torch.tensor(item)
    def make_sampler(self, ds, bs, train, seed):
        return ByLength([len(o) for o in ds.x.items], bs, train, seed or 0)
    def text(self, obj): return ' '.join(self.processors[0].vocab[i] for i in obj.tolist() if i)

@pytest.fixture(scope='module')
def corpus():
    words = 'a tale of two cities was told by the sea at night'.split()
    return [' '.join(words[k % 5:k % 5 + 1 + k % 7]) + (' again' if k == 29 else '') for k in range(30)]

def texts(corpus, workers=0, tfms=None):
    return LongOrShort(corpus).split_by_index(range(24, 30)).label_from_func(lambda t: 'long' if len(
        t.split()) > 3 else 'short').transform(tfms).databunch(bs=6, num_workers=workers, seed=1)

def test_texts_of_several_lengths_come_by_length(corpus):
    data = texts(corpus)
    lengths = [{len(data.train_ds.x.items[i]) for i in b.items} for b in data.train_dl]
    assert (len(lengths) == 4 and sum(max(l) - min(l) for l in lengths) <= 6
            and lengths != sorted(lengths, key=min))
    for xb, yb in data.train_dl:
        assert (xb.dtype == torch.int64 and xb.shape[0] == yb.shape[0] == 6
                and data.classes == ['long', 'short'])
    seen = [i for b in data.train_dl for i in b.items]
    assert sorted(seen) == list(range(24)) and [i for b in data.train_dl for i in b.items] != seen
    assert data.valid_ds.x.items[-1][-1] == 1                                    # 'again' is not in training
    assert all(len(ax.texts) == 1 and ax.get_title() in data.classes for ax in shows(data))
    assert 'tale' in data.train_ds.x.text(data.train_ds[1][0])

def test_texts_from_two_processes(corpus): same_with_workers(lambda n: texts(corpus, n))

def test_a_text_is_prepared_as_those_in_training(corpus, tmp_path):
    ds = texts(corpus).valid_ds
    save_state(tmp_path/'s', ds.state())
    new = LabeledData.from_state(load_state(tmp_path/'s'))
    assert (torch.equal(new.prepare('a tale of woe'), ds.prepare('a tale of woe'))
            and new.prepare('a tale of woe').tolist()[-1] == 1)

def test_a_transform_of_images_is_refused_for_texts(corpus):
    with pytest.raises(TypeError, match='MoveLR'): texts(corpus, tfms=[MoveLR()])

# ---- numbers in a table, no images at all

def test_rows_of_numbers_need_no_rule_of_their_own():
    class Rows(ItemList):
        kind = 'row'
        def open(self, item): return torch.tensor(item, dtype=torch.float32)
    data = Rows([[k, k*k] for k in range(20)]).split_random(seed=0).label_from_func(
        lambda r: float(r[0] + r[1])).transform().databunch(bs=5)
    xb, yb = data.one_batch()
    assert xb.shape == (5, 2) and torch.equal(xb.sum(1, keepdim=True), yb)
    assert all(ax.texts for ax in shows(data))
