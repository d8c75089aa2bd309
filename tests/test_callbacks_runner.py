"""What `Runner` takes and returns: batches, fit's arguments, the optimizer, counters, replaced parts; in a
batch nothing waits for the device."""
import collections, contextlib, copy, functools, math, signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.data as tud
from torch import nn

from exp.callbacks import call_model, EVENTS, AvgStats, Callback, Recorder, Runner
from exp.core import test_close as close
from exp.dataloader import DataBunch, DataLoader, Dataset
from exp.faults import NanCheck
from exp.losses import CrossEntropy
from exp.metrics import accuracy
from test_callbacks import At, Boom, Do, PARTS, Trace, bunch, full, net, points, runner, usable


# ---------------------------------------------------------------- batches

class Takes(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 2)
    def forward(self, a, b, c=None): return self.lin(a + b + (0 if c is None else c['u'][0]))

@pytest.mark.parametrize('form', ['tuple', 'dict', 'nested'])
def test_inputs_may_be_tuples_dicts_and_nested(form):
    x, y = points(10)
    def make(rows):
        a, b = x[rows], x[rows]*2
        return {'tuple': (a, b), 'dict': {'b': b, 'a': a},
                'nested': {'c': {'u': (a, b)}, 'a': a, 'b': b}}[form], y[rows]
    batches = [make(slice(0, 4)), make(slice(4, 8)), make(slice(8, 10))]
    stats = AvgStats(accuracy)
    run = Runner((batches, batches), Takes(), loss_func=F.cross_entropy, cbs=[stats, Recorder()])
    run.fit(1)
    model = run.model.eval()
    with torch.no_grad(): pred = call_model(model, make(slice(None))[0])
    close(stats.history[-1]['valid_loss'], F.cross_entropy(pred, y).double(), 1e-6)
    close(stats.history[-1]['valid_accuracy'], accuracy(pred, y).double(), 1e-6)

def test_inputs_of_strings_are_counted_or_refused_and_never_looked_at_for_ever():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(1, 2)
        def forward(self, *texts): return self.lin(torch.tensor([[float(len(t))] for t in texts]))
    run = Runner(([(('abc', 'de'), torch.tensor([0, 1]))], None), Reads(), loss_func=F.cross_entropy,
                 cbs=AvgStats())
    if not hasattr(signal, 'setitimer'): pytest.skip('no alarm here')
    def late(*_): raise TimeoutError('it hangs')
    former = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with contextlib.suppress(TypeError, ValueError): run.fit(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)

def test_predictions_may_be_tuples():
    "A detector answers boxes and classes."
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 2)
        def forward(self, x): return self.lin(x), {'double': self.lin(x)*2}
    x, y = points(10)
    def loss(pred, yb): return F.cross_entropy(pred[0], yb) + F.cross_entropy(pred[1]['double'], yb)
    def first_accuracy(pred, yb):
        assert not pred[0].requires_grad and not pred[1]['double'].requires_grad
        return accuracy(pred[0], yb)
    stats = AvgStats(first_accuracy)
    run = Runner((DataLoader(Dataset(x, y), 4),)*2, Two(), loss_func=loss,
                 cbs=[stats, Recorder(), NanCheck()])
    run.fit(1)
    close(stats.history[-1]['valid_first_accuracy'], accuracy(run.model(x)[0], y).double(), 1e-6)

def test_without_targets_validation_skips_loss_and_metrics_and_training_is_an_error():
    stats, rec, trace = AvgStats(accuracy), Recorder(), Trace()
    x, y = points()
    run = Runner((DataLoader(Dataset(x, y), 4), DataLoader(Dataset(x), 4)), net(),
                 cbs=[stats, rec, trace, NanCheck()])
    run.fit(1)
    assert trace.seen == [e for e in full(1, 2, 2)[:19]] + ['after_train', 'before_validate'] + [
        'before_batch', 'after_pred', 'after_batch']*2 + [
        'after_validate', 'after_epoch', 'after_fit']
    row = stats.history[0]
    assert (math.isfinite(row['train_loss']) and math.isnan(row['valid_loss'])
            and math.isnan(row['valid_accuracy']))
    assert run.loss is None and len(rec.losses) == 2
    run = Runner((DataLoader(Dataset(x), 4), None), net(), cbs=AvgStats())
    with pytest.raises(ValueError, match='targets') as caught: run.fit(1)
    assert 'batch 0 of 2' in caught.value.__notes__[0]

def test_the_loss_and_metrics_get_the_targets_whole():
    x, y = points(10)
    class Two:
        def __call__(self, pred, yb):
            a, b = yb
            return F.cross_entropy(pred, a) + b.mean()
    def b_mean(pred, yb): return yb[1].mean()
    b = torch.arange(10.)
    stats = AvgStats(b_mean)
    run = Runner((DataLoader(Dataset(x, (y, b)), 4),)*2, net(), loss_func=Two(), cbs=stats)
    run.fit(1)
    close(stats.history[0]['train_b_mean'], 4.5, 1e-6)
    close(stats.history[0]['valid_b_mean'], 4.5, 1e-6)

@pytest.mark.parametrize('batch',
                         [torch.ones(2, 3), (torch.ones(2, 3),),
                          (torch.ones(2, 3), torch.zeros(2), torch.zeros(2)), {'x': 1, 'y': 2}, None])
def test_a_batch_that_is_no_pair_is_refused(batch):
    run = Runner(([batch], None), net())
    with pytest.raises(TypeError, match='pair'): run.fit(1)

def test_items_are_the_indices_of_the_batchs_items():
    seen = []
    run = runner(Do(before_batch=lambda self: seen.append((self.in_train, list(self.items)))))
    run.fit(1)
    assert seen == [(True, [0, 1, 2, 3]), (True, [4, 5, 6, 7]), (False, [0, 1, 2, 3])]

def test_pytorchs_own_loader_serves():
    x, y = points(10)
    dl = tud.DataLoader(tud.TensorDataset(x, y), 4, shuffle=True)
    stats, items = AvgStats(accuracy), []
    run = Runner((dl, tud.DataLoader(tud.TensorDataset(x, y), 4)), net(),
                 cbs=[stats, Recorder(), Do(before_batch=lambda self: items.append(self.items))])
    run.fit(2)
    assert len(stats.history) == 2 and set(items) == {None} and run.n_iter == 6

def test_a_loader_without_a_length_is_refused_by_name():
    class Endless(tud.IterableDataset):
        def __iter__(self): return iter(zip(*points(8)))
    trace = Trace()
    run = Runner((tud.DataLoader(Endless(), 4), None), net(), cbs=trace)
    with pytest.raises(TypeError, match='len'): run.fit(1)
    assert trace.seen in ([], ['before_fit', 'before_epoch', 'after_epoch', 'after_fit'])

def test_torchs_distributed_sampler_is_told_the_epoch():
    x, y = points(8)
    sampler = tud.distributed.DistributedSampler(Dataset(x, y), num_replicas=1, rank=0, shuffle=True)
    run = Runner((tud.DataLoader(tud.TensorDataset(x, y), 4, sampler=sampler), None), net())
    epochs = []
    run.fit(3, cbs=Do(before_batch=lambda self: epochs.append(sampler.epoch)))
    assert epochs == [0, 0, 1, 1, 2, 2]

@pytest.mark.parametrize('valid', [[], None])
def test_validation_may_be_empty_or_missing(valid):
    stats, rec, trace = AvgStats(accuracy), Recorder(), Trace()
    Runner((DataLoader(Dataset(*points()), 4), valid), net(), cbs=[stats, rec, trace, NanCheck()]).fit(2)
    assert trace.seen == full(2, 2, None if valid is None else 0)
    assert [('valid_loss' in row) for row in stats.history] == [valid is not None]*2
    assert (all(math.isnan(v) for v in rec.valid_losses)
            and len(rec.valid_losses) == (0 if valid is None else 2))

def test_a_training_loader_without_batches_changes_nothing_and_ends():
    stats, rec, trace = AvgStats(accuracy), Recorder(), Trace()
    run = Runner(([], [points(4)]), net(), cbs=[stats, rec, trace, NanCheck()])
    before = copy.deepcopy(run.model.state_dict())
    run.fit(2)
    assert (trace.seen == full(2, 0, 1) and run.epoch == 2 and run.n_iter == 0 and run.pct_fit == 1
            and rec.losses == [])
    for a, b in zip(before.values(), run.model.state_dict().values()): close(a, b)

def test_a_bunch_with_batch_tfms_needs_a_callback_that_applies_them():
    data = bunch(batch_tfms=([torch.relu], []))
    run = runner(data=data)
    with pytest.raises(ValueError, match='BatchTransform'): run.fit(1)
    assert not run.fitting
    run.fit(1, cbs=type('Applies', (Callback,), {'transforms_batches': True})())
    with pytest.raises(ValueError, match='BatchTransform'): run.fit(1)

# ------------ fit's arguments, the optimizer, the counters

@pytest.mark.parametrize('epochs, error', [(-1, ValueError), (True, TypeError), (1.5, TypeError),
                                           ('1', TypeError), (None, TypeError), (2., TypeError)])
def test_a_wrong_number_of_epochs_is_refused(epochs, error):
    run, cb = runner(), Trace()
    with pytest.raises(error, match='epochs'): run.fit(epochs, cbs=cb)
    assert cb.run is None and cb.seen == [] and run.epoch == 0
    usable(run)

@pytest.mark.parametrize('lr, error', [(-0.1, ValueError), ('0.1', TypeError), (math.nan, ValueError),
                                       (math.inf, ValueError), (True, TypeError), ([0.1], TypeError)])
def test_a_wrong_rate_is_refused(lr, error):
    run = runner()
    with pytest.raises(error, match='lr'): run.fit(1, lr=lr)
    with pytest.raises(error, match='lr'): runner(lr=lr)
    usable(run)

def test_numpys_numbers_are_numbers():
    run = runner()
    run.fit(np.int64(1), lr=np.float64(0.1))
    run.fit(1, lr=np.float32(0.1))
    assert run.epoch == 2

@pytest.mark.parametrize('kw, match',
                         [({'model': nn.Linear}, 'model'), ({'loss_func': nn.CrossEntropyLoss}, 'loss_func'),
    ({'loss_func': CrossEntropy}, 'loss_func'), ({'data': [1, 2, 3]}, 'data'), ({'data': points()}, 'dl')])
def test_wrong_parts_are_refused_where_they_enter(kw, match):
    with pytest.raises(TypeError, match=match): Runner(**{'data': bunch(), 'model': net(), **kw})

def test_data_without_a_training_loader_is_refused():
    with pytest.raises(ValueError, match='train_dl'): runner(data=DataBunch(None, bunch().valid_dl)).fit(1)

def test_no_epochs_are_a_fit_too():
    run, trace = runner(), Trace()
    run.fit(0, cbs=trace)
    assert trace.seen == ['before_fit', 'after_fit'] and run.pct_fit == 1 and run.epoch == 0
    usable(run)

def test_a_fit_within_a_fit_is_refused_and_harms_no_other():
    run = runner()
    with pytest.raises(RuntimeError, match='within'):
        run.fit(1, cbs=Do(after_batch=lambda self: self.run.fit(1)))
    usable(run)
    other = runner()
    run.fit(1, cbs=Do(after_epoch=lambda self: other.fit(1)))
    assert other.epoch == 1

def test_the_optimizer_is_made_at_the_first_fit_before_before_fit():
    opts, made = [], []
    run = runner(opt_func=lambda groups, lr: made.append((groups, lr)) or torch.optim.SGD(groups, lr), lr=0.3)
    assert run.opt is None and not made
    run.fit(1, cbs=Do(before_fit=lambda self: opts.append(self.opt)))
    assert opts == [run.opt] and made[0][1] == 0.3
    assert isinstance(made[0][0], list) and [list(g) for g in made[0][0]][0][:1] == ['params']
    assert isinstance(runner().opt_func, type) and runner().opt_func is torch.optim.SGD

def test_the_optimizer_and_its_momentum_are_kept_between_fits():
    momentum = functools.partial(torch.optim.SGD, momentum=0.9)
    data = bunch()
    one, two = (runner(model=nn.Linear(3, 2), opt_func=momentum, data=data) for _ in range(2))
    two.model.load_state_dict(one.model.state_dict())
    one.fit(2)
    two.fit(1)
    opt = two.opt
    two.fit(1)
    assert two.opt is opt and opt.state
    for a, b in zip(one.model.parameters(), two.model.parameters()): assert torch.equal(a, b)

def test_the_optimizer_is_remade_when_opt_func_or_the_parameters_change_and_not_else():
    run = runner(opt_func=functools.partial(torch.optim.SGD, momentum=0.9))
    run.fit(1)
    first = run.opt
    run.model[0].requires_grad_(False)
    run.fit(1)
    assert run.opt is first
    frozen = run.model[0].weight.clone()
    run.model[0].requires_grad_(True)
    run.model[1] = nn.Dropout(0.1)
    run.fit(1)
    assert run.opt is first and not torch.equal(frozen, run.model[0].weight)
    run.model[2] = nn.Linear(4, 2)
    run.fit(1)
    second = run.opt
    assert (second is not first and {id(p) for p in run.model.parameters()}
            == {id(p) for g in second.param_groups for p in g['params']})
    run.opt_func = torch.optim.Adam
    run.fit(1)
    assert isinstance(run.opt, torch.optim.Adam)
    run.opt = None
    run.fit(1)
    assert isinstance(run.opt, torch.optim.Adam)

def test_another_model_is_trained_with_an_optimizer_of_its_own():
    run = runner()
    run.fit(1)
    run.model = net(1)
    usable(run)

def test_a_users_own_optimizer_is_respected():
    run = runner()
    mine = torch.optim.Adam(run.model.parameters())
    run.opt = mine
    run.fit(1)
    assert run.opt is mine
    run.opt_func = torch.optim.RMSprop
    run.fit(1)
    assert run.opt is mine
    other = runner()
    other.fit(1)
    mine = torch.optim.Adam(other.model[2].parameters())
    other.opt = mine
    first = other.model[0].weight.clone()
    other.fit(1)
    other.fit(1)
    assert other.opt is mine and torch.equal(first, other.model[0].weight)

def test_each_fit_sets_its_rate():
    lrs, run = [], runner(lr=0.5)
    see = Do(before_fit=lambda self: lrs.append(self.opt.param_groups[0]['lr']))
    run.add_cbs(see)
    run.fit(1)
    run.fit(1, lr=0.25)
    run.fit(1)
    run.fit(1, lr=0)
    run.lr = 0.125
    run.fit(1)
    assert lrs == [0.5, 0.25, 0.5, 0, 0.125]

def test_an_optimizer_that_cannot_be_made_leaves_the_runner_usable():
    def fails(groups, lr): raise Boom
    run, cb = runner(opt_func=fails), Trace()
    with pytest.raises(Boom): run.fit(1, cbs=cb)
    assert cb.run is None and cb.seen == []
    run.opt_func = torch.optim.SGD
    usable(run)

def test_counters_at_each_event():
    log = []
    class Log(Callback): order = -1000
    for e in EVENTS:
        setattr(Log, e,
                lambda self, e=e: log.append((e, self.epoch, self.epochs, self.n_iter, self.pct_fit,
                                              self.run.__dict__.get('iter'), self.run.__dict__.get('iters'))))
    run = runner(Log(), data=bunch(12, 8))   # 3 and 2 batches
    run.fit(1)
    assert run.epoch == 1 and run.n_iter == 3
    log.clear()
    run.fit(2)
    assert run.epoch == 3 and run.n_iter == 9 and run.pct_fit == 1
    at = lambda *events: [r for r in log if r[0] in events]
    assert {r[2] for r in log} == {2}
    assert [r[1] for r in at('before_fit', 'before_epoch', 'after_epoch', 'after_fit')] == [1, 1, 1, 2, 2, 3]
    in_train = [r for r in at('after_backward', 'before_step', 'after_step')]
    assert [r[3] for r in in_train] == [n for n in range(3, 9) for _ in range(3)]
    assert ([r[5] for r in in_train] == [i for i in (0, 1, 2)*2 for _ in range(3)]
            and {r[6] for r in in_train} == {3})
    for r in in_train: assert r[4] == pytest.approx((r[3] - 3)/6)
    batches = at('before_batch')
    assert [r[5] for r in batches] == [0, 1, 2, 0, 1]*2 and [r[6] for r in batches] == [3, 3, 3, 2, 2]*2
    assert ([r[5] for r in at('after_batch')] == [0, 1, 2, 0, 1]*2
            and [r[3] for r in at('after_batch')] == [4, 5, 6, 6, 6, 7, 8, 9, 9, 9])
    assert [r[5] for r in at('after_train')] == [3, 3] and [r[5] for r in at('after_validate')] == [2, 2]
    pct = [r[4] for r in log]
    assert pct == sorted(pct) and pct[0] == 0 and at('after_fit')[0][4] == 1 and at('before_fit')[0][4] == 0

def test_the_order_of_items_is_that_of_seed_and_epoch_and_goes_on_in_the_next_fit():
    def items(fits, seed, errors=False):
        seen = {}
        run = runner(Do(before_batch=lambda self: self.in_train
                        and seen.setdefault(self.epoch, []).extend(self.items)),
                     data=DataBunch(DataLoader(Dataset(*points(12)), 4, shuffle=True, seed=seed), None))
        for n in fits:
            if errors:
                with pytest.raises(Boom): run.fit(1, cbs=At({('after_loss', 2): Boom()}))
                seen.pop(run.epoch)
            run.fit(n)
        return seen
    a = items([4], 1)
    assert a == items([1, 2, 1], 1) == items([2, 2], 1, errors=True) != items([4], 2)
    assert len({tuple(v) for v in a.values()}) == 4 and all(sorted(v) == list(range(12)) for v in a.values())
    dl = DataLoader(Dataset(*points(12)), 4, shuffle=True, seed=1)
    for epoch in (3, 0):
        dl.set_epoch(epoch)
        assert [i for b in dl for i in b.items] == a[epoch]

def test_modes_in_training_and_validation_and_afterwards():
    run, seen = runner(), []
    run.model[0].eval()
    run.fit(1, cbs=Do(after_pred=lambda self: seen.append((self.in_train, self.model.training,
                                                           self.model[0].training, torch.is_grad_enabled()))))
    assert seen == [(True, True, True, True)]*2 + [(False, False, False, False)]
    assert [m.training for m in run.model.modules()] == [True, False, True, True]
    with torch.no_grad():
        run.fit(1)
        assert not torch.is_grad_enabled()

def test_a_fit_is_the_bare_loop():
    data, model = bunch(10), nn.Linear(3, 2)
    bare = copy.deepcopy(model)
    opt = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        for xb, yb in data.train_dl:
            F.cross_entropy(bare(xb), yb).backward()
            opt.step()
            opt.zero_grad()
    run = Runner(data, model, opt_func=functools.partial(torch.optim.SGD, momentum=0.9),
                 loss_func=F.cross_entropy, cbs=[AvgStats(accuracy), Recorder(), NanCheck()])
    run.fit(2, lr=0.1)
    for a, b in zip(model.parameters(), bare.parameters()): assert torch.equal(a, b)

def test_a_loss_or_opt_func_that_counts_as_false_is_used():
    class Empty:
        def __init__(self, f): self.f = f
        def __len__(self): return 0
        def __call__(self, *args, **kw): return self.f(*args, **kw)
    loss_func, opt_func = Empty(F.cross_entropy), Empty(torch.optim.Adam)
    run = runner(loss_func=loss_func, opt_func=opt_func)
    run.fit(1)
    assert run.loss_func is loss_func and run.opt_func is opt_func and isinstance(run.opt, torch.optim.Adam)

def test_the_default_loss_is_the_datas_else_cross_entropy():
    assert (isinstance(runner().loss_func, CrossEntropy)
            and runner(data=bunch(loss_func=F.mse_loss)).loss_func is F.mse_loss)
    assert runner(data=bunch(loss_func=F.mse_loss), loss_func=F.l1_loss).loss_func is F.l1_loss

# ---------------------------------------------------------------- replaced parts

def test_a_replaced_part_lasts_as_long_as_the_fit():
    calls = []
    class Twice(Callback):
        def before_fit(self): self.former, self.run.step = self.run.step, self.twice
        def twice(self):
            calls.append(self.iter)
            self.former()
            self.former()
    run = runner()
    run.fit(1, cbs=Twice())
    assert calls == [0, 1] and 'step' not in run.__dict__
    run.fit(1)
    assert calls == [0, 1]

def test_wrapped_parts_nest_by_order_and_every_part_can_be_replaced():
    calls, run = [], runner()
    class Wrap(Callback):
        def __init__(self, tag, order): self.tag, self.order = tag, order
        def before_fit(self):
            for part in PARTS:
                setattr(self.run, part, functools.partial(self.around, part, getattr(self.run, part)))
        def around(self, part, former):
            calls.append((part, self.tag))
            return former()
    run.fit(1, cbs=[Wrap('inner', 1), Wrap('outer', 2)])
    train = [(p, t) for p in PARTS for t in ('outer', 'inner')]
    assert calls == train*2 + train[:4]
    usable(run)

def test_get_pred_and_get_loss_return_what_the_loop_uses():
    run, _losses = runner(model=nn.Linear(3, 2)), []
    def before_fit(self):
        self.run.get_pred = lambda: self.model(self.xb*0)
        self.run.get_loss = lambda: F.cross_entropy(self.pred, self.yb)*0 + 3
    run.fit(1, cbs=[Do(before_fit=before_fit), rec := Recorder()])
    assert rec.losses == [3., 3.] and rec.valid_losses == [3.]

def test_a_part_that_was_replaced_before_the_fit_is_what_it_was_after_it():
    run, calls = runner(), []
    mine = run.step = lambda: calls.append('mine')
    class Own(Callback):
        def before_fit(self): self.run.step = lambda: calls.append('own')
    run.fit(1, cbs=Own())
    run.fit(1)
    assert run.step is mine and calls == ['own']*2 + ['mine']*2

# ---------------------------------------------------------------- nothing waits for the device

WAITING = ('item', 'cpu', 'tolist', 'numpy', '__bool__', '__float__', '__int__', '__index__', '__array__')

@pytest.fixture
def reads(monkeypatch):
    "Counts the calls by which a program waits for a tensor's value."
    count = collections.Counter()
    for name in WAITING:
        real = getattr(torch.Tensor, name)
        def counting(self, *args, _real=real, _name=name, **kw):
            count[_name] += 1
            return _real(self, *args, **kw)
        monkeypatch.setattr(torch.Tensor, name, counting)
    return count

def test_the_counter_of_reads_counts(reads):
    t = torch.tensor(1.)
    bool(t), float(t), int(t), t.item(), t.tolist(), t.cpu(), t.numpy(), [0, 1][t.long()]
    if t: pass
    assert all(reads[n] for n in WAITING[:8]) and reads['__bool__'] == 2

@pytest.mark.parametrize('loss_func', [F.cross_entropy, CrossEntropy(), CrossEntropy(ignore_index=7)])
@pytest.mark.parametrize('opt_func', [torch.optim.SGD, torch.optim.Adam])
def test_nothing_waits_in_a_batch_and_an_epoch_reads_once(reads, loss_func, opt_func):
    in_batch, in_epoch, n = [], [], collections.Counter()
    Watch = type('Watch', (Callback,), {})
    first, last = Watch(), Watch()
    first.order, last.order = -10000, 10000
    first.before_batch = lambda: n.update(batch=sum(reads.values()) - n['batch'])
    last.after_batch = lambda: in_batch.append(sum(reads.values()) - n['batch'])
    first.before_epoch = lambda: n.update(epoch=sum(reads.values()) - n['epoch'])
    last.after_epoch = lambda: in_epoch.append(sum(reads.values()) - n['epoch'])
    run = runner([first, AvgStats(accuracy), Recorder(), last], data=bunch(40), loss_func=loss_func,
                 opt_func=opt_func)
    run.fit(3)
    # Adam keeps its count of steps on the CPU and reads it there, once for each parameter
    torchs = 10*4 if opt_func is torch.optim.Adam else 0
    assert len(in_batch) == 33 and in_epoch == [4 + torchs]*3 and sum(in_batch) == 3*torchs
    reads.clear()
    n.clear()
    in_batch.clear()
    in_epoch.clear()
    assert len(run.recorder.losses) == 30 and sum(reads.values()) == 1   # here it may wait


@pytest.mark.parametrize('loss_func', [F.cross_entropy, CrossEntropy()])
def test_nothing_waits_with_a_scheduler_either(reads, loss_func):
    schedules = pytest.importorskip('exp.schedules')
    rec = Recorder()
    run = runner([AvgStats(accuracy), rec, schedules.ParamScheduler('lr', schedules.sched_cos(0.1, 0.5))],
                 data=bunch(40), loss_func=loss_func)
    reads.clear()
    run.fit(3)
    assert dict(reads) == {'__float__': 12}   # four an epoch, one for each number of a row
    assert rec.lrs == pytest.approx([0.3 - 0.2*math.cos(math.pi*n/30) for n in range(30)])
