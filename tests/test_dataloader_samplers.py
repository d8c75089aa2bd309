"""The order of items depends on (seed, epoch) alone, whatever a sampler draws from and however deep it lies;
where it cannot, a pass warns and a resume within an epoch is refused."""
import random, warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.utils.data as tud
from torch import nn

from exp.callbacks import Callback
from exp.checkpoints import Checkpoint, CheckpointError
from exp.core import generator_state, set_generator, set_seed
from exp.dataloader import BatchSampler, DataLoader, Dataset, Rng, Sampler
from exp.learner import Learner
from exp.progress import Progress
from exp.workers import loader_generators

N, BS = 22, 4   # five batches of 4 and one of 2
X = torch.linspace(-1, 1, N*3).view(N, 3)


# ---------------------------------------------------------------- samplers

class Own:
    "Draws with `shuffle(list)`, which keeps what it needs where `shuffle` does."
    def __init__(self, shuffle): self.shuffle = shuffle
    def __len__(self): return N
    def __iter__(self):
        order = list(range(N))
        self.shuffle(order)
        return iter(order)

class Holding(Own):
    "Holds a generator of Python's or NumPy's."
    def __init__(self, rng): self.rng = rng
    def shuffle(self, order): self.rng.shuffle(order)

class Batches:
    "Batches of another sampler, in an order of their own."
    def __init__(self, inner, rng=None): self.inner, self.rng = inner, rng
    def __len__(self): return -(-N//BS)
    def __iter__(self):
        batches = list(tud.BatchSampler(self.inner, BS, False))
        if self.rng is not None: self.rng.shuffle(batches)
        return iter(batches)

class Refilled:
    "One list for all batches, filled again and again, as PyTorch's loader allows."
    def __init__(self, inner): self.inner, self.batch = inner, []
    def __len__(self): return -(-N//BS)
    def __iter__(self):
        for batch in tud.BatchSampler(self.inner, BS, False):
            self.batch[:] = batch
            yield self.batch

class Deep:
    "A sampler around samplers, in a list."
    def __init__(self, *parts): self.parts = parts
    def __len__(self): return N
    def __iter__(self): return iter(list(self.parts[0]))

class Ordered(Sampler):
    "Has `order`, and draws it from a generator of its own."
    def __init__(self):
        super().__init__(N)
        self.g = torch.Generator().manual_seed(3)
    def order(self, epoch, skip_items=0): return torch.randperm(N, generator=self.g)[skip_items:]

def seeded(): return torch.Generator().manual_seed(7)
def torchs(): return tud.RandomSampler(range(N), generator=seeded())
def replicas(): return tud.DistributedSampler(range(N), num_replicas=1, rank=0, shuffle=True)

SAMPLERS = {
    'torch, global': lambda: tud.RandomSampler(range(N)),
    'torch, generator': torchs,
    'torch, replacement': lambda: tud.RandomSampler(range(N), replacement=True, generator=seeded()),
    'weighted': lambda: tud.WeightedRandomSampler(torch.arange(1., N + 1), N, generator=seeded()),
    'weighted, global': lambda: tud.WeightedRandomSampler(torch.arange(1., N + 1), N),
    'subset': lambda: tud.SubsetRandomSampler(range(N), generator=seeded()),
    'subset, global': lambda: tud.SubsetRandomSampler(range(N)),
    'distributed': replicas,
    'python, global': lambda: Own(random.shuffle),
    'numpy, global': lambda: Own(np.random.shuffle),
    'python, held': lambda: Holding(random.Random(3)),
    'numpy, held': lambda: Holding(np.random.default_rng(3)),
    'numpy, held, old': lambda: Holding(np.random.RandomState(3)),
    'numpy, held, Philox': lambda: Holding(np.random.Generator(np.random.Philox(3))),
    'deep': lambda: Deep(torchs()),
    'order': Ordered,
    'ours': lambda: Sampler(N, shuffle=True, seed=9),
}
BATCH_SAMPLERS = {
    'torch': lambda: tud.BatchSampler(torchs(), BS, False),
    'torch, distributed inside': lambda: tud.BatchSampler(replicas(), BS, False),
    'own': lambda: Batches(torchs(), random.Random(5)),
    'own, distributed inside': lambda: Batches(Deep(replicas())),
    'refilled': lambda: Refilled(torchs()),
    'ours': lambda: BatchSampler(Holding(random.Random(3)), BS),
}
KINDS = {**{f'sampler: {k}': {'sampler': v} for k, v in SAMPLERS.items()},
         **{f'batch_sampler: {k}': {'batch_sampler': v} for k, v in BATCH_SAMPLERS.items()}}
kinds = pytest.mark.parametrize('kind', KINDS)

def arguments(kind):
    made = {k: v() for k, v in KINDS[kind].items()}
    return made if 'batch_sampler' in made else {'bs': BS, **made}

class Items:
    "A data set that is not sliced, so that workers load it."
    def __len__(self): return N
    def __getitem__(self, i): return X[i], int(i) % 3

def ours(kind, workers=0, ds=None):
    return DataLoader(Dataset(X, torch.arange(N) % 3) if ds is None else ds, num_workers=workers, seed=1,
                      **arguments(kind))
def theirs(kind):
    args = arguments(kind)
    if 'bs' in args: args['batch_size'] = args.pop('bs')
    return tud.DataLoader(tud.TensorDataset(X, torch.arange(N) % 3), **args)

def orders(dl, epochs=3): return [[i for batch in dl for i in batch.items] for _ in range(epochs)]

# ---------------------------------------------------------------- our loader

@kinds
def test_the_order_depends_on_seed_and_epoch_alone(kind, recwarn):
    dl = ours(kind)
    first, second, third = orders(dl)
    assert first != second != third != first
    random.random()
    np.random.rand()
    torch.rand(1)
    dl.set_epoch(1)
    assert orders(dl, 1) == [second]
    assert orders(ours(kind)) == [first, second, third]
    if 'weighted' not in kind and 'replacement' not in kind: assert sorted(first) == list(range(N))
    assert not recwarn.list

@kinds
def test_drawing_leaves_every_generator_where_it_was(kind):
    dl, everywhere = ours(kind), lambda: (random.getstate(), np.random.get_state()[1].tolist(),
                                          torch.get_rng_state().tolist())
    before, own = everywhere(), [generator_state(g) for g in loader_generators(dl)]
    orders(dl)
    assert everywhere() == before
    for g, state in zip(loader_generators(dl), own):
        now = generator_state(g)
        assert now.equal(state) if isinstance(now, torch.Tensor) else now == state

@pytest.mark.parametrize('make',
                         [lambda s: tud.RandomSampler(range(N), generator=torch.Generator().manual_seed(s)),
                          lambda s: Holding(random.Random(s)), lambda s: Holding(np.random.default_rng(s))],
                         ids=['torch', 'python', 'numpy'])
def test_the_seed_that_a_generator_was_given_counts(make):
    dl = lambda s: DataLoader(Dataset(X), BS, sampler=make(s), seed=1)
    assert orders(dl(1)) == orders(dl(1)) != orders(dl(2))

@pytest.mark.slow
@kinds
@pytest.mark.parametrize('workers', [0, 1])
def test_skipped_items_are_those_that_came_before(kind, workers):
    if workers and kind not in ('sampler: torch, generator', 'sampler: numpy, global', 'batch_sampler: own'):
        pytest.skip('a process for some')
    dl = ours(kind, workers, Items())
    dl.set_epoch(1)
    whole = [list(batch.items) for batch in dl]
    for seen in (4, 8, N):
        dl = ours(kind, workers, Items())
        dl.set_epoch(1, seen)
        assert [i for batch in dl for i in batch.items] == sum(whole, [])[seen:]
        dl.close()

# ---------------------------------------------------------------- a break and a resume

class Seen(Callback):
    "The training items, in order; a break after so many batches."
    def __init__(self, stop=None): self.stop, self.items_seen = stop, []
    def after_batch(self):
        if not self.in_train or self.over != 'batch': return
        self.items_seen.append([round(float(v), 4) for v in self.xb[:, 0]])
        if self.stop is not None and self.n_iter == self.stop: raise KeyboardInterrupt

def learner(dl):
    torch.manual_seed(0)
    return Learner((dl, None), nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 3)), lr=0.1,
                   cbs=Progress(False))

def broken_and_resumed(make, tmp_path, stop, between=lambda: None):
    "The items of an unbroken fit, of one that was broken and resumed, and the weights of both."
    set_seed(3)
    whole, seen = learner(make()), Seen()
    whole.fit(3, cbs=[seen, Checkpoint(tmp_path/'whole.pth', every=2)])
    set_seed(3)
    learn, before = learner(make()), Seen(stop)
    with pytest.raises(KeyboardInterrupt): learn.fit(3, cbs=[before, Checkpoint(tmp_path/'fit.pth', every=2)])
    set_seed(77)
    between()
    learn, after = learner(make()), Seen()
    learn.fit(3, cbs=[after, Checkpoint(tmp_path/'fit.pth', every=2)], resume=tmp_path/'fit.pth')
    return seen.items_seen, before.items_seen, after.items_seen, [list(m.model.state_dict().values())
                                                                  for m in (whole, learn)]

@pytest.mark.slow
@kinds
def test_over_a_break_every_item_comes_as_without_one(kind, tmp_path):
    # checkpoint after batch 8: in epoch 1, after 8 items
    whole, before, after, (a, b) = broken_and_resumed(lambda: ours(kind), tmp_path, stop=9)
    assert before[:8] + after == whole and len(whole) == 18
    assert all(map(torch.equal, a, b))

@pytest.mark.slow
@pytest.mark.parametrize('kind', ['sampler: python, held', 'batch_sampler: own', 'sampler: torch, generator'])
def test_over_a_break_with_a_worker_too(kind, tmp_path):
    whole, before, after, (a, b) = broken_and_resumed(lambda: ours(kind, 1, Items()), tmp_path, stop=9)
    assert before[:8] + after == whole and all(map(torch.equal, a, b))

@pytest.mark.slow
@kinds
def test_pytorchs_loader_goes_on_at_the_beginning_of_an_epoch(kind, tmp_path):
    # the last checkpoint is that of the first epoch
    whole, before, after, (a, b) = broken_and_resumed(lambda: theirs(kind), tmp_path, stop=9)
    assert before[:6] + after == whole and all(map(torch.equal, a, b))
    epochs = [sum(whole[i:i + 6], []) for i in (0, 6, 12)]
    assert epochs[0] != epochs[1] != epochs[2]

@pytest.mark.slow
@pytest.mark.parametrize('make', [lambda: tud.RandomSampler(range(N), generator=torch.Generator()),
                                  lambda: Holding(random.Random())], ids=['torch', 'python'])
def test_a_generator_without_a_seed_is_put_back(make, tmp_path):
    def loader():
        sampler = make()
        if hasattr(sampler, 'generator'): sampler.generator.seed()
        return DataLoader(Dataset(X, torch.arange(N) % 3), BS, sampler=sampler, seed=1)
    learn, before = learner(loader()), Seen(9)
    with pytest.raises(KeyboardInterrupt): learn.fit(3, cbs=[before, Checkpoint(tmp_path/'fit.pth', every=2)])
    learn, after = learner(loader()), Seen()
    learn.fit(3, cbs=[after, Checkpoint(tmp_path/'fit.pth', every=2)], resume=tmp_path/'fit.pth')
    assert (sorted(sum(before.items_seen[6:8] + after.items_seen[:4], []))
            == sorted(round(float(v), 4) for v in X[:, 0]))

# ---------------------------------------------------------------- where it cannot be

def hidden():
    rng = random.Random(3)
    return Own(lambda order: rng.shuffle(order))

class Counting:
    "Another order in each pass, by a count of its own."
    def __init__(self): self.passes = 0
    def __len__(self): return N
    def __iter__(self):
        self.passes += 1
        return iter(torch.randperm(N, generator=torch.Generator().manual_seed(self.passes)).tolist())

class InPlace:
    "Shuffles one list over and over."
    def __init__(self): self.order = list(range(N))
    def __len__(self): return N
    def __iter__(self):
        random.shuffle(self.order)
        return iter(self.order)

UNKNOWN = {'hidden': hidden, 'counting': Counting, 'in place': InPlace,
           'system': lambda: Own(random.SystemRandom().shuffle),
           'holds the system': lambda: Holding(random.SystemRandom())}

def of_unknown(name, how):
    args = ({'bs': BS, 'sampler': UNKNOWN[name]()} if how == 'sampler'
            else {'batch_sampler': Batches(UNKNOWN[name]())})
    return DataLoader(Dataset(X, torch.arange(N) % 3), seed=1, **args)

@pytest.mark.slow
@pytest.mark.parametrize('how', ['sampler', 'batch_sampler'])
@pytest.mark.parametrize('name', UNKNOWN)
def test_an_order_that_does_not_come_again_is_said_once_and_not_resumed(name, how, tmp_path):
    learn = learner(of_unknown(name, how))
    with warnings.catch_warnings(record=True) as caught, pytest.raises(KeyboardInterrupt):
        warnings.simplefilter('always')
        learn.fit(3, cbs=[Seen(9), Checkpoint(tmp_path/'fit.pth', every=2)])
    assert sum('comes twice' in str(w.message) for w in caught) == 1
    again = learner(of_unknown(name, how))
    weights = [p.clone() for p in again.model.parameters()]
    with pytest.raises(CheckpointError, match='order'):
        again.fit(3, cbs=Checkpoint(tmp_path/'fit.pth', every=2), resume=tmp_path/'fit.pth')
    assert all(map(torch.equal, weights, again.model.parameters()))

def test_to_draw_twice_does_not_count_as_a_pass():
    sampler = Counting()
    with pytest.warns(UserWarning): got = orders(DataLoader(Dataset(X), BS, sampler=sampler), 2)
    assert sampler.passes == 2 and got == [list(s) for s in (lambda c: [c, c])(Counting())]

@pytest.mark.parametrize('other', ['weighted', 'weights', 'seed of a sampler'])
def test_a_resume_with_another_sampler_is_refused(other, tmp_path):
    weights = torch.arange(1., N + 1)
    make = {'weighted': (SAMPLERS['subset'], SAMPLERS['weighted']),
            'weights': (SAMPLERS['weighted'],
                        lambda: tud.WeightedRandomSampler(weights.flip(0), N, generator=seeded())),
            'seed of a sampler': (lambda: Sampler(N, True, 1), lambda: Sampler(N, True, 2))}[other]
    first, second = (lambda s=s: DataLoader(Dataset(X, torch.arange(N) % 3), BS, sampler=s(),
                                            seed=1) for s in make)
    with pytest.raises(KeyboardInterrupt):
        learner(first()).fit(3, cbs=[Seen(9), Checkpoint(tmp_path/'fit.pth', every=2)])
    with pytest.raises(CheckpointError):
        learner(second()).fit(3, cbs=Checkpoint(tmp_path/'fit.pth', every=2), resume=tmp_path/'fit.pth')

def test_a_checkpoint_from_before_orders_were_kept_is_read(tmp_path):
    from exp.core import load_state, save_state
    make = lambda: DataLoader(Dataset(X, torch.arange(N) % 3), BS, shuffle=True, seed=1)
    path = tmp_path/'fit.pth'
    with pytest.raises(KeyboardInterrupt): learner(make()).fit(3, cbs=[Seen(9), Checkpoint(path, every=2)])
    state = load_state(path)
    del state['loader']['order']
    save_state(path, state)
    after = Seen()
    learner(make()).fit(3, cbs=[after, Checkpoint(path, every=2)], resume=path)
    assert len(after.items_seen) == 10

# ---------------------------------------------------------------- generators, wherever they are

@pytest.mark.parametrize('make', [seeded, lambda: random.Random(3), lambda: Rng(1, 2),
                                  lambda: np.random.default_rng(3), lambda: np.random.RandomState(3),
                                  *(partial(lambda bits: np.random.Generator(bits(3)), bits)
                                    for bits in (np.random.MT19937, np.random.Philox, np.random.SFC64,
                                                 np.random.PCG64DXSM))])
def test_the_state_of_a_generator_goes_to_a_file_and_back(make, tmp_path):
    from exp.core import load_state, save_state
    draw = (lambda g: torch.rand(3, generator=g).tolist() if isinstance(g, torch.Generator)
            else [g.random() for _ in range(3)])
    g = make()
    draw(g)
    save_state(tmp_path/'g.pth', {'g': generator_state(g)})
    wanted = draw(g)
    other = make()
    set_generator(other, load_state(tmp_path/'g.pth')['g'])
    assert draw(other) == wanted

def test_generators_are_found_at_any_depth_and_once():
    g, r, n = seeded(), random.Random(1), np.random.default_rng(1)
    nested = Deep(tud.RandomSampler(range(N), generator=g), Holding(r))
    assert (loader_generators(tud.DataLoader(Items(), batch_sampler=Batches(nested, n), generator=g))
            == [g, n, r])
    assert loader_generators(DataLoader(Items(), batch_sampler=Batches(nested))) == [g, r]
    assert loader_generators(DataLoader(Items(), 4, shuffle=True)) == []
    looped = Deep(Holding(r))
    looped.parts = (looped, Holding(r))
    assert loader_generators(looped) == [r]
