"exp.regularization against PyTorch over random shapes and types, its promises, and bad input."
import copy, math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from exp.core import environ, load_state, save_state
from exp.regularization import (Dropout, clip_grad_values, clip_grads, fans, grad_norm, init_kaiming,
                                init_xavier, k_fold, l2_penalty,
                                leaky_gain)

SHAPES = [(10, 20), (7, 3), (1, 1), (16, 3, 5), (8, 4, 3, 3), (4, 2, 3, 2, 3)]

def seeded(seed=0): return torch.Generator().manual_seed(seed)


# Initialisation

@pytest.mark.parametrize('shape', SHAPES)
def test_fans_are_pytorchs(shape):
    assert fans(torch.empty(shape)) == nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))

@pytest.mark.parametrize('a', [0., 0.01, 0.5, 1., 5**0.5])
def test_leaky_gain_is_pytorchs(a):
    assert leaky_gain(a) == pytest.approx(nn.init.calculate_gain('leaky_relu', a), rel=1e-12)

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('gain', [1., 0.5, 5/3])
def test_init_xavier_equals_pytorchs_numbers(shape, dtype, gain):
    w = torch.empty(shape, dtype=dtype)
    for uniform, theirs in ((False, nn.init.xavier_normal_), (True, nn.init.xavier_uniform_)):
        ours = init_xavier(w.clone(), gain, uniform, seeded())
        assert torch.equal(ours, theirs(w.clone(), gain, generator=seeded()))

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('a', [0., 0.2, 5**0.5])
@pytest.mark.parametrize('mode', ['fan_in', 'fan_out'])
def test_init_kaiming_equals_pytorchs_numbers(shape, dtype, a, mode):
    w = torch.empty(shape, dtype=dtype)
    for uniform, theirs in ((False, nn.init.kaiming_normal_), (True, nn.init.kaiming_uniform_)):
        ours = init_kaiming(w.clone(), a, mode, uniform, seeded())
        assert torch.equal(ours, theirs(w.clone(), a, mode, generator=seeded()))

def test_init_follows_the_global_seed_without_a_generator():
    w = torch.empty(20, 30)
    torch.manual_seed(4)
    ours = init_kaiming(w.clone())
    torch.manual_seed(4)
    theirs = nn.init.kaiming_normal_(w.clone())
    assert torch.equal(ours, theirs)

@pytest.mark.parametrize('uniform', [False, True])
def test_init_has_the_promised_mean_and_deviation(uniform):
    w = torch.empty(400, 900, dtype=torch.float64)
    for f, std in ((lambda: init_xavier(w, 2., uniform, seeded()), 2*(2/1300)**0.5),
                   (lambda: init_kaiming(w, 0.1, 'fan_in', uniform, seeded()), (2/1.01/900)**0.5),
                   (lambda: init_kaiming(w, 0.1, 'fan_out', uniform, seeded()), (2/1.01/400)**0.5)):
        f()
        assert abs(w.mean()) < 5*std/w.numel()**0.5
        assert abs(w.std()/std - 1) < 5/(2*w.numel())**0.5
        if uniform: assert w.abs().max() <= 3**0.5*std

def test_init_writes_in_place_and_answers_the_weight_without_gradient():
    layer = nn.Linear(5, 4)
    for init in (init_xavier, init_kaiming):
        before = layer.weight.detach().clone()
        assert init(layer.weight) is layer.weight
        assert (layer.weight.requires_grad and layer.weight.grad_fn is None
                and not torch.equal(layer.weight, before))

def test_pytorchs_default_is_kaiming_with_a_root_5():
    for make in (lambda: nn.Linear(30, 20, bias=False), lambda: nn.Conv2d(3, 8, 5, bias=False)):
        torch.manual_seed(1)
        theirs = make().weight
        torch.manual_seed(1)
        ours = init_kaiming(torch.empty_like(theirs), a=5**0.5, uniform=True)
        assert torch.equal(ours, theirs)

def test_init_refuses_what_has_no_fans():
    with pytest.raises(ValueError, match='dimensions'): init_xavier(torch.empty(3))
    with pytest.raises(ValueError, match='dimensions'): init_kaiming(torch.tensor(1.))
    with pytest.raises(ValueError, match='dimensions'): init_kaiming(torch.empty(3, 0))
    with pytest.raises(AttributeError, match='Linear'): init_kaiming(nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match='Long'): init_xavier(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match='fan_inn'): init_kaiming(torch.empty(2, 2), mode='fan_inn')

def test_init_refuses_a_gain_or_slope_that_makes_no_deviation():
    w = torch.empty(2, 2)
    with pytest.raises(RuntimeError): init_xavier(w, -1.)
    with pytest.raises(ValueError, match='nan'): init_kaiming(w, math.nan)
    with pytest.raises(TypeError, match='fan_in'): init_kaiming(w, 'fan_in')
    with pytest.raises(TypeError): init_xavier(w, 'relu')


# Dropout

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('p', [0, 0.1, 0.5, 0.9, 1, 1.])
def test_dropout_equals_pytorchs_with_the_same_seed(dtype, p):
    for shape in ((7,), (4, 5), (2, 3, 4, 5), (0, 3), ()):
        x = torch.randn(shape, generator=seeded()).to(dtype).requires_grad_()
        y = x.detach().clone().requires_grad_()
        torch.manual_seed(3)
        ours = Dropout(p)(x)
        torch.manual_seed(3)
        theirs = F.dropout(y, p)
        assert torch.equal(ours, theirs) and ours.dtype == dtype
        ours.sum().backward()
        theirs.sum().backward()
        assert torch.equal(x.grad, y.grad)

def test_dropout_of_a_view_equals_pytorchs():
    x = torch.randn(6, 8, generator=seeded()).t()[::2]
    torch.manual_seed(3)
    ours = Dropout(0.4)(x)
    torch.manual_seed(3)
    theirs = F.dropout(x, 0.4)
    assert torch.equal(ours, theirs)

def test_dropout_does_nothing_in_evaluation_and_draws_nothing():
    x, drop = torch.randn(5, 5), Dropout(0.5).eval()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert drop(x) is x and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(drop.train()(x), x)

@pytest.mark.parametrize('p', [0.1, 0.5, 0.8])
def test_dropout_keeps_the_expectation(p):
    torch.manual_seed(0)
    x = torch.full((200_000,), 3.)
    assert abs(Dropout(p)(x).mean() - 3) < 5*3*(p/(1 - p)/len(x))**0.5

def test_dropout_leaves_its_input_alone():
    x = torch.ones(10)
    Dropout(0.5)(x)
    Dropout(1.)(x)
    assert torch.equal(x, torch.ones(10))

@pytest.mark.parametrize('p', [-0.1, 1.1, math.nan, math.inf])
def test_dropout_refuses_a_share_outside_0_to_1(p):
    with pytest.raises(ValueError, match=r'\bp\b'): Dropout(p)

@pytest.mark.parametrize('p', ['0.5', None, True])
def test_dropout_refuses_what_is_no_number(p):
    with pytest.raises(TypeError, match=r'\bp\b'): Dropout(p)

def test_dropout_has_no_state_and_shows_its_p():
    assert not Dropout(0.3).state_dict() and repr(Dropout(0.3)) == 'Dropout(p=0.3)'

def test_dropout_refuses_what_cannot_be_scaled():
    with pytest.raises(RuntimeError, match='Long'): Dropout(0.5)(torch.ones(3, dtype=torch.int64))


# The L2 penalty

def test_l2_penalty_is_half_the_squares_with_the_weight_as_gradient():
    model = nn.Linear(5, 3).double()
    penalty = l2_penalty(model.parameters())
    torch.testing.assert_close(penalty, sum((p**2).sum() for p in model.parameters())/2, rtol=1e-12, atol=0)
    penalty.backward()
    for p in model.parameters(): torch.testing.assert_close(p.grad, p.detach(), rtol=1e-12, atol=0)

def test_l2_penalty_counts_a_shared_parameter_once():
    layer = nn.Linear(4, 4)
    once = l2_penalty(layer.parameters())
    assert l2_penalty(nn.Sequential(layer, layer).parameters()) == once
    assert l2_penalty([*layer.parameters(), *layer.parameters()]) == once

def test_l2_penalty_takes_one_tensor_and_refuses_none_and_others():
    assert l2_penalty(torch.tensor([3., 4.])) == 12.5
    with pytest.raises(ValueError, match='parameters'): l2_penalty([])
    with pytest.raises(TypeError, match='Linear'): l2_penalty(nn.Linear(1, 1))
    with pytest.raises(AttributeError, match='float'): l2_penalty([1.])

@pytest.mark.parametrize('wd', [0., 0.01, 0.3])
def test_l2_penalty_is_weight_decay_for_sgd_with_and_without_momentum(wd):
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    for momentum in (0., 0.9):
        a = nn.Linear(4, 2).double()
        b = copy.deepcopy(a)
        opt_a = torch.optim.SGD(a.parameters(), lr=0.1, momentum=momentum)
        opt_b = torch.optim.SGD(b.parameters(), lr=0.1, momentum=momentum, weight_decay=wd)
        for _ in range(20):
            for model, opt, price in ((a, opt_a, wd), (b, opt_b, 0.)):
                (F.mse_loss(model(x), y) + price*l2_penalty(model.parameters())).backward()
                opt.step()
                opt.zero_grad()
        torch.testing.assert_close(a.weight, b.weight, rtol=1e-12, atol=1e-12)


# Clipping

def with_gradients(shapes, dtype=torch.float32, scale=1., seed=0):
    g, params = seeded(seed), []
    for shape in shapes:
        p = torch.zeros(shape, dtype=dtype, requires_grad=True)
        p.grad = (scale*torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)
        params.append(p)
    return params

shapes = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=5)

@settings(deadline=None, max_examples=60)
@given(shapes=shapes, dtype=st.sampled_from([torch.float32, torch.float64]),
       scale=st.sampled_from([1e-3, 1., 1e3]),
       max_norm=st.sampled_from([0., 0.1, 1., 10.]), norm_type=st.sampled_from([1., 2., 3., math.inf]),
       seed=st.integers(0, 100))
def test_clip_grads_equals_pytorchs(shapes, dtype, scale, max_norm, norm_type, seed):
    ours, theirs = (with_gradients(shapes, dtype, scale, seed) for _ in range(2))
    a, b = clip_grads(ours, max_norm, norm_type), nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    tol = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(a, b, rtol=tol, atol=0)
    for p, q in zip(ours, theirs): torch.testing.assert_close(p.grad, q.grad, rtol=tol, atol=0)
    assert grad_norm(ours, norm_type) <= max_norm*(1 + 1e-5) or a <= max_norm

@settings(deadline=None, max_examples=30)
@given(shapes=shapes, max_value=st.sampled_from([0., 0.1, 1., 10.]), seed=st.integers(0, 100))
def test_clip_grad_values_equals_pytorchs(shapes, max_value, seed):
    ours, theirs = (with_gradients(shapes, seed=seed) for _ in range(2))
    clip_grad_values(ours, max_value)
    nn.utils.clip_grad_value_(theirs, max_value)
    for p, q in zip(ours, theirs): assert torch.equal(p.grad, q.grad)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_clip_grads_keeps_a_half_precision_gradients_type(dtype):
    ours, theirs = (with_gradients([(4, 3), (5,)], dtype) for _ in range(2))
    clip_grads(ours, 0.5)
    nn.utils.clip_grad_norm_(theirs, 0.5)
    for p, q in zip(ours, theirs):
        assert p.grad.dtype == dtype
        torch.testing.assert_close(p.grad, q.grad)

def test_clip_grads_leaves_a_short_gradient_to_the_bit():
    p, = with_gradients([(10,)], scale=0.01)
    before = p.grad.clone()
    clip_grads(p, 1.)
    assert torch.equal(p.grad, before)

def test_clip_grads_leaves_out_parameters_without_a_gradient():
    p, = with_gradients([(3,)])
    assert (clip_grads([p, torch.zeros(2, requires_grad=True)],
                       1.) == p.grad.new_tensor(0) + grad_norm(with_gradients([(3,)])))
    assert clip_grads([torch.zeros(2, requires_grad=True)], 1.) == 0 and clip_grads([], 1.) == 0
    clip_grad_values([torch.zeros(2, requires_grad=True)], 1.)

def test_clip_grads_counts_a_shared_parameter_once():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    model(torch.randn(4, 3)).square().sum().backward()
    norm = torch.stack([p.grad.norm() for p in layer.parameters()]).norm()
    torch.testing.assert_close(grad_norm([*layer.parameters(), *layer.parameters()]), norm)
    clip_grads([*layer.parameters(), *layer.parameters()], norm.item()/2)
    torch.testing.assert_close(grad_norm(model.parameters()), norm/2, rtol=1e-4, atol=0)

@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_clip_grads_raises_for_a_norm_that_is_not_finite_only_if_asked_and_changes_nothing_then(bad):
    params = with_gradients([(3,), (2,)])
    params[1].grad[0] = bad
    before = [p.grad.clone() for p in params]
    with pytest.raises(FloatingPointError, match='norm'): clip_grads(params, 1., error_if_nonfinite=True)
    for p, g in zip(params, before): assert torch.equal(p.grad.nan_to_num(9.), g.nan_to_num(9.))
    assert not clip_grads(params, 1.).isfinite()

def test_clipping_refuses_bad_limits():
    p, = with_gradients([(3,)])
    for bad in ('1', None):
        with pytest.raises(TypeError): clip_grads(p, bad)
        with pytest.raises(TypeError): clip_grad_values(p, bad)
    with pytest.raises(TypeError, match='Linear'): clip_grads(nn.Linear(1, 1), 1.)
    for f in (grad_norm, l2_penalty, lambda params: clip_grads(params, 1.)):
        with pytest.raises(TypeError, match='NoneType'): f(None)

def test_any_iterable_of_tensors_is_taken():
    params = with_gradients([(3,), (2,)])
    norm = grad_norm(params)
    assert (grad_norm(dict(enumerate(params)).values()) == grad_norm(iter(params)) == grad_norm(tuple(params))
            == norm)
    assert l2_penalty(nn.ParameterList([nn.Parameter(torch.tensor([3., 4.]))])) == 12.5

@pytest.mark.parametrize('dtype, size', [(torch.float16, 60000.), (torch.bfloat16, 100.)])
def test_clip_grads_of_half_precision_does_not_overflow(dtype, size):
    p = torch.zeros(100, dtype=dtype, requires_grad=True)
    p.grad = torch.full((100,), size, dtype=dtype)
    before = p.grad.float().norm()
    torch.testing.assert_close(clip_grads(p, 10.), before, rtol=1e-5, atol=0)
    torch.testing.assert_close(p.grad.float(), torch.ones(100), rtol=1e-2, atol=0)

def test_clip_grads_to_0_of_a_zero_half_precision_gradient_is_0():
    p = torch.zeros(3, dtype=torch.float16, requires_grad=True)
    p.grad = torch.zeros(3, dtype=torch.float16)
    clip_grads(p, 0.)
    assert torch.equal(p.grad, torch.zeros(3, dtype=torch.float16))

def test_an_overflowing_norm_of_finite_gradients_is_an_error_too():
    p = torch.zeros(2, requires_grad=True)
    p.grad = torch.full((2,), 1e30)
    with pytest.raises(FloatingPointError, match='norm'): clip_grads(p, 1., error_if_nonfinite=True)


# k-fold

@settings(deadline=None)
@given(data=st.data(), n=st.integers(2, 60), seed=st.integers(0, 2**40))
def test_k_fold_parts_are_disjoint_cover_everything_and_differ_by_at_most_one(data, n, seed):
    k = data.draw(st.integers(2, n))
    folds = list(k_fold(n, k, seed))
    assert len(folds) == k
    assert torch.cat([valid for _, valid in folds]).sort().values.tolist() == list(range(n))
    for train, valid in folds: assert sorted([*train.tolist(), *valid.tolist()]) == list(range(n))
    sizes = [len(valid) for _, valid in folds]
    assert max(sizes) - min(sizes) <= 1
    assert all(t.dtype == v.dtype == torch.int64 for t, v in folds)

def test_k_fold_depends_on_its_seed_alone():
    def parts(*args): return [valid.tolist() for _, valid in k_fold(*args)]
    torch.manual_seed(0)
    first = parts(30, 4, 1)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), drawn)   # the global generator was not touched
    assert parts(30, 4, 1) == first != parts(30, 4, 2)
    with environ(EXP_SEED='1'): assert parts(30, 4) == first

def test_k_fold_shuffles():
    assert [valid.tolist() for _, valid in k_fold(30, 3, 1)] != [list(range(i, i + 10)) for i in (0, 10, 20)]

def test_k_fold_refuses_bad_counts_at_once():
    with pytest.raises(ValueError, match=r'\bk\b'): k_fold(3, 1)
    with pytest.raises(ValueError, match=r'\bn\b'): k_fold(0, 2)
    for bad in (2.5, '3', True, None):
        with pytest.raises(TypeError, match=r'\bk\b'): k_fold(10, bad)

def test_k_fold_takes_numpys_whole_numbers():
    assert ([v.tolist() for _, v in k_fold(np.int64(7), np.int64(3), 1)]
            == [v.tolist() for _, v in k_fold(7, 3, 1)])


# Together

def test_a_model_with_our_dropout_and_a_shared_layer_saves_and_loads(tmp_path):
    def make():
        layer = nn.Linear(6, 6)
        return nn.Sequential(layer, nn.ReLU(), Dropout(0.5), layer)
    a, b = make(), make()
    x = torch.randn(3, 6)
    save_state(tmp_path/'model.pth', a.state_dict())
    b.load_state_dict(load_state(tmp_path/'model.pth'))
    assert b[0].weight is b[3].weight
    assert torch.equal(a.eval()(x), b.eval()(x))

def test_our_dropout_takes_the_place_of_pytorchs_in_a_state_dict():
    ours, theirs = nn.Sequential(nn.Linear(2, 2), Dropout()), nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    theirs.load_state_dict(ours.state_dict())
