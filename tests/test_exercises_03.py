"Each exercise of lesson 03 takes a right answer and says what is wrong with a wrong one."
import pytest
import torch

from exp.autograd import Variable
from exp.core import check_exercise


def tanh(v):
    out = v.data.tanh()
    return Variable.from_op('tanh', out, (v, lambda g: g*(1 - out**2)))

def gradients(x, w, b, target):
    d = ((x @ w + b).softmax(1) - torch.nn.functional.one_hot(target, w.shape[1]))/len(x)
    return x.T @ d, d.sum(0)

def by_torch(x, w, b, target):
    w, b = w.requires_grad_(), b.requires_grad_()
    return torch.autograd.grad(torch.nn.functional.cross_entropy(x @ w + b, target), (w, b))

def gradient_at(f, x):
    v = Variable(x, requires_grad=True)
    f(v).backward()
    return v.grad

def hessian_vector(f, x, v, h=1e-5): return (gradient_at(f, x + h*v) - gradient_at(f, x - h*v))/(2*h)

def whole_hessian(f, x, v, h=1e-5):
    return torch.stack([hessian_vector(f, x, unit) for unit in torch.eye(len(x), dtype=x.dtype)]) @ v

@pytest.mark.parametrize('name,answer', [('03.1', tanh), ('03.2', gradients), ('03.3', hessian_vector)])
def test_right_answers_are_right(name, answer):
    assert check_exercise(name, None) == f'{name}: not yet'
    assert check_exercise(name, answer) == f'{name}: right'

@pytest.mark.parametrize('name,answer,says', [
    ('03.1', lambda v: (v.exp() - (-v).exp())/(v.exp() + (-v).exp()), 'its value at'),
    ('03.1', lambda v: v.data.tanh(), 'answers a Tensor'),
    ('03.1', lambda v: Variable(v.data.tanh()), 'no edge'),
    ('03.1', lambda v: Variable.from_op('tanh', v.data.tanh(), (v, lambda g: g*(1 - v.data**2))),
     'the gradient at'),
    ('03.1', lambda v: Variable.from_op('tanh', v.data.tanh(), (
        v, lambda g: g*4/(v.data.exp() + (-v.data).exp())**2*v.data.exp()/v.data.exp())), 'NaN'),
    ('03.2', lambda x, w, b, t: tuple(7*g for g in gradients(x, w, b, t)), 'that of the sum'),
    ('03.2', lambda x, w, b, t: gradients(x, w, b, t)[0], 'two gradients'),
    ('03.2', lambda x, w, b, t: (gradients(x, w, b, t)[0].T, gradients(x, w, b, t)[1]),
     'it should be (5, 3)'),
    ('03.2', lambda x, w, b, t: (gradients(x, w, b, t)[0], torch.zeros(3)), 'for b is off'),
    ('03.2', by_torch, 'raised'),
    ('03.3', whole_hessian, 'it calls f 60 times'),
    ('03.3', lambda f, x, v: gradient_at(f, x)*v, 'off by'),
    ('03.3', lambda f, x, v: hessian_vector(f, x, v).sum(), 'the shape is ()')])
def test_wrong_answers_are_told_why(name, answer, says): assert says in check_exercise(name, answer)
