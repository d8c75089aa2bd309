"""Numbers of NumPy's, pandas' and PyTorch's types are taken wherever a number is asked for, and what a
training saves is plain."""
import functools

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from exp.callbacks import Callback, Runner
from exp.checkpoints import Checkpoint
from exp.core import ListContainer, check_bool, check_int, check_real, load_state, set_seed
from exp.dataloader import BatchSampler, DataBunch, DataLoader, Dataset, Sampler, make_data
from exp.hooks import ActivationStats
from exp.learner import Learner
from exp.losses import BinaryCrossEntropy, HuberLoss
from exp.metrics import Metric, accuracy
from exp.mixup import LabelSmoothing, MixUp
from exp.optimizers import adam_opt, sgd_opt
from exp.precision import GradAccumulation
from exp.progress import CSVLog, Progress
from exp.schedules import (EarlyStopping, LRFinder, ParamScheduler, ReduceLROnPlateau, SaveBest, cos_1cycle,
                           get_hyper, set_hyper)
from exp.specs import from_spec, to_spec
from exp.transforms import ResizeFixed

x, y = torch.randn(64, 4, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 3
def data(**more): return make_data(Dataset(x, y), Dataset(x[:20], y[:20]), bs=8, **more)
def learner(*cbs, **more):
    return Learner(more.pop('data', None) or data(), nn.Linear(4, 3), cbs=[Progress(False), *cbs], **more)

WHOLE = {'int64': np.int64, 'int32': np.int32, 'uint8': np.uint8, '0-dim': np.array, 'tensor': torch.tensor,
         'pandas': lambda v: pd.Series([v]).iloc[0]}
REAL = {'float64': np.float64, 'float32': np.float32, '0-dim': np.array, 'tensor': torch.tensor,
        'pandas': lambda v: pd.Series([v]).iloc[0]}

def only_plain(o):
    "Are all numbers and strings in `o` of Python's own types?"
    if isinstance(o, dict): return all(only_plain(k) and only_plain(v) for k, v in o.items())
    if isinstance(o, (list, tuple)): return all(map(only_plain, o))
    return (o is None or isinstance(o, torch.Tensor)
            or type(o) in (bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size))

def fits(learn, tmp, *args, **kwargs):
    "A fit that writes and reads all of its files."
    learn.path = tmp
    learn.fit(*args, **kwargs)
    learn.save('weights')
    assert only_plain(load_state(tmp/'weights.pth')) and only_plain([dict(row) for row in learn.history])
    learn.load('weights')
    learn.export()
    assert only_plain([{k: v for k, v in group.items() if k != 'params'} for group in learn.opt.param_groups])

INTS = {
    'epochs': lambda n, tmp: fits(learner(), tmp, n(1)),
    'one cycle': lambda n, tmp: learner().fit_one_cycle(n(1)),
    'bs': lambda n, tmp: fits(learner(data=make_data(Dataset(x, y), Dataset(x, y), bs=n(8))), tmp, 1),
    'loader bs': lambda n, tmp: list(DataLoader(Dataset(x, y), n(8), shuffle=True)),
    'seed': lambda n, tmp: fits(learner(data=data(seed=n(3))), tmp, 1),
    'workers': lambda n, tmp: list(DataLoader(Dataset(list(range(8))), 4, num_workers=n(0))),
    'set_epoch': lambda n, tmp: data().train_dl.set_epoch(n(3), n(8)),
    'sampler': lambda n, tmp: list(BatchSampler(Sampler(n(8), shuffle=True, seed=n(1)), n(3))),
    'set_seed': lambda n, tmp: set_seed(n(3)),
    'every': lambda n, tmp: fits(learner(Checkpoint(tmp/'c.pth', every=n(2))), tmp, 1),
    'activations': lambda n, tmp: fits(learner(ActivationStats(every=n(2))), tmp, 1),
    'max_iter': lambda n, tmp: LRFinder(n(12)),
    'patience': lambda n, tmp: fits(learner(EarlyStopping(patience=n(2)), Checkpoint(tmp/'c.pth')), tmp, 1),
    'n_items': lambda n, tmp: fits(learner(GradAccumulation(n(16)), Checkpoint(tmp/'c.pth', every=3)), tmp,
                                   1),
    'size': lambda n, tmp: from_spec(to_spec(ResizeFixed(n(12)))),
    'size pair': lambda n, tmp: ResizeFixed((n(12), n(8))),
    'top losses': lambda n, tmp: learner().top_losses(n(3)),
}
@pytest.mark.slow
@pytest.mark.parametrize('kind', WHOLE)
@pytest.mark.parametrize('place', INTS)
def test_whole_numbers_of_any_type_are_taken(place, kind, tmp_path): INTS[place](WHOLE[kind], tmp_path)

REALS = {
    'lr of fit': lambda f, tmp: fits(learner(), tmp, 1, lr=f(1e-3)),
    'lr of learner': lambda f, tmp: fits(learner(lr=f(1e-3)), tmp, 1),
    'lr of runner': lambda f, tmp: Runner((data().train_dl, None), nn.Linear(4, 3), lr=f(0.01)).fit(1),
    'one cycle': lambda f, tmp: fits_one_cycle(tmp, lr=f(1e-2), moms=(f(0.95), f(0.85), f(0.95)), div=f(10.),
                                               pct_start=f(0.25)),
    'slice': lambda f, tmp: fits(learner(splitter=lambda m: [m.weight, m.bias]), tmp, 1,
                                 lr=slice(f(1e-4), f(1e-3))),
    'list': lambda f, tmp: fits(learner(splitter=lambda m: [m.weight, m.bias]), tmp, 1,
                                lr=[f(1e-4), f(1e-3)]),
    'schedule': lambda f, tmp: fits(learner(ParamScheduler(
        'lr', cos_1cycle(f(1e-4), f(1e-2), f(1e-5), f(0.3))), Checkpoint(tmp/'c.pth', every=3)), tmp, 1),
    'schedule of ours': lambda f, tmp: fits(learner(ParamScheduler('wd', lambda pos: f(0.1)),
                                                    Checkpoint(tmp/'c.pth', every=3)), tmp, 1),
    'finder': lambda f, tmp: LRFinder(12, f(1e-5), f(1.)),
    'min_delta': lambda f, tmp: fits(learner(SaveBest(tmp/'b.pth', min_delta=f(0.01)),
                                             Checkpoint(tmp/'c.pth')), tmp, 1),
    'factor': lambda f, tmp: fits(learner(ReduceLROnPlateau(
        factor=f(0.5), min_lr=f(1e-4), patience=1, min_delta=f(9.)), Checkpoint(tmp/'c.pth')), tmp, 3),
    'eps': lambda f, tmp: fits(learner(loss_func=LabelSmoothing(f(0.1))), tmp, 1),
    'alpha': lambda f, tmp: fits(learner(MixUp(f(0.4)), Checkpoint(tmp/'c.pth')), tmp, 1),
    'delta': lambda f, tmp: from_spec(to_spec(HuberLoss(f(0.5)))),
    'thresh': lambda f, tmp: from_spec(to_spec(BinaryCrossEntropy(thresh=f(0.5)))),
}
def fits_one_cycle(tmp, **more):
    learn = learner(Checkpoint(tmp/'c.pth', every=3))
    learn.fit_one_cycle(1, **more)
    assert only_plain(load_state(tmp/'c.pth'))
@pytest.mark.slow
@pytest.mark.parametrize('kind', REAL)
@pytest.mark.parametrize('place', REALS)
def test_numbers_of_any_type_are_taken(place, kind, tmp_path):
    if (place, kind) in {('lr of learner', 'tensor'), ('lr of fit', 'tensor'), ('lr of runner', 'tensor')}:
        return   # a tensor rate stays one, for optimizers that want it
    REALS[place](REAL[kind], tmp_path)

@pytest.mark.parametrize('rates', [np.geomspace(1e-4, 1e-3, 2), list(np.geomspace(1e-4, 1e-3, 2)),
                                   pd.Series([1e-4, 1e-3]), torch.tensor([1e-4, 1e-3])],
                         ids=['array', 'list', 'Series', 'tensor'])
def test_a_rate_for_each_group_may_be_an_array(rates, tmp_path):
    learn = learner(splitter=lambda m: [m.weight, m.bias])
    fits(learn, tmp_path, 1, lr=rates)
    assert (get_hyper(learn.opt, 'lr') == pytest.approx([1e-4, 1e-3])
            and {type(v) for v in get_hyper(learn.opt, 'lr')} == {float})

@pytest.mark.parametrize('flag', [np.bool_(True), np.array(True), torch.tensor(True)])
def test_flags_of_any_type_are_taken(flag, tmp_path):
    assert check_bool(flag=flag) is True
    learner(CSVLog(tmp_path/'a.csv', append=flag),
            data=DataBunch(DataLoader(Dataset(x, y), 8, shuffle=flag),
                           DataLoader(Dataset(x, y), 8, drop_last=flag))).fit(1)
    Progress(show=flag, plot=flag)
    for bad in (1, 'yes', None, np.int64(1)):
        with pytest.raises(TypeError, match='flag'): check_bool(flag=bad)

@pytest.mark.parametrize('value', [True, np.bool_(True), np.array(True), torch.tensor(True), 1.5,
                                   np.float64(2.), '3', None, [1], torch.tensor([1, 2])])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(TypeError, match=r'\bn\b'): check_int(n=value)
@pytest.mark.parametrize('value', [True, np.bool_(True), torch.tensor(True), '3', np.str_('3'), None, [1.],
                                   np.zeros(2)])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match=r'\bn\b'): check_real(n=value)
@pytest.mark.parametrize('value',
                         [float('nan'), float('inf'), np.float32('nan'), 10**400, -1., torch.tensor(-1.)])
def test_numbers_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match=r'\bn\b'): check_real(n=value, least=0)

class Odd(Callback):
    "A callback whose state is NumPy's."
    state = {'f': np.float64(0.5), 'i': np.int32(7), 'b': np.bool_(True), 's': np.str_('a'),
             np.str_('k'): {np.int64(3): np.float32(0.25)}, 'v': np.arange(3.),
             'm': np.ones((2, 2), dtype=np.uint8),
             'words': np.array(['a', 'b']), 'mixed': np.array(['a', 1], dtype=object),
             'list': list(np.geomspace(1., 4., 3)), 't': (np.int64(1), None)}
    def state_dict(self): return self.state
    def load_state_dict(self, state): self.back = state

def test_a_callbacks_state_of_numpy_values_is_saved_and_comes_back_plain(tmp_path):
    learner(Odd(), Checkpoint(path := tmp_path/'c.pth', every=3)).fit(1)
    back = load_state(path)['callbacks']['odd']
    assert only_plain(load_state(path))
    assert ((back['f'], back['i'], back['b'], back['s'], back['k'], back['words'], back['mixed'],
             back['t']) == (0.5, 7, True, 'a', {3: 0.25}, ['a', 'b'], ['a', 1], (1, None)))
    assert (torch.equal(back['v'], torch.arange(3.).double()) and back['m'].dtype == torch.uint8
            and back['list'] == pytest.approx([1., 2., 4.]))

class Share(Metric):
    "A metric that computes with NumPy."
    def __init__(self, kind):
        super().__init__()
        self.kind, self.name_ = kind, 'share'
    def update(self, pred, yb): pass
    def compute(self): return self.kind(0.5)

@pytest.mark.parametrize('kind', [np.float64, np.float32, np.array,
                                  lambda v: np.array([v]), lambda v: torch.tensor([v])],
                         ids=['float64', 'float32', '0-dim', 'one', 'tensor'])
@pytest.mark.parametrize('make', [lambda kind: Share(kind), lambda kind: functools.update_wrapper(
    lambda pred, yb: kind(0.5), accuracy)], ids=['object', 'function'])
def test_a_metrics_value_of_any_type_is_a_float_in_every_record(make, kind, tmp_path):
    metric = make(kind)
    learn = learner(CSVLog(tmp_path/'log.csv'), Checkpoint(tmp_path/'c.pth'), metrics=metric)
    fits(learn, tmp_path, 1)
    name = learn.avg_stats.columns[1]
    assert learn.history[0][f'valid_{name}'] == 0.5 and type(learn.history[0][f'valid_{name}']) is float
    assert ('0.5' in (tmp_path/'log.csv').read_text() and 'np.' not in (tmp_path/'log.csv').read_text()
            and only_plain(learn.validate()))

@pytest.mark.parametrize('classes', [pd.Series(list('bca')).unique(), np.array(list('abc')),
                                     pd.Categorical(list('abc')).categories, np.array([3, 5, 7])])
def test_classes_may_be_an_array(classes, tmp_path):
    bunch = DataBunch(DataLoader(Dataset(x, y), 8), DataLoader(Dataset(x, y), 8), classes=classes)
    learn = learner(data=bunch, path=tmp_path)
    path = learn.export()
    assert only_plain(load_state(path)) and load_state(path)['classes'] == list(classes)
    assert (learn.predict(x[0]).label in list(classes)
            and list(learn.confusion_matrix().index) == list(classes))

def test_specs_and_lists_take_numpys_values():
    assert (to_spec([np.float64(0.5), np.int64(2), np.str_('a'), np.array([1, 2])]) == [0.5, 2, 'a', [1, 2]]
            and only_plain(to_spec([np.float64(0.5), np.str_('a')])))
    items = ListContainer(list('abcd'))
    assert items[np.int64(1)] == 'b' and items[[np.int64(1), 2]] == items[pd.Series([1, 2])] == ['b', 'c']
    for mask in ([np.True_, np.False_, np.False_, np.True_], pd.Series([True, False, False, True])):
        assert items[mask] == ['a', 'd']

@pytest.mark.parametrize('opt_func', [adam_opt, sgd_opt, torch.optim.AdamW])
def test_hyper_parameters_are_floats_whatever_sets_them(opt_func):
    run = Runner((data().train_dl, None), nn.Linear(4, 3), opt_func=opt_func, lr=np.float32(0.01))
    run.fit(1)
    for values in (np.float64(0.1), np.array([0.1]), torch.tensor([0.1])):
        set_hyper(run.opt, 'wd', values)
        assert float(get_hyper(run.opt, 'wd')[0]) == pytest.approx(0.1)
    assert type(run.opt.param_groups[0]['lr']) is float

@pytest.mark.parametrize('classes', [np.array(list('abc')), pd.Series(list('abc')),
                                     pd.Categorical(list('abc')), tuple(np.array(list('abc'))), np.arange(3),
                                     torch.arange(3)], ids=lambda c: type(c).__name__)
def test_classes_and_their_number_are_of_pythons_types(classes):
    data = DataBunch(DataLoader(Dataset(x, y), 8), classes=classes, c=np.int64(3))
    assert type(data.c) is int and {type(c) for c in data.classes} <= {str, int} and len(data.classes) == 3
