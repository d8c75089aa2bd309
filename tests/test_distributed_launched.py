"""Several processes train as one: equal steps and histories, equal random changes, checkpoints for any number
of processes, and an end together, whatever happens.

The trainings are those of scripts/distributed_trainings.py, copied into a temporary folder: one process runs
them here, two and three under PyTorch's launcher, on loopback. A launch costs seconds, so each runs many."""
import functools, importlib, itertools, os, random, re, signal, socket, subprocess, sys, time, uuid
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from exp.core import load_state

ROOT = Path(__file__).resolve().parents[1]
launches = pytest.mark.skipif(os.name == 'nt' or not dist.is_available() or not dist.is_gloo_available(),
                              reason='needs torchrun with gloo')

SCRIPT = (ROOT/'tests'/'scripts'/'distributed_trainings.py').read_text(encoding='utf-8')

# ---------------------------------------------------------------- processes

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def environment(mark):
    clean = {k: v for k, v in os.environ.items() if not k.startswith('EXP_')
             and k not in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')}
    return {**clean, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'MPLBACKEND': 'Agg',
            'EXP_DEVICE': 'cpu', 'EXP_SEED': '42', 'PYTHONPATH': str(ROOT), 'PYTHONIOENCODING': 'utf-8',
            'PYTHONUNBUFFERED': '1', 'PYTHONFAULTHANDLER': '1', 'TEST_DISTRIBUTED_MARK': mark}

def alive(mark, folder):
    """The processes of a launch that still run: on Linux all that carry its mark, elsewhere those that have
    said their number."""
    if sys.platform != 'linux': return [pid for p in folder.glob('pid.*') if _runs(pid := int(p.read_text()))]
    found = []
    for p in Path('/proc').glob('[0-9]*'):
        try:
            if (mark.encode() in (p/'environ').read_bytes()
                and (p/'stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'):
                found.append(int(p.name))
        except OSError: pass
    return found

def _runs(pid):
    try: os.kill(pid, 0)
    except OSError: return False
    return True

def until_gone(mark, folder, seconds):
    end = time.monotonic() + seconds
    while (left := alive(mark, folder)) and time.monotonic() < end: time.sleep(0.1)
    return left

class Launch:
    "A launcher with its workers, of which nothing is left after the `with` block, whatever happens in it."
    def __init__(self, n, folder, *args, script=None):
        self.mark, self.folder, self.began = f'launch-{uuid.uuid4().hex}', Path(folder), time.monotonic()
        self.out, self.err = (open(self.folder/f'{name}.{n}', 'w+', encoding='utf-8')
                              for name in ('out', 'err'))
        command = [sys.executable, '-m', 'torch.distributed.run', '--nnodes', '1', '--node-rank', '0',
                   '--rdzv-backend', 'static', '--master-addr', '127.0.0.1', '--master-port',
                   str(free_port()),
                   '--nproc-per-node', str(n), str(script or self.folder/'training_script.py'),
                   *map(str, args)]
        self.process = subprocess.Popen(command, cwd=self.folder, env=environment(self.mark),
                                        stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.err)

    def __enter__(self): return self
    def wait(self, seconds):
        "The exit code. Fails after `seconds`."
        try: return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f'the launch did not end within {seconds} '
                        f's\n{self.text("out")[-1500:]}\n{self.text("err")[-3000:]}')

    def text(self, name):
        f = getattr(self, name)
        f.flush()
        f.seek(0)
        return f.read()

    def left(self, seconds=10): return until_gone(self.mark, self.folder, seconds)

    def __exit__(self, *exc):
        for _ in range(3):
            for pid in alive(self.mark, self.folder):
                try: os.kill(pid, signal.SIGKILL)
                except OSError: pass
            if self.process.poll() is None: self.process.kill()
            self.process.wait()
            if not until_gone(self.mark, self.folder, 1): break
        self.out.close()
        self.err.close()

# ------------ results: one process here, two and three launched once each

ANY = ['sgd', 'adam', 'fused adam', 'lamb', 'one cycle', 'clipped', 'frozen', 'dicts', 'ones', 'in parts',
       'odd batches', 'single items', 'pairs', 'ignored', 'class weights', 'class weights of a function',
       'ignored by PyTorch', 'a large seed', 'summed', 'a function', 'own sampler', 'no validation',
       'accumulated', 'accumulated class weights',
       'accumulated sums', 'stopped', 'plateau', 'item transforms', 'batch transforms', 'pictures', 'whole']
WORKERS = ['transforms in workers', 'pictures in workers']
# batches: within the second epoch, at its end, and before the last batch of the third, which has one item
BREAKS = 10, 14, 20
OF_TWO = ['norms', 'dropout', 'unequal starts', 'printed', 'finds', 'nan', 'collectives', 'bad input',
          'undone', 'mixed', 'halved']

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('distributed')
    (path/'training_script.py').write_text(SCRIPT, encoding='utf-8')
    return path

@pytest.fixture(scope='module')
def script(folder):
    "The script as a module: what one process does."
    sys.path.insert(0, str(folder))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: yield importlib.import_module('training_script')
    finally:
        torch.set_num_threads(threads)
        sys.path.remove(str(folder))
        sys.modules.pop('training_script', None)

@pytest.fixture(scope='module')
def one(script, folder):
    "One process: the scenarios run here, when they are asked for."
    patch = pytest.MonkeyPatch()
    patch.setenv('EXP_DEVICE', 'cpu')
    patch.setenv('EXP_SEED', '42')
    def of(name):
        if not (folder/f'{name}.1.0').exists(): script.run(folder, [name])
        return read(folder, name, 1, 0)
    yield of
    patch.undo()

def read(folder, name, ranks, rank):
    path = folder/f'{name}.{ranks}.{rank}'
    if not path.exists():
        pytest.fail(f'{path.name} was not written: the launch ended '
                    f'before\n{(folder/f"err.{ranks}").read_text()[-3000:]}')
    out = torch.load(path, weights_only=False)
    if 'error' in out: pytest.fail(f'{path.name}: {out["error"][-3000:]}')
    return out

@pytest.fixture(scope='module')
def two(one, folder):
    for at in BREAKS: one(f'broken at {at}')
    return launched(folder, 2, [*ANY, *WORKERS, *OF_TWO, *(f'broken at {at}' for at in BREAKS),
                                *(f'resumed from 1 at {at}' for at in BREAKS), 'dropout broken'])

@pytest.fixture(scope='module')
def three(two, folder):
    return launched(folder, 3,
                    [*ANY, 'collectives', *(f'resumed from 2 at {at}' for at in BREAKS[:2]), 'broken at 10'])

def launched(folder, n, names):
    with Launch(n, folder, folder, 'run', *names) as launch:
        try: code = launch.process.wait(200)   # of a crowded machine; alone it takes a tenth
        except subprocess.TimeoutExpired: code = 'none: it was stopped'
        left = launch.left() if code == 0 else []
        out = {'code': code, 'left': left, 'out': launch.text('out'), 'err': launch.text('err'), 'ranks': n,
               'read': functools.partial(read, folder)}
    return out

def ranks_of(launch, name): return [launch['read'](name, launch['ranks'], r) for r in range(launch['ranks'])]

def differ(a, b, where='', tolerance=1e-10):
    "Places where two results differ by more than `tolerance`, of numbers beyond 1 a part of them."
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys(): return [f'{where}: {sorted(map(str, a.keys() ^ b.keys()))} in one alone']
        return [d for k in a for d in differ(a[k], b[k], f'{where}[{k!r}]', tolerance)]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b): return [f'{where}: {len(a)} and {len(b)}']
        return [d for i, (v, w) in enumerate(zip(a, b)) for d in differ(v, w, f'{where}[{i}]', tolerance)]
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if a.shape != b.shape: return [f'{where}: shapes {tuple(a.shape)} and {tuple(b.shape)}']
    far = (a.double() - b.double()).abs()/b.double().abs().clamp(min=1.)
    far = torch.where(a.double().isnan() & b.double().isnan(), 0.,
                      torch.where(a.double().isnan() | b.double().isnan(), float('inf'), far))
    return [f'{where}: {far.max():.2g} apart'] if far.numel() and far.max() > tolerance else []

LOGS = ('history', 'losses', 'valid_losses')
def agree(got, expected, logs=1e-6, without=()):
    """Weights to 1e-10; what is read for people, some of it kept in float32, to 1e-6; counts exactly.
    `without`: columns of the history."""
    for key in expected:
        if key in ('sizes', 'inputs', 'leftovers', 'files'): continue
        a, b = (([{k: v for k, v in row.items() if k not in without} for row in o[key]] if key == 'history'
                 else o[key]) for o in (got, expected))
        assert differ(a, b, key, logs if key in LOGS else 1e-10) == [], key

GROUPS = [pytest.param('two', id='2 processes'), pytest.param('three', id='3 processes')]
pytestmark = [pytest.mark.launch, pytest.mark.filterwarnings('ignore:This DataLoader will create')]

# ---------------------------------------------------------------- the steps of one

@launches
@pytest.mark.parametrize('group', GROUPS)
def test_a_launch_ends_well_and_leaves_no_process(request, group):
    launch = request.getfixturevalue(group)
    assert launch['code'] == 0, launch['err'][-4000:]
    assert ('FutureWarning' not in launch['err'] and launch['left'] == []
            and launch['out'].count('the script came to its end') == 1)

@launches
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='threads are counted in /proc')
@pytest.mark.parametrize('group', GROUPS)
def test_no_thread_of_a_group_outlives_it(request, group):
    # one that holds a tensor when Python ends would abort the process
    lines = [l for l in request.getfixturevalue(group)['out'].splitlines() if 'threads:' in l]
    assert len(lines) == {'two': 2, 'three': 3}[group] and not any('gloo' in l for l in lines), lines

@launches
@pytest.mark.parametrize('name', [n for n in ANY if n != 'whole'])
@pytest.mark.parametrize('group', GROUPS)
def test_several_processes_take_the_steps_of_one_and_all_see_its_history(request, one, group, name):
    expected = one(name)
    assert expected['n_iter'] > 0 and len(expected['history']) > 0
    # functions' means of a batch, weighted by what the loss counts: of its parts another number
    without = ([f'{w}_{m}' for w in ('train', 'valid') for m in ('accuracy', 'certainty')]
               if name == 'ignored' else [])
    for out in ranks_of(request.getfixturevalue(group), name): agree(out, expected, without=without)

@launches
@pytest.mark.parametrize('name', WORKERS)
def test_with_workers_too(two, one, name):
    expected = one(name)
    for out in ranks_of(two, name): agree(out, expected)

def test_the_trainings_are_worth_comparing(one):
    "Weights move, losses fall, and another order of the same parts would be noticed."
    a, b = one('sgd'), one('adam')
    assert a['losses'][-1] < a['losses'][0] and differ(a['weights'], b['weights'], tolerance=1e-3)
    assert set(a['history'][0]) >= {f'{w}_{m}' for w in ('train', 'valid')
                                    for m in ('loss', 'accuracy', 'certainty', 'squares', 'hits', 'median')}
    # all items, once
    assert (20_000 < a['history'][0]['valid_median'] < 21_000
            and 43_000 - 100 < a['history'][0]['train_median'] < 44_000)
    assert len(one('stopped')['history']) < 40 and len(set(one('plateau')['lrs'])) > 1
    assert max(one('clipped')['norms']) > 0.1

@launches
@pytest.mark.parametrize('group, name', [*itertools.product(('two', 'three'), (
    'item transforms', 'batch transforms', 'pictures')), *(('two', name) for name in WORKERS)])
def test_random_transforms_are_those_of_one_process_item_by_item(request, one, group, name):
    launch, expected = request.getfixturevalue(group), one(name)
    assert len(expected['inputs']) == 2*43
    parts, joined = ranks_of(launch, name), {}
    for out in parts:
        for place, x in out['inputs'].items():
            assert torch.equal(x, expected['inputs'][place]), place
            joined[place] = x
    assert joined.keys() == expected['inputs'].keys()
    epoch0, epoch1 = (torch.stack([x for (e, _), x in sorted(expected['inputs'].items(), key=lambda p: p[0])
                                   if e == epoch]) for epoch in (0, 1))
    assert not torch.equal(epoch0, epoch1)   # they are random

@launches
@pytest.mark.parametrize('group', GROUPS)
def test_each_process_computes_its_part_of_each_batch(request, one, group):
    launch = request.getfixturevalue(group)
    parts = [out['sizes'] for out in ranks_of(launch, 'item transforms')]
    for batch, (n, _, items) in zip(zip(*parts), one('item transforms')['sizes'], strict=True):
        assert {whole for _, whole, _ in batch} == {n}
        sizes = [len(own) for _, _, own in batch]
        if n >= launch['ranks']:
            assert max(sizes) - min(sizes) <= 1 and sorted(i for _, _, own in batch for i in own) == items
        # those without an item of their own compute the first
        else: assert sizes == [1]*launch['ranks'] and {i for _, _, own in batch for i in own} == set(items)

def test_one_process_with_workers_sees_the_same_items(one):
    assert (differ(one('transforms in workers')['inputs'], one('batch transforms')['inputs'],
                   tolerance=0) == [])
    assert differ(one('pictures in workers')['inputs'], one('pictures')['inputs'], tolerance=0) == []

# ---------------------------------------------------------------- checkpoints

RESUMED = [('two', 1, at) for at in BREAKS] + [('three', 2, at) for at in BREAKS[:2]]

@launches
@pytest.mark.parametrize('group', GROUPS)
def test_a_training_with_checkpoints_is_the_same_and_leaves_one_file(request, one, group):
    for out in ranks_of(request.getfixturevalue(group), 'whole'):
        agree(out, one('whole'))
        assert out['files'] == ['fit.ckpt'] and '_write' not in out['leftovers']

@launches
@pytest.mark.parametrize('group, start, at', RESUMED)
def test_a_checkpoint_goes_on_with_more_processes(request, one, group, start, at):
    for out in ranks_of(request.getfixturevalue(group), f'resumed from {start} at {at}'):
        agree(out, one('whole'))

@launches
@pytest.mark.parametrize('start, at', [('two', at) for at in BREAKS] + [('three', 10)])
def test_a_checkpoint_goes_on_with_one_process(request, one, folder, start, at):
    n = request.getfixturevalue(start)['ranks']
    # of all processes; it is written after each third batch and each epoch
    assert (load_state(folder/f'broken at {at}.{n}'/'fit.ckpt')['position']['items']
            == {10: 14, 14: 0, 20: 28}[at])
    agree(one(f'resumed from {n} at {at}'), one('whole'))

# ------------ what belongs to each process, and what to all

@launches
def test_batch_norm_has_the_same_buffers_everywhere_and_in_validation(two, one):
    a, b = ranks_of(two, 'norms')
    assert (differ(a['weights'], b['weights'], tolerance=0) == []
            and differ(a['states'], b['states'], tolerance=0) == [] and len(a['states']) == 3)
    assert differ(a['history'], b['history'], tolerance=0) == []
    # of halves of a batch: not those of one process
    assert differ(a['weights'], one('norms')['weights'], tolerance=1e-6)
    assert a['history'][-1]['train_loss'] < a['history'][0]['train_loss']

@launches
def test_dropout_differs_by_process_and_goes_on_after_a_break(two):
    outs = ranks_of(two, 'dropout')
    a, b = (out['masks'] for out in outs)
    assert len(a) == len(b) == 4*7
    same = [torch.equal(m[:3], n[:3]) for m, n in zip(a, b) if len(m) >= 3 and len(n) >= 3]
    assert len(same) == 24 and sum(same) <= 1   # of 24 bits each
    assert differ(outs[0]['weights'], outs[1]['weights'], tolerance=0) == []
    assert torch.equal(outs[0]['after'], outs[1]['after'])   # after the fit they are alike again
    for whole, broken in zip(outs, ranks_of(two, 'dropout broken')):
        agree(broken, {k: whole[k] for k in ('weights', 'history', 'losses', 'epoch', 'n_iter')})
        assert (differ(broken['weights'], whole['weights'], tolerance=0) == []
                and broken['losses'] == whole['losses'])

@launches
def test_mixed_items_and_half_precision_keep_all_processes_alike(two, one):
    a, b = ranks_of(two, 'mixed')
    assert differ(a, b, tolerance=0) == [] and a['n_iter'] == 21 and a['losses'][-1] < a['losses'][0]
    a, b = ranks_of(two, 'halved')
    assert differ(a, b, tolerance=0) == []
    for name, tolerance in (('to_bf16', 0.05), ('to_fp16', 0.01)):
        assert differ(a[name]['weights'], one('halved')[name]['weights'], tolerance=tolerance) == [], name

@launches
def test_all_begin_with_the_weights_and_buffers_of_the_first(two):
    a, b = ranks_of(two, 'unequal starts')
    assert differ(a['before'], b['before'], tolerance=1e-3)
    for out in (a, b):
        assert (differ(*({k: v for k, v in s.items() if 'running' not in k and 'num' not in k}
                         for s in (out['after'], a['before'])), tolerance=0) == [])
    assert differ(a['after'], b['after'], tolerance=0) == []

@launches
def test_output_is_printed_and_logged_once(two, one):
    # train and valid, in one head
    assert (two['out'].count('the_marked_metric')
            == one('printed')['csv'].splitlines()[0].count('train_the_marked_metric') + 1 == 2)
    first, second = ranks_of(two, 'printed')
    # of a callback with rank_zero
    assert first['events'] == ['before_fit', *['after_batch']*3*9, 'after_fit'] and second['events'] == []
    for out in (first, second):
        assert ([row['train_the_marked_metric'] for row in out['history']] == [43]*3
                and len(out['csv'].splitlines()) == 1 + 3)

@launches
def test_stopping_and_the_best_weights_are_decided_alike(two, one):
    expected = one('stopped')
    for out in ranks_of(two, 'stopped'):
        assert (out['best_epoch'] == expected['best_epoch'] and differ(out['file'], expected['file']) == []
                and differ(out['weights'], out['file'], tolerance=0) == [])

@launches
def test_the_rate_finder_suggests_the_same_and_undoes_all(two, one):
    for out in ranks_of(two, 'finds'):
        assert (out['suggestion'] == pytest.approx(one('finds')['suggestion'], rel=1e-6) and out['same']
                and out['epoch'] == 0)

@launches
def test_a_loss_that_is_nan_in_one_process_ends_all_at_the_same_batch(two):
    a, b = ranks_of(two, 'nan')
    assert a == b and a['where'] is not None and a['n_iter'] <= 7

@launches
@pytest.mark.parametrize('group', GROUPS)
def test_sums_and_gathered_tensors(request, group):
    launch = request.getfixturevalue(group)
    n = launch['ranks']
    for r, out in enumerate(ranks_of(launch, 'collectives')):
        assert (out['sum'].tolist() == [n, n*(n - 1)/2] and out['whole'] == 3*n + n*(n - 1)//2
                and out['bool'].tolist() == [n, 1])
        assert (out['cat'].tolist() == [i for k in range(n) for i in range(k + 1)]
                and out['none'].shape == (0, 3) and out['some'].shape == (n*(n - 1), 2))
        assert out['flags'].dtype == torch.bool and out['flags'].tolist() == [True]*2 + [False]*2*(n - 1)
        assert out['first'] == (r == 0) and out['ranks'] == (r, n) and out['device'] == 'cpu'

@launches
def test_bad_input_is_refused_with_words_that_help_in_all_processes_and_the_group_goes_on(two):
    for r, out in enumerate(ranks_of(two, 'bad input')):
        for what, words in (('epochs', 'epochs: 1, 2'), ('bs', 'batches of an epoch: 7, 6'),
                            ('rates', 'learning rates: [0.1, 0.1], [1.1, 1.1]')):
            assert out[f'unlike {what}'][0] == 'RuntimeError' and words in out[f'unlike {what}'][1]
        assert (out['no space'] == (('OSError', '[Errno 28] no space left'), (
            'RuntimeError', "rank 0 could not write a file; its own error says why"))[r])
        for name in ('torch loader', 'torch loader for validation', 'a list'):
            assert (out[name][0] == 'TypeError' and 'exp' in out[name][1]
                    and 'DataLoader' in out[name][1]), out[name]
            assert out[f'{name}, data'] and out[f'{name}, parts'] == []
        assert (out['plain metric'][0] == 'TypeError' and 'plain' in out['plain metric'][1]
                and 'Metric' in out['plain metric'][1])
        assert out['afterwards'] is None and out['called twice'] == 1
        assert (out['two callbacks'][0] == 'ValueError' and out['a group in a group'][0] == 'ValueError'
                and out['no such rank'][0] == 'ValueError')

@launches
def test_after_a_fit_nothing_is_left_of_it_whatever_its_end(two):
    a, b = ranks_of(two, 'undone')
    for out in (a, b):
        for how, (same_data, parts, kept, same_cbs, modules) in ((k, v)
                                                                 for k, v in out.items() if k != 'preds'):
            assert (same_data and parts == [] and kept == [] and same_cbs
                    and modules == ['Sequential', 'Linear', 'Tanh', 'Linear']), how
    # each predicts all of them
    assert len(a) == 4 and torch.equal(a['preds'], b['preds']) and len(a['preds']) == 20

# ---------------------------------------------------------------- ends

@pytest.fixture
def own(tmp_path):
    (tmp_path/'training_script.py').write_text(SCRIPT, encoding='utf-8')
    return tmp_path

@launches
def test_a_worker_that_is_killed_ends_the_run_and_the_checkpoint_goes_on(own, script, tmp_path_factory,
                                                                         monkeypatch):
    monkeypatch.setenv('EXP_DEVICE', 'cpu')
    monkeypatch.setenv('EXP_SEED', '42')
    chance = random.SystemRandom()   # the trainings here seed the other
    event, n = chance.choice(['before_batch', 'after_pred', 'after_backward', 'after_step', 'after_batch',
                              'writing']), chance.randrange(5, 6*7 - 2)
    victim = 0 if event == 'writing' else chance.choice([0, 1])
    print(case := f'rank {victim} was killed in {event} of batch {n}')
    with Launch(2, own, own, 'kill', victim, event, n) as launch:
        code = launch.wait(90)
        ended = time.time()
        assert code != 0, case
        assert ended - float((own/'killed').read_text()) < 60, case
        assert launch.left() == [], case
        err = launch.text('err')
        assert 'SIGKILL' in err or '-9' in err or 'Signal 9' in err, (case, err[-2000:])
        assert 'came to its end' not in launch.text('out')
    assert (sorted(p.name for p in own.glob('*fit.ckpt*') if not p.name.endswith('.part'))
            == ['fit.ckpt']), case
    torch.manual_seed(7)
    resumed = script.long_training(own)
    torch.manual_seed(7)
    whole = script.long_training(tmp_path_factory.mktemp('unbroken'))
    assert whole['n_iter'] == 6*7 and load_state(own/'fit.ckpt')['epoch'] == 6
    agree(resumed, whole)

@launches
def test_an_interrupt_of_the_launcher_ends_all(own):
    with Launch(2, own, own, 'wait') as launch:
        end = time.monotonic() + 60
        while (not all((own/f'at.{r}').exists() for r in range(2)) and time.monotonic() < end
               and launch.process.poll() is None):
            time.sleep(0.1)
        assert launch.process.poll() is None and (own/'at.1').exists(), launch.text('err')[-2000:]
        launch.process.send_signal(signal.SIGINT)
        assert launch.wait(60) != 0
        assert launch.left() == []
        assert 'came to its end' not in launch.text('out')

@launches
def test_an_error_in_one_process_ends_all_and_is_shown(own):
    with Launch(2, own, own, 'fail') as launch:
        code = launch.wait(75)
        err = launch.text('err')
        assert code != 0 and 'ArithmeticError: rank 1 fails on purpose' in err
        assert launch.left() == [] and 'came to its end' not in launch.text('out')

@launches
def test_the_example_trains_with_two_processes_and_prints_once(tmp_path):
    with Launch(2, tmp_path, '--epochs', 1, '--bs', 512, '--hidden', 16, '--checkpoint',
                tmp_path/'mnist.ckpt', script=ROOT/'examples'/'train_mnist.py') as launch:
        assert launch.wait(120) == 0, launch.text('err')[-3000:]
        out = launch.text('out')
    assert (len(re.findall(r'accuracy on [\d,]+ validation images: \d+\.\d+ %', out)) == 1
            and out.count('train_loss') == 1)
    assert sorted(p.name for p in tmp_path.iterdir() if 'ckpt' in p.name) == ['mnist.ckpt']
