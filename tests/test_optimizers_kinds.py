"""exp.optimizers in every type and device of step: no NaN from gradients of zero, fused steps that move,
states that load."""
import copy
from functools import partial

import pytest
import torch
from torch import nn

from exp.core import load_state, save_state
from exp.optimizers import (AverageGrad, Optimizer, Stat, adabound_opt, adafactor_opt, adam_opt, lamb_opt,
                            lars_opt, lion_opt, momentum_step, muon_opt, rmsprop_opt, sgd_opt)

T = torch.optim
OURS = dict(plain=sgd_opt, sgd=partial(sgd_opt, mom=0.9), nesterov=partial(sgd_opt, mom=0.9, nesterov=True),
            rmsprop=rmsprop_opt, rmsprop_mom=partial(rmsprop_opt, mom=0.9),
            adamw=adam_opt, adam=partial(adam_opt, decouple_wd=False),
            adam_small_eps=partial(adam_opt, eps=1e-10), lars=lars_opt, lamb=lamb_opt, lion=lion_opt,
            adafactor=adafactor_opt, adafactor_mom=partial(adafactor_opt, mom=0.9), adabound=adabound_opt,
            muon=muon_opt)
FUSABLE = 'plain', 'sgd', 'nesterov', 'adamw', 'adam', 'adam_small_eps', 'lamb'
SAME = dict(betas=(0.9, 0.99), eps=1e-5)
THEIRS = dict(plain=T.SGD, sgd=partial(T.SGD, momentum=0.9),
              nesterov=partial(T.SGD, momentum=0.9, nesterov=True), rmsprop=T.RMSprop,
              rmsprop_mom=partial(T.RMSprop, momentum=0.9),
              adamw=partial(T.AdamW, weight_decay=0., **SAME), adam=partial(T.Adam, **SAME),
              adafactor=partial(T.Adafactor, eps=(1e-15, 1e-3)))
WAYS = [(name, way) for name in OURS for way in ('parts', 'fused') if way == 'parts' or name in FUSABLE]
DTYPES = torch.float64, torch.float32, torch.bfloat16, torch.float16
GRADS = {'zero': lambda p, step: torch.zeros_like(p),
         'tiny': lambda p, step: torch.full_like(p, 6e-8*(-1)**step),
         'zero_now_and_then': lambda p, step: torch.randn_like(p)*(step % 3 > 1),
         'ordinary': lambda p, step: torch.randn_like(p)}

def parameters(dtype, shapes=((3,), (5, 7), (16, 40), (2, 33))):   # with and without the length of a vector
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64).to(dtype)) for s in shapes]

def moved(make, dtype, grads, steps=4):
    "How far each parameter goes."
    torch.manual_seed(0)
    ps = parameters(dtype)
    before, opt = [p.detach().clone() for p in ps], make(ps, lr=0.05)
    for step in range(steps):
        for p in ps: p.grad = grads(p, step)
        opt.step()
    return [(p.detach() - b).double() for p, b in zip(ps, before)]

def way_of(name, way): return OURS[name] if way == 'parts' else lambda ps, lr: OURS[name](ps, lr=lr).fuse()

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name, way', WAYS)
def test_no_gradient_makes_nan_and_none_moves_nothing(name, way, dtype):
    for kind, grads in GRADS.items():
        far = moved(way_of(name, way), dtype, grads)
        assert all(f.isfinite().all() for f in far), kind
        if kind == 'zero': assert not any(f.any() for f in far)

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', FUSABLE)
def test_fused_steps_go_as_far_as_those_by_parts_on_tensors_of_any_length(name, dtype):
    # whose squares float16 holds
    def grads(p, step): return torch.randn_like(p).sign()*(0.5 + torch.rand_like(p))
    for parts, fused in zip(*(moved(way_of(name, way), dtype, grads) for way in ('parts', 'fused'))):
        assert (parts - fused).norm() <= 40*torch.finfo(dtype).eps*parts.norm().clamp(min=1.)
        assert fused.norm() > 0.

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', THEIRS)
def test_where_pytorchs_steps_are_finite_ours_are_as_far(name, dtype):
    for kind, grads in GRADS.items():
        for ours, theirs in zip(moved(OURS[name], dtype, grads),
                                moved(partial(THEIRS[name], foreach=True), dtype, grads)):
            if theirs.isfinite().all():
                assert (ours - theirs).norm() <= 40*torch.finfo(dtype).eps*theirs.norm().clamp(min=1.), kind


# states

class Counter(Stat):
    "How often a parameter was stepped, as a tensor of one whole number."
    key = 'count'
    def init(self, p): return torch.zeros((), dtype=torch.int64)
    def update(self, count): torch._foreach_add_(count, 1)

class Rows(Stat):
    "The mean square of each row, in float32, as Adafactor keeps it."
    key = 'rows'
    def init(self, p): return torch.zeros(p.shape[:1], dtype=torch.float32)
    def update(self, rows, grads): [r.lerp_(g.float().square().mean(1), 0.1) for r, g in zip(rows, grads)]

class Mask(Stat):
    key = 'mask'
    def init(self, p): return torch.zeros_like(p, dtype=torch.bool)
    def update(self, mask, grads): [m.logical_or_(g > 0) for m, g in zip(mask, grads)]

def counted_step(ps, grads, count, lr): [p.sub_(g*(lr/n)) for p, g, n in zip(ps, grads, count)]
def row_step(ps, grads, rows, lr):
    [p.sub_((lr*g.float()/(r.sqrt()[:, None] + 1e-3)).to(p.dtype)) for p, g, r in zip(ps, grads, rows)]
def masked_step(ps, grads, mask, lr): [p.sub_(lr*g*m) for p, g, m in zip(ps, grads, mask)]
KINDS = dict(counter=(counted_step, Counter), rows=(row_step, Rows), mask=(masked_step, Mask))

def train(opt, steps, seed=0):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in opt.param_groups:
            for p in group['params']: p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
        opt.step()

def through_a_file(state, tmp_path):
    save_state(tmp_path/'opt.pth', state)
    return load_state(tmp_path/'opt.pth')

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('kind', KINDS)
def test_a_stat_of_any_shape_and_type_goes_on_bit_for_bit(kind, dtype, tmp_path):
    stepper, stat = KINDS[kind]
    def make(ps): return Optimizer(ps, stepper, stat(), lr=0.1)
    shapes = ((4, 3), (2, 5))
    whole, first = make(parameters(dtype, shapes)), make(parameters(dtype, shapes))
    for opt in (whole, first): train(opt, 300 if kind == 'counter' else 5)   # bfloat16 has no 257
    second = make(first.param_groups[0]['params'])
    second.load_state_dict(through_a_file(first.state_dict(), tmp_path))
    for a, b in zip(first.state.values(), second.state.values()):
        assert a[stat.key].dtype == b[stat.key].dtype
    for opt in (whole, second): train(opt, 3, 1)
    for p, q in zip(whole.param_groups[0]['params'], second.param_groups[0]['params']):
        assert torch.equal(p, q)

class Lookahead(T.Optimizer):
    "As timm's: its slow weights lie in the state of the optimizer that it wraps."
    def __init__(self, opt, early):
        self.opt, self.param_groups, self.state, self.n, self.early = (opt, opt.param_groups, opt.state, 0,
                                                                       early)
    def slow(self, p): return self.opt.state[p].setdefault('slow', p.detach().clone())
    def step(self):
        if self.early: [self.slow(p) for g in self.param_groups for p in g['params']]
        self.opt.step()
        for p in (p for g in self.param_groups for p in g['params']):
            p.data.copy_(self.slow(p).lerp_(p.detach(), 0.5))
    def state_dict(self): return self.opt.state_dict()
    def load_state_dict(self, state):
        self.opt.load_state_dict(state)
        self.state, self.param_groups = self.opt.state, self.opt.param_groups

@pytest.mark.parametrize('early', (False, True))
@pytest.mark.parametrize('steps', (0, 3))
@pytest.mark.parametrize('name', OURS)
def test_what_a_wrapper_keeps_in_the_state_loads(name, steps, early, tmp_path):
    ps, qs = parameters(torch.float32, ((3,), (4, 2))), parameters(torch.float32, ((3,), (4, 2)))
    a, b = Lookahead(OURS[name](ps, lr=0.1), early), Lookahead(OURS[name](qs, lr=0.1), early)
    for opt in (a, b): train(opt, steps)
    if early and not steps: [opt.slow(p) for opt, group in ((a, ps), (b, qs)) for p in group]
    state = through_a_file(b.state_dict(), tmp_path)
    b = Lookahead(OURS[name](qs, lr=0.1), early)
    b.load_state_dict(state)
    for opt in (a, b): train(opt, 3, 1)
    for p, q in zip(ps, qs): assert torch.equal(p, q)

def test_pre_hooks_convert_before_anything_is_checked():
    ps = parameters(torch.float32, ((3,), (4, 2)))
    old, new = adam_opt(ps, 0.1), adam_opt([{'params': ps[:1]}, {'params': ps[1:]}], 0.1)
    train(old, 3)
    state = old.state_dict()
    for kept in state['state'].values(): kept['average'] = kept.pop('grad_avg')
    def convert(opt, state):
        group, = state['param_groups']
        return {'state': {i: {'grad_avg' if k == 'average' else k: v for k, v in kept.items()}
                          for i, kept in state['state'].items()},
                'param_groups': [{**group, 'params': [i]} for i in group['params']]}
    with pytest.raises(ValueError): new.load_state_dict(state)
    new.register_load_state_dict_pre_hook(convert)
    new.load_state_dict(state)
    assert [s['step'] for s in new.state.values()] == [3, 3] and not new._optimizer_load_state_dict_post_hooks

@pytest.mark.parametrize('where', ('stepper', 'stat', 'group'))
def test_a_file_from_before_a_value_with_a_default_loads(where):
    ps = parameters(torch.float32, ((3,),))
    def cautious_step(ps, grad_avg, lr, power=2.):
        torch._foreach_add_(ps, [a.sign()*a.abs()**power for a in grad_avg], alpha=-lr)
    class Slower(AverageGrad):
        def update(self, grad_avg, grads, mom=0.9, delay=0.5):
            super().update(grad_avg, [g*delay for g in grads], mom)
    opt = {'stepper': lambda: Optimizer(ps, cautious_step, AverageGrad(), lr=0.1),
           'stat': lambda: Optimizer(ps, momentum_step, Slower(), lr=0.1),
           'group': lambda: Optimizer([{'params': ps, 'layer': 7}], momentum_step, AverageGrad(),
                                      lr=0.1)}[where]()
    old = Optimizer(ps, momentum_step, AverageGrad(), lr=0.3)
    train(old, 2)
    opt.load_state_dict(old.state_dict())
    group = opt.param_groups[0]
    assert (group['lr'] == 0.3 and group[{'stepper': 'power', 'stat': 'delay', 'group': 'layer'}[where]]
            == {'stepper': 2., 'stat': 0.5, 'group': 7}[where])
    train(opt, 1)

@pytest.mark.parametrize('ours, theirs',
                         ((partial(sgd_opt, mom=0.9), partial(T.SGD, momentum=0.9)), (sgd_opt, T.SGD),
                          (partial(adam_opt, wd=0.1), partial(T.AdamW, weight_decay=0.1, **SAME))))
def test_files_of_pytorchs_sgd_and_adam_go_on(ours, theirs, tmp_path):
    ps, qs = parameters(torch.float64, ((3,), (4, 2))), parameters(torch.float64, ((3,), (4, 2)))
    a, b = theirs(ps, lr=0.1), theirs(qs, lr=0.1)
    for opt in (a, b): train(opt, 4)
    b, state = ours(qs, lr=0.5), through_a_file(b.state_dict(), tmp_path)
    b.load_state_dict(state)
    for opt in (a, b): train(opt, 4, 1)
    for p, q in zip(ps, qs): torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)

@pytest.mark.parametrize('theirs', (partial(T.SGD, momentum=0.9, nesterov=True),
                                    partial(T.SGD, momentum=0.9, dampening=0.5), T.Adagrad, T.RMSprop,
                                    partial(T.Adam, amsgrad=True)))
@pytest.mark.parametrize('ours', (partial(sgd_opt, mom=0.9), adam_opt))
def test_states_of_optimizers_that_do_something_else_are_refused(ours, theirs):
    ps = parameters(torch.float32, ((3,),))
    opt = theirs(ps, lr=0.1)
    train(opt, 1)
    with pytest.raises(ValueError): ours(ps, lr=0.1).load_state_dict(opt.state_dict())

@pytest.mark.parametrize('groups', (1, 3))
def test_a_state_with_other_groups_is_refused_by_pytorch_and_changes_nothing(groups):
    ps = parameters(torch.float32, ((3,), (4,), (5,)))
    opt, other = adam_opt([{'params': ps[:1]}, {'params': ps[1:]}], 0.1), adam_opt(
        [{'params': part} for part in ([ps], [[p] for p in ps])[groups == 3]], 0.1)
    train(other, 1)
    with pytest.raises(ValueError, match='group'): opt.load_state_dict(other.state_dict())
    assert not opt.state and not opt._optimizer_load_state_dict_pre_hooks

def test_the_state_that_was_given_stays_as_it_is():
    ps = parameters(torch.float32, ((3,),))
    opt = T.SGD(ps, lr=0.1, momentum=0.9)
    train(opt, 1)
    state = opt.state_dict()
    before = copy.deepcopy(state)
    sgd_opt(ps, 0.1, mom=0.9).load_state_dict(state)
    assert str(state) == str(before)
