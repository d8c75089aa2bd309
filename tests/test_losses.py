"Losses of lesson 04: parity with PyTorch, reductions, bad input."
import copy, functools, json, math, pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from exp.core import test_close as close, test_eq as equal
from exp.losses import (AbsoluteLoss, BinaryCrossEntropy, CrossEntropy, HuberLoss, Loss, LossParts,
                        SquaredLoss, add_loss_parts, item_losses, loss_parts, nll)
from exp.specs import from_spec, to_spec
from exp.tensors import log_softmax

TOL = {torch.float64: 1e-10, torch.float32: 1e-5}
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(0, 10_000)

def draw(shape, dtype, seed, scale=3.):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)*scale

def same_value_and_gradient(ours, theirs, pred, yb):
    results = []
    for f in (ours, theirs):
        p = pred.clone().requires_grad_()
        value = f(p, yb)
        value.sum().backward()
        results.append((value, p.grad))
    for a, b in zip(*results):
        close(a, b, TOL[pred.dtype])
        assert a.dtype == pred.dtype

NUMBERS = [(SquaredLoss, F.mse_loss, {}, {}), (AbsoluteLoss, F.l1_loss, {}, {}),
           (HuberLoss, F.huber_loss, {'delta': 0.7}, {'delta': 0.7}),
           (BinaryCrossEntropy, F.binary_cross_entropy_with_logits, {}, {})]

@pytest.mark.slow
@pytest.mark.parametrize('ours, theirs, a, b', NUMBERS)
@settings(max_examples=20, deadline=None)
@given(shape=shapes, dtype=dtypes, seed=seeds)
def test_losses_of_numbers_and_their_gradients_are_torchs(ours, theirs, a, b, shape, dtype, seed):
    pred, yb = draw(shape, dtype, seed), draw(shape, dtype, seed + 1)
    if ours is BinaryCrossEntropy: yb = yb.sigmoid()
    for reduction in ('mean', 'sum'):
        same_value_and_gradient(ours(reduction=reduction, **a),
                                functools.partial(theirs, reduction=reduction, **b), pred, yb)
    def each(p, y):
        v = theirs(p, y, reduction='none', **b)
        return v.flatten(1).mean(1) if v.ndim > 1 else v
    same_value_and_gradient(ours(reduction='none', **a), each, pred, yb)

@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 6), classes=st.integers(1, 7), rest=st.lists(st.integers(1, 4), max_size=2),
       dtype=dtypes, seed=seeds, last=st.booleans())
def test_cross_entropy_and_nll_and_their_gradients_are_torchs(n, classes, rest, dtype, seed, last):
    pred = draw((n, classes, *rest), dtype, seed)
    yb = torch.randint(classes, (n, *rest), generator=torch.Generator().manual_seed(seed))
    dim = -1 if last else 1
    given_pred = pred.movedim(1, -1).contiguous() if last else pred
    def torchs(reduction): return lambda p, y: F.cross_entropy(p.movedim(dim, 1), y, reduction=reduction)
    for reduction in ('mean', 'sum'):
        same_value_and_gradient(CrossEntropy(reduction, dim=dim), torchs(reduction), given_pred, yb)
    each = lambda p, y: torchs('none')(p, y).reshape(n, -1).mean(1)
    same_value_and_gradient(CrossEntropy('none', dim=dim), each, given_pred, yb)
    # by hand
    same_value_and_gradient(lambda p, y: nll(log_softmax(p, dim), y, dim), torchs('none'), given_pred, yb)

@pytest.mark.parametrize('ours, theirs, a, b', NUMBERS)
def test_extreme_predictions_give_finite_losses_where_torchs_are(ours, theirs, a, b):
    pred, yb = torch.tensor([-1e4, -100., -30., 0., 30., 100.,
                             1e4]), torch.tensor([1., 0., 1., 1., 0., 1., 0.])
    same_value_and_gradient(ours(**a), functools.partial(theirs, **b), pred, yb)

def test_cross_entropy_survives_extreme_logits_and_impossible_classes():
    logits, yb = torch.tensor([[1e4, 0., -1e4], [0., -math.inf, 0.]]), torch.tensor([2, 0])
    close(nll(log_softmax(logits, 1), yb), F.cross_entropy(logits, yb, reduction='none'))
    close(CrossEntropy('none')(logits, yb), torch.tensor([2e4, math.log(2)]))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    pred, yb = torch.tensor([300., -2.]).to(dtype), torch.zeros(2, dtype=dtype)
    assert SquaredLoss()(pred, yb).dtype == torch.float32
    close(SquaredLoss()(pred, yb), (300.**2 + 4)/2 if dtype == torch.float16 else (pred.float()**2).mean())
    assert CrossEntropy()(torch.zeros(2, 3, dtype=dtype), torch.tensor([0, 1])).dtype == torch.float32
    assert BinaryCrossEntropy()(pred, yb).dtype == torch.float32

def test_second_derivatives_exist():
    x = draw((4,), torch.float64, 1).requires_grad_()
    y = torch.tensor([0., 1, 0, 1], dtype=torch.float64)
    for f in (SquaredLoss(), HuberLoss(), BinaryCrossEntropy()):
        assert torch.autograd.gradgradcheck(lambda p: f(p, y), x)

# reductions and targets that do not count

def test_reductions_of_one_value_per_item_agree():
    pred, yb = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    for kind in (SquaredLoss, AbsoluteLoss, HuberLoss):
        each = kind(reduction='none')(pred, yb)
        assert each.shape == (5,)
        close(each.mean(), kind()(pred, yb))
        close(each.sum()*12, kind(reduction='sum')(pred, yb))

@pytest.mark.parametrize('ignore', [-100, -1, 3, 255])
def test_ignored_targets_cost_nothing_and_are_not_counted(ignore):
    pred = draw((4, 5, 6, 2), torch.float64, 1)
    yb = torch.randint(5, (4, 6, 2), generator=torch.Generator().manual_seed(1))
    yb[torch.rand(yb.shape, generator=torch.Generator().manual_seed(2)) < 0.4] = ignore
    loss = CrossEntropy(ignore_index=ignore)
    same_value_and_gradient(loss, lambda p, y: F.cross_entropy(p, y, ignore_index=ignore), pred, yb)
    equal(loss.count(yb), (yb != ignore).sum())
    each = CrossEntropy('none', ignore_index=ignore)(pred, yb)
    close(each, torch.stack([F.cross_entropy(pred[i:i+1], yb[i:i+1], ignore_index=ignore) for i in range(4)]),
          1e-10)
    # batches weighted by count give the whole
    parts = [(loss(p, y), loss.count(y)) for p, y in zip(pred.split(3), yb.split(3))]
    close(sum(v*n for v, n in parts)/sum(n for _, n in parts), loss(pred, yb), 1e-10)

def test_a_batch_of_ignored_targets_costs_zero_and_has_a_zero_gradient():
    pred = torch.randn(3, 4, requires_grad=True)
    loss = CrossEntropy(ignore_index=-1)
    value = loss(pred, torch.full((3,), -1))
    value.backward()
    equal(value.detach(), torch.tensor(0.))
    equal(pred.grad, torch.zeros(3, 4))
    equal(loss.count(torch.full((3,), -1)), torch.tensor(0))

def test_count_without_ignored_targets_is_their_number():
    equal(CrossEntropy().count(torch.zeros(3, 4, dtype=torch.long)), 12)

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int64])
def test_class_numbers_may_be_of_any_integer_type(dtype):
    pred = torch.randn(4, 3)
    close(CrossEntropy()(pred, torch.tensor([0, 1, 2, 1], dtype=dtype)),
          F.cross_entropy(pred, torch.tensor([0, 1, 2, 1])))

# bad input

@pytest.mark.parametrize('kind', [SquaredLoss, AbsoluteLoss, HuberLoss, BinaryCrossEntropy])
@pytest.mark.parametrize('pred, yb, hint', [((5, 1), (5,), r'squeeze\(-1\)'),
                                            ((5,), (5, 1), r'squeeze\(-1\)'), ((5, 2), (5,), 'shape'),
                                            ((5,), (), 'shape'), ((1,), (5,), 'shape')])
def test_shapes_that_would_broadcast_are_refused(kind, pred, yb, hint):
    with pytest.raises(ValueError, match=hint): kind()(torch.zeros(pred), torch.zeros(yb))

@pytest.mark.parametrize('pred, yb, hint', [((5, 3), (5, 1), 'yb.squeeze'), ((5, 3), (5, 3), 'one-hot'),
                                            ((5, 3), (4,), 'shape'),
                                            ((5, 3, 2), (5,), r'\(5, 2\)')])
def test_class_targets_of_a_wrong_shape_are_refused(pred, yb, hint):
    with pytest.raises(ValueError, match=hint):
        CrossEntropy()(torch.zeros(pred), torch.zeros(yb, dtype=torch.long))

@pytest.mark.parametrize('bad', [3, -1, -100])
@pytest.mark.parametrize('rest', [(), (2,), (2, 2)])
def test_a_class_that_is_not_there_is_named(bad, rest):
    with pytest.raises(IndexError, match=f'Target {bad} '):
        CrossEntropy()(torch.zeros(2, 3, *rest), torch.full((2, *rest), bad))

@pytest.mark.parametrize('dtype', [torch.float32, torch.bool])
def test_class_numbers_of_a_wrong_type_are_refused(dtype):
    with pytest.raises(TypeError, match=r'yb.long\(\)'):
        CrossEntropy()(torch.zeros(2, 3), torch.zeros(2, dtype=dtype))

@pytest.mark.parametrize('loss, error', [(SquaredLoss(), AttributeError), (CrossEntropy(), TypeError),
                                         (BinaryCrossEntropy(), AttributeError)])
def test_predictions_and_targets_must_be_tensors(loss, error):
    with pytest.raises(error, match='NoneType'): loss(torch.zeros(2, 2), None)
    with pytest.raises(error, match='tuple'): loss((torch.zeros(2, 2),), torch.zeros(2, 2))

@pytest.mark.parametrize('bad', [-0.1, 2., math.nan])
def test_binary_targets_outside_zero_to_one_are_refused(bad):
    with pytest.raises(ValueError, match='targets'):
        BinaryCrossEntropy()(torch.zeros(2), torch.tensor([0., bad]))

def test_binary_targets_may_be_bool_or_whole_numbers():
    z = torch.randn(4)
    for yb in (torch.tensor([True, False, True, True]), torch.tensor([1, 0, 1, 1])):
        close(BinaryCrossEntropy()(z, yb), F.binary_cross_entropy_with_logits(z, yb.float()))

def test_bad_arguments_of_losses_are_refused():
    with pytest.raises(ValueError, match="'mean'"): SquaredLoss('meen')
    with pytest.raises(NotImplementedError, match='elements'): Loss()(torch.zeros(1), torch.zeros(1))

# activation, decode, the table, specs

def test_activation_and_decode_answer_in_the_terms_of_the_targets():
    pred = torch.randn(4, 3, 2)
    close(CrossEntropy().activation(pred).sum(1), torch.ones(4, 2))
    equal(CrossEntropy().decode(pred), pred.argmax(1))
    close(CrossEntropy(dim=-1).activation(pred), pred.softmax(-1))
    equal(CrossEntropy(dim=-1).decode(pred), pred.argmax(-1))
    close(BinaryCrossEntropy().activation(pred), pred.sigmoid())
    equal(BinaryCrossEntropy(thresh=0.7).decode(pred), pred.sigmoid() > 0.7)
    assert SquaredLoss().activation(pred) is pred and HuberLoss().decode(pred) is pred

@pytest.mark.parametrize('plain, ours', [
    (F.cross_entropy, CrossEntropy()), (nn.CrossEntropyLoss(), CrossEntropy()),
    (functools.partial(F.cross_entropy, label_smoothing=.1), CrossEntropy()),
    (functools.partial(functools.partial(F.cross_entropy), reduction='sum'), CrossEntropy()),
    (F.mse_loss, SquaredLoss()), (nn.MSELoss(), SquaredLoss()), (F.l1_loss, AbsoluteLoss()),
    (nn.L1Loss(), AbsoluteLoss()),
    (F.huber_loss, HuberLoss()), (nn.HuberLoss(), HuberLoss()),
    (F.binary_cross_entropy_with_logits, BinaryCrossEntropy()),
    (nn.BCEWithLogitsLoss(), BinaryCrossEntropy())])
def test_torchs_losses_have_the_parts_of_ours(plain, ours):
    pred = torch.randn(4, 3)
    assert isinstance(loss_parts(plain), LossParts)
    close(loss_parts(plain).activation(pred), ours.activation(pred))
    equal(loss_parts(plain).decode(pred), ours.decode(pred))
    equal(loss_parts(ours).decode(pred), ours.decode(pred))

def test_losses_of_probabilities_are_in_the_table():
    probs = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    close(loss_parts(nn.NLLLoss()).activation(probs.log()), probs)
    equal(loss_parts(F.nll_loss).decode(probs.log()), torch.tensor([1, 0]))
    equal(loss_parts(nn.BCELoss()).decode(probs), probs > 0.5)

def test_a_subclass_of_a_torch_loss_inherits_its_parts():
    class Mine(nn.CrossEntropyLoss): pass
    assert loss_parts(Mine()) is loss_parts(nn.CrossEntropyLoss())

def test_an_unknown_loss_is_refused_until_it_is_entered_or_has_the_attributes():
    def odd(pred, yb): return (pred - yb).abs().max()
    with pytest.raises(ValueError, match='add_loss_parts'): loss_parts(odd)
    add_loss_parts(odd, activation=torch.tanh, decode=torch.sign)
    assert loss_parts(odd).decode is torch.sign
    def other(pred, yb): return 0
    other.activation, other.decode = torch.exp, torch.sign
    assert loss_parts(other).activation is torch.exp

@pytest.mark.parametrize('loss', [CrossEntropy(), CrossEntropy('sum'), F.cross_entropy, nn.CrossEntropyLoss(),
                                  nn.CrossEntropyLoss(reduction='sum'),
                                  functools.partial(F.cross_entropy, reduction='sum')])
def test_item_losses_gives_one_value_for_each_item_and_leaves_the_loss(loss):
    pred, yb = torch.randn(4, 3, 2), torch.randint(3, (4, 2))
    before = getattr(loss, 'reduction', None)
    close(item_losses(loss, pred, yb), F.cross_entropy(pred, yb, reduction='none').mean(1))
    assert getattr(loss, 'reduction', None) == before

def test_item_losses_refuses_a_loss_without_reduction():
    with pytest.raises(TypeError, match='reduction'):
        item_losses(lambda pred, yb: 0, torch.zeros(1), torch.zeros(1))

@pytest.mark.parametrize('loss', [SquaredLoss(), AbsoluteLoss('sum'), HuberLoss(0.5),
                                  CrossEntropy(ignore_index=255, dim=-1), BinaryCrossEntropy(thresh=0.3),
                                  BinaryCrossEntropy(pos_weight=torch.tensor([1., 2.5]))])
def test_losses_survive_specs_copies_and_pickles(loss):
    for again in (from_spec(json.loads(json.dumps(to_spec(loss)))), copy.deepcopy(loss),
                  pickle.loads(pickle.dumps(loss))):
        assert type(again) is type(loss) and repr(again) == repr(loss)

@pytest.mark.parametrize('weight', [3, [1., 2., 0.5], np.array([1., 2., 0.5]), torch.tensor([1, 2, 4])])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_weights_of_a_yes_are_torchs(weight, dtype):
    pred, yb = draw((5, 3), dtype, 0), draw((5, 3), dtype, 1).sigmoid()
    right = nn.BCEWithLogitsLoss(pos_weight=torch.as_tensor(weight, dtype=torch.float32))
    ours = BinaryCrossEntropy(pos_weight=weight)
    close(ours(pred, yb), right(pred.float(), yb.float()), 1e-3)
    close(item_losses(ours, pred.float(), yb.float()), item_losses(right, pred.float(), yb.float()))

def test_a_threshold_that_was_set_later_is_in_the_spec():
    loss = BinaryCrossEntropy('sum')
    loss.thresh = 0.2
    assert repr(from_spec(to_spec(loss))) == repr(loss)

# Bad input that used to pass in silence, or to fail with an obscure error

@pytest.mark.parametrize('yb', [torch.tensor([0, 1]), torch.tensor([[0], [1], [2], [0]])])
def test_nll_refuses_targets_that_gather_would_cut_short(yb):
    with pytest.raises(ValueError, match='shape'): nll(torch.randn(4, 3), yb)

def test_nll_refuses_fractions_as_classes():
    with pytest.raises(TypeError, match=r'yb.long\(\)'): nll(torch.randn(4, 3), torch.tensor([0., 1.5, 2, 0]))

@pytest.mark.parametrize('pred, dim', [((3, 3), 2), ((3, 3), -3), ((3,), 1)])
def test_a_dimension_that_is_not_there_is_refused(pred, dim):
    with pytest.raises(IndexError, match='[Dd]im'):
        CrossEntropy(dim=dim)(torch.randn(pred), torch.tensor([0, 1, 2]))

@pytest.mark.parametrize('loss', [SquaredLoss(), AbsoluteLoss(), HuberLoss()])
def test_losses_of_numbers_refuse_bool_targets(loss):
    with pytest.raises(RuntimeError, match='bool'): loss(torch.randn(3), torch.tensor([True, False, True]))

@pytest.mark.parametrize('kind', [CrossEntropy, nn.CrossEntropyLoss])
def test_the_parts_of_a_class_are_refused(kind):
    with pytest.raises(TypeError, match='instance'): loss_parts(kind)

def test_item_losses_leave_out_what_torchs_losses_ignore():
    pred, yb = torch.randn(2, 3, 4), torch.tensor([[0, 1, -1, -1], [0, 1, 2, 0]])
    for torchs in (nn.CrossEntropyLoss(ignore_index=-1), functools.partial(F.cross_entropy, ignore_index=-1)):
        close(item_losses(torchs, pred, yb), item_losses(CrossEntropy(ignore_index=-1), pred, yb))
    close(item_losses(F.cross_entropy, pred, yb.masked_fill(yb < 0, -100)),
          item_losses(CrossEntropy(ignore_index=-1), pred, yb))

def test_item_losses_refuses_a_loss_that_does_not_heed_its_reduction():
    def stubborn(pred, yb, reduction='mean'): return (pred - yb).pow(2).mean()
    with pytest.raises(ValueError, match='reduction'):
        item_losses(stubborn, torch.randn(3), torch.randn(3))

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_an_ignored_index_is_ignored_in_targets_of_any_whole_type(dtype):
    pred, y = torch.randn(6, 4), torch.tensor([0, 1, 3, 2, 3, 1])
    loss = CrossEntropy(ignore_index=3)
    close(loss(pred, y.to(dtype)), F.cross_entropy(pred, y, ignore_index=3))
    assert loss.count(y.to(dtype)) == 4

@pytest.mark.parametrize('func', [F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss])
@pytest.mark.parametrize('shapes', [((5, 1), (5,)), ((5,), (5, 1)), ((4, 1, 3), (4, 3))])
@pytest.mark.filterwarnings('ignore:Using a target size')
def test_values_by_item_of_shapes_that_only_broadcast_are_refused(func, shapes):
    with pytest.raises(ValueError, match='shape'): item_losses(func, *map(torch.zeros, shapes))

@pytest.mark.parametrize('loss, name, value', [(CrossEntropy(), 'ignore_index', 3),
                                               (HuberLoss(), 'delta', 0.5),
                                               (BinaryCrossEntropy(), 'thresh', 0.2),
                                               (SquaredLoss(), 'reduction', 'sum')])
def test_what_is_set_on_a_loss_later_is_written_down(loss, name, value):
    assert hasattr(loss, name)
    setattr(loss, name, value)
    assert getattr(from_spec(to_spec(loss)), name) == value
