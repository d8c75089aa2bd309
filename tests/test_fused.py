"""Fused steps are those by parts; the plan of a step holds every parameter once, notices what is exchanged,
and compiles at most twice."""
import copy
from functools import partial

import pytest
import torch
from torch import nn

from exp.optimizers import adam_opt, sgd_opt
from test_optimizers import FUSABLE, READY, apart, give_grads, params
from test_optimizers_kinds import OURS, WAYS, way_of

@pytest.mark.slow
@pytest.mark.parametrize('wd', (0., 0.1))
@pytest.mark.parametrize('name', FUSABLE)
def test_fused_steps_are_the_same(name, wd):
    def fused(groups, lr): return READY[name](groups, lr=lr, wd=wd).fuse()
    assert apart(fused, partial(READY[name], wd=wd), wd) < 1e-10

def test_chunks_hold_every_parameter_once():
    ps = [nn.Parameter(torch.zeros(n)) for n in (10, 900_000, 20, 800_000, 700_000, 5, 0)]
    for p in ps: p.grad = torch.ones_like(p)
    opt = sgd_opt(ps, 1.)
    opt.step()
    assert all((p == -1).all() for p in ps) and len(opt._planner.plans[0][1]) > 2

@pytest.mark.parametrize('exchange', ('outer', 'inner', 'clear', 'load'))
def test_a_state_that_is_exchanged_from_outside_is_noticed(exchange):
    ps, qs = params(), params()
    a, b = adam_opt(ps, 0.01), adam_opt(qs, 0.01)
    for step in range(3):
        give_grads(step, ps, qs, missing=False)
        a.step()
        b.step()
    if exchange == 'outer':
        for p in ps:
            a.state[p] = {k: copy.deepcopy(v) for k, v in a.state[p].items()}
            a.state[p]['grad_avg'].zero_()
    elif exchange == 'inner':
        for p in ps: a.state[p]['grad_avg'] = torch.zeros_like(p)
    elif exchange == 'clear': a.state.clear()
    else: a.load_state_dict(a.state_dict())
    if exchange in ('outer', 'inner'):
        for q in qs: b.state[q]['grad_avg'].zero_()
    if exchange == 'clear': b = adam_opt(qs, 0.01)
    for step in range(3, 6):
        give_grads(step, ps, qs, missing=False)
        a.step()
        b.step()
    for p, q in zip(ps, qs): assert p.equal(q)

def test_parameters_that_are_exchanged_in_a_group_are_noticed():
    ps = params(((3,), (3,)))
    opt = sgd_opt(ps, 0.1, mom=0.9)
    give_grads(0, ps, missing=False)
    opt.step()
    new = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    opt.param_groups[0]['params'][1] = new
    new.grad = torch.ones(3, dtype=torch.float64)
    opt.step()
    assert new.equal(torch.full((3,), -0.1, dtype=torch.float64))

def test_a_sparse_gradient_is_refused_before_anything_moves():
    emb, dense = nn.Embedding(5, 2, sparse=True), nn.Parameter(torch.ones(2))
    opt = adam_opt([{'params': [dense]}, {'params': emb.parameters()}], lr=0.1)
    (emb(torch.tensor([1, 2])).sum() + dense.sum()).backward()
    with pytest.raises(ValueError, match='sparse'): opt.step()
    assert dense.equal(torch.ones(2))

def graphs(make, scheduled, steps=20):
    "How many graphs `torch.compile` makes of so many steps, and where the parameters end."
    torch._dynamo.reset()
    made, g = [], torch.Generator().manual_seed(0)
    ps = [nn.Parameter(torch.randn(s, generator=g)) for s in ((3,), (4, 2))]
    opt = make(ps, lr=0.1)
    step = torch.compile(opt.step, backend=lambda graph, inputs: made.append(1) or graph)
    for i in range(steps):
        for p in ps: p.grad = torch.randn(p.shape, generator=g)
        if scheduled: opt.param_groups[0]['lr'] = 0.1*(1 - i/30)
        step()
    torch._dynamo.reset()
    return len(made), ps

@pytest.mark.slow
@pytest.mark.parametrize('name, way', [w for w in WAYS if w[0] in ('sgd', 'adamw', 'lamb', 'lion',
                                                                   'adafactor', 'adabound', 'muon')])
def test_a_compiled_step_is_compiled_at_most_twice_and_is_the_same(name, way, monkeypatch):
    n, ps = graphs(way_of(name, way), scheduled=True)
    monkeypatch.setattr(torch, 'compile', lambda f, backend: f)
    for p, q in zip(ps, graphs(way_of(name, way), scheduled=True)[1]): torch.testing.assert_close(p, q)
    assert 1 <= n <= 2

def test_at_an_even_rate_momentum_is_compiled_once(): assert graphs(OURS['sgd'], scheduled=False)[0] == 1
