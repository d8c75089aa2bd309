"Losses and metrics of lesson 04: parity with PyTorch, reductions, bad input, and what later lessons will need of a metric."
import copy, functools, json, math, pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from exp.core import from_spec, test_close as close, test_eq as equal, to_spec
from exp.losses import (AbsoluteLoss, BinaryCrossEntropy, CrossEntropy, HuberLoss, Loss, MeanMetric, Metric, Rmse, SquaredLoss, accuracy,
                        add_loss_parts, as_metric, item_losses, loss_parts, nll)
from exp.tensors import log_softmax

TOL = {torch.float64: 1e-10, torch.float32: 1e-5}
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(0, 10_000)

def draw(shape, dtype, seed, scale=3.): return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)*scale

def same_value_and_gradient(ours, theirs, pred, yb):
    results = []
    for f in (ours, theirs):
        p = pred.clone().requires_grad_()
        value = f(p, yb)
        value.sum().backward()
        results.append((value, p.grad))
    for a, b in zip(*results): close(a, b, TOL[pred.dtype]); assert a.dtype == pred.dtype

NUMBERS = [(SquaredLoss, F.mse_loss, {}, {}), (AbsoluteLoss, F.l1_loss, {}, {}), (HuberLoss, F.huber_loss, {'delta': 0.7}, {'delta': 0.7}),
           (BinaryCrossEntropy, F.binary_cross_entropy_with_logits, {}, {})]

@pytest.mark.parametrize('ours, theirs, a, b', NUMBERS)
@settings(max_examples=20, deadline=None)
@given(shape=shapes, dtype=dtypes, seed=seeds)
def test_losses_of_numbers_and_their_gradients_are_torchs(ours, theirs, a, b, shape, dtype, seed):
    pred, yb = draw(shape, dtype, seed), draw(shape, dtype, seed + 1)
    if ours is BinaryCrossEntropy: yb = yb.sigmoid()
    for reduction in ('mean', 'sum'):
        same_value_and_gradient(ours(reduction=reduction, **a), functools.partial(theirs, reduction=reduction, **b), pred, yb)
    def each(p, y): v = theirs(p, y, reduction='none', **b); return v.flatten(1).mean(1) if v.ndim > 1 else v
    same_value_and_gradient(ours(reduction='none', **a), each, pred, yb)

@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 6), classes=st.integers(1, 7), rest=st.lists(st.integers(1, 4), max_size=2), dtype=dtypes, seed=seeds, last=st.booleans())
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
    same_value_and_gradient(lambda p, y: nll(log_softmax(p, dim), y, dim), torchs('none'), given_pred, yb)   # by hand

@pytest.mark.parametrize('ours, theirs, a, b', NUMBERS)
def test_extreme_predictions_give_finite_losses_where_torchs_are(ours, theirs, a, b):
    pred, yb = torch.tensor([-1e4, -100., -30., 0., 30., 100., 1e4]), torch.tensor([1., 0., 1., 1., 0., 1., 0.])
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
    for f in (SquaredLoss(), HuberLoss(), BinaryCrossEntropy()): assert torch.autograd.gradgradcheck(lambda p: f(p, y), x)

# reductions and targets that do not count

def test_reductions_of_one_value_per_item_agree():
    pred, yb = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    for kind in (SquaredLoss, AbsoluteLoss, HuberLoss):
        each = kind(reduction='none')(pred, yb)
        assert each.shape == (5,)
        close(each.mean(), kind()(pred, yb)); close(each.sum()*12, kind(reduction='sum')(pred, yb))

@pytest.mark.parametrize('ignore', [-100, -1, 3, 255])
def test_ignored_targets_cost_nothing_and_are_not_counted(ignore):
    pred = draw((4, 5, 6, 2), torch.float64, 1)
    yb = torch.randint(5, (4, 6, 2), generator=torch.Generator().manual_seed(1))
    yb[torch.rand(yb.shape, generator=torch.Generator().manual_seed(2)) < 0.4] = ignore
    loss = CrossEntropy(ignore_index=ignore)
    same_value_and_gradient(loss, lambda p, y: F.cross_entropy(p, y, ignore_index=ignore), pred, yb)
    equal(loss.count(yb), (yb != ignore).sum())
    each = CrossEntropy('none', ignore_index=ignore)(pred, yb)
    close(each, torch.stack([F.cross_entropy(pred[i:i+1], yb[i:i+1], ignore_index=ignore) for i in range(4)]), 1e-10)
    # batches weighted by count give the whole
    parts = [(loss(p, y), loss.count(y)) for p, y in zip(pred.split(3), yb.split(3))]
    close(sum(v*n for v, n in parts)/sum(n for _, n in parts), loss(pred, yb), 1e-10)

def test_a_batch_of_ignored_targets_costs_zero_and_has_a_zero_gradient():
    pred = torch.randn(3, 4, requires_grad=True)
    loss = CrossEntropy(ignore_index=-1)
    value = loss(pred, torch.full((3,), -1))
    value.backward()
    equal(value.detach(), torch.tensor(0.)); equal(pred.grad, torch.zeros(3, 4)); equal(loss.count(torch.full((3,), -1)), torch.tensor(0))

def test_count_without_ignored_targets_is_their_number(): equal(CrossEntropy().count(torch.zeros(3, 4, dtype=torch.long)), 12)

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int64])
def test_class_numbers_may_be_of_any_integer_type(dtype):
    pred = torch.randn(4, 3)
    close(CrossEntropy()(pred, torch.tensor([0, 1, 2, 1], dtype=dtype)), F.cross_entropy(pred, torch.tensor([0, 1, 2, 1])))

# bad input

@pytest.mark.parametrize('kind', [SquaredLoss, AbsoluteLoss, HuberLoss, BinaryCrossEntropy])
@pytest.mark.parametrize('pred, yb, hint', [((5, 1), (5,), r'pred.squeeze\(-1\)'), ((5,), (5, 1), r'yb.squeeze\(-1\)'), ((5, 2), (5,), 'one shape'),
                                            ((5,), (), 'one shape'), ((1,), (5,), 'one shape')])
def test_shapes_that_would_broadcast_are_refused(kind, pred, yb, hint):
    with pytest.raises(ValueError, match=hint): kind()(torch.zeros(pred), torch.zeros(yb))

@pytest.mark.parametrize('pred, yb, hint', [((5, 3), (5, 1), 'yb.squeeze'), ((5, 3), (5, 3), 'one-hot'), ((5, 3), (4,), r'should have shape \(5,\)'),
                                            ((5,), (5,), 'n×classes'), ((5, 3, 2), (5,), r'\(5, 2\)')])
def test_class_targets_of_a_wrong_shape_are_refused(pred, yb, hint):
    with pytest.raises(ValueError, match=hint): CrossEntropy()(torch.zeros(pred), torch.zeros(yb, dtype=torch.long))

@pytest.mark.parametrize('bad', [3, -1, -100])
@pytest.mark.parametrize('rest', [(), (2,), (2, 2)])
def test_a_class_that_is_not_there_is_named(bad, rest):
    with pytest.raises(ValueError, match=f'Target {bad} .*3 classes, 0 to 2.*ignore_index'):
        CrossEntropy()(torch.zeros(2, 3, *rest), torch.full((2, *rest), bad))

@pytest.mark.parametrize('dtype', [torch.float32, torch.bool])
def test_class_numbers_of_a_wrong_type_are_refused(dtype):
    with pytest.raises(TypeError, match=r'yb.long\(\)'): CrossEntropy()(torch.zeros(2, 3), torch.zeros(2, dtype=dtype))

@pytest.mark.parametrize('loss', [SquaredLoss(), CrossEntropy(), BinaryCrossEntropy()])
def test_predictions_and_targets_must_be_tensors_and_predictions_floats(loss):
    with pytest.raises(TypeError, match='targets are a NoneType'): loss(torch.zeros(2, 2), None)
    with pytest.raises(TypeError, match='predictions are a tuple'): loss((torch.zeros(2, 2),), torch.zeros(2, 2))
    with pytest.raises(TypeError, match='floating-point'): loss(torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 2))

@pytest.mark.parametrize('bad', [-0.1, 2., math.nan])
def test_binary_targets_outside_zero_to_one_are_refused(bad):
    with pytest.raises(ValueError, match='from 0 to 1'): BinaryCrossEntropy()(torch.zeros(2), torch.tensor([0., bad]))

def test_binary_targets_may_be_bool_or_whole_numbers():
    z = torch.randn(4)
    for yb in (torch.tensor([True, False, True, True]), torch.tensor([1, 0, 1, 1])):
        close(BinaryCrossEntropy()(z, yb), F.binary_cross_entropy_with_logits(z, yb.float()))

def test_bad_arguments_of_losses_are_refused():
    with pytest.raises(ValueError, match="did you mean 'mean'"): SquaredLoss('meen')
    loss = SquaredLoss()
    loss.reduction = 'average'
    with pytest.raises(ValueError, match='average'): loss(torch.zeros(1), torch.zeros(1))
    for delta in (0, -1., math.nan):
        with pytest.raises(ValueError, match='greater than 0'): HuberLoss(delta)
    with pytest.raises(ValueError, match='thresh'): BinaryCrossEntropy(thresh=50)
    with pytest.raises(NotImplementedError, match='elements'): Loss()(torch.zeros(1), torch.zeros(1))

# activation, decode, the table, specs

def test_activation_and_decode_answer_in_the_terms_of_the_targets():
    pred = torch.randn(4, 3, 2)
    close(CrossEntropy().activation(pred).sum(1), torch.ones(4, 2)); equal(CrossEntropy().decode(pred), pred.argmax(1))
    close(CrossEntropy(dim=-1).activation(pred), pred.softmax(-1)); equal(CrossEntropy(dim=-1).decode(pred), pred.argmax(-1))
    close(BinaryCrossEntropy().activation(pred), pred.sigmoid()); equal(BinaryCrossEntropy(thresh=0.7).decode(pred), pred.sigmoid() > 0.7)
    assert SquaredLoss().activation(pred) is pred and HuberLoss().decode(pred) is pred

@pytest.mark.parametrize('plain, ours', [
    (F.cross_entropy, CrossEntropy()), (nn.CrossEntropyLoss(), CrossEntropy()), (functools.partial(F.cross_entropy, label_smoothing=.1), CrossEntropy()),
    (functools.partial(functools.partial(F.cross_entropy), reduction='sum'), CrossEntropy()),
    (F.mse_loss, SquaredLoss()), (nn.MSELoss(), SquaredLoss()), (F.l1_loss, AbsoluteLoss()), (nn.L1Loss(), AbsoluteLoss()),
    (F.huber_loss, HuberLoss()), (nn.HuberLoss(), HuberLoss()), (F.binary_cross_entropy_with_logits, BinaryCrossEntropy()),
    (nn.BCEWithLogitsLoss(), BinaryCrossEntropy())])
def test_torchs_losses_have_the_parts_of_ours(plain, ours):
    pred = torch.randn(4, 3)
    close(loss_parts(plain).activation(pred), ours.activation(pred)); equal(loss_parts(plain).decode(pred), ours.decode(pred))
    equal(loss_parts(ours).decode(pred), ours.decode(pred))

def test_losses_of_probabilities_are_in_the_table():
    probs = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    close(loss_parts(nn.NLLLoss()).activation(probs.log()), probs); equal(loss_parts(F.nll_loss).decode(probs.log()), torch.tensor([1, 0]))
    equal(loss_parts(nn.BCELoss()).decode(probs), probs > 0.5)

def test_a_subclass_of_a_torch_loss_inherits_its_parts():
    class Mine(nn.CrossEntropyLoss): pass
    assert loss_parts(Mine()) is loss_parts(nn.CrossEntropyLoss())

def test_an_unknown_loss_is_refused_until_it_is_entered_or_has_the_attributes():
    def odd(pred, yb): return (pred - yb).abs().max()
    with pytest.raises(ValueError, match='odd has no activation.*add_loss_parts'): loss_parts(odd)
    add_loss_parts(odd, activation=torch.tanh, decode=torch.sign)
    assert loss_parts(odd).decode is torch.sign
    def other(pred, yb): return 0
    other.activation, other.decode = torch.exp, torch.sign
    assert loss_parts(other).activation is torch.exp

@pytest.mark.parametrize('loss', [CrossEntropy(), CrossEntropy('sum'), F.cross_entropy, nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction='sum'),
                                  functools.partial(F.cross_entropy, reduction='sum')])
def test_item_losses_gives_one_value_for_each_item_and_leaves_the_loss(loss):
    pred, yb = torch.randn(4, 3, 2), torch.randint(3, (4, 2))
    before = getattr(loss, 'reduction', None)
    close(item_losses(loss, pred, yb), F.cross_entropy(pred, yb, reduction='none').mean(1))
    assert getattr(loss, 'reduction', None) == before

def test_item_losses_refuses_a_loss_without_reduction():
    with pytest.raises(ValueError, match='no reduction'): item_losses(lambda pred, yb: 0, torch.zeros(1), torch.zeros(1))

@pytest.mark.parametrize('loss', [SquaredLoss(), AbsoluteLoss('sum'), HuberLoss(0.5), CrossEntropy(ignore_index=255, dim=-1), BinaryCrossEntropy(thresh=0.3)])
def test_losses_survive_specs_copies_and_pickles(loss):
    for again in (from_spec(json.loads(json.dumps(to_spec(loss)))), copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(again) is type(loss) and repr(again) == repr(loss)

# accuracy

def test_accuracy_counts_the_right_answers():
    pred = torch.eye(4)
    close(accuracy(pred, torch.tensor([0, 1, 2, 0])), 0.75)
    close(accuracy(torch.randn(3, 1, 5), torch.zeros(3, 5, dtype=torch.long)), 1.)
    close(accuracy(pred, torch.tensor([0, 1, 2, 3], dtype=torch.uint8)), 1.)

@pytest.mark.parametrize('pred, yb', [((4, 3), (4, 1)), ((4,), (4,)), ((4, 3), (3,)), ((4, 3, 2), (4,))])
def test_accuracy_refuses_shapes_that_would_broadcast(pred, yb):
    with pytest.raises(ValueError, match='n×classes'): accuracy(torch.zeros(pred), torch.zeros(yb))

# metrics

def over(metric, pred, yb, bs):
    metric.reset()
    for p, y in zip(pred.split(bs), yb.split(bs)): metric.update(p, y)
    return metric.compute()

@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 60), bs=st.integers(1, 60), seed=seeds)
def test_metrics_do_not_depend_on_the_batches(n, bs, seed):
    pred, yb = draw((n, 3), torch.float32, seed), torch.randint(3, (n,), generator=torch.Generator().manual_seed(seed))
    close(over(as_metric(accuracy), pred, yb, bs), accuracy(pred, yb))
    close(over(Rmse(), pred[:, 0], pred[:, 1], bs), F.mse_loss(pred[:, 0], pred[:, 1]).sqrt())

def test_mean_metric_takes_its_weight_from_count_and_its_name_from_the_function():
    loss = CrossEntropy(ignore_index=-1)
    yb = torch.tensor([[0, 1], [1, -1], [-1, -1]])
    pred = torch.randn(3, 2, 2)
    metric = MeanMetric(loss, count=loss.count)
    close(over(metric, pred, yb, 1), loss(pred, yb))
    assert as_metric(accuracy).name == 'accuracy' and Rmse().name == 'rmse' and metric.name == 'CrossEntropy'
    assert MeanMetric(functools.partial(accuracy)).name

def test_mean_metric_sees_the_size_of_nested_targets():
    metric = as_metric(lambda pred, yb: pred.mean())
    metric.update(torch.ones(3), {'boxes': (torch.zeros(3, 4), torch.zeros(3))}); metric.update(torch.zeros(1), [torch.zeros(1)])
    close(metric.compute(), 0.75)
    for bad, kind in ((None, TypeError), ([], TypeError), (torch.tensor(1.), ValueError)):
        with pytest.raises(kind): metric.update(torch.ones(3), bad)

def test_a_function_may_answer_a_python_number_but_not_many():
    metric = as_metric(lambda pred, yb: 0.5)
    metric.update(torch.ones(3), torch.ones(3))
    close(metric.compute(), 0.5)
    with pytest.raises(ValueError, match='one number'): as_metric(lambda pred, yb: pred).update(torch.ones(3), torch.ones(3))

def test_as_metric_takes_objects_as_they_are_and_refuses_the_rest():
    rmse = Rmse()
    assert as_metric(rmse) is rmse
    class Own:
        def reset(self): pass
        def update(self, pred, yb): pass
        def compute(self): return 0
    own = Own()
    assert as_metric(own) is own
    with pytest.raises(TypeError, match=r'Rmse\(\)'): as_metric(Rmse)
    with pytest.raises(TypeError, match='no metric'): as_metric('accuracy')

class Median(Metric):
    def __init__(self):
        super().__init__()
        self.add_state('errors', torch.empty(0), 'cat')
    def update(self, pred, yb): self.add(errors=(pred - yb).abs())
    def compute(self): return self.errors.median()

@pytest.mark.parametrize('kind', [Rmse, Median])
def test_parts_of_ranks_add_up_to_the_whole_even_if_one_is_empty(kind):
    pred, yb = torch.randn(20), torch.randn(20)
    parts, whole = [kind() for _ in range(3)], kind()
    parts[0].update(pred[:7], yb[:7]); parts[2].update(pred[7:], yb[7:])
    for p in parts: whole.add(**p.states())
    close(whole.compute(), over(kind(), pred, yb, 20))
    assert set(whole.states()) == set(whole._how)

def test_reset_forgets_and_metrics_can_be_copied_and_pickled():
    for m in (Rmse(), Median()):
        m.update(torch.ones(3), torch.zeros(3))
        for again in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))): equal(again.compute(), m.compute())
        m.reset()
        m.update(torch.full((2,), 2.), torch.zeros(2))
        equal(m.compute(), torch.tensor(2.))

def test_states_keep_no_graph_and_no_memory_of_the_batch():
    m = Median()
    pred = torch.ones(3, requires_grad=True)
    m.update(pred, torch.zeros(3))
    assert not m.errors.requires_grad
    m.reset()
    buffer = torch.ones(3)
    m.add(errors=buffer)
    buffer.zero_()
    equal(m.compute(), torch.tensor(1.))

def test_counts_stay_exact_beyond_float32():
    m = Rmse()
    m.add(n=2**24); m.add(n=1)
    equal(m.n.item(), 2**24 + 1)

def test_mistakes_with_states_are_named():
    m = Rmse()
    with pytest.raises(ValueError, match="did you mean 'total'"): m.add(totl=1.)
    with pytest.raises(ValueError, match='shape'): m.add(total=torch.ones(2))
    with pytest.raises(AttributeError, match=r'self.add\(total'): m.total = 3.
    with pytest.raises(AttributeError, match="no attribute 'totl'"): m.totl
    for name, default, how, match in (('x', 0., 'mean', "'sum'"), ('total', 0., 'sum', 'taken'), ('compute', 0., 'sum', 'taken'), ('x', 0., 'cat', 'first dimension')):
        with pytest.raises(ValueError, match=match): m.add_state(name, default, how)
    with pytest.raises(NotImplementedError): Metric().update(None, None)
    with pytest.raises(NotImplementedError): Metric().compute()

class Watch(torch.overrides.TorchFunctionMode):
    "Fails where a number is read from a tensor, for which a GPU would have to wait."
    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__float__, torch.Tensor.__int__, torch.Tensor.tolist, torch.Tensor.numpy,
                            torch.Tensor.nonzero, torch.nonzero), f'{func} waits for the device'
        return func(*args, **(kwargs or {}))

def test_update_and_the_losses_never_wait_for_the_device():
    pred, yb = torch.randn(6, 3), torch.randint(3, (6,))
    ce = CrossEntropy(ignore_index=0)
    with Watch():
        for m in (Rmse(), Median()): m.update(pred[:, 0], pred[:, 1])
        MeanMetric(accuracy).update(pred, yb); MeanMetric(ce, ce.count).update(pred, yb)
        for loss in (SquaredLoss(), AbsoluteLoss(), HuberLoss()): loss(pred, pred)
    with pytest.raises(AssertionError, match='waits'), Watch(): pred[0, 0].item()

def test_all_states_move_to_the_device_of_the_predictions():
    "The meta device has shapes and no numbers: reading one raises, as no GPU can be relied on here."
    pred, yb = torch.randn(6, 3, device='meta'), torch.randint(3, (6,), device='meta')
    ce, iou = CrossEntropy(ignore_index=0), MeanIoU(3)
    metrics = [Rmse(), Median(), MeanMetric(accuracy), MeanMetric(ce, ce.count), Perplexity(ce)]
    for _ in range(2):
        for m in metrics[:2]: m.update(pred[:, 0], pred[:, 1])
        for m in metrics[2:]: m.update(pred, yb)
        iou.add(both=torch.ones(3, device='meta', dtype=torch.int64), either=torch.ones(3, dtype=torch.int64))
    for m in (*metrics, iou):
        m.add(**type(m).states(copy.deepcopy(m)))
        empty = copy.copy(m)
        empty._values = dict(m._values)
        Metric.reset(empty)
        m.add(**empty.states())   # a rank that saw nothing has its defaults on the CPU
        assert all(s.device.type == 'meta' for s in m.states().values()), m.name

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_on_a_gpu_states_live_there_and_nothing_synchronises():
    pred, yb = torch.randn(64, 3, device='cuda'), torch.randint(3, (64,), device='cuda')
    ce, metrics = CrossEntropy(ignore_index=0), [Rmse(), Median(), MeanMetric(accuracy)]
    def work():
        for m in metrics[:2]: m.update(pred[:, 0], pred[:, 1])
        metrics[2].update(pred, yb)
        return ce(pred, yb), ce.count(yb), SquaredLoss()(pred, pred), BinaryCrossEntropy()(pred, (pred > 0).float())
    work()   # the first update moves the states' defaults to the device
    torch.cuda.set_sync_debug_mode('error')
    try: work()
    finally: torch.cuda.set_sync_debug_mode('default')
    for m in metrics:
        assert all(s.device.type == 'cuda' for s in m.states().values())
        assert m.compute().device.type == 'cuda'
    close(ce(pred, yb), ce(pred.cpu(), yb.cpu()))

# what later lessons will write, as sketches: each must fit the protocol

class FBeta(Metric):
    def __init__(self, beta=2.):
        super().__init__()
        self.beta2 = beta**2
        for name in ('tp', 'fp', 'fn'): self.add_state(name, 0, 'sum')
    def update(self, pred, yb):
        said, true = pred > 0, yb.bool()
        self.add(tp=(said & true).sum(), fp=(said & ~true).sum(), fn=(~said & true).sum())
    def compute(self): return (1 + self.beta2)*self.tp/((1 + self.beta2)*self.tp + self.beta2*self.fn + self.fp)

class MaskedAccuracy(Metric):
    def __init__(self, void):
        super().__init__()
        self.void = void
        self.add_state('hits', 0, 'sum'); self.add_state('n', 0, 'sum')
    def update(self, pred, yb):
        counts = yb != self.void
        self.add(hits=((pred.argmax(1) == yb) & counts).sum(), n=counts.sum())
    def compute(self): return self.hits/self.n

class MeanIoU(Metric):
    def __init__(self, classes):
        super().__init__()
        self.classes = classes
        self.add_state('both', torch.zeros(classes, dtype=torch.long), 'sum'); self.add_state('either', torch.zeros(classes, dtype=torch.long), 'sum')
    def update(self, pred, yb):
        said, true = (F.one_hot(t, self.classes).flatten(0, -2).bool() for t in (pred.argmax(1), yb))
        self.add(both=(said & true).sum(0), either=(said | true).sum(0))
    def compute(self): return (self.both/self.either)[self.either > 0].mean()

class AveragePrecision(Metric):
    "Of detections (score, right or not) against a number of objects; mAP is its mean over classes."
    def __init__(self):
        super().__init__()
        self.add_state('scores', torch.empty(0), 'cat'); self.add_state('right', torch.empty(0, dtype=torch.bool), 'cat'); self.add_state('objects', 0, 'sum')
    def update(self, pred, yb): self.add(scores=pred[0], right=pred[1], objects=yb.sum())
    def compute(self):
        right = self.right[self.scores.argsort(descending=True)].float()
        precision = right.cumsum(0)/torch.arange(1, len(right) + 1, device=right.device)
        return (precision*right).sum()/self.objects

class Perplexity(Metric):
    def __init__(self, loss_func):
        super().__init__()
        self.loss_func = CrossEntropy('sum', loss_func.ignore_index, loss_func.dim)
        self.add_state('total', 0., 'sum'); self.add_state('n', 0, 'sum')
    def update(self, pred, yb): self.add(total=self.loss_func(pred, yb), n=self.loss_func.count(yb))
    def compute(self): return (self.total/self.n).exp()

def test_f_beta_fits_the_protocol():
    pred, yb = torch.randn(40, 6), (torch.rand(40, 6) < 0.3).float()
    said = pred > 0
    precision, recall = (said*yb).sum()/said.sum(), (said*yb).sum()/yb.sum()
    close(over(FBeta(2.), pred, yb, 7), 5*precision*recall/(4*precision + recall))

def test_masked_accuracy_and_iou_fit_the_protocol():
    pred, yb = torch.randn(10, 3, 4, 4), torch.randint(3, (10, 4, 4))
    yb_void = yb.clone()
    yb_void[:, 0] = 255
    close(over(MaskedAccuracy(255), pred, yb_void, 3), accuracy(pred[:, :, 1:], yb[:, 1:]))
    said = pred.argmax(1)
    by_class = [((said == c) & (yb == c)).sum()/((said == c) | (yb == c)).sum() for c in range(3)]
    close(over(MeanIoU(3), pred, yb, 3), torch.stack(by_class).mean())

def test_average_precision_fits_the_protocol_with_any_number_of_detections_a_batch():
    m = AveragePrecision()
    for scores, right, objects in (([0.9, 0.1], [True, False], [1, 0]), ([], [], [1]), ([0.8, 0.7], [False, True], [1])):
        m.update((torch.tensor(scores), torch.tensor(right, dtype=torch.bool)), torch.tensor(objects))
    close(m.compute(), (1/1 + 2/3)/3)

def test_perplexity_fits_the_protocol():
    loss = CrossEntropy(ignore_index=-1, dim=-1)
    pred, yb = torch.randn(7, 5, 4), torch.randint(-1, 4, (7, 5))
    close(over(Perplexity(loss), pred, yb, 2), loss(pred, yb).exp())
    close(over(Perplexity(loss), torch.zeros(7, 5, 4), yb, 3), 4.)

# Bad input that used to pass in silence, or to fail with an obscure error

@pytest.mark.parametrize('yb', [torch.tensor([0, 1]), torch.tensor([[0], [1], [2], [0]])])
def test_nll_refuses_targets_that_gather_would_cut_short(yb):
    with pytest.raises(ValueError, match=r'should have shape \(4,\)'): nll(torch.randn(4, 3), yb)

def test_nll_refuses_fractions_as_classes():
    with pytest.raises(TypeError, match='integers'): nll(torch.randn(4, 3), torch.tensor([0., 1.5, 2, 0]))

def test_accuracy_takes_tensors_only():
    with pytest.raises(TypeError, match='the targets are a list'): accuracy(torch.randn(2, 3), [0, 1])
    with pytest.raises(TypeError, match='the scores are a list'): accuracy([[0., 1.]], torch.tensor([0]))

@pytest.mark.parametrize('dim', [0, 2, -2, -3])
def test_a_dimension_that_holds_no_classes_is_refused(dim):
    with pytest.raises(ValueError, match=f'dim is {dim} '): CrossEntropy(dim=dim)(torch.randn(3, 3), torch.tensor([0, 1, 2]))

@pytest.mark.parametrize('loss', [SquaredLoss(), AbsoluteLoss(), HuberLoss()])
def test_losses_of_numbers_refuse_bool_targets(loss):
    with pytest.raises(TypeError, match=r'yb\.float\(\)'): loss(torch.randn(3), torch.tensor([True, False, True]))

@pytest.mark.parametrize('kind', [CrossEntropy, nn.CrossEntropyLoss])
def test_the_parts_of_a_class_are_refused(kind):
    with pytest.raises(TypeError, match='give an instance'): loss_parts(kind)

def test_item_losses_leave_out_what_torchs_losses_ignore():
    pred, yb = torch.randn(2, 3, 4), torch.tensor([[0, 1, -1, -1], [0, 1, 2, 0]])
    for torchs in (nn.CrossEntropyLoss(ignore_index=-1), functools.partial(F.cross_entropy, ignore_index=-1)):
        close(item_losses(torchs, pred, yb), item_losses(CrossEntropy(ignore_index=-1), pred, yb))
    close(item_losses(F.cross_entropy, pred, yb.masked_fill(yb < 0, -100)), item_losses(CrossEntropy(ignore_index=-1), pred, yb))

def test_item_losses_refuses_a_loss_that_does_not_heed_its_reduction():
    def stubborn(pred, yb, reduction='mean'): return (pred - yb).pow(2).mean()
    with pytest.raises(ValueError, match='each item a value'): item_losses(stubborn, torch.randn(3), torch.randn(3))

def test_fractions_are_not_cut_to_whole_numbers_in_a_count():
    metric = Rmse()
    with pytest.raises(TypeError, match='cut to whole numbers'): metric.add(n=torch.tensor(2.7))
    equal(metric.n, 0)

def test_a_metric_that_forgets_super_is_told_so():
    class Forgetful(Metric):
        def __init__(self): self.add_state('n', 0, 'sum')
    with pytest.raises(AttributeError, match=r'super\(\).__init__\(\)'): Forgetful()

@pytest.mark.parametrize('args', [(3,), (accuracy, 3)])
def test_mean_metric_takes_functions(args):
    with pytest.raises(TypeError, match='should be functions'): MeanMetric(*args)
