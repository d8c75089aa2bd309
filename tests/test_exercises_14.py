"""The checks of lesson 14's exercises accept a right answer and name what is wrong with others."""
import pytest
import torch

from exp.core import check_exercise
from exp.optimizers import (AverageGrad, AverageSqrGrad, Optimizer, Stat, StepCount, adam_opt, adam_step,
                            rms_scale, sgd_step)

class SumSqrGrad(Stat):
    key = 'sqr_avg'
    def update(self, sqr_avg, grads): torch._foreach_addcmul_(sqr_avg, grads, grads)

def adagrad(params, lr): return Optimizer(params, [rms_scale, sgd_step], SumSqrGrad(), lr=lr, eps=1e-10)
def forgetful(params, lr): return Optimizer(params, [rms_scale, sgd_step], AverageSqrGrad(), lr=lr, eps=1e-10)
def pytorchs(params, lr): return torch.optim.Adagrad(params, lr=lr)

class MaxSqrGrad(Stat):
    key = 'max_sqr'
    def update(self, max_sqr, sqr_avg): torch._foreach_maximum_(max_sqr, sqr_avg)

def amsgrad_step(ps, grad_avg, max_sqr, step, lr, mom=0.9, sqr_mom=0.99, eps=1e-5):
    adam_step(ps, grad_avg, max_sqr, step, lr, mom, sqr_mom, eps)
def amsgrad(params, lr):
    return Optimizer(params, amsgrad_step,
                     [AverageGrad(dampening=True), AverageSqrGrad(), MaxSqrGrad(), StepCount()], lr=lr)
def no_maximum(params, lr): return adam_opt(params, lr)

def split(model):
    ps = list(model.parameters())
    return [{'params': [p for p in ps if p.ndim > 1]}, {'params': [p for p in ps if p.ndim <= 1], 'wd': 0.}]
def only_trained(model):
    return [{**g, 'params': [p for p in g['params'] if p.requires_grad]} for g in split(model)]
def decayed(model): return [{'params': g['params']} for g in split(model)]

@pytest.mark.parametrize('name, answer', [('14.1', adagrad), ('14.2', amsgrad), ('14.3', split)])
def test_a_right_answer_is_right(name, answer): assert check_exercise(name, answer) == f'{name}: right'

@pytest.mark.parametrize('name, answer, part', [('14.1', forgetful, 'away from torch.optim.Adagrad'),
                                                ('14.1', pytorchs, 'Optimizer of this lesson'),
                                                ('14.2', no_maximum, 'amsgrad=True'),
                                                ('14.3', only_trained, 'is right'),
                                                ('14.3', decayed, 'should be')])
def test_a_wrong_answer_is_told_what_is_wrong(name, answer, part):
    verdict = check_exercise(name, answer)
    assert part in verdict and verdict != f'{name}: right'

@pytest.mark.parametrize('name', ['14.1', '14.2', '14.3'])
def test_no_answer_is_not_yet(name): assert check_exercise(name, None) == f'{name}: not yet'
