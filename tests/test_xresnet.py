"""XResNets have the sizes, parameters and costs that the papers' rules give, in every combination of options;
they start as their shortcuts, see every pixel, and can be written down, cut, cast and trained."""
import copy, math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from exp.core import test_close as assert_close
from exp.core import test_eq as assert_eq
from exp.dataloader import Dataset, make_data
from exp.inference import load_learner
from exp.layers import GeneralRelu
from exp.learner import Learner
from exp.specs import from_spec, to_spec
from exp.xresnet import (BlurPool, SqueezeExcite, XResBlock, XResNet, xresnet18, xresnet34, xresnet50,
                         xresnet101, xresnet152, xresnet_stem)

several = settings(max_examples=25, deadline=None)
numels = lambda model: sum(p.numel() for p in model.parameters())

def blocks_of(model): return [m for m in model.modules() if isinstance(m, XResBlock)]

def last_norm(block): return [layer for layer in block.branch if hasattr(layer, 'norm')][-1].norm

def tiny(**options):
    "A net of one block a stage that a test can afford."
    return XResNet([1, 1], 3, 5, widths=(8, 16), stem=(4, 8), **options)

# ---- parameters

def counted(blocks, ni=3, c=1000, width=1, bottleneck=False, se=None):
    "The parameters of an XResNet, added up layer by layer."
    def conv(i, o, ks): return i*o*ks*ks + 2*o   # weights, and the norm's scale and shift
    def gate(n):
        hidden = max(n//se, 8)
        return n*hidden + hidden + hidden*n + n
    w = lambda n: round(n*width)
    total = conv(ni, w(32), 3) + conv(w(32), w(32), 3) + conv(w(32), w(64), 3)
    channels = w(64)
    for n, nf in zip(blocks, map(w, (64, 128, 256, 512))):
        out = 4*nf if bottleneck else nf
        for i in range(n):
            if bottleneck: total += conv(channels, nf, 1) + conv(nf, nf, 3) + conv(nf, out, 1)
            else: total += conv(channels, nf, 3) + conv(nf, out, 3)
            if channels != out: total += conv(channels, out, 1)
            if se: total += gate(out)
            channels = out
    return total + channels*c + c

@pytest.mark.parametrize('make,blocks,bottleneck', [
    (xresnet18, (2, 2, 2, 2), False), (xresnet34, (3, 4, 6, 3), False), (xresnet50, (3, 4, 6, 3), True),
    (xresnet101, (3, 4, 23, 3), True), (xresnet152, (3, 8, 36, 3), True)])
@pytest.mark.parametrize('given', [{}, dict(ni=1, c=10, width=0.5), dict(ni=4, c=7, width=0.25, se=16)])
def test_parameters_are_those_counted_by_hand(make, blocks, bottleneck, given):
    with torch.device('meta'): model = make(**given)
    assert numels(model) == counted(blocks, bottleneck=bottleneck, **given)

@pytest.mark.parametrize('make,published', [(xresnet18, 11_689_512), (xresnet34, 21_797_672),
                                            (xresnet50, 25_557_032), (xresnet101, 44_549_160),
                                            (xresnet152, 60_192_808)])
def test_but_for_the_stem_parameters_are_those_of_the_published_resnets(make, published):
    with torch.device('meta'): model = make()
    assert numels(model) - numels(model.stem) + 64*3*7*7 + 2*64 == published

def test_depth_is_what_the_name_says():
    for make in (xresnet18, xresnet34, xresnet50, xresnet101, xresnet152):
        with torch.device('meta'): model = make()
        layers = [layer for block in blocks_of(model) for layer in block.branch]
        assert make.__name__ == f'xresnet{len(layers) + 2}'   # and stem, head

# ---- shapes

@several
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3, 4]), st.sampled_from([1, 2, 4]),
       st.fixed_dictionaries(dict(blur=st.booleans(), se=st.sampled_from([None, 4]),
                                  expansion=st.sampled_from([1, 4]),
                                  act=st.sampled_from([nn.ReLU, nn.Mish]))))
def test_every_size_and_combination_of_options_goes_through(h, w, ni, stem_stride, options):
    model = XResNet([1, 2], ni, 5, 0.5, widths=(8, 16), stem=(4, 8), stem_stride=stem_stride,
                    **options).eval()
    x = torch.randn(2, ni, h, w)
    up = lambda n, times: math.ceil(n/times)
    body = model[:-3](x)
    assert body.shape == (2, 8*options['expansion'], up(h, 2*stem_stride), up(w, 2*stem_stride))
    assert_close(model(x), model.head(body.mean((2, 3))), 1e-4)
    assert model(x).shape == (2, 5) and model(x).isfinite().all()

@pytest.mark.parametrize('make,width,features', [(xresnet18, 0.25, 128), (xresnet18, 2, 1024),
                                                 (xresnet34, 0.5, 256), (xresnet50, 0.25, 512),
                                                 (xresnet101, 0.25, 512)])
def test_widths_scale_every_layer(make, width, features):
    model = make(ni=1, c=3, width=width).eval()
    with torch.no_grad(): maps = model[:-3](torch.randn(1, 1, 65, 97))
    assert maps.shape == (1, features, 3, 4) and model.head.in_features == features
    assert [layer.conv.out_channels for layer in model.stem[:3]] == [32*width, 32*width, 64*width]

def test_a_body_is_all_but_the_head():
    model = tiny()
    body = model[:-3]
    assert type(body) is nn.Sequential and list(body._modules) == ['stem', 'stage1', 'stage2']
    assert body.stage1 is model.stage1 and model[0] is model.stem and model[-1] is model.head
    assert_eq(from_spec(to_spec(body)).load_state_dict(body.state_dict()).missing_keys, [])

# ---- the tricks

@pytest.mark.parametrize('options', [{}, dict(expansion=4), dict(se=4), dict(blur=True, se=4, act=nn.SiLU)])
def test_at_the_start_a_block_is_its_shortcut(options):
    torch.manual_seed(0)
    for block in blocks_of(tiny(**options)):
        x = torch.randn(2, block.branch[0].conv.in_channels, 9, 9)
        assert_eq(block(x), block.act(block.shortcut(x)))
        assert block.branch(x).abs().max() == 0

@pytest.mark.parametrize('options', [{}, dict(expansion=4), dict(blur=True)])
def test_the_branch_wakes_up_after_a_step(options):
    torch.manual_seed(1)
    block = XResBlock(4, 4, **options)
    x = torch.randn(4, 4, 6, 6)
    opt = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(2):
        opt.zero_grad()
        (block(x) - torch.randn(4, 4*options.get('expansion', 1), 6, 6)).square().mean().backward()
        opt.step()
    assert block.branch(x).abs().max() > 0 and all(p.grad.abs().max() > 0 for p in block.parameters())

@pytest.mark.parametrize('size', [8, 9, 11])
@pytest.mark.parametrize('options', [{}, dict(expansion=4), dict(blur=True), dict(blur=True, expansion=4)])
def test_shortcut_and_branch_see_every_pixel(size, options):
    block = XResBlock(4, 8, stride=2, **options).eval()
    nn.init.ones_(last_norm(block).weight)
    for way in (block.shortcut, block.branch):
        for layer in way.modules():
            if isinstance(layer, nn.Conv2d): nn.init.ones_(layer.weight)   # all paths add up
        x = torch.ones(1, 4, size, size, requires_grad=True)
        way(x).sum().backward()
        assert (x.grad != 0).all()

def test_a_shortcut_is_the_mean_of_the_real_pixels():
    block = XResBlock(3, 3, stride=2)
    x = torch.randn(2, 3, 7, 6, dtype=torch.double)
    right = torch.stack([torch.stack([x[:, :, 2*i:2*i + 2, 2*j:2*j + 2].mean((2, 3)) for j in range(3)], -1)
                         for i in range(4)], -2)
    assert_close(block.shortcut(x), right, 1e-12)

def test_the_stride_is_in_the_3x3_layer_alone():
    for expansion in (1, 4):
        block = XResBlock(4, 8, stride=2, expansion=expansion)
        strided = [m.kernel_size for m in block.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
        assert strided == [(3, 3)]
    assert not any(m.stride == (2, 2) for m in XResBlock(4, 8, stride=2, blur=True).modules()
                   if isinstance(m, nn.Conv2d))

def test_weights_start_as_kaiming_says():
    torch.manual_seed(2)
    for name, m in xresnet18(width=0.5).named_modules():
        if not isinstance(m, (nn.Conv2d, nn.Linear)): continue
        fan = m.weight[0].numel()
        assert abs(m.weight.std()*math.sqrt(fan/2) - 1) < 4/math.sqrt(m.weight.numel()), name
        assert m.bias is None or (m.bias == 0).all()

def test_leaky_activations_start_with_their_own_gain():
    torch.manual_seed(3)
    model = tiny(act=partial(GeneralRelu, leak=0.5))
    w = model.stem[1].conv.weight
    assert abs(w.std()*math.sqrt(w[0].numel()*(1 + 0.5**2)/2) - 1) < 4/math.sqrt(w.numel())

# ---- the options

@several
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_blur_is_a_convolution_with_the_binomial_kernel(h, w, c, stride):
    x = torch.randn(2, c, h, w, dtype=torch.double)
    kernel = torch.tensor([[1., 2., 1.], [2., 4., 2.], [1., 2., 1.]], dtype=torch.double)/16
    channels = F.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode='replicate')
    right = F.conv2d(channels, kernel[None, None], stride=stride)
    assert_close(BlurPool(stride)(x), right.unflatten(0, (2, c))[:, :, 0], 1e-12)

def test_blur_keeps_an_even_surface_and_takes_a_checkerboard_away():
    assert_eq(BlurPool()(torch.full((1, 2, 5, 5), 3.)), torch.full((1, 2, 3, 3), 3.))
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2*2. - 1
    assert_eq(BlurPool()(board[None, None])[0, 0, 1:, 1:], torch.zeros(3, 3))

def test_a_gate_is_the_papers_formula():
    torch.manual_seed(4)
    se = SqueezeExcite(32, 2).double()
    x = torch.randn(3, 32, 5, 4, dtype=torch.double)
    (w1, b1), (w2, b2) = ((layer.weight, layer.bias) for layer in (se.gate[0], se.gate[2]))
    assert w1.shape == (16, 32)
    z = x.sum((2, 3))/20
    s = 1/(1 + torch.exp(-((z @ w1.T + b1).clamp(min=0) @ w2.T + b2)))
    assert_close(se(x), torch.einsum('nchw,nc->nchw', x, s), 1e-12)

def test_options_reach_every_block():
    model = xresnet34(width=0.25, c=5, se=8, blur=True, act=nn.Mish)
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(SqueezeExcite) == 16 and nn.ReLU not in kinds
    assert kinds.count(BlurPool) == 1 + 2*3 and nn.AvgPool2d not in kinds and kinds.count(nn.Mish) == 3 + 3*16

def test_a_stem_of_its_own():
    stem = xresnet_stem(1, (6, 7), 1)
    assert stem(torch.randn(2, 1, 9, 9)).shape == (2, 7, 9, 9) and len(stem) == 2

# ---- what is refused

@pytest.mark.parametrize('make,kind,word', [
    (lambda: XResNet([1, 1]), ValueError, 'stages'),
    (lambda: tiny(stem_stride=3), ValueError, 'stride'),
    (lambda: tiny(act=nn.ReLU()), TypeError, 'make a layer'),
    (lambda: xresnet18(blurr=True), TypeError, 'blurr'),
])
def test_what_is_wrong_is_named(make, kind, word):
    with pytest.raises(kind, match=word) as e: make()
    assert len(str(e.value)) < 160

# ---- written down, cut, cast and trained

@pytest.mark.parametrize('make', [
    partial(xresnet18, width=0.125, c=4), partial(xresnet50, 1, 4, 0.125, se=16, blur=True, act=nn.SiLU),
    partial(tiny, act=partial(nn.LeakyReLU, 0.1), stem_stride=1)])
def test_a_net_comes_back_from_its_name_and_arguments(make):
    model = make().eval()
    spec = to_spec(model)
    again = from_spec(spec).eval()
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, model.stem[0].conv.in_channels, 33, 40)
    assert_eq(again(x), model(x))
    assert spec['spec'] == 'XResNet' and to_spec(again) == spec

def test_parts_can_be_written_down_alone():
    block = XResBlock(4, 8, 2, expansion=4, se=4, blur=True)
    for part in (BlurPool(3), SqueezeExcite(32, 4, nn.SiLU), block):
        again = from_spec(to_spec(part)).eval()
        again.load_state_dict(part.state_dict())
        x = torch.randn(2, 32 if isinstance(part, SqueezeExcite) else 4, 9, 9)
        assert_eq(again(x), part.eval()(x))

@pytest.mark.slow
def test_it_learns_and_an_exported_learner_needs_no_code(tmp_path):
    torch.manual_seed(5)
    y = torch.arange(256) % 4
    x = torch.randn(256, 3, 16, 16)
    for i in range(3): x[y == i, i] += 1   # and none for the fourth
    data = make_data(Dataset(x[:192], y[:192]), Dataset(x[192:], y[192:]), bs=32)
    learn = Learner(data, tiny(stem_stride=1, se=4, act=nn.Mish), path=tmp_path)
    with learn.quiet(): learn.fit_one_cycle(6, 0.01)
    model = learn.model.eval()
    with torch.no_grad(): pred = model(x[192:])
    assert (pred.argmax(1) == y[192:]).float().mean() > 0.9
    loaded = load_learner(learn.export(tmp_path/'net.pt'))
    with torch.no_grad(): assert_eq(loaded.model(x[192:]), pred)

@pytest.mark.parametrize('options', [{}, dict(expansion=4, se=4, blur=True, act=nn.Mish)])
def test_gradients_reach_every_parameter_in_the_end(options):
    torch.manual_seed(6)
    model = tiny(**options)
    for block in blocks_of(model):
        assert (last_norm(block).weight == 0).all()
        nn.init.ones_(last_norm(block).weight)
    F.cross_entropy(model(torch.randn(8, 3, 40, 40)), torch.arange(8) % 5).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())

@pytest.mark.parametrize('options', [{}, dict(expansion=4, se=4, blur=True, act=nn.Mish)])
def test_memory_formats_and_types_do_not_matter(options):
    torch.manual_seed(7)
    model = tiny(**options).eval()
    for block in blocks_of(model): nn.init.ones_(last_norm(block).weight)
    x = torch.randn(2, 3, 37, 40)
    with torch.no_grad():
        right = model(x)
        with torch.autocast('cpu', torch.bfloat16): autocast = model(x)
        half = tiny(**options).eval()
        half.load_state_dict(model.state_dict())
        whole = half.to(torch.bfloat16)(x.to(torch.bfloat16))
        last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert_close(last, right, 1e-4)
    for out in (autocast, whole):
        assert out.dtype == torch.bfloat16 and F.cosine_similarity(out.float(), right).min() > 0.98

def test_a_copy_is_one_of_its_own():
    model = tiny(se=4).eval()
    x = torch.randn(1, 3, 20, 20)
    other = copy.deepcopy(model)
    assert_eq(other(x), model(x))
    nn.init.ones_(other.head.bias)
    assert (model.head.bias == 0).all() and to_spec(other) == to_spec(model)
