"""benchmarks/gpu.py: it runs small on the CPU in a bare environment, counts what waits for the device, and
leaves nothing where there is no GPU."""
import importlib.util, os, re, subprocess, sys, warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.callbacks import Callback, Runner

pytestmark = pytest.mark.launch

FOLDER = Path(__file__).resolve().parents[1]/'benchmarks'

# what is not needed cannot be imported, and no connection opened
BARE = """
import runpy, socket, sys
for name in ('fastai', 'lightning', 'timm', 'kornia', 'torchvision', 'pytest', 'hypothesis', 'nbdev',
             'IPython', 'sklearn', 'scipy'):
    sys.modules[name] = None
def refuse(*args): raise OSError('no network')
socket.socket.connect = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""

def start(*args, cwd, **env):
    threads = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'), '1')
    clean = {k: v for k, v in os.environ.items() if not k.startswith('EXP_')}
    return subprocess.run([sys.executable, '-c', BARE, str(FOLDER/'gpu.py'), *args], cwd=cwd,
                          env={**clean, **threads, 'MPLBACKEND': 'Agg', 'PYTHONIOENCODING': 'utf-8', **env},
                          # of a crowded machine
                          capture_output=True, text=True, encoding='utf-8', timeout=240)

def files(): return {p.name: p.stat().st_mtime_ns for p in FOLDER.glob('*.md')}

def test_small_on_the_cpu_in_a_bare_environment_within_a_minute(tmp_path):
    before, start_time = files(), os.times()
    done = start('--device', 'cpu', '--quick', '--out', str(tmp_path/'results'), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    end_time = os.times()
    # processor time, which others on the machine do not lengthen
    assert sum(getattr(end_time, k) - getattr(start_time, k)
               for k in ('children_user', 'children_system')) < 60
    path, = (tmp_path/'results').iterdir()   # and no part of a file beside it
    assert re.fullmatch(r'results_\w+\.md', path.name)
    text = path.read_text(encoding='utf-8')
    assert (text.startswith('# ') and f'torch {torch.__version__}' in text
            and re.search(r'\b20\d\d-\d\d-\d\d\b', text) and '--quick' in text)
    rows = [[c.strip() for c in line.strip('|').split(' | ')]
            for line in text.splitlines() if line.startswith('|')][2:]
    assert [r for r in rows if r[2] == 'failed'] == []
    assert ({r[0] for r in rows} == {'waits', 'loop', 'callbacks', 'optimizers', 'norms', 'loader', 'images',
                                     'augmentation', 'memory', 'precision', 'lr_finder'})
    assert all(len(r) == 4 and r[2] for r in rows) and len(rows) > 50
    for what in ('bare loop', 'Runner', 'fuse()', 'RunningBatchNorm', 'JPEG files'):
        assert any(what in r[1] and re.match(r'[\d.,]+ ', r[2]) for r in rows), what
    assert any(r[:3] == ['precision', 'bf16, fp16, channels-last', 'left out'] for r in rows)
    assert text in done.stdout   # the table is printed too
    assert files() == before

def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    before = files()
    done = start('--out', str(tmp_path/'results'), cwd=tmp_path, EXP_DEVICE='cpu')
    assert done.returncode == 0 and 'no GPU' in done.stdout and not (tmp_path/'results').exists()
    assert files() == before

# ---------------------------------------------------------------- with the modules

@pytest.fixture(scope='module')
def gpu():
    path, modules = list(sys.path), set(sys.modules)
    spec = importlib.util.spec_from_file_location('benchmarks_gpu', FOLDER/'gpu.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    # names that others may use
    for name in ('images', 'learner', 'lr_finder', 'loop', 'norms', 'optimizers'):
        if name not in modules: sys.modules.pop(name, None)

@pytest.fixture
def armed(monkeypatch):
    "A device that says when it is waited for: `item` of a tensor stands for the calls that wait, on CUDA."
    state, item = {'mode': 'default', 'set': []}, torch.Tensor.item
    def set_mode(mode):
        if mode == 'warn':
            # PyTorch says this once
            warnings.warn('Synchronization debug mode is a prototype feature and does not yet detect all '
                          'synchronizing operations')
        state['mode'] = mode
        state['set'].append(mode)
    def waits(t):
        if state['mode'] == 'warn':
            warnings.warn('called a synchronizing CUDA operation (Triggered internally at '
                          'CUDAFunctions.cpp:148.)', stacklevel=2)
        return item(t)
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', set_mode)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device=None: None)
    monkeypatch.setattr(torch.Tensor, 'item', waits)
    return state

def fit(gpu, watch, *cbs, n=12):
    batches = [(torch.randn(4, 3), torch.randint(2, (4,))) for _ in range(n)]
    Runner((batches, batches), nn.Linear(3, 2), loss_func=F.cross_entropy, cbs=[watch, *cbs]).fit(2)

@pytest.mark.parametrize('per_batch', [0, 1, 3])
def test_the_watch_counts_waits_with_their_places(gpu, armed, per_batch):
    class Waits(Callback):
        def after_loss(self):
            for _ in range(per_batch): self.loss.item()
            torch.cuda.synchronize()
    before, to = torch.cuda.synchronize, torch.Tensor.to
    watch = gpu.Watch(n=6, first=2)
    fit(gpu, watch, Waits())
    assert watch.places['torch.cuda.synchronize'] == 6 and watch.waits == 6 + 6*per_batch
    # nothing of the first and the last batches, nor of validation
    assert (sum(n for place, n in watch.places.items() if place.startswith('test_benchmarks_gpu.py:'))
            == 6*per_batch)
    assert (armed['set'] == ['warn', 'default']*2 and torch.cuda.synchronize is before
            and torch.Tensor.to is to and 'to' not in vars(torch.Tensor))

def test_the_watch_counts_between_batches_too(gpu, armed):
    class Slow(list):
        def __iter__(self):
            for xb, yb in super().__iter__():
                xb.sum().item()
                yield xb, yb
    watch = gpu.Watch(n=5, first=2)
    batches = Slow((torch.randn(4, 3), torch.randint(2, (4,))) for _ in range(12))
    Runner((batches, None), nn.Linear(3, 2), loss_func=F.cross_entropy, cbs=[watch]).fit(1)
    assert watch.waits == 5

@pytest.mark.parametrize('first, n', [(2, 100), (10, 1), (50, 5)])
def test_after_a_fit_that_ends_early_or_fails_nothing_is_left_armed(gpu, armed, first, n):
    class Fails(Callback):
        def after_loss(self):
            if self.iter == 11: raise RuntimeError('it fails')
    shown, to = warnings.showwarning, torch.Tensor.to
    with pytest.raises(RuntimeError, match='fails'): fit(gpu, gpu.Watch(n=n, first=first), Fails())
    assert armed['mode'] == 'default' and warnings.showwarning is shown and torch.Tensor.to is to

def test_the_whole_part_counts_one_wait_for_the_control_and_none_for_learner(gpu, armed, monkeypatch):
    monkeypatch.setenv('EXP_DEVICE', 'cpu')
    monkeypatch.setattr(gpu.Bench, 'cuda', True)
    b = gpu.Bench(torch.device('cpu'), quick=True)
    monkeypatch.setattr(gpu, 'find', lambda name: None)
    gpu.waits(b)
    values = {what: value for _, what, value, _ in b.table.rows if value != 'left out'}
    control = values.pop('control: loss.item() in each batch')
    # its step counts lie on the CPU, where this stand-in takes them for the device's
    assert values.pop('Learner, torch AdamW') != '0.00 a step'
    assert control == '1.00 a step' and len(values) > 10 and set(values.values()) == {'0.00 a step'}, values

def test_every_entry_of_the_part_runs(gpu, armed, monkeypatch):
    "Precision, mixing and augmentation among them; how often they wait can be seen on a GPU alone."
    monkeypatch.setenv('EXP_DEVICE', 'cpu')
    monkeypatch.setattr(gpu.Bench, 'cuda', True)
    b = gpu.Bench(torch.device('cpu'), quick=True)
    gpu.waits(b)
    assert [r for r in b.table.rows if not r[2].endswith(' a step')] == [] and len(b.table.rows) > 25
    assert armed['mode'] == 'default'

def test_a_run_that_fails_is_a_row_and_the_others_go_on(gpu):
    b = gpu.Bench(torch.device('cpu'), quick=True)
    def bad(): raise ValueError('it cannot')
    def later():
        calls = []
        def run():
            calls.append(1)
            raise KeyError('later')
        return run
    b.compare('part', 'title', {'bad': bad, 'good': lambda: (lambda: None), 'later': later}, 0., per=1)
    assert ([(r[1], r[2]) for r in b.table.rows] == [('bad', 'failed'), ('later', 'failed'),
                                                     ('title: good', b.table.rows[-1][2])])
    assert 'it cannot' in b.table.rows[0][3] and b.table.rows[-1][3] == '1'

def test_a_part_that_fails_or_has_no_time_is_a_row(gpu, monkeypatch):
    def bad(b): raise ValueError('the part fails')
    monkeypatch.setitem(gpu.PARTS, 'norms', bad)
    b = gpu.Bench(torch.device('cpu'), quick=True)
    gpu.run(b, ['norms', 'memory'])
    assert ([r[:3] for r in b.table.rows] == [('norms', 'the rest of it', 'failed'),
                                              ('memory', 'peak', 'left out')])
    b = gpu.Bench(torch.device('cpu'), quick=False)
    b.begun -= 1000
    gpu.run(b, ['norms', 'memory'])
    assert [r[2] for r in b.table.rows] == ['left out']*2 and 'time' in b.table.rows[0][3]

def test_the_card_names_the_file(gpu):
    assert gpu.file_name('NVIDIA H200') == 'results_NVIDIA_H200.md'
    assert gpu.file_name('Tesla T4 / 16 GB (SXM)') == 'results_Tesla_T4_16_GB_SXM.md'

def test_ratios_are_medians_of_pairs(gpu):
    b, seconds = gpu.Bench(torch.device('cpu'), quick=False), {'a': [1, 2, 4, 8, 16], 'b': [3, 6, 12, 24, 48]}
    b.in_turn = lambda *args: seconds
    b.compare('p', 't', {}, 0., per=2, unit='s', scale=1)
    b.compare('p', 't', {}, 0., per=8, unit='items/s', rate=True)
    assert ([r[1:] for r in b.table.rows] == [('t: a', '2 s', '1'), ('t: b', '6 s', '3.000 x a'),
                                              ('t: a', '2 items/s', '1'), ('t: b', '1 items/s', '0.333 x a')])
