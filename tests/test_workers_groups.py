"""Under trainers of others each process of a group gets a part of its own, or is told that it gets all items:
one launch of two processes."""
import json, os, subprocess, sys

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.launch

SCRIPT = r'''
import json, sys, warnings
import torch
import torch.distributed as dist
import torch.utils.data as tud
from torch import nn

import exp.inference   # methods of Learner
from exp.callbacks import Callback
from exp.dataloader import DataLoader, Dataset, make_data
from exp.distributed import Distributed, RankLoader
from exp.learner import Learner
from exp.progress import Progress

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
N = 12
ds, out = Dataset(torch.randn(N, 3), torch.arange(N) % 2), {}

class Batches:
    def __init__(self, num_processes): self.num_processes = num_processes
    def __len__(self): return 2
    def __iter__(self): return iter([[rank, rank + 2], [rank + 4]])

def loops(name, dl, epochs=3, grad=True, batches=None):
    "Epochs as a trainer of somebody else's runs them."
    with warnings.catch_warnings(record=True) as caught, torch.set_grad_enabled(grad):
        warnings.simplefilter('default')
        items = [[i for _, batch in zip(range(batches or 99), dl) for i in batch.items]
                 for _ in range(epochs)]
    out[name] = {'items': items, 'warnings': [str(w.message) for w in caught]}

def shuffled(): return DataLoader(ds, 4, shuffle=True, seed=1)
loops('plain', shuffled())
loops('in order', DataLoader(ds, 4))
loops('not sliced', DataLoader(list(zip(ds.x, ds.y)), 4))
loops('evaluation', shuffled(), grad=False)
loops('first batch', shuffled(), batches=1)
loops('RankLoader', RankLoader(shuffled()))
loops('DistributedSampler', DataLoader(ds, 4, sampler=tud.DistributedSampler(ds, seed=1)))
loops('DistributedSampler within',
      DataLoader(ds, batch_sampler=tud.BatchSampler(tud.DistributedSampler(ds, seed=1), 4, False)))
loops('batch sampler', DataLoader(ds, batch_sampler=Batches(2)))

class Seen(Callback):
    def before_fit(self): self.seen = []
    def after_batch(self):
        if self.in_train: self.seen += list(self.items)
torch.manual_seed(0)
seen = Seen()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    learn = Learner(make_data(ds, ds, bs=4, seed=1), nn.Linear(3, 2),
                    cbs=[Progress(False), seen]).to_distributed()
    learn.fit(1)
    learn.validate()
    learn.get_preds('train')
    learn.summary()
out['ours'] = {'items': [seen.seen],
               'warnings': [str(w.message) for w in caught if 'process' in str(w.message)]}
with open(f'{folder}/{rank}.json', 'w') as f: json.dump(out, f)
dist.destroy_process_group()
'''

@pytest.fixture(scope='module')
def both(tmp_path_factory):
    if os.name == 'nt' or not dist.is_available() or not dist.is_gloo_available(): pytest.skip('needs gloo')
    folder = tmp_path_factory.mktemp('group')
    (folder/'script.py').write_text(SCRIPT, encoding='utf-8')
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg', 'EXP_DEVICE': 'cpu'}
    started = [subprocess.Popen([sys.executable, folder/'script.py', folder, str(rank)], env=env,
                                stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    errors = [p.communicate(timeout=200)[1] for p in started]
    assert not any(p.returncode for p in started), errors
    return [json.loads((folder/f'{rank}.json').read_text()) for rank in (0, 1)]

@pytest.mark.parametrize('name', ['plain', 'in order', 'not sliced'])
def test_a_loader_that_is_not_sharded_says_so_once(both, name):
    a, b = (out[name] for out in both)
    assert a['items'] == b['items'] and all(sorted(epoch) == list(range(12)) for epoch in a['items'])
    for out in (a, b):
        assert len(out['warnings']) == 1 and 'each process' in out['warnings'][0]

@pytest.mark.parametrize('name', ['RankLoader', 'DistributedSampler', 'DistributedSampler within', 'ours'])
def test_a_loader_that_is_sharded_gives_each_item_once(both, name):
    a, b = (out[name] for out in both)
    assert a['warnings'] == b['warnings'] == []
    for mine, yours in zip(a['items'], b['items']):
        assert sorted(mine + yours) == list(range(12)) and len(mine) == 6
    if name != 'ours': assert a['items'][0] != a['items'][1]   # each epoch another order

@pytest.mark.parametrize('name', ['evaluation', 'first batch', 'batch sampler'])
def test_what_is_no_training_on_equal_items_is_left_alone(both, name):
    assert both[0][name]['warnings'] == both[1][name]['warnings'] == []
