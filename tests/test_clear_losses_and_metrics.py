"""Losses, metrics, targets and types that do not fit meet an error that names them; one logit is enough for
two classes."""
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from functools import partial
from torch import nn

from exp.callbacks import Runner
from exp.dataloader import DataLoader, Dataset, TransformedDataset, make_data
from exp.learner import Learner
from exp.losses import BinaryCrossEntropy, CrossEntropy, SquaredLoss, add_loss_parts
from exp.metrics import Metric, binary_accuracy
from exp.mixup import LabelSmoothing
from exp.progress import Progress

g = torch.Generator().manual_seed(1)
x, y = torch.randn(64, 4, generator=g), torch.randint(0, 3, (64,), generator=g)
def learner(ds=None, c=3, **more):
    ds = Dataset(x, y) if ds is None else ds
    torch.manual_seed(2)
    return Learner(make_data(ds, ds, bs=16), nn.Linear(4, c), cbs=Progress(False), **more)

def tuple_loss(pred, yb): return F.cross_entropy(pred, yb), pred
def vector_loss(pred, yb): return F.cross_entropy(pred, yb, reduction='none')
def float_loss(pred, yb): return F.cross_entropy(pred, yb).item()
def none_loss(pred, yb): pass
def numpy_loss(pred, yb): return np.float64(1.)

@pytest.mark.parametrize('loss', [tuple_loss, vector_loss, float_loss, none_loss, numpy_loss,
                                  nn.CrossEntropyLoss(reduction='none'), CrossEntropy('none')])
@pytest.mark.parametrize('do',
                         [lambda learn: learn.fit(1), lambda learn: learn.validate(),
                          lambda learn: Runner(learn.data, learn.model, loss_func=learn.loss_func).fit(1)],
                         ids=['fit', 'validate', 'runner'])
def test_a_loss_that_is_not_one_number_is_named(loss, do):
    with pytest.raises((TypeError, ValueError), match='one number') as e: do(learner(loss_func=loss))
    assert getattr(loss, '__name__', type(loss).__name__) in str(e.value) and len(str(e.value)) <= 120

def test_a_loss_of_shape_1_is_one_number():
    learn = learner(loss_func=lambda pred, yb: F.cross_entropy(pred, yb)[None])
    learn.fit(1)
    assert len(learn.recorder.losses) == 4 and type(learn.recorder.losses[0]) is float

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
    with pytest.raises((TypeError, ValueError), match='one number') as e: do(learner(metrics=metric))
    assert getattr(metric, '__name__', 'computes') in str(e.value)

@pytest.mark.parametrize('kind', [torch.float64, torch.float16, torch.uint8, torch.int64])
@pytest.mark.parametrize('do', [lambda learn: learn.fit(1),
                                lambda learn: learn.validate(), lambda learn: learn.get_preds(),
                                lambda learn: learn.predict(learn.data.train_ds.x[0])],
                         ids=['fit', 'validate', 'get_preds', 'predict'])
@pytest.mark.parametrize('model',
                         [nn.Linear(4, 3), nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2),
                                                         nn.Flatten())], ids=['linear', 'conv'])
def test_inputs_of_another_type_than_the_weights_are_named(kind, do, model):
    learn = learner(Dataset(x.to(kind), y))
    learn.model = model
    with pytest.raises(TypeError, match=str(kind)) as e: do(learn)
    assert 'inputs' in str(e.value) and len(str(e.value)) <= 120

def test_targets_of_another_type_are_named():
    learn = learner(Dataset(x, torch.randn(64, 3).double()), loss_func=F.huber_loss)
    with pytest.raises(TypeError, match='targets are torch.float64'): learn.fit(1)

def test_another_error_of_the_model_stays_what_it_is():
    class Wrong(nn.Linear):
        def forward(self, x): raise RuntimeError('this type of model is never right')
    learn = learner()
    learn.model = Wrong(4, 3)
    with pytest.raises(RuntimeError, match='never right'): learn.fit(1)

@pytest.mark.parametrize('targets',
                         [torch.randn(64, 3), torch.randn(64, 3).numpy(), torch.rand(64, 3).double()])
def test_fractions_as_targets_have_the_squared_loss(targets):
    for ds in (Dataset(x, targets), TransformedDataset(Dataset(x, targets), [])):
        data = make_data(ds, ds, bs=16)
        assert (isinstance(data.loss_func, SquaredLoss)
                and isinstance(Learner(data, nn.Linear(4, 3)).loss_func, SquaredLoss))
    assert isinstance(learner(Dataset(x, targets), loss_func=nn.L1Loss()).loss_func, nn.L1Loss)
    assert isinstance(learner().loss_func, CrossEntropy)

@pytest.mark.parametrize('targets', [torch.rand(64), torch.rand(64, 1), [0.5]*64])
def test_where_cross_entropy_meets_fractions_it_says_so(targets):
    data = DataLoader(list(zip(x, targets)), 16)
    with pytest.raises(TypeError, match='SquaredLoss') as e: Runner((data, data), nn.Linear(4, 1)).fit(1)
    assert 'squeeze' not in str(e.value)

def test_words_as_targets_are_named():
    with pytest.raises(TypeError, match='number the classes'):
        CrossEntropy()(torch.zeros(2, 3), ['cat', 'dog'])

# ---------------------------------------------------------------- yes or no

yes = x[:, 0] + 0.3*torch.randn(64, generator=g) > 0
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
        with pytest.raises(ValueError, match='one shape'): binary_accuracy(logits, bad)

class OneLogit(nn.Module):
    def __init__(self, flat):
        super().__init__()
        self.layer, self.flat = nn.Linear(4, 1), flat
    def forward(self, x):
        return self.layer(x.flatten(1)).squeeze(1) if self.flat else self.layer(x.flatten(1))

@pytest.mark.slow
@pytest.mark.parametrize('loss',
                         [nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits, BinaryCrossEntropy()])
@pytest.mark.parametrize('flat', [True, False])
def test_one_logit_has_a_confusion_matrix_and_answers_of_0_and_1(loss, flat):
    targets = yes.float() if flat else yes.float()[:, None]
    learn = learner(Dataset(images := x.view(64, 1, 2, 2), targets), loss_func=loss, metrics=binary_accuracy)
    learn.model = OneLogit(flat)
    learn.fit(2, lr=0.1)
    said = (learn.model(images).flatten() > 0).long()
    want = [[int(((yes.long() == t) & (said == p)).sum()) for p in (0, 1)] for t in (0, 1)]
    table = learn.confusion_matrix()
    assert table.values.tolist() == want and list(table.index) == [0, 1]
    assert (want[0][0] + want[1][1])/64 == pytest.approx(learn.validate()['binary_accuracy'])
    assert learn.predict(images[0]).label == int(said[0]) and type(learn.predict(images[0]).label) is int
    top = learn.top_losses(64)
    assert (set(top['truth']) | set(top['prediction']) <= {'0', '1'}
            and (top['truth'] == top['prediction']).sum() == want[0][0] + want[1][1])
    learn.show_results(4)
    plt.close('all')

def test_one_logit_that_is_never_right_has_a_matrix_of_two_classes():
    learn = learner(Dataset(x, torch.zeros(64, 1)), loss_func=nn.BCEWithLogitsLoss(), c=1)
    assert learn.confusion_matrix().shape == (2, 2)

@pytest.mark.parametrize('targets', [torch.rand(64, 1), (x > 0).float(), torch.full((64, 1), float('nan'))])
def test_what_has_no_classes_has_no_confusion_matrix(targets):
    with pytest.raises(ValueError, match='one class'):
        learner(Dataset(x, targets), loss_func=BinaryCrossEntropy() if targets.shape[1] > 1 else nn.MSELoss(),
                c=targets.shape[1]).confusion_matrix()

def own_loss(pred, yb): return F.cross_entropy(pred, yb)
add_loss_parts(own_loss, activation=partial(torch.softmax, dim=1), decode=lambda pred: pred.argmax(1))
IGNORING = {-100: [nn.CrossEntropyLoss(), F.cross_entropy, CrossEntropy(ignore_index=-100),
                   nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.rand(3)), own_loss, F.nll_loss],
            -1: [CrossEntropy(ignore_index=-1), partial(F.cross_entropy, ignore_index=-1),
                 LabelSmoothing(ignore_index=-1), nn.CrossEntropyLoss(ignore_index=np.int64(-1).item())],
            2: [CrossEntropy(ignore_index=2), partial(F.cross_entropy, ignore_index=2, weight=torch.rand(3)),
                nn.NLLLoss(ignore_index=2)]}

@pytest.mark.parametrize('index,loss', [(i, loss) for i, losses in IGNORING.items() for loss in losses])
def test_what_the_loss_ignores_is_left_out_of_the_confusion_matrix(index, loss):
    targets = y.clone()
    targets[:20] = index
    learn = learner(Dataset(x, targets), loss_func=loss)
    said, kept = learn.model(x).argmax(1), targets != index
    want = [[int((kept & (targets == t) & (said == p)).sum()) for p in range(3)] for t in range(3)]
    assert learn.confusion_matrix().values.tolist() == want
