"""The environment belongs to other programs too: their variables are no errors, and one that is nearly ours brings a hint."""
import os, subprocess, sys, warnings

import pytest

from exp.core import environ, settings

@pytest.mark.parametrize('name', ['EXP_NAME', 'EXP_DIR', 'EXP_ID', 'EXP_ROOT', 'EXP_PATH', 'EXP_LIBRARY_PATH', 'EXP_MODE', 'EXP_TAG', 'EXP_VERSION', 'EXP_', 'EXP_LOG', 'exp_seed_x'])
def test_a_strangers_variable_is_silent(name):
    with environ(**{name: 'x'}), warnings.catch_warnings():
        warnings.simplefilter('error')
        settings()

@pytest.mark.parametrize('name, right', [('EXP_SEEED', 'EXP_SEED'), ('EXP_DEVISE', 'EXP_DEVICE'), ('EXP_THREAD', 'EXP_THREADS'), ('EXP_DATA_MIRROS', 'EXP_DATA_MIRROR'),
                                         ('EXP_REPORTS', 'EXP_REPORT'), ('EXP_SETTING', 'EXP_SETTINGS')])
def test_a_misspelt_variable_warns_with_the_right_one(name, right):
    with environ(**{name: 'x'}), pytest.warns(UserWarning, match=right): settings()

def test_the_library_is_imported_among_strangers():
    strangers = {f'EXP_{k}': 'x' for k in ('NAME', 'DIR', 'ID', 'ROOT', 'SEEED')}
    done = subprocess.run([sys.executable, '-c', 'import exp.core'], env={**os.environ, **strangers}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'EXP_SEED' in done.stderr and 'EXP_NAME' not in done.stderr

@pytest.mark.parametrize('name', ['EXP_SEED', 'EXP_THREADS', 'EXP_DEVICE', 'EXP_DATA', 'EXP_SETTINGS'])
def test_an_empty_variable_is_as_none(name):
    with environ(**{name: None}): plain = settings()
    with environ(**{name: ''}): assert settings() == plain
