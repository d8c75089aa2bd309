"""`export` writes what `load_learner` reads without help, or says what it will lack."""
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.core import set_seed
from exp.data_block import ItemList
from exp.dataloader import Dataset, make_data
from exp.inference import load_learner
from exp.layers import Lambda, conv_layer
from exp.learner import Learner
from exp.norms import BatchNorm
from exp.progress import Progress
from test_inference_items import learner, x
from test_specs import Around

def readme_network(c=3):
    "The network of the README's example, from its own lines."
    text = (Path(__file__).parents[1]/'README.md').read_text(encoding='utf-8')
    lines = [line for line in text.splitlines() if re.match(r'(layers|model) = ', line)]
    names = dict(conv_layer=conv_layer, BatchNorm=BatchNorm, nn=nn, data=type('Data', (), {'c': c}))
    exec('\n'.join(lines), names)
    return names['model']

def image_learner(model, path, **k):
    x, y = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
    return Learner(make_data(Dataset(x, y), Dataset(x, y), bs=4), model, path=path, cbs=Progress(False), **k)

def test_the_readmes_network_is_read_back_without_help(tmp_path, recwarn):
    set_seed(1)
    learn = image_learner(readme_network(), tmp_path)
    learn.fit(1)
    again = load_learner(learn.export())
    assert not [w for w in recwarn if 'load_learner' in str(w.message)]
    x = learn.data.valid_ds.x[0]
    assert (torch.equal(again.predict(x).probs, learn.predict(x).probs)
            and repr(again.model) == repr(learn.model))

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 3)
    def forward(self, x): return self.lin(x.mean((2, 3)))

def tied():
    m = nn.Sequential(nn.Flatten(), nn.Linear(768, 768), nn.Linear(768, 768))
    m[2].weight = m[1].weight
    return m

def replaced():
    m = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Around(nn.Linear(3, 3)))
    m[2].inner = nn.Linear(3, 3, bias=False)
    return m

@pytest.mark.parametrize('make, word',
                         [(Own, 'Own'), (lambda: nn.Sequential(nn.Identity(), nn.Sequential(Own())), 'Own'),
                          (lambda: nn.Sequential(Lambda(lambda x: x.mean((2, 3)))), '<lambda>'),
                          (tied, 'Sequential'), (replaced, 'Sequential'),
                          (lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(
                              nn.Linear(768, 3))), 'ParametrizedLinear')],
                         ids=['own', 'inner', 'lambda', 'tied', 'replaced', 'parametrized'])
def test_export_says_what_load_learner_will_lack(make, word, tmp_path):
    learn = image_learner(make(), tmp_path)
    with pytest.warns(UserWarning, match=word): path = learn.export()
    with pytest.raises(ValueError, match='model=…'): load_learner(path)
    x = learn.data.valid_ds.x[0]
    assert torch.equal(load_learner(path, make()).predict(x).probs, learn.predict(x).probs)

def test_a_network_in_double_comes_back_in_double(tmp_path):
    learn = image_learner(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).double(),
                          tmp_path)
    again, x = load_learner(learn.export()), learn.data.valid_ds.x[0].double()
    assert (torch.equal(again.predict(x).probs, learn.predict(x).probs)
            and again.predict(x).probs.dtype == torch.float64)

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
