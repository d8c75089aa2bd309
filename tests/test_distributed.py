"""In one process nothing changes, a launch that is not whole is refused, and the parts of all ranks joined
are the whole."""
import itertools, os, time

import pytest
import torch
import torch.distributed as dist
import torch.utils.data
from hypothesis import given, settings as hypothesis_settings, strategies as st
from torch import nn

from exp.dataloader import DataLoader, Dataset, make_data
from exp.distributed import (Distributed, RankLoader, barrier, distributed, gather_over_ranks, is_first, rank,
                             sum_over_ranks, world_size)
from exp.learner import Learner
from exp.metrics import accuracy
from test_distributed_launched import differ, free_port


# ---------------------------------------------------------------- one process

def small(seed=0, **kwargs):
    torch.manual_seed(seed)
    x = torch.randn(30, 4)
    return Learner(make_data(Dataset(x, (x.sum(1) > 0).long()), Dataset(x, (x.sum(1) > 0).long()), bs=8),
                   nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 2)),
                   metrics=accuracy, **kwargs)

def rows(learn): return [{k: v for k, v in row.items() if k != 'seconds'} for row in learn.history]

@pytest.mark.slow
def test_in_one_process_nothing_changes_bit_for_bit():
    plain, with_callback, asked = small(), small(cbs=[Distributed()]), small().to_distributed()
    for learn in (plain, with_callback, asked):
        torch.manual_seed(1)
        learn.fit_one_cycle(2, 0.01)
    for learn in (with_callback, asked):
        assert (differ(learn.model.state_dict(), plain.model.state_dict(), tolerance=0) == []
                and rows(learn) == rows(plain) and learn.recorder.losses == plain.recorder.losses)

def test_in_one_process_there_is_no_group(monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'): monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with distributed() as device:
        assert (isinstance(device, torch.device) and not dist.is_initialized()
                and (rank(), world_size(), is_first()) == (0, 1, True))
        barrier()
    assert dict(os.environ) == before
    t = torch.tensor([1., 2.])
    assert (torch.equal(sum_over_ranks(t), t) and torch.equal(gather_over_ranks(t), t)
            and sum_over_ranks(t) is not t)
    with pytest.raises(RuntimeError): gather_over_ranks(torch.tensor(1.))
    for exchange, what in itertools.product((sum_over_ranks, gather_over_ranks), (1., [1.], None)):
        with pytest.raises(AttributeError): exchange(what)

def test_a_launch_that_is_not_whole_is_refused(monkeypatch):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('EXP_DEVICE', 'cpu')
    for name in ('MASTER_ADDR', 'MASTER_PORT', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with pytest.raises(ValueError, match='MASTER_ADDR'):
        with distributed(): pass
    with pytest.raises(RuntimeError, match='distributed'): small().to_distributed().fit(1)
    assert dict(os.environ) == before and not dist.is_initialized()

@pytest.mark.network
def test_a_process_that_waits_for_others_in_vain_says_so_in_time(monkeypatch):
    for name, value in dict(RANK=0, WORLD_SIZE=2, LOCAL_RANK=0, LOCAL_WORLD_SIZE=2, MASTER_ADDR='127.0.0.1',
                            MASTER_PORT=free_port(), EXP_DEVICE='cpu').items():
        monkeypatch.setenv(name, str(value))
    if not dist.is_available(): pytest.skip('no torch.distributed')
    before, start = dict(os.environ), time.monotonic()
    with pytest.raises(RuntimeError, match='joined'):
        with distributed('gloo', timeout=2): pass
    assert time.monotonic() - start < 30 and dict(os.environ) == before and not dist.is_initialized()

def test_an_option_that_there_is_not_is_refused():
    with pytest.raises(TypeError): Distributed(no_such=True)
    with pytest.raises(TypeError): small().to_distributed(no_such=True)

# ---------------------------------------------------------------- RankLoader by itself

class Items(torch.utils.data.Dataset):
    "Items that cannot be sliced."
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i): return torch.tensor(i), i

def by_rank(make, ranks, epoch, skip):
    "For each batch of the epoch, what each rank gets: lists (items, x's, own, whole)."
    out = []
    for r in range(ranks):
        dl = RankLoader(make(), r, ranks)
        dl.set_epoch(epoch, skip)
        out.append([(list(map(int, b.items)), b[0].tolist(), dl.own, dl.whole) for b in dl])
        assert len(dl) == len(make())
    return list(zip(*out, strict=True))

@pytest.mark.slow
@hypothesis_settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 40), bs=st.integers(1, 12), ranks=st.integers(1, 6), epoch=st.integers(0, 3),
       shuffle=st.booleans(), drop_last=st.booleans(), sliceable=st.booleans(), skip=st.floats(0, 1))
def test_the_parts_of_all_ranks_joined_are_the_whole_plan(n, bs, ranks, epoch, shuffle, drop_last, sliceable,
                                                          skip):
    if drop_last and n < bs: bs = n
    skip = int(skip*n)//bs*bs   # whole batches: where a checkpoint is written
    ds = Dataset(torch.arange(n), torch.arange(n)) if sliceable else Items(n)
    make = lambda: DataLoader(ds, bs, shuffle=shuffle, drop_last=drop_last, seed=3)
    plain = make()
    plain.set_epoch(epoch, skip)
    whole = [list(map(int, b.items)) for b in plain]
    batches = by_rank(make, ranks, epoch, skip)
    assert len(batches) == len(whole)
    for expected, parts in zip(whole, batches):
        assert [i for items, _, own, _ in parts if own for i in items] == expected   # contiguous, in order
        assert {size for *_, size in parts} == {len(expected)}
        sizes = [own for _, _, own, _ in parts]
        assert sum(sizes) == len(expected) and max(sizes) - min(sizes) <= 1
        for items, x, own, _ in parts:
            assert items == x and (len(items) == own or own == 0 and items == expected[:1])

@pytest.mark.parametrize('ranks', [2, 3])
def test_with_workers_the_parts_are_the_same_and_the_workers_stay(ranks):
    plain = by_rank(lambda: DataLoader(Items(23), 5, shuffle=True, seed=3), ranks, 1, 10)
    assert (by_rank(lambda: DataLoader(Items(23), 5, shuffle=True, seed=3, num_workers=2), ranks, 1,
                    10) == plain)
    dl = DataLoader(Items(23), 5, num_workers=1, seed=3)
    a, b = (RankLoader(dl, r, 2) for r in (0, 1))
    try:
        first = [b.items for b in a]
        engine = dl.workers.idle
        assert (engine is not None and [list(x.items) for x in a] == [list(x) for x in first]
                and dl.workers.idle is engine)
        assert ([list(x.items) for x in b] == [list(r[len(r)//2:]) for r in (range(0, 5), range(5, 10), range(
            10, 15), range(15, 20), range(20, 23))] and dl.workers.idle is engine)
    finally: dl.close()

def test_a_user_s_batch_sampler_is_cut_too():
    make = lambda: DataLoader(Items(9), batch_sampler=[[3, 1, 4], [0], [8, 7, 6, 5, 2]])
    assert ([[items for items, _, own, _ in parts if own]
             for parts in by_rank(make, 2, 0, 0)] == [[[3], [1, 4]], [[0]], [[8, 7], [6, 5, 2]]])

def test_leaving_a_pass_early_and_beginning_another():
    dl = RankLoader(DataLoader(Items(12), 4, shuffle=True, seed=1), 1, 2)
    dl.set_epoch(2)
    whole = [list(b.items) for b in dl]
    dl.set_epoch(2)
    for b in dl: break
    assert list(b.items) == whole[0]
    dl.set_epoch(2, 4)
    assert [list(b.items) for b in dl] == whole[1:] and dl.epoch == 2

@pytest.mark.parametrize('wrong', [dict(rank=2, ranks=2), dict(rank=-1, ranks=2), dict(rank=0, ranks=0)])
def test_a_rank_that_there_is_not_is_refused(wrong):
    with pytest.raises(ValueError): RankLoader(DataLoader(Items(4), 2), **wrong)

@pytest.mark.parametrize('loader', [torch.utils.data.DataLoader(Items(4), 2), [1, 2], None])
def test_another_loader_is_refused_with_what_to_do(loader):
    with pytest.raises(TypeError, match='exp'): RankLoader(loader, 0, 2)
