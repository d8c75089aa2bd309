"""Windows, convolutions, pooling and their gradients equal PyTorch's over random shapes, settings and types;
fields and costs equal what is measured."""
import math, random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from exp.convolutions import (ConvCost, ReceptiveField, avg_pool2d, avg_pool2d_backward, conv2d,
                              conv2d_backward, conv_cost, conv_transpose2d, fold2d, max_pool2d,
                              max_pool2d_backward, model_cost, out_size, receptive_field, unfold2d)
from exp.core import test_close as assert_close, test_eq as assert_eq

several = settings(max_examples=60, deadline=None)
pairs = lambda low, high: st.one_of(st.integers(low, high),
                                    st.tuples(st.integers(low, high), st.integers(low, high)))
two = lambda v: v if isinstance(v, tuple) else (v, v)

@st.composite
def windows(draw, dilation=True):
    "Kernel size, how it moves, and an image that it fits in."
    ks, stride, padding = draw(pairs(1, 4)), draw(pairs(1, 3)), draw(pairs(0, 2))
    dilations = draw(pairs(1, 3)) if dilation else 1
    size = [max(1, d*(k - 1) + 1 - 2*p) + draw(st.integers(0, 6))
            for k, d, p in zip(*map(two, (ks, dilations, padding)))]
    return ks, dict(stride=stride, padding=padding, dilation=dilations), size

def doubles(*shape): return torch.randn(*shape, dtype=torch.double)

@several
@given(windows(), st.integers(0, 3), st.integers(1, 3))
def test_gather_and_scatter_are_unfold_and_fold(case, n, c):
    ks, moves, size = case
    x = doubles(n, c, *size)
    columns = unfold2d(x, ks, **moves)
    if n: assert_eq(columns, F.unfold(x, ks, **moves))
    g = torch.randn_like(columns)
    back = fold2d(g, size, ks, **moves)
    assert back.shape == x.shape
    if n: assert_close(back, F.fold(g, size, ks, **moves), 1e-12)
    assert_close((columns*g).sum(), (x*back).sum(), 1e-10)

@several
@given(windows(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.booleans())
def test_a_convolution_and_its_gradients_are_pytorchs(case, groups, ni, nf, n, biased):
    ks, moves, size = case
    x, weight = doubles(n, groups*ni, *size), doubles(groups*nf, ni, *two(ks))
    bias = doubles(groups*nf) if biased else None
    leaves = [t.clone().requires_grad_() for t in (x, weight, *([bias] if biased else []))]
    theirs = F.conv2d(*leaves, groups=groups, **moves)
    assert_close(conv2d(x, weight, bias, groups=groups, **moves), theirs, 1e-12)
    grad = torch.randn_like(theirs)
    found = conv2d_backward(grad, x, weight, groups=groups, **moves)
    for ours, right in zip(found, torch.autograd.grad(theirs, leaves, grad)): assert_close(ours, right, 1e-10)
    assert_close(found[2], grad.sum((0, 2, 3)), 1e-12)

@several
@given(windows(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.data())
def test_a_transposed_convolution_is_pytorchs_and_the_gradient_of_a_convolution(case, groups, ni, nf, data):
    ks, moves, size = case
    out = list(map(out_size, size, *map(two, (ks, moves['stride'], moves['padding'], moves['dilation']))))
    x, weight, bias = doubles(2, groups*ni, *out), doubles(groups*ni, nf, *two(ks)), doubles(groups*nf)
    more = [n + 2*p - d*(k - 1) - 1 - s*(o - 1) for n, o, k, s, p, d in
            zip(size, out, *map(two, (ks, moves['stride'], moves['padding'], moves['dilation'])))]
    ours = conv_transpose2d(x, weight, bias, output_padding=more, groups=groups, **moves)
    assert ours.shape == (2, groups*nf, *size)
    if all(m < max(s, d) for m, s, d in zip(more, two(moves['stride']), two(moves['dilation']))):
        assert_close(ours, F.conv_transpose2d(x, weight, bias, output_padding=more, groups=groups, **moves),
                     1e-12)
    image = doubles(2, groups*nf, *size)
    for_x = conv2d_backward(x, image, weight, groups=groups, **moves)[0]
    assert_close(for_x, ours - bias[:, None, None], 1e-12)

@several
@given(windows(dilation=False), st.integers(1, 3), st.booleans(), st.booleans())
def test_pooling_and_its_gradients_are_pytorchs(case, c, default_stride, ties):
    ks, moves, size = case
    stride, padding = (None if default_stride else moves['stride'],
                       tuple(min(p, k//2) for p, k in zip(*map(two, (moves['padding'], ks)))))
    size = [max(n, k) for n, k in zip(size, two(ks))]
    x = torch.randint(3, (2, c, *size)).double() if ties else doubles(2, c, *size)
    for ours, backward, theirs in ((max_pool2d, max_pool2d_backward, F.max_pool2d),
                                   (avg_pool2d, avg_pool2d_backward, F.avg_pool2d)):
        leaf = x.clone().requires_grad_()
        right = theirs(leaf, ks, stride, padding)
        assert_close(ours(x, ks, stride, padding), right, 1e-12)
        grad = torch.randn_like(right)
        assert_close(backward(grad, x, ks, stride, padding), torch.autograd.grad(right, leaf, grad)[0], 1e-12)

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_types_stay_and_gradients_flow_through(dtype):
    x, weight = torch.randn(2, 3, 6, 6, dtype=dtype,
                            requires_grad=True), torch.randn(4, 3, 3, 3, dtype=dtype, requires_grad=True)
    out = max_pool2d(conv2d(x, weight, padding=1), 2)
    out.sum().backward()
    assert out.dtype == dtype and x.grad.dtype == dtype and weight.grad.abs().sum() > 0
    a, b = (t.detach().double().requires_grad_() for t in (x, weight))
    if dtype != torch.bfloat16:
        F.max_pool2d(F.conv2d(a, b, padding=1), 2).sum().backward()
        assert_close(x.grad, a.grad, 1e-4), assert_close(weight.grad, b.grad, 1e-4)

def test_memory_formats_do_not_matter():
    x, weight = doubles(2, 4, 6, 6).to(memory_format=torch.channels_last), doubles(6, 2, 3, 3).to(
        memory_format=torch.channels_last)
    assert_close(conv2d(x, weight, groups=2), F.conv2d(x, weight, groups=2), 1e-12)
    grad = doubles(2, 6, 4, 4).to(memory_format=torch.channels_last)
    assert_eq(conv2d_backward(grad, x, weight, groups=2)[1].shape, weight.shape)

def test_nan_comes_through_a_maximum():
    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 1, 0] = math.nan
    assert max_pool2d(x, 2).isnan().all()

# ---- what is refused

@pytest.mark.parametrize('make,kind,word', [
    (lambda: out_size(3, 5), ValueError, 'fit'),
    (lambda: out_size(3, 3, dilation=2), ValueError, 'fit'),
    (lambda: out_size(3.5, 3), TypeError, 'whole'),
    (lambda: out_size(3, 3, stride=0), ValueError, 'stride'),
    (lambda: out_size(3, 3, padding=-1), ValueError, 'padding'),
    (lambda: unfold2d(torch.zeros(1, 1, 4, 4), (3, 3, 3)), ValueError, 'them'),
    (lambda: conv2d(torch.zeros(1, 3, 4, 4), torch.zeros(2, 2, 3, 3)), ValueError, 'channels'),
    (lambda: conv2d(torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 5, 5)), ValueError, 'fit'),
    (lambda: max_pool2d(torch.zeros(1, 1, 4, 4), 2, padding=2), ValueError, 'half'),
    (lambda: conv_cost(3, 8, 3, 28, groups=2), ValueError, 'divide'),
    (lambda: conv_cost(3, 0, 3, 28), ValueError, 'nf'),
    (lambda: conv_cost(3, 8, (3, 3), (8, 28, 28)), ValueError, 'them'),
    (lambda: conv_cost(3, 8, 7, 5), ValueError, 'fit'),
    (lambda: receptive_field([nn.ConvTranspose2d(1, 1, 2)]), ValueError, 'window'),
    (lambda: receptive_field([nn.AdaptiveAvgPool2d(1)]), ValueError, 'window'),
    (lambda: receptive_field([nn.Upsample(scale_factor=2)]), ValueError, 'window'),
    (lambda: receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten())), ValueError, 'window'),
    (lambda: receptive_field([nn.ModuleList([nn.Conv2d(1, 1, 3)])]), ValueError, 'chain'),
])
def test_a_wrong_size_is_named(make, kind, word):
    with pytest.raises(kind, match=word) as e: make()
    assert len(str(e.value)) < 160

# ---- costs

@several
@given(windows(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_a_cost_is_the_layers_and_the_counters(case, groups, ni, nf, bias):
    ks, moves, size = case
    layer = nn.Conv2d(groups*ni, groups*nf, ks, groups=groups, bias=bias, **moves)
    with FlopCounterMode(display=False) as counter: out = layer(torch.zeros(1, groups*ni, *size))
    params = sum(p.numel() for p in layer.parameters())
    right = ConvCost(tuple(out.shape[2:]), params, counter.get_total_flops()//2)
    assert conv_cost(groups*ni, groups*nf, ks, tuple(size), groups=groups, bias=bias, **moves) == right
    assert model_cost(layer, torch.zeros(3, groups*ni, *size)) == [('', right)]

@pytest.mark.parametrize('layer,size', [(nn.Conv1d(4, 6, 3, 2, padding=1, groups=2), (9,)),
                                        (nn.Conv3d(2, 3, (2, 3, 3), padding=(0, 1, 1)), (4, 6, 7))])
def test_a_cost_in_one_and_three_dimensions(layer, size):
    with FlopCounterMode(display=False) as counter: out = layer(torch.zeros(1, layer.in_channels, *size))
    cost = conv_cost(layer.in_channels, layer.out_channels, layer.kernel_size, size, layer.stride,
                     layer.padding, layer.dilation, layer.groups)
    assert (cost == (tuple(out.shape[2:]), sum(p.numel() for p in layer.parameters()),
                     counter.get_total_flops()//2))

def test_the_cost_of_a_model_is_the_counters_and_leaves_it_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                          nn.ConvTranspose2d(8, 4, 2, 2, groups=2),
                          nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(2, 3, 6, 6)
    costs = model_cost(model, x)
    with FlopCounterMode(display=False) as counter: model(x[:1].repeat(2, 1, 1, 1))
    assert 2*2*sum(cost.mult_adds for _, cost in costs) == counter.get_total_flops()
    assert [name for name, _ in costs] == ['0', '3', '6'] and costs[-1][1] == ((), 16*5 + 5, 16*5)
    model.load_state_dict(before)
    model_cost(model, x)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())

# ---- receptive fields

def measured(layers, size, at):
    "First pixel and size of what output `at` depends on, by its gradient with weights of one."
    for p in layers.parameters(): nn.init.ones_(p)
    x = torch.ones(1, 1, size, size, dtype=torch.double, requires_grad=True)
    layers.double()(x)[0, 0][at].backward()
    seen = x.grad[0, 0].nonzero()
    return tuple(seen.amin(0).tolist()), tuple((seen.amax(0) - seen.amin(0) + 1).tolist())

@pytest.mark.parametrize('seed', range(25))
def test_a_field_is_where_the_gradient_is(seed):
    rng = random.Random(seed)
    def some(low, high): return rng.randint(low, high), rng.randint(low, high)
    def layer():
        ks = some(1, 4)
        if rng.random() < 0.3: return nn.AvgPool2d(ks, some(1, 2), tuple(k//2 for k in ks))
        if rng.random() < 0.2:
            return nn.Conv2d(1, 1, ks, padding=rng.choice(('same', 'valid')), dilation=some(1, 2))
        return nn.Conv2d(1, 1, ks, some(1, 2), some(0, 2), some(1, 2))
    net = nn.Sequential(nn.Sequential(layer(), nn.ReLU()), *[layer() for _ in range(rng.randint(0, 2))])
    field, at = receptive_field(net), (5, 5)
    start = tuple(s + 5*step for s, step in zip(field.start, field.step))
    if min(start) < 0: at, start = (9, 9), tuple(s + 9*step for s, step in zip(field.start, field.step))
    if min(start) < 0: pytest.skip('the field reaches into the padding')
    assert measured(net, 160, at) == (start, field.size)

def test_a_field_of_nothing_is_a_pixel():
    assert receptive_field([nn.ReLU()]) == ReceptiveField(size=(1, 1), step=(1, 1), start=(0, 0))
