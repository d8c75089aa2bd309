"""A loss that is not one number, and inputs and targets of another type, meet an error that names them."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.callbacks import Runner
from exp.dataloader import DataLoader, Dataset, TransformedDataset, make_data
from exp.learner import Learner
from exp.losses import CrossEntropy, SquaredLoss
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
    with pytest.raises(TypeError, match='number') as e: do(learner(loss_func=loss))
    assert getattr(loss, '__name__', type(loss).__name__) in str(e.value) and len(str(e.value)) <= 120

def test_a_loss_of_shape_1_is_one_number():
    learn = learner(loss_func=lambda pred, yb: F.cross_entropy(pred, yb)[None])
    learn.fit(1)
    assert len(learn.recorder.losses) == 4 and type(learn.recorder.losses[0]) is float

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
    with pytest.raises(TypeError, match='targets'): learn.fit(1)

def test_another_error_of_the_model_stays_what_it_is():
    class Wrong(nn.Linear):
        def forward(self, x): raise RuntimeError('this type of model is never right')
    learn = learner()
    learn.model = Wrong(4, 3)
    with pytest.raises(RuntimeError, match='never'): learn.fit(1)

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
    with pytest.raises(TypeError, match='words'):
        CrossEntropy()(torch.zeros(2, 3), ['cat', 'dog'])
