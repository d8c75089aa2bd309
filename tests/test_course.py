"""tools/course.py runs notebooks, names what fails, keeps a learner's work, and writes tables of what was
measured."""
import importlib.util, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow

def tool(root=ROOT):
    "The tool as a module, working on the checkout `root`."
    spec = importlib.util.spec_from_file_location('course', root/'tools'/'course.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def notebook(*cells, opening='# A title\n\n> You can do it.\n\nWhy.\n\nBuilds on: nothing. Runs in 1 second.',
             outputs=()):
    def cell(i, source):
        kind = 'markdown' if source.startswith('## ') else 'code'
        code = dict(outputs=list(outputs), execution_count=None) if kind == 'code' else {}
        return dict(cell_type=kind, id=f'c{i}', metadata={}, source=source, **code)
    kernel = dict(name='python3', display_name='python3', language='python')
    title = dict(cell_type='markdown', id='title', metadata={}, source=opening)
    return json.dumps(dict(cells=[title, *(cell(i, c) for i, c in enumerate(cells))], nbformat=4,
                           nbformat_minor=5,
                           metadata=dict(kernelspec=kernel)))

README = ('before\n<!-- results: written by make results -->\nold\n<!-- end of results -->\n'
          '<!-- map: written by make results -->\n<!-- end of map -->\nafter\n')

def report(**kw):
    fields = dict(lesson='01_second', measure='accuracy', value=97.512, unit='%', source=97.5,
                  source_name='a paper',
                  conditions='5 epochs', data='real', higher_is_better=True)
    return f'import os\nopen(os.environ["EXP_REPORT"], "a").write({json.dumps({**fields, **kw})!r} + "\\n")'

@pytest.fixture
def course(tmp_path):
    "A checkout in small: the tool, two lessons that pass, and a solution."
    for folder in ('tools', 'nbs/solutions', 'exp', 'examples', 'data', 'benchmarks'):
        (tmp_path/folder).mkdir(parents=True)
    shutil.copy(ROOT/'tools'/'course.py', tmp_path/'tools')
    (tmp_path/'nbs'/'00_first.ipynb').write_text(notebook('1 + 1', 'answer = None'))
    (tmp_path/'nbs'/'01_second.ipynb').write_text(notebook(report()))
    (tmp_path/'nbs'/'solutions'/'00_first_solutions.ipynb').write_text(notebook('answer = 2'))
    (tmp_path/'exp'/'core.py').write_text('x = 1\n')
    (tmp_path/'README.md').write_text(README)
    return tmp_path

def call(course, *args):
    return subprocess.run([sys.executable, str(course/'tools'/'course.py'), *args, '--here'],
                          capture_output=True,
                          text=True, encoding='utf-8', env={**os.environ, 'PYTHONUTF8': '1'})

# ---- running

def test_a_run_ends_with_a_table_and_writes_the_executed_notebooks(course):
    done = call(course, 'run')
    assert done.returncode == 0, done.stdout + done.stderr
    assert '97.51 %' in done.stdout and '97.5 % (a paper)' in done.stdout
    assert '2 of 2 notebooks passed' in done.stdout
    output = json.loads((course/'_run'/'00_first.ipynb').read_text())['cells'][1]['outputs'][0]
    assert output['data']['text/plain'] in ('2', ['2'])

def test_a_failing_lesson_is_named_with_its_cell_and_traceback_and_the_others_still_run(course):
    stale = [dict(output_type='stream', name='stdout', text='of an earlier run')]
    failing = notebook('x = 1', 'assert x == 2, "x is not two"', 'x + 1', outputs=stale)
    (course/'nbs'/'00_first.ipynb').write_text(failing)
    done = call(course, 'run')
    assert done.returncode == 1
    for part in ('cell 3 failed: AssertionError: x is not two', 'assert x == 2', 'Traceback', '97.51 %',
                 '1 of 2 notebooks passed, 1 failed (00_first)'):
        assert part in done.stdout
    cells = json.loads((course/'_run'/'00_first.ipynb').read_text())['cells']
    # nothing looks run
    assert cells[2]['outputs'][0]['output_type'] == 'error' and cells[3]['outputs'] == []
    assert call(course, 'results').returncode != 0

def test_a_lesson_whose_kernel_dies_is_a_failure_too(course):
    (course/'nbs'/'00_first.ipynb').write_text(notebook('import os; os._exit(3)'))
    done = call(course, 'run')
    assert done.returncode == 1 and 'FAILED' in done.stdout and '1 of 2 notebooks passed' in done.stdout

@pytest.mark.skipif(os.name == 'nt', reason='no SIGINT to a group of processes')
def test_a_lesson_that_is_interrupted_leaves_no_notebook_that_looks_run(course):
    assert call(course, 'lesson', '0').returncode == 0 and (course/'_run'/'00_first.ipynb').exists()
    (course/'nbs'/'00_first.ipynb').write_text(notebook('## Waiting', 'import time; time.sleep(60)'))
    run = subprocess.Popen([sys.executable, str(course/'tools'/'course.py'), 'lesson', '0', '--here'],
                           text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    while 'Waiting' not in run.stdout.readline(): pass
    time.sleep(1)
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=30)
    assert run.returncode and not list((course/'_run').iterdir())

@pytest.mark.parametrize('name, wanted', [('1', '01_second'), ('01', '01_second'), ('01_second', '01_second'),
                                          ('nbs/01_second.ipynb', '01_second'),
                                          ('00_solutions', '00_first_solutions'),
                                          ('nbs/solutions/00_first_solutions.ipynb', '00_first_solutions')])
def test_a_notebook_is_found_by_number_name_or_path(course, name, wanted):
    assert tool(course).find_notebook(name).stem == wanted

def test_one_lesson_shows_its_sections_as_they_run(course):
    (course/'nbs'/'01_second.ipynb').write_text(notebook('## To begin with', '1', '## In the end', '2'))
    done = call(course, 'lesson', '1')
    assert done.returncode == 0 and '00_first' not in done.stdout
    assert done.stdout.index('To begin with') < done.stdout.index('In the end')
    assert 'there is no notebook 7' in call(course, 'lesson', '7').stderr

def test_a_kernel_waits_without_spinning_and_as_the_caller_says(monkeypatch):
    monkeypatch.delenv('OMP_WAIT_POLICY', raising=False)
    assert (tool().environment(1)['OMP_WAIT_POLICY'] == 'PASSIVE'
            and tool().environment(1)['OMP_NUM_THREADS'] == '1')
    monkeypatch.setenv('OMP_WAIT_POLICY', 'ACTIVE')
    assert tool().environment()['OMP_WAIT_POLICY'] == 'ACTIVE'

def test_what_runs_on_embedded_data_sees_no_mirror_and_the_environment_comes_back(monkeypatch):
    monkeypatch.setenv('EXP_DATA_MIRROR', 'somewhere')
    monkeypatch.delenv('EXP_DATA', raising=False)
    with tool().embedded():
        assert os.environ['EXP_DATA_MIRROR'] == '' and Path(os.environ['EXP_DATA']).is_dir()
    assert os.environ['EXP_DATA_MIRROR'] == 'somewhere' and 'EXP_DATA' not in os.environ

# ---- results

def test_results_come_from_the_last_whole_run_and_figures_on_real_data_stay(course):
    assert 'run `make course` first' in call(course, 'results').stderr
    real = [dict(lesson='01_second', measure='accuracy', value=81.25, unit='%', source=90.,
                 source_name='2019',
                 conditions='', data='mirror', higher_is_better=True)]
    real += [real[0] | dict(measure='of a real set alone', value=4.5, unit='px', source=None, source_name='',
                            conditions='640')]
    (course/'benchmarks'/'real.json').write_text(json.dumps(real))
    call(course, 'run')
    script = course/'tools'/'course.py'
    script.write_text(script.read_text(encoding='utf-8').replace('    picture()\n', ''), encoding='utf-8')
    assert call(course, 'results').returncode == 0
    text, whole = ((course/name).read_text(encoding='utf-8') for name in ('README.md', 'RESULTS.md'))
    assert text.startswith('before\n') and text.endswith('after\n') and 'old' not in text
    assert '| [01_second](nbs/01_second.ipynb) | accuracy | 90 % (2019) | 81.25 % |' in text
    assert '| [00_first](nbs/00_first.ipynb) | You can do it. | nothing |' in text
    assert '| 5 epochs | 97.51 % | real | 81.25 % |' in whole
    assert '| of a real set alone | – | 640 | – | – | 4.5 px |' in whole

@pytest.mark.parametrize('kind', ['mirror', 'real'])
def test_real_keeps_what_downloaded_data_reached_and_nothing_else(course, kind):
    first, kept = course/'nbs'/'00_first.ipynb', course/'benchmarks'/'real.json'
    first.write_text(notebook('# data_kind(path)', report(lesson='00_first', data=kind),
                              report(lesson='00_first', measure='of a stand-in', data='stand-in')))
    assert call(course, 'real').returncode == 0
    (found,) = json.loads(kept.read_text())
    assert found['lesson'] == '00_first' and found['value'] == 97.512
    first.write_text(notebook('# data_kind(path)', report(lesson='00_first', data='stand-in')))
    assert call(course, 'real').returncode != 0 and json.loads(kept.read_text()) == [found]

def test_real_of_one_lesson_keeps_the_others_and_says_with_what_it_was_measured(course):
    kept = course/'benchmarks'/'real.json'
    kept.write_text(json.dumps([dict(lesson='00_first', value=1.), dict(lesson='01_second', value=2.)]))
    assert call(course, 'real', '01').returncode == 0
    first, second = json.loads(kept.read_text())
    assert first == dict(lesson='00_first', value=1.) and second['value'] == 97.512
    assert second['seed'] == 42 and 'cores' in second['machine'] and 'commit' in second

# ---- the lab

def change(path, id, source):
    "Change a cell of a notebook, or add one at the end."
    nb = json.loads(path.read_text())
    found = [c for c in nb['cells'] if c['id'] == id]
    if found: found[0]['source'] = source
    else:
        nb['cells'].append(dict(cell_type='code', id=id, metadata={}, source=source, outputs=[],
                                execution_count=None))
    path.write_text(json.dumps(nb))

def texts(path): return [''.join(c['source']) for c in json.loads(path.read_text())['cells']]

def test_the_lab_has_what_a_learner_needs_and_writes_nowhere_else(course):
    (course/'nbs'/'_02_not_finished.ipynb').write_text(notebook('1'))
    before = {p: p.read_bytes() for p in course.rglob('*') if p.is_file()}
    tool(course).update_lab()
    for name in ('nbs/00_first.ipynb', 'nbs/solutions/00_first_solutions.ipynb', 'README.md'):
        assert (course/'_lab'/name).read_bytes() == (course/name).read_bytes()
    # not as `exp`, which a notebook beside it would import in place of the checkout's
    assert (course/'_lab'/'library'/'core.py').read_bytes() == (course/'exp'/'core.py').read_bytes()
    assert not (course/'_lab'/'exp').exists()
    assert not list((course/'_lab').rglob('_02_*'))
    assert {p: p.read_bytes() for p in before} == before
    assert '/_lab/' in (ROOT/'.gitignore').read_text()

def test_an_answer_outlives_an_update_of_its_lesson(course):
    lab, mine = tool(course), course/'_lab'/'nbs'/'00_first.ipynb'
    lab.update_lab()
    change(mine, 'c1', 'answer = 2')
    change(mine, 'own', 'print("an idea")')
    assert lab.update_lab() == [] and texts(mine)[-2:] == ['answer = 2', 'print("an idea")']
    (course/'nbs'/'00_first.ipynb').write_text(notebook('1 + 2', 'answer = None', 'a new cell'))
    (said,) = lab.update_lab()
    assert '00_first' in said and '2 cells of yours' in said and 'changed' not in said
    assert texts(mine)[1:] == ['1 + 2', 'answer = 2', 'print("an idea")', 'a new cell']
    (kept,) = (course/'_lab'/'before updates').iterdir()
    assert texts(kept)[1:] == ['1 + 1', 'answer = 2', 'print("an idea")']
    assert lab.update_lab() == []

def test_a_cell_that_the_course_changed_too_is_said(course):
    lab, mine = tool(course), course/'_lab'/'nbs'/'00_first.ipynb'
    lab.update_lab()
    change(mine, 'c0', '1 + 5')
    (course/'nbs'/'00_first.ipynb').write_text(notebook('1 + 2', 'answer = None'))
    (said,) = lab.update_lab()
    assert texts(mine)[1] == '1 + 5' and '1 cell of yours, 1 of them changed' in said

def test_a_cell_of_an_earlier_version_is_not_the_learners(course):
    "A tab that was open over an update, and saves the old version over the new one."
    lab, mine = tool(course), course/'_lab'/'nbs'/'00_first.ipynb'
    lab.update_lab()
    old = mine.read_text()
    for code in ('1 + 2', '1 + 3'):
        (course/'nbs'/'00_first.ipynb').write_text(notebook(code, 'answer = None'))
        assert lab.update_lab() == [] and texts(mine)[1] == code
        mine.write_text(old)

def test_a_lab_of_the_layout_before_is_brought_up_to_date_too(course):
    "It has no marks of what was handed out, only the files, and the library in a folder exp."
    lab, mine = tool(course), course/'_lab'/'nbs'/'00_first.ipynb'
    lab.update_lab()
    for marks in (course/'_lab'/'.given').rglob('*.seen'): marks.unlink()
    (course/'_lab'/'exp').mkdir()
    change(mine, 'c1', 'answer = 2')
    (course/'nbs'/'00_first.ipynb').write_text(notebook('1 + 2', 'answer = None'))
    lab.update_lab()
    assert texts(mine)[1:] == ['1 + 2', 'answer = 2'] and not (course/'_lab'/'exp').exists()

def test_a_text_that_the_learner_changed_stays_and_one_of_an_earlier_version_does_not(course):
    lab, mine, handed_out = tool(course), course/'_lab'/'README.md', course/'README.md'
    lab.update_lab()
    old = mine.read_text()
    handed_out.write_text(README + 'more\n')
    lab.update_lab()
    mine.write_text(old)
    handed_out.write_text(README + 'still more\n')
    assert lab.update_lab() == [] and mine.read_text().endswith('still more\n')
    mine.write_text('my own')
    handed_out.write_text(README)
    for _ in range(2):   # said at each start, and kept once
        (said,) = lab.update_lab()
        assert 'README.md' in said and mine.read_text() == 'my own'
    assert list((course/'_lab'/'before updates').iterdir()) == []

def test_a_new_lesson_is_announced(course):
    lab = tool(course)
    assert lab.update_lab() == []
    (course/'nbs'/'02_third.ipynb').write_text(notebook('3'))
    assert lab.update_lab() == ['nbs/02_third.ipynb is new']

def test_what_a_learner_did_not_touch_is_replaced_and_what_is_gone_is_given_again(course):
    lab = tool(course)
    lab.update_lab()
    (course/'exp'/'core.py').write_text('x = 2\n')
    (course/'nbs'/'01_second.ipynb').write_text(notebook('2'))
    (course/'_lab'/'nbs'/'00_first.ipynb').unlink()
    assert lab.update_lab() == []
    assert ((course/'_lab'/'library'/'core.py').read_text() == 'x = 2\n'
            and (course/'_lab'/'nbs'/'00_first.ipynb').exists())
    assert texts(course/'_lab'/'nbs'/'01_second.ipynb')[1:] == ['2']

@pytest.mark.parametrize('damage', [lambda text: text[:100], lambda text: text.replace('"id": "c1", ', '')])
def test_a_notebook_that_cannot_be_merged_stays_as_it_is(course, damage):
    lab, mine = tool(course), course/'_lab'/'nbs'/'00_first.ipynb'
    lab.update_lab()
    mine.write_text(damage(mine.read_text()))
    before = mine.read_text()
    (course/'nbs'/'00_first.ipynb').write_text(notebook('1 + 2'))
    (said,) = lab.update_lab()
    assert 'cannot be read' in said and mine.read_text() == before

def test_answers_in_cells_that_an_update_took_away_stay_at_the_end(course):
    lab, mine = tool(course), course/'_lab'/'nbs'/'00_first.ipynb'
    lab.update_lab()
    change(mine, 'c1', 'answer = 2')
    (course/'nbs'/'00_first.ipynb').write_text(notebook('1 + 1'))
    lab.update_lab()
    assert texts(mine)[1:] == ['1 + 1', 'answer = 2']

def test_the_start_page_links_every_lesson(course):
    page = json.loads(tool(course).start_page())
    assert all(f'(nbs/{name}.ipynb)' in page['cells'][0]['source'] for name in ('00_first', '01_second'))

# ---- names

def test_a_names_lesson_module_and_tests_are_found(course):
    cells = '## One', 'x = 1', '## Two', 'def thing(): pass'
    (course/'nbs'/'00_first.ipynb').write_text(notebook(*cells))
    exported = [f'# %% ../nbs/00_first.ipynb #c{i}\n{cells[i]}\n' for i in (1, 3)]
    (course/'exp'/'core.py').write_text('\n'.join(exported))
    (course/'tests').mkdir()
    for file, text in (('test_core.py', 'thing()'), ('test_a.py', 'a.thing'), ('test_b.py', 'things')):
        (course/'tests'/file).write_text(text)
    assert (call(course, 'where', 'thing').stdout.splitlines()
            == ['lesson  nbs/00_first.ipynb, Two', 'module  exp/core.py',
                'tests   tests/test_core.py, tests/test_a.py'])
    assert 'nothing' in call(course, 'where', 'nothing').stderr

# ---- commands

def test_an_unknown_command_is_met_with_the_known_ones(course):
    done = call(course, 'rnu')
    assert done.returncode != 0 and 'unknown: rnu' in done.stderr and 'make course' in done.stderr

@pytest.mark.parametrize('args', [(), ('help',), ('--help',), ('-h',), ('lesson', '--help')])
def test_help_is_given_however_it_is_asked_for(course, args):
    done = call(course, *args)
    assert done.returncode == 0 and 'make course' in done.stdout

def test_the_makefile_offers_every_command():
    targets = (ROOT/'Makefile').read_text()
    for command in (*tool().PLAIN, 'lesson', 'lab', 'store', 'where', 'help'):
        assert f'\n{"course" if command == "run" else command}:' in targets
