"""The environment belongs to other programs too: their variables are no errors."""
import os, subprocess, sys, warnings

import pytest

from exp.core import environ, settings

pytestmark = pytest.mark.launch

@pytest.mark.parametrize('name', ['EXP_NAME', 'EXP_DIR', 'EXP_ID', 'EXP_ROOT', 'EXP_PATH', 'EXP_LIBRARY_PATH',
                                  'EXP_MODE', 'EXP_TAG', 'EXP_VERSION', 'EXP_', 'EXP_LOG', 'exp_seed_x'])
def test_a_strangers_variable_is_silent(name):
    with environ(**{name: 'x'}), warnings.catch_warnings():
        warnings.simplefilter('error')
        settings()

def test_the_library_is_imported_among_strangers():
    strangers = {f'EXP_{k}': 'x' for k in ('NAME', 'DIR', 'ID', 'ROOT', 'SEEED')}
    done = subprocess.run([sys.executable, '-c', 'import exp.core'], env={**os.environ, **strangers},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

@pytest.mark.parametrize('name', ['EXP_SEED', 'EXP_THREADS', 'EXP_DEVICE', 'EXP_DATA', 'EXP_SETTINGS'])
def test_an_empty_variable_is_as_none(name):
    with environ(**{name: None}): plain = settings()
    with environ(**{name: ''}): assert settings() == plain
