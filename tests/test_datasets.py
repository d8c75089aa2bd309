"""The readers refuse what is broken; tables become numbers by the statistics of the training rows."""
import gzip, io, json, math, struct

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st

from exp.datasets import (fashion_mnist, mnist, read_idx, read_mnist, standardize, table_columns, table_stats,
                          table_to_tensor)

# ---- the readers

IDX = {'u1': 8, 'i1': 9, '>i2': 0x0B, '>i4': 0x0C, '>f4': 0x0D, '>f8': 0x0E}

def idx(a):
    return struct.pack(f'>BBBB{a.ndim}I', 0, 0, IDX[a.dtype.str.lstrip('|')], a.ndim, *a.shape) + a.tobytes()

@hypothesis_settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(list(IDX)), shape=st.lists(st.integers(0, 4), max_size=4), packed=st.booleans(),
       seed=st.integers(0, 9))
def test_read_idx_reads_every_type_and_shape(tmp_path_factory, kind, shape, packed, seed):
    a = np.frombuffer(np.random.default_rng(seed).bytes(np.dtype(kind).itemsize*math.prod(shape)),
                      kind).reshape(shape)
    path = tmp_path_factory.mktemp('idx')/'a'
    path.write_bytes(gzip.compress(idx(a)) if packed else idx(a))
    t = read_idx(path)
    assert t.shape == a.shape and np.array_equal(t.numpy(), a, equal_nan=a.dtype.kind == 'f')

@pytest.mark.parametrize('cut', [0, 1, 3, 4, 9, 15, 16, 100, 799])
@pytest.mark.parametrize('packed', [False, True])
def test_read_idx_names_a_file_that_is_cut_short(tmp_path, cut, packed):
    raw = idx(np.random.default_rng(0).integers(0, 256, (1, 28, 28), dtype='u1'))
    raw = gzip.compress(raw)[:cut + 20] if packed else raw[:cut]
    (tmp_path/'short').write_bytes(raw)
    with pytest.raises(ValueError, match='short'): read_idx(tmp_path/'short')

@hypothesis_settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_packed_idx_file_never_passes(tmp_path_factory, place, bit):
    a = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype='u1')
    raw = bytearray(gzip.compress(idx(a), mtime=0))
    raw[place % len(raw)] ^= 1 << bit
    path = tmp_path_factory.mktemp('idx')/'a'
    path.write_bytes(raw)
    try: t = read_idx(path)
    except ValueError as e: assert str(path) in str(e)
    else: assert np.array_equal(t.numpy(), a)   # gzip's header holds bytes that mean nothing, as the date

def test_read_idx_refuses_what_is_not_idx_or_too_long_or_absurd(tmp_path):
    path = tmp_path/'file'
    for raw, message in [(b'\x89PNG\r\n\x1a\n', 'IDX'),
                         (b'\0\0\x07\x01\0\0\0\0', 'IDX'),
                         (idx(np.zeros(3, 'u1')) + b'!', 'long'),
                         (b'\0\0\x0e\x04' + b'\xff'*16, 'promises'), (b'', 'IDX')]:
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=message) as e: read_idx(path)
        assert str(path) in str(e.value)
    with pytest.raises(FileNotFoundError): read_idx(tmp_path/'absent')

def test_read_idx_answers_a_tensor_that_may_be_written_to(tmp_path):
    (tmp_path/'a').write_bytes(idx(np.zeros(3, 'u1')))
    t = read_idx(tmp_path/'a')
    t += 1
    assert t.tolist() == [1, 1, 1]

def test_read_mnist_cuts_the_files_of_any_folder_in_their_order(tmp_path):
    x, y = np.arange(60_000*4, dtype='>i4').reshape(-1, 2, 2), np.arange(60_000, dtype='>i4')
    for stem, n in (('train', 60_000), ('t10k', 10_000)):
        for kind, a in (('images-idx3', x), ('labels-idx1', y)):
            (tmp_path/f'{stem}-{kind}-ubyte.gz').write_bytes(idx(a[:n]))
    for split, rows in (('train', slice(50_000)), ('valid', slice(50_000, None)), ('test', slice(10_000))):
        images, labels = read_mnist(tmp_path, split)
        assert np.array_equal(images, x[rows]) and np.array_equal(labels, y[rows])

@pytest.mark.slow
@pytest.mark.parametrize('reader', [mnist, fashion_mnist])
def test_a_wrong_split_is_refused(reader):
    with pytest.raises(ValueError, match="'valid'"): reader('validation')

# ---- preparation

def test_standardize_keeps_doubles_and_takes_bytes_and_statistics_by_column():
    x = torch.rand(50, 3, dtype=torch.float64)
    z = standardize(x, x.mean(0), x.std(0))
    assert z.dtype == torch.float64
    assert (torch.allclose(z.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-12)
            and torch.allclose(z.std(0), torch.ones(3, dtype=torch.float64)))
    assert standardize(torch.tensor([0, 255], dtype=torch.uint8), 127.5, 127.5).tolist() == [-1., 1.]

@pytest.mark.parametrize('std', [0., -1., float('nan'), torch.tensor([1., 0.])])
def test_standardize_refuses_a_std_that_is_not_positive(std):
    with pytest.raises(ValueError, match='std'): standardize(torch.ones(3, 2), 0., std)

def test_standardize_leaves_its_argument_alone():
    x = torch.ones(3)
    standardize(x, 1., 2.)
    assert x.tolist() == [1., 1., 1.]

def houses():
    return pd.read_csv(io.StringIO(
        'NumRooms,Alley,Price\nNA,Pave,127500\n2,NA,106000\n4,NA,178100\nNA,NA,140000\n'))

def test_a_table_with_holes():
    df = houses()[['NumRooms', 'Alley']]
    stats = table_stats(df)
    assert json.loads(json.dumps(stats)) == stats == {'NumRooms': 3., 'Alley': ['Pave']}
    assert table_columns(stats) == ['NumRooms', 'Alley=Pave', 'Alley missing']
    x = table_to_tensor(df, stats)
    assert x.dtype == torch.float32 and x.tolist() == [[3, 1, 0], [2, 0, 1], [4, 0, 1], [3, 0, 1]]

@pytest.mark.parametrize('dtype', ['object', 'string', 'category'])
def test_names_of_any_pandas_type(dtype):
    df = pd.DataFrame({'c': pd.Series(['b', None, 'a', 'b']).astype(dtype),
                       'n': pd.array([1, None, 3, 2], dtype='Int64')})
    stats = table_stats(df)
    assert stats == {'c': ['a', 'b'], 'n': 2.}
    assert table_to_tensor(df, stats).tolist() == [[0, 1, 0, 1], [0, 0, 1, 2], [1, 0, 0, 3], [0, 1, 0, 2]]

def test_truth_values_are_names_and_other_rows_use_the_training_rows_statistics():
    stats = table_stats(pd.DataFrame({'garden': [True, False], 'rooms': [2., 4.]}))
    assert stats == {'garden': ['False', 'True'], 'rooms': 3.}
    assert (table_to_tensor(pd.DataFrame({'rooms': [np.nan], 'extra': [1], 'garden': [None]}),
                            stats).tolist() == [[0, 0, 1, 3]])

def test_tables_that_do_not_fit_are_refused():
    stats = table_stats(houses()[['NumRooms', 'Alley']])
    with pytest.raises(KeyError, match='NumRooms'): table_to_tensor(pd.DataFrame({'NumRoom': [1]}), stats)
    with pytest.raises(ValueError, match='Gravel'):
        table_to_tensor(pd.DataFrame({'NumRooms': [1], 'Alley': ['Gravel']}), stats)
    with pytest.raises(ValueError, match='many'):
        table_to_tensor(pd.DataFrame({'NumRooms': ['many'], 'Alley': ['Pave']}), stats)
    with pytest.raises(ValueError, match="'x'"):
        table_stats(pd.DataFrame({'x': [np.nan, np.nan]}))
