"""The training loop of lesson 07: events in their order, cancels, errors in any event, and what stays in
memory."""
import _thread, collections, contextlib, copy, functools, gc, os, re, signal, threading, time, weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings as hsettings, strategies as st
from torch import nn

from exp.callbacks import (EVENTS, AvgStats, Callback, CancelBatchException, CancelEpochException,
                           CancelFitException, CancelStepException, Recorder, Runner, TrainEvalCallback,
                           CancelException)
from exp.core import test_close as close
from exp.dataloader import DataBunch, DataLoader, Dataset
from exp.faults import NanCheck
from exp.metrics import accuracy

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
        with pytest.raises(AttributeError, match=f"'{meant}"): add()
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
    with pytest.raises(AttributeError, match='nonsense'): run.cbs[1].nonsense
    with pytest.raises(AttributeError, match='nonsense'): run.nonsense
    with pytest.raises(AttributeError, match="'pred'.*(begun|fit)"): runner().pred
    with pytest.raises(AttributeError, match='runner'): Callback().loss

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

def test_the_cancels_say_what_they_end_and_where_they_may_come_from():
    for kind, cancel in KINDS.items():
        assert issubclass(cancel, CancelException) and cancel.what == kind
        assert set(cancel.places) == PLACES[kind]

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
    with pytest.raises(KINDS[kind]): run.fit(1)
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
    with pytest.raises(RuntimeError, match=r'\bAt\b') if error else contextlib.nullcontext():
        run.fit(2, cbs=[trace, bad] if in_fit else trace)
    assert trace.seen == want
    bad.on = False
    usable(run, cbs=1 if in_fit else 2)


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
