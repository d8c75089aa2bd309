"""Transforms of items and batches: their order and place, what they draw, and images as the model gets
them."""
import numpy as np
import pytest
import torch
from PIL import Image

from exp.core import set_seed
from exp.data_block import ImageList, LabeledData
from exp.dataloader import Dataset, Rng, make_data
from exp.specs import from_spec, to_spec
from exp.transforms import (MakeGrey, MakeRGB, Normalize, ResizeFixed, ToByteTensor, ToFloatTensor, Transform,
                            to_byte_tensor)
from test_data_block import BatchShift, Flip, Jitter, all_batches, darker, labeled, same, folder  # noqa: F401

# ---- transforms

def test_transforms_stand_by_their_order_and_place(folder):
    data = labeled(folder).transform([darker, Jitter(), BatchShift(), Flip()], size=12)
    assert ([type(t).__name__ for t in data.train.tfms] == ['MakeRGB', 'Flip', 'ResizeFixed', 'ToByteTensor',
                                                            'Jitter', 'FuncTransform'])
    bunch = data.databunch(bs=4).normalize(([0.5]*3, [0.25]*3))
    for tfms in bunch.batch_tfms:
        assert ([type(t.tfm).__name__ for t in sorted(tfms, key=lambda t: t.order)]
                == ['ToFloatTensor', 'BatchShift', 'Normalize'])

def test_a_tuple_of_transforms_is_for_training_and_validation(folder):
    data = labeled(folder).add_test_folder().transform(([Flip(), BatchShift()], []), size=12)
    assert (any(isinstance(t, Flip) for t in data.train.tfms)
            and not any(isinstance(t, Flip) for t in [*data.valid.tfms, *data.test.tfms]))
    bunch = data.databunch(bs=4)
    assert [len(t) for t in bunch.batch_tfms] == [2, 1]
    with pytest.raises(ValueError, match='unpack'): labeled(folder).transform(([], [], []))

def test_what_is_given_is_not_added_again(folder):
    data = labeled(folder).transform([ResizeFixed((10, 20))], size=99)
    assert (sum(isinstance(t, ResizeFixed) for t in data.train.tfms) == 1
            and data.train[0][0].shape == (3, 10, 20))
    assert labeled(folder).transform(size=None).train[0][0].shape == (3, 18, 24)
    assert labeled(folder).transform(size=(10, 20)).train[0][0].shape == (3, 10, 20)

@pytest.mark.parametrize('tfms, error, words', [([MakeRGB], TypeError, 'MakeRGB'),
                                                (['flip'], TypeError, 'flip'), ([3], TypeError, '3')])
def test_what_is_no_transform_is_an_error(folder, tfms, error, words):
    with pytest.raises(error, match=words): labeled(folder).transform(tfms)

@pytest.mark.parametrize('size, error', [(0, ValueError), (-3, ValueError), ((3, 4, 5), ValueError),
                                         (2.5, TypeError), ('big', TypeError), (True, TypeError)])
def test_a_size_that_is_none_is_an_error(folder, size, error):
    with pytest.raises(error, match='size'): labeled(folder).transform(size=size)

@pytest.mark.parametrize('shape', [(4, 6), (4, 6, 3), (4, 6, 4)])
def test_the_pixels_of_an_image_come_channels_first_and_as_a_copy(shape):
    a = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    im = Image.fromarray(a)
    t = to_byte_tensor(im)
    assert t.dtype == torch.uint8 and np.array_equal(t.movedim(0, -1).numpy(), a.reshape(4, 6, -1))
    t.zero_()
    assert np.array_equal(np.array(im), a)

@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'CMYK', '1', 'I;16', 'LA'])
def test_images_of_all_modes_become_rgb(mode):
    im = Image.new(mode, (6, 5))
    assert MakeRGB()(im).mode == 'RGB'

def test_a_camera_s_note_turns_the_image_upright(tmp_path):
    im = Image.fromarray(np.arange(4*6*3, dtype=np.uint8).reshape(4, 6, 3))
    exif = im.getexif()
    exif[0x0112] = 6
    im.save(tmp_path/'a.png', exif=exif)
    opened = ImageList([tmp_path/'a.png']).get(0)
    assert opened.size == (6, 4) and MakeRGB()(opened).size == (4, 6)

@pytest.mark.parametrize('size', [(160, 160), (500, 375), (90, 200), (64, 64), (40, 30)])
@pytest.mark.parametrize('ending', ['.png', '.jpg'])
def test_resizing_is_pil_s_bilinear_to_two_grey_levels(tmp_path, size, ending):
    g = np.random.default_rng(0)
    small = Image.fromarray(g.integers(0, 256, (9, 9, 3),
                                       dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    small.save(tmp_path/f'a{ending}', **({'quality': 95} if ending == '.jpg' else {}))
    data = LabeledData(ImageList([tmp_path/f'a{ending}']), None,
                       [MakeRGB(), ResizeFixed((64, 48)), ToByteTensor()])
    got = data[0][0].int()
    im = Image.open(tmp_path/f'a{ending}')
    im.draft('RGB', (48, 64))
    want = torch.from_numpy(np.array(im.convert('RGB').resize((48, 64), Image.Resampling.BILINEAR))).permute(
        2, 0, 1).int()
    assert got.shape == (3, 64, 48) and (got - want).abs().max() <= 2

def test_a_large_jpeg_is_decoded_small(tmp_path):
    Image.new('RGB', (1600, 1200), (200, 100, 50)).save(tmp_path/'big.jpg')
    im = ImageList([tmp_path/'big.jpg']).get(0)
    got = ResizeFixed(128)(MakeRGB()(im))
    assert got.size == (128, 128) and im.size[0] <= 400   # the file's image was drafted to a quarter

def test_floats_and_normalisation_and_the_way_back(folder):
    data = labeled(folder).transform(size=8).databunch(bs=18)
    plain = data.one_batch()[0]
    assert 0 <= plain.min() and plain.max() <= 1
    data.normalize()
    xb = data.one_batch()[0]
    assert xb.mean((0, 2, 3)).abs().max() < 1e-5 and (xb.std((0, 2, 3)) - 1).abs().max() < 1e-4
    assert (data.decode_batch(xb, True) - plain).abs().max() < 1e-6
    with pytest.raises(ValueError, match='already'): data.normalize()

def test_normalise_takes_given_numbers_for_both_sets(folder):
    data = labeled(folder).transform(size=8).databunch(bs=4)
    raw, raw_valid = data.one_batch()[0], data.one_batch(False)[0]
    data.normalize((torch.tensor([0.1, 0.2, 0.3]), [0.5, 0.25, 1.]))
    m, s = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([0.5, 0.25, 1.])[:, None, None]
    assert (torch.allclose(data.one_batch()[0], (raw - m)/s, atol=1e-6)
            and torch.allclose(data.one_batch(False)[0], (raw_valid - m)/s, atol=1e-6))
    for wrong in (([0.5]*3, [0.]*3), ([0.5]*3, [1.]*2)):
        with pytest.raises(ValueError, match='std'): Normalize(*wrong)

def test_transforms_do_not_change_their_input(folder):
    im = Image.open(folder/'train'/'red'/'00.png').convert('RGB')
    before = np.array(im)
    for t in (MakeRGB(), ResizeFixed(9), ToByteTensor(), Flip()): t(im, Rng(1))
    assert np.array_equal(np.array(im), before)
    xb = torch.rand(2, 3, 4, 4)
    keep = xb.clone()
    for t in (ToFloatTensor(), Normalize([.5]*3, [.5]*3), BatchShift()): t(xb, [Rng(1), Rng(2)])
    assert torch.equal(xb, keep)

def test_transforms_are_written_down_and_made_again():
    for t in (MakeRGB(), ResizeFixed((3, 4)), ToByteTensor(), ToFloatTensor(),
              Normalize([.1, .2, .3], [.4, .5, .6])):
        new = from_spec(to_spec(t))
        public = lambda t: {k: v for k, v in vars(t).items() if k[0] != '_'}
        assert type(new) is type(t) and public(new) == public(t)

# ---- order and randomness

@pytest.mark.slow
@pytest.mark.parametrize('tfms', [None, [Flip(), Jitter()]], ids=['fixed', 'random'])
def test_two_workers_give_what_none_give(folder, tfms):
    make = lambda n: labeled(folder).transform(tfms, size=12).databunch(bs=4, num_workers=n, seed=5)
    a, b = make(0), make(2)
    try:
        for epoch in range(2):
            first, second = all_batches(a.train_dl), all_batches(b.train_dl)
            assert same(first, second) and sorted(i for *_, items in first for i in items) == list(range(18))
        assert same(all_batches(a.valid_dl), all_batches(b.valid_dl))
    finally:
        b.train_dl.close()
        b.valid_dl.close()

def test_a_resumed_epoch_goes_on_as_it_would_have(folder):
    data = labeled(folder).transform([Flip(), Jitter()], size=12).databunch(bs=4, seed=5)
    data.train_dl.set_epoch(3)
    whole = all_batches(data.train_dl)
    data.train_dl.set_epoch(3, skip_items=8)
    rest = all_batches(data.train_dl)
    assert same(whole[2:], rest)

def test_each_epoch_draws_anew_and_a_seed_repeats_it(folder):
    make = lambda seed: labeled(folder).transform([Jitter()], size=12).databunch(bs=18, seed=seed).train_dl
    dl = make(1)
    (x0, _, i0), (x1, _, i1) = all_batches(dl)[0], all_batches(dl)[0]
    assert i0 != i1 and not torch.equal(x0[i0.index(0)], x1[i1.index(0)])
    again = all_batches(make(1))[0]
    assert torch.equal(again[0], x0) and again[2] == i0 and all_batches(make(2))[0][2] != i0

def test_batch_transforms_draw_by_item_not_by_batch(folder):
    small, large = (labeled(folder).transform([BatchShift()], size=8).databunch(bs=bs, seed=5)
                    for bs in (3, 18))
    def by_item(data):
        found = {}
        for b in data.train_dl:
            xb, _ = data.transform_batch(*b, train=True, items=b.items)
            found.update(zip(b.items, xb))
        return found
    a, b = by_item(small), by_item(large)
    assert a.keys() == b.keys() and all(torch.allclose(a[i], b[i]) for i in a)

def test_a_place_draws_the_same_whatever_stands_before_it_draws(folder):
    class Greedy(Transform):
        order, random = 35, True
        def draw(self, x, rng): return [rng.random() for _ in range(self.n)]
        def image(self, x, draw): return x
    few, many = Greedy(), Greedy()
    few.n, many.n = 1, 50
    a, b = (labeled(folder).transform([g, Jitter()], size=8).train.get(0, Rng(1, 2, 3))[0]
            for g in (few, many))
    assert torch.equal(a, b)

def test_the_global_generators_have_no_part_in_batches(folder):
    data = labeled(folder).transform([Flip(), Jitter(), BatchShift()], size=8).databunch(bs=6, seed=2)
    set_seed(1)
    data.train_dl.set_epoch(0)
    a = all_batches(data.train_dl)
    left = torch.rand(1)
    set_seed(9)
    data.train_dl.set_epoch(0)
    assert same(a, all_batches(data.train_dl))
    set_seed(1)
    assert torch.equal(left, torch.rand(1))

def test_batches_of_images_are_their_items(folder):
    "The loader may take a faster way than item by item; it answers the same bits."
    ds = labeled(folder).transform(size=12).train
    data = labeled(folder).transform(size=12).databunch(bs=18, seed=1)
    xb, yb = next(iter(data.train_dl))
    data.train_dl.set_epoch(0)
    items = next(iter(data.train_dl)).items
    assert all(torch.equal(x, ds[i][0]) and torch.equal(y, ds[i][1]) for x, y, i in zip(xb, yb, items))

def test_images_of_several_sizes_make_the_same_batches(tmp_path):
    g = np.random.default_rng(1)
    for k in range(40):
        im = Image.fromarray(g.integers(0, 256, (20 + 5*(k % 3), 30, 3), dtype=np.uint8))
        (tmp_path/str(k % 2)).mkdir(exist_ok=True)
        (im if k % 7 else im.convert('L')).save(tmp_path/str(k % 2)/f'{k:02}.jpg')
    data = ImageList.from_folder(tmp_path).split_random(0.1, seed=0).label_from_folder().transform(size=16)
    batch = next(iter(data.databunch(bs=36, seed=0).train_dl))
    assert (all(torch.equal(x, data.train[i][0]) for x, i in zip(batch[0], batch.items))
            and batch[0].shape == (36, 3, 16, 16))

@pytest.mark.parametrize('stats', [([0.5], [0.5]), ([0.5]*2, [0.5]*2)])
def test_normalising_with_another_number_of_channels_is_refused(folder, stats):
    data = ImageList.from_folder(folder).split_by_folder().label_from_folder().transform(size=8).databunch(
        bs=4).normalize(stats)
    with pytest.raises(ValueError, match='channels'): data.one_batch()
    with pytest.raises(ValueError, match='channels'): Normalize(*stats)(torch.rand(2, 3, 4, 4))

def test_normalising_with_bare_numbers_says_what_is_expected(folder):
    data = ImageList.from_folder(folder).split_by_folder().label_from_folder().transform(size=8).databunch(
        bs=4)
    with pytest.raises(TypeError, match='iterable'): data.normalize((0.5, 0.5))
    data.normalize(([0.5]*3, [0.2]*3))

# ---- neighbours that join, and loaders that do not say their items

class Plus(Transform):
    on, order = 'batch', 10
    def __init__(self, n): self.n = n
    def image(self, xb, draw): return xb + self.n
    def joined(self, later): return Plus(self.n + later.n) if isinstance(later, Plus) else None

def test_transforms_are_joined_with_their_neighbours_and_only_with_those(folder):
    data = ImageList.from_folder(folder/'train').split_random(seed=1).label_from_folder().transform(
        ([Plus(1), Plus(2), Normalize([0.5]*3, [1.]*3), Plus(4)], []), size=8).databunch(4)
    assert ([type(t.tfm).__name__ for t in data.batch_tfms[0]] == ['ToFloatTensor', 'Plus', 'Normalize']
            and data.batch_tfms[0][1].tfm.n == 7)
    class Between(Transform):
        on, order = 'batch', 10
        def image(self, xb, draw): return xb
    data = ImageList.from_folder(folder/'train').split_random(seed=1).label_from_folder().transform(
        ([Plus(1), Between(), Plus(4)], []), size=8).databunch(4)
    assert [type(t.tfm).__name__ for t in data.batch_tfms[0]] == ['ToFloatTensor', 'Plus', 'Between', 'Plus']

class BatchNoise(Transform):
    on, order, random = 'batch', 10, True
    def draw(self, xb, rngs): return torch.tensor([rng.random() for rng in rngs])
    def image(self, xb, draw): return xb + draw[:, None, None, None]

def test_random_batch_transforms_take_batches_of_pytorchs_loader(folder):
    data = ImageList.from_folder(folder/'train').split_random(seed=1).label_from_folder().transform(
        ([BatchNoise()], []), size=8).databunch(4)
    batch = next(iter(torch.utils.data.DataLoader(data.train_ds, 4)))
    set_seed(1)
    (a, _), (b, _) = (data.transform_batch(*batch, train=True, items=None) for _ in range(2))
    set_seed(1)
    c, _ = data.transform_batch(*batch, train=True, items=None)
    assert not torch.equal(a, b) and torch.equal(a, c)

def test_transforms_of_batches_serve_a_bunch_made_by_hand():
    xs = torch.rand(12, 3, 4, 4)
    data = make_data(Dataset(xs, torch.arange(12)), Dataset(xs, torch.arange(12)), bs=4, seed=3,
                     batch_tfms=([BatchNoise(), Normalize([0.5]*3, [2.]*3)], [Normalize([0.5]*3, [2.]*3)]))
    (a, items), (b, _) = data.one_batch(), data.one_batch()
    assert torch.equal(a, b) and not torch.allclose(a, (xs[items] - 0.5)/2)
    c, items = data.one_batch(False)
    assert torch.allclose(c, (xs[items] - 0.5)/2)

def test_a_single_transform_makes_the_images_of_any_list_grey(folder):
    data = ImageList.from_folder(folder).split_none().label_from_folder().transform(
        [MakeGrey()], size=16).databunch(bs=4).normalize()
    assert data.one_batch()[0].shape == (4, 1, 16, 16) and len(data.batch_tfms[0][1].tfm.mean) == 1
    assert ([type(t) for t in data.train_ds.tfms] == [MakeGrey, ResizeFixed, ToByteTensor]
            and MakeRGB()(Image.new('L', (2, 2))).mode == 'RGB')
