"""tools/course.py runs lessons, names what fails, and writes the README's tables from what was measured."""
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

def notebook(*cells,
             opening='# A title\n\n> You can do it.\n\nWhy.\n\nBuilds on: nothing. Runs in 1 second.'):
    code = [dict(cell_type='code', id=f'c{i}', metadata={}, source=c, outputs=[], execution_count=None)
            for i, c in enumerate(cells)]
    return json.dumps(dict(cells=[dict(cell_type='markdown', id='title', metadata={}, source=opening), *code],
                           nbformat=4, nbformat_minor=5,
                           metadata=dict(kernelspec=dict(name='python3', display_name='python3',
                                                         language='python'))))

README = ('before\n<!-- results: written by make results -->\nold\n<!-- end of results -->\n<!-- map: '
          'written by make results -->\n<!-- end of map -->\nafter\n')
REPORT = ('import json, os\nopen(os.environ["EXP_REPORT"], "a").write(json.dumps(dict(lesson="01", '
          'measure="accuracy", value=97.512, unit="%", source=97.5,'
          ' source_name="a paper", conditions="5 epochs", data="real", higher_is_better=True)) + "\\n")')

@pytest.fixture
def course(tmp_path):
    "A checkout in small: the tool, and two lessons that pass."
    for folder in ('tools', 'nbs'): (tmp_path/folder).mkdir()
    shutil.copy(ROOT/'tools'/'course.py', tmp_path/'tools')
    (tmp_path/'nbs'/'00_first.ipynb').write_text(notebook('1 + 1'))
    (tmp_path/'nbs'/'01_second.ipynb').write_text(notebook(REPORT))
    (tmp_path/'README.md').write_text(README)
    return tmp_path

def call(course, *args):
    return subprocess.run([sys.executable, str(course/'tools'/'course.py'), *args, '--here'],
                          capture_output=True, text=True, encoding='utf-8',
                          env={**os.environ, 'PYTHONUTF8': '1'})

def test_a_run_ends_with_a_table_and_writes_the_executed_notebooks(course):
    done = call(course, 'run')
    assert done.returncode == 0, done.stdout + done.stderr
    assert ('97.51 %' in done.stdout and '97.5 % (a paper)' in done.stdout
            and '2 of 2 lessons passed' in done.stdout)
    assert json.loads((course/'_run'/'00_first.ipynb')
                      .read_text())['cells'][1]['outputs'][0]['data']['text/plain'] in ('2', ['2'])

def test_a_failing_lesson_is_named_with_its_cell_and_traceback_and_the_others_still_run(course):
    (course/'nbs'/'00_first.ipynb').write_text(notebook('x = 1', 'assert x == 2, "x is not two"'))
    done = call(course, 'run')
    assert done.returncode == 1
    assert ('00_first' in done.stdout and 'cell 3 failed: AssertionError: x is not two' in done.stdout
            and 'assert x == 2' in done.stdout)
    assert ('Traceback' in done.stdout and '1 of 2 lessons passed, 1 failed (00_first)' in done.stdout
            and '97.51 %' in done.stdout)
    assert (course/'_run'/'00_first.ipynb').exists()
    assert call(course, 'results').returncode != 0

def test_a_lesson_whose_kernel_dies_is_a_failure_too(course):
    (course/'nbs'/'00_first.ipynb').write_text(notebook('import os; os._exit(3)'))
    done = call(course, 'run')
    assert (done.returncode == 1 and '00_first' in done.stdout and 'FAILED' in done.stdout
            and '1 of 2 lessons passed' in done.stdout)

def test_one_lesson_by_its_number(course):
    done = call(course, 'lesson', '1')
    assert done.returncode == 0 and '01_second' in done.stdout and '00_first' not in done.stdout
    assert 'there is no lesson 7' in call(course, 'lesson', '7').stderr

def test_results_come_from_the_last_whole_run(course):
    assert 'run `make course` first' in call(course, 'results').stderr
    call(course, 'run')
    tool = (course/'tools'/'course.py')
    # no lesson here has it
    tool.write_text(tool.read_text(encoding='utf-8').replace('    picture()\n', ''), encoding='utf-8')
    assert call(course, 'results').returncode == 0
    text = (course/'README.md').read_text(encoding='utf-8')
    assert text.startswith('before\n') and text.endswith('after\n') and 'old' not in text
    assert ('| [01_second](nbs/01_second.ipynb) | accuracy | 97.5 % (a paper) | 5 epochs | 97.51 % | real '
            '|' in text)
    assert '| [00_first](nbs/00_first.ipynb) | You can do it. | nothing |' in text

def test_an_unknown_command_is_met_with_the_known_ones(course):
    done = call(course, 'rnu')
    assert done.returncode != 0 and 'unknown: rnu' in done.stderr and 'make course' in done.stderr

def test_the_makefile_offers_every_command(root=ROOT):
    make = (root/'Makefile').read_text()
    for target in ('course', 'test', 'setup', 'lab', 'lesson', 'export', 'bench', 'results', 'clean', 'help'):
        assert f'\n{target}:' in make
