"""exp.optimizers: the steps of PyTorch's optimizers and of the papers, and everything that PyTorch's tools
expect of an optimizer."""
import copy, math, pickle, warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from exp.core import load_state, save_state
from exp.optimizers import (AverageGrad, AverageSqrGrad, ColSqrGrad, LateAverage, Optimizer, RowSqrGrad, Stat,
                            StepCount, VectorSqrGrad, adabound_opt, adabound_step, adafactor_opt,
                            adafactor_scale, adam_opt, adam_step, descend, l2_reg, lamb_opt, lamb_step,
                            lars_opt, lars_scale, lion_opt, momentum_step, muon_opt, muon_step, nesterov_step,
                            orthogonalize, rmsprop_opt, sgd_opt, sgd_step, trust_ratio, weight_decay)
from exp.schedules import get_hyper, set_hyper

SHAPES = ((), (1,), (5,), (3, 4), (2, 3, 4), (2, 3, 2, 2), (2, 1, 3, 2, 2), (0,))
READY = dict(sgd=partial(sgd_opt, mom=0.9), plain=sgd_opt, nesterov=partial(sgd_opt, mom=0.9, nesterov=True),
             rmsprop=rmsprop_opt, rmsprop_mom=partial(rmsprop_opt, mom=0.9),
             adamw=adam_opt, adam=partial(adam_opt, decouple_wd=False), lars=lars_opt, lamb=lamb_opt,
             lion=lion_opt, adafactor=adafactor_opt, adabound=adabound_opt,
             muon=muon_opt)
FUSABLE = ('sgd', 'plain', 'nesterov', 'adamw', 'adam', 'lamb')

def params(shapes=SHAPES, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=g, dtype=dtype)) for s in shapes]

def give_grads(step, *lists, missing=True):
    "The same gradients for the parameters of all lists; now and then none."
    for i, ps in enumerate(zip(*lists)):
        g = torch.Generator().manual_seed(1000*step + i)
        grad = torch.randn(ps[0].shape, generator=g, dtype=ps[0].dtype)*(1 + i)
        for p in ps: p.grad = None if missing and (step + i) % 5 == 3 else grad.clone()

def groups(ps, wd=False):
    return [{'params': ps[:3]}, {'params': ps[3:6], 'lr': 0.003, 'layer': 1},
            {'params': ps[6:], **({'weight_decay': 0.} if wd else {})}]

def apart(ours, theirs, wd=0., steps=50, dtype=torch.float64):
    ps, qs = params(dtype=dtype), params(dtype=dtype)
    a, b = ours(groups(ps, wd), lr=0.01), theirs(groups(qs, wd), lr=0.01)
    for step in range(steps):
        give_grads(step, ps, qs)
        a.step()
        b.step()
    return max((p - q).abs().max().item() for p, q in zip(ps, qs) if p.numel())

T, SAME = torch.optim, dict(betas=(0.9, 0.99), eps=1e-5)
THEIRS = dict(sgd=partial(T.SGD, momentum=0.9), plain=T.SGD,
              nesterov=partial(T.SGD, momentum=0.9, nesterov=True), rmsprop=T.RMSprop,
              rmsprop_mom=partial(T.RMSprop, momentum=0.9),
              adamw=partial(T.AdamW, weight_decay=0., **SAME), adam=partial(T.Adam, **SAME))

class Paper:
    def __init__(self, groups, lr, wd=0.):
        self.work = [(p, g.get('lr', lr), g.get('weight_decay', wd), {}) for g in groups for p in g['params']]
    @torch.no_grad()
    def step(self):
        for p, lr, wd, memory in self.work:
            if p.grad is not None: self.update(p, p.grad, lr, wd, memory)

def over(a, b): return a/b if a > 0 and b > 0 else 1.

class PaperLARS(Paper):     # 1708.03888, algorithm 1
    def update(self, w, g, lr, wd, memory):
        memory['v'] = 0.9*memory.get('v', 0.) + lr*over(0.001*w.norm(), g.norm() + wd*w.norm())*(g + wd*w)
        w -= memory['v']

class PaperLAMB(Paper):     # 1904.00962, algorithm 2
    def update(self, x, g, lr, wd, memory):
        t = memory['t'] = memory.get('t', 0) + 1
        m = memory['m'] = 0.9*memory.get('m', 0.) + 0.1*g
        v = memory['v'] = 0.99*memory.get('v', 0.) + 0.01*g**2
        r = (m/(1 - 0.9**t))/((v/(1 - 0.99**t)).sqrt() + 1e-5) + wd*x
        x -= lr*over(x.norm(), r.norm())*r

class PaperLion(Paper):     # 2302.06675, algorithm 2
    def update(self, x, g, lr, wd, memory):
        m = memory.get('m', torch.zeros_like(x))
        x -= lr*((0.9*m + 0.1*g).sign() + wd*x)
        memory['m'] = 0.99*m + 0.01*g

class PaperAdaBound(Paper):     # 1902.09843, algorithm 2, debiased as Adam, with decoupled decay
    final, gamma = 100., 1e-3
    def update(self, x, g, lr, wd, memory):
        t = memory['t'] = memory.get('t', 0) + 1
        m = memory['m'] = 0.9*memory.get('m', 0.) + 0.1*g
        v = memory['v'] = 0.99*memory.get('v', 0.) + 0.01*g**2
        rate = lr/(1 - 0.9**t)/((v/(1 - 0.99**t)).sqrt() + 1e-5)
        lower = lr*self.final*(1 - 1/(self.gamma*t + 1))
        upper = lr*self.final*(1 + 1/(self.gamma*t))
        x *= 1 - lr*wd
        x -= rate.clamp(lower, upper)*m

class PaperAdafactor(Paper):     # 1804.04235, algorithms 4 and 5, with an average of the steps
    mom = 0.9
    def update(self, x, g, lr, wd, memory):
        t = memory['t'] = memory.get('t', 0) + 1
        kept, sqr = 1 - t**-0.8, g**2 + 1e-30
        if x.ndim > 1:
            r = memory['r'] = kept*memory.get('r', 0.) + (1 - kept)*sqr.sum(-1, keepdim=True)
            c = memory['c'] = kept*memory.get('c', 0.) + (1 - kept)*sqr.sum(-2, keepdim=True)
            v = r*c/r.sum(-2, keepdim=True)
        else: v = memory['v'] = kept*memory.get('v', 0.) + (1 - kept)*sqr
        u, size = g/v.sqrt(), max(1e-3, x.square().mean().sqrt())
        step = min(lr, t**-0.5)*size*u/max(1., u.square().mean().sqrt())
        a = memory['a'] = self.mom*memory.get('a', 0.) + (1 - self.mom)*step
        x *= 1 - lr*wd
        x -= a

class TheirMuon:
    "PyTorch's Muon for what has two dimensions or more, flattened, and its AdamW for the rest."
    def __init__(self, groups, lr, wd=0.):
        self.pairs, opts = [], []
        for g in groups:
            mine = [(p, nn.Parameter(p.detach().flatten(1) if p.ndim > 1 else p.detach()))
                    for p in g['params'] if p.numel()]
            how = dict(lr=g.get('lr', lr), weight_decay=g.get('weight_decay', wd))
            matrices, vectors = ([q for _, q in mine if (q.ndim > 1) == two] for two in (True, False))
            if matrices: opts.append(T.Muon(matrices, adjust_lr_fn='match_rms_adamw', **how))
            if vectors: opts.append(T.AdamW(vectors, betas=(0.95, 0.99), eps=1e-5, **how))
            self.pairs += mine
        self.opts = opts
    def step(self):
        for p, q in self.pairs: q.grad = None if p.grad is None else p.grad.reshape(q.shape)
        for opt in self.opts: opt.step()

PAPERS = dict(lars=PaperLARS, lamb=PaperLAMB, lion=PaperLion, adabound=PaperAdaBound, muon=TheirMuon)

@pytest.mark.slow
@pytest.mark.parametrize('wd', (0., 0.1))
@pytest.mark.parametrize('name', THEIRS)
def test_fifty_steps_are_pytorchs(name, wd):
    assert apart(partial(READY[name], wd=wd), partial(THEIRS[name], weight_decay=wd), wd) < 1e-10

@pytest.mark.slow
@pytest.mark.parametrize('wd', (0., 0.1))
@pytest.mark.parametrize('name', PAPERS)
def test_fifty_steps_are_the_papers(name, wd):
    assert apart(partial(READY[name], wd=wd), partial(PAPERS[name], wd=wd), wd) < 1e-10

def test_the_steppers_do_what_their_formulas_say():
    p, g, a, s = (torch.tensor(v, dtype=torch.float64) for v in ([3., -4.], [0.6, 0.8], [1., 2.], [4., 9.]))
    def after(stepper, *lists, **kw):
        q = [p.clone()]
        stepper(q, *([v] for v in lists), **kw)
        return q[0]
    close = torch.testing.assert_close
    close(after(nesterov_step, g, a, lr=0.1, mom=0.9), p - 0.1*(g + 0.9*a))
    close(after(descend, a), p - a)
    assert trust_ratio(torch.tensor([2., 0., 3.]), torch.tensor([4., 5., 0.])).tolist() == [0.5, 1., 1.]
    # of length 5, and its gradient of length 1
    close(lars_scale([p], [g], lr=0.5, wd=0.1)[0], 0.5*0.001*5/(1 + 0.1*5)*(g + 0.1*p))
    u = (a/(1 - 0.9**2))/((s/(1 - 0.99**2)).sqrt() + 1e-5) + 0.1*p
    close(after(lamb_step, a, s, step=2, lr=0.1, wd=0.1), p - 0.1*5/u.norm()*u)

def test_a_reference_of_another_hyper_parameter_is_noticed():
    assert apart(partial(sgd_opt, mom=0.9), partial(T.SGD, momentum=0.91)) > 1e-4
    assert apart(partial(lamb_opt, wd=0.1), partial(PaperLAMB, wd=0.11)) > 1e-6

@settings(max_examples=30, deadline=None)
@given(lr=st.floats(1e-4, 0.1), mom=st.sampled_from((0., 0.5, 0.99)), sqr_mom=st.floats(0.5, 0.999),
       eps=st.floats(1e-8, 1.), wd=st.floats(0., 1.), decouple=st.booleans(), fused=st.booleans())
def test_adam_equals_pytorchs_for_any_hyper_parameters(lr, mom, sqr_mom, eps, wd, decouple, fused):
    ps, qs = params(), params()
    ours = adam_opt(ps, lr, mom, sqr_mom, eps, wd, decouple)
    if fused: ours.fuse()
    theirs = (T.AdamW if decouple else T.Adam)(qs, lr=lr, betas=(mom, sqr_mom), eps=eps, weight_decay=wd)
    for step in range(8):
        give_grads(step, ps, qs)
        ours.step()
        theirs.step()
    for p, q in zip(ps, qs): torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)

# Adafactor, AdaBound

def both(ours, theirs, shapes=SHAPES[:-1], size=lambda step: 1., steps=12):
    "The parameters of two optimizers after the same gradients."
    ps, qs = params(shapes), params(shapes)
    a, b = ours([{'params': ps}], lr=0.02), theirs([{'params': qs}], lr=0.02)
    for step in range(steps):
        give_grads(step, ps, qs)
        for p in (*ps, *qs):
            if p.grad is not None: p.grad *= size(step)
        a.step()
        b.step()
    return ps, qs

@settings(max_examples=40, deadline=None)
@given(shapes=st.lists(st.lists(st.integers(1, 5), max_size=5), min_size=1, max_size=5),
       wd=st.sampled_from((0., 0.1)), sqr_power=st.floats(0.1, 1.), eps=st.floats(1e-15, 1e-2),
       eps2=st.floats(1e-6, 2.), clip=st.floats(1., 3.), size=st.sampled_from((1e-9, 1e-4, 1., 1e3)))
def test_adafactor_equals_pytorchs_for_any_shapes_and_hyper_parameters(shapes, wd, sqr_power, eps, eps2, clip,
                                                                       size):
    ours = partial(adafactor_opt, wd=wd, sqr_power=sqr_power, eps=eps, eps2=eps2, clip=clip)
    theirs = partial(T.Adafactor, weight_decay=wd, beta2_decay=-sqr_power, eps=(eps, eps2), d=clip)
    for p, q in zip(*both(ours, theirs, shapes, lambda step: size*(step % 4 > 0))):     # now and then zeros
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)

@pytest.mark.parametrize('foreach', (False, True))
def test_adafactors_relative_rate_ends_as_pytorchs(foreach):
    theirs = partial(T.Adafactor, eps=(1e-15, 1e-3), foreach=foreach)
    def at_half(ps, lr): return adafactor_opt(ps, 0.5)     # more than 1/sqrt(t) from the fifth step on
    for p, q in zip(*both(at_half, lambda qs, lr: theirs(qs, lr=0.5))):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)

def test_adafactor_with_momentum_takes_the_papers_steps():
    for p, q in zip(*both(partial(adafactor_opt, mom=0.9, wd=0.1), partial(PaperAdafactor, wd=0.1))):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)

def test_adafactor_keeps_rows_and_columns_only():
    for shape, kept in (((40, 30), 70), ((5, 4, 3, 3), 120), ((7,), 8), ((), 2)):
        p = nn.Parameter(torch.ones(shape))
        p.grad, opt = torch.ones(shape), adafactor_opt([p], 0.01)
        opt.step()
        assert sum(t.numel() for t in opt.state[p].values() if isinstance(t, torch.Tensor)) == kept

@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16))
def test_adafactors_averages_of_halves_hold_what_halves_do_not(dtype):
    p = nn.Parameter(torch.ones(4, 4, dtype=dtype))
    opt = adafactor_opt([p], 0.01)
    p.grad = torch.full_like(p, 3e-5)     # its square is zero in float16
    opt.step()
    assert opt.state[p]['row_avg'].dtype == torch.float32
    torch.testing.assert_close(p.detach().float(), torch.full((4, 4), 0.99), rtol=4e-3, atol=0.)

def test_adafactor_refuses_complex_parameters_before_anything_moves():
    p, q = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3, dtype=torch.complex64))
    opt = adafactor_opt([p, q], 0.01)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    with pytest.raises(ValueError, match='complex'): opt.step()
    assert (p == 1).all()

@pytest.mark.parametrize('hypers', (dict(gamma=0.1), dict(gamma=1., final=0.5), dict(final=1e-3)))
def test_adabounds_bounds_are_the_papers(hypers):
    paper = type('Narrow', (PaperAdaBound,), hypers)
    sizes = 1e-6, 1e-3, 1., 100.     # below, between and above the bounds
    for p, q in zip(*both(partial(adabound_opt, **hypers), paper, size=lambda step: sizes[step % 4])):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)

@settings(max_examples=40, deadline=None)
@given(shapes=st.lists(st.lists(st.integers(1, 6), max_size=5), min_size=1, max_size=5),
       wd=st.sampled_from((0., 0.1)), size=st.sampled_from((1e-9, 1e-4, 1., 1e3)))
def test_muon_equals_pytorchs_for_any_shapes(shapes, wd, size):
    ours, theirs = partial(muon_opt, wd=wd), partial(TheirMuon, wd=wd)
    for p, q in zip(*both(ours, theirs, shapes, lambda step: size)):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from((1e-6, 1., 1e6)))
def test_orthogonalized_a_matrix_keeps_its_directions(n, m, size):
    g = torch.Generator().manual_seed(n*41 + m)
    x = torch.randn(n, m, generator=g)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    got = (u.T @ orthogonalize(size*x).float() @ v.T).diagonal()
    large = s > 0.03*s.max()
    assert (got[large] > 0.5).all() and (got < 1.35).all()

def test_muon_moves_matrices_by_its_own_step_and_vectors_by_adams():
    ps, gs = params(((3, 5), (4,))), params(((3, 5), (4,)), seed=1)
    ps, gs = ([p.detach() for p in ts] for ts in (ps, gs))
    before, avgs, sqrs = [p.clone() for p in ps], [g/2 for g in gs], [gs[0].new_zeros(0), gs[1]**2]
    muon_step(ps, gs, avgs, sqrs, 3, lr=0.1, mom=0.9)
    adam_step(after := [before[1].clone()], avgs[1:], sqrs[1:], 3, 0.1, 0.9)
    torch.testing.assert_close(ps[1], after[0])
    step = orthogonalize(0.1*gs[0] + 0.9*avgs[0]).double()*0.1*0.2*5**0.5
    torch.testing.assert_close(ps[0], before[0] - step, rtol=1e-6, atol=1e-6)

def test_muon_keeps_squares_of_vectors_only_and_refuses_complex_parameters():
    stat = VectorSqrGrad()
    assert stat.init(torch.ones(3, 4)).numel() == 0 and stat.init(torch.ones(3)).numel() == 3
    p, q = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3, dtype=torch.complex64))
    opt = muon_opt([p, q], 0.01)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    with pytest.raises(ValueError, match='complex'): opt.step()
    assert (p == 1).all()

def test_adabound_ends_as_momentum_at_one_rate_for_all():
    ps, qs = params(((3, 4),)), params(((3, 4),))
    ours = adabound_opt(ps, 0.001, final=50., gamma=1e6)
    theirs = Optimizer(qs, momentum_step, AverageGrad(True), lr=0.05)
    for step in range(20):
        give_grads(step, ps, qs)
        ours.step()
        theirs.step()
    torch.testing.assert_close(ps[0], qs[0], rtol=1e-5, atol=1e-6)

# L2 and decoupled decay

def decayed_opt(params, lr, mom=0., wd=0.):
    return Optimizer(params, [weight_decay, momentum_step], AverageGrad(), lr=lr, mom=mom, wd=wd)

def test_without_momentum_l2_is_decoupled_decay_at_any_schedule():
    ps, qs = params(), params()
    a, b = sgd_opt(ps, 0.1, wd=0.3), decayed_opt(qs, 0.1, wd=0.3)
    for step in range(20):
        for opt in (a, b): set_hyper(opt, 'lr', 0.1/(1 + step))
        give_grads(step, ps, qs)
        a.step()
        b.step()
    for p, q in zip(ps, qs): torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)

@pytest.mark.parametrize('lr, mom, wd', ((0.05, 0.9, 0.01), (0.1, 0.5, 0.5), (0.01, 0.99, 0.001)))
def test_l2_with_momentum_is_decoupled_decay_with_another_momentum_and_decay(lr, mom, wd):
    total = 1 + mom - lr*wd     # the roots of z² − (1 + mom − lr·wd)z + mom: what decay leaves, and momentum
    root = math.sqrt(total**2 - 4*mom)
    keeps, other_mom = (total + root)/2, (total - root)/2
    ps, qs = params(SHAPES[:-1]), params(SHAPES[:-1])
    a, b = sgd_opt(ps, lr, mom=mom, wd=wd), decayed_opt(qs, lr, mom=other_mom, wd=(1 - keeps)/lr)
    for q in qs: b.state[q]['grad_avg'] = -(1 - keeps)/lr*q.detach()
    for step in range(50):
        for p in (*ps, *qs): p.grad = torch.sin(3*p.detach() + step)
        a.step()
        b.step()
    for p, q in zip(ps, qs): torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-8)

@pytest.mark.parametrize('dtype', (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize('name', THEIRS)
def test_other_types_are_as_near_as_their_precision(name, dtype):
    eps = torch.finfo(dtype).eps
    ps, qs = params(dtype=dtype), params(dtype=dtype)
    a, b = READY[name](ps, lr=0.01), THEIRS[name](qs, lr=0.01)
    for step in range(3):
        give_grads(step, ps, qs)
        a.step()
        b.step()
    for p, q in zip(ps, qs): torch.testing.assert_close(p, q, rtol=20*eps, atol=20*eps)

@pytest.mark.parametrize('name', ('sgd', 'nesterov', 'adam', 'adamw', 'rmsprop'))
def test_complex_parameters_step_as_pytorchs(name):
    ps, qs = params(((3,), (2, 2)), torch.complex128), params(((3,), (2, 2)), torch.complex128)
    a, b = READY[name](ps, lr=0.01), THEIRS[name](qs, lr=0.01)
    if name != 'rmsprop': a.fuse()     # goes on part by part
    for step in range(5):
        give_grads(step, ps, qs)
        a.step()
        b.step()
    for p, q in zip(ps, qs): torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)

def test_conjugate_gradients_are_resolved():
    p, q = params(((3,),), torch.complex128)[0], params(((3,),), torch.complex128)[0]
    p.grad = torch.tensor([1 + 2j, 3j, 4], dtype=torch.complex128).conj()
    q.grad = p.grad.resolve_conj().clone()
    adam_opt([p], 0.1).step()
    adam_opt([q], 0.1).step()
    assert p.equal(q)

def test_parameters_of_several_types_in_one_group_step_each_as_alone():
    mixed = params(((3,),), torch.float64) + params(((4,),), torch.float32) + params(((2, 2),), torch.float16)
    alone = [nn.Parameter(p.detach().clone()) for p in mixed]
    opts = [adam_opt(mixed, 0.01)] + [adam_opt([p], 0.01) for p in alone]
    for step in range(5):
        for i, (p, q) in enumerate(zip(mixed, alone)):
            p.grad = torch.full_like(p, 0.1*(i + step))
            q.grad = p.grad.clone()
        for opt in opts: opt.step()
    for p, q in zip(mixed, alone): assert p.equal(q)

@pytest.mark.parametrize('fused', (False, True))
def test_layouts_do_not_matter(fused):
    "Channels last, transposed, and with gaps; gradients laid out otherwise than their parameters."
    makes = [lambda: torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last),
             lambda: torch.randn(6, 4).t(), lambda: torch.randn(8, 10)[::2, ::2], lambda: torch.randn(3, 4)]
    for name in ('sgd', 'adamw', 'lamb'):
        torch.manual_seed(0)
        ps = [nn.Parameter(make()) for make in makes]
        assert not all(p.is_contiguous() for p in ps)
        qs = [nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in ps]
        a, b = READY[name](ps, lr=0.1), READY[name](qs, lr=0.1)
        if fused: a.fuse()
        for step in range(4):
            for i, (p, q) in enumerate(zip(ps, qs)):
                q.grad = torch.randn(q.shape)
                p.grad = (q.grad.clone() if step % 2 else torch.empty_strided(p.shape, p.stride())
                          .copy_(q.grad) if i != 3 else q.grad.t().contiguous().t())
            a.step()
            b.step()
        for p, q in zip(ps, qs): torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)

# state

@pytest.mark.slow
@pytest.mark.parametrize('fused', (False, True))
@pytest.mark.parametrize('name', READY)
def test_a_saved_optimizer_goes_on_bit_for_bit(name, fused, tmp_path):
    def make(ps):
        opt = READY[name](groups(ps, True), lr=0.01, wd=0.1)
        return opt.fuse() if fused and name in FUSABLE else opt
    ps, qs = params(dtype=torch.float32), params(dtype=torch.float32)
    a, b = make(ps), make(qs)
    for step in range(17):
        give_grads(step, ps, qs)
        a.step()
        b.step()
    save_state(tmp_path/'opt.pth', b.state_dict())
    b = make(qs)
    b.load_state_dict(load_state(tmp_path/'opt.pth'))
    for step in range(17, 30):
        give_grads(step, ps, qs)
        a.step()
        b.step()
    for p, q in zip(ps, qs): assert p.equal(q)
    assert str(a.state_dict()) == str(b.state_dict())

def test_a_parameter_counts_its_own_steps():
    ps = params(((2,), (2,)))
    opt = adam_opt(ps, 0.1)
    for step in range(6):
        ps[0].grad, ps[1].grad = (torch.ones(2, dtype=torch.float64),
                                  torch.ones(2, dtype=torch.float64) if step % 3 == 0 else None)
        opt.step()
    assert [opt.state[p]['step'] for p in ps] == [6, 2]

def test_loading_copies():
    ps, qs = params(((3,),)), params(((3,),))
    a, b = sgd_opt(ps, 0.1, mom=0.9), sgd_opt(qs, 0.1, mom=0.9)
    give_grads(0, ps, qs, missing=False)
    a.step()
    b.load_state_dict(a.state_dict())
    before = a.state[ps[0]]['grad_avg'].clone()
    b.step()
    assert a.state[ps[0]]['grad_avg'].equal(before) and not b.state[qs[0]]['grad_avg'].equal(before)

@pytest.mark.parametrize('state, message', (
    (lambda ps: adam_opt(ps, 0.1), 'knows'), (lambda ps: T.AdamW(ps, lr=0.1), 'knows'),
    (lambda ps: rmsprop_opt(ps, 0.1), 'knows'),
    (lambda ps: sgd_opt(params(((3,),)), 0.1, mom=0.9), 'group')))
def test_a_state_that_does_not_fit_is_refused(state, message):
    ps = params(((3,), (3, 4)))
    opt, other = sgd_opt(ps, 0.1, mom=0.9), state(params(((3,), (3, 4))))
    give_grads(0, *[[p for g in other.param_groups for p in g['params']]], missing=False)
    other.step()
    with pytest.raises(ValueError, match=message): opt.load_state_dict(other.state_dict())
    with pytest.raises(KeyError, match='param_groups'): opt.load_state_dict({'model': 1})
    assert not opt.state

def test_stats_of_another_kind_are_refused():
    ps = params(((3,),))
    _lion, _lars = lion_opt(ps, 0.1), lars_opt(ps, 0.1)
    adam, belief = adam_opt(ps, 0.1), Optimizer(ps, adam_step,
                                                [AverageGrad(True), AverageSqrGrad(), StepCount()], lr=0.1)
    give_grads(0, ps, missing=False)
    adam.step()
    state = adam.state_dict()
    del state['state'][0]['step']
    with pytest.raises(ValueError, match='keeps'):
        belief.load_state_dict({**state, 'param_groups': [{**state['param_groups'][0]}]})

def test_copies_and_pickles_of_an_optimizer_work():
    ps = params()
    opt = adam_opt(ps, 0.01)
    give_grads(0, ps)
    opt.step()
    twin, saved = copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))
    qs, rs = twin.param_groups[0]['params'], saved.param_groups[0]['params']
    give_grads(1, ps, qs, rs)
    for o in (opt, twin, saved): o.step()
    for p, q, r in zip(ps, qs, rs): assert p.equal(q) and p.equal(r)

# groups and hyper-parameters

def test_a_group_holds_each_value_once_under_pytorchs_key():
    ps = params(((2,), (2,), (2,)))
    opt = adam_opt([{'params': ps[:1], 'wd': 0.1, 'mom': 0.8},
                    {'params': ps[1:2], 'sqr_mom': 0.5, 'layer': 2}, {'params': ps[2:], 'betas': (0.7, 0.6)}],
                   lr=0.1)
    assert [{k: v for k, v in g.items() if k != 'params'} for g in opt.param_groups] == [
        dict(lr=0.1, betas=(0.8, 0.99), eps=1e-5, weight_decay=0.1),
        dict(lr=0.1, betas=(0.9, 0.5), eps=1e-5, weight_decay=0., layer=2),
        dict(lr=0.1, betas=(0.7, 0.6), eps=1e-5, weight_decay=0.)]
    sgd = sgd_opt(ps, 0.1, mom=0.5)
    assert {k for k in sgd.param_groups[0]} == {'params', 'lr', 'momentum', 'weight_decay'}
    assert (get_hyper(sgd, 'mom') == [0.5] and get_hyper(rmsprop_opt(ps, 0.1, mom=0.3), 'mom') == [0.3]
            and get_hyper(lion_opt(ps, 0.1), 'mom') == [0.9])

def test_the_callers_groups_are_left_alone():
    group = {'params': params(((2,),)), 'wd': 0.1}
    adam_opt([group], lr=0.1)
    assert set(group) == {'params', 'wd'}

def test_names_of_parameters_are_kept():
    model = nn.Linear(2, 2)
    assert (adam_opt(model.named_parameters(),
                     lr=0.1).state_dict()['param_groups'][0]['param_names'] == ['weight', 'bias'])

@pytest.mark.parametrize('make, message', (
    (lambda ps: adam_opt([{'params': ps, 'mom': 1.}], lr=0.1), 'less'),
    (lambda ps: adam_opt(ps, lr=-0.1), 'lr'), (lambda ps: adam_opt(ps, lr=math.nan), 'lr'),
    (lambda ps: sgd_opt([{'params': ps, 'betas': (0.9, 0.9)}], lr=0.1), 'betas'),
    (lambda ps: sgd_opt([{'params': ps, 'eps': 1e-3}], lr=0.1), 'eps'),
    (lambda ps: sgd_opt([{'params': ps, 'maximize': True}], lr=0.1), 'maximize'),
    (lambda ps: Optimizer(ps, sgd_step), 'lr'),
    (lambda ps: Optimizer(ps, momentum_step, lr=0.1), 'grad_avg'),
    (lambda ps: Optimizer(ps, sgd_step, lr=0.1, lrr=0.2), 'lrr'),
    (lambda ps: Optimizer(ps, sgd_step, AverageGrad(), lr=0.1), 'reads'),
    (lambda ps: Optimizer(ps, momentum_step, [AverageGrad(), LateAverage()], lr=0.1), 'own'),
    (lambda ps: sgd_opt([], lr=0.1), 'empty'), (lambda ps: lion_opt(ps, 0.1).fuse(), 'kernel')))
def test_bad_input_is_a_value_error(make, message):
    with pytest.raises(ValueError, match=message): make(params(((2,),)))

@pytest.mark.parametrize('make, message', (
    (lambda ps: adam_opt(ps, lr='0.1'), 'number'),
    (lambda ps: Optimizer(ps, [sgd_step, 3], lr=0.1), 'callable'),
    (lambda ps: Optimizer(ps, momentum_step, AverageGrad, lr=0.1), 'instance'),
    (lambda ps: sgd_opt(ps[0], lr=0.1), 'iterable')))
def test_bad_input_is_a_type_error(make, message):
    with pytest.raises(TypeError, match=message): make(params(((2,),)))

def test_a_group_without_parameters_is_an_error():
    with pytest.raises(KeyError, match='params'): adam_opt([{'lr': 0.1}], lr=0.1)

def test_a_group_that_is_refused_is_not_added():
    opt = sgd_opt(params(((2,),)), 0.1)
    with pytest.raises(ValueError): opt.add_param_group({'params': params(((3,),)), 'lr': -1.})
    assert len(opt.param_groups) == 1

def test_groups_may_be_added_later_and_may_be_empty():
    ps, qs = params(), params()
    a, b = adam_opt(ps[:3], 0.01), T.AdamW(qs[:3], lr=0.01, weight_decay=0., **SAME)
    for step in range(10):
        if step == 4:
            for opt, new in ((a, ps), (b, qs)):
                opt.add_param_group({'params': new[3:], 'lr': 0.1})
                opt.add_param_group({'params': []})
        give_grads(step, ps, qs)
        a.step()
        b.step()
    for p, q in zip(ps, qs): torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)

def test_no_gradients_at_all_move_nothing():
    ps = params()
    opt = adam_opt(ps, 0.1)
    opt.step()
    assert all(p.equal(q) for p, q in zip(ps, params())) and not opt.state

def test_gradients_are_not_changed_by_l2_and_scaling():
    ps = params()
    for make in (partial(sgd_opt, wd=0.1), partial(rmsprop_opt, wd=0.1), partial(lars_opt, wd=0.1)):
        give_grads(0, ps, missing=False)
        before = [p.grad.clone() for p in ps]
        make(ps, lr=0.1).step()
        assert all(p.grad.equal(b) for p, b in zip(ps, before))

def test_a_rate_may_be_a_tensor():
    ps, qs = params(), params()
    a, b = adam_opt(ps, torch.tensor(0.01, dtype=torch.float64)), adam_opt(qs, 0.01)
    for step in range(4):
        if step == 2:
            set_hyper(a, 'lr', 0.02)
            set_hyper(b, 'lr', 0.02)
        give_grads(step, ps, qs)
        a.step()
        b.step()
    assert isinstance(a.param_groups[0]['lr'], torch.Tensor)
    for p, q in zip(ps, qs): torch.testing.assert_close(p, q)

def test_momentum_may_come_and_go():
    ps, qs = params(), params()
    a, b = sgd_opt(ps, 0.01), T.SGD(qs, lr=0.01)
    for step in range(20):
        mom = (0., 0.9, 0., 0.5)[step//5]
        a.param_groups[0]['momentum'] = b.param_groups[0]['momentum'] = mom
        if step == 0: assert not any('grad_avg' in s for s in a.state.values())
        give_grads(step, ps, qs)
        a.step()
        b.step()
    for p, q in zip(ps, qs): torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)

# PyTorch's tools

@pytest.mark.parametrize('name', READY)
def test_every_scheduler_moves_every_optimizer(name):
    S = T.lr_scheduler
    for make in (lambda o: S.OneCycleLR(o, max_lr=0.1, total_steps=8), lambda o: S.CosineAnnealingLR(o, 8),
                 lambda o: S.StepLR(o, 2), lambda o: S.CyclicLR(o, 1e-3, 0.1, step_size_up=3),
                 lambda o: S.LambdaLR(o, lambda e: 1/(e + 1)),
                 lambda o: S.SequentialLR(o, [S.LinearLR(o), S.ExponentialLR(o, 0.9)], [3])):
        ps = params(dtype=torch.float32)
        opt = READY[name](ps, lr=0.01)
        sched = make(opt)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            for step in range(7):
                give_grads(step, ps)
                opt.step()
                sched.step()
        assert all(p.isfinite().all() for p in ps)

@pytest.mark.parametrize('name', ('sgd', 'plain', 'nesterov', 'adam', 'adamw', 'rmsprop_mom'))
def test_one_cycle_with_its_defaults_gives_pytorchs_steps(name):
    ps, qs = params(), params()
    a, b = READY[name](ps, lr=0.01), THEIRS[name](qs, lr=0.01)
    s, t = (T.lr_scheduler.OneCycleLR(o, max_lr=0.01, total_steps=30) for o in (a, b))
    for step in range(29):
        give_grads(step, ps, qs)
        a.step()
        b.step()
        s.step()
        t.step()
    for p, q in zip(ps, qs): torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)

def test_grad_scaler_scales_and_skips():
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    opt, ref, scaler = adam_opt(model.parameters(), 0.1), adam_opt(
        twin.parameters(), 0.1), torch.amp.GradScaler('cpu', init_scale=256.)
    for step in range(6):
        x = torch.randn(4, 3)*(math.inf if step == 2 else 1)
        opt.zero_grad()
        ref.zero_grad()
        scaler.scale(model(x).square().mean()).backward()
        scaler.step(opt)
        scaler.update()
        if step != 2:
            twin(x).square().mean().backward()
            ref.step()
    for p, q in zip(model.parameters(), twin.parameters()): torch.testing.assert_close(p, q)
    assert scaler.get_scale() == 128.

def test_a_closure_is_called_with_gradients_on_and_its_loss_answered():
    p = nn.Parameter(torch.tensor([2.]))
    opt = sgd_opt([p], 0.1)
    def closure():
        opt.zero_grad()
        loss = (p*p).sum()
        loss.backward()
        return loss
    with torch.no_grad(): assert opt.step(closure).item() == 4.
    torch.testing.assert_close(p.detach(), torch.tensor([1.6]))

def test_hooks_of_steps_are_called():
    ps, seen = params(((2,),)), []
    opt = sgd_opt(ps, 0.1)
    opt.register_step_pre_hook(lambda *_: seen.append('pre'))
    opt.register_step_post_hook(lambda *_: seen.append('post'))
    give_grads(0, ps, missing=False)
    opt.step()
    assert seen == ['pre', 'post']

@pytest.mark.slow
def test_lightning_trains_saves_and_goes_on_with_it(tmp_path):
    L = pytest.importorskip('lightning')
    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        def training_step(self, batch, i): return self.net(batch[0]).sub(batch[1]).square().mean()
        def configure_optimizers(self):
            opt = adam_opt(self.parameters(), lr=0.01)
            return [opt], [{'scheduler': T.lr_scheduler.OneCycleLR(opt, max_lr=0.05, total_steps=33),
                            'interval': 'step'}]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=g)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), 8)
    def fit(epochs, ckpt=None):
        module = Module()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            trainer = L.Trainer(max_epochs=epochs, accelerator='cpu', logger=False,
                                enable_checkpointing=False, enable_progress_bar=False,
                                enable_model_summary=False, default_root_dir=tmp_path)
            trainer.fit(module, loader, ckpt_path=ckpt)
            trainer.save_checkpoint(tmp_path/f'{epochs}.ckpt')
        return module
    whole = fit(4)
    fit(2)
    resumed = fit(4, tmp_path/'2.ckpt')
    for p, q in zip(whole.parameters(), resumed.parameters()): assert p.equal(q)

def test_the_runner_takes_a_partial():
    from exp.callbacks import Runner
    model = nn.Linear(3, 2)
    loader = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(4)]
    run = Runner((loader, None), model, loss_func=nn.functional.cross_entropy,
                 opt_func=partial(adam_opt, wd=0.1), lr=0.01)
    run.fit(1)
    run.fit(1, lr=0.02)
    assert (isinstance(run.opt, Optimizer) and run.opt.param_groups[0]['lr'] == 0.02
            and run.opt.param_groups[0]['weight_decay'] == 0.1)

# composing

def test_stats_are_placed_before_their_first_reader():
    class Echo(Stat):
        key = 'echo'
        def update(self, echo, grad_avg): torch._foreach_copy_(echo, grad_avg)
    def step(ps, echo, grad_avg, lr): torch._foreach_add_(ps, echo, alpha=-lr)
    opt = Optimizer(params(((2,),)), [l2_reg, step], [Echo(), AverageGrad()], lr=0.1)
    assert repr(opt).split('\n')[0] == 'l2_reg → AverageGrad(dampening=False) → Echo() → step'
    assert repr(lion_opt(params(((2,),)), 0.1)).split('\n')[0] == 'weight_decay → lion_step → LateAverage()'
    assert (repr(rmsprop_opt(params(((2,),)), 0.1)).split('\n')[0]
            == 'l2_reg → AverageSqrGrad() → rms_scale → AverageGrad(dampening=False) → momentum_step')

def test_a_steppers_own_hyper_parameter_is_kept_in_groups_under_its_name():
    def power_step(ps, grads, lr, power=1.):
        torch._foreach_add_(ps, [g.sign()*g.abs()**power for g in grads], alpha=-lr)
    p = nn.Parameter(torch.zeros(2))
    opt = Optimizer([{'params': [p], 'power': 2.}], power_step, lr=1.)
    p.grad = torch.tensor([2., -3.])
    opt.step()
    assert p.tolist() == [-4., 9.] and opt.param_groups[0]['power'] == 2.

def test_what_a_stepper_takes_by_keyword_only_is_its_own():
    p = nn.Parameter(torch.zeros(2))
    opt = Optimizer([p], partial(sgd_step, lr=0.5), None)
    p.grad = torch.tensor([2., -4.])
    opt.step()
    assert p.tolist() == [-1., 2.] and set(opt.param_groups[0]) == {'params'}

def test_defaults_of_steppers_go_before_those_of_stats():
    def own_step(ps, grad_avg, lr=0.5, mom=0.3): torch._foreach_add_(ps, grad_avg, alpha=-lr)
    opt = Optimizer(params(((2,),)), own_step, AverageGrad())
    assert (opt.param_groups[0]['lr'], opt.param_groups[0]['momentum']) == (0.5, 0.3)

def test_rows_and_columns_average_mean_squares():
    p, g = torch.zeros(2, 3), torch.arange(6.).view(2, 3)
    for stat, dim in ((RowSqrGrad(), -1), (ColSqrGrad(), -2)):
        kept = stat.init(p)
        stat.update([kept], [g], 1)        # the first step takes all
        torch.testing.assert_close(kept, g.square().mean(dim, keepdim=True))
        stat.update([kept], [0*g], 4)      # the fourth 4**-0.8 of the way
        torch.testing.assert_close(kept, g.square().mean(dim, keepdim=True)*(1 - 4**-0.8))

def test_adafactors_update_is_as_long_as_the_rate_says():
    p, g = torch.full((4, 5), 2.), torch.full((4, 5), 7.)
    squares = [g.square().mean(dim, keepdim=True) for dim in (-1, -2)]
    update, = adafactor_scale([p], [g], squares[:1], squares[1:], 1, lr=0.01)
    torch.testing.assert_close(update, torch.full((4, 5), 0.01*2.))

def test_adabounds_rates_are_adams_within_the_bounds():
    p, avg, sqr = torch.zeros(3), torch.ones(3), torch.tensor([1e-8, 1., 1e8])
    adabound_step([p], [avg], [sqr], 10**6, lr=1., final=2., gamma=1.)
    torch.testing.assert_close(p, torch.full((3,), -2.), rtol=1e-5, atol=0)
    q = torch.zeros(3)
    adabound_step([q], [avg], [sqr], 1, lr=1., mom=0., sqr_mom=0., eps=0., final=1e9, gamma=1e-16)
    torch.testing.assert_close(q, -avg/sqr.sqrt())
