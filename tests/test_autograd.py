"""exp.autograd against torch.autograd and finite differences: every operation over random broadcasting
shapes, graphs of all forms, bad input."""

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from exp.autograd import (MSE, Chain, Linear, Module, Relu, SoftmaxCrossEntropy, Variable,
                          central_differences, check_gradients,
                          draw_graph, no_graph, topological_order, unbroadcast)

quick = settings(max_examples=40, deadline=None)


def rand(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
def leaf(*data): return Variable(torch.tensor(*data).double(), requires_grad=True)
def close(a, b, tol=1e-10): torch.testing.assert_close(a, b, rtol=tol, atol=tol)

def same_gradients(f, *xs, tol=1e-10):
    "Are value and gradients of `f` on Variables those of `f` on tensors?"
    ours, theirs = [Variable(x.clone(), requires_grad=True)
                    for x in xs], [x.clone().requires_grad_() for x in xs]
    out, expected = f(*ours), f(*theirs)
    close(out.data, expected.detach(), tol)
    weights = rand(expected.shape, seed=9).to(expected.dtype)
    out.backward(weights)
    expected.backward(weights)
    for a, b in zip(ours, theirs): close(a.grad, b.grad, tol)

@st.composite
def broadcasting(draw):
    "Two shapes that broadcast, with sizes 0 to 3 and up to four dimensions."
    full = draw(st.lists(st.integers(0, 3), max_size=4))
    def part(): return tuple(1 if draw(st.booleans()) else n for n in full[draw(st.integers(0, len(full))):])
    return part(), part()

shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)


# operations

BINARY = {'add': lambda a, b: a + b, 'sub': lambda a, b: a - b, 'mul': lambda a, b: a*b,
          'div': lambda a, b: a/(b*b + 0.5)}
UNARY = {'neg': lambda a: -a, 'relu': lambda a: a.relu(), 'exp': lambda a: a.exp(),
         'log': lambda a: (a*a + 0.1).log(),
         'square': lambda a: a**2, 'cube': lambda a: a**3, 'power 0': lambda a: a**0,
         'power 1': lambda a: a**1, 'root': lambda a: (a*a + 0.1)**0.5,
         'inverse': lambda a: (a*a + 0.1)**-1, 'number on the left': lambda a: 2 - 3*a + 1/(a*a + 1) + 0.1,
         'number on the right': lambda a: (a - 2)/3 + a*0.1, 'sum': lambda a: a.sum(),
         'sum kept': lambda a: a.sum(None, True)*a}

@pytest.mark.slow
@pytest.mark.parametrize('name', BINARY)
@quick
@given(both=broadcasting())
def test_binary_operations_have_torchs_gradients_over_broadcasting_shapes(name, both):
    a, b = both
    same_gradients(BINARY[name], rand(a), rand(b, seed=1))

@pytest.mark.slow
@pytest.mark.parametrize('name', UNARY)
@quick
@given(shape=shapes)
def test_unary_operations_have_torchs_gradients(name, shape): same_gradients(UNARY[name], rand(shape))

@quick
@given(n=st.integers(0, 3), k=st.integers(0, 3), m=st.integers(0, 3), batches=broadcasting(),
       forms=st.sampled_from(['mm', 'vm', 'mv', 'vv']))
def test_matrix_products_have_torchs_gradients_over_batches_and_vectors(n, k, m, batches, forms):
    left = (k,) if forms[0] == 'v' else (*batches[0], n, k)
    right = (k,) if forms[1] == 'v' else (*batches[1], k, m)
    same_gradients(lambda a, b: a @ b, rand(left), rand(right, seed=1))

@pytest.mark.slow
@quick
@given(shape=st.lists(st.integers(1, 3), min_size=1, max_size=4), keepdim=st.booleans(), data=st.data())
def test_sum_and_mean_have_torchs_gradients_over_any_dimensions(shape, keepdim, data):
    dims = data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    dims = tuple(d - len(shape) if data.draw(st.booleans()) else d for d in dims)
    for dim in (dims, dims[0], None):
        for f in (lambda a: a.sum(dim, keepdim)**2, lambda a: a.mean(dim, keepdim)**2):
            same_gradients(f, rand(tuple(shape)))

@pytest.mark.parametrize('i', [0, -1, slice(1, 3), slice(None, None, 2), ..., None, (slice(None), 1),
                               (..., None, 0), [0, 2, 2, 2],
                               torch.tensor([[0, 1], [1, 1]]), ([0, 1, 0], [2, 2, 2]), rand((3, 4)) > 0,
                               (slice(None), rand((4,)) > 0)], ids=str)
def test_indexing_has_torchs_gradient_also_where_a_place_is_picked_twice(i):
    same_gradients(lambda a: a[i]**2, rand((3, 4)))

def test_what_only_moves_numbers_has_torchs_gradient():
    same_gradients(lambda a: a.view(4, 3)**2, rand((2, 6)))
    same_gradients(lambda a: a.view((2, -1))**2, rand((3, 4)))
    same_gradients(lambda a: a.transpose(0, 2)**2, rand((2, 3, 4)))
    v = Variable(rand((2, 3)), requires_grad=True)
    v.transpose(0, 1).view(6).sum().backward()   # torch's own view refuses here
    close(v.grad, torch.ones(2, 3).double())

def test_transposed_and_expanded_data_is_differentiated_like_any_other():
    same_gradients(lambda a, b: (a*b).sum(0), rand((4, 3)).t(), rand((1, 4)).expand(3, 4))

@quick
@given(both=broadcasting())
def test_every_rule_at_once_agrees_with_finite_differences(both):
    a, b = both
    check_gradients(lambda a, b: (a*b).exp()/(b*b + 1) - (a*a + 1).log(), rand(a)/2, rand(b, seed=1)/2)

@quick
@given(both=broadcasting())
def test_unbroadcast_is_torchs_sum_to_size(both):
    full = torch.broadcast_shapes(*both)
    for shape in both: close(unbroadcast(rand(full), shape), rand(full).sum_to_size(shape))

def test_types_follow_torch_and_gradients_have_their_leafs_type():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        v = Variable(rand(3, dtype=dtype), requires_grad=True)
        out = (v*2 + 1).exp()/3
        assert out.data.dtype == dtype
        out.sum().backward()
        assert v.grad.dtype == dtype
    a, b = Variable(rand(3, dtype=torch.float32), requires_grad=True), Variable(rand(3), requires_grad=True)
    (a*b).sum().backward()
    assert (a.grad.dtype, b.grad.dtype) == (torch.float32, torch.float64)

def test_a_python_number_keeps_float64_exact():
    v = Variable(torch.tensor(1.).double(), requires_grad=True)
    assert ((v*0.1).item() == 0.1 and (0.1*v).item() == 0.1
            and (Variable([1, 2])*0.5).data.tolist() == [0.5, 1.])

def test_tensors_may_stand_on_either_side():
    t = rand((3, 3), seed=4)
    for f in (lambda a: t + a, lambda a: t - a, lambda a: t*a, lambda a: t/(a*a + 1), lambda a: t @ a,
              lambda a: a @ t, lambda a: a/t):
        same_gradients(f, rand((3, 3)))


# graphs

def test_a_diamond_adds_both_ways(): same_gradients(lambda a: (a.exp()*a + a)*(a - a.exp()), rand((3, 2)))

def test_many_diamonds_are_walked_once():
    a = v = leaf(1.)
    for _ in range(200): v = v*0.5 + v*0.5   # 2^200 paths
    v.backward()
    close(a.grad, torch.tensor(1.).double())
    assert len(topological_order(v)) == 1 + 3*200

@quick
@given(choices=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 3)),
                        min_size=1, max_size=25))
def test_random_graphs_with_shared_nodes_have_torchs_gradients(choices):
    def f(a, b):
        nodes = [a, b]
        for i, j, op in choices:
            p, q = nodes[i % len(nodes)], nodes[j % len(nodes)]
            nodes.append((p + q, p*q*0.3, p - q, (p*p + 1).log()*q)[op])
        return (nodes[-1] + nodes[len(nodes)//2])*0.1 + a.sum() + b.sum()
    same_gradients(f, rand((2, 3))*0.5, rand((3,), seed=1)*0.5)

@quick
@given(choices=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=30))
def test_the_order_puts_operands_first_and_names_each_node_once(choices):
    nodes = [leaf(1.)]
    for i, j in choices: nodes.append(nodes[i % len(nodes)] + nodes[j % len(nodes)])
    order = topological_order(nodes[-1])
    place = {v: i for i, v in enumerate(order)}
    assert len(place) == len(order) and order[-1] is nodes[-1]
    assert all(place[o] < place[v] for v in order for o, _ in v.edges)

@pytest.mark.slow
def test_a_deep_chain_meets_no_recursion_limit_not_even_when_it_is_freed():
    a = v = leaf(1.)
    for _ in range(100_000): v = v + 1
    v.backward()
    assert a.grad == 1
    del v

def test_repeated_backward_adds_and_zero_grad_starts_afresh():
    a = leaf([1., 2.])
    out = (a*a*a).sum()
    for k in (1, 2, 3):
        out.backward()
        close(a.grad, k*3*a.data**2)
    m = Chain(Linear(2, 1))
    m(torch.ones(1, 2)).sum().backward()
    m.zero_grad()
    assert all(p.grad is None for p in m.parameters())

def test_gradients_of_two_leaves_do_not_share_memory():
    a, b = leaf([1., 2.]), leaf([3., 4.])
    (a + b).sum().backward()
    a.grad += 1
    close(b.grad, torch.ones(2).double())

def test_only_leaves_that_ask_for_it_get_a_gradient():
    a, k = leaf(2.), Variable(torch.tensor(3.).double())
    middle = a*k
    out = middle*k
    out.backward()
    assert a.grad == 9 and k.grad is None and middle.grad is None and len(topological_order(out)) == 3

def test_a_leaf_is_its_own_gradient():
    a = leaf(2.)
    a.backward()
    assert a.grad == 1

def test_detach_and_no_graph_cut_the_history():
    a = leaf([1., 2.])
    (a.detach()*a).sum().backward()
    close(a.grad, a.data)
    assert a.detach().data.data_ptr() == a.data.data_ptr()
    with no_graph():
        with no_graph(): pass
        quiet = a*2
    assert not quiet.requires_grad and (a*2).requires_grad
    with pytest.raises(KeyError):
        with no_graph(): raise KeyError
    assert (a*2).requires_grad

def test_a_vector_times_the_jacobian():
    x, v = rand((4,)), rand((3,), seed=3)
    A = rand((4, 3), seed=2)
    def f(t): return (t @ A).exp()*t.sum()
    a = Variable(x, requires_grad=True)
    f(a).backward(v)
    close(a.grad, v @ torch.autograd.functional.jacobian(f, x))

def test_sweep_gives_every_nodes_gradient():
    a = leaf(3.)
    middle = a*a
    grads = dict((middle*middle).sweep())
    assert grads[middle] == 18 and grads[a] == 108 and a.grad is None

def test_torchs_own_graph_is_left_alone():
    t = torch.ones(3, requires_grad=True)
    v = Variable(t, requires_grad=True)
    (v*v).sum().backward()
    assert t.grad is None and not v.data.requires_grad and not v.grad.requires_grad


# errors

def test_backward_refuses_what_has_no_gradient():
    a = leaf([1., 2.])
    with pytest.raises(ValueError, match='single'): (a*2).backward()
    with pytest.raises(ValueError, match=r'\(3,\)'):
        (a*2).backward(torch.ones(3))
    with pytest.raises(ValueError, match='asked'): Variable(torch.ones(1)).backward()
    assert a.grad is None
    (a*2)[:1].backward()   # one number, in whatever shape
    close(a.grad, torch.tensor([2., 0.]).double())

def test_shapes_that_do_not_fit_are_named():
    a, b = leaf([[1., 2., 3.]]), leaf([1., 2.])
    for f in BINARY.values():
        with pytest.raises(ValueError, match='-1'): f(a, b)
    for f in (lambda: a @ a, lambda: a @ b, lambda: b @ b.sum(), lambda: b.sum() @ b):
        with pytest.raises(RuntimeError): f()
    with pytest.raises(ValueError, match='-1'):
        Variable(rand((2, 4, 5))) @ rand((3, 5, 4))

def test_what_cannot_be_a_variable_is_refused():
    with pytest.raises(TypeError, match='int64'): Variable([1, 2], requires_grad=True)
    with pytest.raises(TypeError, match='0-d'): Variable(leaf(1.))
    with pytest.raises(TypeError, match='Variable'): leaf(1.)**leaf(2.)

def test_central_differences_refuses_a_bad_step_and_several_numbers():
    with pytest.raises(ZeroDivisionError): central_differences(torch.sum, rand(3), h=0)
    with pytest.raises((RuntimeError, ValueError)): central_differences(torch.exp, rand(3))

def test_central_differences_leave_their_input_alone_and_take_views():
    x = rand((4, 3)).t()
    before = x.clone()
    close(central_differences(lambda t: (t**3).sum(), x), 3*x**2, 1e-8)
    assert torch.equal(x, before)

def test_central_differences_allow_a_function_that_changes_its_argument_and_take_lists():
    close(central_differences(lambda t: t.mul_(2).sum(), torch.ones(3)), torch.full((3,), 2.).double(), 1e-8)
    close(central_differences(lambda t: (t*t).sum(), [1., 2.]), torch.tensor([2., 4.]).double(), 1e-8)

def test_a_sum_over_no_named_dimension_is_torchs_sum_of_all():
    for f in (lambda a: a.sum(())**2, lambda a: a.sum((), True)**2, lambda a: a.mean(())**2):
        same_gradients(f, rand((2, 3)))

def test_check_gradients_finds_each_kind_of_mistake():
    def op(a, vjp): return Variable.from_op('?', a.data**2, (a, vjp(a)))
    check_gradients(lambda a: op(a, lambda a: lambda g: 2*g*a.data), rand(3))
    for wrong in (lambda a: lambda g: g*a.data, lambda a: lambda g: -2*g*a.data, lambda a: lambda g: 2*a.data,
                  lambda a: lambda g: g*0, lambda a: lambda g: 2.001*g*a.data):
        with pytest.raises(AssertionError, match='input 0'):
            check_gradients(lambda a: op(a, wrong), rand(3))
    with pytest.raises(AssertionError, match='input 1'):
        check_gradients(lambda a, b: a*b.detach(), rand(3), rand(3, seed=1))
    # an input that is not used has the gradient 0
    check_gradients(lambda a, b: a*2, rand(3), rand(3, seed=1))


# layers

@quick
@given(n=st.integers(1, 4), c=st.integers(1, 4), scale=st.sampled_from([1., 50., 1e4]),
       seed=st.integers(0, 99))
def test_cross_entropy_equals_torch_however_large_the_logits(n, c, scale, seed):
    logits, target = rand((n, c), seed)*scale, torch.randint(0, c, (n,),
                                                             generator=torch.Generator().manual_seed(seed))
    v, t = Variable(logits, requires_grad=True), logits.clone().requires_grad_()
    loss, expected = SoftmaxCrossEntropy()(v, target), F.cross_entropy(t, target)
    loss.backward()
    expected.backward()
    close(loss.data, expected.detach())
    close(v.grad, t.grad)

def test_cross_entropy_refuses_targets_that_are_no_classes():
    ce, logits = SoftmaxCrossEntropy(), Variable(rand((3, 4)), requires_grad=True)
    with pytest.raises(IndexError, match='bounds'): ce(logits, [0, 1, 4])
    with pytest.raises(ValueError, match='logits'): ce(logits, [0, 1])
    with pytest.raises(ValueError, match='n×c'): ce(logits[0], [0, 1, 2, 3])

def test_mse_equals_torch_and_refuses_other_shapes():
    pred, target = rand((5, 2)), rand((5, 2), seed=1)
    v, t = Variable(pred, requires_grad=True), pred.clone().requires_grad_()
    loss, expected = MSE()(v, target), F.mse_loss(t, target)
    loss.backward()
    expected.backward()
    close(loss.data, expected.detach())
    close(v.grad, t.grad)
    with pytest.raises(ValueError, match='predictions'): MSE()(v[:, :1], target[:, 0])

def test_a_network_has_torchs_gradients_and_those_of_finite_differences():
    torch.manual_seed(0)
    model = Chain(Linear(6, 5), Relu(), Chain(Linear(5, 5), Relu()), Linear(5, 3))
    for p in model.parameters(): p.data = p.data.double()
    x, target = rand((7, 6)), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    SoftmaxCrossEntropy()(model(x), target).backward()
    ws = [p.data.clone().requires_grad_() for p in model.parameters()]
    def torch_loss():
        h = ((x @ ws[0] + ws[1]).relu() @ ws[2] + ws[3]).relu()
        return F.cross_entropy(h @ ws[4] + ws[5], target)
    for p, g in zip(model.parameters(), torch.autograd.grad(torch_loss(), ws)): close(p.grad, g)
    def ours(*ps):
        h = ((ps[0].__rmatmul__(x) + ps[1]).relu() @ ps[2] + ps[3]).relu()
        return SoftmaxCrossEntropy()(h @ ps[4] + ps[5], target)
    check_gradients(ours, *[p.data for p in model.parameters()])

def test_parameters_are_found_once_wherever_they_are():
    class Odd(Module):
        def __init__(self):
            self.tied = Linear(2, 2)
            self.list, self.dict = [self.tied, (Relu(), Linear(2, 3))], {
                'bias': Variable(torch.zeros(3), requires_grad=True), 'const': Variable(torch.ones(1))}
    assert [tuple(p.shape) for p in Odd().parameters()] == [(2, 2), (2,), (2, 3), (3,), (3,)]

def test_a_result_that_a_layer_keeps_is_no_parameter():
    class Keeps(Module):
        def __init__(self): self.inner = Linear(2, 2)
        def forward(self, x):
            self.last = self.inner(x)
            return self.last
    model = Keeps()
    model(torch.ones(1, 2)).sum().backward()
    assert ([p.name for p in model.parameters()] == ['weight', 'bias']
            and all(p.grad is not None for p in model.parameters()))

def test_a_layer_used_twice_adds_its_gradients():
    torch.manual_seed(1)
    layer = Linear(3, 3)
    w, b = (p.data.clone().requires_grad_() for p in layer.parameters())
    x = rand((2, 3), dtype=torch.float32)
    (layer(layer(x).relu())**2).sum().backward()
    (((x @ w + b).relu() @ w + b)**2).sum().backward()
    close(layer.weight.grad, w.grad, 1e-5)
    close(layer.bias.grad, b.grad, 1e-5)

def test_a_linear_layer_starts_with_variance_two_over_ni_and_names_a_wrong_width():
    torch.manual_seed(2)
    layer = Linear(400, 300)
    assert abs(layer.weight.data.var().item()*400/2 - 1) < 0.02 and not layer.bias.data.any()
    with pytest.raises(RuntimeError, match='multiplied'): layer(torch.ones(5, 3))
    with pytest.raises(AttributeError, match='forward'): Module()(1)

def test_a_graph_is_drawn_with_a_box_for_each_node_and_its_gradient():
    a, b = Variable(2., requires_grad=True, name='a'), Variable(3., requires_grad=True, name='b')
    ax = draw_graph(a*b + a)
    words = [t.get_text() for t in ax.texts]
    plt.close('all')
    assert {'a\n2', 'b\n3', '×\n6', '+\n8', 'grad 4', 'grad 2'} <= set(words)
    draw_graph(Variable(torch.ones(2, 2), requires_grad=True).exp())   # not a number: no gradients
    draw_graph(Variable(1.))
    plt.close('all')
