"""Two processes end with one loss: its parameters, buffers and other state are those of a training in one
process, also where the model is frozen."""
import os, socket, subprocess, sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytestmark = pytest.mark.launch

HERE = Path(__file__)

class Warm(nn.Module):
    "A learned temperature, and a buffer that depends on the items seen."
    def __init__(self):
        super().__init__()
        self.log_t = nn.Parameter(torch.tensor(0.1))
        self.register_buffer('seen', torch.zeros(3))
    def forward(self, pred, yb):
        if self.training: self.seen += pred.detach().mean(0)
        return F.cross_entropy(pred/self.log_t.exp(), yb)

class OwnState:
    def __init__(self): self.t, self.n = nn.Parameter(torch.tensor(0.1)), [0]
    def __call__(self, pred, yb):
        if torch.is_grad_enabled(): self.n[0] += len(yb)
        return F.cross_entropy(pred/self.t.exp(), yb)
    def state_dict(self): return {'t': self.t.detach(), 'n': list(self.n)}
    def load_state_dict(self, state):
        self.t.data.copy_(state['t'])
        self.n = list(state['n'])
    log_t = property(lambda self: self.t)

CASES = ['module', 'own state', 'accumulated', 'frozen model', 'nothing learns', 'ema']

def train(case, folder):
    from exp.core import set_seed
    from exp.dataloader import Dataset, make_data
    from exp.distributed import rank
    from exp.learner import Learner
    from exp.precision import GradAccumulation
    from exp.progress import Progress
    from exp.schedules import EMA
    g = torch.Generator().manual_seed(1)
    x = torch.randn(45, 4, generator=g)
    set_seed(1)
    model, loss = nn.Linear(4, 3), OwnState() if case == 'own state' else Warm()
    with torch.no_grad():
        if case != 'nothing learns': loss.log_t.add_(rank())   # rank 0's is sent to all
    if case in ('frozen model', 'nothing learns'): model.requires_grad_(False)
    if case == 'nothing learns': loss.log_t.requires_grad_(False)
    cbs = [Progress(False), *([GradAccumulation(20)] if case == 'accumulated' else []),
           *([EMA(0.5, load_average=True)] if case == 'ema' else [])]
    learn = Learner(make_data(Dataset(x, x[:, :3].argmax(1)), Dataset(x[:9], x[:9, :3].argmax(1)), bs=11,
                              seed=3), model, loss_func=loss, lr=0.2,
                    opt_func=lambda groups, lr: torch.optim.SGD([*groups, {'params': [loss.log_t]}], lr=lr,
                                                                momentum=0.9), cbs=cbs)
    learn.to_distributed()
    error = ''
    try: learn.fit(3)
    except ValueError as e: error = str(e)
    state = {k: v for k, v in loss.state_dict().items()}
    torch.save({'error': error, 'log_t': loss.log_t.detach(), 'state': state, 'model': model.state_dict()},
               Path(folder)/f'{case} {rank()}.pt')

def main(folder):
    from exp.distributed import distributed
    with distributed(timeout=120):
        for case in CASES: train(case, folder)

if __name__ == '__main__': main(sys.argv[1])

@pytest.fixture(scope='module')
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'EXP_DEVICE': 'cpu', 'WORLD_SIZE': '2',
           'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    two = [subprocess.Popen([sys.executable, HERE, folder], env={**env, 'RANK': str(r), 'LOCAL_RANK': str(r)},
                            stderr=subprocess.PIPE, text=True) for r in range(2)]
    try: errors = [p.communicate(timeout=240)[1] for p in two]
    finally:
        for p in two: p.kill()
    assert [p.returncode for p in two] == [0, 0], errors
    return lambda case, r: torch.load(folder/f'{case} {r}.pt', weights_only=True)

@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp('alone')
    def of(case):
        train(case, folder)
        return torch.load(folder/f'{case} 0.pt', weights_only=True)
    return of

@pytest.mark.parametrize('case', CASES)
def test_two_processes_end_with_one_loss_and_that_of_one_process(results, alone, case):
    a, b, one = results(case, 0), results(case, 1), alone(case)
    for k in a['model']: assert torch.equal(a['model'][k], b['model'][k])
    assert torch.equal(a['log_t'], b['log_t'])
    same = all(torch.equal(torch.as_tensor(v), torch.as_tensor(b['state'][k])) for k, v in a['state'].items())
    assert same or a['error']   # a fit that fails in its first batch leaves each process what its items gave
    assert (('learns' in a['error']) == ('learns' in b['error']) == ('learns' in one['error'])
            == (case == 'nothing learns'))
    torch.testing.assert_close(a['log_t'], one['log_t'], rtol=1e-4, atol=1e-6)
    for k in a['model']: torch.testing.assert_close(a['model'][k], one['model'][k], rtol=1e-4, atol=1e-6)
    if case != 'nothing learns': assert abs(one['log_t'] - 0.1) > 1e-3
