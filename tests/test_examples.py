"""The scripts in examples/ do what their help says."""
import os, re, subprocess, sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.launch

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT/'examples').glob('*.py'))

def run(name, *args, **env):
    return subprocess.run([sys.executable, str(ROOT/'examples'/name), *map(str, args)], capture_output=True,
                          text=True, encoding='utf-8', timeout=600,
                          env={**os.environ, 'OMP_NUM_THREADS': '1', 'EXP_DATA_MIRROR': '',
                               'PYTHONPATH': str(ROOT), 'PYTHONIOENCODING': 'utf-8', **env})

@pytest.mark.parametrize('path', SCRIPTS, ids=lambda p: p.stem)
def test_an_example_says_what_it_is_for_and_how_it_is_set(path):
    done = run(path.name, '--help')
    assert (done.returncode == 0
            and path.read_text(encoding='utf-8').splitlines()[0].strip('"')[:30] in done.stdout), done.stderr
    assert '--epochs' in done.stdout and '--lr' in done.stdout and '--seed' in done.stdout

@pytest.mark.parametrize('path', SCRIPTS, ids=lambda p: p.stem)
def test_an_example_refuses_an_option_that_there_is_not(path):
    done = run(path.name, '--epoch_s', 1)
    assert done.returncode == 2 and 'unrecognized arguments' in done.stderr

def test_mnist_trains_and_goes_on_from_its_checkpoint(tmp_path):
    whole, file = run('train_mnist.py', '--epochs', 2, '--hidden', 20, '--checkpoint',
                      tmp_path/'whole.pth'), tmp_path/'whole.pth'
    assert whole.returncode == 0, whole.stderr
    reached = float(re.search(r'([\d.]+) %', whole.stdout.splitlines()[-1])[1])
    assert reached > 93
    # a finished fit is not trained again
    again = run('train_mnist.py', '--epochs', 2, '--hidden', 20, '--checkpoint', file)
    assert again.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1], again.stderr

def test_imagenette_trains_on_the_stand_in_and_exports(tmp_path):
    done = run('train_imagenette.py', '--epochs', 1, '--size', 28, '--width', 8, '--export',
               tmp_path/'model.pth', EXP_DATA=str(tmp_path/'cache'))
    assert done.returncode == 0, done.stderr
    assert re.search(r'[\d.]+ % of 1,000 validation images \(stand-in\)', done.stdout), done.stdout
    assert (tmp_path/'model.pth').is_file()

def test_the_network_of_the_imagenette_example_is_short():
    lines = (ROOT/'examples'/'train_imagenette.py').read_text(encoding='utf-8').split('\n')
    start, end = (next(i for i, l in enumerate(lines) if l.startswith(s))
                  for s in ('def conv', 'class GrowingSize'))
    assert len([l for l in lines[start:end] if l.strip()]) < 25
