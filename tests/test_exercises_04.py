"The checks of lesson 04's exercises take right answers and say what is wrong with wrong ones."
import pytest
import torch

from exp.core import check_exercise
from exp.metrics import Metric

def pinball(pred, yb, q):
    e = yb - pred
    return torch.where(e > 0, q*e, (q - 1)*e).mean()

def bce_gradient(X, w, y): return X.t() @ ((X @ w).sigmoid() - y)/len(y)

class R2(Metric):
    def __init__(self):
        super().__init__()
        self.add_state('pred', torch.empty(0), 'cat')
        self.add_state('yb', torch.empty(0), 'cat')
    def update(self, pred, yb): self.add(pred=pred, yb=yb)
    def compute(self): return 1 - ((self.yb - self.pred)**2).sum()/((self.yb - self.yb.mean())**2).sum()

class ShiftedR2:
    "With running sums around the first target, all that a process need keep."
    def reset(self): self.origin, self.sums = None, torch.zeros(4)
    def update(self, pred, yb):
        if self.origin is None: self.origin = yb[0].clone()
        d = yb - self.origin
        self.sums += torch.stack([((yb - pred)**2).sum(), (d**2).sum(), d.sum(),
                                  torch.tensor(float(len(yb)))])
    def compute(self):
        e, dd, d, n = self.sums
        return 1 - e/(dd - d**2/n)

class OnePassR2(ShiftedR2):
    def update(self, pred, yb):
        self.origin = torch.tensor(0.)
        super().update(pred, yb)

class MeanOfBatches:
    def reset(self): self.values = []
    def update(self, pred, yb): self.values.append(1 - ((yb - pred)**2).sum()/((yb - yb.mean())**2).sum())
    def compute(self): return torch.stack(self.values).mean()

class Forgetless(R2):
    def reset(self): pass

@pytest.mark.parametrize('name, answer',
                         [('04.1', pinball), ('04.2', bce_gradient), ('04.3', R2), ('04.3', ShiftedR2)])
def test_right_answers_are_right(name, answer): assert check_exercise(name, answer) == f'{name}: right'

@pytest.mark.parametrize('name, answer, says', [
    ('04.1', lambda p, y, q: (q*(y - p)).mean(), '04.1'),
    ('04.1', lambda p, y, q: torch.where(y > p, q*(y - p), (1 - q)*(y - p)).mean(), 'lowers the loss'),
    ('04.1', lambda p, y, q: pinball(p, y, 1 - q), 'exchanged'),
    ('04.1', lambda p, y, q: torch.where(y > p, q*(y - p), (1 - q)*(p - y)), 'one number'),
    ('04.1', lambda p, y, q: (p - y).abs().mean(), 'is right'),
    ('04.2', lambda X, w, y: X.t() @ ((X @ w).sigmoid() - y), 'sum over the items'),
    ('04.2', lambda X, w, y: -bce_gradient(X, w, y), 'wrong sign'),
    ('04.2', lambda X, w, y: X.t() @ (X @ w - y)/len(y), 'autograd says'),
    ('04.2', lambda X, w, y: ((X @ w).sigmoid() - y)/len(y), 'shape'),
    ('04.3', MeanOfBatches, 'in batches of 30'),
    ('04.3', OnePassR2, 'around 10000'),
    ('04.3', Forgetless, 'is right'),
])
def test_wrong_answers_are_told_why(name, answer, says):
    verdict = check_exercise(name, answer)
    assert not verdict.endswith(': right') and says in verdict

@pytest.mark.parametrize('name', ['04.1', '04.2', '04.3'])
def test_no_answer_is_not_yet(name): assert check_exercise(name, None) == f'{name}: not yet'
