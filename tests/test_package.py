"""What `python -m build` makes is small, and works where there is no checkout."""
import os, re, shutil, subprocess, sys, zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.launch

ROOT = Path(__file__).resolve().parents[1]

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "A wheel built from a copy of what is in the repository."
    copy, out = tmp_path_factory.mktemp('source')/'copy', tmp_path_factory.mktemp('wheel')
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns('.venv', '.git', '_run', 'data', 'nbs',
                                                              '__pycache__', '*.egg-info', 'build', 'dist'))
    subprocess.run([sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', str(out),
                    str(copy)], check=True, capture_output=True, text=True)
    return next(out.glob('*.whl'))

@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    "A folder with the wheel's contents, as an installation has them."
    site = tmp_path_factory.mktemp('site')
    zipfile.ZipFile(wheel).extractall(site)
    return site

def run(code, site, tmp_path, **env):
    "Run `code` with the installed wheel before anything else on the path, in an empty folder."
    clean = {k: v for k, v in os.environ.items() if not k.startswith('EXP_')}
    return subprocess.run([sys.executable, '-c', code], cwd=tmp_path,
                          env={**clean, 'PYTHONPATH': str(site), 'EXP_DATA': str(tmp_path/'cache'), **env},
                          capture_output=True, text=True)

def test_the_wheel_is_small_and_holds_the_package_and_the_licence(wheel):
    assert wheel.stat().st_size < 1_000_000
    names = zipfile.ZipFile(wheel).namelist()
    assert 'exp/core.py' in names and 'exp/all.py' in names and any(n.endswith('LICENSE') for n in names)
    assert not [n for n in names if not re.match(r'exp/|exp-.*\.dist-info/', n)]

def test_everything_imports_without_a_checkout(installed, tmp_path):
    done = run('import exp.all, exp.core; print(exp.__file__); print(exp.core.checkout(), '
               'exp.core.settings().seed)', installed, tmp_path)
    assert done.stdout.split('\n')[:2] == [str(installed/'exp'/'__init__.py'), 'None 42'], done.stderr

def test_without_data_mnist_says_where_it_looked(installed, tmp_path):
    done = run('from exp.all import *\ntry: mnist("train")\nexcept DataUnavailable as e: print("RAISED", e)',
               installed, tmp_path)
    assert 'RAISED' in done.stdout, done.stderr
    assert 'EXP_DATA_MIRROR' in done.stdout

def test_with_a_mirror_of_the_embedded_files_mnist_is_read(installed, tmp_path):
    mirror = tmp_path/'mirror'
    mirror.mkdir()
    import hashlib
    for f in (ROOT/'data'/'mnist').glob('*.gz'): shutil.copy(f, mirror)
    (mirror/'SHA256SUMS').write_text(''.join(f'{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n'
                                             for f in mirror.glob('*.gz')))
    done = run('from exp.all import *\nx, y = mnist("valid"); print(tuple(x.shape), len(y))', installed,
               tmp_path, EXP_DATA_MIRROR=str(mirror))
    assert done.stdout.strip().endswith('(10000, 28, 28) 10000'), done.stderr
