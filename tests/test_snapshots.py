"""After a trial all is as it was, to the bit: weights, buffers, optimizer, loaders and random states;
samplers at any depth are told the epoch."""
import contextlib, random

import numpy as np
import pytest
import torch
import torch.utils.data as tud
from torch import nn

from exp.callbacks import Callback, Runner
from exp.core import set_seed
from exp.dataloader import DataBunch, DataLoader, Dataset, make_data
from exp.schedules import LRFinder
from exp.snapshots import set_epoch
from test_dataloader_samplers import BS, Batches, Deep, Items, replicas
from test_schedules import Boom, OPTS, network, same, toy, weights

def state_of(o):
    "Optimizer state with tensors, comparable by ==."
    if isinstance(o, torch.Tensor): return o.dtype, tuple(o.shape), o.tolist()
    if isinstance(o, dict): return {k: state_of(v) for k, v in o.items()}
    return [state_of(v) for v in o] if isinstance(o, (list, tuple)) else o

def draws(): return random.random(), np.random.rand(), torch.rand(1).item()

class NoisyDataset(Dataset):
    "Items with noise from the global generators, as a careless data set draws it."
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + 0.1*torch.randn(6) + 0.01*random.random() + 0.01*float(np.random.rand()), y

def noisy(seed=1):
    data = toy()
    ds = NoisyDataset(data.train_ds.x, data.train_ds.y)
    return DataBunch(DataLoader(ds, 8, shuffle=True, seed=seed), data.valid_dl)

def training(opt, finder=None, before=2, after=2, make=noisy, error=None):
    """Weights, optimizer state and next random numbers of a training, with or without a finder's run in
    between."""
    set_seed(3)
    run = Runner(make(), network(), opt_func=OPTS[opt], lr=0.01)
    run.fit(before)
    if finder is not None:
        if error is None: run.fit(1, cbs=finder)
        else:
            with pytest.raises(error): run.fit(1, cbs=[finder, Boom(7, error)])
    run.fit(after)
    return weights(run.model), state_of(run.opt.state_dict()), draws(), run.n_iter, run.epoch

@pytest.mark.slow
@pytest.mark.parametrize('before', [0, 2])
@pytest.mark.parametrize('opt', list(OPTS))
def test_training_after_a_finder_is_training_without_it_to_the_bit(opt, before):
    a, b = training(opt, before=before), training(opt, LRFinder(25), before=before)
    assert same(a[0], b[0]) and a[1:] == b[1:]

@pytest.mark.slow
@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize('opt', ['momentum', 'adam'])
def test_so_it_is_if_the_finder_fails_in_between(opt, error):
    a, b = training(opt), training(opt, LRFinder(25), error=error)
    assert same(a[0], b[0]) and a[1:] == b[1:]

def test_a_finder_changes_what_it_must_not_unless_it_is_undone(monkeypatch):
    from exp import schedules
    def only_the_data(run):
        undo = contextlib.ExitStack()
        undo.callback(setattr, run, 'data', run.data)
        return undo
    monkeypatch.setattr(schedules, 'trial', only_the_data)
    a, b = training('adam'), training('adam', LRFinder(25))
    assert not same(a[0], b[0]) and a[1] != b[1] and a[2] != b[2]

def torch_bunch():
    ds = torch.utils.data.TensorDataset(*toy().train_ds[:])
    g = torch.Generator().manual_seed(5)
    return DataBunch(torch.utils.data.DataLoader(ds, 8, shuffle=True, generator=g),
                     torch.utils.data.DataLoader(ds, 16))

def test_pytorchs_loaders_with_a_generator_of_their_own_are_put_back_too():
    a, b = training('momentum', make=torch_bunch), training('momentum', LRFinder(25), make=torch_bunch)
    assert same(a[0], b[0]) and a[1:] == b[1:]

def test_a_loader_iterated_by_hand_goes_on_where_it_was():
    orders = []
    for finder in (False, True):
        data = toy()
        [list(data.train_dl) for _ in range(3)]
        if finder: Runner(data, network()).fit(1, cbs=LRFinder(25))
        orders.append([b.items for b in data.train_dl])
    assert [list(i) for i in orders[0]] == [list(i) for i in orders[1]]

class Remembers(nn.Module):
    "A buffer that is not saved, one that is replaced in each pass, and one that is None at first."
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 2)
        self.register_buffer('hidden', torch.zeros(2), persistent=False)
        self.register_buffer('replaced', torch.zeros(1))
        self.register_buffer('late', None)

    def forward(self, x):
        out = self.lin(x)
        self.hidden.add_(out.detach().mean(0))
        self.replaced, self.late = self.replaced + 1, torch.ones(3)
        return out

def test_buffers_that_state_dict_leaves_out_or_that_are_replaced_are_put_back():
    model = Remembers()
    model(torch.randn(4, 6))
    model.late = None
    hidden, replaced = model.hidden.clone(), model.replaced.clone()
    Runner(toy(), model).fit(1, cbs=LRFinder(25))
    assert torch.equal(model.hidden, hidden) and torch.equal(model.replaced, replaced) and model.late is None

def test_parameters_stay_the_same_objects():
    run = Runner(toy(), network())
    before = [*run.model.parameters(), *run.model.buffers()]
    run.fit(1, cbs=LRFinder(25))
    assert all(a is b for a, b in zip(before, [*run.model.parameters(), *run.model.buffers()]))
    assert run.opt.param_groups[0]['params'][0] is before[0]

class Counting(nn.Module):
    "A state that is no tensor."
    def __init__(self):
        super().__init__()
        self.seen = [0]
    def get_extra_state(self): return self.seen
    def set_extra_state(self, state): self.seen = state
    def forward(self, x):
        self.seen[0] += 1
        return x

def test_a_finder_puts_back_a_state_that_is_no_tensor():
    x, y = torch.randn(64, 3), torch.randint(2, (64,))
    model = nn.Sequential(nn.Linear(3, 2), Counting())
    Runner(make_data(Dataset(x, y), None, bs=8), model).fit(1, cbs=LRFinder(max_iter=20))
    assert model[1].seen == [0]

@pytest.mark.parametrize('wrap',
                         [lambda s: tud.DataLoader(Items(), BS, sampler=s),
                          lambda s: tud.DataLoader(Items(), batch_sampler=tud.BatchSampler(s, BS, False)),
                          lambda s: tud.DataLoader(Items(), batch_sampler=Batches(Deep(s))),
                          lambda s: DataLoader(Items(), BS, sampler=s),
                          lambda s: DataLoader(Items(), batch_sampler=Batches(Deep(s)))])
def test_every_sampler_is_told_the_epoch(wrap):
    sampler, epochs = replicas(), []
    dl = wrap(sampler)
    class Note(Callback):
        def before_batch(self): epochs.append(sampler.epoch)
    Runner((dl, None), nn.Linear(3, 3)).fit(3, cbs=Note())
    assert epochs == [e for e in range(3) for _ in range(6)]
    set_epoch(dl, 7)
    list(dl)
    assert sampler.epoch == 7
