"The checks of lesson 12's exercises take a right answer and name what is wrong with a wrong one."
import pytest
import torch

from exp.core import check_exercise
from exp.hooks import Hook
from exp.lsuv import lsuv_module


def standardize_channels(conv, x):
    with torch.no_grad():
        out = conv(x)
        mean, std = out.mean((0, 2, 3)), out.std((0, 2, 3))
        conv.weight.div_(std[:, None, None, None])
        conv.bias.sub_(mean).div_(std)

def orthonormal(w):
    with torch.no_grad():
        m = torch.randn(w.shape).flatten(1)
        q = torch.linalg.qr(m if len(m) > m.shape[1] else m.T).Q
        w.copy_((q if len(m) > m.shape[1] else q.T).reshape(w.shape))

class Enough(Exception): pass

def output_of(module, model, xb):
    def stop(hook, m, inp, outp):
        hook.out = outp
        raise Enough
    with Hook(module, stop) as hook:
        try: model(xb)
        except Enough: pass
    return hook.out

RIGHT = {'12.1': standardize_channels, '12.2': orthonormal, '12.3': output_of}

@torch.no_grad()
def only_weights(conv, x): conv.weight.div_(conv(x).std((0, 2, 3))[:, None, None, None])
@torch.no_grad()
def only_scaled(conv, x):
    std = conv(x).std((0, 2, 3))
    conv.weight.div_(std[:, None, None, None])
    conv.bias.div_(std)
@torch.no_grad()
def mixed(conv, x): conv.weight.normal_()
@torch.no_grad()
def negative(conv, x):
    standardize_channels(conv, x)
    conv.weight.neg_()
    conv.bias.neg_()
def replaced(conv, x): conv.weight = torch.nn.Parameter(conv.weight/2)
@torch.no_grad()
def rows_only(w):
    w.copy_(torch.nn.functional.normalize(torch.randn(w.shape).flatten(1), dim=1).reshape(w.shape))
@torch.no_grad()
def fixed(w):
    torch.nn.init.eye_(m := torch.empty(w.shape).flatten(1))
    w.copy_(m.reshape(w.shape))

def whole_pass(module, model, xb):
    with Hook(module, lambda h, m, i, o: setattr(h, 'out', o)) as hook: model(xb)
    return hook.out

def leaves_hook(module, model, xb):
    def stop(hook, m, inp, outp):
        hook.out = outp
        raise Enough
    hook = Hook(module, stop)
    try: model(xb)
    except Enough: pass
    return hook.out

def leaves_hook_on_error(module, model, xb):
    def stop(hook, m, inp, outp):
        hook.out = outp
        raise Enough
    hook = Hook(module, stop)
    try: model(xb)
    except Enough: hook.remove()
    return hook.out

def swallows(module, model, xb):
    try: return output_of(module, model, xb)
    except Exception: return None

WRONG = [
    ('12.1', lambda conv, x: None, 'deviations of the channels'),
    ('12.1', lambda conv, x: lsuv_module(conv, x, conv), 'deviations of the channels'),
    ('12.1', only_weights, 'means of the channels'),
    ('12.1', only_scaled, 'means of the channels'),
    ('12.1', mixed, 'divided by one number'),
    ('12.1', negative, 'sign'),
    ('12.1', replaced, 'stay the parameter'),
    ('12.2', lambda w: torch.nn.init.normal_(w), 'have lengths'),
    ('12.2', lambda w: torch.nn.init.zeros_(w), 'have lengths'),
    ('12.2', rows_only, 'are not orthogonal'),
    ('12.2', fixed, 'the same weights'),
    ('12.3', lambda module, model, xb: model(xb), 'does not answer'),
    ('12.3', lambda module, model, xb: module(xb), 'does not answer'),
    ('12.3', whole_pass, 'layers [1, 2, 3, 4] ran'),
    ('12.3', leaves_hook, 'stays behind'),
    ('12.3', leaves_hook_on_error, 'after an error'),
    ('12.3', swallows, 'seen outside'),
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

@pytest.mark.parametrize('name', RIGHT)
def test_a_check_leaves_the_random_state_to_the_answer(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_exercise(name, lambda *args: None)
    assert torch.equal(before, torch.get_rng_state())
