"GeneralRelu, conv_layer and init_cnn: parity with PyTorch, what is saved, what is refused."
import copy, json, math, pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from exp.specs import from_spec, register, to_spec
from exp.core import load_state, near, save_state, test_close, test_eq
from exp.layers import GeneralRelu, Lambda, conv_layer, init_cnn

nan, inf = math.nan, math.inf
numbers = st.floats(-3, 3, allow_nan=False)

# ---- GeneralRelu
@settings(max_examples=60, deadline=None)
@given(leak=st.none()|st.floats(0, 1), sub=st.none()|st.floats(-2, 2), above=st.none()|st.floats(0.01, 8),
       seed=st.integers(0, 999))
def test_equals_leaky_relu_then_subtraction_then_bound_with_its_gradient(leak, sub, above, seed):
    maxv = None if above is None else above - (sub or 0)
    g = torch.Generator().manual_seed(seed)
    x = (4*torch.randn(5, 7, generator=g, dtype=torch.float64)).requires_grad_()
    y = x.detach().clone().requires_grad_()
    ours = GeneralRelu(leak, sub, maxv)(x)
    theirs = F.leaky_relu(y, leak or 0.) - (sub or 0)
    if maxv is not None: theirs = torch.minimum(theirs, torch.tensor(maxv, dtype=torch.float64))
    test_close(ours, theirs, 1e-12)
    out = torch.randn(5, 7, generator=g, dtype=torch.float64)
    ours.backward(out)
    theirs.backward(out)
    test_close(x.grad, y.grad, 1e-12)

def test_without_arguments_it_is_relu_at_every_value():
    x = torch.tensor([-inf, -1., -0., 0., 1., inf, nan], requires_grad=True)
    y = x.detach().clone().requires_grad_()
    a, b = GeneralRelu()(x), F.relu(y)
    assert torch.equal(a[:-1], b[:-1]) and a[-1].isnan()
    a[1:5].sum().backward()
    b[1:5].sum().backward()
    test_eq(x.grad, y.grad)

def test_equals_relu6():
    x = 6*torch.randn(1000)
    test_eq(GeneralRelu(maxv=6)(x), F.relu6(x))

@pytest.mark.parametrize('kwargs', [{}, dict(leak=0.1), dict(sub=0.4), dict(leak=0.1, sub=0.4, maxv=2.),
                                    dict(leak=0., maxv=1.), dict(leak=1.)])
def test_gradcheck(kwargs):
    # away from the corners
    x = torch.tensor([-3., -1.2, -0.3, 0.2, 0.9, 1.7, 3.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(GeneralRelu(**kwargs), x)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_the_dtype_and_shape(dtype):
    out = GeneralRelu(0.1, 0.4, 6.)(torch.randn(2, 3, 4, 5).to(dtype))
    assert out.dtype == dtype and out.shape == (2, 3, 4, 5)

@pytest.mark.parametrize('kwargs',
                         [{}, dict(leak=0.1), dict(sub=0.4), dict(maxv=2.), dict(leak=0.1, sub=0.4, maxv=2.)])
def test_leaves_its_input_alone_and_may_follow_what_saves_its_output(kwargs):
    x = torch.randn(4, 5, requires_grad=True)
    before = x.detach().clone()
    y = x.exp()                              # exp's backward needs its output
    kept = y.detach().clone()
    GeneralRelu(**kwargs)(y - 1).sum().backward()
    assert x.grad.isfinite().all()
    test_eq(y.detach(), kept)
    test_eq(x.detach(), before)
    GeneralRelu(**kwargs)(GeneralRelu(**kwargs)(x)).sum().backward()

def test_gradients_of_gradients():
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda t: GeneralRelu(0.1, 0.4, 9.)(t)**2, x)

def test_repr_tells_what_is_set_now():
    act = GeneralRelu(leak=0.1, maxv=6.)
    assert repr(act) == 'GeneralRelu(leak=0.1, maxv=6)' and repr(GeneralRelu()) == 'GeneralRelu()'
    act.sub = 0.4000000059604645
    assert repr(act) == 'GeneralRelu(leak=0.1, sub=0.4, maxv=6)'

def test_a_misspelt_argument_is_refused():
    with pytest.raises(TypeError): GeneralRelu(slope=0.1)

def test_a_bound_below_zero_is_fine_where_sub_lies_deeper():
    test_close(GeneralRelu(sub=0.4, maxv=-0.1)(torch.tensor([-1., 0.2, 5.])),
               torch.tensor([-0.4, -0.2, -0.1]))

# ---- what is saved
@settings(max_examples=40, deadline=None)
@given(leak=st.none()|st.floats(0, 1), sub=st.none()|numbers, later=st.none()|numbers)
def test_spec_round_trip_has_the_values_as_they_are_now(leak, sub, later):
    act = GeneralRelu(leak, sub=sub)
    act.sub = later
    spec = json.loads(json.dumps(to_spec(act)))   # plain data
    again = from_spec(spec)
    assert (again.leak, again.sub, again.maxv) == (leak, later, None)

def test_spec_of_a_partial():
    again = from_spec(to_spec(partial(GeneralRelu, leak=0.1, sub=0.4)))
    assert repr(again()) == 'GeneralRelu(leak=0.1, sub=0.4)'

def test_a_subclass_is_not_written_as_its_base():
    class Mine(GeneralRelu): pass
    with pytest.raises(TypeError, match='registered'): to_spec(Mine(0.1))

def shifted():
    model = nn.Sequential(conv_layer(1, 4, act=partial(GeneralRelu, 0.1, 0.4)),
                          conv_layer(4, 4, act=partial(GeneralRelu, 0.1)))
    model[0].act.sub, model[1].act.sub = 0.123456789, -0.75
    return model

def test_weights_carry_sub_into_a_fresh_model(tmp_path):
    model, fresh = shifted(), nn.Sequential(conv_layer(1, 4, act=partial(GeneralRelu, 0.1, 0.4)),
                                            conv_layer(4, 4, act=partial(GeneralRelu, 0.1)))
    save_state(tmp_path/'m.pt', model.state_dict())
    fresh.load_state_dict(load_state(tmp_path/'m.pt'))
    x = torch.randn(2, 1, 28, 28)
    test_eq(fresh(x), model(x))   # to the bit
    assert near(fresh[0].act.sub, 0.123456789, 1e-7) and fresh[1].act.sub == -0.75
    assert type(fresh[0].act.sub) is float

def test_a_missing_sub_is_reported_and_with_strict_false_kept():
    model = shifted()
    state = {k: v for k, v in model.state_dict().items() if not k.endswith('sub')}
    with pytest.raises(RuntimeError, match='0.act.sub'): model.load_state_dict(state)
    assert model.load_state_dict(state, strict=False).missing_keys == ['0.act.sub', '1.act.sub']
    assert model[1].act.sub == -0.75

def test_the_loaded_state_is_not_changed_and_other_keys_are_still_unexpected():
    act = GeneralRelu(sub=0.4)
    state = act.state_dict()
    act.load_state_dict(state)
    assert list(state) == ['sub']
    with pytest.raises(RuntimeError, match='Unexpected'):
        act.load_state_dict({**state, 'other': torch.zeros(1)})

def test_without_sub_the_state_is_a_relus():
    a, b = conv_layer(1, 4, act=partial(GeneralRelu, 0.1)), conv_layer(1, 4, act=nn.LeakyReLU)
    a.load_state_dict(b.state_dict())
    b.load_state_dict(a.state_dict())

def test_copies_and_pickles_keep_sub():
    model = shifted()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again[1].act.sub == -0.75
        again[1].act.sub = 0.
    assert model[1].act.sub == -0.75

# ---- Lambda
@register
def halve(x): return x/2

def test_lambda_applies_its_function_and_shows_its_name():
    layer = Lambda(halve)
    test_eq(layer(torch.ones(2)), torch.full((2,), 0.5))
    assert repr(layer) == 'Lambda(halve)' and 'partial' in repr(Lambda(partial(torch.mean, dim=1)))
    test_eq(from_spec(to_spec(layer))(torch.ones(2)), torch.full((2,), 0.5))

@pytest.mark.parametrize('f', [None, 3, 'relu'])
def test_lambda_refuses_what_cannot_be_called(f):
    with pytest.raises(TypeError, match='callable'): Lambda(f)(torch.ones(2))

# ---- conv_layer
BN = nn.BatchNorm2d
@pytest.mark.parametrize('kwargs, names', [
    ({}, ['conv', 'act']), (dict(act=None), ['conv']), (dict(norm=BN), ['conv', 'act', 'norm']),
    (dict(norm=BN, act_first=False), ['conv', 'norm', 'act']), (dict(norm=BN, act=None), ['conv', 'norm']),
    (dict(act_first=False), ['conv', 'act'])])
def test_parts_and_their_order(kwargs, names):
    layer = conv_layer(3, 8, **kwargs)
    assert ([n for n, _ in layer.named_children()] == names and isinstance(layer, nn.Sequential)
            and layer[0] is layer.conv)

@pytest.mark.parametrize('norm, bias, expected',
                         [(None, None, True), (BN, None, False), (None, False, False), (BN, True, True)])
def test_bias_only_without_norm_unless_asked(norm, bias, expected):
    assert (conv_layer(3, 8, norm=norm, bias=bias).conv.bias is not None) == expected

def test_state_dict_keys_do_not_depend_on_order_or_activation():
    keys = [sorted(conv_layer(3, 8, norm=BN, **kw).state_dict())
            for kw in ({}, dict(act=None), dict(act_first=False), dict(act=nn.PReLU, ks=5))]
    assert keys[0] == keys[1] == keys[2] == sorted(set(keys[3]) - {'act.weight'})
    assert sorted(conv_layer(3, 8).state_dict()) == ['conv.bias', 'conv.weight']

@pytest.mark.parametrize('ks', [1, 3, 5, 7])
@pytest.mark.parametrize('size', [1, 7, 28, 31])
@pytest.mark.parametrize('stride', [1, 2, 3])
def test_equals_conv2d_with_half_padding(ks, size, stride):
    layer, x = conv_layer(2, 3, ks, stride), torch.randn(2, 2, size, size)
    test_close(layer(x), F.relu(F.conv2d(x, layer.conv.weight, layer.conv.bias, stride, ks//2)))
    assert layer(x).shape[-1] == -(-size//stride)

def test_each_block_gets_its_own_activation_and_norm():
    act = partial(GeneralRelu, sub=0.4)
    a, b = conv_layer(1, 4, act=act, norm=BN), conv_layer(1, 4, act=act, norm=BN)
    assert a.act is not b.act and a.norm is not b.norm and a.norm.num_features == 4

@pytest.mark.parametrize('kwargs, kind, words', [
    (dict(ks=2), ValueError, 'even'), (dict(ks=3.), TypeError, 'int'),
    (dict(nf=-1), RuntimeError, 'negative'),
    (dict(act=nn.ReLU()), TypeError, 'own'),
    (dict(act=GeneralRelu(0.1)), TypeError, 'GeneralRelu'),
    (dict(norm=BN(8)), TypeError, 'own'), (dict(act='relu'), TypeError, 'callable'),
    (dict(norm=True), TypeError, 'callable')])
def test_bad_arguments_are_refused(kwargs, kind, words):
    with pytest.raises(kind, match=words): conv_layer(**{'ni': 1, 'nf': 8, **kwargs})

def test_a_function_in_place_of_an_activation_maker_is_refused():
    with pytest.raises(TypeError): conv_layer(1, 8, act=F.relu)

# ---- init_cnn
CONVS = [(nn.Linear, ()), (nn.Conv1d, (3,)), (nn.Conv2d, (3,)), (nn.Conv3d, (3,)), (nn.ConvTranspose1d, (3,)),
         (nn.ConvTranspose2d, (3,)), (nn.ConvTranspose3d, (3,))]
ACTS = [(nn.ReLU, 0.), (GeneralRelu, 0.), (partial(GeneralRelu, leak=0.5), 0.5),
        (partial(nn.LeakyReLU, 0.5), 0.5), (nn.Identity, 0.), (nn.Tanh, 0.)]

@pytest.mark.parametrize('uniform', [False, True])
@pytest.mark.parametrize('act, leak', ACTS)
@pytest.mark.parametrize('kind, ks', CONVS)
def test_deviation_per_layer_type_and_leak(kind, ks, act, leak, uniform):
    torch.manual_seed(0)
    layer = kind(128, 96, *ks)
    n = 128*math.prod(layer.weight.shape[2:])
    model = nn.Sequential(layer, act())
    assert init_cnn(model, uniform) is model
    std = math.sqrt(2/((1 + leak**2)*n))
    w = layer.weight.detach()
    assert abs(w.std()/std - 1) < 5/math.sqrt(2*w.numel()) and abs(w.mean()) < 5*std/math.sqrt(w.numel())
    assert (w.abs().max() <= math.sqrt(3)*std*(1 + 1e-6)) == uniform
    test_eq(layer.bias.detach(), torch.zeros(96))

@pytest.mark.parametrize('uniform', [False, True])
def test_equals_torchs_kaiming_from_the_same_seed(uniform):
    a, b = nn.Conv2d(3, 8, 5), nn.Conv2d(3, 8, 5)
    torch.manual_seed(1)
    init_cnn(nn.Sequential(a, nn.LeakyReLU(0.2)), uniform)
    torch.manual_seed(1)
    (nn.init.kaiming_uniform_ if uniform else nn.init.kaiming_normal_)(b.weight, a=0.2)
    test_close(a.weight, b.weight, 1e-6)

@pytest.mark.slow
@pytest.mark.parametrize('stride, groups', [(1, 1), (2, 1), (2, 4), (3, 2)])
def test_a_transposed_convolution_keeps_the_mean_square(stride, groups):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(256, 256, 6, stride=stride, groups=groups)
    init_cnn(nn.Sequential(layer, nn.ReLU()))
    with torch.no_grad(): out = layer(torch.randn(4, 256, 20, 20)).relu()[..., 12:-12, 12:-12]
    assert 0.8 < out.square().mean() < 1.25

def test_grouped_convolutions_count_their_own_inputs():
    torch.manual_seed(0)
    layer = nn.Conv2d(256, 256, 3, groups=32)
    init_cnn(layer)
    assert abs(layer.weight.std()/math.sqrt(2/72) - 1) < 0.05

def leaks(model):
    "The leak that each layer was initialised for, 0 or 0.5, read from its weights."
    init_cnn(model)
    return [0.5 if 2/(m.weight.var().item()*m.weight[0].numel()) > 1.125 else 0.
            for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]

def test_the_leak_is_seen_through_norms_and_nested_sequentials():
    torch.manual_seed(0)
    half = partial(GeneralRelu, leak=0.5)
    conv = partial(nn.Conv2d, 64, 64, 3)
    assert (leaks(nn.Sequential(conv(), nn.Sequential(nn.BatchNorm2d(64), nn.Dropout(), nn.LeakyReLU(0.5))))
            == [0.5])
    assert leaks(nn.Sequential(nn.Sequential(conv()), half(), conv(), nn.ReLU(), conv())) == [0.5, 0., 0.]
    assert leaks(nn.Sequential(half(), conv())) == [0.]   # one that comes before does not count
    assert leaks(conv_layer(64, 64, norm=BN, act=half, act_first=False)) == [0.5]

class Hidden(nn.Module):
    "Its order is known to its `forward` alone."
    def __init__(self):
        super().__init__()
        self.act, self.a, self.b, self.inner = nn.LeakyReLU(0.5), nn.Conv2d(64, 64, 3), nn.Conv2d(
            64, 64, 3), conv_layer(64, 64, act=partial(nn.LeakyReLU, 0.5))

def test_where_the_order_is_not_known_a_relu_is_assumed():
    torch.manual_seed(0)
    assert leaks(Hidden()) == [0., 0., 0.5]
    assert leaks(nn.Sequential(nn.Conv2d(64, 64, 3), Hidden(), nn.LeakyReLU(0.5))) == [0., 0., 0., 0.5]
    assert leaks(nn.ModuleList([nn.Conv2d(64, 64, 3), nn.LeakyReLU(0.5)])) == [0.]

def test_a_sequential_with_a_forward_of_its_own_tells_no_order():
    class Backwards(nn.Sequential):
        def forward(self, x):
            for m in reversed(self): x = m(x)
            return x
    class Plain(nn.Sequential): pass
    parts = lambda: (nn.Conv2d(64, 64, 3), nn.LeakyReLU(0.5))
    assert leaks(Backwards(*parts())) == [0.] and leaks(Plain(*parts())) == [0.5]

def test_norms_and_embeddings_are_left_alone_and_layers_without_bias_are_fine():
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8))
    with torch.no_grad(): model[2].bias.fill_(3.)
    before = model[0].weight.clone()
    init_cnn(model)
    test_eq(model[0].weight, before)
    test_eq(model[2].bias.detach(), torch.full((8,), 3.))

def test_weights_stay_parameters_and_frozen_ones_stay_frozen():
    layer = nn.Conv2d(1, 4, 3)
    layer.weight.requires_grad_(False)
    w = layer.weight
    init_cnn(layer)
    assert (layer.weight is w and not w.requires_grad and layer.bias.requires_grad
            and layer.bias.grad_fn is None)

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    layer = init_cnn(nn.Linear(256, 256).to(dtype))
    assert layer.weight.dtype == dtype and abs(layer.weight.double().std()/math.sqrt(2/256) - 1) < 0.03

@pytest.mark.parametrize('model, error', [(None, AttributeError), ('cnn', AttributeError),
                                          ([nn.Linear(2, 2)], AttributeError), (nn.Linear, TypeError)])
def test_init_refuses_what_is_no_module(model, error):
    with pytest.raises(error, match='children'): init_cnn(model)

def test_a_lazy_layer_has_no_weight_to_set():
    with pytest.raises(RuntimeError, match='uninitialized'):
        init_cnn(nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3)))
