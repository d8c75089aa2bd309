"""What all tests share: the checkout's place, and an environment without the settings of the person who runs
them."""
import os
from pathlib import Path

import matplotlib
import pytest

import exp.all   # noqa: F401 (later modules add methods to earlier classes)

matplotlib.use('Agg')
ROOT = Path(__file__).resolve().parents[1]

@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    "Settings of the surroundings do not reach a test, but for where a mirror and the cache lie."
    for name in list(os.environ):
        if name.startswith('EXP_') and name not in ('EXP_DATA', 'EXP_DATA_MIRROR'): monkeypatch.delenv(name)

@pytest.fixture
def root(): return ROOT
