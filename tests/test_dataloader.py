"""The data loader: parity with PyTorch's, determinism over resumes, bad input."""
import copy, functools, os, pickle, time

import numpy as np
import pytest
import torch
import torch.utils.data as tud
from hypothesis import HealthCheck, given, settings as hsettings, strategies as st
from torch import nn

from exp.core import environ, test_eq as same
from exp.dataloader import (BatchContext, BatchSampler, DataBunch, DataLoader, Dataset, Rng, Sampler,
                            TransformedDataset, collate, eval_simple, fit_simple, make_data, random_shift)

same.__test__ = False
few = hsettings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


# Data sets that go to workers are defined at the top of the module, from which a worker imports them.

class Listed:
    "Items that cannot be sliced."
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i):
        if not 0 <= i < self.n: raise IndexError(i)
        return torch.full((3,), float(i)), i

class Noise(Listed):
    "A random data set."
    def get(self, i, rng): return (torch.rand(2, generator=rng.generator()), torch.tensor(rng.random())), i

class Failing(Listed):
    def __init__(self, n, bad, error): self.n, self.bad, self.error = n, bad, error
    def __getitem__(self, i):
        if i == self.bad: raise self.error('no such picture')
        return super().__getitem__(i)

class Dying(Listed):
    "Kills the worker that asks for item 5 in epoch 0."
    def get(self, i, rng):
        if i == 5 and rng.key[1] == 0: os._exit(3)
        return self[i]

class Slow(Listed):
    def __getitem__(self, i):
        time.sleep(0.02)
        return super().__getitem__(i)

class Threads(Listed):
    def __getitem__(self, i): return torch.get_num_threads(), os.getpid()

class Unequal(Listed):
    def __getitem__(self, i): return torch.zeros(i + 1), 0

def join_lengths(samples): return torch.tensor([len(x) for x, _ in samples]), None
def join_badly(samples): return torch.stack([x for x, _ in samples])
def halve(x, rng): return x/2
def unchanged(x, rng): return x
def noise(x, rng): return x + rng.random()

def passes(dl, n=1): return [[(list(b.items), *b) for b in dl] for _ in range(n)]


# ---------------------------------------------------------------- Dataset

@pytest.mark.parametrize('dtype',
                         [torch.uint8, torch.int64, torch.float32, torch.float64, torch.bfloat16, torch.bool])
@pytest.mark.parametrize('shape', [(7,), (7, 2), (7, 1, 3, 4)])
def test_a_data_set_indexes_like_its_tensors(dtype, shape):
    x, y = (torch.rand(shape)*9).to(dtype), torch.arange(7)
    ds = Dataset(x, y)
    mask = torch.tensor([True, False]*3 + [True])
    for i in (0, -1, slice(2, 5), slice(None, None, 2), [6, 0, 0], [-1, 2], torch.tensor([3, 1]),
              np.array([1, 2]), mask, mask.tolist()):
        same(ds[i], (x[i], y[i]))
    for r in (range(2, 5), range(0, 7, 3), range(5, 1, -1), range(0)):
        same(ds[r], (x[list(r)], y[list(r)]) if len(r) else (x[:0], y[:0]))
    same(ds[[]], (x[:0], y[:0]))

def test_a_slice_or_range_is_a_view_and_a_list_is_a_copy():
    x = torch.arange(20.).view(10, 2)
    ds = Dataset(x)
    assert ds[2:4][0].data_ptr() == ds[range(2, 4)][0].data_ptr() == x[2].data_ptr()
    assert ds[[2, 3]][0].data_ptr() != x[2].data_ptr()

def test_a_data_set_may_hold_lists_arrays_tuples_and_dicts():
    same(Dataset(['a', 'b', 'c'], [1, 2, 3])[[2, 0]], (['c', 'a'], torch.tensor([3, 1])))
    same(Dataset(['a', 'b', 'c'])[torch.tensor([True, False, True])], (['a', 'c'], None))
    same(Dataset(np.eye(3))[1], (torch.eye(3, dtype=torch.float64)[1], None))
    ds = Dataset((torch.eye(3), torch.arange(3)), {'boxes': torch.ones(3, 4)})
    assert len(ds) == 3 and ds.sliceable
    same(ds[[1, 2]], ((torch.eye(3)[1:], torch.arange(1, 3)), {'boxes': torch.ones(2, 4)}))
    assert not Dataset(['a']).sliceable and 'list' in repr(Dataset(['a']))

def test_a_data_set_ends_and_refuses_indices_beyond_its_end():
    for ds in (Dataset(torch.ones(3), torch.ones(3)), Dataset(['a', 'b', 'c'])):
        assert len(list(ds)) == 3
        for i in (3, -4, [0, 3], range(2, 4), [True, False]):
            with pytest.raises(IndexError): ds[i]
        with pytest.raises(TypeError): ds['a']

def test_lengths_that_differ_are_an_error():
    for x, y in ((torch.ones(3), torch.ones(2)), (['a'], torch.ones(2)),
                 ((torch.ones(2), torch.ones(3)), None)):
        with pytest.raises(ValueError, match='length'): Dataset(x, y)

@pytest.mark.parametrize('x, y, error, words', [
    (None, None, ValueError, 'length'), (torch.tensor(3.), None, TypeError, '0-d'),
    (np.array(3.), None, TypeError, '0-d'), (torch.ones(2), torch.tensor(3), TypeError, '0-d'),
    (5, None, TypeError, 'int'),
])
def test_a_data_set_without_rows_is_refused(x, y, error, words):
    with pytest.raises(error, match=words): Dataset(x, y)

def test_a_list_of_numbers_as_labels_becomes_a_tensor():
    ds = Dataset(torch.ones(100, 2), [0]*99 + [3])
    assert ds.sliceable and ds.c == 4 and ds.y.dtype == torch.int64
    assert Dataset(torch.ones(2), [0.5, 1]).y.dtype == torch.float32
    assert Dataset(torch.ones(2), ['a', 'b']).y == ['a', 'b']

def test_number_of_classes():
    assert Dataset(torch.ones(3), torch.tensor([0, 4, 2])).c == 5
    assert Dataset(torch.ones(3), torch.ones(3)).c is None and Dataset(torch.ones(3)).c is None

def test_a_subclass_with_its_own_items_is_not_sliced():
    class Doubled(Dataset):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return 2*x, y
    same(next(iter(DataLoader(Doubled(torch.arange(4.)), 4)))[0], 2*torch.arange(4.))

    class Random(Dataset):
        def get(self, i, rng): return rng.random(), i
    same(next(iter(DataLoader(Random(torch.arange(4.)), 4, seed=3)))[0],
         torch.tensor([Rng(3, 0, i).random() for i in range(4)]))


# ---------------------------------------------------------------- Rng

def test_rng_depends_on_its_key_alone():
    assert (Rng(1, 2, 'x').random() == Rng(1, 2,
                                           'x').random() == Rng(np.int64(1), torch.tensor(2), 'x').random())
    keys = [(1,), (1, 0), (0, 1), (1, 2), (12,), ('1', 2), (1, '2'), (-1,), ()]
    assert len({Rng(*k).random() for k in keys}) == len(keys)
    a = Rng(1)
    a.random()
    assert a.at(3).random() == Rng(1, 3).random()
    same(torch.rand(3, generator=Rng(1).generator()), torch.rand(3, generator=Rng(1).generator()))
    with pytest.raises(TypeError): Rng(1.5)

def test_rng_survives_pickle_and_copy_in_the_middle():
    a = Rng(1, 'x')
    a.random()
    for b in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a)):
        assert (b.key == a.key and b.random() == copy.deepcopy(a).random()
                and b.at(2).random() == a.at(2).random())

def test_rng_looks_uniform():
    u = np.array([Rng(1, e, i).random() for e in range(40) for i in range(250)])
    assert abs(u.mean() - 0.5) < 5*(1/12/len(u))**0.5
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5/len(u)**0.5


# ---------------------------------------------------------------- samplers

@few
@given(n=st.integers(1, 60), bs=st.integers(1, 20), drop_last=st.booleans(), shuffle=st.booleans(),
       epoch=st.integers(0, 5))
def test_batches_are_a_cut_of_a_permutation_of_the_length_promised(n, bs, drop_last, shuffle, epoch):
    sampler = Sampler(n, shuffle, seed=1)
    sampler.set_epoch(epoch)
    assert sorted(sampler) == list(range(n)) and len(sampler) == n
    theirs = tud.BatchSampler(sampler, bs, drop_last)
    ours = BatchSampler(sampler, bs, drop_last)
    assert list(ours) == list(theirs) and len(ours) == len(theirs)
    assert [_list(b) for b in ours.cut(sampler.order(epoch))] == list(theirs)

def _list(b): return b.tolist() if isinstance(b, torch.Tensor) else list(b)


def test_counts_of_samplers_are_checked():
    with pytest.raises(ValueError, match='-1'): Sampler(-1)
    with pytest.raises(TypeError, match='whole'): Sampler(2.5)
    for bs in (0, -2):
        with pytest.raises(ValueError, match='bs'): BatchSampler(Sampler(3), bs)
    with pytest.raises(TypeError, match='bs'): BatchSampler(Sampler(3), '2')
    assert list(Sampler(0)) == []

def test_a_transform_that_is_no_function_is_refused():
    for bad in ('x', [halve, 3]):
        with pytest.raises(TypeError, match='callable'):
            next(iter(DataLoader(TransformedDataset(Listed(3), bad), 2)))


# ---------------------------------------------------------------- collate

@few
@given(n=st.integers(1, 5), shape=st.lists(st.integers(0, 4), max_size=3),
       dtype=st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool,
                              torch.float16]))
def test_collate_equals_pytorchs(n, shape, dtype):
    samples = [((torch.rand(shape)*9).to(dtype), (i, i/2, {'a': np.float32(i), 'name': str(i)}))
               for i in range(n)]
    (xb, (whole, real, d)), (tx, (tw, tr, td)) = collate(samples), tud.default_collate(samples)
    same((xb, whole, real, d), (tx, tw, tr, td))
    # numbers with a fraction are float32
    assert ((xb.dtype, whole.dtype, real.dtype,
             d['a'].dtype) == (tx.dtype, tw.dtype, torch.float32, td['a'].dtype))

def test_collate_keeps_tuples_and_none():
    xb, yb = collate([((torch.ones(2), 1), None), ((torch.zeros(2), 2), None)])
    assert isinstance(xb, tuple) and yb is None

@pytest.mark.parametrize('a, b, words', [
    (torch.zeros(2), torch.zeros(3), 'shape'),
    ({'im': torch.zeros(2)}, {'im': torch.zeros(3)}, r"\['im'\]"),
    ({'im': 1}, {'im': 1, 'mask': 1}, 'dict'),
    ((1, 2), (1, 2, 3), 'tuple'),
    (None, 3, 'NoneType'),
    (np.zeros(2), np.zeros(3), 'shape'),
])
def test_collate_names_items_that_cannot_be_stacked(a, b, words):
    with pytest.raises(ValueError, match=words) as e: collate([(a, 0), (b, 0)], items=[4, 9])
    assert 'item 4' in str(e.value) and 'item 9' in str(e.value)

def test_collate_says_what_it_cannot_take():
    with pytest.raises(TypeError, match='object'): collate([(object(), 0)])


# ---------------------------------------------------------------- parity of the loader

@few
@given(n=st.integers(1, 50), bs=st.integers(1, 20), drop_last=st.booleans(), sliced=st.booleans(),
       dtype=st.sampled_from([torch.float32, torch.uint8, torch.float64]))
def test_the_loader_gives_pytorchs_batches(n, bs, drop_last, sliced, dtype):
    ds = Dataset((torch.rand(n, 3)*9).to(dtype), torch.arange(n)) if sliced else Listed(n)
    if drop_last and n < bs:
        with pytest.raises(ValueError, match='batch'): DataLoader(ds, bs, drop_last=True)
        return
    ours, theirs = DataLoader(ds, bs,
                              drop_last=drop_last), tud.DataLoader(ds, batch_size=bs, drop_last=drop_last)
    got, want = list(ours), list(theirs)
    same([tuple(b) for b in got], [tuple(b) for b in want])
    assert [x.dtype for x, _ in got] == [x.dtype for x, _ in want] and len(ours) == len(theirs) == len(got)
    assert [i for b in got for i in b.items] == [int(i) for _, y in want for i in y]

@pytest.mark.parametrize('ds', [Dataset(torch.arange(10.)), Listed(10)], ids=['sliced', 'listed'])
def test_pytorchs_samplers_repeat_by_seed_and_epoch_and_leave_the_global_state(ds):
    for make in (lambda: tud.RandomSampler(range(10)), lambda: tud.WeightedRandomSampler([1.]*10, 10),
                 lambda: tud.SubsetRandomSampler(range(10))):
        runs = []
        for _ in range(2):
            torch.manual_seed(len(runs))
            before = torch.get_rng_state()
            runs.append(passes(DataLoader(ds, 3, sampler=make(), seed=1), 3))
            assert torch.get_rng_state().equal(before)
        same(*runs)
        assert runs[0][0] != runs[0][1]
    batches = DataLoader(ds, batch_sampler=tud.BatchSampler(tud.RandomSampler(range(10)), 4, False), seed=1)
    assert [len(b.items) for b in batches] == [4, 4, 2]

def test_pytorchs_distributed_sampler_is_told_the_epoch():
    sampler = tud.DistributedSampler(range(10), num_replicas=2, rank=0, seed=5)
    dl = DataLoader(Listed(10), 2, sampler=sampler)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        want = list(sampler)
        assert [i for b in dl for i in b.items] == want
        assert dl.epoch == epoch

def test_a_sequential_order_from_elsewhere_is_sliced_as_a_view():
    x = torch.rand(10, 2)
    for kwargs in (dict(bs=4, sampler=tud.SequentialSampler(x)), dict(batch_sampler=[[0, 1, 2, 3], [4, 5]])):
        batch = next(iter(DataLoader(Dataset(x), **kwargs)))
        assert batch[0].data_ptr() == x.data_ptr() and list(batch.items) == [0, 1, 2, 3]

def test_another_collate_is_used_even_where_slicing_would_do():
    same(list(DataLoader(Unequal(4), 3, collate=join_lengths)),
         [(torch.tensor([1, 2, 3]), None), (torch.tensor([4]), None)])
    same(next(iter(DataLoader(Dataset(torch.ones(3, 5)), 3, collate=join_lengths))),
         (torch.tensor([5, 5, 5]), None))

class Words(Listed):
    "Items of any length, with a collate of their own."
    def __getitem__(self, i): return torch.full((i + 1,), i), torch.full((2*i,), i)
    def collate(self, samples): return collate(samples, x=padded, y=padded)

def padded(parts): return nn.utils.rnn.pad_sequence(parts, batch_first=True)

@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('wrap', [lambda ds: ds, lambda ds: TransformedDataset(ds, unchanged)],
                         ids=['plain', 'transformed'])
def test_a_data_set_may_say_how_its_items_are_collated(wrap, workers):
    dl = DataLoader(wrap(Words(3)), 3, num_workers=workers)
    for _ in range(2):
        xb, yb = next(iter(dl))
        same((xb, yb), (torch.tensor([[0, 0, 0], [1, 1, 0], [2, 2, 2]]),
                        torch.tensor([[0]*4, [1, 1, 0, 0], [2]*4])))
    dl.close()
    same(next(iter(DataLoader(wrap(Words(3)), 3, collate=join_lengths)))[0], torch.tensor([1, 2, 3]))

def test_x_and_y_are_collated_each_in_its_way():
    xb, yb = collate([(torch.ones(2), torch.ones(1)), (torch.ones(3), torch.zeros(1))], x=padded)
    same((xb, yb), (torch.tensor([[1., 1, 0], [1, 1, 1]]), torch.tensor([[1.], [0]])))
    xb, yb = collate([(1, 'a'), (2, 'b')], y=list)
    assert xb.tolist() == [1, 2] and yb == ['a', 'b']

def test_a_subset_and_a_concatenation_of_pytorch_work():
    ds = tud.ConcatDataset([tud.Subset(Listed(10), [3, 4]), Listed(2)])
    same(next(iter(DataLoader(ds, 4)))[1], torch.tensor([3, 4, 0, 1]))


# ---------------------------------------------------------------- determinism

def test_a_transformed_item_depends_on_seed_epoch_item_and_place():
    ds = TransformedDataset(Dataset(torch.zeros(6)), [noise, halve, noise])
    draws = {(s, e, i): ds.get(i, Rng(s, e, i))[0].item() for s in range(3) for e in range(3)
             for i in range(3)}
    assert len(set(draws.values())) == len(draws)
    one, two = TransformedDataset(Dataset(torch.zeros(6)),
                                  noise), TransformedDataset(Dataset(torch.zeros(6)), [noise, noise])
    same(two.get(1, Rng(0))[0], one.get(1, Rng(0))[0] + Rng(0, 1).random())
    assert TransformedDataset(Dataset(torch.ones(3), torch.arange(3)), noise).c == 3
    with pytest.raises(AttributeError, match='size'): ds.size

ITEMS, WHOLE = 23, {}

@few
@given(skip=st.integers(0, ITEMS), epoch=st.integers(0, 3), bs=st.integers(1, 9),
       kind=st.sampled_from(['sliced', 'random', 'theirs', 'batches']))
def test_a_resume_at_any_item_gives_the_rest_of_the_epoch(skip, epoch, bs, kind):
    def loader():
        if kind == 'sliced': return DataLoader(Dataset(torch.arange(ITEMS)), bs, shuffle=True, seed=1)
        if kind == 'random': return DataLoader(Noise(ITEMS), bs, shuffle=True, seed=1)
        if kind == 'theirs':
            return DataLoader(Noise(ITEMS), bs, sampler=tud.RandomSampler(range(ITEMS)), seed=1)
        return DataLoader(Noise(ITEMS),
                          batch_sampler=tud.BatchSampler(tud.RandomSampler(range(ITEMS)), bs, False), seed=1)
    def items(batches): return [(i, repr(_item(b, k))) for b in batches for k, i in enumerate(b.items)]
    dl = loader()
    whole = [items(dl) for _ in range(epoch + 2)]
    dl = loader()
    dl.set_epoch(epoch, skip_items=skip)
    rest = list(dl)
    assert items(rest) == whole[epoch][skip:]
    if skip % bs == 0 and kind != 'batches': assert all(len(b.items) == bs for b in rest[:-1])
    assert items(dl) == whole[epoch + 1], 'the next pass is the next epoch, from its start'

def _item(batch, k):
    xb, yb = batch
    return [x[k].tolist() for x in xb] if isinstance(xb, tuple) else xb[k].item()

def test_a_resume_at_every_batch_is_the_same_with_workers():
    whole = passes(DataLoader(Noise(20), 4, shuffle=True, seed=2), 2)
    dl = DataLoader(Noise(20), 4, shuffle=True, num_workers=2, seed=2)
    for skip in range(0, 24, 4):
        dl.set_epoch(1, skip)
        same(passes(dl)[0], whole[1][skip//4:])

@pytest.mark.parametrize('kwargs', [
    dict(bs=2), dict(bs=2, shuffle=True), dict(bs=2, sampler=tud.RandomSampler(range(5))),
    dict(batch_sampler=[[0, 1], [2, 3], [4]]),
], ids=['in order', 'shuffled', 'theirs', 'batches'])
@pytest.mark.parametrize('ds', [Dataset(torch.arange(5.)), Listed(5)], ids=['sliced', 'listed'])
def test_a_position_beyond_the_epoch_is_an_error_and_its_end_is_not(ds, kwargs):
    dl = DataLoader(ds, **kwargs)
    dl.set_epoch(0, skip_items=5)
    assert list(dl) == []
    dl.set_epoch(0, skip_items=6)
    with pytest.raises(ValueError, match='skip_items'): list(dl)
    assert len(list(dl)) == 3 and dl.epoch == 1

def test_each_iter_counts_as_an_epoch():
    dl = DataLoader(Listed(5), 2)
    next(iter(dl))
    next(iter(dl))
    list(dl)
    assert dl.epoch == 2

def test_a_loader_counts_its_passes():
    dl = DataLoader(Listed(5), 2)
    for epoch in range(3):
        for _ in dl: assert dl.epoch == epoch
    dl.set_epoch(7)
    assert dl.epoch == 7
    list(dl)
    list(dl)
    assert dl.epoch == 8

def test_the_seed_is_the_settings_unless_given():
    with environ(EXP_SEED='9'): by_setting = DataLoader(Listed(9), 9, shuffle=True)
    assert by_setting.seed == 9
    same(passes(by_setting), passes(DataLoader(Listed(9), 9, shuffle=True, seed=9)))
    assert passes(DataLoader(Listed(9), 9, shuffle=True,
                             seed=9)) != passes(DataLoader(Listed(9), 9, shuffle=True, seed=8))

def test_numpys_and_pythons_generators_are_left_alone():
    import random
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    dl = DataLoader(Noise(8), 2, shuffle=True, num_workers=2)
    passes(dl, 2)
    assert state == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_sampler_that_answers_a_wrong_index_is_an_error():
    for ds in (Dataset(torch.ones(3)), Listed(3)):
        with pytest.raises(IndexError): list(DataLoader(ds, 2, sampler=[0, 3]))
        with pytest.raises(IndexError): list(DataLoader(ds, 4, sampler=[1, 2, 3]))
        with pytest.raises(TypeError): list(DataLoader(ds, 2, sampler=['a', 'b']))


# ---------------------------------------------------------------- bad input

@pytest.mark.parametrize('kwargs, error, words', [
    (dict(), TypeError, 'bs'),
    (dict(bs=0), ValueError, 'bs'), (dict(bs=-3), ValueError, 'bs'),
    (dict(bs=2.5), TypeError, 'bs'), (dict(bs=True), TypeError, 'bs'),
    (dict(bs='8'), TypeError, 'bs'),
    (dict(bs=2, num_workers=-1), ValueError, 'num_workers'),
    (dict(bs=2, num_workers=None), TypeError, 'num_workers'),
    (dict(bs=2, seed='x'), TypeError, 'seed'), (dict(bs=2, collate=3), TypeError, 'callable'),
    (dict(bs=2, shuffle=True, sampler=range(3)), ValueError, 'sampler'),
    (dict(bs=2, sampler=iter([1])), TypeError, 'len'),
    (dict(bs=2, batch_sampler=[[0]]), ValueError, 'batch_sampler'),
    (dict(shuffle=True, batch_sampler=[[0]]), ValueError, 'batch_sampler'),
    (dict(sampler=range(3), batch_sampler=[[0]]), ValueError, 'batch_sampler'),
    (dict(drop_last=True, batch_sampler=[[0]]), ValueError, 'batch_sampler'),
    (dict(bs=9, drop_last=True), ValueError, 'bs'),
])
def test_arguments_that_make_no_sense_are_refused(kwargs, error, words):
    with pytest.raises(error, match=words): list(DataLoader(Listed(5), **kwargs))

def test_data_sets_that_are_none_are_refused():
    for empty in (Dataset([]), Dataset(torch.ones(0, 3), torch.ones(0)), []):
        with pytest.raises(ValueError, match='batch'): DataLoader(empty, 2)
    class Stream(tud.IterableDataset):
        def __iter__(self): return iter([])
    for bad in (Stream(), 5, iter([1])):
        with pytest.raises(TypeError, match='len'): DataLoader(bad, 2)
    dl = DataLoader(Listed(4), 2)
    with pytest.raises(ValueError, match='skip_items'): dl.set_epoch(0, -1)
    with pytest.raises(TypeError, match='epoch'): dl.set_epoch(1.5)
    with pytest.raises(TypeError, match='bacth_size'): DataLoader(Listed(4), bacth_size=3)

def test_a_loader_shows_what_it_is():
    assert repr(DataLoader(Dataset(torch.ones(5, 2), torch.arange(5)), 2, seed=1)) == \
        'DataLoader (3 batches of 2 from Dataset (5 items: x 2 float32; y number int64), 0 workers, seed 1)'


# ---------------------------------------------------------------- DataBunch

def test_a_bunch_answers_as_expected():
    class Labeled(Dataset):
        classes, kind, loss_func = ['a', 'b'], 'category', staticmethod(nn.functional.mse_loss)
    data = make_data(Labeled(torch.ones(5, 2), torch.tensor([0, 1, 0, 1, 0])),
                     Dataset(torch.ones(3, 2), torch.zeros(3)), bs=2, drop_last=True, seed=4)
    assert ((data.c, data.classes, data.kind,
             data.loss_func) == (2, ['a', 'b'], 'category', nn.functional.mse_loss))
    assert len(data.train_ds) == 5 and len(data.valid_ds) == 3 and data.test_ds is data.test_dl is None
    assert (len(data.train_dl) == 2 and data.valid_dl.bs == 4 and data.train_dl.seed == 4
            and 'valid: DataLoader' in repr(data))
    assert DataBunch(data.train_dl, c=7, classes=list('xyz')).c == 7
    theirs = DataBunch(tud.DataLoader(Listed(3)), tud.DataLoader(Listed(2)))
    assert len(theirs.train_ds) == 3 and theirs.c is None
    with pytest.raises(ValueError, match='batch'): make_data(Listed(3), Dataset([]))

def test_a_bunch_takes_loaders_not_data_sets():
    for bad in (Dataset(torch.ones(3)), TransformedDataset(Listed(3), halve),
                tud.TensorDataset(torch.ones(3)), Listed(3), 5, torch.ones(3)):
        with pytest.raises(TypeError, match='train_dl'): DataBunch(bad, bad)
    with pytest.raises(TypeError, match='valid_dl'):
        DataBunch(DataLoader(Listed(3), 2), Listed(3))

def test_batch_transforms_run_by_order_each_on_its_side():
    def first(xb): return xb + 1
    def second(xb, yb, ctx): return xb*10, (yb, ctx)
    first.order, second.order, second.on = 1, 2, 'batch'
    dl, valid = DataLoader(Listed(4), 2, seed=5), DataLoader(Listed(4), 2, seed=6)
    data = DataBunch(dl, valid, batch_tfms=([second, first], [first]))
    dl.set_epoch(3)
    batch = next(iter(dl))
    xb, (yb, ctx) = data.transform_batch(torch.ones(2), None, train=True, items=batch.items)
    same(xb, torch.full((2,), 20.))
    assert ctx == BatchContext(train=True, seed=5, epoch=3, items=batch.items)
    same(data.transform_batch(torch.ones(2), 7, train=False, items=None), (torch.full((2,), 2.), 7))
    both = DataBunch(dl, valid, batch_tfms=first)
    for train in (True, False):
        same(both.transform_batch(torch.ones(1), 0, train=train, items=[0])[0], torch.full((1,), 2.))

def test_random_shift_moves_every_pixel_alike():
    im = torch.zeros(1, 9, 9)
    im[0, 4, 4] = 1
    places = {tuple(random_shift(im, Rng(i), pixels=2).nonzero()[0].tolist()) for i in range(400)}
    assert places == {(0, y, x) for y in range(2, 7) for x in range(2, 7)}
    same(random_shift(im, Rng(1), pixels=0), im)


# ---------------------------------------------------------------- training

def accuracy(pred, yb): return (pred.argmax(1) == yb).float().mean()

def separable(n, seed):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return Dataset(x, (x.sum(1) > 0).long())

@few
@given(n=st.integers(1, 70), bs=st.integers(1, 80))
def test_the_average_over_batches_is_the_average_over_the_set(n, bs):
    torch.manual_seed(0)
    model, ds = nn.Linear(4, 2).double(), separable(n, 0)
    ds = Dataset(ds.x.double(), ds.y)
    got = eval_simple(model, nn.functional.cross_entropy, (None, DataLoader(ds, bs)), [accuracy])
    assert abs(got['loss'] - nn.functional.cross_entropy(model(ds.x), ds.y).item()) < 1e-12
    assert abs(got['accuracy'] - accuracy(model(ds.x), ds.y).item()) < 1e-6

def test_fit_simple_learns_and_equals_a_loop_by_hand():
    train, valid = separable(300, 1), separable(100, 2)
    def new():
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        return model, torch.optim.SGD(model.parameters(), lr=0.5)
    model, opt = new()
    h = fit_simple(3, model, nn.functional.cross_entropy, opt, make_data(train, valid, bs=32, seed=1),
                   accuracy)
    assert [row['epoch'] for row in h] == [0, 1, 2] and h[-1]['accuracy'] > 0.9
    by_hand, opt = new()
    dl = DataLoader(train, 32, shuffle=True, seed=1)
    for _ in range(3):
        for xb, yb in dl:
            nn.functional.cross_entropy(by_hand(xb), yb).backward()
            opt.step()
            opt.zero_grad()
    same(list(model.state_dict().values()), list(by_hand.state_dict().values()))

@pytest.mark.parametrize('mode', [True, False])
def test_the_models_mode_is_restored_even_after_an_error(mode):
    model = nn.Sequential(nn.Linear(4, 2), nn.Dropout())
    model.train(mode)
    opt, data = torch.optim.SGD(model.parameters(), lr=0.1), make_data(separable(20, 0), separable(20, 1))
    def fails(pred, yb): raise RuntimeError('no metric')
    for f in (lambda m: fit_simple(1, model, nn.functional.cross_entropy, opt, data, m),
              lambda m: eval_simple(model, nn.functional.cross_entropy, data, m)):
        f([accuracy])
        assert model.training == mode
        with pytest.raises(RuntimeError, match='metric'): f([fails])
        assert model.training == mode

def test_training_needs_loaders():
    model = nn.Linear(4, 2)
    with pytest.raises(TypeError, match='DataBunch'):
        eval_simple(model, nn.functional.cross_entropy, DataLoader(separable(4, 0), 2))
    with pytest.raises(ValueError, match='valid_dl'):
        eval_simple(model, nn.functional.cross_entropy, DataBunch(DataLoader(separable(4, 0), 2)))


def test_mistakes_show_before_the_first_step():
    model, dl = nn.Linear(4, 2), DataLoader(separable(8, 0), 4)
    start, opt = [p.clone() for p in model.parameters()], torch.optim.SGD(model.parameters(), lr=0.1)
    def fit(data, metrics=(), epochs=1):
        return fit_simple(epochs, model, nn.functional.cross_entropy, opt, data, metrics)
    class NoName:
        def __call__(self, pred, yb): return 0.
    for data in ((dl, None), DataBunch(dl)):
        with pytest.raises(ValueError, match='valid_dl'): fit(data)
    with pytest.raises(ValueError, match='train_dl'): fit((None, dl))
    for metrics in ([accuracy, accuracy], [accuracy, functools.partial(accuracy)]):
        with pytest.raises(ValueError, match='metrics'): fit((dl, dl), metrics)
        with pytest.raises(ValueError, match='metrics'):
            eval_simple(model, nn.functional.cross_entropy, (dl, dl), metrics)
    for metric in (NoName(), functools.partial(NoName()), 'accuracy'):
        with pytest.raises(AttributeError, match='__name__'): fit((dl, dl), metric)
    same(list(model.parameters()), start)
    assert fit((dl, dl), epochs=0) == []

def test_a_partial_metric_has_its_functions_name():
    def scaled(pred, yb, by): return accuracy(pred, yb)*by
    dl = DataLoader(separable(8, 0), 4)
    got = eval_simple(nn.Linear(4, 2), nn.functional.cross_entropy, (dl, dl),
                      [functools.partial(scaled, by=100), accuracy])
    assert abs(got['scaled'] - 100*got['accuracy']) < 1e-4

def test_validation_builds_no_graph():
    grads = []
    def watching(pred, yb):
        grads.append(pred.requires_grad)
        return nn.functional.cross_entropy(pred, yb)
    dl = DataLoader(separable(8, 0), 4)
    eval_simple(nn.Linear(4, 2), watching, (dl, dl))
    assert grads == [False, False]


class One:
    "Random items, the fifth of which fails."
    def __len__(self): return 10
    def get(self, i, rng):
        if i == 5: raise ValueError('item five is broken')
        return torch.tensor([i + rng.random()]), i

class Many(One):
    "The same items, made together; None for a batch with item 5."
    def __init__(self): self.asked = []
    def get_many(self, items, rng_of):
        self.asked.append(list(items))
        if 5 in items: return None
        return torch.stack([torch.tensor([i + rng_of(i).random()]) for i in items]), torch.tensor(list(items))

def test_a_data_set_may_make_many_items_at_once_with_the_same_result():
    ds = Many()
    together, singly = (next(iter(DataLoader(d, 4, seed=3))) for d in (ds, One()))
    assert together.items == singly.items == range(4) and ds.asked == [[0, 1, 2, 3]]
    assert torch.equal(together[0], singly[0]) and torch.equal(together[1], singly[1])

def test_where_it_cannot_items_are_made_one_by_one_and_an_error_names_its_item():
    batches = iter(DataLoader(Many(), 4, seed=3))
    next(batches)
    with pytest.raises(ValueError, match='five') as e: next(batches)
    assert any('item 5' in n for n in e.value.__notes__)
