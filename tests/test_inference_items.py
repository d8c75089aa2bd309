"""`predict` takes an item as the data set takes it, and no batch."""
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from exp.dataloader import Dataset, TransformedDataset, make_data
from exp.inference import Prediction, load_learner
from exp.learner import Learner
from exp.progress import Progress
from test_checkpoints_weights import point_learner, small

x, y = torch.randn(24, 4, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 3
def scaled(x, rng): return 2*x
def learner(ds=None, model=None, path='.', **more):
    torch.manual_seed(2)
    ds = Dataset(x, y) if ds is None else ds
    return Learner(make_data(ds, ds, bs=8), nn.Linear(4, 3) if model is None else model, path=path,
                   cbs=Progress(False), **more)

SETS = {'tensors': Dataset(x, y), 'lists': Dataset(list(x), list(y)),
        'arrays': Dataset([v.numpy() for v in x], y.numpy()), 'dict': Dataset({'a': x}, y),
        'pairs': list(zip(x, y)),
        'subset of a subset': Subset(Subset(Dataset(x, y), range(9)), range(4)),
        'concat': ConcatDataset([TensorDataset(x, y)]*2),
        'transformed': TransformedDataset(Dataset(x, y), scaled)}

def test_a_prediction_holds_the_label_the_target_and_the_probabilities():
    learn = learner()
    said, probs = learn.predict(x[0]), learn.model(x[:1]).softmax(1)[0].detach()
    assert isinstance(said, Prediction) and said.label == said.target == probs.argmax()
    torch.testing.assert_close(said.probs, probs)

@pytest.mark.parametrize('ds', SETS.values(), ids=SETS)
def test_a_batch_is_no_item_of_any_data_set(ds):
    learn = learner(ds)
    assert learn.predict(x[0]).probs.shape == (3,)
    for n in (1, 3):
        with pytest.raises(ValueError, match='batch'): learn.predict(x[:n])

@pytest.mark.parametrize('item', [lambda v: v.double().numpy(), lambda v: v.tolist(),
                                  lambda v: pd.Series(v.double().numpy(), index=[3, 1, 0, 2]),
                                  lambda v: pd.DataFrame([v.tolist()], columns=list('abcd')).iloc[0]],
                         ids=['float64', 'list', 'series', 'row'])
def test_an_item_is_taken_as_the_data_set_takes_it(item):
    assert torch.equal(learner().predict(item(x[0])).probs, learner().predict(x[0]).probs)

def own(pred, yb, ignore_index=-1): return F.cross_entropy(pred, yb, ignore_index=ignore_index)
class Own(nn.CrossEntropyLoss):
    def forward(self, pred, yb): return super().forward(pred, yb)

@pytest.mark.parametrize('loss', [own, Own(ignore_index=-1)])
def test_a_loss_of_ones_own_that_ignores_is_weighted_by_what_counts(loss):
    some = y.where(torch.arange(24) > 9, -1)
    losses = [Learner(make_data(Dataset(x, some), Dataset(x, some), bs=bs), learner().model, loss_func=loss,
                      cbs=Progress(False)).validate()['loss'] for bs in (2, 3, 12)]
    assert losses == pytest.approx([losses[-1]]*3, abs=1e-6)

# ---------------------------------------------------------------- what is no item

@pytest.mark.parametrize('item', [torch.zeros(3, 5), torch.zeros(1, 5), torch.zeros(3, 5).numpy(),
                                  torch.zeros(3, 5).tolist(), (torch.zeros(3, 5),)],
                         ids=['tensor', 'one', 'array', 'list', 'tuple'])
@pytest.mark.parametrize('loaded', [False, True], ids=['trained', 'loaded'])
def test_a_batch_is_no_item(item, loaded, tmp_path):
    learn = point_learner(small(), tmp_path)
    if loaded: learn = load_learner(learn.export())
    with pytest.raises(ValueError, match='batch'): learn.predict(item)
    learn.predict(torch.zeros(5))

@pytest.mark.parametrize('item', ['words', None, {'a'}, object()], ids=['str', 'None', 'set', 'object'])
def test_what_is_no_array_is_no_item(item, tmp_path):
    with pytest.raises(TypeError, match='item'): point_learner(small(), tmp_path).predict(item)

@pytest.mark.parametrize('item', [['a.png'], None, 7, {'a': 1}, torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
                                  [torch.zeros(3, 8, 8)]], ids=lambda i: type(i).__name__)
def test_what_is_no_image_is_called_so_and_not_cut_short(item, tmp_path):
    from PIL import Image
    from exp.data_block import ImageList
    for part in ('train/a', 'train/b', 'valid/a', 'valid/b'):
        (tmp_path/part).mkdir(parents=True)
        Image.new('RGB', (9, 9), (len(part)*9, 9, 9)).save(tmp_path/part/'0.png')
    data = ImageList.from_folder(tmp_path).split_by_folder().label_from_folder().transform(size=8).databunch(
        2)
    learn = Learner(data, nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), cbs=Progress(False))
    with pytest.raises(TypeError, match='image') as e: learn.predict(item)
    assert 'cut short' not in str(e.value)
