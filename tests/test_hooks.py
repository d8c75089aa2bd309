"""Hooks and callbacks that install them leave nothing behind; devices, batch transforms and activation
statistics do what they say."""
import math
import warnings
from unittest import mock

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from exp.callbacks import Callback, CancelBatchException, CancelEpochException, CancelFitException, Runner
from exp.core import environ
from exp.dataloader import Dataset, make_data
from exp.hooks import ActivationStats, BatchTransform, DeviceCallback, Hook, Hooks


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks)
               for m in model.modules())

def net(): return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

def bunch(n=40, bs=8, dim=4, **kwargs):
    g = torch.Generator().manual_seed(0)
    ds = Dataset(torch.randn(n, dim, generator=g), torch.randint(3, (n,), generator=g))
    return make_data(ds, ds, bs=bs, **kwargs)

def keep(hook, module, inp, outp): hook.kept = inp, outp

# ---- Hook, Hooks

def test_a_forward_hook_sees_inputs_and_output_until_it_is_removed():
    model, x = net(), torch.randn(2, 4)
    hook = Hook(model[0], keep)
    model(x)
    assert hook.kept[0][0] is x and torch.equal(hook.kept[1], model[0](x))
    del hook.kept
    hook.remove()
    hook.remove()
    model(x)
    assert not hasattr(hook, 'kept') and n_hooks(model) == 0

def test_a_hook_that_is_removed_twice_does_not_take_another_along():
    model = net()
    first = Hook(model[0], keep)
    first.remove()
    with Hook(model[0], keep) as second:
        first.remove()
        model(torch.randn(2, 4))
        assert hasattr(second, 'kept')

def test_hooks_are_removed_after_an_error_in_the_block():
    model = net()
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), Hook(model[1], keep), Hooks(model, keep): raise error
        assert n_hooks(model) == 0

@pytest.mark.parametrize('forward', [True, False])
def test_an_error_in_f_leaves_no_hook(forward):
    model = net()
    def fails(hook, module, inp, outp):
        if isinstance(module, nn.ReLU): raise ZeroDivisionError('x')
    with pytest.raises(ZeroDivisionError), Hooks(model, fails, forward):
        model(torch.randn(2, 4, requires_grad=True)).sum().backward()
    assert n_hooks(model) == 0
    model(torch.randn(2, 4)).sum().backward()

def test_a_hook_may_remove_itself():
    model = net()
    def once(hook, module, inp, outp):
        hook.remove()
        hook.n = getattr(hook, 'n', 0) + 1
    hook = Hook(model[0], once)
    for _ in range(3): model(torch.randn(2, 4))
    assert hook.n == 1 and n_hooks(model) == 0

def test_what_f_answers_replaces_output_and_input_gradients():
    lin, x = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True)
    with Hook(lin, lambda hook, m, i, o: o + 1):
        assert torch.allclose(lin(x), nn.functional.linear(x, lin.weight, lin.bias) + 1)
    with Hook(lin, lambda hook, m, gi, go: (gi[0]*0,), forward=False): lin(x).sum().backward()
    assert (x.grad == 0).all() and (lin.weight.grad != 0).any()

def test_a_backward_hook_gets_the_gradients_of_autograd():
    torch.manual_seed(1)
    model, x = net(), torch.randn(6, 4, requires_grad=True)
    with Hooks(model, keep, forward=False) as hooks: model(x).square().sum().backward()
    a = x.detach().requires_grad_()
    acts = []
    for layer in model:
        a = layer(a)
        a.retain_grad()
        acts.append(a)
    a.square().sum().backward()
    for hook, act in zip(hooks, acts): assert torch.allclose(hook.kept[1][0], act.grad)
    assert torch.allclose(hooks[0].kept[0][0], x.grad)
    for hook, act in zip(hooks[1:], acts): assert torch.allclose(hook.kept[0][0], act.grad)

def test_a_backward_hook_gets_none_for_an_input_without_gradient():
    lin = nn.Linear(3, 2)
    with warnings.catch_warnings(), Hook(lin, keep, forward=False) as hook:
        warnings.simplefilter('ignore')
        lin(torch.randn(2, 3)).sum().backward()
    assert hook.kept[0] == (None,)

def test_hooks_are_a_list_container():
    model = net()
    hooks = Hooks(model, keep)
    assert (len(hooks) == 3 and hooks[-1].module is model[2]
            and [h.module for h in hooks[[True, False, True]]] == [model[0], model[2]])
    del hooks[0]
    assert len(hooks) == 2 and n_hooks(model) == 2
    del hooks[:]
    assert n_hooks(model) == 0
    hooks.remove()
    assert 'Hooks (1 items) [Hook on Linear(in_features=4' in repr(Hooks(model[0], keep))

def test_hooks_take_a_generator_a_module_list_or_one_module():
    model = net()
    for modules, n in ((model.children(), 3), (nn.ModuleList(model), 3), (model[1:], 2), (model[0], 1),
                       ([], 0), ((model[0], model[0]), 2)):
        with Hooks(modules, keep) as hooks: assert len(hooks) == n == n_hooks(model)
        assert n_hooks(model) == 0

@pytest.mark.parametrize('modules, error', [('0', AttributeError), (3, TypeError), (None, TypeError),
                                            ({'a': nn.ReLU()}, AttributeError)])
def test_hooks_refuse_what_is_no_list_of_modules(modules, error):
    with pytest.raises(error): Hooks(modules, keep)

def test_hook_refuses_what_is_no_module_or_no_function():
    with pytest.raises(AttributeError, match='hook'): Hook(torch.relu, keep)
    with pytest.raises(TypeError, match='callable'): Hook(nn.ReLU(), None)

# ---- ActivationStats

class Tuples(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.act, self.named, self.out = nn.LSTM(
            4, 6, batch_first=True), nn.ReLU(), Dicts(), nn.Linear(6, 3)
    def forward(self, x):
        seq, (h, c) = self.rnn(x[:, None].expand(-1, 5, -1))
        return self.out(self.named(self.act(self.act(seq[:, -1])))['x'])

class Dicts(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(6))
    def forward(self, x): return {'n': torch.arange(3), 'none': None, 'x': x*self.w}

def recorded(model, data=None, modules=None, every=1, epochs=1, **kwargs):
    stats = ActivationStats(modules, every)
    Runner(data or bunch(), model, cbs=stats, **kwargs).fit(epochs)
    assert n_hooks(model) == 0
    return stats

def test_outputs_that_are_tuples_or_dicts_are_handled_and_a_module_that_runs_twice_has_two_entries():
    stats = recorded(Tuples())
    assert list(stats.means) == ['rnn', 'act', 'act (2)', 'named', 'out']
    assert {len(v) for v in stats.means.values()} == {5}
    assert torch.equal(stats.stds['act (2)'][0], stats.stds['named'][0])   # its weights are 1 at first

def test_values_are_those_of_the_outputs():
    torch.manual_seed(2)
    model, data = nn.Sequential(nn.Linear(4, 50), nn.ReLU(inplace=True), nn.Linear(50, 3)), bunch(64, 64)
    with torch.no_grad(): model[0].bias[:10] = -100.   # dead ones
    wanted, x = [], data.train_ds[data.train_dl.sampler.order(0)][0]
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            wanted.append(x.clone())
    stats = recorded(model, data)
    for name, a in zip('012', wanted):
        assert (torch.allclose(stats.means[name], a.mean(), atol=1e-4)
                and torch.allclose(stats.stds[name], a.std(correction=0), rtol=1e-4))
        assert math.isclose(stats.near_zero[name], (a.abs() < 0.25).float().mean(), abs_tol=1e-6)
        for lo, hi in ((0, 0.5), (-0.35, 0.7), (-10, 10), (-math.inf, 0), (0, math.inf)):
            assert math.isclose(stats.share(lo, hi)[name], ((a >= lo) & (a < hi)).float().mean(),
                                abs_tol=2/a.numel() if abs(lo) + abs(hi) < 1.1 else 1e-6)
        assert (stats.hists[name].shape == (1, 400)
                and stats.hists[name].sum() == ((a >= -10) & (a < 10)).sum())
        assert math.isclose(stats.dead[name], (a.amax(0) == a.amin(0)).float().mean(), abs_tol=1e-6)
    assert stats.dead['1'] >= 0.2 and stats.dead['0'] == 0

def test_a_unit_is_a_channel_or_a_feature():
    class Fixed(nn.Module):
        def __init__(self, out):
            super().__init__()
            self.w = nn.Linear(4, 3)
            self.seen = Mark(out)
        def forward(self, x):
            self.seen(x)
            return self.w(x)
    class Mark(nn.Module):
        def __init__(self, out):
            super().__init__()
            self.out, self.w = out, nn.Parameter(torch.zeros(1))
        def forward(self, x): return self.out
    image = torch.randn(8, 4, 3, 3)
    image[:, 0] = 1.
    image[0, 1] = 0.
    steps = torch.randn(8, 5, 4)
    steps[..., 3] = -0.4
    for out, dead in ((image, 0.25), (steps, 0.25), (torch.zeros(8, 2), 1.), (torch.randn(8), 0.),
                      (torch.zeros(8), 1.), (torch.full((8, 2), math.nan), 0.)):
        assert recorded(Fixed(out), bunch(8), lambda m: isinstance(m, Mark)).dead['seen'].item() == dead
    for out in (torch.randn(1, 4), torch.tensor(1.)):
        assert recorded(Fixed(out), bunch(8), lambda m: isinstance(m, Mark)).dead['seen'].isnan()

def test_deviations_of_many_numbers_are_exact_to_float32():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.out = Big(), nn.Linear(4, 3)
        def forward(self, x):
            self.act(x)
            return self.out(x)
    class Big(nn.Module):
        def forward(self, x): return a
    a = torch.randn(512, 8, 14, 14, generator=torch.Generator().manual_seed(0)).relu()
    stats = recorded(Wide(), bunch(8), lambda m: isinstance(m, Big))
    assert math.isclose(stats.stds['act'], a.double().std(correction=0), rel_tol=2e-6)
    assert math.isclose(stats.means['act'], a.double().mean(), rel_tol=2e-6)

def test_infinite_and_nan_activations_are_counted_apart():
    class Bad(nn.Module):
        def forward(self, x): return torch.tensor([math.inf, -math.inf, math.nan, 0.1, 12.])
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.bad, self.out = Bad(), nn.Linear(4, 3)
        def forward(self, x):
            self.bad(x)
            return self.out(x)
    stats = recorded(Model(), bunch(8), lambda m: isinstance(m, Bad))
    assert ([round(stats.share(lo, hi)['bad'].item(), 4) for lo, hi in (
        (-math.inf, -10), (10, math.inf), (-10, 10), (-math.inf, math.inf))] == [0.2, 0.4, 0.2, 0.8])

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_other_float_types_are_recorded(dtype):
    x = torch.randn(16, 4).to(dtype)
    stats = recorded(net().to(dtype), make_data(Dataset(x, torch.randint(3, (16,))), None, bs=16),
                     loss_func=lambda p, y: nn.functional.cross_entropy(p.float(), y))
    assert len(stats.means) == 3 and not any(v.isnan().any() for v in stats.means.values())

def test_every_kth_training_batch_is_recorded_and_validation_is_not():
    calls = []
    class Count(nn.ReLU):
        def forward(self, x):
            calls.append((self.training, len(self._forward_hooks)))
            return super().forward(x)
    model = nn.Sequential(nn.Linear(4, 5), Count(), nn.Linear(5, 3))
    stats = recorded(model, every=3, epochs=2)
    assert stats.batches == {name: [0, 3, 6, 9] for name in '012'}
    assert [n for training, n in calls if training] == [1, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert not any(n for training, n in calls if not training)

def test_each_fit_begins_anew():
    stats = ActivationStats(every=2)
    run = Runner(bunch(), net(), cbs=stats)
    run.fit(2)
    run.fit(1)
    assert stats.batches['0'] == [0, 2, 4] and len(stats.stds['0']) == 3

@pytest.mark.slow
def test_modules_that_come_later_are_recorded():
    class Grow(Callback):
        def after_epoch(self): self.model.append(nn.ReLU())
    stats, model = ActivationStats(every=5), net()
    Runner(bunch(), model, cbs=[stats, Grow()]).fit(3)
    assert stats.batches == {'0': [0, 5, 10], '1': [0, 5, 10], '2': [0, 5, 10], '3': [5, 10], '4': [10]}
    axs = stats.plot_hists()
    stats.plot_near_zero()
    stats.plot_means_stds()
    plt.close('all')
    assert len(axs) >= 5

def test_layers_are_chosen_by_default_sensibly():
    model = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3, padding=1), nn.BatchNorm1d(2),
                          nn.Dropout(), nn.Identity(), nn.GELU(),
                          nn.MaxPool1d(2), nn.Flatten(),
                          nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    assert list(recorded(model).means) == ['1', '2', '5', '8']
    assert list(recorded(nn.Linear(4, 3)).means) == ['Linear']

def test_modules_may_be_a_list_a_part_or_a_function():
    model = net()
    assert list(recorded(model, modules=[model[1]]).means) == ['1']
    assert list(recorded(model, modules=model[1:]).means) == ['1', '2']
    assert list(recorded(model, modules=model[2]).means) == ['2']
    assert list(recorded(model, modules=lambda m: isinstance(m, nn.Linear)).means) == ['0', '2']

@pytest.mark.slow
def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match='whole'): ActivationStats(every=1.5)
    with pytest.raises(ValueError, match='more'): ActivationStats(every=0)
    with pytest.raises(KeyError, match='ReLU'): recorded(net(), modules=[nn.ReLU()])
    with pytest.raises(KeyError, match='conv1'): recorded(net(), modules=['conv1'])
    with pytest.raises(ValueError, match='recorded'): ActivationStats().plot_hists()
    with pytest.raises(ValueError, match='recorded'):
        recorded(net(), modules=lambda m: False).plot_hists()
    stats = recorded(net())
    with pytest.raises(ValueError, match='multiples'): stats.share(0, 0.33)
    with pytest.raises(ValueError, match='multiples'): stats.share(0, 11)
    with pytest.raises(ValueError, match='multiples'): stats.share(0, math.nan)
    with pytest.raises(RuntimeError, match='30'): stats.plot_hists(low=0, high=10, bins=30)
    with pytest.raises(IndexError): stats.plot_hists(plt.subplots(1, 2)[1])
    with pytest.raises(IndexError): stats.plot_means_stds(plt.subplots()[1])
    assert len(stats.plot_hists(plt.subplots(2, 2)[1])) == 4
    plt.close('all')

class Raise(Callback):
    def __init__(self, event, error, order):
        self.error, self.order = error, order
        setattr(self, event, self.fail)
    def fail(self):
        if self.in_train and self.iter == 2: raise self.error

@pytest.mark.parametrize('order', [0, 99])
@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss', 'after_step', 'after_batch'])
@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError, CancelFitException, CancelEpochException,
                                   CancelBatchException])
def test_hooks_are_gone_after_errors_ctrl_c_and_cancels(event, error, order):
    if error is CancelBatchException and event == 'after_batch': pytest.skip('not from there')
    model, stats = net(), ActivationStats(every=1)
    run = Runner(bunch(), model, cbs=[stats, Raise(event, error, order)])
    try: run.fit(1)
    except (KeyboardInterrupt, ValueError): pass
    assert n_hooks(model) == 0 and len(stats.means['0']) >= 2

@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError, CancelFitException, CancelBatchException])
def test_hooks_are_gone_after_an_error_in_the_forward_pass(error):
    class Fails(nn.Module):
        def forward(self, x): raise error
    model = nn.Sequential(nn.Linear(4, 3), Fails())
    try: Runner(bunch(), model, cbs=ActivationStats(every=1)).fit(1)
    except (KeyboardInterrupt, ValueError): pass
    assert n_hooks(model) == 0

def test_a_failing_choice_of_modules_leaves_no_hook():
    model, calls = net(), []
    def choose(m):
        calls.append(m)
        if len(calls) > 7: raise ZeroDivisionError
        return True
    with pytest.raises(ZeroDivisionError): Runner(bunch(), model, cbs=ActivationStats(choose, every=1)).fit(1)
    assert n_hooks(model) == 0

def test_other_forward_passes_of_a_batch_are_not_recorded():
    class Again(Callback):
        def after_loss(self): self.model(self.xb)
    stats = ActivationStats(every=1)
    Runner(bunch(), net(), cbs=[stats, Again()]).fit(1)
    assert list(stats.means) == ['0', '1', '2'] and len(stats.means['0']) == 5

def test_training_is_the_same_with_and_without_recording():
    def weights(cbs):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(5, 3))
        Runner(bunch(), model, lr=0.1, cbs=cbs).fit(2)
        return torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(weights([]), weights([ActivationStats(every=1)]))

WAITS = ('item', 'tolist', 'cpu', 'numpy', '__bool__', '__float__', '__int__', '__index__', 'nonzero')

def test_nothing_waits_for_the_device_in_a_batch():
    from contextlib import ExitStack
    def refuse(name):
        def waits(self, *args, **kwargs): raise AssertionError(f'{name} waits for the device')
        return waits
    class Guard(Callback):
        order, stack = -1000, None
        def before_batch(self):
            self.stack = ExitStack()
            for name in WAITS: self.stack.enter_context(mock.patch.object(torch.Tensor, name, refuse(name)))
    class Unguard(Callback):
        order = 1000
        def after_batch(self): self.runner_guard.stack.close()
    guard, unguard = Guard(), Unguard()
    object.__setattr__(unguard, 'runner_guard', guard)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    cbs = [guard, unguard, DeviceCallback('cpu'), BatchTransform(lambda xb: xb.view(-1, 1, 4, 4)),
           ActivationStats(every=1)]
    Runner(bunch(dim=16), model, cbs=cbs, loss_func=nn.functional.cross_entropy).fit(1)
    assert len(cbs[-1].means['0']) == 5

def test_nothing_recorded_keeps_the_graph():
    model = net()
    stats = recorded(model)
    assert not any(v.requires_grad for v in stats.means.values())

# ---- DeviceCallback

def test_device_callback_keeps_the_optimizer_on_the_models_parameters():
    model = net()
    before = [id(p) for p in model.parameters()]
    run = Runner(bunch(), model, lr=0.5, cbs=DeviceCallback('cpu'))
    start = model[0].weight.detach().clone()
    run.fit(1)
    assert ([id(p) for g in run.opt.param_groups for p in g['params']] == [id(p) for p in model.parameters()]
            == before)
    assert (model[0].weight != start).any()

def test_device_callback_uses_the_setting_and_refuses_what_is_not_there():
    with environ(EXP_DEVICE='cpu'): assert DeviceCallback().device == torch.device('cpu')
    no_cuda = AssertionError, RuntimeError   # of a torch without it, and of one with fewer devices
    for device, error in (('gpu', RuntimeError), ('cuda:77', no_cuda), (2.5, TypeError)):
        with pytest.raises(error): DeviceCallback(device)

def test_device_callback_moves_nested_batches_and_leaves_none():
    moved = []
    class Look(Callback):
        def before_batch(self): moved.append((self.xb, self.yb))
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Linear(2, 2)
        def forward(self, a, b): return self.w(a + b)
    ds = Dataset((torch.randn(4, 2), torch.randn(4, 2)))
    with mock.patch('exp.hooks.to_device', wraps=__import__('exp.hooks', fromlist=['x']).to_device) as move:
        with pytest.raises(ValueError, match='targets'):
            Runner(make_data(ds, ds, bs=4), Two(), cbs=[DeviceCallback('cpu'), Look()]).fit(1)
    assert move.call_count == 1 and isinstance(moved[0][0], tuple) and moved[0][1] is None

def test_optimizer_state_and_loss_follow_to_the_device():
    run = Runner(bunch(), net(), opt_func=torch.optim.Adam)
    run.fit(1)
    moved, cb = [], DeviceCallback('cpu')   # without a second device we can only look at what would be moved
    cb.run = run
    with mock.patch.object(torch.Tensor, 'to', lambda t, *args: moved.append(t.shape) or t): cb.before_fit()
    # exp_avg and exp_avg_sq, not `step`
    states = [p.shape for p in run.model.parameters() for _ in range(2)]
    assert moved[-len(states):] == states and torch.Size([]) not in moved[-len(states):]
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Buffer(torch.ones(3))
        def forward(self, p, y): return nn.functional.cross_entropy(p, y, self.weight)
    loss = Weighted()
    with mock.patch.object(loss, 'to') as to:
        Runner(bunch(), net(), loss_func=loss, cbs=DeviceCallback('cpu')).fit(1)
    to.assert_called_once_with(torch.device('cpu'))

# ---- BatchTransform

def batches(data, *cbs):
    "The (in_train, xb, yb) that reach the model."
    seen = []
    class Look(Callback):
        def after_pred(self): seen.append((self.in_train, self.xb, self.yb))
    Runner(data, nn.Linear(4, 3), cbs=[*cbs, Look()]).fit(1)
    return seen

def test_a_plain_function_gets_the_inputs_of_training_and_validation():
    for (_, xa, ya), (_, xb, yb) in zip(batches(bunch()), batches(bunch(), BatchTransform(lambda xb: 2*xb))):
        assert torch.equal(2*xa, xb) and torch.equal(ya, yb)

def test_a_transform_on_batches_gets_targets_and_context():
    contexts = []
    class Swap:
        on = 'batch'
        def __call__(self, xb, yb, ctx):
            contexts.append((ctx.train, ctx.seed, ctx.epoch, list(ctx.items)))
            return -xb, 2 - yb
    data = bunch(16, 8, seed=7)
    run = Runner(data, nn.Linear(4, 3), cbs=BatchTransform(Swap()))
    run.fit(2)
    order = [data.train_dl.sampler.order(epoch).tolist() for epoch in (0, 1)]
    assert (contexts == [c for e in (0, 1) for c in ((True, 7, e, order[e][:8]), (True, 7, e, order[e][8:]),
                                                     (False, 7, e, list(range(16))))])
    for (_, xa, ya), (_, xb, yb) in zip(batches(data), batches(data, BatchTransform(Swap()))):
        assert torch.equal(-xa, xb) and torch.equal(2 - ya, yb)

def test_the_context_is_that_of_transform_batch_and_of_a_loader_without_seed_the_settings():
    class Note:
        on = 'batch'
        def __init__(self): self.seen = []
        def __call__(self, xb, yb, ctx):
            self.seen.append((ctx.train, ctx.seed, ctx.epoch, list(ctx.items or [])))
            return xb, yb
    ours, datas = Note(), Note()
    data = bunch(16, 8, seed=3)
    Runner(data, nn.Linear(4, 3), cbs=BatchTransform(ours)).fit(2)
    data = bunch(16, 8, seed=3, batch_tfms=[datas])
    Runner(data, nn.Linear(4, 3), cbs=BatchTransform(data.transform_batch)).fit(2)
    assert ours.seen == datas.seen
    note = Note()
    torch_dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 4),
                                                                          torch.zeros(8).long()), 8)
    with environ(EXP_SEED='5'): Runner((torch_dl, None), nn.Linear(4, 3), cbs=BatchTransform(note)).fit(2)
    assert note.seen == [(True, 5, 0, []), (True, 5, 1, [])]

def test_data_with_transforms_needs_its_batch_transform():
    def data(): return bunch(16, 8, batch_tfms=([lambda xb: 2*xb], [lambda xb: 3*xb]))
    with pytest.raises(ValueError, match='batch_tfms'): batches(data())
    with pytest.raises(ValueError, match='batch_tfms'): batches(data(), BatchTransform(lambda xb: xb))
    d = data()
    for (train, xa, _), (_, xb, _) in zip(batches(bunch(16, 8)),
                                          batches(d, BatchTransform(d.transform_batch))):
        assert torch.equal(xa*(2 if train else 3), xb)

def test_the_transforms_of_the_data_are_applied_once_and_only_the_datas_own():
    data = bunch(batch_tfms=[lambda xb: 2*xb])
    assert (BatchTransform(data.transform_batch).transforms_batches
            and not BatchTransform(torch.neg).transforms_batches)
    with pytest.raises(ValueError, match='batch_tfms'):
        batches(data, BatchTransform(data.transform_batch), BatchTransform(data.transform_batch))

def test_a_transform_that_answers_no_batch_is_named():
    def forgets(xb): pass
    with pytest.raises(TypeError, match='forgets'): batches(bunch(), BatchTransform(forgets))
    def only_x(xb, yb, ctx): return xb
    only_x.on = 'batch'
    with pytest.raises(ValueError, match='unpack'): batches(bunch(), BatchTransform(only_x))

def test_devices_come_first_then_transforms():
    order = []
    class Early(Callback):
        order = -70
        def before_batch(self): order.append(self.xb.sum().item())
    data = bunch(8, 8)
    Runner(data, nn.Linear(4, 3),
           cbs=[Early(), BatchTransform(torch.zeros_like), DeviceCallback('cpu')]).fit(1)
    assert order == [0., 0.] and DeviceCallback.order == -90 and BatchTransform.order == -80

def test_the_rate_finder_works_on_data_with_transforms_of_its_own():
    from exp.schedules import LRFinder
    data = make_data(Dataset(torch.randn(200, 3), torch.randint(2, (200,))),
                     Dataset(torch.randn(20, 3), torch.randint(2, (20,))), bs=20, batch_tfms=lambda xb: 2*xb)
    run = Runner(data, nn.Linear(3, 2), cbs=BatchTransform(data.transform_batch))
    run.fit(1, cbs=(finder := LRFinder(20)))
    assert len(finder.losses) >= 10 and run.data is data
