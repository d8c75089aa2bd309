"""A user's script, on images that no lesson uses: from a folder to answers in ten lines."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from exp.datasets import mnist

pytestmark = pytest.mark.launch

SCRIPT = Path(__file__).parent/'scripts'/'folder_to_predict.py'
KINDS = {'straight': (1, 4, 7), 'curved': (0, 3, 6, 8)}

@pytest.fixture(scope='module')
def strokes(tmp_path_factory):
    "Digits in two folders, and others of each kind that lie elsewhere."
    root = tmp_path_factory.mktemp('strokes')
    x, y = mnist('train')
    for kind, digits in KINDS.items():
        for part, start in (('digits', 0), ('new', 5000)):
            (root/part/kind).mkdir(parents=True)
            found = [i for i in range(start, start + 3000)
                     if int(y[i]) in digits][:600 if part == 'digits' else 20]
            for i in found: Image.fromarray(x[i].numpy()).save(root/part/kind/f'{i}.png')
    return root

def run(*args, **env):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True,
                          encoding='utf-8', timeout=300, cwd=SCRIPT.parent,
                          env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(SCRIPT.parents[2]),
                               'PYTHONIOENCODING': 'utf-8', 'MPLBACKEND': 'Agg', **env})

def test_it_takes_at_most_ten_lines_from_the_folder_to_the_answer():
    lines = SCRIPT.read_text(encoding='utf-8').split('\n')
    first = next(i for i, line in enumerate(lines) if line.startswith('folder'))
    assert sum(bool(line.strip()) for line in lines[first:]) <= 10

def test_a_folder_of_images_becomes_answers(strokes):
    images = sorted((strokes/'new').rglob('*.png'))
    done = run(strokes/'digits', *images)
    assert done.returncode == 0, done.stderr
    answers = dict(re.findall(r'^(.*\.png): (\w+) \(\d+ %\)$', done.stdout, re.M))
    assert len(answers) == len(images) == 40, done.stdout
    right = sum(Path(name).parent.name == label for name, label in answers.items())
    assert right >= 34, f'{right} of 40 right\n{done.stdout}'
    assert 'accuracy' in done.stdout + done.stderr      # the table of the training

def test_the_same_script_says_what_is_wrong_with_a_folder(tmp_path):
    (tmp_path/'photos').mkdir()
    done = run(tmp_path/'photos', 'a.png')
    assert done.returncode == 1 and 'has no files for ImageList' in done.stderr.splitlines()[-1]

def test_the_same_script_names_a_broken_file(strokes, tmp_path):
    import shutil
    shutil.copytree(strokes/'digits', tmp_path/'digits')
    bad = next((tmp_path/'digits'/'curved').glob('*.png'))
    bad.write_bytes(bad.read_bytes()[:80])
    done = run(tmp_path/'digits')
    assert (done.returncode == 1 and f'{bad} cannot be decoded' in done.stderr
            and 'verify_images' in done.stderr)
