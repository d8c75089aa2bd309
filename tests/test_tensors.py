"exp.tensors against PyTorch over random shapes and types, at the extremes, and on bad input."
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from exp.tensors import (Welford, broadcast_shape, covariance, log_softmax, logsumexp, matmul_broadcast,
                         matmul_einsum,
                         matmul_elementwise, matmul_loops, mean_abs_deviation, pearson, softmax, variance)

LADDER = [matmul_loops, matmul_elementwise, matmul_broadcast, matmul_einsum]
quick = settings(max_examples=40, deadline=None)
sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def rand(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
def close(a, b, tol=1e-10): torch.testing.assert_close(a, b, rtol=tol, atol=tol, equal_nan=True)

def same_gradient(ours, theirs, *xs, tol=1e-10):
    "Are the gradients of both functions at `xs` equal, weighted at random so that no part cancels?"
    grads = []
    for f in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in xs]
        out = f(*leaves)
        grads.append(torch.autograd.grad((out*rand(out.shape, out.dtype, seed=9)).sum(), leaves))
    for a, b in zip(*grads): close(a, b, tol)


# broadcasting

@quick
@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=3))
def test_broadcast_shape_agrees_with_torch_and_fails_where_it_fails(shapes):
    try: expected = tuple(torch.broadcast_shapes(*map(tuple, shapes)))
    except RuntimeError:
        with pytest.raises(ValueError, match='broadcast'): broadcast_shape(*shapes)
    else: assert broadcast_shape(*shapes) == expected

def test_broadcast_shape_names_the_dimension():
    with pytest.raises(ValueError,
                       match='-2'):
        broadcast_shape((2, 3), (2, 1), (4, 3))

def test_broadcast_shape_takes_shapes_only():
    with pytest.raises(TypeError): broadcast_shape(3, (2,))
    assert broadcast_shape(torch.ones(3).shape, [2, 1]) == (2, 3)

def test_broadcast_shape_of_nothing_is_a_number(): assert broadcast_shape() == broadcast_shape(()) == ()


# matrix products

@pytest.mark.parametrize('f', LADDER)
@pytest.mark.parametrize('n,k,m', [(1, 1, 1), (2, 3, 4), (5, 1, 2), (3, 4, 1), (0, 3, 2), (2, 0, 3)])
def test_products_equal_torch(f, n, k, m):
    a, b = rand((n, k)), rand((k, m), seed=1)
    close(f(a, b), a @ b)

@pytest.mark.parametrize('f', LADDER)
def test_products_keep_the_type_and_take_transposed_views(f):
    a, b = rand((4, 3), torch.float32).t(), torch.arange(8).reshape(4, 2)
    close(f(a, b.float()), a @ b.float(), 1e-5)
    assert f(b.t(), b).dtype == torch.int64 and torch.equal(f(b.t(), b), b.t() @ b)

@pytest.mark.parametrize('f', LADDER)
def test_products_have_torchs_gradient(f): same_gradient(f, torch.matmul, rand((2, 3)), rand((3, 4), seed=1))

@pytest.mark.parametrize('f', LADDER)
def test_products_refuse_what_does_not_fit(f):
    with pytest.raises(ValueError, match='multiplied'):
        f(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match='multiplied'): f(torch.ones(2, 3), torch.ones(3))


# spread and relation

@quick
@given(sizes, st.data())
def test_variance_equals_torch_over_any_dimensions(shape, data):
    x = rand(shape)
    dim = data.draw(st.sampled_from([None, 0, -1, tuple(range(len(shape)))]))
    keepdim = data.draw(st.booleans())
    close(variance(x, dim, keepdim), x.var(dim, correction=0, keepdim=keepdim))
    n = x.numel()//x.sum(dim, keepdim=True).numel()
    if n > 1: close(variance(x, dim, keepdim, correction=1), x.var(dim, keepdim=keepdim))
    centred = x - x.mean(dim, keepdim=True)
    close(mean_abs_deviation(x, dim, keepdim), centred.abs().mean(dim, keepdim=keepdim))

def test_variance_has_torchs_gradient():
    same_gradient(lambda x: variance(x, 1), lambda x: x.var(1, correction=0), rand((3, 5)))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_have_the_type_of_the_input(dtype):
    x = rand((4, 6), dtype)
    for f in (variance, mean_abs_deviation, logsumexp, log_softmax, softmax, lambda x: covariance(x, x),
              lambda x: pearson(x, x)):
        assert f(x).dtype == dtype

def test_variance_of_half_precision_does_not_overflow():
    # squares up to 160,000, a variance below 65,504
    x = torch.linspace(-400, 400, 101, dtype=torch.float64).half()
    close(variance(x), x.double().var(correction=0).half(), 1e-3)

@pytest.mark.parametrize('mean', [0., 1e3, 1e5, 1e7, -1e7])
def test_variance_holds_far_from_zero_where_one_pass_does_not(mean):
    x = (rand(5000) + mean).float()
    true = x.double().var(correction=0)
    close(variance(x).double(), true, 2e-6)
    close(Welford().update(x).variance(), true)
    if abs(mean) >= 1e5: assert abs(x.pow(2).mean() - x.mean()**2 - true) > 0.5*true

def test_covariance_and_pearson_equal_torch():
    x, y = rand((7, 20)), rand((7, 20), seed=1)
    for i in range(7):
        both = torch.stack([x[i], y[i]])
        close(covariance(x, y, 1, correction=1)[i], torch.cov(both)[0, 1])
        close(pearson(x, y, 1)[i], torch.corrcoef(both)[0, 1])
    close(pearson(x, y, (0, 1), keepdim=True),
          torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1][None, None])

def test_covariance_and_pearson_have_torchs_gradient():
    x, y = rand(9), rand(9, seed=1)
    same_gradient(lambda x, y: covariance(x, y, correction=1),
                  lambda x, y: torch.cov(torch.stack([x, y]))[0, 1], x, y)
    same_gradient(pearson, lambda x, y: torch.corrcoef(torch.stack([x, y]))[0, 1], x, y)

@quick
@given(st.floats(0.01, 100), st.floats(-100, 100), st.integers(0, 1000))
def test_pearson_ignores_units_and_origin(scale, shift, seed):
    x, y = rand(12, seed=seed), rand(12, seed=seed + 1)
    close(pearson(x*scale + shift, y), pearson(x, y), 1e-8)
    close(pearson(x, -y), -pearson(x, y))

def test_pearson_is_bounded_and_undefined_for_constants():
    x = rand((1000, 3), torch.float32)
    assert pearson(x, 2*x + 1, dim=1).abs().max() <= 1
    for n in (2, 3, 5, 7, 100, 1001):
        for c in (1., 0.1, 1/3, -1e20): assert pearson(torch.full((n,), c), torch.arange(float(n))).isnan()

@pytest.mark.parametrize('scale', [1e-36, 1e-24, 1e-10, 1e10, 1e20, 1e30])
def test_pearson_holds_for_tiny_and_huge_units(scale):
    x, y = rand((4, 20), torch.float32), rand((4, 20), torch.float32, seed=1)
    close(pearson(x*scale, y, 1), pearson(x, y, 1), 1e-5)
    close(pearson(x*scale, y*scale), pearson(x, y), 1e-5)

def test_statistics_refuse_bad_input():
    ints = torch.arange(4)
    for f in (variance, mean_abs_deviation, logsumexp, softmax, log_softmax):
        with pytest.raises(TypeError, match='int64'): f(ints)
    for f in (covariance, pearson):
        with pytest.raises(ValueError, match='paired'): f(torch.ones(3), torch.ones(4))
        with pytest.raises(TypeError, match='floating-point'): f(torch.ones(4), ints)
    for f in (variance, mean_abs_deviation):
        with pytest.raises(TypeError, match='list'): f([1., 2.])

def test_too_few_numbers_have_no_spread_as_in_torch():
    assert variance(torch.ones(3, 1), dim=1, correction=1).isnan().all() and variance(torch.ones(0)).isnan()

@pytest.mark.parametrize('f', [variance, mean_abs_deviation, lambda x, dim: covariance(x, x, dim),
                               lambda x, dim: pearson(x, x, dim), logsumexp])
def test_no_items_are_no_error_where_each_would_have_numbers(f):
    assert f(torch.zeros(0, 5), dim=1).shape == (0,)


# streams

@quick
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(0, 99))
def test_welford_equals_the_whole_however_it_is_cut(lengths, seed):
    batches = [rand((n, 2, 3), seed=seed + i) + 100 for i, n in enumerate(lengths)]
    whole, w = torch.cat(batches), Welford()
    for b in batches: assert w.update(b) is w
    assert w.n == len(whole)
    if w.n > 0:
        close(w.mean, whole.mean(0))
        close(w.variance(), whole.var(0, correction=0))
    if w.n > 1: close(w.variance(correction=1), whole.var(0))

def test_welford_takes_bytes_and_single_numbers():
    x = torch.randint(0, 256, (1000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    w = Welford()
    for v in x: w.update(v[None])
    close(w.variance(), x.double().var(correction=0))

def test_welford_keeps_no_graph():
    assert not Welford().update(rand((3, 2)).requires_grad_()).variance().requires_grad

def test_welford_refuses_bad_input():
    w = Welford()
    with pytest.raises(ZeroDivisionError): w.variance()
    with pytest.raises(TypeError): w.update(torch.tensor(1.))
    with pytest.raises(AttributeError): w.update([1., 2.])
    w.update(torch.ones(1, 3))
    assert w.variance(correction=1).isnan().all()   # as torch.var
    with pytest.raises(ValueError, match='after'): w.update(torch.ones(2, 4))


# logsumexp and softmax

@quick
@given(sizes, st.floats(0.1, 1000), st.data())
def test_logsumexp_and_softmax_equal_torch(shape, scale, data):
    x = rand(shape)*scale
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    keepdim = data.draw(st.booleans())
    close(logsumexp(x, dim, keepdim), x.logsumexp(dim, keepdim))
    close(softmax(x, dim), x.softmax(dim))
    close(log_softmax(x, dim), x.log_softmax(dim))
    close(logsumexp(x, tuple(range(len(shape)))), x.flatten().logsumexp(0))

def test_logsumexp_and_softmax_have_torchs_gradient():
    x = rand((4, 6))*20
    x[0, 1] = x[0, 2] = x[0].max() + 1   # two equal maxima
    for ours, theirs in ((logsumexp, torch.logsumexp), (softmax, torch.softmax),
                         (log_softmax, torch.log_softmax)):
        for dim in (0, 1): same_gradient(lambda x: ours(x, dim), lambda x: theirs(x, dim), x)

def test_gradients_are_right_beside_minus_infinity():
    x = torch.tensor([[-math.inf, 0., 1.], [2., -math.inf, 3.]], dtype=torch.float64)
    same_gradient(logsumexp, lambda x: x.logsumexp(-1), x)
    same_gradient(softmax, lambda x: x.softmax(-1), x)

@pytest.mark.parametrize('row', [[-math.inf]*3, [-math.inf, 0., 1.], [math.inf, 0., 1.],
                                 [math.inf, math.inf, 0.], [math.inf, -math.inf, 0.],
                                 [math.nan, 0., 1.], [1e30, -1e30, 0.], [3e38, 3e38, 3e38],
                                 [-3e38, -3e38, -3e38], [1e-40, 0., 0.]])
def test_extremes_go_as_in_torch(row):
    x = torch.tensor(row)
    close(logsumexp(x), x.logsumexp(-1), 1e-6)
    close(softmax(x), x.softmax(-1), 1e-6)
    close(log_softmax(x), x.log_softmax(-1), 1e-6)

@pytest.mark.parametrize('dtype,tol', [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_half_precision_is_the_rounded_float32_result(dtype, tol):
    x = (rand((8, 50))*100).to(dtype)
    for f in (logsumexp, log_softmax, softmax): close(f(x), f(x.float()).to(dtype), tol)
    many = torch.zeros(100_000, dtype=torch.float16)   # the sum of the exponentials is beyond float16
    close(logsumexp(many), torch.tensor(math.log(100_000)).half(), 1e-3)

def test_a_constant_on_all_logits_changes_nothing():
    x = torch.tensor([0., 1., 2., -5.])
    for c in (-1e4, 1e4, 2.**22):
        torch.testing.assert_close(log_softmax(x + c), log_softmax(x), rtol=1e-6, atol=1e-6)

def test_softmax_of_no_items_is_empty():
    for f in (softmax, log_softmax): assert f(torch.zeros(0, 5)).shape == (0, 5)

def test_scores_should_be_tensors():
    for f in (logsumexp, softmax, log_softmax):
        with pytest.raises(TypeError, match='list'): f([1., 2.])

def test_nothing_to_sum_over_is_an_error():
    for f in (logsumexp, softmax, log_softmax):
        with pytest.raises(IndexError, match='size'): f(torch.ones(3, 0))
