"""Batches from other processes: the same for any number of workers, which stay, end and fail as they
should."""
import copy, gc, itertools, os, pickle, subprocess, sys, time

import pytest
import torch
import torch.utils.data as tud

from exp.core import test_eq as same, to_device
from exp.dataloader import DataLoader, Dataset
from exp.workers import Batch
from test_dataloader import Dying, Failing, Listed, Noise, Slow, Threads, Unequal, join_badly, passes

def test_a_batch_is_a_pair_that_keeps_its_items():
    b = Batch((torch.ones(2), {'y': (torch.zeros(2), None)}), [3, 1])
    for other in (pickle.loads(pickle.dumps(b)), copy.copy(b), copy.deepcopy(b), to_device(b, 'cpu')):
        assert type(other) is Batch and other.items == [3, 1]
        same(tuple(other), tuple(b))
    if torch.cuda.is_available(): assert b.pin_memory()[0].is_pinned() and b.pin_memory().items == [3, 1]

@pytest.mark.slow
def test_the_number_of_workers_changes_nothing():
    runs = []
    for workers in (0, 1, 2, 4):
        torch.manual_seed(7)
        dl = DataLoader(Noise(23), 4, shuffle=True, num_workers=workers, seed=3)
        runs.append((passes(dl, 3), torch.rand(1)))
        dl.close()
    for run in runs[1:]: same(run, runs[0])
    assert len({repr(epoch) for epoch in runs[0][0]}) == 3

# ---------------------------------------------------------------- workers and faults

def test_workers_run_one_thread_and_stay_for_the_next_epoch():
    dl = DataLoader(Threads(8), 2, num_workers=2)
    first, second = passes(dl, 2)
    pids = {p for *_, y in first for p in y.tolist()}
    assert pids == {p for *_, y in second for p in y.tolist()} and len(pids) == 2 and os.getpid() not in pids
    assert {t for _, x, _ in first for t in x.tolist()} == {1}
    dl.close()
    assert pids.isdisjoint({p for *_, y in passes(dl)[0] for p in y.tolist()})

def test_data_in_memory_is_sliced_without_workers():
    dl = DataLoader(Dataset(torch.arange(10)), 2, num_workers=2)
    passes(dl)
    assert dl.workers.idle is None

@pytest.mark.slow
def test_a_loop_left_early_hands_its_workers_back():
    dl = DataLoader(Slow(40), 4, shuffle=True, num_workers=2, seed=1)
    want = passes(DataLoader(Listed(40), 4, shuffle=True, seed=1), 3)
    for batch in dl: break
    engine = dl.workers.idle
    assert engine is not None
    for batch in itertools.islice(dl, 3): pass
    same(passes(dl)[0], want[2])
    assert dl.workers.idle is engine

def test_two_passes_at_once_both_get_their_own_data():
    dl, want = DataLoader(Noise(12), 2, shuffle=True, num_workers=1,
                          seed=1), passes(DataLoader(Noise(12), 2, shuffle=True, seed=1), 2)
    pairs = list(zip(iter(dl), iter(dl)))
    for k in (0, 1): same([(list(p[k].items), *p[k]) for p in pairs], want[k])

@pytest.mark.slow
def test_deleting_a_loader_ends_its_workers():
    dl = DataLoader(Threads(4), 1, num_workers=2)
    pids = {p for *_, y in passes(dl)[0] for p in y.tolist()}
    processes = list(dl.workers.idle._iterator._workers)
    del dl
    gc.collect()
    end = time.time() + 10
    while any(p.is_alive() for p in processes) and time.time() < end: time.sleep(0.02)
    assert pids and not any(p.is_alive() for p in processes)

@pytest.mark.slow
def test_deleting_a_loader_in_the_middle_of_a_pass_does_not_hang():
    dl = DataLoader(Slow(40), 2, num_workers=2)
    it = iter(dl)
    next(it)
    start = time.time()
    del dl, it
    gc.collect()
    assert time.time() - start < 10

@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('error', [ValueError, KeyError, OSError])
def test_an_error_names_the_item_and_keeps_its_type(workers, error):
    dl = DataLoader(Failing(9, 6, error), 2, num_workers=workers)
    with pytest.raises(error) as e: list(dl)
    assert 'item 6 of the data set, in epoch 0' in str(e.value) + ''.join(getattr(e.value, '__notes__', []))
    assert 'no such picture' in str(e.value)
    assert len(list(itertools.islice(dl, 3))) == 3, 'the loader can be used again'

@pytest.mark.parametrize('workers', [0, 1])
def test_items_that_are_no_pairs_or_cannot_be_stacked_are_named(workers):
    with pytest.raises(ValueError, match='shape'):
        list(DataLoader(Unequal(4), 2, num_workers=workers))
    with pytest.raises(TypeError, match='pair') as e:
        list(DataLoader([1, 2, 3], 2, num_workers=workers))
    assert 'item 0 of the data set' in str(e.value) + ''.join(getattr(e.value, '__notes__', []))
    with pytest.raises(ValueError, match='unpack'):
        list(DataLoader(Listed(4), 3, collate=join_badly, num_workers=workers))
    with pytest.raises(RuntimeError) as e:
        list(DataLoader(Unequal(4), 2, collate=join_badly, num_workers=workers))
    assert 'collate function on the items [0, 1]' in str(e.value) + ''.join(getattr(e.value, '__notes__', []))

def test_a_worker_that_dies_is_an_error_and_the_loader_goes_on_with_new_ones():
    dl = DataLoader(Dying(8), 2, num_workers=1)
    with pytest.raises(RuntimeError, match='exited'): list(dl)
    same(passes(dl)[0], passes(DataLoader(Listed(8), 2))[0])

def test_a_loader_can_be_copied_and_pickled_with_workers_running():
    dl = DataLoader(Noise(8), 2, shuffle=True, num_workers=1, seed=1)
    first = passes(dl)
    for other in (copy.copy(dl), pickle.loads(pickle.dumps(dl))):
        assert other.workers.idle is None
        other.set_epoch(0)
        same(passes(other), first)

# ---------------------------------------------------------------- processes that start afresh

@pytest.mark.slow
def test_a_loader_in_a_reference_cycle_ends_its_workers_at_once(monkeypatch):
    # for so long PyTorch waits for one that is not told to end
    monkeypatch.setattr(tud._utils, 'MP_STATUS_CHECK_INTERVAL', 60)
    dl = DataLoader(Threads(4), 1, num_workers=2)
    passes(dl)
    dl.itself, processes = dl, list(dl.workers.idle._iterator._workers)
    start = time.time()
    del dl
    gc.collect()
    assert not any(p.is_alive() for p in processes) and time.time() - start < 45

FRESH = '''
import sys, torch
from exp.core import test_eq
from exp.dataloader import Dataset, DataLoader, TransformedDataset, random_shift
if __name__ == '__main__':
    torch.multiprocessing.set_start_method(sys.argv[1])
    ds = TransformedDataset(Dataset(torch.rand(6, 1, 5, 5), torch.arange(6)), random_shift)
    here, there = (DataLoader(ds, 2, shuffle=True, num_workers=n) for n in (0, 1))
    for epoch in range(2): test_eq([(b.items, *b) for b in here], [(b.items, *b) for b in there])
'''

@pytest.mark.launch
@pytest.mark.parametrize('method', [m for m in ('spawn', 'forkserver')
                                    if m in torch.multiprocessing.get_all_start_methods()])
def test_workers_that_start_afresh_give_the_same(method, tmp_path):
    script = tmp_path/'fresh.py'
    script.write_text(FRESH)
    done = subprocess.run([sys.executable, str(script), method], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
