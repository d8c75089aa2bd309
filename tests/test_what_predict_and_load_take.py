"""`predict` takes an item as the data set takes it and no batch; `load` and `export` read and write what they
say."""
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from exp.data_block import ItemList
from exp.dataloader import DataBunch, DataLoader, Dataset, TransformedDataset, make_data
from exp.inference import load_learner
from exp.learner import Learner
from exp.progress import Progress

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

def test_load_reads_an_exported_file_and_refuses_a_damaged_one(tmp_path):
    learn = learner(path=tmp_path)
    learn.export('whole.pth')
    assert learner(path=tmp_path).load('whole')
    (tmp_path/'junk.pth').write_bytes(b'abc')
    with pytest.raises(ValueError, match='damaged'): learn.load('junk')
    torch.save({'kind': 'theirs', 'opt': 3, 'loss': 0.5, 'state_dict': learn.model.state_dict()},
               tmp_path/'theirs.pth')
    assert learn.load('theirs') is learn

class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.module, self._orig_mod = nn.Linear(4, 3), nn.Linear(3, 3)
    def forward(self, x): return self._orig_mod(self.module(x))

def test_parts_that_are_named_as_wrappers_are_told_apart(tmp_path):
    learn = learner(model=TwoParts(), path=tmp_path)
    learn.save('two')
    again = learner(model=TwoParts(), path=tmp_path).load('two')
    assert all(torch.equal(a, b)
               for a, b in zip(again.model.state_dict().values(), learn.model.state_dict().values()))

@pytest.mark.parametrize('change', [lambda m: m.register_forward_hook(lambda m, i, o: 5*o),
                                    lambda m: m.register_forward_pre_hook(lambda m, i: (5*i[0],)),
                                    lambda m: setattr(m, 'forward', lambda x: F.linear(5*x, m.weight))],
                         ids=['hook', 'pre-hook', 'forward'])
def test_export_says_that_a_changed_forward_is_not_written(change, tmp_path):
    learn = learner(model=nn.Sequential(nn.Linear(4, 3)), path=tmp_path)
    change(learn.model[0])
    with pytest.warns(UserWarning, match='model='): learn.export()

def test_a_plain_item_list_is_exported(tmp_path):
    items = [v.clone() for v in x]
    data = ItemList(items).split_by_index([0, 1,
                                           2]).label_from_func(lambda v: 'ab'[int(v[0] > 0)]).databunch(4)
    learn = Learner(data, nn.Linear(4, 2), path=tmp_path, cbs=Progress(False))
    assert load_learner(learn.export()).predict(x[0]).label == learn.predict(x[0]).label

@pytest.mark.parametrize('classes', [np.array(list('abc')), pd.Series(list('abc')),
                                     pd.Categorical(list('abc')), tuple(np.array(list('abc'))), np.arange(3),
                                     torch.arange(3)], ids=lambda c: type(c).__name__)
def test_classes_and_their_number_are_of_pythons_types(classes):
    data = DataBunch(DataLoader(Dataset(x, y), 8), classes=classes, c=np.int64(3))
    assert type(data.c) is int and {type(c) for c in data.classes} <= {str, int} and len(data.classes) == 3

def test_a_wrong_decay_is_called_so():
    with pytest.raises(TypeError, match='wd'): learner().fit(1, wd='a')
