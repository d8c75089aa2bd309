"The checks of lesson 07's exercises take a right answer and name what is wrong with a wrong one."
import pytest
import torch

from exp.callbacks import Callback, CancelBatchException, CancelStepException
from exp.core import check_exercise


class GradNorms(Callback):
    def before_fit(self): self.norms = []
    def after_backward(self):
        self.norms.append(torch.stack([p.grad.norm()
                                       for p in self.model.parameters() if p.grad is not None]).norm())

class InputNoise(Callback):
    def __init__(self, std): self.std = std
    def before_batch(self):
        if self.in_train: self.run.xb = self.xb + self.std*torch.randn_like(self.xb)

class EveryNth(Callback):
    def __init__(self, n): self.n = n
    def before_step(self):
        if (self.n_iter + 1) % self.n: raise CancelStepException

RIGHT = {'07.1': GradNorms, '07.2': InputNoise, '07.3': EveryNth}

class NeverForgets(GradNorms):
    def before_fit(self): self.norms = getattr(self, 'norms', None) or []

class SumOfNorms(GradNorms):
    def after_backward(self):
        self.norms.append(sum(p.grad.norm() for p in self.model.parameters() if p.grad is not None))

class InPlace(InputNoise):
    def before_batch(self):
        if self.in_train: self.xb.add_(self.std*torch.randn_like(self.xb))

class Always(InputNoise):
    def before_batch(self): self.run.xb = self.xb + self.std*torch.randn_like(self.xb)

class OnlyLocal(InputNoise):
    def before_batch(self): self.xb + self.std

class Uniform(InputNoise):
    def before_batch(self):
        if self.in_train: self.run.xb = self.xb + self.std*torch.rand_like(self.xb)

class NotNormal(InputNoise):   # with the right mean and deviation
    def before_batch(self):
        if self.in_train: self.run.xb = self.xb + self.std*3**0.5*(2*torch.rand_like(self.xb) - 1)

class SameEachEpoch(InputNoise):
    def before_batch(self):
        if self.in_train:
            self.run.xb = (self.xb + self.std*torch.randn(self.xb.shape,
                                                          generator=torch.Generator().manual_seed(self.iter)))

class OffByOne(EveryNth):
    def before_step(self):
        if self.n_iter % self.n: raise CancelStepException

class CountsWithinTheEpoch(EveryNth):
    def before_step(self):
        if (self.iter + 1) % self.n: raise CancelStepException

class Forgets(EveryNth):
    def before_step(self):
        if (self.n_iter + 1) % self.n:
            self.opt.zero_grad()
            raise CancelStepException

class SkipsBatches(EveryNth):
    def before_batch(self):
        if self.in_train and (self.n_iter + 1) % self.n: raise CancelBatchException

WRONG = [
    ('07.1', NeverForgets, 'after a fit of 6 training batches'),
    ('07.1', SumOfNorms, 'root of the sum of the squares'),
    ('07.2', InPlace, 'data set itself has changed'),
    ('07.2', Always, 'validation inputs are noisy'),
    ('07.2', OnlyLocal, 'without noise'),
    ('07.2', Uniform, 'standard deviation'),
    ('07.2', NotNormal, 'should be normal'),
    ('07.2', SameEachEpoch, 'each epoch has the same noise'),
    ('07.3', OffByOne, 'it steps after batches'),
    ('07.3', CountsWithinTheEpoch, 'it steps after batches'),
    ('07.3', Forgets, 'sum of 3 gradients'),
    ('07.3', SkipsBatches, 'sum of 3 gradients'),
]
@pytest.mark.parametrize('name', RIGHT)
def test_a_right_answer_is_right(name):
    torch.manual_seed(0)
    assert check_exercise(name, RIGHT[name]) == f'{name}: right'

@pytest.mark.parametrize('name, answer, says', WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(name, answer, says):
    torch.manual_seed(0)
    verdict = check_exercise(name, answer)
    assert verdict != f'{name}: right' and says in verdict

@pytest.mark.parametrize('name', RIGHT)
def test_no_answer_is_not_yet(name): assert check_exercise(name, None) == f'{name}: not yet'
