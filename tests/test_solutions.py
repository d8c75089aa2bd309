"""Each exercise has a solution and wrong answers with what the check says; each question has an answer."""
import json, re, subprocess, sys
from pathlib import Path

import pytest

from exp.core import check_exercise

NBS = Path(__file__).resolve().parents[1]/'nbs'

def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])
def solutions_of(path): return NBS/'solutions'/f'{path.stem}_solutions.ipynb'

def code(path): return '\n'.join(source(c) for c in cells(path) if c['cell_type'] == 'code')
def exercises(path): return sorted(set(re.findall(r"check_exercise\('([^']+)'", code(path))) - {'example.1'})

def section(path, title):
    "The markdown between a heading and the next one of its level."
    text = '\n\n'.join(source(c) for c in cells(path) if c['cell_type'] == 'markdown')
    found = re.search(rf'^## {title}\n(.*?)(?=^## |\Z)', text, re.M | re.S)
    return found[1] if found else ''

WITH_EXERCISES = [p for p in sorted(NBS.glob('[0-9]*.ipynb')) if exercises(p)]
WITH_QUESTIONS = [p for p in sorted(NBS.glob('[0-9]*.ipynb')) if section(p, 'Questions')]
def each(paths): return pytest.mark.parametrize('path', paths, ids=lambda p: p.stem)

@each(WITH_EXERCISES)
def test_an_exercise_has_a_solution_two_wrong_answers_and_a_check_that_is_not_in_the_lesson(path):
    outputs = [o.get('data', {}) for c in cells(solutions_of(path)) for o in c.get('outputs', [])]
    verdicts = [''.join(data['text/plain']) for data in outputs if 'text/plain' in data]
    for name in exercises(path):
        assert name.split('.')[0] == path.name.split('_')[0]
        said = [v for v in verdicts if v.startswith(f'{name}: ')]
        wrong = {v for v in said if not v.endswith((': right', ': not yet'))}
        assert f'{name}: right' in said and len(wrong) >= 2, f'{name}: {said}'
        assert f"@exercise('{name}')" not in code(path)
        assert f'## Exercise {name.split(".")[1]}' in '\n'.join(map(source, cells(solutions_of(path))))
        assert check_exercise(name, None) == f'{name}: not yet'

@each(WITH_QUESTIONS)
def test_each_question_has_an_answer(path):
    asked = re.findall(r'^(\d+)\. ', section(path, 'Questions'), re.M)
    answered = re.findall(r'^\*\*(\d+)\.\*\*', section(solutions_of(path), 'Questions'), re.M)
    assert asked == [str(i + 1) for i in range(len(asked))] and answered == asked != []

@each([p for p in WITH_QUESTIONS])
def test_a_lesson_says_where_its_solutions_are(path):
    assert f'(solutions/{solutions_of(path).name})' in '\n'.join(map(source, cells(path)))

@pytest.mark.launch
def test_checks_load_when_they_are_asked_for_and_not_before():
    run = ("import sys; from exp.all import *; before = [m for m in sys.modules if 'exercises' in m]; "
           "print(check_exercise('02.1', None), before, [m for m in sys.modules if 'exercises.lesson' in m])")
    done = subprocess.run([sys.executable, '-c', run], capture_output=True, text=True)
    assert done.stdout.strip() == "02.1: not yet [] ['exp.exercises.lesson_02']", done.stderr

@pytest.mark.parametrize('name', ['02.9', '77.1', 'nonsense', '02'])
def test_an_exercise_that_there_is_not_is_refused(name):
    with pytest.raises(ValueError, match='exercise'): check_exercise(name, None)
