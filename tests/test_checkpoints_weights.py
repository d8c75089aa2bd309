"""`load` reads weights by whatever trainer they were saved: compiled, data-parallel, held in a dict; or takes
what fits."""
import pytest
import torch
from torch import nn

from exp.checkpoints import Differences
from exp.dataloader import Dataset, make_data
from exp.inference import load_learner
from exp.learner import Learner
from exp.progress import Progress


# ---------------------------------------------------------------- names and holders of weights

class Wrapped(nn.Module):
    "As torch.compile and DataParallel name the model within."
    def __init__(self, name, model):
        super().__init__()
        self.add_module(name, model)

def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

def point_learner(model, path):
    x, y = torch.randn(12, 5), torch.arange(12) % 3
    return Learner(make_data(Dataset(x, y), Dataset(x, y), bs=4), model, path=path, cbs=Progress(False))

PREFIXES = {'plain': '', 'module': 'module.', 'compiled': '_orig_mod.', 'both': 'module._orig_mod.',
            'other way': '_orig_mod.module.'}
HOLDERS = {'bare': lambda s: s, 'state_dict': lambda s: {'epoch': 3, 'state_dict': s},
           'model': lambda s: {'model': s, 'args': [1]},
           'model_state_dict': lambda s: {'model_state_dict': s, 'opt': None},
           'twice': lambda s: {'model': {'state_dict': s}}}

@pytest.mark.parametrize('holder', HOLDERS)
@pytest.mark.parametrize('there', PREFIXES)
def test_weights_of_wrapped_models_are_read(there, holder, tmp_path):
    state = {PREFIXES[there] + k: v for k, v in small(1).state_dict().items()}
    torch.save(HOLDERS[holder](state), tmp_path/'theirs.pth')
    learn = point_learner(small(), tmp_path)
    assert learn.load('theirs') is learn
    assert all(torch.equal(a, b)
               for a, b in zip(learn.model.state_dict().values(), small(1).state_dict().values()))

@pytest.mark.parametrize('here', ['module', '_orig_mod'])
@pytest.mark.parametrize('there', PREFIXES)
def test_a_wrapped_model_reads_them_too(here, there, tmp_path):
    torch.save({PREFIXES[there] + k: v for k, v in small(1).state_dict().items()}, tmp_path/'theirs.pth')
    model = Wrapped(here, small())
    point_learner(model, tmp_path).load('theirs')
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), small(1).state_dict().values()))

def test_a_module_that_is_named_module_keeps_its_name(tmp_path):
    def make(seed): return nn.ModuleDict({'module': small(seed), 'other': small(seed + 1)})
    torch.save(make(5).state_dict(), tmp_path/'same.pth')
    model = make(0)
    point_learner(model, tmp_path).load('same')
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), make(5).state_dict().values()))

@pytest.mark.parametrize('wrap', [lambda m: torch.compile(m, backend='eager'), nn.DataParallel],
                         ids=['compile', 'data parallel'])
def test_our_own_files_of_wrapped_models_are_read(wrap, tmp_path):
    learn = point_learner(wrap(small(1)), tmp_path)
    _saved, exported = learn.save('wrapped'), learn.export('exported.pth')
    other = point_learner(small(), tmp_path).load('wrapped')
    x, right = learn.data.valid_ds.x[0], small(1).eval()
    for l in (other, load_learner(exported), load_learner(exported, small(3))):
        with torch.no_grad():
            assert torch.allclose(l.predict(x).probs, right(x[None]).softmax(1)[0], atol=1e-6)

def test_another_architecture_is_named_by_its_keys(tmp_path):
    torch.save({'state_dict': {'module.conv.weight': torch.ones(2)}}, tmp_path/'other.pth')
    with pytest.raises(ValueError, match='conv.weight'): point_learner(small(), tmp_path).load('other')

# ---------------------------------------------------------------- what fits

def test_load_takes_what_fits_and_names_the_rest(tmp_path):
    big = nn.Sequential(*small(1)[:2], nn.Linear(4, 7), nn.Linear(7, 2))
    learn = point_learner(big, tmp_path)
    learn.fit(0)
    learn.save('big')
    mine = point_learner(nn.Sequential(*small(2), nn.ReLU(), nn.PReLU()), tmp_path)
    before = {k: v.clone() for k, v in mine.model.state_dict().items()}
    with pytest.raises(ValueError, match='architecture'): mine.load('big')
    differ = mine.load('big', strict=False)
    assert (differ.missing == ['4.weight'] and differ.unexpected == ['3.weight', '3.bias']
            and differ.mismatched == ['2.weight', '2.bias'])
    for k, v in mine.model.state_dict().items():
        assert torch.equal(v, before[k] if k in differ.missing + differ.mismatched else big.state_dict()[k])
    assert mine.epoch == 0 and not mine.fit(1)

def test_where_all_fits_not_strict_is_strict(tmp_path):
    learn = point_learner(small(1), tmp_path)
    learn.fit(2)
    learn.save('same')
    other = point_learner(small(), tmp_path)
    assert (other.load('same', strict=False) == Differences([], [], []) and other.epoch == 2
            and len(other.opt.state) == len(learn.opt.state))
    with pytest.raises(ValueError):
        (other.load('nothing', strict=False) if torch.save([1], tmp_path/'nothing.pth')
         else other.load('nothing', strict=False))

def test_load_reads_an_exported_file_and_refuses_a_damaged_one(tmp_path):
    learn = point_learner(small(), tmp_path)
    learn.export('whole.pth')
    assert point_learner(small(), tmp_path).load('whole')
    (tmp_path/'junk.pth').write_bytes(b'abc')
    with pytest.raises(ValueError, match='damaged'): learn.load('junk')
    torch.save({'kind': 'theirs', 'opt': 3, 'loss': 0.5, 'state_dict': learn.model.state_dict()},
               tmp_path/'theirs.pth')
    assert learn.load('theirs') is learn

class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.module, self._orig_mod = nn.Linear(5, 3), nn.Linear(3, 3)
    def forward(self, x): return self._orig_mod(self.module(x))

def test_parts_that_are_named_as_wrappers_are_told_apart(tmp_path):
    learn = point_learner(TwoParts(), tmp_path)
    learn.save('two')
    again = point_learner(TwoParts(), tmp_path).load('two')
    assert all(torch.equal(a, b)
               for a, b in zip(again.model.state_dict().values(), learn.model.state_dict().values()))
