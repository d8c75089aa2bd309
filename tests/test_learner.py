"""The Learner of lesson 16: it trains as Runner does; rates, groups, freezing, files, answers; what it leaves
behind, and what its errors say."""
import math, os, random, subprocess, sys, time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from exp.callbacks import AvgStats, Callback, Recorder, Runner, TrainEvalCallback
from exp.core import load_state
from exp.specs import register
from exp.data_block import ImageList, LabelList
from exp.transforms import Transform
from exp.dataloader import DataLoader, Dataset, TransformedDataset, make_data
from exp.hooks import ActivationStats, DeviceCallback
from exp.checkpoints import Checkpoint
from exp.inference import load_learner
from exp.learner import Learner
from exp.metrics import accuracy, Rmse
from exp.losses import CrossEntropy, SquaredLoss
from exp.optimizers import adam_opt, lamb_opt, rmsprop_opt, sgd_opt
from exp.progress import CSVLog, Progress
from exp.schedules import EarlyStopping, get_hyper


# ---------------------------------------------------------------- what the tests are made of

def points(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=g)
    return x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long()

def bunch(n=40, bs=8, **kw):
    return make_data(Dataset(*points(n)), Dataset(*points(20, 1)), bs=bs, seed=3, **kw)

def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))

def learner(data=None, model=None, metrics=(accuracy,), cbs=(), **kw):
    return Learner(bunch() if data is None else data, network() if model is None else model, metrics=metrics,
                   cbs=[Progress(False), *cbs], **kw)

def halves(model): return [model[:3], model[3:]]

def copied(o):
    if isinstance(o, torch.Tensor): return o.detach().clone()
    if isinstance(o, dict): return {k: copied(v) for k, v in o.items()}
    return type(o)(map(copied, o)) if isinstance(o, (list, tuple)) else o

def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(equal, a, b))
    return a == b

def weights(o): return copied(getattr(o, 'model', o).state_dict())
def generators(): return [repr(random.getstate()), repr(np.random.get_state()), torch.get_rng_state()]
def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks)
               for m in model.modules())

class Log(Callback):
    "Calls f(self) at events and keeps the answers: Log(before_step=f)."
    order = 500
    def __init__(self, **funcs):
        self.seen = []
        for event, f in funcs.items(): setattr(self, event, partial(self.keep, f))
    def keep(self, f): self.seen.append(f(self))

class Boom(Exception): pass

class At(Callback):
    "Raises at the n-th call of an event."
    def __init__(self, event, n, error=Boom):
        self.left, self.error = n, error
        setattr(self, event, self.count)
    def count(self):
        self.left -= 1
        if not self.left: raise self.error
    def __repr__(self): return 'At()'


# ---------------------------------------------------------------- images on disk

COLORS = {'blue': (20, 30, 220), 'green': (30, 200, 30), 'red': (220, 30, 20)}

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "12 training, 6 validation and 4 test images of three colours, of several sizes."
    root, rng = tmp_path_factory.mktemp('colours'), np.random.RandomState(0)
    for part, n in (('train', 4), ('valid', 2)):
        for name, rgb in COLORS.items():
            (root/part/name).mkdir(parents=True)
            for i in range(n): picture(rgb, rng).save(root/part/name/f'{i}.png')
    (root/'test').mkdir()
    for i, rgb in enumerate([*COLORS.values(), COLORS['red']]): picture(rgb, rng).save(root/'test'/f'{i}.png')
    return root

def picture(rgb, rng):
    return Image.fromarray(np.clip(np.array(rgb) + rng.randint(
        -30, 30, (rng.randint(16, 30), rng.randint(16, 30), 3)), 0, 255).astype(np.uint8))

class Darken(Transform):
    order, random = 40, True
    def draw(self, x, rng): return rng.uniform(0.2, 1.)
    def image(self, x, draw): return (x*draw).to(torch.uint8)

def images(folder, tfms=None, test=True, **kw):
    split = ImageList.from_folder(folder, include=('train', 'valid')).split_by_folder().label_from_folder()
    if test: split.add_test_folder('test')
    return split.transform(tfms, size=12).databunch(4, **kw).normalize(([0.5]*3, [0.3]*3))

def color_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(8, 3))

@pytest.fixture(scope='module')
def trained(folder):
    "A learner that tells the colours apart; tests leave it as it is."
    learn = learner(images(folder), color_network(), lr=0.05)
    learn.fit(8)
    assert learn.history[-1]['valid_accuracy'] == 1.
    return learn

@register
class ColorNet(nn.Module):
    "A network whose class is registered."
    def __init__(self, width, classes=3):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, width, 3), nn.Linear(width, classes)
    def forward(self, x): return self.head(self.body(x).mean((2, 3)))

@register
def far_loss(pred, yb, reduction='mean', scale=1.):
    return scale*F.cross_entropy(pred, yb, reduction=reduction)
far_loss.activation, far_loss.decode = lambda pred: pred.softmax(1), lambda pred: pred.argmax(1)


# ---------------------------------------------------------------- training

@pytest.mark.parametrize('opt_func',
                         [torch.optim.SGD, torch.optim.Adam, adam_opt, partial(sgd_opt, mom=0.9), lamb_opt])
def test_it_trains_as_runner_does(opt_func):
    learn = learner(opt_func=opt_func, lr=0.02)
    learn.fit(2)
    runner = Runner(bunch(), network(), opt_func=opt_func, lr=0.02, cbs=[AvgStats(accuracy), Recorder()])
    runner.fit(2)
    assert equal(weights(learn), weights(runner)) and learn.recorder.losses == runner.recorder.losses
    assert ([{**row, 'seconds': 0}
             for row in learn.history] == [{**row, 'seconds': 0} for row in runner.avg_stats.history])
    assert learn.epoch == 2 and learn.n_iter == 10

def test_it_has_the_comforts_and_what_is_given_takes_their_place():
    learn = Learner(bunch(), network())
    assert {cb.name for cb in learn.cbs} >= {'device', 'batch_transform', 'avg_stats', 'recorder', 'progress'}
    given = [Progress(False), Recorder(), AvgStats(accuracy), DeviceCallback('cpu'), TrainEvalCallback()]
    learn = Learner(bunch(), network(), cbs=given)
    for cb in given: assert [o for o in learn.cbs if isinstance(o, type(cb))] == [cb]
    with pytest.raises(ValueError, match='metrics'):
        Learner(bunch(), network(), metrics=accuracy, cbs=AvgStats())

def test_its_optimizer_and_loss_can_be_left_out():
    learn = Learner(bunch(), network())
    assert learn.opt_func is adam_opt and isinstance(learn.loss_func, CrossEntropy) and learn.lr == 1e-3
    data = make_data(Dataset(torch.randn(8, 5), torch.randn(8, 3)),
                     Dataset(torch.randn(8, 5), torch.randn(8, 3)), bs=4, loss_func=SquaredLoss())
    assert isinstance(Learner(data, network()).loss_func, SquaredLoss)

def test_batch_transforms_are_those_of_whatever_data_there_is():
    "Data that is replaced between fits, or by a callback within one."
    data = bunch(batch_tfms=([lambda xb: xb + 1], [lambda xb: xb - 1]))
    seen = Log(after_pred=lambda cb: (cb.in_train, cb.xb.mean().item()))
    learn = learner(data, cbs=[seen])
    learn.fit(1)
    by_hand = ([xb.mean().item() + 1
                for xb, _ in bunch().train_dl] + [xb.mean().item() - 1 for xb, _ in bunch().valid_dl])
    assert [v for _, v in seen.seen] == pytest.approx(by_hand, abs=1e-5)
    seen.seen.clear()
    learn.data = bunch(n=16, batch_tfms=([lambda xb: xb*0], [lambda xb: xb*0 + 2]))
    learn.fit(1)
    assert [v for _, v in seen.seen] == [0., 0., *[2.]*2]

    class Larger(Callback):
        def after_epoch(self):
            if self.epoch == 0:
                self.run.data = bunch(n=24, batch_tfms=([lambda xb: xb*0 + 5], [lambda xb: xb*0 + 6]))
    seen = Log(after_pred=lambda cb: cb.xb.mean().item())
    learn = learner(bunch(n=16), cbs=[seen])
    learn.fit(2, cbs=Larger())
    assert seen.seen[-5:] == [5.]*3 + [6.]*2 and len(seen.seen) == 2 + 2 + 3 + 2

@pytest.mark.parametrize('wrap', [lambda a, b: (a, b), lambda a, b: {'a': a, 'b': b}], ids=['tuple', 'dict'])
def test_inputs_may_be_tuples_or_dicts(wrap):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(5, 3)
        def forward(self, a, b): return self.lin(a*b)
    (x, y), (xv, yv) = points(24), points(10, 1)
    torch.manual_seed(0)
    learn = learner(make_data(Dataset(wrap(x, x + 1), y), Dataset(wrap(xv, xv + 1), yv), bs=8), Both(),
                    lr=0.05)
    learn.fit_one_cycle(2)
    preds, targets = learn.get_preds()
    want = (learn.model.lin(xv*(xv + 1))).softmax(1)
    assert torch.allclose(preds, want, atol=1e-6) and torch.equal(targets, yv)
    got = learn.predict(wrap(xv[3], xv[3] + 1))
    assert torch.allclose(got.probs, preds[3], atol=1e-6)
    assert (learn.summary().loc['all', 'parameters'] == 18 and len(learn.top_losses(3)) == 3
            and learn.validate()['loss'] > 0)

def test_without_a_validation_set():
    learn = learner((bunch().train_dl, None))
    learn.fit_one_cycle(1)
    assert list(learn.history[0]) == ['epoch', 'train_loss', 'train_accuracy', 'seconds']
    for ask in (learn.validate, learn.get_preds, learn.show_results, learn.top_losses,
                learn.confusion_matrix):
        with pytest.raises(ValueError, match='valid'): ask()
    assert learn.get_preds('train')[0].shape == (40, 3)

def test_fit_rejects_what_makes_no_sense():
    learn = learner(splitter=halves)
    before = weights(learn)
    for args, error, match in (((-1,), ValueError, 'epochs'), ((1.5,), TypeError, 'epochs'),
                               ((1, -0.1), ValueError, 'lr'), ((1, '0.1'), TypeError, 'lr'),
                               ((1, [0.1]), ValueError, 'rates'),
                               ((1, slice(0.1, 0.2, 3)), ValueError, 'slice'),
                               ((1, slice(0., 0.1)), ValueError, 'more'),
                               ((1, slice(None)), ValueError, 'slice')):
        for fit in (learn.fit, learn.fit_one_cycle):
            with pytest.raises(error, match=match): fit(*args)
    for kw, error in ((dict(pct_start=0.), ValueError), (dict(pct_start=1.), ValueError),
                      (dict(div=0), ZeroDivisionError), (dict(div_final=-1), ValueError),
                      (dict(moms=(0.9, 0.8)), TypeError), (dict(moms=(1.2, 0.8, 0.9)), ValueError)):
        with pytest.raises(error): learn.fit_one_cycle(1, **kw)
    assert equal(weights(learn), before) and learn.epoch == 0
    learn.fit_one_cycle(1)

def test_fit_within_a_fit_is_refused():
    learn = learner()
    for ask in (lambda: learn.fit(1), lambda: learn.fit_one_cycle(1), lambda: learn.lr_find(),
                lambda: learn.validate(), lambda: learn.get_preds(), lambda: learn.predict(torch.zeros(5)),
                lambda: learn.summary()):
        with pytest.raises(RuntimeError, match='within'):
            learn.fit(1, cbs=Log(before_train=lambda cb: ask()))
    learn.fit(1)


# ---------------------------------------------------------------- layer groups and rates

def test_a_slice_is_spread_over_the_groups_by_equal_factors():
    learn = learner(splitter=lambda m: [m[0], m[1], m[4]])
    for lr, want in ((slice(1e-4, 1e-2), [1e-4, 1e-3, 1e-2]), (slice(1e-2), [1e-3, 1e-3, 1e-2]),
                     ([1., 2., 3.], [1., 2., 3.]), (0.5, [0.5]*3), (slice(1e-2, 1e-4), [1e-2, 1e-3, 1e-4])):
        assert learn.rates(lr) == pytest.approx(want, rel=1e-12)
        log = Log(after_step=lambda cb: {g['layer']: g['lr'] for g in cb.opt.param_groups})
        learn.fit(1, lr, cbs=log)
        assert all(seen == pytest.approx(dict(enumerate(want))) for seen in log.seen) and len(log.seen) == 5
    one = learner()
    assert one.rates(slice(1e-4, 1e-2)) == [1e-2] and one.rates(slice(1e-2)) == [1e-2]

def test_groups_have_their_layer_and_no_decay_on_biases_and_norms():
    learn = learner(splitter=halves, opt_func=partial(adam_opt, wd=0.1), lr=0.1)
    learn.fit(1)
    got = [(g['layer'], g['weight_decay'], [tuple(p.shape) for p in g['params']])
           for g in learn.opt.param_groups]
    assert got == [(0, 0.1, [(6, 5)]), (0, 0., [(6,), (6,), (6,)]), (1, 0.1, [(3, 6)]), (1, 0., [(3,)])]
    params = [p for g in learn.opt.param_groups for p in g['params']]
    assert ({id(p) for p in params} == {id(p) for p in learn.model.parameters()}
            and len(params) == len(list(learn.model.parameters())))

def test_a_splitter_is_checked():
    for splitter, match in ((lambda m: [m[0], m[:3], m[3:]], r'0.weight'),
                            (lambda m: [m[0]], '1.weight'),
                            (lambda m: [m, nn.Linear(2, 2)], 'model')):
        with pytest.raises(ValueError, match=match): learner(splitter=splitter)
    # one has no parameters
    assert (len(learner(splitter=lambda m: [m[0], m[2], [m[1], [m[3], m[4].weight]],
                                            m[4].bias]).layer_groups()) == 3)

def test_one_optimizer_serves_all_fits_until_groups_change():
    learn = learner(splitter=halves)
    learn.fit(1)
    opt = learn.opt
    learn.fit_one_cycle(1, slice(1e-3))
    assert learn.opt is opt
    learn.splitter = None
    learn.fit(1)
    assert learn.opt is not opt and {g['layer'] for g in learn.opt.param_groups} == {0}

def curve(start, high, end, i, n, pct=0.25):
    "The value for batch i of n, by hand."
    pos = i/n
    if pos < pct: a, b, t = start, high, pos/pct
    else: a, b, t = high, end, (pos - pct)/(1 - pct)
    return b + (a - b)*(1 + math.cos(math.pi*t))/2

def test_one_cycle_gives_each_batch_the_rate_and_momentum_of_the_formula():
    learn = learner(splitter=halves, opt_func=partial(adam_opt, mom=0.8, wd=0.01))
    log = Log(before_step=lambda cb: ([(g['layer'], g['lr']) for g in cb.opt.param_groups],
                                      get_hyper(cb.opt, 'mom')))
    learn.fit_one_cycle(3, slice(2e-3, 2e-2), cbs=log)
    assert len(log.seen) == 15
    for i, (rates, moms) in enumerate(log.seen):
        for layer, lr in rates:
            high = (2e-3, 2e-2)[layer]
            assert lr == pytest.approx(curve(high/25, high, high/1e5, i, 15), rel=1e-9)
        assert moms == pytest.approx([curve(0.95, 0.85, 0.95, i, 15)]*4, rel=1e-9)
    assert learn.recorder.lrs == [rates[-1][1] for rates, _ in log.seen]
    # as before
    assert (get_hyper(learn.opt, 'mom') == [0.8]*4
            and get_hyper(learn.opt, 'lr') == pytest.approx([2e-3, 2e-3, 2e-2, 2e-2]))
    log = Log(before_step=lambda cb: (cb.opt.param_groups[0]['lr'], get_hyper(cb.opt, 'mom')[0]))
    learn.fit_one_cycle(1, 1., pct_start=0.6, div=10, div_final=100, moms=(0.5, 0.2, 0.4), cbs=log)
    for i, (lr, mom) in enumerate(log.seen):
        assert (lr == pytest.approx(curve(0.1, 1., 0.01, i, 5, 0.6))
                and mom == pytest.approx(curve(0.5, 0.2, 0.4, i, 5, 0.6)))

@pytest.mark.parametrize('opt_func, key',
                         [(torch.optim.SGD, None), (torch.optim.Adagrad, None),
                          (partial(torch.optim.SGD, momentum=0.9), 'momentum'), (torch.optim.AdamW, 'betas'),
                          (rmsprop_opt, None), (sgd_opt, None), (torch.optim.RMSprop, None)])
def test_one_cycle_moves_momentum_only_where_there_is_some(opt_func, key):
    learn = learner(opt_func=opt_func, lr=0.01)
    log = Log(before_step=lambda cb: (cb.opt.param_groups[0]['lr'],
                                      cb.opt.param_groups[0].get(key or 'momentum', 0.)))
    learn.fit_one_cycle(2, cbs=log)
    assert ([lr for lr, _ in log.seen]
            == pytest.approx([curve(0.01/25, 0.01, 0.01/1e5, i, 10) for i in range(10)]))
    moms = [m[0] if isinstance(m, tuple) else m for _, m in log.seen]
    assert moms == (pytest.approx([curve(0.95, 0.85, 0.95, i, 10) for i in range(10)]) if key else [0.]*10)

@pytest.mark.slow
def test_the_rate_finder_leaves_everything_as_it_was(tmp_path):
    class Mine(Callback): order = 60
    class Mine2(Callback): order = 50
    data = make_data(TransformedDataset(Dataset(*points(40)), [lambda x, rng: x + 0.1*rng.random()]),
                     Dataset(*points(20, 1)), bs=8)
    learn = learner(data, cbs=[EarlyStopping(), Mine(), CSVLog(tmp_path/'log.csv'),
                               Checkpoint(tmp_path/'fit.ckpt'), Mine2()], lr=1e-5)
    learn.fit(2)
    def everything():
        return copied({'model': learn.model.state_dict(), 'opt': learn.opt.state_dict(), 'counts': [
            learn.epoch, learn.n_iter], 'training': [m.training for m in learn.model.modules()],
                       'generators': generators(), 'history': list(learn.history),
                       'losses': learn.recorder.losses, 'loaders': [data.train_dl._next, data.valid_dl._next],
                       'grads': [p.grad for p in learn.model.parameters()]})
    def as_it_was(): return [k for k, v in everything().items() if not equal(v, before[k])] == []
    before, cbs, files = everything(), list(learn.cbs), {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    lr = learn.lr_find(60, 1e-4, 5., show=False)
    assert 1e-4 <= lr <= 5.
    assert as_it_was() and all(a is b for a, b in zip(learn.cbs, cbs, strict=True)) and learn.data is data
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files
    with pytest.raises(Boom): learn.fit(1, cbs=At('after_loss', 3))
    learn.add_cbs(boom := At('after_loss', 5))
    before = everything()
    with pytest.raises(Boom): learn.lr_find(show=False)
    learn.remove_cbs(boom)
    assert as_it_was()
    plt.close('all')
    learn.lr_find(60, 1e-4)
    assert plt.get_fignums()
    plt.close('all')


# ---------------------------------------------------------------- freezing

def changed(learn, fit):
    before = weights(learn)
    fit()
    after = weights(learn)
    return {k for k in before if not torch.equal(before[k], after[k])}

ALL = {'0.weight', '0.bias', '1.weight', '1.bias', '1.running_mean', '1.running_var', '1.num_batches_tracked',
       '4.weight', '4.bias'}
OF_NORM = {k for k in ALL if k.startswith('1.')}

@pytest.mark.parametrize('train_bn, want',
                         [(True, OF_NORM | {'4.weight', '4.bias'}), (False, {'4.weight', '4.bias'})])
def test_frozen_groups_stay_and_their_norms_learn_if_asked(train_bn, want):
    learn = learner(splitter=halves, opt_func=partial(adam_opt, wd=0.1), lr=0.05)
    assert changed(learn, lambda: learn.fit(1)) == ALL
    learn.freeze(train_bn)
    assert changed(learn, lambda: learn.fit_one_cycle(1)) == want
    assert [m.training for m in learn.model.modules()] == [True]*6   # as they came
    learn.unfreeze()
    assert changed(learn, lambda: learn.fit(1)) == ALL

def test_freeze_to_counts_groups_from_either_end():
    learn = learner(splitter=lambda m: [m[0], m[1], m[4]])
    learns = lambda: [all(p.requires_grad for p in g) for g in learn.layer_groups()]
    for n, want in ((1, [False, True, True]), (2, [False, False, True]), (0, [True]*3),
                    (-1, [False, False, True]), (-3, [True]*3), (-2, [False, True, True])):
        learn.freeze_to(n, train_bn=False)
        assert learns() == want
    learn.freeze_to(-1)
    assert learns() == [False, True, True]   # the norm layer learns
    for n in (3, -4):
        with pytest.raises(IndexError): learn.freeze_to(n)
    with pytest.raises(ValueError, match='splitter'): learner().freeze()

def test_norms_without_parameters_in_frozen_groups_stay_too():
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, affine=False), nn.ReLU(), nn.Linear(6, 3))
    learn = learner(model=model, splitter=lambda m: [m[:3], m[3:]])
    learn.freeze(train_bn=False)
    assert changed(learn, lambda: learn.fit(1)) == {'3.weight', '3.bias'}


# ---------------------------------------------------------------- files

def test_what_is_saved_is_loaded(tmp_path):
    learn = learner(path=tmp_path/'new', splitter=halves)
    learn.fit(1, slice(1e-3, 1e-2))
    path = learn.save('first')
    assert (path == tmp_path/'new'/'first.pth' and path.is_file()
            and [p.name for p in path.parent.iterdir()] == ['first.pth'])
    other = learner(path=tmp_path/'new', splitter=halves, model=network(5))
    assert other.load('first') is other
    assert (equal(weights(other), weights(learn)) and equal(other.opt.state_dict(), learn.opt.state_dict())
            and (other.epoch, other.n_iter) == (1, 5))
    for l in (learn, other):
        torch.manual_seed(1)
        l.fit(1, slice(1e-3, 1e-2))
    assert equal(weights(other), weights(learn))
    bare = learner(path=tmp_path/'new', splitter=halves, model=network(5))
    bare.load('first', with_opt=False)
    assert bare.opt is None and bare.epoch == 0 and equal(weights(bare), load_state(path)['model'])
    learn.save('small', with_opt=False)
    assert (tmp_path/'new'/'small.pth').stat().st_size < path.stat().st_size
    assert learner(path=tmp_path/'new', splitter=halves).load('small').opt is None
    torch.save(learn.model.state_dict(), tmp_path/'new'/'plain.pt')
    assert equal(weights(bare.load('plain.pt')), weights(learn))
    assert (learn.save(tmp_path/'elsewhere.bin') == tmp_path/'elsewhere.bin'
            and bare.load(tmp_path/'elsewhere.bin'))

def test_a_name_with_a_dot_is_kept_apart_from_others(tmp_path):
    "Such as 'lr0.01' and 'lr0.02'."
    learn = learner(path=tmp_path)
    names = {learn.save('lr0.01').name, learn.save('lr0.02').name, learn.save('lr0').name}
    assert len(names) == 3
    for name in ('lr0.01', 'lr0.02', 'lr0'): learn.load(name)

def test_load_refuses_what_does_not_fit_and_changes_nothing(tmp_path):
    learn = learner(path=tmp_path)
    learn.fit(1)
    learn.save('right')
    small = learner(model=nn.Linear(5, 3), path=tmp_path)
    small.save('small')
    before = copied([learn.model.state_dict(), learn.opt.state_dict(), learn.epoch])
    with pytest.raises(ValueError, match='architecture'): learn.load('small')
    with pytest.raises(FileNotFoundError, match='none.pth'): learn.load('none')
    (tmp_path/'text.pth').write_text('hello')
    with pytest.raises(ValueError, match='text.pth'): learn.load('text')
    assert equal(copied([learn.model.state_dict(), learn.opt.state_dict(), learn.epoch]), before)
    for other in (learner(path=tmp_path, opt_func=torch.optim.SGD, model=network(7)),
                  learner(path=tmp_path, splitter=halves, model=network(7))):
        other.fit(1)
        before = copied([other.model.state_dict(), other.opt.state_dict(), other.epoch])
        with pytest.raises(ValueError, match='optimizer'): other.load('right')
        assert equal(copied([other.model.state_dict(), other.opt.state_dict(), other.epoch]), before)
        other.load('right', with_opt=False)
        assert equal(weights(other), load_state(tmp_path/'right.pth')['model'])

@pytest.mark.slow
def test_an_exported_learner_answers_as_the_one_it_came_from(trained, folder, tmp_path):
    path = trained.export(tmp_path/'colours.pth')
    again = load_learner(path, color_network(9))
    for file in sorted(folder.rglob('*.png')):
        a, b = trained.predict(file), again.predict(file)
        assert a.label == b.label and torch.equal(a.target, b.target) and torch.equal(a.probs, b.probs)
    assert again.data.classes == list(COLORS) and again.data.c == 3
    file = next((folder/'test').iterdir())
    # all of its layers are PyTorch's
    assert torch.equal(load_learner(path).predict(file).probs, trained.predict(file).probs)
    with pytest.raises(ValueError, match='architecture'): load_learner(path, ColorNet(4))
    with pytest.raises(ValueError, match='train'): again.fit(1)
    with pytest.raises(ValueError, match='valid'): again.validate()
    with pytest.raises(ValueError, match='export'):
        load_learner(trained.save(tmp_path/'weights'), color_network())

def test_registered_networks_and_losses_need_no_second_telling(folder, tmp_path):
    learn = learner(images(folder), ColorNet(6), loss_func=partial(far_loss, scale=2.), path=tmp_path)
    learn.fit(1)
    again = load_learner(learn.export())
    assert (isinstance(again.model, ColorNet)
            and again.loss_func(torch.zeros(1, 3), torch.zeros(1).long()) == pytest.approx(2*math.log(3)))
    file = next((folder/'test').iterdir())
    assert torch.equal(learn.predict(file).probs, again.predict(file).probs)
    def mine(pred, yb, reduction='mean'): return F.cross_entropy(pred, yb, reduction=reduction)
    mine.activation, mine.decode = far_loss.activation, far_loss.decode
    learn = learner(images(folder), ColorNet(6), loss_func=mine, path=tmp_path)
    with pytest.warns(UserWarning, match='mine'): path = learn.export()
    with pytest.raises(ValueError, match='mine'): load_learner(path)
    assert load_learner(path, loss_func=mine).predict(file).label in COLORS

def test_what_is_not_registered_cannot_be_exported(folder, tmp_path):
    class Own(Transform):
        order = 50
        def image(self, x, draw): return x
    for tfm in (Own(), lambda im: im):
        with pytest.raises(TypeError, match='register'):
            learner(images(folder, [tfm]), color_network()).export(tmp_path/'no.pth')
    assert not list(tmp_path.iterdir())

def test_plain_arrays_are_exported_too(tmp_path):
    learn = learner(path=tmp_path)
    learn.fit(1)
    again = load_learner(learn.export(), network(3))
    x = points(20, 1)[0]
    for item in (x[0], x[0].numpy(), x[0].tolist()):
        assert torch.equal(again.predict(item).probs, learn.predict(x[0]).probs)

@pytest.mark.launch
def test_in_a_new_process_an_exported_learner_answers_the_same(trained, folder, tmp_path):
    trained.export(tmp_path/'colours.pth')
    code = f"""
from torch import nn
from exp.inference import load_learner
layers = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
learn = load_learner({str(tmp_path/'colours.pth')!r}, nn.Sequential(*layers, nn.Linear(8, 3)))
label, target, probs = learn.predict({str(folder/'test'/'1.png')!r})
print(label, int(target), probs.tolist())
"""
    root = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, cwd=root,
                          env={**os.environ, 'PYTHONPATH': root, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg'})
    want = trained.predict(folder/'test'/'1.png')
    label, target, probs = done.stdout.split(' ', 2)
    assert ((label, int(target)) == ('green', 1)
            and eval(probs) == pytest.approx(want.probs.tolist(), abs=1e-6))


# ---------------------------------------------------------------- answers

def test_validate_is_what_the_means_by_hand_are():
    learn = learner(lr=0.02)
    learn.fit(1)
    x, y = points(20, 1)
    learn.model.eval()
    with torch.no_grad(): pred = learn.model(x)
    learn.model.train()
    got = learn.validate()
    assert (got == pytest.approx({'loss': F.cross_entropy(pred, y).item(),
                                  'accuracy': (pred.argmax(1) == y).float().mean().item()}, abs=1e-6))
    assert got == pytest.approx({k[6:]: v for k, v in learn.history[0].items() if k.startswith('valid_')})
    assert all(type(v) is float for v in got.values()) and learn.model.training
    x, y = points(40)
    assert (learn.validate('train')['loss']
            == pytest.approx(learn.validate(DataLoader(Dataset(x, y), 7))['loss'], abs=1e-6))
    given = learner(metrics=(), cbs=[AvgStats(accuracy)])
    assert list(given.validate()) == ['loss', 'accuracy']

def test_answers_leave_no_trace(trained):
    state = lambda: copied([trained.model.state_dict(), trained.epoch,
                            trained.n_iter, trained.pct_fit, trained.history, trained.recorder.losses,
                            [m.training for m in trained.model.modules()],
                            [p.requires_grad for p in trained.model.parameters()], generators(),
                            n_hooks(trained.model), [cb.name for cb in trained.cbs], trained.epochs])
    before = state()
    trained.validate()
    trained.get_preds('train')
    trained.get_preds('test')
    trained.top_losses()
    trained.confusion_matrix()
    trained.summary()
    trained.predict(trained.data.valid_ds.x.items[0])
    trained.show_results()
    trained.plot_top_losses(2)
    trained.plot_confusion_matrix()
    repr(trained)
    plt.close('all')
    assert equal(state(), before)

def test_get_preds_of_the_training_set_comes_in_order_without_random_changes(folder):
    data = images(folder, ([Darken()], []))
    learn = learner(data, color_network(), lr=0.05)
    learn.fit(2)
    preds, targets = learn.get_preds('train')
    plain = learner(images(folder), learn.model)
    assert (torch.equal(targets, data.train_ds.y.column()) and torch.equal(preds, plain.get_preds('train')[0])
            and torch.equal(preds, learn.get_preds('train')[0]))
    for i in (0, 5, 11):
        assert torch.allclose(learn.predict(data.train_ds.x.items[i]).probs, preds[i], atol=1e-6)
    raw, _ = learn.get_preds('train', act=False)
    assert torch.allclose(raw.softmax(1), preds, atol=1e-6)

def test_random_batch_transforms_are_training_s_alone():
    noisy = bunch(batch_tfms=([lambda xb: xb + torch.randn_like(xb)], []))
    learn = learner(noisy)
    learn.fit(1)
    assert torch.equal(learn.get_preds('train')[0], learner(bunch(), learn.model).get_preds('train')[0])

def test_one_item_has_the_same_answer_as_its_row(trained, folder):
    ds = trained.data.valid_ds
    preds, targets = trained.get_preds()
    assert torch.allclose(preds.sum(1), torch.ones(6)) and targets.tolist() == [0, 0, 1, 1, 2, 2]
    for i, file in enumerate(ds.x.items):
        im = Image.open(file).convert('RGB')
        for item in (file, str(file), file.read_bytes(), im, np.array(im),
                     torch.from_numpy(np.array(im)).permute(2, 0, 1)):
            label, target, probs = trained.predict(item)
            assert (torch.allclose(probs, preds[i], atol=1e-6) and int(target) == preds[i].argmax()
                    and label == list(COLORS)[int(target)] == file.parent.name)
    with pytest.raises(FileNotFoundError, match='nothing.png'): trained.predict(folder/'nothing.png')
    with pytest.raises(ValueError, match='decoded'): trained.predict(b'hello')
    trained.predict(ds.x.items[0])

def test_a_test_set_without_labels(trained):
    preds, targets = trained.get_preds('test')
    assert targets is None and preds.argmax(1).tolist() == [0, 1, 2, 2]
    for ask in (trained.validate, partial(trained.top_losses, 3), trained.confusion_matrix):
        with pytest.raises(ValueError): ask(dl='test')
    trained.show_results(dl='test')
    plt.close('all')

def test_other_loaders_and_names(trained):
    with pytest.raises(ValueError, match="'valid'"): trained.get_preds('validation')
    with pytest.raises(TypeError): trained.get_preds(trained.data.valid_ds)
    with pytest.raises(ValueError, match='test'): learner().get_preds('test')
    dl = DataLoader(trained.data.train_ds, 5)
    assert torch.allclose(trained.get_preds(dl)[0], trained.get_preds('train')[0], atol=1e-6)
    learn = learner((torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*points(16)), 4),
                     torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*points(10, 1)), 4)))
    learn.fit(1)
    assert learn.get_preds()[0].shape == (10, 3) and len(learn.top_losses(4)) == 4

def test_top_losses_are_those_of_the_table_by_hand():
    learn = learner(lr=0.02)
    learn.fit(1)
    x, y = points(20, 1)
    preds, _ = learn.get_preds(act=False)
    losses = F.cross_entropy(preds, y, reduction='none')
    table = learn.top_losses(5)
    assert table['item'].tolist() == losses.argsort(descending=True)[:5].tolist()
    assert table['loss'].tolist() == pytest.approx(losses.sort(descending=True).values[:5].tolist(), abs=1e-5)
    assert (table['truth'].tolist() == [str(int(y[i])) for i in table['item']]
            and table['prediction'].tolist() == [str(int(preds[i].argmax())) for i in table['item']])
    assert len(learn.top_losses(100)) == 20

def test_top_losses_of_images_name_the_file(trained, folder):
    table = trained.top_losses(3, 'train')
    assert len(table) == 3 and table['loss'].is_monotonic_decreasing
    for row in table.to_dict('records'):
        assert (str(row['file']) in str(trained.data.train_ds.x.items[row['item']])
                and row['truth'] in str(row['file']))

def test_a_confusion_matrix_has_a_row_for_each_truth(folder):
    class Fixed(nn.Module):
        "Answers blue for all but red."
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))
        def forward(self, x):
            return (F.one_hot(torch.where(x[:, 0].mean((1, 2)) > x[:, 2].mean((1, 2)) + 0.5, 2, 0),
                              3).float() + self.w)
    learn = learner(images(folder), Fixed())
    table = learn.confusion_matrix()
    assert (table.index.tolist() == table.columns.tolist() == list(COLORS) and table.index.name == 'truth'
            and table.columns.name == 'prediction')
    assert table.loc['green', 'blue'] == 2 and table.loc['blue', 'green'] == 0
    assert (table.values.tolist() == [[2, 0, 0], [2, 0, 0], [0, 0, 2]]
            and learn.confusion_matrix('train').values.sum() == 12)
    ax = learn.plot_confusion_matrix()
    assert ax.get_xlabel() == 'prediction' and ax.get_ylabel() == 'truth'
    plt.close('all')
    numbers = learner(make_data(Dataset(torch.randn(8, 5), torch.randn(8, 3)),
                                Dataset(torch.randn(8, 5), torch.randn(8, 3)), bs=4, loss_func=SquaredLoss()))
    with pytest.raises(ValueError, match='class'): numbers.confusion_matrix()

def test_answers_of_a_regression():
    data = make_data(Dataset(torch.randn(16, 5), torch.randn(16, 1)),
                     Dataset(torch.randn(8, 5), torch.randn(8, 1)), bs=4, loss_func=SquaredLoss())
    learn = learner(data, nn.Linear(5, 1), metrics=[Rmse()])
    learn.fit(1)
    preds, targets = learn.get_preds()
    assert (learn.validate()['rmse'] == pytest.approx((preds - targets).square().mean().sqrt().item(),
                                                      abs=1e-6))
    x = data.valid_ds.x[2]
    got = learn.predict(x)
    assert (got.label == pytest.approx(preds[2].item(), abs=1e-6)
            and torch.allclose(got.probs, preds[2], atol=1e-6))


# ---------------------------------------------------------------- pictures and tables

def titles(): return [ax.get_title() for ax in plt.gcf().axes if ax.get_title()]

@pytest.mark.slow
def test_results_show_truth_above_prediction_green_where_right(trained):
    plt.close('all')
    trained.show_results(5)
    assert titles() == [f'{c}\n{c}' for c in ('blue', 'blue', 'green', 'green', 'red')]
    wrong = learner(trained.data, color_network(3))
    with torch.no_grad(): wrong.model[-1].bias.copy_(torch.tensor([100., 0., 0.]))
    wrong.show_results(4, 'train')
    assert titles() == ['blue\nblue']*4
    wrong.show_results(9, 'train')
    assert {ax.title.get_color() for ax in plt.gcf().axes if ax.get_title()} >= {'C2'}
    plt.close('all')
    wrong.plot_top_losses(2)
    assert (all(t.split('\n')[1].startswith('blue (') and not t.startswith('blue') for t in titles())
            and len(titles()) == 2)
    plt.close('all')

class Spot(LabelList):
    "A place in the image, x and y from 0 to 1."
    kind, spatial, loss_func, c = 'spot', True, SquaredLoss(), 2
    shown = []
    def open(self, item): return torch.tensor(item, dtype=torch.float32)
    def show(self, obj, ax, title=None):
        self.shown.append(obj.tolist())
        ax.plot(*obj.tolist(), 'o')

def test_targets_that_lie_on_the_image_are_shown_side_by_side(folder):
    split = ImageList.from_folder(folder, include=('train', 'valid')).split_by_folder().label_from_func(
        lambda f: (0.25, 0.75), Spot)
    # parts of the side, which resizing leaves alone
    data = split.transform(size=12, tfm_y=False).databunch(4)
    learn = learner(data, nn.Sequential(nn.Flatten(), nn.Linear(3*144, 2)), metrics=())
    learn.fit(1)
    Spot.shown.clear()
    plt.close('all')
    learn.show_results(3)
    preds, _ = learn.get_preds()
    assert [t.strip() for t in titles()] == ['truth', 'prediction']*3
    assert (np.allclose(Spot.shown[::2], [[0.25, 0.75]]*3)
            and np.allclose(Spot.shown[1::2], preds[:3].tolist(), atol=1e-5))
    assert isinstance(learn.predict(data.valid_ds.x.items[0]).target, torch.Tensor)
    plt.close('all')

def test_a_summary_counts_each_parameter_once_in_the_order_of_use():
    class Odd(nn.Module):
        "Shared, nested, unused and free parameters, two outputs of a part."
        def __init__(self):
            super().__init__()
            self.late, self.block, self.free = nn.Linear(6, 3), nn.Sequential(
                nn.Linear(5, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 6))), nn.Parameter(torch.zeros(7))
            self.tied, self.unused, self.lstm = nn.Linear(6,
                                                          6), nn.Linear(2, 2), nn.LSTM(6, 6, batch_first=True)
            self.tied.weight = self.block[1][1].weight
        def forward(self, x):
            x = self.block(x)
            x = self.tied(self.tied(x))
            return self.late(self.lstm(x[:, None])[0][:, 0]) + self.free.sum()
    model = Odd()
    model.unused.requires_grad_(False)
    learn = learner(model=model)
    for train, n in ((True, 8), (False, 16)):
        s = learn.summary(train)
        assert s.loc['all', 'parameters'] == sum(p.numel() for p in model.parameters())
        assert s.loc['all', 'trainable'] == sum(p.numel() for p in model.parameters() if p.requires_grad)
        names = [name for name in s.index if name in ('block.0', 'block.1.0', 'block.1.1', 'tied', 'lstm',
                                                      'late')]
        assert names == ['block.0', 'block.1.0', 'block.1.1', 'tied', 'tied', 'lstm', 'late']
        assert s.loc['block.0', 'shape'] == (n, 6) and s.loc['block.0', 'bytes'] == n*6*4
    assert n_hooks(model) == 0
    one = learner(model=nn.Linear(5, 3)).summary()
    assert one.loc['all', 'parameters'] == 18
    with pytest.raises(RuntimeError): learner(model=nn.Linear(4, 3)).summary()

def test_quiet_is_quiet(capsys):
    learn = Learner(bunch(), network(), metrics=accuracy)
    with learn.quiet():
        learn.fit(1)
        learn.fit_one_cycle(1)
        learn.validate()
    assert capsys.readouterr() == ('', '') and len(learn.history) == 1
    learn.fit(1)
    assert 'valid_accuracy' in capsys.readouterr().out


# ---------------------------------------------------------------- errors, and what they leave behind

def usable(learn):
    "No hooks, no callback of the fit, no graph; it trains and answers."
    assert n_hooks(learn.model) == 0 and not learn.fitting and all(cb.run is learn for cb in learn.cbs)
    assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())
    names = [cb.name for cb in learn.cbs]
    learn.fit(1)
    learn.validate()
    assert [cb.name for cb in learn.cbs] == names

def test_an_error_says_where_it_was():
    learn = learner()
    for event, n, words in (('after_loss', 6, 'batch 0 of 2 in validation, epoch 0'),
                            ('after_backward', 7, 'batch 1 of 5 in training, epoch 1')):
        learn.epoch = 0
        with pytest.raises(Boom) as e: learn.fit(2, cbs=At(event, n))
        notes = '\n'.join(e.value.__notes__)
        assert words in notes
        usable(learn)

def test_a_loss_and_targets_of_different_shapes_are_an_error():
    x, y = torch.randn(16, 5), torch.randn(16)
    for loss in (nn.MSELoss(), F.mse_loss, F.l1_loss, nn.SmoothL1Loss(), partial(F.huber_loss, delta=2.),
                 SquaredLoss()):
        learn = learner(make_data(Dataset(x, y), Dataset(x, y), bs=4), nn.Linear(5, 1), metrics=(),
                        loss_func=loss)
        with pytest.raises(ValueError, match='shape'): learn.fit(1)
    learn = learner(make_data(Dataset(x, y[:, None]), Dataset(x, y[:, None]), bs=4), nn.Linear(5, 1),
                    metrics=(), loss_func=nn.MSELoss())
    learn.fit(1)
    learn = learner(make_data(Dataset(x, torch.zeros(16).long()), None, bs=4), nn.Linear(5, 3),
                    loss_func=lambda p, y: F.cross_entropy(p, y[:2]))
    with pytest.raises(ValueError) as e: learn.fit(1)
    assert 'batch 0 of 4 in training' in '\n'.join(e.value.__notes__)

@pytest.mark.parametrize('event', ['before_fit', 'before_batch', 'after_backward', 'after_step',
                                   'before_validate', 'after_epoch'])
def test_ctrl_c_leaves_a_learner_that_can_be_used(event):
    learn = learner(splitter=halves, opt_func=partial(sgd_opt, mom=0.9))
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(2, 0.1, cbs=[ActivationStats(every=1), At(event, 1, KeyboardInterrupt)])
    # what the schedules moved is back
    assert get_hyper(learn.opt, 'mom') == [0.9]*4 and learn.opt.param_groups[0]['lr'] == 0.1
    usable(learn)

def test_a_real_ctrl_c():
    import _thread, signal
    # a process in the background is born deaf to it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    learn = learner()
    class Slow(Callback):
        def after_loss(self):
            if self.n_iter == 3:
                _thread.interrupt_main()
                time.sleep(0.01)
    try:
        with pytest.raises(KeyboardInterrupt): learn.fit(3, cbs=[Slow(), ActivationStats(every=1)])
    finally: signal.signal(signal.SIGINT, before)
    usable(learn)

def test_an_error_in_an_answer_leaves_a_learner_that_can_be_used():
    learn = learner()
    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.on = nn.Linear(5, 3), False
        def forward(self, x):
            if self.on: raise Boom
            return self.lin(x)
    learn = learner(model=Bad())
    learn.fit(1)
    for ask in (learn.validate, learn.get_preds, learn.summary, learn.top_losses, learn.confusion_matrix,
                learn.show_results, lambda: learn.predict(torch.zeros(5)), lambda: learn.lr_find(show=False)):
        learn.model.on, state = True, generators()
        with pytest.raises(Boom): ask()
        learn.model.on = False
        assert equal(generators(), state) and learn.model.training
        usable(learn)

def test_a_learner_needs_sound_parts():
    for args, kw, error in (((bunch(), 'model'), {}, TypeError), (('data', network()), {}, TypeError),
                            ((bunch(), network()), {'loss_func': nn.MSELoss}, TypeError),
                            ((bunch(), network()), {'lr': -1}, ValueError),
                            ((bunch(), network()), {'metrics': 'accuracy'}, TypeError),
                            ((bunch(), network()), {'cbs': Recorder}, TypeError)):
        with pytest.raises(error): Learner(*args, **kw)
