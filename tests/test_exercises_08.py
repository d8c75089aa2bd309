"""The checks of lesson 08's exercises accept a right answer and name what is wrong with others."""
import math

import pytest

from exp.core import check_exercise
from exp.schedules import combine_scheds, sched_cos

def sched_steps(start, factor, at): return lambda pos: start*factor**sum(pos >= p for p in at)

def late_steps(start, factor, at): return lambda pos: start*factor**sum(pos > p for p in at)

def ordered_steps(start, factor, at):
    def sched(pos):
        n = 0
        for p in at:
            if pos < p: break
            n += 1
        return start*factor**n
    return sched

def restarts(high, low, lengths):
    return combine_scheds([l/sum(lengths) for l in lengths], [sched_cos(high, low)]*len(lengths))
def equal_restarts(high, low, lengths):
    return combine_scheds([1/len(lengths)]*len(lengths), [sched_cos(high, low)]*len(lengths))

def smooth(losses, debias=True):
    avg, out = 0., []
    for i, v in enumerate(losses, 1):
        avg = 0.9*avg + 0.1*v
        out.append(avg/(1 - 0.9**i) if debias else avg)
    return out

def tenth(lrs, losses): return min((s, lr) for s, lr in zip(smooth(losses), lrs) if not math.isnan(s))[1]/10
def tenth_of_raw(lrs, losses): return min((s, lr) for s, lr in zip(losses, lrs) if not math.isnan(s))[1]/10
def tenth_biased(lrs, losses):
    return min((s, lr) for s, lr in zip(smooth(losses, False), lrs) if not math.isnan(s))[1]/10
def lowest(lrs, losses): return tenth(lrs, losses)*10

@pytest.mark.parametrize('name, answer', [('08.1', sched_steps), ('08.2', restarts), ('08.3', tenth)])
def test_a_right_answer_is_right(name, answer): assert check_exercise(name, answer) == f'{name}: right'

@pytest.mark.parametrize('name, answer, match', [
    ('08.1', late_steps, '0.1 is right'), ('08.1', ordered_steps, 'any order'),
    ('08.1', lambda s, f, a: lambda pos: s, '0.1 is right'),
    ('08.2', equal_restarts, 'is right'), ('08.2', lambda h, l, n: sched_cos(h, l), 'is right'),
    ('08.2', lambda h, l, n: restarts(l, h, n), 'is right'),
    ('08.3', tenth_of_raw, 'is right'), ('08.3', tenth_biased, 'is right'), ('08.3', lowest, 'is right'),
    ('08.3', lambda lrs, losses: math.nan, 'is right')])
def test_a_wrong_answer_is_told_what_is_wrong(name, answer, match):
    assert match in check_exercise(name, answer)

def test_no_answer_is_not_yet():
    for name in ('08.1', '08.2', '08.3'): assert check_exercise(name, None) == f'{name}: not yet'
