"""Asking for answers changes nothing: not the weights that come out of a fit, no random state, no loader, no
gradient; and threads get one answer each."""
import copy, random, threading
from concurrent.futures import ThreadPoolExecutor

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import BatchSampler, RandomSampler, TensorDataset, WeightedRandomSampler

from exp.callbacks import Callback
from exp.core import set_seed
from exp.data_block import ImageList
from exp.dataloader import DataBunch, DataLoader
from exp.layers import conv_layer
from exp.inference import load_learner
from exp.learner import Learner
from exp.metrics import accuracy
from exp.lsuv import lsuv_init
from exp.norms import BatchNorm
from exp.progress import Progress


# ---------------------------------------------------------------- samplers, each with randomness of its own

N = 30
def gen(seed=5): return torch.Generator().manual_seed(seed)

class OwnRandom:
    "Draws from a generator of another library, counts its passes, and shuffles a list in place."
    def __init__(self, n, source):
        self.n, self.source, self.passes, self.places = n, source, 0, list(range(n))
    def __len__(self): return self.n
    def __iter__(self):
        self.passes += 1
        if self.source is None: random.shuffle(self.places)
        elif self.source is np.random: np.random.shuffle(self.places)
        else: self.source.shuffle(self.places)
        return iter(self.places[self.passes % 2:] + self.places[:self.passes % 2])

class OwnBatches:
    "Batches of one parity, in an order of its generator."
    def __init__(self, n, generator): self.n, self.generator = n, generator
    def __len__(self): return -(-self.n//8)*2
    def __iter__(self):
        batches = [b for parity in (0, 1) for b in torch.arange(parity, self.n, 2).split(4)]
        return iter([batches[i].tolist() for i in torch.randperm(len(batches), generator=self.generator)])

SAMPLERS = {
    'shuffle': lambda ds: dict(bs=8, shuffle=True),
    'torch': lambda ds: dict(bs=8, sampler=RandomSampler(ds, generator=gen())),
    'torch global': lambda ds: dict(bs=8, sampler=RandomSampler(ds)),
    'weighted': lambda ds: dict(bs=8, sampler=WeightedRandomSampler([1.]*N, N, generator=gen())),
    'python': lambda ds: dict(bs=8, sampler=OwnRandom(N, None)),
    'python own': lambda ds: dict(bs=8, sampler=OwnRandom(N, random.Random(4))),
    'numpy': lambda ds: dict(bs=8, sampler=OwnRandom(N, np.random)),
    'numpy own': lambda ds: dict(bs=8, sampler=OwnRandom(N, np.random.default_rng(4))),
    'numpy old': lambda ds: dict(bs=8, sampler=OwnRandom(N, np.random.RandomState(4))),
    'batches': lambda ds: dict(batch_sampler=OwnBatches(N, gen())),
    'nested': lambda ds: dict(batch_sampler=BatchSampler(RandomSampler(ds, generator=gen()), 8, False)),
}

def ours(ds, **k): return DataLoader(ds, **k)
def theirs(ds, bs=None, **k):
    return torch.utils.data.DataLoader(ds, **({} if bs is None else {'batch_size': bs}), generator=gen(9),
                                       **k)
LOADERS = {'exp': ours, 'torch': theirs}

def points(n=N, seed=0):
    x = torch.randn(n, 5, generator=gen(seed))
    return x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long()

def learner(loader='exp', sampler='shuffle', valid='shuffle'):
    make = LOADERS[loader]
    dls = [make(ds, **SAMPLERS[s](ds))
           for ds, s in ((TensorDataset(*points()), sampler), (TensorDataset(*points(N, 1)), valid))]
    set_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3))
    return Learner(tuple(dls), model, metrics=accuracy, lr=0.05, cbs=Progress(False))

LOOKS = {
    'summary': lambda l: l.summary(), 'summary valid': lambda l: l.summary(train=False),
    'validate': lambda l: l.validate(), 'validate train': lambda l: l.validate('train'),
    'get_preds': lambda l: l.get_preds(), 'get_preds train': lambda l: l.get_preds('train'),
    'get_preds dl': lambda l: l.get_preds(l.data.train_dl),
    'top_losses': lambda l: l.top_losses(3, 'train'),
    'confusion_matrix': lambda l: l.confusion_matrix('train'),
    'plot_confusion_matrix': lambda l: l.plot_confusion_matrix(),
    'predict': lambda l: l.predict(points()[0][0]), 'repr': lambda l: (repr(l), repr(l.data)),
    'one_batch': lambda l: l.data.one_batch(),
    'one_batch valid': lambda l: l.data.one_batch(train=False), 'lr_find': lambda l: try_rates(l),
    'lsuv': lambda l: lsuv_init(copy.deepcopy(l.model).eval(), l.data.train_dl),
}

def try_rates(l):
    try: l.lr_find(max_iter=12, show=False)
    except ValueError: pass   # no rate to suggest; the trial has run

def random_states(): return repr(random.getstate()), repr(np.random.get_state()), torch.get_rng_state()

def after(loader, sampler, look):
    l = learner(loader, sampler)
    set_seed(3)
    if look is not None: LOOKS[look](l)
    l.fit(1)
    plt.close('all')
    return torch.cat([p.detach().flatten() for p in l.model.state_dict().values()])

@pytest.mark.slow
@pytest.mark.parametrize('sampler', SAMPLERS)
@pytest.mark.parametrize('loader', LOADERS)
def test_a_look_between_seed_and_fit_changes_no_weight(loader, sampler):
    want = after(loader, sampler, None)
    assert [look for look in LOOKS if not torch.equal(after(loader, sampler, look), want)] == []

@pytest.mark.slow
@pytest.mark.parametrize('look', LOOKS)
def test_a_look_leaves_random_states_modes_and_gradients(look):
    l = learner(valid='torch')
    l.fit(1)
    l.model.train()
    l.model[1].eval()
    l.model(points()[0]).sum().backward()
    state = lambda: [*random_states(), [m.training for m in l.model.modules()],
                     [p.grad.tolist() for p in l.model.parameters()], l.data.train_dl.epoch,
                     l.data.train_dl._next]
    before = state()
    if look in ('lr_find',): before[4] = None   # a training; it clears gradients
    LOOKS[look](l)
    plt.close('all')
    now = state() if look != 'lr_find' else before
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(before, now))

def test_a_data_set_that_draws_for_itself_goes_on_as_if_nobody_had_looked():
    class Noisy(torch.utils.data.Dataset):
        def __init__(self): (self.x, self.y), self.rng = points(), np.random.default_rng(1)
        def __len__(self): return N
        def __getitem__(self, i): return self.x[i] + self.rng.normal(), self.y[i]
    def drawn(look):
        l = learner()
        l.data = DataBunch(torch.utils.data.DataLoader(Noisy(), 8), l.data.valid_dl)
        if look:
            l.get_preds('train')
            l.summary()
        return l.data.train_ds.rng.random()
    assert drawn(True) == drawn(False)


# ---------------------------------------------------------------- images

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp('colours'), np.random.RandomState(0)
    for part, n in (('train', 6), ('valid', 3)):
        for name in ('dark', 'light'):
            (root/part/name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.randint(0, 100, (12, 14, 3), dtype=np.uint8)
                                + np.uint8(150*(name == 'light'))).save(root/part/name/f'{i}.png')
    return root

def careless(im): return im.rotate(random.choice([0, 90, 180]))   # draws where it should not
def noisy(xb): return xb.float() + torch.randn(xb.shape)
noisy.on = 'batch'

def pictures(folder, tfms=([careless, noisy], [])):
    return ImageList.from_folder(folder).split_by_folder().label_from_folder().transform(
        tfms, size=8).databunch(4)

def image_learner(data):
    set_seed(1)
    return Learner(data, nn.Sequential(conv_layer(3, 4, norm=BatchNorm), nn.Dropout(0.3), nn.Flatten(),
                                       nn.Linear(64, 2)), metrics=accuracy, cbs=Progress(False))

@pytest.mark.slow
@pytest.mark.parametrize('look',
                         [lambda l: l.data.show_batch(), lambda l: l.data.show_batch(train=False),
                          lambda l: l.data.one_batch(), lambda l: l.tta(n=2), lambda l: l.tta('train', n=1),
                          lambda l: l.predict(l.data.train_ds.x.items[0]),
                          lambda l: l.show_results(dl='train'), lambda l: l.plot_top_losses(3, 'train'),
                          lambda l: l.data.valid_ds[0], lambda l: load_learner(l.export())], ids=lambda f: '')
def test_looks_at_images_change_no_weight(folder, tmp_path, look):
    def fitted(look):
        l = image_learner(pictures(folder).normalize(([.5]*3, [.3]*3)))
        l.path = tmp_path
        set_seed(3)
        look(l)
        l.fit(1)
        plt.close('all')
        return torch.cat([p.flatten() for p in l.model.state_dict().values()])
    assert torch.equal(fitted(look), fitted(lambda l: None))

def test_the_statistics_of_normalize_draw_from_nobody(folder):
    set_seed(3)
    before = random_states()
    pictures(folder).normalize()
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
               for a, b in zip(before, random_states()))


# ---------------------------------------------------------------- threads

def at_once(f, n=40, threads=4):
    with ThreadPoolExecutor(threads) as pool: return list(pool.map(f, range(n)))

@pytest.mark.parametrize('loaded', [False, True], ids=['trained', 'loaded'])
def test_threads_that_predict_get_the_answers_that_one_gets(tmp_path, loaded):
    l = learner()
    l.path = tmp_path
    l.fit(1)
    if loaded: l = load_learner(l.export())
    l.model.train()
    x, state = points()[0], random_states()
    want = [l.predict(row).probs for row in x]
    got = at_once(lambda i: l.predict(x[i % N]).probs)
    assert all(torch.equal(p, want[i % N]) for i, p in enumerate(got)) and l.model.training and not l.fitting
    assert torch.equal(torch.get_rng_state(), state[2])

def test_threads_that_ask_for_whole_sets_get_the_same_too():
    l = learner()
    l.fit(1)
    asks = [lambda: l.get_preds()[0], lambda: l.get_preds('train')[0],
            lambda: torch.tensor(list(l.validate().values())), lambda: l.predict(points()[0][0]).probs]
    want = [ask() for ask in asks]
    assert all(torch.equal(got, want[i % 4]) for i, got in enumerate(at_once(lambda i: asks[i % 4]())))

def test_images_are_predicted_by_threads_too(folder):
    l = image_learner(pictures(folder))
    l.fit(1)
    files = l.data.valid_ds.x.items
    want = [l.predict(f).probs for f in files]
    assert all(torch.equal(p, want[i % len(files)])
               for i, p in enumerate(at_once(lambda i: l.predict(files[i % len(files)]).probs)))

def test_while_another_thread_trains_answers_are_refused_and_the_training_is_not_disturbed():
    class Wait(Callback):
        def after_backward(self):
            here.set()
            go_on.wait(20)
    def trained(ask):
        l = learner()
        set_seed(3)
        here.clear()
        go_on.clear()
        t = threading.Thread(target=lambda: l.fit(1, cbs=Wait()))
        t.start()
        here.wait(20)
        for f in ((lambda: l.predict(points()[0][0]), l.validate, l.get_preds, l.summary, l.top_losses,
                   l.confusion_matrix, l.show_results, l.tta) if ask else ()):
            with pytest.raises(RuntimeError, match='fit'): f()
        go_on.set()
        t.join()
        return torch.cat([p.flatten() for p in l.model.state_dict().values()])
    here, go_on = threading.Event(), threading.Event()
    assert torch.equal(trained(True), trained(False))

def test_a_fit_waits_for_the_answer_that_another_thread_is_given():
    l, errors = learner(), []
    class Slow(nn.Module):
        def forward(self, x):
            here.set()
            go_on.wait(20)
            modes.append(self.training)
            return x
    here, go_on, modes = threading.Event(), threading.Event(), []
    l.model.append(Slow())
    asking = threading.Thread(target=lambda: l.predict(points()[0][0]))
    asking.start()
    here.wait(20)
    def fit():
        try: l.fit(1)
        except Exception as e: errors.append(e)
    fitting = threading.Thread(target=fit)
    fitting.start()
    fitting.join(0.3)
    go_on.set()
    asking.join()
    fitting.join()
    assert errors == [] and modes[0] is False and len(l.history) == 1
