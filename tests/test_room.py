"""Room for what comes: kinds of data that the course brings later are defined here from outside, on the
library as it is.

Each loads, shows a batch, and gives batches; nothing of it is known to the data block."""
import wave

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from exp.core import load_state, save_state
from exp.specs import register
from exp.data_block import CategoryProcessor, ImageList, ItemList, LabeledData, LabelList, Processor
from exp.losses import BinaryCrossEntropy, CrossEntropy, SquaredLoss
from exp.transforms import Transform

# ---- pictures with targets of every kind

H, W = 24, 32

@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    "Twenty pictures with one to three bright squares, a mask of each, and where the squares are."
    root, where = tmp_path_factory.mktemp('scenes'), {}
    (root/'images').mkdir()
    (root/'masks').mkdir()
    for k in range(20):
        g, image, mask, boxes = np.random.default_rng(k), np.zeros((H, W, 3),
                                                                   np.uint8), np.zeros((H, W), np.uint8), []
        for n in range(1 + k % 3):
            x, y = g.integers(0, W - 8), g.integers(0, H - 8)
            image[y:y + 8, x:x + 8, n], mask[y:y + 8, x:x + 8] = 250, n + 1
            boxes.append([int(x), int(y), int(x) + 8, int(y) + 8])
        Image.fromarray(image).save(root/'images'/f'{k:02}.png')
        Image.fromarray(mask).save(root/'masks'/f'{k:02}.png')
        where[f'{k:02}.png'] = boxes
    save_state(root/'boxes.pth', {name: torch.tensor(b) for name, b in where.items()})
    (root/'images'/'valid.txt').write_text('\n'.join(f'{k}.png' for k in range(16, 20)) + '\n')
    (root/'images'/'labels.txt').write_text('\n'.join(f'{name} {"many" if len(b) > 1 else "one"}'
                                                      for name, b in where.items()))
    return root

@register
class TagProcessor(CategoryProcessor):
    def learn(self, items): super().learn([tag for tags in items for tag in tags])
    def process(self, item): return [CategoryProcessor.process(self, tag) for tag in item]

@register
class TagsList(LabelList):
    "Many labels: a number for each class, 1 where the item has it."
    kind, processors, loss_func = 'tags', (TagProcessor,), BinaryCrossEntropy()
    classes = property(lambda self: self.processors[0].classes)
    c = property(lambda self: len(self.classes))
    def open(self, item): return torch.zeros(self.c).index_fill_(0, torch.tensor(item, dtype=torch.long), 1.)
    def decode(self, y): return [tag for tag, yes in zip(self.classes, y) if yes]
    def text(self, obj): return ' '.join(self.decode(obj))

@register
class MasksList(LabelList):
    "A class for each pixel."
    kind, spatial, loss_func, classes, c = 'mask', True, CrossEntropy(), ['nothing', 'red', 'green',
                                                                          'blue'], 4
    def open(self, item): return Image.open(item)
    def show(self, obj, ax, title=None): ax.imshow(obj, alpha=0.4, vmin=0, vmax=3)

def in_parts(pixels, x): return pixels*2/torch.tensor([*x.size]*(pixels.shape[-1]//2)) - 1
def in_pixels(parts, ax):
    h, w = ax.images[-1].get_array().shape[:2]
    return (parts + 1)/2*torch.tensor([w, h]*(parts.shape[-1]//2))

@register
class CentresList(LabelList):
    "A point in each image, (x, y) in −1…1."
    kind, spatial, loss_func, c = 'points', True, SquaredLoss(), 2
    def open(self, item): return torch.as_tensor(item, dtype=torch.float32).reshape(-1, 2)
    def relate(self, obj, x): return in_parts(obj, x)
    def show(self, obj, ax, title=None): ax.plot(*in_pixels(obj, ax).T, 'wo', ms=4)

def padded_boxes(targets):
    most = max(len(label) for _, label in targets)
    return (torch.stack([F.pad(b, (0, 0, 0, most - len(b))) for b, _ in targets]),
            torch.stack([F.pad(label, (0, most - len(label)), value=-1) for _, label in targets]))

@register
class SquaresList(LabelList):
    "Boxes with a label each, of any number."
    kind, spatial, classes, c, join = 'boxes', True, ['red', 'green', 'blue'], 3, staticmethod(padded_boxes)
    def open(self, item): return torch.as_tensor(item, dtype=torch.float32), torch.arange(len(item))
    def relate(self, obj, x): return in_parts(obj[0], x), obj[1]
    def show(self, obj, ax, title=None):
        for (a, b, c, d), label in zip(in_pixels(obj[0], ax).tolist(), obj[1].tolist()):
            if label >= 0: ax.add_patch(plt.Rectangle((a, b), c - a, d - b, fill=False, color='w'))

@register
class MirrorAll(Transform):
    order, random, moves = 10, True, True
    def draw(self, x, rng): return rng.random() < 0.5
    def image(self, im, yes): return im.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if yes else im
    mask = image
    def points(self, p, yes): return p*torch.tensor([-1., 1.]) if yes else p
    def boxes(self, b, yes):
        return (b[0][:, [2, 1, 0, 3]]*torch.tensor([-1., 1., -1., 1.]), b[1]) if yes else b

def tags_of(path): return [['red'], ['red', 'green'], ['red', 'green', 'blue']][int(path.stem) % 3]
def boxes_of(path): return load_state(path.parents[1]/'boxes.pth')[path.name]
TARGETS = {'tags': (TagsList, tags_of), 'mask': (MasksList, lambda p: p.parents[1]/'masks'/p.name),
           'points': (CentresList, lambda p: boxes_of(p)[0].view(2, 2).float().mean(0)),
           'boxes': (SquaresList, boxes_of)}

def pictures(scenes, kind, workers=0):
    cls, label = TARGETS[kind]
    split = ImageList.from_folder(scenes/'images').split_by_files('valid.txt').label_from_func(label, cls)
    return split.transform(([MirrorAll()], []),
                           size=(H, W)).databunch(bs=6, num_workers=workers, seed=1).normalize()

# ---- a sound-like item, whose transform makes an image of it

@register
class Spectrogram(Transform):
    "A wave as a picture: the strength of each pitch, piece by piece."
    order, makes, role = 5, {'sound': 'image'}, 'spectrogram'
    def sound(self, wave, draw):
        power = torch.stft(wave, 62, 32, window=torch.hann_window(62),
                           return_complex=True).abs().clamp(max=8)/8
        return Image.fromarray((power*255).byte().numpy())

@register
class Louder(Transform):
    order, random = 0, True
    def draw(self, x, rng): return 1 + rng.random()
    def sound(self, wave, gain): return wave*gain

@register
class SoundList(ItemList):
    kind, extensions = 'sound', ('.wav',)
    def open(self, item):
        with wave.open(str(item)) as f:
            return torch.frombuffer(bytearray(f.readframes(f.getnframes())), dtype=torch.int16)/32768
    def default_tfms(self, size):
        return [Spectrogram(), *(t for t in ImageList([]).default_tfms(size) if t.role != 'rgb')]
    def show(self, obj, ax, title=None): ImageList([]).show(obj, ax, title)

@pytest.fixture(scope='module')
def sounds(tmp_path_factory):
    root = tmp_path_factory.mktemp('sounds')
    for pitch, name in ((300, 'low'), (2000, 'high')):
        (root/name).mkdir()
        for k in range(8):
            samples = (8000*np.sin(2*np.pi*(pitch + 20*k)*np.arange(1600)/8000)).astype('<i2')
            with wave.open(str(root/name/f'{k}.wav'), 'wb') as f:
                f.setnchannels(1)
                f.setsampwidth(2)
                f.setframerate(8000)
                f.writeframes(samples.tobytes())
    return root

def heard(sounds, workers=0, tfms=([Louder()], [])):
    return SoundList.from_folder(sounds).split_random(0.25, seed=0).label_from_folder().transform(
        tfms, size=(32, 48)).databunch(bs=4, num_workers=workers, seed=1)

# ---- a text-like item, whose processor sees all items at once; x and y are padded

def padded(parts): return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)

@register
class AtOnce(Processor):
    "Words to numbers, all texts of a set in one go; 0 pads, 1 is a word that training has not."
    calls = 0
    def learn(self, items):
        self.vocab = ['<pad>', '<new>', *sorted({w for text in items for w in text.split()})]
    def process_all(self, items):
        self.calls += 1
        # one pass over everything
        number, words = {w: k for k, w in enumerate(self.vocab)}, ' | '.join(items).split()
        out = [[]]
        for w in words:
            if w == '|': out.append([])
            else: out[-1].append(number.get(w, 1))
        return out
    def state_dict(self): return {'vocab': self.vocab}
    def load_state_dict(self, state): self.vocab = list(state['vocab'])

@register
class WordsList(ItemList):
    kind, processors, join = 'text', (AtOnce,), staticmethod(padded)
    def open(self, item): return torch.tensor(item)
    def text(self, obj): return ' '.join(self.processors[0].vocab[i] for i in obj.tolist() if i)

@register
class AnswersList(LabelList):
    "Texts as targets, padded as well."
    kind, processors, join, loss_func = 'answer', (AtOnce,), staticmethod(padded), CrossEntropy()
    def open(self, item): return torch.tensor(item)
    text = WordsList.text
    def decode(self, y): return self.text(y)

TEXTS = ['one', 'one two', 'one two three', 'two', 'three one two four', 'two two', 'four three',
         'one one one', 'four', 'five two']
def read(workers=0):
    return WordsList(TEXTS).split_by_index([8, 9]).label_from_func(
        lambda t: ' '.join(reversed(t.split()[:3])), AnswersList).databunch(bs=4, num_workers=workers, seed=1)

MAKERS = {**{kind: lambda scenes, sounds, n, kind=kind: pictures(scenes, kind, n) for kind in TARGETS},
          'sound': lambda scenes, sounds, n: heard(sounds, n), 'text': lambda scenes, sounds, n: read(n)}
every_kind = pytest.mark.parametrize('kind', MAKERS)

@pytest.fixture
def make(scenes, sounds, kind): return lambda workers=0: MAKERS[kind](scenes, sounds, workers)

# ---- each loads, shows a batch, and batches

def flat(v): return [t for part in v for t in flat(part)] if isinstance(v, (tuple, list)) else [v]

@pytest.mark.slow
@every_kind
def test_a_kind_shows_a_batch_of_both_sets(make):
    data = make()
    for train in (True, False):
        data.show_batch(n=2, train=train)
        drawn = [ax for ax in plt.gcf().axes if ax.images or ax.texts]
        assert len(drawn) == 2
        plt.close('all')

@pytest.mark.slow
@every_kind
def test_a_kind_has_the_same_batches_from_two_processes(make):
    a, b = make(), make(2)
    try:
        for p, q in zip(a.train_dl, b.train_dl, strict=True):
            assert (p.items == q.items
                    and all(torch.equal(u, v) for u, v in zip(flat(p), flat(q), strict=True)))
    finally: b.train_dl.close()

@every_kind
def test_a_kind_is_written_down_and_prepares_a_new_item_alike(make, kind, tmp_path):
    data = make()
    save_state(tmp_path/'s', data.valid_ds.state())
    ds = LabeledData.from_state(load_state(tmp_path/'s'))
    raw = 'two four' if kind == 'text' else data.valid_ds.x.items[0]
    assert torch.equal(ds.prepare(raw), data.valid_ds.prepare(raw)) and ds.x_kind == data.valid_ds.x_kind
    xb, yb = (ds.collate_func(targets=False)
              or (lambda pairs: (torch.stack([x for x, _ in pairs]), None)))([(ds.prepare(raw), None)])
    assert len(xb) == 1 and yb is None

def test_targets_have_their_shapes(scenes):
    shapes = {kind: [tuple(t.shape) for t in flat(pictures(scenes, kind).one_batch()[1])] for kind in TARGETS}
    assert (shapes == {'tags': [(6, 3)], 'mask': [(6, H, W)], 'points': [(6, 1, 2)],
                       'boxes': [(6, 3, 4), (6, 3)]})

def test_targets_follow_their_images(scenes):
    for kind in ('mask', 'points', 'boxes'):
        xb, yb = pictures(scenes, kind).one_batch()
        bright = xb.amax(1) > 0.5
        if kind == 'mask': assert torch.equal(bright, yb > 0)
        elif kind == 'points':
            assert (F.grid_sample(bright[:, None].float(), yb[:, :, None], 'nearest',
                                  align_corners=False) == 1).all()
        else:
            for seen, where, label in zip(bright, *yb):
                for box in ((where[label >= 0] + 1)/2*torch.tensor([W, H, W, H])).round().int().tolist():
                    assert seen[box[1]:box[3], box[0]:box[2]].all()

def test_a_transform_turns_a_sound_into_an_image(sounds):
    data = heard(sounds)
    xb, yb = data.one_batch()
    assert (xb.shape == (4, 1, 32, 48) and 0 <= xb.min() < xb.max() <= 1 and data.train_ds.x_kind == 'image'
            and data.train_ds.x.kind == 'sound')
    assert ({t.x_kind for t in data.batch_tfms[0]} == {'image'}
            and data.normalize().one_batch()[0].mean().abs() < 1e-4)
    assert (data.classes == ['high', 'low'] and all((x.float().mean(2)[0].argmax() > 10) == (y == 0)
                                                    for x, y in (data.valid_ds[i] for i in range(4))))
    with pytest.raises(TypeError, match='Louder'):
        heard(sounds, tfms=[type('Later', (Louder,), {'order': 6, '__repr__': lambda self: 'Louder'})()])

def test_a_rule_for_sounds_alone_is_refused_for_images(scenes):
    with pytest.raises(TypeError, match='image'):
        ImageList.from_folder(scenes/'images').split_none().label_from_func(tags_of,
                                                                            TagsList).transform([Louder()])

def test_a_processor_sees_all_items_at_once_and_texts_are_padded():
    data = read()
    # the training set, the validation set
    assert data.train_ds.x.processors[0].calls == 2 and data.train_ds.y.processors[0].calls == 2
    xb, yb = next(iter(data.valid_dl))
    vocab = data.train_ds.x.processors[0].vocab
    assert ([[vocab[i] for i in row] for row in xb.tolist()] == [['four', '<pad>'], ['<new>', 'two']]
            and yb.shape == (2, 2))
    for xb, yb in data.train_dl:
        assert xb.shape[0] == yb.shape[0] == 4 and xb.dtype == yb.dtype == torch.int64

def test_plain_files_name_a_split_and_labels(scenes, tmp_path):
    items = ImageList.from_folder(scenes/'images')
    split = items.split_by_files('valid.txt').label_from_file('labels.txt')
    assert [p.stem for p in split.valid.x] == ['16', '17', '18', '19'] and split.classes == ['many', 'one']
    save_state(tmp_path/'valid.pth', ['03.png', '04.png'])
    split = items.split_by_files(tmp_path/'valid.pth').label_from_file(scenes/'boxes.pth',
                                                                       label_cls=SquaresList)
    assert [p.stem for p in split.valid.x] == ['03', '04'] and len(split.train.y.get(2)[0]) == 3
    with pytest.raises(ValueError, match='row'):
        items.split_none().label_from_file(scenes/'boxes.pth', suffix='.jpg', label_cls=SquaresList)
