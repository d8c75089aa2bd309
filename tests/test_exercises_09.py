"The checks of lesson 09's exercises take a right answer and name what is wrong with a wrong one."
import pytest

from exp.core import check_exercise
from exp.hooks import Hook, Hooks


def leaves(model): return [m for m in model.modules() if not list(m.children())]

def output_shapes(model, xb):
    shapes = []
    with Hooks(leaves(model), lambda hook, module, inp, outp: shapes.append(outp.shape)): model(xb)
    return shapes

def hold(module, lo, hi): return Hook(module, lambda hook, module, inp, outp: outp.clamp(lo, hi))

def gradient_norms(model, loss_func, xb, yb):
    def keep(hook, module, grad_inp, grad_outp): hook.norm = grad_outp[0].norm()
    with Hooks(model, keep, forward=False) as hooks: loss_func(model(xb), yb).backward()
    return [hook.norm for hook in hooks]

RIGHT = {'09.1': output_shapes, '09.2': hold, '09.3': gradient_norms}

def by_definition(model, xb):
    shapes = {}
    with Hooks(leaves(model), lambda hook, module, inp, outp: shapes.__setitem__(module, outp.shape)):
        model(xb)
    return [shapes[m] for m in leaves(model)]

def all_modules(model, xb):
    shapes = []
    with Hooks(model.modules(), lambda hook, module, inp, outp: shapes.append(outp.shape)): model(xb)
    return shapes

def never_removed(model, xb):
    shapes = []
    Hooks(leaves(model), lambda hook, module, inp, outp: shapes.append(outp.shape))
    model(xb)
    return shapes

def removed_if_all_goes_well(model, xb):
    shapes = []
    hooks = Hooks(leaves(model), lambda hook, module, inp, outp: shapes.append(outp.shape))
    model(xb)
    hooks.remove()
    return shapes

def hold_for_good(module, lo, hi):
    module.register_forward_hook(lambda module, inp, outp: outp.clamp(lo, hi))
    return Hook(module, lambda *args: None)

def gradients_left(model, loss_func, xb, yb):
    def keep(hook, module, grad_inp, grad_outp): hook.norm = grad_outp[0].norm()
    hooks = Hooks(model, keep, forward=False)
    loss_func(model(xb), yb).backward()
    return [hook.norm for hook in hooks]

def input_gradients(model, loss_func, xb, yb):
    def keep(hook, module, grad_inp, grad_outp): hook.norm = grad_inp[0].norm()
    with Hooks(model, keep, forward=False) as hooks:
        loss_func(model(xb.clone().requires_grad_()), yb).backward()
    return [hook.norm for hook in hooks]

WRONG = [
    ('09.1', by_definition, 'is right'),
    ('09.1', all_modules, 'is right'),
    ('09.1', never_removed, 'hooks are left on the model'),
    ('09.1', removed_if_all_goes_well, 'after an error'),
    ('09.2', lambda module, lo, hi: Hook(module, lambda hook, module, inp, outp: None),
     'the outputs lie between'),
    ('09.2', lambda module, lo, hi: Hook(module, lambda hook, module, inp, outp: outp*0),
     'the outputs lie between'),
    ('09.2', hold_for_good, 'still changed'),
    ('09.2', lambda module, lo, hi: Hooks([module], lambda hook, module, inp, outp: outp.clamp(lo, hi)),
     'a Hook is expected'),
    ('09.3', lambda *args: gradient_norms(*args)[::-1], 'from the last part'),
    ('09.3', gradients_left, '3 hooks are left'),
    ('09.3', input_gradients, 'is right'),
    ('09.3', lambda *args: 1/0, 'ZeroDivisionError'),
]

@pytest.mark.parametrize('name', RIGHT)
def test_a_right_answer_is_right(name): assert check_exercise(name, RIGHT[name]) == f'{name}: right'

@pytest.mark.parametrize('name', RIGHT)
def test_none_is_not_yet(name): assert check_exercise(name, None) == f'{name}: not yet'

@pytest.mark.parametrize('name,answer,wrong', WRONG)
def test_a_wrong_answer_is_named(name, answer, wrong):
    verdict = check_exercise(name, answer)
    assert wrong in verdict, verdict
