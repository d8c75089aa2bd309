"""The checks of lesson 15's exercises accept a right answer and name what is wrong with others."""
import json, math
from pathlib import Path

import pytest

from exp.callbacks import Callback
from exp.core import check_exercise

BARS = '▁▂▃▄▅▆▇█'

def sparkline(losses, width, cut=round):
    n = min(width, len(losses))
    if n == 0: return ''
    means = []
    for i in range(n):
        part = losses[i*len(losses)//n:(i + 1)*len(losses)//n]
        means.append(sum(part)/len(part))
    low, high = min(means), max(means)
    if low == high: return BARS[0]*n
    return ''.join(BARS[cut((m - low)/(high - low)*7)] for m in means)

def floored(losses, width): return sparkline(losses, width, int)
def first_of_run(losses, width):
    n = min(width, len(losses))
    return sparkline([losses[i*len(losses)//n] for i in range(n)], width)
def no_equal(losses, width):
    if len(set(losses)) == 1: raise ZeroDivisionError('float division by zero')
    return sparkline(losses, width)

def median_left(seconds, total, last=25):
    if not seconds: return None
    recent = sorted(seconds[-last:])
    m = len(recent)
    return (recent[(m - 1)//2] + recent[m//2])/2*(total - len(seconds))
def mean_left(seconds, total, last=25):
    return sum(seconds[-last:])/len(seconds[-last:])*(total - len(seconds)) if seconds else None
def upper_left(seconds, total, last=25):
    return sorted(seconds[-last:])[len(seconds[-last:])//2]*(total - len(seconds)) if seconds else None
def all_left(seconds, total, last=25): return median_left(seconds, total, 10**6)
def zero_left(seconds, total, last=25): return median_left(seconds, total, last) or 0.

class JSONLog(Callback):
    order = 60
    def __init__(self, path): self.path = Path(path)
    def before_fit(self): self.path.write_text('')
    def line(self, row): return json.dumps({k: v if math.isfinite(v) else None for k, v in row.items()})
    def after_epoch(self):
        if self.over != 'epoch': return
        with open(self.path, 'a', encoding='utf-8') as f:
            f.write(self.line(self.avg_stats.history[-1]) + '\n')

class NaNLog(JSONLog):
    def line(self, row): return json.dumps(row)
class Always(JSONLog):
    def after_epoch(self):
        with open(self.path, 'a', encoding='utf-8') as f:
            f.write(self.line(self.avg_stats.history[-1]) + '\n')
class Grows(JSONLog):
    def before_fit(self): pass
class Rounded(JSONLog):
    def line(self, row):
        return json.dumps({k: round(v, 4) if math.isfinite(v) else None for k, v in row.items()})
class AtTheEnd(JSONLog):
    def after_epoch(self): pass
    def after_fit(self): self.path.write_text('\n'.join(map(self.line, self.avg_stats.history)))

@pytest.mark.parametrize('name, answer', [('15.1', sparkline), ('15.2', median_left), ('15.3', JSONLog)])
def test_a_right_answer_is_right(name, answer): assert check_exercise(name, answer) == f'{name}: right'

@pytest.mark.parametrize('name, answer, match', [
    ('15.1', floored, 'is right'), ('15.1', first_of_run, 'is right'),
    ('15.1', no_equal, 'ZeroDivisionError'), ('15.1', lambda losses, width: '▁'*width, 'is right'),
    ('15.2', mean_left, '6 is right'), ('15.2', upper_left, '4 is right'), ('15.2', all_left, '4 is right'),
    ('15.2', zero_left, 'None'),
    ('15.3', NaNLog, 'no JSON'), ('15.3', Always, '[1, 2, 3, 3]'), ('15.3', Grows, '[1, 2, 3, 3]'),
    ('15.3', Rounded, 'it should hold'), ('15.3', AtTheEnd, '[1, 2, 3, 3]')])
def test_a_wrong_answer_is_told_what_is_wrong(name, answer, match):
    assert match in check_exercise(name, answer)

def test_no_answer_is_not_yet():
    for name in ('15.1', '15.2', '15.3'): assert check_exercise(name, None) == f'{name}: not yet'
