"""LSUV brings every layer to mean 0 and deviation 1, or says which one cannot be, and leaves no trace but in
weights, biases and `sub`."""
import copy, math, random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader as TorchLoader, TensorDataset

from exp.dataloader import Dataset, make_data
from exp.layers import GeneralRelu, conv_layer
from exp.lsuv import LsuvError, find_modules, lsuv_init, lsuv_module

bent = partial(GeneralRelu, leak=0.1, sub=0.4, maxv=6.)

def convnet(act=bent, norm=None, **kwargs):
    return nn.Sequential(conv_layer(1, 4, 5, act=act, norm=norm, **kwargs),
                         conv_layer(4, 8, act=act, norm=norm, **kwargs),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

@pytest.fixture
def xb(): return 0.5 + 2*torch.randn(64, 1, 12, 12)

def stats(module, model, *batches):
    "Mean and deviation of all that comes out of `module`, without any code of exp.lsuv."
    outs = []
    h = module.register_forward_hook(lambda m, i, o: outs.append(o.detach().double().flatten()))
    with torch.no_grad():
        for b in batches: model(b)
    h.remove()
    out = torch.cat(outs)
    return out.mean().item(), out.std().item()

def assert_reached(module, model, *batches, tol=1e-3):
    mean, std = stats(module, model, *batches)
    assert abs(mean) <= tol + 1e-6 and abs(std - 1) <= tol + 1e-6, (mean, std)

def state(model):
    return ({k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()],
            [None if p.grad is None else p.grad.clone() for p in model.parameters()])

def same(a, b):
    (sd, modes, grads), (sd2, modes2, grads2) = a, b
    return (sd.keys() == sd2.keys() and all(torch.equal(sd[k], sd2[k]) for k in sd) and modes == modes2
            and all(g is h is None or torch.equal(g, h) for g, h in zip(grads, grads2)))

def no_hooks(model):
    return not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())

# ---- find_modules
def test_find_modules_goes_depth_first_by_function_class_or_classes():
    model = nn.Sequential(nn.Sequential(nn.Linear(1, 2), nn.ReLU()), nn.Linear(2, 3))
    assert find_modules(model, nn.Linear) == [model[0][0], model[1]]
    assert find_modules(model, (nn.ReLU, nn.Sequential)) == [model, model[0], model[0][1]]
    assert find_modules(model, lambda m: m is model[1]) == [model[1]]
    assert find_modules(model, nn.Conv2d) == []

def test_find_modules_lists_a_shared_module_once():
    layer = nn.Linear(2, 2)
    assert find_modules(nn.Sequential(layer, nn.Sequential(layer)), nn.Linear) == [layer]

@pytest.mark.parametrize('model, cond', [(3, nn.Linear), (nn.Linear, nn.Linear), (nn.ReLU(), 'Linear'),
                                         (nn.ReLU(), None), (nn.ReLU(), nn.ReLU())])
def test_find_modules_refuses_what_is_no_model_or_condition(model, cond):
    with pytest.raises((TypeError, AttributeError)): find_modules(model, cond)

# ---- one layer
CASES = {
    'linear':   (lambda: nn.Linear(7, 5), (200, 7)),
    'linear over a sequence': (lambda: nn.Linear(7, 5), (20, 9, 7)),
    'conv1d':   (lambda: nn.Conv1d(3, 5, 3), (20, 3, 15)),
    'conv2d':   (lambda: nn.Conv2d(3, 5, 3, groups=1, stride=2), (20, 3, 9, 9)),
    'depthwise': (lambda: nn.Conv2d(4, 8, 3, groups=4), (20, 4, 9, 9)),
    'conv3d':   (lambda: nn.Conv3d(2, 4, 3), (10, 2, 6, 6, 6)),
    'transposed 1d': (lambda: nn.ConvTranspose1d(3, 5, 3, stride=2), (20, 3, 15)),
    'transposed 2d': (lambda: nn.ConvTranspose2d(3, 5, 3, stride=2), (20, 3, 9, 9)),
    'transposed 3d': (lambda: nn.ConvTranspose3d(2, 4, 3), (10, 2, 6, 6, 6)),
}

@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('scale, shift', [(1., 0.), (1e-3, 5.), (1e3, -20.)])
def test_a_layer_reaches_mean_0_and_deviation_1(case, scale, shift):
    make, shape = CASES[case]
    model, xb = nn.Sequential(make(), nn.Identity()), shift + scale*torch.randn(shape)
    got = lsuv_module(model[0], xb, model)
    assert_reached(model[0], model, xb)
    assert got == pytest.approx(stats(model[0], model, xb), abs=1e-6)

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('act',
                         [bent, partial(GeneralRelu, sub=0.1),
                          partial(GeneralRelu, leak=0.3, sub=-2., maxv=8.), partial(GeneralRelu, leak=0.1),
                          partial(GeneralRelu, leak=0.5, maxv=9.), nn.ELU, nn.SELU, nn.Identity, None])
def test_a_block_reaches_it_after_its_activation(act, dtype, xb):
    model, xb = convnet(act).to(dtype), xb.to(dtype)
    for block in model[:2]:
        lsuv_module(block, xb, model)
        assert_reached(block, model, xb)

def test_the_model_itself_may_be_the_layer():
    model, xb = nn.Linear(3, 4), torch.randn(50, 3)
    lsuv_module(model, xb, model)
    assert_reached(model, model, xb)
    lsuv_init(model, 3*xb)
    assert_reached(model, model, 3*xb)

def test_sub_shifts_where_there_is_one_and_stays_a_plain_number(xb):
    model = convnet()
    bias = model[0].conv.bias.detach().clone()
    lsuv_module(model[0], xb, model)
    assert type(model[0].act.sub) is float and model[0].act.sub != 0.4
    ratio = model[0].conv.bias.detach()/bias
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio))   # scaled, not shifted

def test_only_the_layer_is_changed_and_its_weights_by_one_factor(xb):
    model = convnet()
    before = copy.deepcopy(model)
    lsuv_module(model[0], xb, model)
    ratio = (model[0].conv.weight/before[0].conv.weight).flatten()
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-4) and ratio[0] > 0
    for p, q in zip(model[1:].parameters(), before[1:].parameters()): assert torch.equal(p, q)
    assert model[1].act.sub == before[1].act.sub

def test_biases_that_differ_widely_between_channels_do_not_stop_it():
    "With the weight alone scaled, the deviation could not fall below that of the biases."
    model, xb = nn.Sequential(nn.Linear(4, 6)), torch.randn(100, 4)
    with torch.no_grad(): model[0].bias.copy_(torch.linspace(-50, 50, 6))
    lsuv_module(model[0], xb, model)
    assert_reached(model[0], model, xb)

def test_without_bias_and_sub_only_the_deviation_is_set():
    xb = 2 + torch.randn(100, 9, 4)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3, bias=False))
    mean, std = lsuv_module(model[0], xb, model)
    assert abs(std - 1) <= 1e-3 and abs(mean) > 1e-2
    table = lsuv_init(model, xb)
    assert list(table['shift']) == ['none', 'none'] and ((table.std_after - 1).abs() <= 1e-3).all()

def test_an_embedding_counts_as_a_layer_without_a_bias():
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 4))
    table = lsuv_init(model, torch.randint(50, (30, 6)))
    assert list(table['shift']) == ['none', 'bias'] and ((table.std_after - 1).abs() <= 1e-3).all()

def test_a_block_is_measured_before_its_norm_layer(xb):
    for act_first in (True, False):
        model = convnet(norm=nn.BatchNorm2d, act_first=act_first, bias=True)
        lsuv_module(model[0], xb, model)
        assert_reached(model[0].act if act_first else model[0].conv, model, xb)

def test_a_tight_tolerance_is_reached_in_float64(xb):
    model = convnet().double()
    lsuv_module(model[0], xb.double(), model, tol=1e-9, max_iter=40)
    assert_reached(model[0], model, xb.double(), tol=1e-9)

def test_the_bound_on_adjustments_holds(xb):
    model = convnet(partial(GeneralRelu, leak=0.1))
    before = state(model)
    with pytest.raises(LsuvError, match='adjustments'):
        lsuv_module(model[0], xb, model, max_iter=3)
    assert same(state(model), before)

# ---- several batches, kinds of input
def test_several_batches_count_as_one_large_batch(xb):
    one, several, uneven, loader, ours, torchs = (copy.deepcopy(convnet()) for _ in range(6))
    for m in (several, uneven, loader, ours, torchs): m.load_state_dict(one.state_dict())
    y = torch.zeros(64, dtype=torch.int64)
    lsuv_init(one, xb)
    lsuv_init(several, list(xb.split(16)))
    lsuv_init(uneven, list(xb.split([1, 40, 23])))
    lsuv_init(loader, ((b, None) for b in xb.split(16)))
    lsuv_init(ours, make_data(Dataset(xb, y), None, bs=16).train_dl)
    lsuv_init(torchs, TorchLoader(TensorDataset(xb, y), batch_size=16))
    for m in (several, uneven, loader, ours, torchs):
        for p, q in zip(one.parameters(), m.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert_reached(several[0], several, *xb.split(16))

def test_batches_of_different_statistics_are_pooled(xb):
    model, batches = convnet(), [xb, 3*xb + 1]
    lsuv_init(model, batches)
    for block in (model[0], model[1], model[4]): assert_reached(block, model, *batches)
    assert abs(stats(model[0], model, xb)[1] - 1) > 0.1

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.a, self.b = nn.Linear(6, 2), nn.Linear(3, 6), nn.Linear(4, 6)
    def forward(self, a, b): return self.out((self.a(a) + self.b(b)).relu())

def test_a_tuple_gives_several_inputs_and_a_dict_named_ones_in_the_order_of_running():
    a, b = torch.randn(80, 3), 9*torch.randn(80, 4)
    first = Two()
    second = copy.deepcopy(first)
    table, again = lsuv_init(first, (a, b)), lsuv_init(second, dict(b=b, a=a))
    assert list(table.index) == ['a', 'b', 'out'] and table.equals(again)
    assert (table.mean_after.abs() <= 1e-3).all() and ((table.std_after - 1).abs() <= 1e-3).all()
    third = Two()
    lsuv_init(third, [(a[:40], b[:40]), (a[40:], b[40:])])

def test_a_batch_of_our_loader_is_taken_as_a_batch(xb):
    dl = make_data(Dataset(xb, torch.zeros(64, dtype=torch.int64)), None, bs=32).train_dl
    model = convnet()
    batch = next(iter(dl))
    lsuv_init(model, batch)
    assert_reached(model[0], model, batch[0])
    lsuv_init(model, [batch, batch])

@pytest.mark.parametrize('xb, error, says', [
    ([], ValueError, 'batch'), (iter(()), ValueError, 'batch'), ('ab', TypeError, 'str'),
    (None, TypeError, 'iterable'), (3, TypeError, 'iterable'),
    ([np.ones((2, 1, 12, 12))], TypeError, 'ndarray'), (np.ones((2, 1, 12, 12)), TypeError, 'ndarray'),
    (iter([(torch.ones(2),)*3]), TypeError, 'argument')])
def test_what_is_no_batch_is_refused(xb, error, says):
    model = convnet()
    with pytest.raises(error, match=says): lsuv_init(model, xb)

def test_a_data_bunch_is_no_loader(xb):
    data = make_data(Dataset(xb, torch.zeros(64, dtype=torch.int64)), None, bs=16)
    with pytest.raises(TypeError, match='DataBunch'): lsuv_init(convnet(), data)

# ---- the whole model
@pytest.mark.parametrize('act', [bent, partial(GeneralRelu, sub=0.2), nn.ReLU, nn.Tanh, nn.GELU,
                                 partial(GeneralRelu, leak=0.1), None])
def test_every_layer_reaches_it_after_sub_or_before_the_activation(act, xb):
    model = convnet(act)
    table = lsuv_init(model, xb)
    with_sub = act not in (nn.ReLU, nn.Tanh, nn.GELU, None) and act().sub is not None
    for part in (*(block if with_sub else block.conv for block in model[:2]), model[4]):
        assert_reached(part, model, xb)
    assert list(table['shift']) == (['sub', 'sub', 'bias'] if with_sub else ['bias']*3)
    assert list(table.index) == ['0.conv', '1.conv', '4']

def test_a_flat_model_is_paired_with_its_activations():
    model, xb = nn.Sequential(nn.Linear(5, 8), bent(), nn.Linear(8, 8), nn.ReLU(),
                              nn.Linear(8, 3)), torch.randn(99, 5)
    table = lsuv_init(model, xb)
    assert list(table.output_of) == ['GeneralRelu', 'Linear', 'Linear']
    for i in (1, 2, 4): assert_reached(model[i], model, xb)

def test_an_activation_that_two_layers_share_shifts_neither():
    act = bent()
    model, xb = nn.Sequential(nn.Linear(5, 8), act, nn.Linear(8, 3), act), torch.randn(99, 5)
    lsuv_init(model, xb)
    assert act.sub == 0.4
    for i in (0, 2): assert_reached(model[i], model, xb)

def test_the_table_tells_means_and_deviations_before_and_after(xb):
    model = convnet()
    before = [stats(m, model, xb) for m in (model[0], model[1], model[4])]
    table = lsuv_init(model, xb)
    after = [stats(m, model, xb) for m in (model[0], model[1], model[4])]
    np.testing.assert_allclose(table[['mean_before', 'std_before']], before, atol=1e-6)
    np.testing.assert_allclose(table[['mean_after', 'std_after']], after, atol=1e-6)

def test_a_second_time_changes_nothing(xb):
    model = convnet()
    lsuv_init(model, xb)
    before = state(model)
    lsuv_init(model, xb)
    assert same(state(model), before)

def test_modules_may_be_chosen_by_class_function_list_or_one_alone(xb):
    for modules, n in ((nn.Conv2d, 2), ((nn.Conv2d, nn.Linear), 3), (lambda m: isinstance(m, nn.Linear), 1)):
        assert len(lsuv_init(convnet(), xb, modules)) == n
    model = convnet()
    assert list(lsuv_init(model, xb, [model[1], model[0]]).index) == ['0', '1']   # in the order of running
    assert_reached(model[0], model, xb)
    assert_reached(model[1], model, xb)
    model = convnet()
    assert list(lsuv_init(model, xb, model[1]).index) == ['1']
    assert list(lsuv_init(model, xb, (model[0], model[4])).index) == ['0', '4']
    assert list(lsuv_init(model, xb, (m for m in model[:2])).index) == ['0', '1']

@pytest.mark.parametrize('choose, error, says', [
    (lambda m: [], ValueError, 'layer'), (lambda m: nn.Conv3d, ValueError, 'layer'),
    (lambda m: [nn.Linear(1, 1)], ValueError, 'part'),
    (lambda m: [m], LsuvError, 'layers'),
    (lambda m: [m[2]], LsuvError, "'2'"),
    (lambda m: [m[0], m[0].conv], LsuvError, 'stay'), (lambda m: ['0'], ValueError, 'part'),
    (lambda m: 3, ValueError, 'part'), (lambda m: 'conv', ValueError, 'part')])
def test_modules_that_cannot_be_meant_are_refused(choose, error, says, xb):
    model = convnet()
    before = state(model)
    with pytest.raises(error, match=says): lsuv_init(model, xb, choose(model))
    assert same(state(model), before) and no_hooks(model)

@pytest.mark.parametrize('kwargs, error', [(dict(tol=0), ValueError), (dict(tol=-1.), ValueError),
    (dict(tol=math.nan), ValueError), (dict(tol='1'), TypeError),
    (dict(max_iter=2.5), TypeError)])
def test_bounds_that_make_no_sense_are_refused(kwargs, error, xb):
    model = convnet()
    with pytest.raises(error): lsuv_init(model, xb, **kwargs)
    with pytest.raises(error): lsuv_module(model[0], xb, model, **kwargs)

def test_what_is_no_model_or_no_part_of_it_is_refused(xb):
    model = convnet()
    with pytest.raises(AttributeError, match='str'): lsuv_init('model', xb)
    with pytest.raises(ValueError, match='part'): lsuv_module('0', xb, model)
    with pytest.raises(AttributeError, match='NoneType'): lsuv_module(model[0], xb, None)
    with pytest.raises(ValueError, match='part'): lsuv_module(nn.Linear(2, 2), xb, model)
    with pytest.raises(ValueError, match='weight'): lsuv_init(nn.Sequential(nn.ReLU()), xb)
    with pytest.raises(ValueError, match='weight'):
        lsuv_init(nn.Sequential(nn.BatchNorm2d(1)), xb)

def test_norm_layers_are_left_alone(xb):
    for norm in (nn.BatchNorm2d, partial(nn.GroupNorm, 2)):
        model = convnet(norm=norm)
        before = copy.deepcopy(model)
        table = lsuv_init(model, xb)
        assert len(table) == 3
        for a, b in zip(model[:2], before[:2]):
            for (k, v), w in zip(a.norm.state_dict().items(), b.norm.state_dict().values()):
                assert torch.equal(v, w), k
        for block in model[:2]: assert_reached(block.act, model, xb)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm((3, 6)), nn.Linear(6, 2))
    assert list(lsuv_init(model, torch.randn(40, 3, 4)).index) == ['0', '2']

def test_layers_that_do_not_run_are_left_alone_and_refused_if_named():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(3, 4), nn.Linear(3, 4)
        def forward(self, x): return self.used(x)
    model, xb = Spare(), torch.randn(30, 3)
    spare = model.spare.weight.detach().clone()
    assert list(lsuv_init(model, xb).index) == ['used'] and torch.equal(spare, model.spare.weight)
    for run in (lambda: lsuv_init(model, xb, nn.Linear), lambda: lsuv_module(model.spare, xb, model)):
        with pytest.raises(LsuvError, match='spare'): run()

# ---- sharing, computed weights
def test_a_layer_in_two_places_is_pooled_over_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        def forward(self, x): return self.a(self.b(self.a(x)).relu())
    model, xb = Twice(), 3*torch.randn(200, 6)
    lsuv_init(model, xb)
    assert_reached(model.a, model, xb)
    assert_reached(model.b, model, xb)

def test_of_two_layers_with_one_weight_the_second_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    before = state(model)
    with pytest.raises(LsuvError, match="'2'"): lsuv_init(model, torch.randn(20, 4))
    assert same(state(model), before)
    lsuv_init(model, torch.randn(20, 4), [model[0]])

@pytest.mark.parametrize('wrap', [parametrizations.weight_norm, parametrizations.spectral_norm,
                                  parametrizations.orthogonal])
def test_a_computed_weight_is_refused_by_name(wrap):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), wrap(nn.Linear(4, 4)))
    before = state(model)
    for run in (lambda: lsuv_init(model, torch.randn(20, 4)),
                lambda: lsuv_module(model[2], torch.randn(20, 4), model)):
        with pytest.raises(LsuvError, match='computed'): run()
    assert same(state(model), before)
    lsuv_init(model, torch.randn(20, 4), [model[0]])

def test_lazy_layers_get_their_shapes_in_the_first_pass():
    model, xb = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2)), torch.randn(20, 4)
    lsuv_init(model, xb)
    for layer in (model[0], model[2]): assert_reached(layer, model, xb)

def test_a_lazy_layer_is_refused_by_name():
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(LsuvError, match="'0'"):
        lsuv_module(model[0], torch.randn(20, 4), model)

# ---- what cannot converge
def kill(layer):
    nn.init.zeros_(layer.weight)
    if layer.bias is not None: nn.init.constant_(layer.bias, -1.)

@pytest.mark.parametrize('act', [bent, nn.ReLU])
def test_a_dead_layer_is_named_and_all_is_as_before(act, xb):
    model = convnet(act)
    kill(model[1].conv)
    model(xb).sum().backward()
    before = state(model)
    with pytest.raises(LsuvError, match='1.conv'): lsuv_init(model, xb)
    assert same(state(model), before) and no_hooks(model)
    with pytest.raises(LsuvError, match='1.conv'): lsuv_module(model[1].conv, xb, model)
    assert same(state(model), before) and no_hooks(model)

def test_a_constant_input_is_a_dead_layer():
    model = nn.Sequential(nn.Linear(3, 1))
    with pytest.raises(LsuvError, match='everywhere'):
        lsuv_module(model[0], torch.ones(50, 3), model)

@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_nan_and_infinity_are_told(bad, xb):
    model = convnet()
    xb[3, 0, 2, 2] = bad
    with pytest.raises(LsuvError, match='NaN'): lsuv_module(model[0], xb, model)
    with pytest.raises(LsuvError, match='0.conv'): lsuv_init(model, xb)

@pytest.mark.parametrize('act, says', [(nn.ReLU, 'below'), (nn.Sigmoid, 'below'),
                                       (nn.Tanh, 'adjustments'), (nn.Hardtanh, 'adjustments')])
def test_a_block_whose_activation_cannot_give_it_says_so(act, says, xb):
    model = convnet(act)
    before = state(model)
    with pytest.raises(LsuvError, match=says): lsuv_module(model[0], xb, model)
    assert same(state(model), before)

def test_one_number_has_no_deviation():
    model = nn.Sequential(nn.Linear(3, 1))
    with pytest.raises(LsuvError, match='small'): lsuv_init(model, torch.ones(1, 3))

def test_an_output_that_is_no_tensor_is_refused():
    class Odd(nn.Linear):
        def forward(self, x): return super().forward(x), x
    with pytest.raises(AttributeError, match='tuple'): lsuv_init(Odd(3, 4), torch.randn(9, 3))

@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_an_error_on_the_way_restores_everything(error, xb):
    class Fails(nn.Module):
        calls = 0
        def forward(self, x):
            Fails.calls += 1
            if Fails.calls == 5: raise error('enough')
            return x
    model = nn.Sequential(*convnet(norm=nn.BatchNorm2d)[:2], Fails(), nn.Flatten(), nn.Linear(72, 3))
    before, generator = state(model), torch.get_rng_state()
    with pytest.raises(error, match='enough'): lsuv_init(model, xb)
    assert (Fails.calls == 5 and same(state(model), before) and no_hooks(model)
            and torch.equal(generator, torch.get_rng_state()))
    assert torch.is_grad_enabled()

# ---- no trace
class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls, self.last = 0, None
    def forward(self, x):
        self.calls += 1
        self.last = x.sum().item()
        return x + 0.01*random.random() + 0.01*float(np.random.rand())

@pytest.mark.parametrize('training', [True, False])
def test_modes_gradients_buffers_counters_and_generators_stay(training, xb):
    model = nn.Sequential(*convnet(norm=nn.BatchNorm2d)[:2], Counts(), nn.Dropout(0.3), nn.Flatten(),
                          nn.Linear(72, 3))
    model(xb).sum().backward()
    model.train(training)
    model[1].train(not training)
    (sd, modes, grads), counts = state(model), dict(vars(model[2]))
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    requires = [p.requires_grad for p in model.parameters()]
    objects = [id(p) for p in model.parameters()] + [id(b) for b in model.buffers()]
    lsuv_init(model, list(xb.split(32)))
    lsuv_module(model[0], xb, model)
    new_sd, new_modes, new_grads = state(model)
    assert modes == new_modes and all(torch.equal(a, b) for a, b in zip(grads, new_grads))
    for k in sd:
        if 'norm' in k: assert torch.equal(sd[k], new_sd[k]), k
    assert (model[2].calls, model[2].last) == (counts['calls'], counts['last'])
    assert (torch.equal(generators[0], torch.get_rng_state()) and generators[1] == random.getstate()
            and (generators[2] == np.random.get_state()[1]).all())
    assert (requires == [p.requires_grad for p in model.parameters()]
            and all(p.is_leaf for p in model.parameters()))
    assert objects == [id(p) for p in model.parameters()] + [id(b) for b in model.buffers()]
    assert no_hooks(model)

def test_dropout_does_not_keep_it_from_converging():
    model, xb = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Dropout(0.5),
                              nn.Linear(50, 10)), torch.randn(128, 20)
    table = lsuv_init(model, xb, tol=1e-5)
    assert ((table.std_after - 1).abs() <= 1e-5).all()

def test_reading_a_loader_that_shuffles_leaves_the_generators(xb):
    loader = TorchLoader(TensorDataset(xb, torch.zeros(64)), batch_size=16, shuffle=True)
    model, before = convnet(), torch.get_rng_state()
    lsuv_init(model, loader)
    assert torch.equal(before, torch.get_rng_state())

def test_the_users_own_hooks_stay(xb):
    model, seen = convnet(), []
    handle = model[0].register_forward_hook(lambda m, i, o: seen.append(1))
    lsuv_init(model, xb)
    assert seen and list(model[0]._forward_hooks) == [handle.id]

def test_the_model_can_be_trained_afterwards(xb):
    model = convnet()
    lsuv_init(model, xb)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    model(xb).square().mean().backward()
    opt.step()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before))

def test_what_was_reached_survives_saving_and_loading(xb):
    model, other = convnet(), convnet()
    lsuv_init(model, xb)
    other.load_state_dict(model.state_dict())
    for m in (other[0], other[1], other[4]): assert_reached(m, other, xb)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu_batches_are_moved_and_its_generator_stays(xb):
    model = convnet().cuda()
    generator = torch.cuda.get_rng_state()
    lsuv_init(model, xb)
    assert_reached(model[0], model, xb.cuda())
    assert torch.equal(generator, torch.cuda.get_rng_state())
