"""The networks have the published shapes, counts and names at full width, work at other widths, channels and
sizes, compute what torchvision's weights mean, and are written down and made again."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from exp.convnets import (INCEPTIONS, Bottleneck, Inception, ResBlock, alexnet, googlenet, lenet, nin,
                          nin_block, resnet, resnet18, resnet34, resnet50, scaled, vgg, vgg11, vgg13,
                          vgg16, vgg19, vgg_block)
from exp.convolutions import model_cost
from exp.core import set_seed
from exp.core import test_close as assert_close
from exp.dataloader import Dataset, make_data
from exp.inference import load_learner
from exp.learner import Learner
from exp.norms import BatchNorm
from exp.progress import Progress
from exp.specs import from_spec, to_spec

VGGS, RESNETS = (vgg11, vgg13, vgg16, vgg19), (resnet18, resnet34, resnet50)
NETWORKS = (lenet, alexnet, *VGGS, nin, googlenet, *RESNETS)
SMALL = (alexnet, *VGGS, nin, googlenet, *RESNETS)      # those with a version for small images
NORMED = (lenet, alexnet, *VGGS, nin, googlenet)        # those that may have a norm
each = pytest.mark.parametrize('make', NETWORKS, ids=lambda f: f.__name__)

def count(model): return sum(p.numel() for p in model.parameters())

def unreal(make, *args, **kw):
    "A network without numbers, which takes neither time nor memory."
    with torch.device('meta'): return make(*args, **kw)

def walk(model, *shape):
    "The shape that leaves each named part of a network, for a batch of one."
    x, shapes = torch.empty(1, *shape, device='meta'), {}
    for name, part in model.eval().named_children():
        x = part(x)
        shapes[name] = tuple(x.shape[1:])
    return shapes

# ---- published counts and shapes

@pytest.mark.parametrize('make, args, params', [
    (lenet, (1, 10), 61_706), (vgg11, (), 132_863_336), (vgg13, (), 133_047_848), (vgg16, (), 138_357_544),
    (vgg19, (), 143_667_240), (googlenet, (), 6_998_552), (resnet18, (), 11_689_512),
    (resnet34, (), 21_797_672), (resnet50, (), 25_557_032)], ids=lambda v: getattr(v, '__name__', ''))
def test_parameters_are_as_many_as_published(make, args, params): assert count(unreal(make, *args)) == params

@pytest.mark.parametrize('make, billions', [
    (vgg11, 7.609), (vgg13, 11.308), (vgg16, 15.47), (vgg19, 19.632), (resnet18, 1.814), (resnet34, 3.664),
    (resnet50, 4.089)], ids=lambda v: getattr(v, '__name__', ''))
def test_multiply_adds_are_as_many_as_published_and_as_counted(make, billions):
    model, x = unreal(make), torch.empty(1, 3, 224, 224, device='meta')
    mult_adds = sum(cost.mult_adds for _, cost in model_cost(model, x))
    with FlopCounterMode(display=False) as counter: model.eval()(x)
    assert round(mult_adds/1e9, 3) == billions and counter.get_total_flops() == 2*mult_adds

def vgg_shapes():
    return dict(block1=(64, 112, 112), block2=(128, 56, 56), block3=(256, 28, 28), block4=(512, 14, 14),
                block5=(512, 7, 7), flatten=(25088,), fc1=(4096,), fc2=(4096,), fc3=(10,))

SHAPES = [
    (lenet, 1, 28, dict(conv1=(6, 28, 28), pool1=(6, 14, 14), conv2=(16, 10, 10), pool2=(16, 5, 5),
                        flatten=(400,), fc1=(120,), fc2=(84,), fc3=(10,))),
    (alexnet, 1, 224, dict(conv1=(96, 54, 54), pool1=(96, 26, 26), conv2=(256, 26, 26), pool2=(256, 12, 12),
                           conv3=(384, 12, 12), conv4=(384, 12, 12), conv5=(256, 12, 12), pool5=(256, 5, 5),
                           flatten=(6400,), fc1=(4096,), fc2=(4096,), fc3=(10,))),
    *[(make, 1, 224, vgg_shapes()) for make in VGGS],
    (nin, 1, 224, dict(block1=(96, 54, 54), pool1=(96, 26, 26), block2=(256, 26, 26), pool2=(256, 12, 12),
                       block3=(384, 12, 12), pool3=(384, 5, 5), block4=(10, 5, 5), avgpool=(10, 1, 1),
                       flatten=(10,))),
    (googlenet, 1, 96, dict(stage1=(64, 24, 24), stage2=(192, 12, 12), stage3=(480, 6, 6), stage4=(832, 3, 3),
                            stage5=(1024, 3, 3), avgpool=(1024, 1, 1), flatten=(1024,), fc=(10,))),
    (googlenet, 3, 224, dict(stage1=(64, 56, 56), stage2=(192, 28, 28), stage3=(480, 14, 14),
                             stage4=(832, 7, 7), stage5=(1024, 7, 7))),
    *[(make, 3, 224, dict(conv1=(64, 112, 112), maxpool=(64, 56, 56), layer1=(n, 56, 56),
                          layer2=(2*n, 28, 28), layer3=(4*n, 14, 14), layer4=(8*n, 7, 7), avgpool=(8*n, 1, 1),
                          flatten=(8*n,), fc=(10,)))
      for make, n in ((resnet18, 64), (resnet34, 64), (resnet50, 256))],
    (resnet18, 1, 96, dict(conv1=(64, 48, 48), layer1=(64, 24, 24), layer2=(128, 12, 12), layer3=(256, 6, 6),
                           layer4=(512, 3, 3)))]

@pytest.mark.parametrize('make, ni, size, shapes', SHAPES, ids=[f'{s[0].__name__}-{s[2]}' for s in SHAPES])
def test_maps_have_the_published_shapes(make, ni, size, shapes):
    found = walk(unreal(make, ni, 10), ni, size, size)
    assert {name: found[name] for name in shapes} == shapes

def test_lenet_without_padding_has_256_features_and_its_norms_stand_before_the_sigmoids():
    model = lenet(1, 10, norm=BatchNorm, padding=0)
    assert walk(model.to('meta'), 1, 28, 28)['flatten'] == (256,)
    for name in ('conv1', 'conv2', 'fc1', 'fc2'):
        kinds = [type(part) for part in getattr(model, name)]
        assert kinds[1:] == [BatchNorm, nn.Sigmoid] and getattr(model, name)[0].bias is None
    assert isinstance(model.fc3, nn.Linear)

# ---- other widths, channels, sizes, classes

@pytest.mark.slow
@pytest.mark.parametrize('width', [0.25, 0.5, 1, 2])
@pytest.mark.parametrize('ni', [1, 3, 4])
@each
def test_any_width_any_channels_any_size(make, ni, width):
    model = unreal(make, ni, 7, width)
    for size in ((97, 97), (128, 75), (224, 224)):
        assert model.eval()(torch.empty(2, ni, *size, device='meta')).shape == (2, 7)
        assert model.train()(torch.empty(2, ni, *size, device='meta')).shape == (2, 7)

@pytest.mark.parametrize('size', [14, 28, 31, 32, 48, 64])
@pytest.mark.parametrize('make', SMALL, ids=lambda f: f.__name__)
def test_the_small_ones_take_small_images(make, size):
    x = torch.empty(2, 1, size, size, device='meta')
    assert unreal(make, 1, 10, 1/4, small=True).eval()(x).shape == (2, 10)

@each
def test_a_network_answers_and_learns_in_both_modes(make):
    set_seed(1)
    kw = {} if make is lenet else dict(small=True)
    model, x = make(3, 5, 1/8, **kw), torch.randn(4, 3, 32, 32)
    loss = F.cross_entropy(model.train()(x), torch.arange(4))
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        out = model.eval()(x)
        assert_close(out, model(x)), assert_close(out[:1], model(x[:1]), 1e-4)
    assert out.std(0).min() > 0     # it tells images apart

@pytest.mark.parametrize('make', NORMED, ids=lambda f: f.__name__)
def test_a_norm_is_in_every_convolution_before_its_activation(make):
    model = make(3, 5, 1/8, norm=BatchNorm)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, BatchNorm, nn.ReLU, nn.Sigmoid))]
    convs = [i for i, m in enumerate(layers) if isinstance(m, nn.Conv2d)]
    last = convs[-1] if make is nin else None
    assert all(isinstance(layers[i + 1], BatchNorm) for i in convs if i != last)
    assert all(not isinstance(layers[i + 2], nn.Conv2d) for i in convs if i != last)
    assert all(layers[i].bias is None for i in convs if i != last)

def test_widths_are_rounded_and_never_zero():
    cases = {(64, 1): 64, (6, 0.25): 2, (5, 0.5): 2, (6, 0.01): 1, (64, 2): 128, (96, 1/3): 32}
    assert {case: scaled(*case) for case in cases} == cases
    for wrong in (0, -1, float('nan')):
        with pytest.raises(ValueError, match='width'): resnet18(width=wrong)
    with pytest.raises(TypeError, match='width'): lenet(width='1')
    assert count(lenet(1, 10, 1e-3)) > 0

@each
def test_signals_keep_their_size_at_the_start(make):
    if make is lenet: pytest.skip('sigmoids')
    set_seed(3)
    kw = {} if make in RESNETS else dict(drop=0.)
    model, x = make(3, 10, 1/4, small=True, **kw).train(), torch.randn(8, 3, 32, 32)
    with torch.no_grad(): out = model(x)
    assert 0.05 < out.std() < 20

# ---- blocks

def test_a_residual_block_keeps_the_shape_or_changes_it_by_its_short_cut():
    x = torch.rand(4, 3, 6, 6)
    assert ResBlock(3, 3)(x).shape == (4, 3, 6, 6)
    half = ResBlock(3, 6, 2)
    assert half(x).shape == (4, 6, 3, 3) and half.downsample[0].kernel_size == (1, 1)
    assert not list(ResBlock(3, 3).downsample.parameters())

@pytest.mark.parametrize('block', [ResBlock, Bottleneck], ids=lambda b: b.__name__)
def test_a_residual_block_with_an_empty_residual_does_nothing(block):
    b, x = block(8, 8), torch.rand(2, 8, 5, 5)
    nn.init.zeros_(b.bn2.weight if block is ResBlock else b.bn3.weight)
    assert torch.equal(b(x), x)
    assert torch.equal(b(-x), torch.zeros_like(x))

def test_inception_puts_four_paths_side_by_side():
    b, x = Inception(8, 4, (3, 6), (2, 5), 7), torch.randn(2, 8, 9, 9)
    out = b(x)
    assert out.shape == (2, 22, 9, 9)
    assert_close(out[:, :4], b.path1(x)), assert_close(out[:, 4:10], b.path3(x))
    assert_close(out[:, 10:15], b.path5(x)), assert_close(out[:, 15:], b.pooled(x))

def test_blocks_are_what_they_say():
    def kernels(block): return [m.kernel_size[0] for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert kernels(vgg_block(3, 2, 4)) == [3, 3, 3] and kernels(nin_block(2, 4, 5)) == [5, 1, 1]
    assert vgg_block(1, 2, 4)(torch.zeros(1, 2, 7, 7)).shape == (1, 4, 4, 4)
    set_seed(1)
    x = torch.randn(4, 2, 7, 7)
    assert nin_block(2, 4, 5, last=True)(x).amin() < 0 <= nin_block(2, 4, 5)(x).amin()

# ---- torchvision's names

def published(depths, bottleneck):
    "Name → shape of torchvision's state dict, written from its naming and not from our network."
    state, ni = {}, 64
    def norm(name, n):
        for part in ('weight', 'bias', 'running_mean', 'running_var'): state[f'{name}.{part}'] = (n,)
        state[f'{name}.num_batches_tracked'] = ()
    state['conv1.weight'] = (64, 3, 7, 7)
    norm('bn1', 64)
    for stage, n in enumerate(depths):
        mid = 64*2**stage
        nf = 4*mid if bottleneck else mid
        for j in range(n):
            block = f'layer{stage + 1}.{j}'
            sizes = ([(mid, ni, 1), (mid, mid, 3), (nf, mid, 1)] if bottleneck
                     else [(mid, ni, 3), (nf, mid, 3)])
            for k, (out, inp, ks) in enumerate(sizes, start=1):
                state[f'{block}.conv{k}.weight'] = (out, inp, ks, ks)
                norm(f'{block}.bn{k}', out)
            if j == 0 and (stage > 0 or bottleneck):
                state[f'{block}.downsample.0.weight'] = (nf, ni, 1, 1)
                norm(f'{block}.downsample.1', nf)
            ni = nf
    state.update({'fc.weight': (1000, ni), 'fc.bias': (1000,)})
    return state

def made(depths, bottleneck, scale=1.):
    "Such a state with random numbers that keep signals in range."
    g, state = torch.Generator().manual_seed(1), {}
    for name, shape in published(depths, bottleneck).items():
        if not shape: state[name] = torch.tensor(7)
        elif len(shape) > 1: state[name] = torch.randn(shape, generator=g)/torch.Size(shape[1:]).numel()**0.5
        elif name.endswith(('running_var', 'weight')): state[name] = 0.5 + torch.rand(shape, generator=g)
        else: state[name] = 0.1*torch.randn(shape, generator=g)
    return state

KINDS = {'resnet18': (resnet18, (2, 2, 2, 2), False, 122), 'resnet34': (resnet34, (3, 4, 6, 3), False, 218),
         'resnet50': (resnet50, (3, 4, 6, 3), True, 320)}
each_kind = pytest.mark.parametrize('make, depths, bottleneck, entries', KINDS.values(), ids=KINDS)

@each_kind
def test_a_resnet_has_torchvisions_names_shapes_and_order(make, depths, bottleneck, entries):
    right = published(depths, bottleneck)
    ours = {name: tuple(v.shape) for name, v in unreal(make).state_dict().items()}
    assert len(right) == entries and list(ours.items()) == list(right.items())

def by_hand(state, x, depths, bottleneck):
    "The network in functions, from its state alone; a bottleneck's stride is in the 3×3."
    def norm(x, name): return F.batch_norm(x, *(state[f'{name}.{p}'] for p in ('running_mean', 'running_var',
                                                                               'weight', 'bias')))
    def conv(x, name, stride=1):
        w = state[f'{name}.weight']
        return F.conv2d(x, w, stride=stride, padding=w.shape[-1]//2)
    x = F.max_pool2d(norm(conv(x, 'conv1', 2), 'bn1').relu(), 3, 2, padding=1)
    for stage, n in enumerate(depths):
        for j in range(n):
            b, stride, past = f'layer{stage + 1}.{j}', 2 if stage and not j else 1, x
            if f'{b}.downsample.0.weight' in state:
                past = norm(conv(x, f'{b}.downsample.0', stride), f'{b}.downsample.1')
            last = 3 if bottleneck else 2
            for k in range(1, last + 1):
                x = norm(conv(x, f'{b}.conv{k}', stride if k == last - 1 else 1), f'{b}.bn{k}')
                x = (x + past if k == last else x).relu()
    return F.linear(x.mean((2, 3)), state['fc.weight'], state['fc.bias'])

@pytest.mark.slow
@each_kind
def test_a_file_of_torchvisions_kind_is_loaded_and_computes_what_it_means(make, depths, bottleneck, entries,
                                                                          tmp_path):
    torch.save(made(depths, bottleneck), tmp_path/'weights.pth')
    state = torch.load(tmp_path/'weights.pth', weights_only=True)
    model = unreal(make)
    model.load_state_dict(state, strict=True, assign=True)
    x = torch.randn(2, 3, 65, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(): assert_close(model.eval()(x), by_hand(state, x, depths, bottleneck), 1e-3)

def test_a_learner_loads_such_a_file_by_its_path(tmp_path):
    source, model = resnet18(3, 4, 1/8), resnet18(3, 4, 1/8)
    torch.save(source.state_dict(), tmp_path/'published.pth')
    learner(model, tmp_path).load('published')
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), source.state_dict().values()))

def test_a_body_is_a_slice_and_shares_the_weights():
    model = resnet18(3, 4, 1/8)
    body = model[:-3]
    assert list(body._modules)[-1] == 'layer4' and body.layer1 is model.layer1
    assert body(torch.zeros(2, 3, 64, 64)).shape == (2, 64, 2, 2)

@pytest.mark.parametrize('make', NETWORKS, ids=lambda f: f.__name__)
def test_the_head_begins_at_avgpool(make): assert isinstance(unreal(make).avgpool, nn.AdaptiveAvgPool2d)

# ---- written down and made again

@pytest.mark.parametrize('kw', [{}, dict(small=True)], ids=['large', 'small'])
@each
def test_a_network_is_written_down_and_made_again(make, kw):
    if make is lenet: kw = dict(act=nn.ReLU, pool=nn.MaxPool2d, norm=BatchNorm) if kw else {}
    elif make in NORMED: kw = {**kw, 'norm': nn.BatchNorm2d}
    model = make(4, 6, 1/16, **kw).eval()
    again = from_spec(to_spec(model)).eval()
    assert repr(again) == repr(model)
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 4, 80, 80)
    with torch.no_grad(): assert torch.equal(again(x), model(x))

@each
def test_the_function_itself_has_a_name_in_files(make): assert from_spec(to_spec(make)) is make

def learner(model, path, c=4):
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 3, 32, 32, generator=g), torch.arange(12) % c
    return Learner(make_data(Dataset(x, y), Dataset(x, y), bs=4), model, path=path, cbs=Progress(False))

@pytest.mark.parametrize('make', [lenet, resnet18, googlenet], ids=lambda f: f.__name__)
def test_an_exported_network_answers_as_before(make, tmp_path, recwarn):
    set_seed(1)
    learn = learner(make(3, 4, 1/8), tmp_path)
    learn.fit(1)
    again = load_learner(learn.export())
    assert not [w for w in recwarn if 'load_learner' in str(w.message)]
    x = learn.data.valid_ds.x[0]
    assert torch.equal(again.predict(x).probs, learn.predict(x).probs)

def test_general_networks_have_the_depth_that_is_asked_for():
    model = resnet((1, 2), 1, 10, 1/8, small=True)
    assert [len(model.layer1), len(model.layer2)] == [1, 2] and not hasattr(model, 'layer3')
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    empty = resnet((0, 1), 1, 10, 1/8, small=True)
    assert [len(empty.layer1), len(empty.layer2)] == [0, 1]
    assert empty(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert count(vgg((1, 1, 1, 1, 1), 1, 10, 1/8)) < count(vgg11(1, 10, 1/8))

def test_the_inception_blocks_have_the_papers_channels():
    out = {stage: [n1 + n3[1] + n5[1] + pooled for n1, n3, n5, pooled in blocks]
           for stage, blocks in INCEPTIONS.items()}
    assert out == {3: [256, 480], 4: [512, 512, 512, 528, 832], 5: [832, 1024]}
