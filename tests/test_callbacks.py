"""The training loop of lesson 07: events, cancels, faults, what is read and written where, averages, and what
waits for the device."""
import _thread, collections, contextlib, copy, functools, gc, math
import os, re, signal, threading, time, warnings, weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.data as tud
from hypothesis import HealthCheck, given, settings as hsettings, strategies as st
from torch import nn

import exp.faults as module
from exp.callbacks import (call_model, EVENTS, AvgStats, Callback, CancelBatchException, CancelEpochException,
                           CancelFitException, CancelStepException,
                           Recorder, Runner, TrainEvalCallback, smoothed)
from exp.core import test_close as close
from exp.faults import DelayedRead, NanCheck
from exp.dataloader import DataBunch, DataLoader, Dataset
from exp.losses import CrossEntropy, SquaredLoss
from exp.metrics import Metric, Rmse, accuracy

few = hsettings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
KINDS = {'step': CancelStepException, 'batch': CancelBatchException, 'epoch': CancelEpochException,
         'fit': CancelFitException}
PARTS = ('get_pred', 'get_loss', 'backward', 'step', 'zero_grad')


# ---------------------------------------------------------------- what the tests are made of

def points(n=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=g), torch.randint(2, (n,), generator=g)

def bunch(n=8, n_valid=4, bs=4, shuffle=False, **kw):
    valid = DataLoader(Dataset(*points(n_valid, 1)), 4) if n_valid else None
    return DataBunch(DataLoader(Dataset(*points(n)), bs, shuffle=shuffle), valid, **kw)

def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))

def runner(cbs=None, data=None, model=None, **kw):
    return Runner(bunch() if data is None else data, net() if model is None else model, cbs=cbs, **kw)

def events_calling(f, base=Callback, **attributes):
    "A class of callbacks whose every event method calls f(self, event)."
    methods = {e: functools.partialmethod(f, e) for e in EVENTS}
    return type('Each', (base,), {**methods, **attributes})

class Trace(Callback):
    "Writes down the events, with `order` before or after all others."
    def __init__(self, order=-1000): self.order, self.seen = order, []
for _e in EVENTS: setattr(Trace, _e, lambda self, _e=_e: self.seen.append(_e))

class At(Callback):
    "Raises errors as `plan` says: {(event, n): what to raise at the event's n-th time}."
    def __init__(self, plan, order=0):
        self.plan, self.order, self.times, self.on, self.raised = (plan, order, collections.Counter(), True,
                                                                   False)
    def here(self, event):
        if not self.on: return
        self.times[event] += 1
        what = self.plan.get((event, self.times[event]))
        if what is not None:
            self.raised = self.raised or what is Boom or isinstance(what, Boom)
            raise what
for _e in EVENTS: setattr(At, _e, lambda self, _e=_e: self.here(_e))

class Boom(Exception): pass

class Do(Callback):
    "Calls functions of itself at events: Do(after_loss=f, …)."
    def __init__(self, order=0, **funcs):
        self.order = order
        for event, f in funcs.items(): setattr(self, event, functools.partial(f, self))

# The order of events, and what a Cancel leaves of it, written as lists from DESIGN.md ("One loop").
TRAINED   = ['before_batch', 'after_pred', 'after_loss', 'before_backward', 'after_backward', 'before_step',
             'after_step', 'after_batch']
VALIDATED = ['before_batch', 'after_pred', 'after_loss', 'after_batch']

def full(epochs=1, train=2, valid=1):
    "The events of a fit with `train` and `valid` batches; valid None: no validation."
    validation = [] if valid is None else ['before_validate', *VALIDATED*valid, 'after_validate']
    return ['before_fit', *['before_epoch', 'before_train', *TRAINED*train, 'after_train', *validation,
                            'after_epoch']*epochs, 'after_fit']

BATCH_PLACES = {*TRAINED[:-1], 'after_cancel_step'}
EPOCH_PLACES = {*BATCH_PLACES, 'before_epoch', 'before_train', 'after_cancel_batch', 'after_batch',
                'after_train', 'before_validate', 'after_validate'}
PLACES = {'step': {'after_backward', 'before_step'}, 'batch': BATCH_PLACES, 'epoch': EPOCH_PLACES,
          'fit': {*EPOCH_PLACES, 'before_fit', 'after_cancel_epoch', 'after_epoch'}}

def is_open(what, trace): return trace.count(f'before_{what}') > trace.count(f'after_{what}')

def cancelled(trace, rest, kind):
    "What follows once `trace` has happened, if its last event cancels, where otherwise `rest` would follow."
    if kind == 'step':  return ['after_cancel_step', *rest[rest.index('after_batch'):]]
    if kind == 'batch': return ['after_cancel_batch', *rest[rest.index('after_batch'):]]
    batch = ['after_batch']*is_open('batch', trace)
    if kind == 'epoch': return [*batch, 'after_cancel_epoch', *rest[rest.index('after_epoch'):]]
    return [*batch, *['after_epoch']*is_open('epoch', trace), 'after_cancel_fit', 'after_fit']

def played(events, plan):
    """The events that happen, and whether an error comes, if cancels are raised as `plan` says: {(event, n):
    kind}."""
    trace, rest, times, pending, error = [], list(events), collections.Counter(), None, False
    while rest:
        event, rest = rest[0], rest[1:]
        if pending and event == f'after_cancel_{pending}': pending = None
        trace.append(event)
        times[event] += 1
        kind = plan.get((event, times[event]))
        if kind is None or error: continue
        if event not in PLACES[kind]:   # an error: only what always runs still comes
            error, rest = True, [f'after_{what}'
                                 for what in ('batch', 'epoch', 'fit') if is_open(what, trace)]
        elif pending is None:   # the first one counts
            rest, pending = cancelled(trace, rest, kind), kind
    return trace, error

def usable(run, cbs=1):
    "Is the runner as it was: no callbacks but the first ones, no parts, no gradients, and does it train?"
    assert len(run.cbs) == cbs and all(cb.run is run for cb in run.cbs)
    assert not run.fitting and not set(PARTS) & set(run.__dict__) and torch.is_grad_enabled()
    assert all(p.grad is None for p in run.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in run.model.modules())
    trace, epoch, before = Trace(), run.epoch, copy.deepcopy(run.model.state_dict())
    run.fit(1, cbs=trace)
    assert trace.seen == full(1) and run.epoch == epoch + 1
    assert not all(torch.equal(a, b) for a, b in zip(before.values(), run.model.state_dict().values()))


# ---------------------------------------------------------------- order of events and callbacks

def test_the_events_are_those_of_the_design():
    named = {f'{w}_{s}' for w in ('before', 'after')
             for s in ('fit', 'epoch', 'train', 'validate', 'batch', 'backward', 'step')}
    assert (set(EVENTS) == {*named, 'after_pred', 'after_loss', *(f'after_cancel_{k}' for k in KINDS)}
            and len(set(EVENTS)) == len(EVENTS))

@pytest.mark.parametrize('epochs, n, n_valid', [(1, 8, 4), (2, 9, 8), (3, 3, 5), (0, 8, 4), (2, 8, 0)])
def test_events_come_in_the_designs_order(epochs, n, n_valid):
    first, last = Trace(), Trace(1000)
    run = runner([first], bunch(n, n_valid))
    run.fit(epochs, cbs=last)
    assert first.seen == last.seen == full(epochs, -(-n//4), -(-n_valid//4) if n_valid else None)

def test_callbacks_run_by_order_and_those_of_one_order_as_they_were_added():
    calls = []
    Each = events_calling(lambda self, event: calls.append((event, self.number)))
    def make(number, order):
        cb = Each()
        cb.number, cb.order = number, order
        return cb
    run = runner([make(1, 0), make(2, -5), make(3, 0), make(4, 7)])
    run.add_cbs([make(5, 0), make(6, -200)])
    run.fit(1, cbs=[make(7, 0), make(8, -5)])
    for event in set(full(1)):
        assert [n for e, n in calls if e == event][:8] == [6, 2, 8, 1, 3, 5, 7, 4], event
    calls.clear()
    run.fit(1)
    assert [n for e, n in calls if e == 'before_fit'] == [6, 2, 1, 3, 5, 4]

@pytest.mark.parametrize('name, meant', [('before_btach', 'before_batch'), ('after_bacth', 'after_batch'),
    ('after_steps', 'after_step'),
    ('before_loss', 'before_'), ('after_Fit', 'after_fit'), ('before_cancel_fit', 'after_cancel_fit'),
    ('after_validation', 'after_validate'),
    ('before_pred', 'before_'), ('after_cancel_train', 'after_cancel_')])
def test_a_misspelt_event_raises_when_it_is_added_and_names_the_nearest(name, meant):
    cb = type('Wrong', (Callback,), {name: lambda self: None})()
    for add in (lambda: runner(cb), lambda: runner().add_cbs(cb), lambda: runner().fit(1, cbs=cb)):
        with pytest.raises(AttributeError, match=f'Wrong.{name} .*did you mean .{meant}'): add()
    assert cb.run is None
    run = runner()
    with pytest.raises(AttributeError): run.fit(1, cbs=[Trace(), cb])
    usable(run)

def test_attributes_that_cannot_be_called_may_have_any_name():
    cb = type('Fine', (Callback,),
              {'after_x': 3, 'before_all': 'text', 'helper': lambda self: 1, 'batch_size': lambda self: 2})()
    cb.after_effects = [1]
    run = runner(cb)
    run.fit(1)
    assert cb.after_effects == [1]

def test_an_event_that_is_set_on_the_instance_counts():
    seen, cb = [], Callback()
    cb.after_batch = lambda: seen.append(1)
    runner(cb).fit(1)
    assert len(seen) == 3


# ---------------------------------------------------------------- adding, removing, reading, writing

def test_what_is_no_callback_is_refused_and_nothing_of_the_lot_is_added():
    run, good = runner(), Trace()
    taken = Trace()
    runner(taken)
    for bad, error, match in [(Trace, TypeError, 'instance'), (print, TypeError, 'instance'),
                              ('Trace', TypeError, 'Trace'),
                              (taken, ValueError, 'already')]:
        for add in (run.add_cbs, lambda cbs: run.fit(1, cbs=cbs)):
            with pytest.raises(error, match=match): add([good, bad])
            assert good.run is None
    run.add_cbs(good)
    for add in (run.add_cbs, lambda cbs: run.fit(1, cbs=cbs)):
        with pytest.raises(ValueError, match='already'): add(good)
    with pytest.raises(ValueError, match='already'): runner(good)
    run.remove_cbs(good)
    assert good.run is None
    with pytest.raises(ValueError): run.remove_cbs(good)
    usable(run)
    runner(good).fit(1)

def test_a_callback_whose_adding_fails_can_be_added_once_it_is_mended():
    run, cb = runner(), Trace()
    cb.order = 'first'
    with pytest.raises(TypeError): run.add_cbs(cb)
    assert cb.run is None
    cb.order = 1
    run.add_cbs(cb)
    run.fit(1)
    assert cb.seen == full(1)

@pytest.mark.parametrize('make', [list, tuple, iter, lambda cbs: (cb for cb in cbs)])
def test_callbacks_may_come_in_any_iterable(make):
    cbs = [Trace(), AvgStats(), Trace()]
    run = runner(make(cbs))
    assert len(run.cbs) == 4 and all(cb.run is run for cb in cbs)
    more = [Trace()]
    run.fit(1, cbs=make(more))
    assert more[0].seen == cbs[0].seen == full(1)

def test_one_train_eval_callback_is_there_and_an_own_one_takes_its_place():
    assert [type(cb) for cb in runner().cbs] == [TrainEvalCallback]
    class Own(TrainEvalCallback): pass
    for make in (list, tuple, iter): assert [type(cb) for cb in runner(make([Own()])).cbs] == [Own]

def test_a_callback_reads_through_and_writes_only_through_run():
    class Reads(Callback):
        def before_fit(self):
            assert (self.run is not None and self.model is self.run.model and self.opt is self.run.opt
                    and self.avg_stats is stats)
        def after_loss(self):
            assert (self.loss is self.run.loss and self.loss_grad is self.run.loss_grad
                    and not self.loss.requires_grad)
            self.run.loss_grad = self.loss_grad*0   # the runner differentiates what it has then
        def after_backward(self): assert all((p.grad == 0).all() for p in self.model.parameters())
    stats = AvgStats()
    run = runner([Reads(), stats])
    run.fit(1)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"): run.cbs[1].nonsense
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"): run.nonsense
    with pytest.raises(AttributeError, match="'pred'.*(begun|fit)"): runner().pred
    with pytest.raises(AttributeError, match="'loss'.*no runner"): Callback().loss

@pytest.mark.parametrize('name', ['model', 'data', 'opt', 'loss_func', 'xb', 'yb', 'items', 'pred', 'loss',
                                  'loss_grad', 'epoch', 'epochs',
                                  'iter', 'iters', 'n_iter', 'pct_fit', 'in_train', 'dl', *PARTS])
def test_assigning_a_name_of_the_runners_on_a_callback_raises(name):
    "A forgotten `.run` in `self.run.step = …` must not pass in silence either."
    cb = Callback()
    with pytest.raises(AttributeError, match=f'self.run.{name}'): setattr(cb, name, 1)
    run = runner(Do(before_fit=lambda self: setattr(self, name, 1)))
    with pytest.raises(AttributeError, match=f'self.run.{name}'): run.fit(1)

def test_callbacks_are_found_by_their_names():
    run = runner([AvgStats(), Recorder()])
    assert (isinstance(run.avg_stats, AvgStats) and isinstance(run.recorder, Recorder)
            and isinstance(run.train_eval, TrainEvalCallback))

def test_callbacks_added_in_a_fit_leave_with_it_and_start_at_the_next_event():
    late = Trace()
    run = runner(Do(after_pred=lambda self: late.run is None and not late.seen and self.run.add_cbs(late)))
    run.fit(1)
    assert late.run is None and late not in run.cbs and late.seen == full(1)[full(1).index('after_pred') + 1:]

@pytest.mark.parametrize('what', [lambda: AvgStats(accuracy), Recorder, NanCheck])
def test_the_own_callbacks_can_be_added_in_the_middle_of_a_fit(what):
    late = what()
    runner(Do(after_pred=lambda self: late.run is None and self.epoch == 0 and self.iter == 1
              and self.run.add_cbs(late))).fit(2)

def test_a_callback_that_removes_itself_in_a_fit_is_there_as_before_afterwards():
    seen = []
    class Once(Callback):
        def before_batch(self):
            seen.append(self.iter)
            self.run.remove_cbs(self)
    run = runner([once := Once()])
    run.fit(1)
    assert seen == [0]
    assert (once in run.cbs) == (once.run is run)
    run.fit(1)

def test_a_callback_that_another_removes_during_an_event_does_no_harm():
    victim = Do(order=1, before_batch=lambda self: self.model)
    run = runner(Do(before_batch=lambda self: victim in self.cbs and self.run.remove_cbs(victim)))
    run.fit(1, cbs=victim)
    assert victim.run is None


# ---------------------------------------------------------------- an error in any event

CANCEL_FIRST = {'after_cancel_step': ('before_step', 1, 'step'),
                'after_cancel_batch': ('after_pred', 1, 'batch'),
                'after_cancel_epoch': ('after_batch', 1, 'epoch'),
                'after_cancel_fit': ('after_epoch', 1, 'fit')}
IN_BATCH = {*TRAINED, 'after_cancel_step', 'after_cancel_batch'}

class Hooked(Callback):
    "Hooks on the model and replaced parts, as a good callback has them."
    order = -500
    def before_fit(self):
        self.hooks = [m.register_forward_hook(lambda *_: None) for m in self.model.modules()]
        for part in PARTS: setattr(self.run, part, getattr(self.run, part))
    def after_fit(self):
        for h in self.hooks: h.remove()

@pytest.mark.parametrize('given_to', ['runner', 'fit'])
@pytest.mark.parametrize('event', EVENTS)
@pytest.mark.parametrize('second', [None, 'after_batch', 'after_epoch', 'after_fit'])
def test_an_error_in_any_event_leaves_a_usable_runner(event, given_to, second):
    plan = {(event, 1): Boom('here')}
    if event in CANCEL_FIRST:
        e, n, kind = CANCEL_FIRST[event]
        plan[e, n] = KINDS[kind]()
    bad, head, tail = At(plan), Trace(), Trace(1000)
    def after_it(self):
        if bad.raised and not self.done:
            self.done = True
            raise KeyError('another')
    other = Do(order=5, **({} if second is None else {second: after_it}))
    other.done = False
    mine, fits = (([bad], [head, tail, other, Hooked()]) if given_to == 'runner'
                  else ([], [head, tail, other, bad, Hooked()]))
    run = runner(mine)
    run.model.eval()
    run.model[1].train()
    with pytest.raises((Boom, KeyError)) as caught: run.fit(2, cbs=fits)
    chain = [caught.value]   # the last error, and those that it came after
    while chain[-1].__context__ is not None: chain.append(chain[-1].__context__)
    # none is lost
    assert (sum(isinstance(e, Boom) for e in chain) == 1
            and sum(isinstance(e, KeyError) for e in chain) == other.done)
    if event in IN_BATCH:
        assert any('batch 0 of 2' in n for e in chain for n in getattr(e, '__notes__', ())), chain
    if second == 'after_fit': assert other.done
    for what in ('batch', 'epoch', 'fit'):
        began, always = head.seen.count(f'before_{what}'), f'after_{what}'
        assert head.seen.count(always) == tail.seen.count(always) == began, always
    assert head.seen[-1] == tail.seen[-1] == 'after_fit'
    assert all(cb.run is None for cb in fits)
    assert [m.training for m in run.model.modules()] == [False, False, True, False]
    bad.on, other.done = False, True
    usable(run, cbs=1 + len(mine))
    assert [m.training for m in run.model.modules()] == [False, False, True, False]

def test_an_error_in_a_later_epoch_and_in_validation_is_placed_there():
    run = runner()
    run.fit(1)
    # 3 an epoch: the second of epoch 3's two
    with pytest.raises(Boom) as caught: run.fit(3, cbs=At({('after_loss', 8): Boom()}))
    assert caught.value.__notes__ == ['This was batch 1 of 2 in training, epoch 3.']
    assert run.epoch == 3
    with pytest.raises(Boom) as caught: run.fit(3, cbs=At({('after_loss', 3): Boom()}))
    assert caught.value.__notes__ == ['This was batch 0 of 1 in validation, epoch 3.']

@pytest.mark.parametrize('where', ['model', 'loss', 'loader', 'opt', *PARTS])
def test_an_error_that_comes_from_no_callback_names_the_batch(where):
    def fail(*_, **__): raise Boom(where)
    run, fits = runner(), [Trace()]
    run.fit(1)
    if where == 'model': h = run.model[2].register_forward_hook(fail)
    elif where == 'loss': run.loss_func, kept = fail, run.loss_func
    elif where == 'opt': kept, run.opt.step = run.opt.step, fail
    elif where == 'loader':
        kept = run.data
        run.data = DataBunch(_Breaks(), kept.valid_dl)
    else: fits.append(Do(before_fit=lambda self: setattr(self.run, where, fail)))
    with pytest.raises(Boom) as caught: run.fit(1, cbs=fits)
    if where != 'loader': assert caught.value.__notes__ == ['This was batch 0 of 2 in training, epoch 1.']
    assert fits[0].seen[-2:] == ['after_epoch', 'after_fit'] and ('after_batch' in fits[0].seen)
    if where == 'model': h.remove()
    elif where == 'loss': run.loss_func = kept
    elif where == 'opt': run.opt.step = kept
    elif where == 'loader': run.data = kept
    usable(run)

class _Breaks:
    def __len__(self): return 2
    def __iter__(self):
        yield points(4)
        raise Boom('loader')

def test_a_failing_zero_grad_of_the_optimizer_does_not_lock_the_runner():
    run = runner()
    run.fit(1)
    def fail(): raise Boom
    run.opt.zero_grad = fail
    for _ in range(2):
        with pytest.raises(Boom): run.fit(1)   # not: fit was called within a fit
    del run.opt.zero_grad
    run.opt.zero_grad()
    usable(run)

def test_over_says_whether_the_epoch_came_to_its_end():
    for event, ends in [(None, True), ('before_epoch', False), ('before_train', False), ('after_loss', False),
                        ('after_train', False),
                        ('before_validate', False), ('after_validate', False)]:
        for error in (Boom(), CancelFitException()):
            overs, run = [], runner()
            with contextlib.suppress(Boom):
                run.fit(1, cbs=[At({(event, 1): error}),
                                Do(after_epoch=lambda self: overs.append(self.over))])
            assert overs == (['epoch'] if ends else [None]) and run.epoch == ends, (event, overs)

def test_a_broken_off_epoch_is_not_counted_and_a_cancelled_one_is():
    run = runner()
    with pytest.raises(Boom): run.fit(2, cbs=At({('after_validate', 1): Boom()}))
    assert run.epoch == 0
    run.fit(2, cbs=At({('after_loss', 1): CancelEpochException()}))
    assert run.epoch == 2
    run.fit(2, cbs=At({('after_loss', 1): CancelFitException()}))
    assert run.epoch == 2
    run.fit(2, cbs=At({('after_epoch', 1): CancelFitException()}))
    assert run.epoch == 3


# ---------------------------------------------------------------- Ctrl-C

def test_ctrl_c_in_the_models_forward_is_cleaned_up_after():
    run, tail = runner(), Trace(1000)
    def stop(*_): raise KeyboardInterrupt
    h = run.model[0].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt): run.fit(2, cbs=[tail, Hooked()])
    assert (tail.seen == ['before_fit', 'before_epoch', 'before_train', 'before_batch', 'after_batch',
                          'after_epoch', 'after_fit'])
    h.remove()
    usable(run)

@pytest.mark.parametrize('how', ['interrupt_main', pytest.param(
    'kill', marks=pytest.mark.skipif(os.name == 'nt', reason='no SIGINT to oneself'))])
def test_a_real_ctrl_c_inside_a_batch_is_cleaned_up_after(how):
    if threading.current_thread() is not threading.main_thread(): pytest.skip('signals need the main thread')
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    def interrupt(self):
        if self.n_iter != 3: return
        _thread.interrupt_main() if how == 'interrupt_main' else os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100): time.sleep(0.01)   # the signal arrives here
    run, tail = runner(), Trace(1000)
    try:
        with pytest.raises(KeyboardInterrupt): run.fit(50, cbs=[Do(after_pred=interrupt), tail, Hooked()])
    finally: signal.signal(signal.SIGINT, former)
    assert tail.seen[-3:] == ['after_batch', 'after_epoch', 'after_fit'] and run.epoch == 1
    usable(run)

@pytest.mark.parametrize('event', ['after_batch', 'after_epoch', 'after_fit'])
@pytest.mark.parametrize('stop', [KeyboardInterrupt, SystemExit])
def test_ctrl_c_while_an_error_is_cleaned_up_after_is_not_lost(event, stop):
    "It weighs more than the error: code that catches the error must not go on."
    run = runner()
    with pytest.raises(stop):
        run.fit(1, cbs=[At({('after_loss', 1): Boom()}), At({(event, 1): stop()}, order=1)])
    usable(run)


# ---------------------------------------------------------------- cancels

def counted(event, epochs=2): return full(epochs).count(event)
IN_PLACE = [(e, n, k) for k in KINDS for e in EVENTS if e in PLACES[k] and counted(e)
            for n in (1, counted(e))]

@pytest.mark.parametrize('event, n, kind', IN_PLACE)
def test_a_cancel_in_its_place_ends_what_it_names(event, n, kind):
    head, tail, run = Trace(), Trace(1000), runner()
    run.fit(2, cbs=[At({(event, n): KINDS[kind]()}), head, tail])
    want, error = played(full(2), {(event, n): kind})
    assert head.seen == want and not error
    # a callback after the one that raises misses that event, unless it is one that always runs
    cut = want[:]
    if event not in ('after_batch', 'after_epoch'):
        cut.pop([i for i, e in enumerate(want) if e == event][n - 1])
    assert tail.seen == cut
    usable(run)

def test_what_runs_after_a_cancel_spelt_out():
    "The same for four cases without the help of `played`."
    def seen(event, n, error):
        t = Trace()
        runner().fit(1, cbs=[t, At({(event, n): error})])
        return t.seen
    start, end = ['before_fit', 'before_epoch',
                  'before_train'], ['after_train', 'before_validate', *VALIDATED, 'after_validate',
                                    'after_epoch', 'after_fit']
    assert (seen('after_backward', 1, CancelStepException()) == [*start, *TRAINED[:5], 'after_cancel_step',
                                                                 'after_batch', *TRAINED, *end])
    assert (seen('after_pred', 2, CancelBatchException()) == [*start, *TRAINED, 'before_batch', 'after_pred',
                                                              'after_cancel_batch', 'after_batch', *end])
    assert (seen('after_loss', 1, CancelEpochException())
            == [*start, *TRAINED[:3], 'after_batch', 'after_cancel_epoch', 'after_epoch', 'after_fit'])
    assert (seen('after_loss', 3, CancelFitException()) == [*start, *TRAINED*2, *end[:2], *VALIDATED,
                                                            'after_epoch', 'after_cancel_fit', 'after_fit'])

@pytest.mark.parametrize('first', CANCEL_FIRST)
@pytest.mark.parametrize('kind', KINDS)
def test_a_cancel_in_the_event_that_follows_a_cancel(first, kind):
    event, n, before = CANCEL_FIRST[first]
    plan = {(event, n): before, (first, 1): kind}
    want, error = played(full(2), plan)
    assert error == (first not in PLACES[kind])
    trace, run = Trace(), runner()
    with pytest.raises(RuntimeError) if error else contextlib.nullcontext():
        run.fit(2, cbs=[trace, At({k: KINDS[v]() for k, v in plan.items()})])
    assert trace.seen == want
    usable(run)

OUT_OF_PLACE = [(e, k) for k in KINDS for e in EVENTS if e not in PLACES[k] and counted(e)]

@pytest.mark.parametrize('event, kind', OUT_OF_PLACE)
def test_a_cancel_out_of_its_place_is_an_error_that_says_where_it_may_come_from(event, kind):
    trace, tail, run = Trace(), Trace(1000), runner()
    with pytest.raises(RuntimeError) as caught: run.fit(2, cbs=[trace, At({(event, 1): KINDS[kind]()}), tail])
    message = str(caught.value)
    assert (KINDS[kind].__name__ in message and f'At.{event}' in message
            and isinstance(caught.value.__cause__, KINDS[kind]))
    named = set(re.findall(r'\w+_\w+', message.split('may come from')[-1]))
    assert named == PLACES[kind] == set(KINDS[kind].places)
    assert trace.seen == played(full(2), {(event, 1): kind})[0] and tail.seen[-1] == 'after_fit'
    usable(run)

def test_the_cancels_have_no_common_place_with_other_errors():
    """`except Exception` in a model must be able to let them pass, so they are Exceptions, but of no other
    kind, and not of each other."""
    for a in KINDS.values():
        assert not any(issubclass(a, b) for b in KINDS.values() if b is not a)
        assert not issubclass(a, (RuntimeError, ValueError, LookupError, OSError, StopIteration))

@pytest.mark.parametrize('where', ['model', 'loss', 'get_pred', 'get_loss', 'backward', 'step', 'zero_grad'])
def test_a_step_cancelled_by_what_is_no_event_is_an_error(where):
    def cancel(*_, **__): raise CancelStepException
    trace, run = Trace(), runner()
    kept = run.loss_func
    if where == 'model': h = run.model[0].register_forward_hook(cancel)
    if where == 'loss': run.loss_func = cancel
    with pytest.raises(CancelStepException):
        run.fit(1,
                cbs=[trace] + [Do(before_fit=lambda self: setattr(self.run, where, cancel))]*(where in PARTS))
    assert (trace.seen[-3:] == ['after_batch', 'after_epoch', 'after_fit']
            and 'after_cancel_step' not in trace.seen)
    if where == 'model': h.remove()
    run.loss_func = kept
    usable(run)

@pytest.mark.parametrize('kind', ['batch', 'epoch', 'fit'])
@pytest.mark.parametrize('where', ['model', 'loss', 'step'])
def test_a_wider_cancel_from_the_model_loss_or_a_part_inside_its_place_works(where, kind):
    times = []
    def cancel(*_):
        times.append(1)
        if len(times) == 1: raise KINDS[kind]
    run, trace = runner(), Trace()
    if where == 'model': h = run.model[0].register_forward_hook(cancel)
    if where == 'loss': run.loss_func = lambda p, y: cancel() or F.cross_entropy(p, y)
    run.fit(1,
            cbs=[trace] + [Do(before_fit=lambda self: setattr(self.run, 'step', cancel))]*(where == 'step'))
    last = {'model': 'before_batch', 'loss': 'after_pred', 'step': 'before_step'}[where]
    assert trace.seen == played(full(1), {(last, 1): kind})[0]
    if where == 'model': h.remove()
    usable(run)

@pytest.mark.parametrize('kind', KINDS)
def test_a_cancel_from_the_optimizers_making_is_an_error_too(kind):
    def opt_func(groups, lr): raise KINDS[kind]
    run = runner(opt_func=opt_func)
    with pytest.raises((RuntimeError, KINDS[kind])): run.fit(1)
    run.opt_func = torch.optim.SGD
    usable(run)

def test_accumulated_gradients_are_the_larger_batchs():
    grads = {}
    class Accumulate(Callback):
        def __init__(self, k): self.k = k
        def after_loss(self): self.run.loss_grad = self.loss_grad/self.k
        def after_backward(self):
            if (self.iter + 1) % self.k: raise CancelStepException
    def take(key):
        return Do(order=1, before_step=lambda self: grads.setdefault(key, []).append(
            [p.grad.clone() for p in self.model.parameters()]))
    model = nn.Linear(3, 2)
    for bs, k in [(12, 1), (4, 3), (2, 6)]:
        m = copy.deepcopy(model)
        Runner(bunch(24, 0, bs), m, lr=0.5).fit(1, cbs=[Accumulate(k), take(k)])
        grads[k].append([p.detach().clone() for p in m.parameters()])
    for k in (3, 6):
        assert len(grads[k]) == len(grads[1]) == 3   # two steps, and the weights after them
        for a, b in zip(grads[k], grads[1]):
            for p, q in zip(a, b): close(p, q, 1e-6)

def test_gradients_that_no_step_used_do_not_reach_the_next_fit():
    run = runner(model=nn.Linear(3, 2))
    run.fit(1, cbs=Do(after_backward=lambda self: (_ for _ in ()).throw(CancelStepException())))
    usable(run)

@pytest.mark.slow
@few
@given(st.dictionaries(st.tuples(st.sampled_from(EVENTS), st.integers(1, 5)), st.sampled_from(list(KINDS)),
                       max_size=5), st.booleans())
def test_any_cancels_at_any_events_play_as_designed_and_leave_a_usable_runner(plan, in_fit):
    bad, trace = At({k: KINDS[v]() for k, v in plan.items()}), Trace()
    run = runner([] if in_fit else [bad])
    want, error = played(full(2), plan)
    with pytest.raises(RuntimeError, match='came from At') if error else contextlib.nullcontext():
        run.fit(2, cbs=[trace, bad] if in_fit else trace)
    assert trace.seen == want
    bad.on = False
    usable(run, cbs=1 if in_fit else 2)


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
    with pytest.raises(ValueError, match='no targets') as caught: run.fit(1)
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
    with pytest.raises(TypeError, match=r'pair \(xb, yb\)'): run.fit(1)

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


# ---------------------------------------------------------------- averages and metrics

@pytest.mark.parametrize('n, n_valid', [(10, 7), (9, 5), (8, 8), (3, 1)])
@pytest.mark.parametrize('loss_func', [F.cross_entropy, CrossEntropy(), nn.CrossEntropyLoss()])
def test_averages_over_uneven_batches_are_the_means_over_the_set(n, n_valid, loss_func):
    model = nn.Linear(3, 2).double()
    x, y, xv, yv = *points(n), *points(n_valid, 1)
    x, xv = x.double(), xv.double()
    stats, rec = AvgStats(accuracy), Recorder()
    run = Runner((DataLoader(Dataset(x, y), 4), DataLoader(Dataset(xv, yv), 4)), model, loss_func=loss_func,
                 lr=0., cbs=[stats, rec])
    run.fit(1)
    row = stats.history[0]
    for which, a, b in (('train', x, y), ('valid', xv, yv)):
        close(row[f'{which}_loss'], F.cross_entropy(model(a), b), 1e-6)
        close(row[f'{which}_accuracy'], (model(a).argmax(1) == b).double().mean(), 1e-6)
    close(rec.valid_losses[0], F.cross_entropy(model(xv), yv), 1e-6)
    close(rec.losses, [F.cross_entropy(model(a), b).item() for a, b in zip(x.split(4), y.split(4))], 1e-6)

def test_a_losss_own_count_weighs_the_averages():
    x, y = torch.randn(6, 2, 5), torch.tensor([[1, 0, 9, 9, 9], [9]*5, [1]*5, [0, 9, 1, 9, 1],
                                               [9, 9, 9, 9, 0], [1, 1, 0, 0, 9]])
    for loss in (CrossEntropy(ignore_index=9),
                 type('Counts', (), {'__call__': lambda s, p, t: F.cross_entropy(p, t, ignore_index=9),
                                     'count': lambda s, t: int((t != 9).sum())})()):
        stats, rec = AvgStats(), Recorder()
        run = Runner((DataLoader(Dataset(x, y), 4),)*2, nn.Conv1d(2, 2, 1), loss_func=loss, lr=0.,
                     cbs=[stats, rec])
        run.fit(1)
        want = F.cross_entropy(run.model(x), y, ignore_index=9)
        for got in (stats.history[0]['train_loss'], stats.history[0]['valid_loss'], rec.valid_losses[0]):
            close(got, want.double(), 1e-6)

class Count(Metric):
    def __init__(self):
        super().__init__()
        self.add_state('n', 0, 'sum')
    def update(self, pred, yb):
        assert not pred.requires_grad
        self.add(n=len(yb))
    def compute(self): return self.n

class Bare:
    "A metric of no class of ours, which answers a plain number."
    def reset(self): self.largest = -1.
    def update(self, pred, yb): self.largest = max(self.largest, float(len(yb)))
    def compute(self): return self.largest

def test_metrics_may_be_objects_functions_and_partials():
    x = torch.randn(10, 3)
    y = x.sum(1, keepdim=True)
    def mean_error(pred, yb, power=1): return ((pred - yb).abs()**power).mean()
    class Other(Rmse): name = 'other'
    pattern = Rmse()
    stats = AvgStats(mean_error, pattern, Other(), Count(), Bare())
    run = Runner((DataLoader(Dataset(x, y), 4),)*2, nn.Linear(3, 1), loss_func=SquaredLoss(), lr=0.,
                 cbs=stats)
    run.fit(2)
    row, pred = stats.history[1], run.model(x)
    for which in ('train', 'valid'):
        close(row[f'{which}_mean_error'], (pred - y).abs().mean().double(), 1e-6)
        close(row[f'{which}_rmse'], (pred - y).square().mean().sqrt().double(), 1e-6)
        close(row[f'{which}_other'], row[f'{which}_rmse'])
        assert row[f'{which}_count'] == 10 and row[f'{which}_bare'] == 4.
    assert pattern.n == 0   # the object that was given is copied
    stats = AvgStats(functools.partial(mean_error, power=3))
    Runner((DataLoader(Dataset(x, y), 4),)*2, run.model, loss_func=F.mse_loss, lr=0., cbs=stats).fit(1)
    close(stats.history[0]['valid_mean_error'], ((pred - y).abs()**3).mean().double(), 1e-6)

def test_two_metrics_of_one_name_and_what_is_no_metric_are_refused():
    for two in [(accuracy, accuracy), (Rmse(), Rmse()), (accuracy, functools.partial(accuracy)),
                (lambda p, y: 0, lambda p, y: 1)]:
        with pytest.raises(ValueError, match='two metrics are named'): AvgStats(*two)
    def loss(pred, yb): return 0.
    with pytest.raises(ValueError, match="'loss'"): AvgStats(loss)
    for bad in (Rmse, 'accuracy', 3, None):
        with pytest.raises(TypeError): AvgStats(bad)

def test_a_metric_that_needs_other_shapes_says_so_and_names_the_callback():
    x, y = points()
    run = Runner((DataLoader(Dataset(x, y[:, None].float()), 4), None), nn.Linear(3, 1), loss_func=F.mse_loss,
                 cbs=AvgStats(accuracy))
    with pytest.raises(ValueError, match='accuracy: ') as caught: run.fit(1)
    assert 'batch 0 of 2' in caught.value.__notes__[0]

def test_metrics_start_anew_in_each_epoch_and_serve_one_runner():
    stats = AvgStats(Count())
    run = runner(stats)
    run.fit(3)
    assert ([(r['epoch'], r['train_count'], r['valid_count'])
             for r in stats.history] == [(0, 8, 4), (1, 8, 4), (2, 8, 4)])
    with pytest.raises(ValueError, match='already'): runner(stats)

def test_history_has_a_row_for_each_epoch_of_the_last_fit_and_none_for_a_broken_one():
    stats = AvgStats(accuracy)
    run = runner(stats)
    run.fit(2)
    assert (list(stats.history[0]) == ['epoch', 'train_loss', 'train_accuracy', 'valid_loss',
                                       'valid_accuracy', 'seconds'])
    assert stats.history.column('epoch') == [0, 1] and 'valid_accuracy' in stats.history._repr_markdown_()
    assert all(type(v) in (int, float) for row in stats.history for v in row.values())
    with pytest.raises(Boom): run.fit(2, cbs=At({('after_loss', 5): Boom()}))
    assert stats.history.column('epoch') == [2]
    state = stats.state_dict()
    torch.save(state, '/dev/null') if os.name == 'posix' else None
    other = AvgStats(accuracy)
    other.load_state_dict(copy.deepcopy(state))
    assert (other.history == stats.history and type(other.history) is type(stats.history)
            and other.history[0] is not state['history'][0])

@pytest.mark.parametrize('nth', [1, 2])
def test_an_epoch_cancelled_before_it_began_makes_no_row_and_no_error(nth):
    """Its `before_epoch` never reached AvgStats, so that there is nothing to average, and certainly not the
    epoch before's numbers."""
    stats = AvgStats(accuracy)
    run = runner([stats, At({('before_epoch', nth): CancelEpochException()})])
    run.fit(3)
    rows = {r['epoch']: r for r in stats.history}
    assert {0, 1, 2} - {nth - 1} <= set(rows)
    assert nth - 1 not in rows or math.isnan(rows[nth - 1]['train_loss'])


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
    with pytest.raises(RuntimeError, match='within a fit'):
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


# ---------------------------------------------------------------- Recorder

def test_the_recorder_keeps_losses_rates_and_validation_losses():
    rec, seen = Recorder(), []
    def rate(self): self.opt.param_groups[-1]['lr'] = 0.1/(1 + self.n_iter)
    def note(self): self.in_train and seen.append(float(self.loss))
    run = runner([rec, Do(before_batch=rate, after_loss=note)])
    run.fit(1)
    run.fit(3)
    assert (rec.losses == seen[2:] and rec.lrs == [0.1/(1 + n) for n in range(2, 8)]
            and len(rec.valid_losses) == 3)
    assert all(type(v) is float for v in (*rec.losses, *rec.lrs, *rec.valid_losses))

def test_the_recorder_keeps_the_rates_of_an_optimizer_that_holds_them_as_tensors():
    "torch's schedulers change such a rate in place."
    rec = Recorder()
    def halve(self): self.in_train and self.opt.param_groups[0]['lr'].mul_(0.5)
    run = runner([rec, Do(after_batch=halve)],
                 opt_func=functools.partial(torch.optim.Adam, capturable=False, foreach=False))
    run.fit(1, lr=torch.tensor(0.25))
    assert rec.lrs == [0.25, 0.125]

def test_a_broken_fit_leaves_what_was_recorded():
    rec = Recorder()
    run = runner(rec)
    with pytest.raises(Boom): run.fit(2, cbs=At({('after_backward', 4): Boom()}))
    assert len(rec.losses) == len(rec.lrs) == 4 and len(rec.valid_losses) == 1
    rec.plot_loss()
    rec.plot_lr()

def test_the_recorders_state_makes_a_round_trip(tmp_path):
    from exp.core import load_state, save_state
    rec = Recorder()
    runner(rec).fit(2)
    save_state(tmp_path/'rec', rec.state_dict())
    other = Recorder()
    other.load_state_dict(load_state(tmp_path/'rec'))
    assert other.state_dict() == rec.state_dict() and other.losses == rec.losses
    other.plot_loss()
    runner(other).fit(1)
    assert len(other.losses) == 2   # the last fit's

@pytest.mark.parametrize('epochs', [0, 1, 3])
def test_plots_have_labels(epochs):
    import matplotlib.pyplot as plt
    rec = Recorder()
    runner(rec).fit(epochs)
    for ax, x, y in [(rec.plot_loss(), 'training batch', 'loss'),
                     (rec.plot_lr(), 'training batch', 'learning rate'),
                     (rec.plot_loss(skip=1, smooth=0), 'training batch', 'loss')]:
        assert ax.get_xlabel() == x and ax.get_ylabel() == y
    ax = rec.plot_loss()
    assert ([t.get_text() for t in ax.get_legend().get_texts()] == ['training', 'training, smoothed']
            + ['validation']*(epochs > 0))
    line = {l.get_label(): l for l in ax.lines}
    assert len(line['training'].get_xdata()) == 2*epochs
    if epochs: assert list(line['validation'].get_xdata()) == [2*(e + 1) for e in range(epochs)]
    _, given = plt.subplots()
    assert rec.plot_lr(given) is given and rec.plot_loss(given) is given
    plt.close('all')

def test_smoothing_does_not_pull_towards_zero():
    assert (smoothed([3.]*5) == pytest.approx([3.]*5) and smoothed([1., 2.], 0.) == [1., 2.]
            and smoothed([]) == [])

@given(st.lists(st.floats(-1e3, 1e3), max_size=20), st.floats(0, 0.99))
@few
def test_smoothing_weighs_each_value_beta_times_what_the_next_weighs(values, beta):
    expected = [np.average(values[:n], weights=beta**np.arange(n - 1, -1, -1.))
                for n in range(1, len(values) + 1)]
    assert smoothed(iter(values), beta) == pytest.approx(expected, rel=1e-6, abs=1e-6)


# ---------------------------------------------------------------- NaN

def spoil(n_iter, value=math.nan):
    "Makes the predictions of one training batch NaN or infinite."
    def after_pred(self):
        if self.in_train and self.n_iter == n_iter: self.run.pred = self.pred*value
    return Do(order=-1, after_pred=after_pred)

@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('n_iter, where', [(0, (0, 0)), (5, (1, 2)), (8, (2, 2))])
def test_nan_check_names_epoch_and_batch_and_ends_the_fit(n_iter, where, value):
    check = NanCheck()
    run = runner(check, data=bunch(12))
    with pytest.warns(UserWarning, match=rf'epoch {where[0]}, batch {where[1]}\b'):
        run.fit(5, cbs=spoil(n_iter, value))
    assert check.where == where and run.epoch <= where[0] + 1 and run.epoch < 5
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run.model = net()
        run.fit(1)
    assert check.where is None

def test_nan_check_without_stop_warns_once_and_trains_on():
    check = NanCheck(stop=False)
    run = runner(check, data=bunch(12))
    with pytest.warns(UserWarning) as caught: run.fit(4, cbs=spoil(1))
    assert len(caught) == 1 and check.where == (0, 1) and run.epoch == 4

@pytest.mark.parametrize('how', [CancelEpochException, CancelBatchException])
def test_a_nan_in_an_epoch_that_is_cancelled_is_told_too(how):
    check = NanCheck(stop=False)
    run = runner([check, spoil(0), At({('before_backward', 1): how()})])
    with pytest.warns(UserWarning, match='epoch 0, batch 0'): run.fit(2)

def test_a_nan_in_validation_or_a_metric_is_none_of_its_business():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        runner([NanCheck(), Do(after_loss=lambda self: self.in_train
                               or setattr(self.run, 'loss', self.loss*math.nan))]).fit(2)

def test_a_delayed_read_answers_later_and_at_most_ten_times_a_second(monkeypatch):
    clock = [100.]
    monkeypatch.setattr(module.time, 'perf_counter', lambda: clock[0])
    read, answers = DelayedRead(), []
    for i in range(1000):   # ten seconds
        answer = read(torch.tensor([float(i), 2.]))
        if answer is not None: answers.append((i, answer))
        clock[0] += 0.01
    assert 90 <= len(answers) <= 100
    for i, (value, two) in answers: assert two == 2. and 9 <= i - value <= 12
    read = DelayedRead(0.)
    assert [read(torch.tensor(i)) for i in range(4)] == [None, 0, 1, 2]


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

def test_nan_check_waits_for_no_batch(reads, monkeypatch):
    clock = [0.]
    monkeypatch.setattr(module.time, 'perf_counter', lambda: clock[0])
    def tick(self): clock[0] += 0.01
    run = runner([NanCheck(), Do(after_batch=tick)], data=bunch(400, 0), opt_func=torch.optim.SGD)
    run.fit(1)
    assert 1 <= sum(reads.values()) <= 11   # ten in this second, and one at its end

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


# ---------------------------------------------------------------- what stays in memory

@contextlib.contextmanager
def no_collector():
    gc.disable()
    try: yield
    finally: gc.enable()

def fails(run, error, **kw):
    "A weak reference to the error of a fit."
    try: run.fit(2, **kw)
    except Boom as e: return weakref.ref(e)

class Later(Boom): pass

@pytest.mark.parametrize('event', EVENTS)
def test_an_error_in_an_event_lives_no_longer_than_its_handling(event):
    "Its traceback holds every frame of the loop, with batches and predictions."
    plan = {(event, 1): Boom}
    if event in CANCEL_FIRST:
        e, n, kind = CANCEL_FIRST[event]
        plan[e, n] = KINDS[kind]
    run = runner()
    with no_collector(): assert fails(run, Boom, cbs=At(plan))() is None

@pytest.mark.parametrize('where', ['model', 'two'])
def test_an_error_in_the_model_or_two_errors_live_no_longer_than_their_handling(where):
    run = runner()
    def fail(*_): raise Boom
    if where == 'model': run.model[0].register_forward_hook(fail)
    with no_collector():
        assert fails(run, Boom, cbs=[At({('after_batch', 1): Boom}), At({('after_fit', 1): Later})])() is None

def test_an_error_for_a_cancel_out_of_place_lives_no_longer_than_its_handling():
    run, refs = runner(), []
    class Mine(CancelBatchException):
        def __init__(self): refs.append(weakref.ref(self))
    def cancel(self): raise Mine
    with no_collector():
        try: run.fit(1, cbs=Do(after_train=cancel))
        except RuntimeError: pass
        assert refs[0]() is None

def test_the_graph_of_the_last_batch_does_not_outlive_a_failed_fit():
    "After an error for want of memory, memory should be free again."
    run, refs = runner(), []
    class Big(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            saved = torch.zeros(10)
            refs.append(weakref.ref(saved))
            ctx.kept = saved
            return x*1
        @staticmethod
        def backward(ctx, g): return g
    run.model[0].register_forward_hook(lambda m, i, o: Big.apply(o))
    with no_collector():
        assert fails(run, Boom, cbs=At({('before_backward', 1): Boom}))() is None
        assert refs[0]() is None

@pytest.mark.slow
@pytest.mark.parametrize('fault', [False, True])
def test_a_runner_that_is_deleted_frees_its_model(fault):
    run = runner([AvgStats(accuracy), Recorder()])
    model = weakref.ref(run.model)
    with no_collector():
        if fault: fails(run, Boom, cbs=At({('after_loss', 1): Boom}))
        else: run.fit(1)
        del run
    gc.collect()   # runner and callbacks refer to each other
    assert model() is None

def test_callbacks_of_a_fit_do_not_keep_the_runner():
    rec, run = Recorder(), runner()
    run.fit(1, cbs=rec)
    model = weakref.ref(run.model)
    del run
    gc.collect()
    assert model() is None and len(rec.losses) == 2 and len(rec.valid_losses) == 1
    rec.plot_loss()


# ---------------------------------------------------------------- how metrics keep count

class HalfWeights(Callback):
    "Measures in its own way, leaves one metric out, and says that all was twice as much."
    def before_fit(self):
        inner = self.run.measure
        self.run.measure = (lambda metric, pred: False if self.in_train and metric.name == 'rmse'
                            else inner(metric, pred))
        self.run.gather = self.twice
    def twice(self, metric):
        whole = copy.deepcopy(metric)
        whole.add(**metric.states())
        return whole

def test_a_callback_may_say_how_metrics_see_a_batch_and_where_their_sums_are():
    off = lambda pred, yb: (pred.argmax(1) - yb).float().abs().mean()
    off.__name__ = 'rmse'
    plain = runner(AvgStats(accuracy, off, Count()))
    plain.fit(2)
    mine = runner([AvgStats(accuracy, off, Count()), HalfWeights()])
    mine.fit(2)
    for a, b in zip(plain.avg_stats.history, mine.avg_stats.history):
        assert a.keys() - b.keys() == {'train_rmse'}
        assert all(a[k] == b[k] for k in b if k not in ('seconds', 'train_count', 'valid_count'))
        assert b['train_count'] == 2*a['train_count'] == 16 and b['valid_count'] == 8
    assert not {'measure', 'gather', 'rank'} & vars(mine).keys()   # as it was
    assert mine.measure.__func__ is Runner.measure

def test_a_metric_that_says_so_is_computed_in_validation_alone():
    class Late(Count): name, train = 'late', False
    def late_function(pred, yb): return pred.sum()*0 + 1
    late_function.train = False
    run = runner(AvgStats(accuracy, Late(), late_function))
    run.fit(1)
    row = run.avg_stats.history[0]
    assert {k for k in row if 'late' in k} == {'valid_late', 'valid_late_function'} and row['valid_late'] == 4
    assert run.avg_stats.columns == ['loss', 'accuracy', 'late', 'late_function']

def test_a_callback_of_the_first_process_is_not_called_in_others():
    class Prints(Trace): rank_zero = True
    class Rank(Callback):
        order = -2000
        def __init__(self, number): self.number = number
        def before_fit(self): self.run.rank = self.number
    for number in (0, 1):
        prints, everywhere = Prints(), Trace()
        run = runner()
        run.fit(1, cbs=[Rank(number), prints, everywhere])
        assert everywhere.seen == full(1) and prints.seen == ([] if number else full(1)) and run.rank == 0

def test_a_part_that_was_replaced_before_the_fit_is_what_it_was_after_it():
    run, calls = runner(), []
    mine = run.step = lambda: calls.append('mine')
    class Own(Callback):
        def before_fit(self): self.run.step = lambda: calls.append('own')
    run.fit(1, cbs=Own())
    run.fit(1)
    assert run.step is mine and calls == ['own']*2 + ['mine']*2

def test_sums_of_a_broken_epoch_go_to_the_first_process_alone():
    states = []
    class Keep(Callback):
        order = 100
        def after_batch(self):
            if self.in_train and self.iter == 0: states.append(self.run.avg_stats.state_dict())
    runner([AvgStats(Count()), Keep()]).fit(1)
    class Rank(Callback):
        order = -50
        def __init__(self, rank): self.rank_ = rank
        def before_fit(self): self.run.rank = self.rank_
        def after_fit(self): self.seen = self.run.rank
    for rank, more in ((0, 4), (1, 0)):
        who = Rank(rank)
        again = runner([AvgStats(Count()), who])
        again.avg_stats.load_state_dict(states[0])
        class Load(Callback):
            order = 10**6
            def before_fit(self): self.run.avg_stats.load_state_dict(states[0])
        again.fit(1, cbs=Load())
        assert again.avg_stats.history[-1]['train_count'] == 8 + more and who.seen == rank and again.rank == 0
