"""Trainings that are killed and resumed end as those that were not, bit for bit.

The trainings are those of scripts/resume_training.py, in processes of their own."""
import json, os, random, signal, subprocess, sys
from pathlib import Path

import pytest
import torch

from exp.core import load_state
from test_checkpoints import same, ckpt  # noqa: F401

pytestmark = pytest.mark.launch

SCRIPT = Path(__file__).parent/'scripts'/'resume_training.py'
BATCHES, EVERY = 6, 2   # of an epoch; batches between checkpoints
# that really run
EPOCHS = dict.fromkeys(('tensors', 'images', 'workers', 'image workers', 'accumulated'),
                       4) | {'plateau': 8, 'torch adam': 8, 'stopped': 3}
SETUPS = list(EPOCHS)
CASES = 2*len(SETUPS) if sys.platform == 'linux' else 3   # elsewhere each process must import everything anew
kills = pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='this system has no SIGKILL')
forks = pytest.mark.skipif(sys.platform != 'linux',
                           reason='needs many processes, which are forked on Linux alone')

# ---------------------------------------------------------------- processes

def environment():
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'MPLBACKEND': 'Agg',
            'EXP_SEED': '42', 'EXP_THREADS': '1', 'EXP_DEVICE': 'cpu'}

class Starter:
    """Runs trainings of the script: on Linux forked from a process that has imported everything, elsewhere
    each in a new one."""
    def __init__(self, forks=sys.platform == 'linux'):
        self.server = None
        if not forks: return
        self.server = subprocess.Popen([sys.executable, SCRIPT, '--serve'], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, text=True, env=environment())
        assert self.server.stdout.readline() == 'ready\n'

    def __call__(self, setup, folder, **job):
        "The exit code; less than 0 for a signal."
        line = json.dumps({'setup': setup, 'folder': str(folder), **job})
        if self.server is None:
            return subprocess.run([sys.executable, SCRIPT, line], timeout=120, env=environment()).returncode
        print(line, file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def stop(self):
        if self.server is None: return
        self.server.stdin.close()
        try: self.server.wait(70)   # a training is given 60 seconds
        except subprocess.TimeoutExpired: self.server.kill()
        self.server.stdout.close()

@pytest.fixture(scope='module')
def start():
    starter = Starter()
    yield starter
    starter.stop()

@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
    "The results of a setup's training that nobody broke off, made once."
    made = {}
    def of(setup):
        if setup not in made:
            folder = tmp_path_factory.mktemp('whole')
            ended(start(setup, folder, every=EVERY), folder)
            made[setup] = result(folder)
        return made[setup]
    return of

def ended(code, folder):
    assert (code == 0), f'exit code {code}\n' + ((folder/'log').read_text()[-3000:] if (folder/'log').exists()
                                                 else '')
def killed(code, folder):
    assert (code == -signal.SIGKILL), f'exit code {code}; it should have been killed\n' + (
        (folder/'log').read_text()[-3000:] if (folder/'log').exists() else '')
def result(folder, name='result'): return torch.load(folder/name, weights_only=False)

def draw_kill(rng, setup):
    """An event of the whole training and how often it has come when the process dies; before the other
    callbacks, or after them."""
    epochs = EPOCHS[setup]
    event, times = rng.choice([(e, epochs*BATCHES) for e in ('before_batch', 'after_pred', 'after_loss',
                                                             'after_backward', 'after_batch')]
                              + [('before_validate', epochs), ('after_validate', epochs),
                                 ('after_epoch', epochs)])
    return event, rng.randint(1, times), rng.choice((-1000, 10**7))

# ---------------------------------------------------------------- killed at random

@kills
@pytest.mark.parametrize('case', range(CASES))
def test_a_training_that_was_killed_and_resumed_ends_as_one_that_was_not(start, whole, tmp_path, case):
    setup, rng = SETUPS[case % len(SETUPS)], random.Random(case)
    for _ in range(1 + case//len(SETUPS)):   # killed once, or twice
        event, n, order = draw_kill(rng, setup)
        code = start(setup, tmp_path, kill=[event, n, order], every=EVERY)
        if code == 0: break                  # what was left of it did not come so far
        killed(code, tmp_path)
    if not (tmp_path/'result').exists(): ended(start(setup, tmp_path, every=EVERY), tmp_path)
    same(result(tmp_path), whole(setup))
    assert not list(tmp_path.glob('.*.part')), 'something is left beside the checkpoint'

@kills
def test_a_new_process_of_the_users_own_resumes_too(whole, tmp_path):
    "Without forks: a script that is started again, with workers."
    start = Starter(forks=False)
    killed(start('image workers', tmp_path, kill=['after_loss', 15], every=EVERY), tmp_path)
    ended(start('image workers', tmp_path, every=EVERY), tmp_path)
    same(result(tmp_path), whole('image workers'))


# ---------------------------------------------------------------- killed where it is hardest

PLACES = {'before the first checkpoint': ('before_batch', 2), 'with the first checkpoint': ('after_batch', 3),
          'in validation': ('before_validate', 2),
          'when an epoch has ended': ('after_epoch', 2, 10**7),
          'in the last batch': ('after_batch', 4*BATCHES), 'in the last validation': ('after_validate', 4),
          'after the last epoch': ('after_fit', 1)}

@forks
@pytest.mark.parametrize('place', PLACES)
def test_it_may_be_killed_anywhere(start, whole, tmp_path, place):
    killed(start('tensors', tmp_path, kill=PLACES[place], every=EVERY), tmp_path)
    assert (tmp_path/'fit.ckpt').exists() == (place != 'before the first checkpoint')
    ended(start('tensors', tmp_path, every=EVERY), tmp_path)
    same(result(tmp_path), whole('tensors'))

@forks
@pytest.mark.parametrize('how', ['half', 'unnamed', 'renamed'])
@pytest.mark.parametrize('n', [1, 5, 16])
def test_it_may_be_killed_while_the_checkpoint_is_written(start, whole, tmp_path, n, how):
    """With half of it on the disk, with all of it before it has its name, and just after: the file is the
    last or the one before."""
    killed(start('tensors', tmp_path, kill_write=[n, how], every=EVERY), tmp_path)
    assert (tmp_path/'fit.ckpt').exists() == (n > 1 or how == 'renamed')
    if (tmp_path/'fit.ckpt').exists(): load_state(tmp_path/'fit.ckpt')
    assert len(list(tmp_path.glob('.*.part'))) == (how != 'renamed')
    ended(start('tensors', tmp_path, every=EVERY), tmp_path)
    same(result(tmp_path), whole('tensors'))
    assert not list(tmp_path.glob('.*.part')), 'the next fit clears away what the killed one left'

@forks
def test_one_that_stopped_early_does_not_go_on_when_it_is_started_again(start, whole, tmp_path):
    assert whole('stopped')['epoch'] == EPOCHS['stopped'], 'the setup shall stop early'
    # it has stopped, and nobody knows
    killed(start('stopped', tmp_path, kill=['after_fit', 1], every=EVERY), tmp_path)
    for _ in range(2):
        ended(start('stopped', tmp_path, every=EVERY), tmp_path)
        same(result(tmp_path), whole('stopped'))

@forks
def test_one_that_ended_and_is_started_again_has_its_results(start, whole, tmp_path):
    for _ in range(2):
        ended(start('images', tmp_path, every=EVERY), tmp_path)
        same(result(tmp_path), whole('images'))

@forks
def test_the_number_of_workers_may_change(start, whole, tmp_path):
    "Order and random changes depend on seed and epoch alone."
    killed(start('images', tmp_path, kill=['after_loss', 9], every=EVERY), tmp_path)
    (tmp_path/'two').mkdir()
    os.rename(tmp_path/'fit.ckpt', tmp_path/'two'/'fit.ckpt')
    ended(start('images with two workers', tmp_path/'two', every=EVERY), tmp_path/'two')
    same(result(tmp_path/'two'), whole('images'))

@forks
def test_writing_checkpoints_changes_nothing(start, whole, tmp_path):
    ended(start('accumulated', tmp_path, every=None), tmp_path)
    without, with_them = result(tmp_path), whole('accumulated')
    # the sums are cut elsewhere
    assert ([row['train_loss'] for row in without['history']]
            == pytest.approx([row['train_loss'] for row in with_them['history']], rel=1e-6))
    for r in (without, with_them): r.pop('history')
    same(without, with_them)

@pytest.mark.skipif(sys.platform != 'linux', reason='limits the size of files by a setting of Linux')
def test_a_file_that_may_not_grow_is_an_error_and_leaves_nothing(ckpt, tmp_path):
    code = f"""import resource, sys
sys.path.insert(0, {str(SCRIPT.parents[2])!r}); sys.path.insert(0, {str(SCRIPT.parents[1])!r})
from test_checkpoints import *
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try: learner().fit_one_cycle(3, cbs=Checkpoint({str(ckpt)!r}, every=3), resume=True)
except (OSError, RuntimeError) as e: print('refused')
"""
    before = ckpt.read_bytes()
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120,
                          env=environment())
    assert done.stdout == 'refused\n', done.stderr[-2000:]
    assert ckpt.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['fit.ckpt']
