"""Metrics of lesson 04b: accuracy, states that add up over batches and processes, bad input, and what later
lessons will need of a metric."""
import copy, functools, pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from exp.core import test_close as close, test_eq as equal
from exp.losses import AbsoluteLoss, BinaryCrossEntropy, CrossEntropy, HuberLoss, SquaredLoss
from exp.metrics import MeanMetric, Metric, Rmse, accuracy, as_metric, binary_accuracy
from test_losses_errors import learner, x

seeds = st.integers(0, 10_000)

def draw(shape, dtype, seed, scale=3.):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)*scale

# accuracy

def test_accuracy_counts_the_right_answers():
    pred = torch.eye(4)
    close(accuracy(pred, torch.tensor([0, 1, 2, 0])), 0.75)
    close(accuracy(torch.randn(3, 1, 5), torch.zeros(3, 5, dtype=torch.long)), 1.)
    close(accuracy(pred, torch.tensor([0, 1, 2, 3], dtype=torch.uint8)), 1.)

@pytest.mark.parametrize('pred, yb, error', [((4, 3), (4, 1), ValueError), ((4,), (4,), IndexError),
                                             ((4, 3), (3,), ValueError), ((4, 3, 2), (4,), ValueError)])
def test_accuracy_refuses_shapes_that_would_broadcast(pred, yb, error):
    with pytest.raises(error): accuracy(torch.zeros(pred), torch.zeros(yb))

# metrics

def over(metric, pred, yb, bs):
    metric.reset()
    for p, y in zip(pred.split(bs), yb.split(bs)): metric.update(p, y)
    return metric.compute()

@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 60), bs=st.integers(1, 60), seed=seeds)
def test_metrics_do_not_depend_on_the_batches(n, bs, seed):
    pred, yb = draw((n, 3), torch.float32,
                    seed), torch.randint(3, (n,), generator=torch.Generator().manual_seed(seed))
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
    metric.update(torch.ones(3), {'boxes': (torch.zeros(3, 4), torch.zeros(3))})
    metric.update(torch.zeros(1), [torch.zeros(1)])
    close(metric.compute(), 0.75)

def test_a_function_may_answer_a_python_number_but_not_many():
    metric = as_metric(lambda pred, yb: 0.5)
    metric.update(torch.ones(3), torch.ones(3))
    close(metric.compute(), 0.5)
    with pytest.raises(TypeError, match='number'):
        as_metric(lambda pred, yb: pred).update(torch.ones(3), torch.ones(3))

def test_as_metric_takes_objects_as_they_are_and_refuses_the_rest():
    rmse = Rmse()
    assert as_metric(rmse) is rmse
    class Own:
        def reset(self): pass
        def update(self, pred, yb): pass
        def compute(self): return 0
    own = Own()
    assert as_metric(own) is own
    with pytest.raises(TypeError, match='instance'): as_metric(Rmse)
    with pytest.raises(TypeError, match='metric'): as_metric('accuracy')

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
    parts[0].update(pred[:7], yb[:7])
    parts[2].update(pred[7:], yb[7:])
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
    m.add(n=2**24)
    m.add(n=1)
    equal(m.n.item(), 2**24 + 1)

def test_mistakes_with_states_are_named():
    m = Rmse()
    with pytest.raises(KeyError, match='totl'): m.add(totl=1.)
    with pytest.raises(ValueError, match='shape'): m.add(total=torch.ones(2))
    with pytest.raises(AttributeError, match=r'self.add\(total'): m.total = 3.
    with pytest.raises(AttributeError, match='totl'): m.totl
    with pytest.raises(ValueError, match="'sum'"): m.add_state('x', 0., 'mean')
    with pytest.raises(TypeError, match='update'): as_metric(Metric())
    with pytest.raises(AttributeError, match='update'): Metric().update(None, None)

class Watch(torch.overrides.TorchFunctionMode):
    "Fails where a number is read from a tensor, for which a GPU would have to wait."
    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__float__,
                            torch.Tensor.__int__, torch.Tensor.tolist, torch.Tensor.numpy,
                            torch.Tensor.nonzero, torch.nonzero), f'{func} waits for the device'
        return func(*args, **(kwargs or {}))

def test_update_and_the_losses_never_wait_for_the_device():
    pred, yb = torch.randn(6, 3), torch.randint(3, (6,))
    ce = CrossEntropy(ignore_index=0)
    with Watch():
        for m in (Rmse(), Median()): m.update(pred[:, 0], pred[:, 1])
        MeanMetric(accuracy).update(pred, yb)
        MeanMetric(ce, ce.count).update(pred, yb)
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
        return ce(pred, yb), ce.count(yb), SquaredLoss()(pred,
                                                         pred), BinaryCrossEntropy()(pred, (pred > 0).float())
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
    def compute(self):
        return (1 + self.beta2)*self.tp/((1 + self.beta2)*self.tp + self.beta2*self.fn + self.fp)

class MaskedAccuracy(Metric):
    def __init__(self, void):
        super().__init__()
        self.void = void
        self.add_state('hits', 0, 'sum')
        self.add_state('n', 0, 'sum')
    def update(self, pred, yb):
        counts = yb != self.void
        self.add(hits=((pred.argmax(1) == yb) & counts).sum(), n=counts.sum())
    def compute(self): return self.hits/self.n

class MeanIoU(Metric):
    def __init__(self, classes):
        super().__init__()
        self.classes = classes
        self.add_state('both', torch.zeros(classes, dtype=torch.long), 'sum')
        self.add_state('either', torch.zeros(classes, dtype=torch.long), 'sum')
    def update(self, pred, yb):
        said, true = (F.one_hot(t, self.classes).flatten(0, -2).bool() for t in (pred.argmax(1), yb))
        self.add(both=(said & true).sum(0), either=(said | true).sum(0))
    def compute(self): return (self.both/self.either)[self.either > 0].mean()

class AveragePrecision(Metric):
    "Of detections (score, right or not) against a number of objects; mAP is its mean over classes."
    def __init__(self):
        super().__init__()
        self.add_state('scores', torch.empty(0), 'cat')
        self.add_state('right', torch.empty(0, dtype=torch.bool), 'cat')
        self.add_state('objects', 0, 'sum')
    def update(self, pred, yb): self.add(scores=pred[0], right=pred[1], objects=yb.sum())
    def compute(self):
        right = self.right[self.scores.argsort(descending=True)].float()
        precision = right.cumsum(0)/torch.arange(1, len(right) + 1, device=right.device)
        return (precision*right).sum()/self.objects

class Perplexity(Metric):
    def __init__(self, loss_func):
        super().__init__()
        self.loss_func = CrossEntropy('sum', loss_func.ignore_index, loss_func.dim)
        self.add_state('total', 0., 'sum')
        self.add_state('n', 0, 'sum')
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
    for scores, right, objects in (([0.9, 0.1], [True, False], [1, 0]), ([], [], [1]),
                                   ([0.8, 0.7], [False, True], [1])):
        m.update((torch.tensor(scores), torch.tensor(right, dtype=torch.bool)), torch.tensor(objects))
    close(m.compute(), (1/1 + 2/3)/3)

def test_perplexity_fits_the_protocol():
    loss = CrossEntropy(ignore_index=-1, dim=-1)
    pred, yb = torch.randn(7, 5, 4), torch.randint(-1, 4, (7, 5))
    close(over(Perplexity(loss), pred, yb, 2), loss(pred, yb).exp())
    close(over(Perplexity(loss), torch.zeros(7, 5, 4), yb, 3), 4.)

# bad input

@pytest.mark.parametrize('dim', [1, -1, 2])
def test_accuracy_finds_the_classes_in_any_dimension(dim):
    pred, yb = torch.randn(4, 3, 5), torch.randint(3, (4, 5))
    close(accuracy(pred.movedim(1, dim), yb, dim=dim), accuracy(pred, yb))
    close(accuracy(pred.movedim(1, dim), yb, dim),
          CrossEntropy(dim=dim).decode(pred.movedim(1, dim)).eq(yb).float().mean())
    with pytest.raises(ValueError, match='accuracy'): accuracy(pred, yb, dim=-1)

def test_a_metric_says_whether_training_computes_it():
    def never(pred, yb): return 0.
    never.train = False
    class Late(Rmse): train = False
    assert ([as_metric(m).train
             for m in (never, Late(), Rmse(), accuracy, nn.MSELoss())] == [False, False, True, True, True])

def test_accuracy_takes_tensors_only():
    with pytest.raises(AttributeError, match='list'): accuracy(torch.randn(2, 3), [0, 1])
    with pytest.raises(AttributeError, match='list'): accuracy([[0., 1.]], torch.tensor([0]))

def test_fractions_are_not_cut_to_whole_numbers_in_a_count():
    metric = Rmse()
    with pytest.raises(ValueError, match='int64'): metric.add(n=torch.tensor(2.7))
    equal(metric.n, 0)

def test_a_metric_that_forgets_super_is_told_so():
    class Forgetful(Metric):
        def __init__(self): self.add_state('n', 0, 'sum')
    with pytest.raises(AttributeError, match=r'super\(\).__init__\(\)'): Forgetful()

@pytest.mark.parametrize('args', [(3,), (accuracy, 3)])
def test_mean_metric_takes_functions(args):
    with pytest.raises(TypeError, match='callable'):
        MeanMetric(*args).update(torch.randn(2, 3), torch.tensor([0, 1]))

# yes or no

yes = x[:, 0] + 0.3*torch.randn(64, generator=torch.Generator().manual_seed(2)) > 0
TARGETS = {'float n×1': yes.float()[:, None], 'float n': yes.float(), 'int n': yes.long(),
           'bool n×1': yes[:, None]}

@pytest.mark.parametrize('shape', [(64,), (64, 1)])
@pytest.mark.parametrize('kind', TARGETS)
def test_binary_accuracy_is_the_share_of_right_sides(kind, shape):
    logits, yb = x[:, 0].reshape(shape), TARGETS[kind]
    for thresh in (0.5, 0.2):
        right = sum((1/(1 + np.exp(-z)) > thresh) == bool(t)
                    for z, t in zip(x[:, 0].tolist(), yes.tolist()))/64
        assert float(binary_accuracy(logits, yb, thresh)) == pytest.approx(right)
    assert (float(binary_accuracy.per_item(logits, yb).mean()) == pytest.approx(
        float(binary_accuracy(logits, yb))) and len(binary_accuracy.per_item(logits, yb)) == 64)

def test_binary_accuracy_of_several_logits_counts_each():
    logits, yb = x[:, :3], (x[:, 1:] > 0).float()
    assert (float(binary_accuracy(logits, yb))
            == pytest.approx(float(((logits > 0) == yb.bool()).float().mean())))
    for bad in (yb[:, :2], yb[:, 0], yb[:32]):
        with pytest.raises(ValueError, match='shape'): binary_accuracy(logits, bad)

# what is no metric

def vector_metric(pred, yb): return (pred.argmax(1) == yb).float()
def none_metric(pred, yb): pass
def tuple_metric(pred, yb): return 1., 2.
def dict_metric(pred, yb): return {'a': 1.}
class Computes(Metric):
    def __init__(self, value):
        super().__init__()
        self.value = value
    def update(self, pred, yb): pass
    def compute(self): return self.value

@pytest.mark.parametrize('metric', [vector_metric, none_metric, tuple_metric, dict_metric, Computes(None),
                                    Computes(torch.ones(3)), Computes('much'), Computes({'a': 1})])
@pytest.mark.parametrize('do', [lambda learn: learn.fit(1), lambda learn: learn.validate()],
                         ids=['fit', 'validate'])
def test_a_metric_that_is_not_one_number_is_named(metric, do):
    with pytest.raises(TypeError, match='number') as e: do(learner(metrics=metric))
    assert getattr(metric, '__name__', 'computes') in str(e.value)

# what a metric takes from the loss

@pytest.mark.parametrize('loss, thresh', [(BinaryCrossEntropy(thresh=0.2), 0.2),
                                          (nn.BCEWithLogitsLoss(), 0.5),
                                          (F.binary_cross_entropy_with_logits, 0.5), (SquaredLoss(), 0.5)])
def test_a_threshold_is_the_losss_unless_it_is_given(loss, thresh):
    pred, yb = draw((40,), torch.float32, 0), torch.arange(40) % 2
    for func, right in ((binary_accuracy, thresh), (functools.partial(binary_accuracy, thresh=0.7), 0.7),
                        (functools.partial(binary_accuracy), thresh)):
        metric = MeanMetric(func)
        metric.follow(loss)
        metric.update(pred, yb)
        close(metric.compute(), binary_accuracy(pred, yb, right))

def test_a_threshold_counts_only_where_the_loss_decodes_by_it():
    pred, yb = draw((40,), torch.float32, 0), torch.arange(40) % 2
    loss = nn.BCEWithLogitsLoss()
    loss.thresh = 0.1
    metric = MeanMetric(binary_accuracy)
    metric.follow(loss)
    metric.update(pred, yb)
    close(metric.compute(), binary_accuracy(pred, yb, 0.5))

@pytest.mark.parametrize('loss', [nn.BCELoss(), F.binary_cross_entropy])
def test_a_loss_of_probabilities_and_a_metric_of_logits_are_an_error(loss):
    with pytest.raises(ValueError, match='probabilities'): MeanMetric(binary_accuracy).follow(loss)
    MeanMetric(accuracy).follow(loss)

def test_a_function_that_follows_nothing_gets_nothing():
    metric = MeanMetric(accuracy)
    metric.follow(BinaryCrossEntropy(thresh=0.2))
    metric.update(torch.eye(3), torch.arange(3))
    close(metric.compute(), 1.)

# ---- numbers that are narrow, or none

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int16, torch.int32, torch.float16,
                                   torch.bfloat16])
def test_targets_of_narrow_types_do_not_overflow(dtype):
    pred, yb = torch.tensor([[100.], [-90.]]), torch.tensor([[100], [10]])
    for loss in SquaredLoss(), AbsoluteLoss():
        assert loss(pred, yb.to(dtype)) == loss(pred, yb.float())
        whole = pred.abs().to(dtype)   # both narrow: 90 − 10 and its square
        assert loss(whole, yb.to(dtype)) == loss(whole.float(), yb.float())
    metric = Rmse()
    for _ in range(5): metric.update(pred.abs().to(dtype), yb.to(dtype))
    close(metric.compute(), torch.tensor(80/2**0.5))

@pytest.mark.parametrize('metric, pred, yb', [
    (accuracy, torch.tensor([[torch.nan, torch.nan], [0., torch.nan], [2., 1.]]), torch.tensor([0, 1, 0])),
    (binary_accuracy, torch.tensor([torch.nan, torch.nan, -1.]), torch.tensor([0., 1., 0.]))])
def test_a_network_that_says_nan_is_never_right(metric, pred, yb):
    close(torch.as_tensor(metric(pred, yb)), torch.tensor(1/3))
    averaged = as_metric(metric)
    averaged.update(pred, yb)
    close(averaged.compute(), torch.tensor(1/3))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.int32])
def test_means_of_narrow_types_are_added_up_in_float32(dtype):
    metric = as_metric(lambda pred, yb: pred.sum().to(dtype))
    for _ in range(400): metric.update(torch.full((300,), 1.), torch.zeros(300))
    assert metric.compute() == 300
