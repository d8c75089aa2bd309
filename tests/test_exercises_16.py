"""The checks of lesson 16's exercises accept a right answer and name what is wrong with others."""
import pytest

from exp.callbacks import Callback
from exp.core import check_exercise

def split_evenly(n):
    def splitter(model):
        parts = [m for m in model if list(m.parameters())]
        each, more = divmod(len(parts), n)
        ends = [k*each + min(k, more) for k in range(n + 1)]
        return [parts[a:b] for a, b in zip(ends, ends[1:])]
    return splitter

def counts_all_parts(n):
    def splitter(model):
        parts = list(model)
        size = -(-len(parts)//n)
        return [parts[i*size:(i + 1)*size] for i in range(n)]
    return splitter

def larger_last(n):
    return lambda model: [g for g in _cut_from_behind([m for m in model if list(m.parameters())], n)]
def _cut_from_behind(parts, n):
    each, more = divmod(len(parts), n)
    out = []
    for k in range(n):
        size = each + (k >= n - more)
        out.append(parts[:size])
        parts = parts[size:]
    return out
def backwards(n): return lambda model: split_evenly(n)(model)[::-1]
def forgets(n): return lambda model: [g[:1] for g in split_evenly(n)(model)]
def one_group(n): return lambda model: [model]

class Average(Callback):
    def __init__(self): self.averages = {}
    def before_fit(self):
        self.averages = {name: p.detach().clone() for name, p in self.model.named_parameters()}
    def after_step(self):
        for name, p in self.model.named_parameters(): self.averages[name].lerp_(p.detach(), 0.1)
    def state_dict(self): return {'averages': dict(self.averages)}
    def load_state_dict(self, state):
        self.averages = {name: t.clone() for name, t in state['averages'].items()}

class Forgetful(Average):
    def load_state_dict(self, state): pass

class Stateless(Callback):
    __init__, before_fit, after_step = Average.__init__, Average.before_fit, Average.after_step

class Faster(Average):
    def after_step(self):
        for name, p in self.model.named_parameters(): self.averages[name].lerp_(p.detach(), 0.9)

class Late(Average):
    "Begins with the weights after the first step."
    def before_fit(self): self.averages = {}
    def after_step(self):
        for name, p in self.model.named_parameters():
            if name in self.averages: self.averages[name].lerp_(p.detach(), 0.1)
            else: self.averages[name] = p.detach().clone()

class Alias(Average):
    "Its averages are the weights themselves."
    def before_fit(self): self.averages = {name: p.detach() for name, p in self.model.named_parameters()}

class Nothing(Average):
    def before_fit(self): self.averages = {}
    def after_step(self): pass

def most_confused(table, k):
    pairs = [(t, p, int(table.loc[t, p])) for t in table.index
             for p in table.columns if t != p and table.loc[t, p]]
    return sorted(pairs, key=lambda row: -row[2])[:k]

def with_diagonal(table, k):
    return sorted(((t, p, int(table.loc[t, p])) for t in table.index for p in table.columns),
                  key=lambda row: -row[2])[:k]
def columns_first(table, k): return [(p, t, n) for t, p, n in most_confused(table, k)]
def with_zeros(table, k):
    return sorted(((t, p, int(table.loc[t, p])) for t in table.index for p in table.columns if t != p),
                  key=lambda row: -row[2])[:k]
def rising(table, k): return most_confused(table, 99)[::-1][:k]
def no_counts(table, k): return [row[:2] for row in most_confused(table, k)]

@pytest.mark.parametrize('name, answer', [('16.1', split_evenly), ('16.2', Average), ('16.3', most_confused)])
def test_a_right_answer_is_right(name, answer): assert check_exercise(name, answer) == f'{name}: right'

@pytest.mark.parametrize('name, answer, match', [
    ('16.1', counts_all_parts, 'is right'), ('16.1', larger_last, '[3, 2] is right'),
    ('16.1', backwards, 'from the input to the output'),
    ('16.1', forgets, 'each should be in one group'), ('16.1', one_group, 'makes 1 groups'),
    ('16.1', lambda n: [], 'should answer a function'),
    ('16.2', Forgetful, 'after a break'), ('16.2', Stateless, 'define state_dict'),
    ('16.2', Faster, 'is not what lerp_'),
    ('16.2', Late, 'is not what lerp_'), ('16.2', Alias, 'is not what lerp_'),
    ('16.2', Nothing, 'its averages lack'),
    ('16.3', with_diagonal, 'diagonal'), ('16.3', columns_first, 'a row is the truth'),
    ('16.3', with_zeros, 'never happened'),
    ('16.3', rising, 'is right'), ('16.3', no_counts, '(truth, prediction, count)')])
def test_a_wrong_answer_is_told_what_is_wrong(name, answer, match):
    assert match in check_exercise(name, answer)

def test_no_answer_is_not_yet():
    for name in ('16.1', '16.2', '16.3'): assert check_exercise(name, None) == f'{name}: not yet'
