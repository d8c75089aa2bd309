"""What a data set and a loader take, in whatever form it comes: masks, pandas by position, numbers with a
fraction, containers of any type; what is changed later is seen; what cannot be used says so."""
import collections, warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import torch.utils.data as tud
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from exp.callbacks import Callback, Runner
from exp.core import ListContainer, to_cpu, to_device
from exp.transforms import first_rows
from exp.workers import Batch
from exp.dataloader import (DataLoader, Dataset, TransformedDataset, collate, make_data)
from exp.distributed import RankLoader
from exp.learner import Learner
from exp.inference import join_batches, pick_rows
from exp.metrics import MeanMetric
from exp.progress import Progress

N = 10
MASK = [False]*8 + [True]*2
FORMS = {'list': list, 'tuple': tuple, 'array': np.array, 'tensor': torch.tensor,
         'list of NumPy': lambda m: [np.bool_(v) for v in m],
         'Series': lambda m: pd.Series(m, index=range(5, 5 + len(m))), 'Index': pd.Index,
         'nullable': lambda m: pd.Series(m, dtype='boolean'),
         'objects': lambda m: pd.Series(m, dtype=object),
         'array of objects': lambda m: np.array(m, dtype=object)}
forms = pytest.mark.parametrize('form', FORMS)

class Items:
    def __init__(self, n=N): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i):
        if not 0 <= i < self.n: raise IndexError(i)
        return torch.tensor([float(i)]), i

def items(dl): return [i for batch in dl for i in batch.items]

# ---------------------------------------------------------------- masks

PLACES = {
    'sampler': lambda m: items(DataLoader(Items(), 4, sampler=m)),
    'sampler of a sliced set': lambda m: items(DataLoader(Dataset(torch.arange(N)), 4, sampler=m)),
    'batch_sampler': lambda m: items(DataLoader(Items(), batch_sampler=[m])),
    'Dataset': lambda m: Dataset(torch.arange(N))[m][0].tolist(),
    'Dataset of a list': lambda m: Dataset(list(range(N)))[m][0],
    'ListContainer': lambda m: ListContainer(range(N))[m],
}

@forms
@pytest.mark.parametrize('place', PLACES)
def test_a_mask_chooses_where_it_is_true(place, form):
    assert PLACES[place](FORMS[form](MASK)) == [8, 9]

@forms
def test_the_length_of_a_loader_counts_what_a_mask_chooses(form):
    dl = DataLoader(Items(), 1, sampler=FORMS[form](MASK))
    assert len(dl) == 2 == len(list(dl))
    with pytest.raises(ValueError, match='batch'):
        DataLoader(Items(), 3, sampler=FORMS[form](MASK), drop_last=True)

@forms
@pytest.mark.parametrize('place', PLACES)
def test_a_mask_of_another_length_is_refused(place, form):
    with pytest.raises(IndexError, match='mask'): PLACES[place](FORMS[form]([True, False, True, True]))

@pytest.mark.parametrize('mixed', [[True, 2, 5], [3, False]])
def test_a_mask_with_numbers_among_it_is_refused(mixed):
    for place in PLACES.values():
        with pytest.raises(IndexError, match='mask'): place(mixed + [True]*(N - len(mixed)))

@pytest.mark.parametrize('ds', [Dataset(torch.arange(N)), Dataset(list(range(N)))], ids=['tensor', 'list'])
def test_a_mask_in_pytorchs_subset_is_not_taken_for_0_and_1(ds):
    with pytest.raises(TypeError, match='mask'): items(DataLoader(tud.Subset(ds, MASK), 4))

@pytest.mark.parametrize('index', [[0.5, 1.2], np.array([0.5]), torch.tensor([1.])])
def test_fractions_are_no_places(index):
    with pytest.raises(TypeError): Dataset(torch.arange(N))[index]

@pytest.mark.parametrize('form',
                         [np.array, torch.tensor, tuple, lambda v: pd.Series(v, index=[9, 8, 7]), pd.Index])
def test_places_in_any_form(form):
    places = form([7, 2, 5])
    assert (items(DataLoader(Items(), 2, sampler=places)) == [7, 2, 5]
            == items(DataLoader(Items(), batch_sampler=[places])))
    assert (Dataset(torch.arange(N))[places][0].tolist() == [7, 2, 5] == ListContainer(range(N))[places]
            == Dataset(list(range(N)))[places][0])

# ---------------------------------------------------------------- pandas, by position

df = pd.DataFrame({'t': list('abcd'), 'y': range(4), 'a': [0.5, 1.5, 2.5, 3.5],
                   'b': [True, False, True, True]}).sample(frac=1, random_state=3)
CUTS = {'whole': df, 'iloc': df.iloc[1:], 'reversed': df.iloc[::-1], 'by name': df.set_index('t', drop=False)}
cuts = pytest.mark.parametrize('table', CUTS.values(), ids=list(CUTS))

@cuts
def test_columns_count_by_position(table):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for x in (table.t, table.t.tolist(), pd.Index(table.t)):
            ds = Dataset(x, table.y)
            assert ([(ds[i][0], int(ds[i][1])) for i in range(len(ds))] == list(zip(table.t, table.y))
                    and ds.c == int(table.y.max()) + 1)
        ds = Dataset(table[['a', 'y']], table.y.astype('Int64'))
        assert (ds.sliceable and ds.x.tolist() == table[['a', 'y']].to_numpy().tolist()
                and ds.x.dtype == torch.float32 and ds.y.dtype == torch.int64)
        assert (Dataset(table[['a', 'b']],
                        table.b).x.tolist() == table[['a', 'b']].astype(float).to_numpy().tolist())
        assert Dataset({'a': table.a, 'b': table.b}, table.y).x['a'].tolist() == table.a.tolist()
        assert Dataset((table.a, table.y)).x[1].tolist() == table.y.tolist()
    for xb, yb in DataLoader(Dataset(table[['a', 'y']], table.y), 2, shuffle=True):
        assert xb[:, 1].tolist() == yb.tolist()

@cuts
def test_rows_of_a_table_are_collated(table):
    pairs = [(table[['a', 'y']].iloc[i], table.y.iloc[i]) for i in range(len(table))]
    xb, yb = collate(pairs)
    assert (xb.dtype == torch.float32 and xb.tolist() == table[['a', 'y']].to_numpy().tolist()
            and yb.tolist() == table.y.tolist())

def test_a_column_s_memory_is_not_shared():
    frame = pd.DataFrame({'a': [1., 2.], 'y': [0, 1]})
    Dataset(frame[['a']], frame.y).y.add_(5)
    assert frame.y.tolist() == [0, 1]

# ---------------------------------------------------------------- numbers with a fraction

FRACTIONS = {'numbers': [0.5, 1.5, 2.5], 'NumPy scalars': list(np.array([0.5, 1.5, 2.5])),
             'array': np.array([0.5, 1.5, 2.5]), 'Series': pd.Series([0.5, 1.5, 2.5])}
fractions = pytest.mark.parametrize('values', FRACTIONS.values(), ids=list(FRACTIONS))

def labels_through(values):
    "The batch of labels by each of the ways that there are."
    x, each = torch.zeros(3, 2), list(values)
    yield next(iter(DataLoader(Dataset(x, values), 3)))[1]
    yield next(iter(DataLoader(Dataset(list(x), values), 3)))[1]
    yield next(iter(DataLoader(list(zip(x, each)), 3)))[1]
    yield next(iter(DataLoader(TransformedDataset(Dataset(list(x), values), lambda x, rng: x), 3)))[1]
    yield collate(list(zip(x, each)))[1]
    yield collate(list(zip(x, [(v,) for v in each])))[1][0]
    yield collate(list(zip(x, [{'v': v} for v in each])))[1]['v']
    yield collate(list(zip(x, [np.array(v) for v in each])))[1]
    yield make_data((x, values), None).train_ds.y

@fractions
def test_fractions_are_float32_by_every_way(values):
    for yb in labels_through(values):
        assert yb.dtype == torch.float32 and sorted(yb.tolist()) == [0.5, 1.5, 2.5]

def test_tensors_and_other_types_are_kept():
    for t in (torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float16),
              np.zeros(3, np.float32), np.zeros(3, np.float16), np.zeros(3, np.uint8)):
        wanted = torch.as_tensor(t).dtype
        assert Dataset(torch.zeros(3, 2), t).y.dtype == wanted == collate([(0, v) for v in t])[1].dtype

def test_the_default_type_is_pytorchs():
    torch.set_default_dtype(torch.float64)
    try: assert {yb.dtype for yb in labels_through([0.5, 1.5, 2.5])} == {torch.float64}
    finally: torch.set_default_dtype(torch.float32)

def test_a_table_trains_a_network():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(32, 3)), columns=list('abc'))
    learn = Learner(make_data((frame, frame.a + frame.b), (frame, frame.a), bs=8),
                    nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), loss_func=nn.MSELoss(),
                    cbs=Progress(False))
    learn.fit(1)

# ---------------------------------------------------------------- containers keep their type

@dataclass(frozen=True)
class Data:
    a: torch.Tensor
    b: object = None

class Named(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor

class Mine(dict): pass
class Row(list): pass

def packed(): return pack_sequence([torch.ones(2, 4), torch.zeros(3, 4)], enforce_sorted=False)

t = torch.arange(6.).view(2, 3)
CONTAINERS = {'tuple': (t, t + 1), 'list': [t, t + 1], 'dict': {'a': t, 'b': t + 1},
              'named tuple': Named(t, t + 1), 'ordered': collections.OrderedDict(a=t, b=t + 1),
              'own dict': Mine(a=t, b=t + 1), 'default': collections.defaultdict(list, a=t, b=t + 1),
              'user dict': collections.UserDict(a=t, b=t + 1),
              'own list': Row([t, t + 1]), 'dataclass': Data(t, t + 1), 'returned by torch': torch.max(t, 0),
              'packed': packed(), 'nested': {'a': Named(t, [Data(t)])},
              'batch': Batch((t, t), [4, 2])}
containers = pytest.mark.parametrize('x', CONTAINERS.values(), ids=list(CONTAINERS))
parts = lambda x: [p for v in (x.values() if hasattr(x, 'values') and not isinstance(x, tuple)
                               else vars(x).values() if isinstance(x, Data) else x)
                   for p in ([v] if isinstance(v, (torch.Tensor, type(None))) else parts(v))]

@containers
def test_what_moves_keeps_its_type(x):
    moved = to_device(x, 'meta')
    assert type(moved) is type(x)
    assert ([p.device.type for p in parts(moved)
             if p is not None] == ['cpu' if isinstance(x, PackedSequence) and i == 1 else 'meta'
                                   for i, p in enumerate(p for p in parts(moved) if p is not None)])
    again = to_cpu(x)
    assert (type(again) is type(x)
            and all(a is b is None or torch.equal(a, b) for a, b in zip(parts(x), parts(again))))
    if isinstance(x, Batch): assert moved.items == [4, 2]

KEPT = [k for k in CONTAINERS if k not in ('packed', 'nested', 'batch', 'returned by torch')]

@pytest.mark.parametrize('kind', KEPT)
def test_what_is_collated_joined_and_shown_keeps_its_type(kind):
    x = CONTAINERS[kind]
    xb, _ = collate([(x, 0), (x, 1)])
    assert type(xb) is type(x) and all(p.shape == (2, 2, 3) for p in parts(xb))
    rows = first_rows(xb, 1)
    assert len(rows) == 1 and all(p.shape == (2, 3) for p in parts(rows[0]))
    joined = join_batches([xb, xb])
    if kind in ('list', 'own list'): return
    assert (type(joined) is type(x) is type(rows[0]) is type(pick_rows(joined, 3))
            and all(p.shape == (4, 2, 3) for p in parts(joined)))

@pytest.mark.parametrize('kind', ['tuple', 'dict', 'named tuple', 'ordered', 'own dict', 'default'])
def test_a_data_set_keeps_its_containers(kind):
    x = CONTAINERS[kind]
    ds = Dataset(x, [0, 1])
    for i in (0, [1, 0], slice(1)): assert type(ds[i][0]) is type(x)
    assert type(next(iter(DataLoader(ds, 2)))[0]) is type(x)

def test_a_packed_sequence_is_one_thing():
    seen = []
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 3), nn.Linear(3, 2)
        def forward(self, x):
            seen.append(type(x))
            return self.head(self.rnn(x)[1][0])
    batch = [(packed(), torch.tensor([0, 1]))]
    learn = Learner((batch, batch), Net(), cbs=Progress(False))
    learn.fit(1)
    assert set(seen) == {PackedSequence}
    mean = MeanMetric(lambda pred, yb: torch.tensor(1.))
    mean.update(None, packed())
    assert mean.states()['weight'] == 2   # sequences, not their 5 words
    assert [len(s) for s in join_batches([packed(), packed()])] == [2, 3, 2, 3]

# ---------------------------------------------------------------- what is changed later

def test_what_is_set_later_holds_from_the_next_pass():
    dl = DataLoader(Dataset(torch.arange(N)), 4, seed=1)
    dl.bs = 2
    assert len(dl) == 5 and [len(b.items) for b in dl] == [2]*5 and 'of 2' in repr(dl)
    dl.shuffle = True
    assert items(dl) != list(range(N))
    dl.bs, dl.drop_last = 3, True
    assert len(dl) == 3 == len(list(dl))
    dl.set_epoch(0)
    first = items(dl)
    dl.seed = 2
    dl.set_epoch(0)
    assert items(dl) != first
    dl.ds = Dataset(torch.arange(4))
    assert len(dl) == 1 and max(items(dl)) < 4

@pytest.mark.parametrize('change, error', [(dict(bs=0), ValueError), (dict(bs=2.5), TypeError),
                                           (dict(collate=3), TypeError)])
def test_what_makes_no_sense_is_refused_later_too(change, error):
    dl = DataLoader(Dataset(torch.arange(N)), 4)
    for k, v in change.items(): setattr(dl, k, v)
    with pytest.raises(error): list(dl)

def test_samplers_are_not_replaced_without_effect():
    dl = DataLoader(Dataset(torch.arange(N)), 4)
    for name in ('sampler', 'batch_sampler'):
        with pytest.raises(AttributeError): setattr(dl, name, [[1]])

@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('shuffle', [False, True])
def test_items_that_a_data_set_gains_are_seen(workers, shuffle):
    ds = Items(6)
    dl = DataLoader(ds, 4, shuffle=shuffle, num_workers=workers)
    assert sorted(items(dl)) == list(range(6)) and len(dl) == 2
    ds.n = 11
    assert sorted(items(dl)) == list(range(11)) and len(dl) == 3
    whole = RankLoader(dl, 0, 2)
    ds.n = 14
    assert len(whole) == 4 == len(list(whole))
    dl.close()

def test_waiting_workers_are_those_of_the_loader_as_it_is():
    dl = DataLoader(Items(6), 3, num_workers=1, seed=1)
    list(dl)
    dl.ds = [(torch.zeros(1), 7)]*3
    assert next(iter(dl))[1].tolist() == [7]*3
    dl.collate = lambda samples: ('mine', None)
    assert next(iter(dl))[0] == 'mine'
    dl.close()

def test_the_data_of_a_fit_may_grow_between_epochs():
    ds, n = Items(6), []
    class Grow(Callback):
        def after_epoch(self):
            n.append(self.iters)
            ds.n += 4
    class Loss(nn.Module):
        def forward(self, x): return x*self.w
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))
    Runner((DataLoader(ds, 2), None), Loss(), loss_func=lambda pred, yb: pred.mean()).fit(3, cbs=Grow())
    assert n == [3, 5, 7]

# ---------------------------------------------------------------- two data sets, words, streams

@pytest.mark.parametrize('form', [lambda v: v, lambda v: v.numpy(), lambda v: v.tolist()],
                         ids=['tensor', 'array', 'list'])
def test_make_data_takes_pairs_of_items_and_labels(form):
    x, y = torch.randn(20, 3), torch.randint(0, 3, (20,))
    data = make_data((form(x[:12]), form(y[:12])), (form(x[12:]), form(y[12:])), (form(x[:4]), None), bs=4)
    assert ([len(ds) for ds in (data.train_ds, data.valid_ds, data.test_ds)] == [12, 8, 4]
            and data.c is not None and data.test_ds.y is None)
    assert isinstance(data.train_ds, Dataset) and data.valid_ds.y.equal(y[12:])
    with pytest.raises(ValueError, match='length'): make_data((x[:12], y[12:]), None)

WORDS = {'list': list('abca'), 'array': np.array(list('abca')), 'Series': pd.Series(list('abca')),
         'categories': pd.Series(list('abca'), dtype='category'),
         'objects': np.array(list('abca'), dtype=object)}

@pytest.mark.parametrize('words', WORDS.values(), ids=list(WORDS))
def test_words_as_labels_are_refused_with_the_remedy(words):
    x = torch.zeros(4, 2)
    for make in (lambda: next(iter(make_data((x, words), None).train_dl)),
                 lambda: list(DataLoader(Dataset(x, words), 2)), lambda: collate(list(zip(x, words)))):
        with pytest.raises(TypeError, match='np.unique'): make()
    classes, y = np.unique(list(words), return_inverse=True)
    assert make_data((x, y), None).c == 3

def test_words_may_be_labels_of_a_collate_function_of_one_s_own():
    dl = DataLoader(Dataset(torch.zeros(4, 2), list('abca')), 4,
                    collate=lambda samples: (torch.stack([x for x, _ in samples]), [y for _, y in samples]))
    assert next(iter(dl))[1] == list('abca')

class Stream(tud.IterableDataset):
    def __iter__(self): return iter([(torch.zeros(3), 1)]*12)

class Known(Stream):
    def __len__(self): return 12

def test_a_stream_needs_a_length_to_train_on():
    with pytest.raises(TypeError, match='len'): DataLoader(Stream(), 4)
    for kind in (Runner, Learner):
        run = kind((tud.DataLoader(Stream(), 4), None), nn.Linear(3, 3))
        with pytest.raises(TypeError, match='__len__'): run.fit(1)
        run = kind((tud.DataLoader(Known(), 4), tud.DataLoader(Known(), 4)), nn.Linear(3, 3))
        run.fit(1)
        assert run.n_iter == 3
    with pytest.raises(TypeError, match='__len__'):
        Learner((tud.DataLoader(Known(), 4), tud.DataLoader(Stream(), 4)), nn.Linear(3, 3)).get_preds()

def test_a_batch_size_beside_a_batch_sampler_is_refused():
    dl = DataLoader(Dataset(torch.arange(N)), batch_sampler=[[0, 1], [2]])
    dl.bs = 2
    with pytest.raises(ValueError, match='batch_sampler'): list(dl)
