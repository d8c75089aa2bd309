"""exp.norms against PyTorch and against 2019's formulas, over random shapes and types; bad input; nothing
waits for the device."""
import copy, gc, io, math, pickle, weakref

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from exp.core import load_state, save_state, test_close as close, test_eq as equal
from exp.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RunningBatchNorm

TOL = {torch.float64: 1e-10, torch.float32: 1e-5}
dtypes = st.sampled_from(list(TOL))
seeds = st.integers(0, 10_000)
windows = st.sampled_from([(), (5,), (4, 3), (1, 2), (2, 3, 2)])
maps = st.sampled_from([(5,), (4, 3), (1, 2), (2, 3, 2)])
BATCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
INSTANCE = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}

def draw(shape, dtype=torch.float64, seed=0, scale=2., shift=1.):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed),
                       dtype=torch.float64).mul(scale).add(shift).to(dtype)

def randomize(layer, seed=0):
    "Random weights and buffers, so that nothing agrees by being 0 or 1."
    for i, p in enumerate(layer.parameters()): p.data = draw(p.shape, p.dtype, seed + i)
    return layer

def same_pass(ours, theirs, x, seed=0, tol=None):
    "The same output, and the same gradients of input and parameters, from a random gradient of the output."
    tol, results = tol or TOL[x.dtype], []
    for layer in (ours, theirs):
        xb = x.clone().requires_grad_()
        layer.zero_grad()
        y = layer(xb)
        y.backward(draw(y.shape, y.dtype, seed + 1))
        results.append((y, xb.grad, [p.grad for p in layer.parameters()]))
    (y, dx, dp), (their_y, their_dx, their_dp) = results
    assert y.dtype == x.dtype and y.shape == x.shape and len(dp) == len(their_dp)
    close(y, their_y, tol)
    close(dx, their_dx, tol)
    for a, b in zip(dp, their_dp): close(a/max(1, b.abs().max()), b/max(1, b.abs().max()), tol)

def same_state(ours, theirs, tol):
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        close(ours.state_dict()[key], value, tol)
        assert ours.state_dict()[key].dtype == value.dtype


# The four layers that PyTorch has too

@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 5), nf=st.integers(1, 6), window=windows, dtype=dtypes, seed=seeds,
       mom=st.sampled_from([0., 0.1, 0.7, 1.]), eps=st.sampled_from([1e-5, 0.1]))
def test_batch_norm_is_pytorchs_in_training_and_evaluation(n, nf, window, dtype, seed, mom, eps):
    theirs = randomize(BATCH[2 + len(window)](nf, momentum=mom, eps=eps).to(dtype), seed)
    ours = BatchNorm(nf, mom, eps).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    for step in range(3):   # of different sizes, as the last batch of an epoch is
        same_pass(ours, theirs, draw((n + step, nf, *window), dtype, seed + step),
                  tol=1e-3 if dtype == torch.float32 and n*math.prod(window) < 8 else None)
        same_state(ours, theirs, TOL[dtype])
    ours.eval()
    theirs.eval()
    same_pass(ours, theirs, draw((1, nf, *window), dtype, seed + 9))
    same_state(ours, theirs, TOL[dtype])
    back = BATCH[2 + len(window)](nf, momentum=mom, eps=eps).to(dtype).eval()
    back.load_state_dict(ours.state_dict())
    same_pass(ours, back, draw((2, nf, *window), dtype, seed + 10))

@settings(max_examples=30, deadline=None)
@given(lead=st.lists(st.integers(1, 4), max_size=3),
       shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), dtype=dtypes, seed=seeds)
def test_layer_norm_is_pytorchs(lead, shape, dtype, seed):
    if math.prod(shape) < 3: shape = [*shape, 3]
    theirs = randomize(nn.LayerNorm(shape).to(dtype), seed)
    ours = LayerNorm(shape[0] if len(shape) == 1 else tuple(shape)).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    same_state(ours, theirs, 0)
    same_pass(ours, theirs, draw((*lead, *shape), dtype, seed), tol=1e-4 if dtype == torch.float32 else None)
    same_pass(ours.eval(), theirs.eval(), draw((*lead, *shape), dtype, seed),
              tol=1e-4 if dtype == torch.float32 else None)

@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 4), nf=st.integers(1, 5), window=st.sampled_from([(5,), (4, 3), (3, 3, 2)]),
       dtype=dtypes, seed=seeds, affine=st.booleans())
def test_instance_norm_is_pytorchs(n, nf, window, dtype, seed, affine):
    theirs = randomize(INSTANCE[2 + len(window)](nf, affine=affine).to(dtype), seed)
    ours = InstanceNorm(nf, affine=affine).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    same_state(ours, theirs, 0)
    for layers in ((ours, theirs), (ours.eval(), theirs.eval())):
        same_pass(*layers, draw((n, nf, *window), dtype, seed), tol=1e-4 if dtype == torch.float32 else None)

@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 4), groups=st.integers(1, 3), each=st.integers(1, 3),
       window=st.sampled_from([(4,), (4, 3), (2, 3, 2)]), dtype=dtypes, seed=seeds)
def test_group_norm_is_pytorchs(n, groups, each, window, dtype, seed):
    theirs = randomize(nn.GroupNorm(groups, groups*each).to(dtype), seed)
    ours = GroupNorm(groups, groups*each).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    same_state(ours, theirs, 0)
    same_pass(ours, theirs, draw((n, groups*each, *window), dtype, seed),
              tol=1e-4 if dtype == torch.float32 else None)

def test_float32_is_within_1e_5_of_pytorchs_on_batches_of_a_usual_size():
    x = draw((8, 6, 7, 7), torch.float32)
    for ours, theirs in ((BatchNorm(6), nn.BatchNorm2d(6)), (LayerNorm((6, 7, 7)), nn.LayerNorm((6, 7, 7))),
                         (InstanceNorm(6), nn.InstanceNorm2d(6, affine=True)),
                         (GroupNorm(3, 6), nn.GroupNorm(3, 6))):
        randomize(theirs)
        ours.load_state_dict(theirs.state_dict())
        same_pass(ours, theirs, x)

def test_channels_last_and_strided_batches_give_the_same():
    x = draw((4, 6, 5, 5))
    for layer in (BatchNorm(6), InstanceNorm(6), GroupNorm(2, 6), LayerNorm(5), RunningBatchNorm(6)):
        layer.double()
        for other in (x.contiguous(memory_format=torch.channels_last),
                      x.transpose(2, 3).contiguous().transpose(2, 3)):
            same_pass(copy.deepcopy(layer), layer, other)
            close(copy.deepcopy(layer)(x), copy.deepcopy(layer)(other), 1e-10)

@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('make', [lambda: BatchNorm(6), lambda: LayerNorm((6, 40, 40)),
                                  lambda: InstanceNorm(6), lambda: GroupNorm(2, 6),
                                  lambda: RunningBatchNorm(6)])
def test_half_precision_statistics_are_computed_in_float32(make, half):
    # a sum of 6,400 numbers of 20 overflows float16 and stalls in bfloat16
    x = draw((4, 6, 40, 40), half, scale=1., shift=20.)
    layer, wide = make(), make()
    xb, xw = x.clone().requires_grad_(), x.float().requires_grad_()
    y, y_wide = layer(xb), wide(xw)
    assert y.dtype == half and layer.weight.dtype == torch.float32
    close(y.float(), y_wide, 0.02)
    y.float().pow(3).sum().backward()
    y_wide.pow(3).sum().backward()
    close(xb.grad.float(), xw.grad, 0.1)
    if getattr(layer, 'running_var', None) is not None: close(layer.running_var, wide.running_var, 1e-4)

def test_a_layer_of_half_precision_works_as_a_whole():
    for layer in (BatchNorm(6), RunningBatchNorm(6), InstanceNorm(6), GroupNorm(2, 6), LayerNorm(5)):
        y = layer.bfloat16()(draw((4, 6, 5, 5), torch.bfloat16).requires_grad_())
        y.sum().backward()
        assert y.dtype == torch.bfloat16 and layer.eval()(draw((4, 6, 5, 5), torch.bfloat16)).isfinite().all()


# RunningBatchNorm

class Running2019(nn.Module):
    """2019's formulas: weighted running sums of x, x² and counts, through which gradients flow from the
    newest batch."""
    def __init__(self, nf, mom=0.1, eps=1e-5):
        super().__init__()
        self.mom, self.eps = mom, eps
        self.weight, self.bias = nn.Parameter(torch.ones(nf)), nn.Parameter(torch.zeros(nf))
        self.sums, self.sqrs, self.counts, self.items = torch.zeros(nf, dtype=torch.float64), torch.zeros(
            nf, dtype=torch.float64), 0., 0

    def forward(self, x):
        bs, dims, shape = len(x), [0, *range(2, x.ndim)], (1, -1, *[1]*(x.ndim - 2))
        sums, sqrs = self.sums, self.sqrs
        if self.training:
            mom1 = 1 - (1 - self.mom)/math.sqrt(bs - 1) if bs > 1 else 1 - math.sqrt(1 - self.mom)
            sums, sqrs = (1 - mom1)*sums + mom1*x.sum(dims), (1 - mom1)*sqrs + mom1*(x*x).sum(dims)
            self.counts, self.items = (1 - mom1)*self.counts + mom1*x[:, 0].numel(), self.items + bs
            self.sums, self.sqrs = sums.detach(), sqrs.detach()
        mean = sums/self.counts
        var = sqrs/self.counts - mean*mean
        if self.items < 20: var = var.clamp_min(0.01)
        return ((x - mean.view(shape))*(var + self.eps).rsqrt().view(shape)*self.weight.view(shape)
                + self.bias.view(shape))

@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.sampled_from([1, 2, 3, 5, 33]), min_size=2, max_size=8), nf=st.integers(1, 5),
       window=windows, seed=seeds,
       mom=st.sampled_from([0.02, 0.1, 0.7, 1.]), eps=st.sampled_from([1e-5, 0.1]), quiet=st.booleans())
def test_running_batch_norm_is_2019s_in_every_step(sizes, nf, window, seed, mom, eps, quiet):
    theirs = randomize(Running2019(nf, mom, eps).double(), seed)
    ours = RunningBatchNorm(nf, mom, eps).double()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    # below and above the clamp
    scale = torch.where(torch.arange(nf) % 2 == 0, 0.05 if quiet else 1.,
                        1.).double().view(1, -1, *[1]*len(window))
    for i, bs in enumerate(sizes):
        x = draw((bs, nf, *window), seed=seed + i, shift=0.)*scale + 0.5*i
        same_pass(ours, theirs, x, seed, tol=1e-7 if eps < 1e-4 and bs < 3 else 1e-9)
        mean = theirs.sums/theirs.counts
        close(ours.running_mean, mean, 1e-10)
        close(ours.running_var, theirs.sqrs/theirs.counts - mean**2, 1e-10)
        assert ours.counts == pytest.approx(theirs.counts, rel=1e-12)
    ours.eval()
    theirs.eval()
    before = copy.deepcopy(ours.state_dict())
    same_pass(ours, theirs, draw((3, nf, *window), seed=seed), tol=1e-8)
    for key, value in before.items(): equal(ours.state_dict()[key], value)

@pytest.mark.slow
@pytest.mark.parametrize('items', [0, 20])
@pytest.mark.parametrize('window', [(), (3,), (2, 2)])
def test_the_gradient_passes_gradcheck_and_so_does_the_second(window, items):
    base = RunningBatchNorm(3).double()
    base(draw((8, 3, *window), shift=0.)*torch.tensor([0.01, 1., 1.]).view(1, -1, *[1]*len(window)))
    base.items.fill_(items)
    def f(x, weight, bias):
        layer = copy.deepcopy(base)   # each call starts from the same running statistics
        del layer.weight, layer.bias
        layer.weight, layer.bias = weight, bias
        return layer(x)
    x = draw((4, 3, *window), seed=1, shift=0.)*torch.tensor([0.01, 1., 1.]).view(1, -1, *[1]*len(window))
    inputs = [t.requires_grad_() for t in (x, draw((3,), seed=2), draw((3,), seed=3))]
    assert torch.autograd.gradcheck(f, inputs) and torch.autograd.gradgradcheck(f, inputs)

# the large ones sum their statistics in another way
@pytest.mark.parametrize('shape', [(64, 4, 6, 6), (128, 4, 16, 16), (30_000, 4)])
def test_large_batches_agree_too(shape):
    ours, theirs = RunningBatchNorm(4).double(), Running2019(4).double()
    for i in range(3): same_pass(ours, theirs, draw(shape, seed=i), tol=1e-9)
    ours, theirs = RunningBatchNorm(4), Running2019(4).double()
    for i in range(5):
        x = draw(shape, torch.float32, seed=i)
        close(ours(x), theirs(x.double()).float())
    close(ours.eval()(x), theirs.eval()(x.double()).float())

@pytest.mark.parametrize('shape', [(4, 2, 5, 5), (256, 2, 16, 16)])
def test_a_large_mean_costs_no_digits_and_a_variance_is_never_negative(shape):
    ours, theirs = RunningBatchNorm(2), RunningBatchNorm(2).double()
    for i in range(12):
        x = draw(shape, torch.float32, seed=i, scale=0.5, shift=4096.)
        y, y64 = ours(x), theirs(x.double())
        close(y.double(), y64, 2e-3)
        assert (ours.running_var >= 0).all()
    close(ours.running_var.double(), theirs.running_var, 1e-3)
    squares = (x*x).mean((0, 2, 3)) - x.mean((0, 2, 3))**2   # what E[x²] − mean² gives
    assert ((squares - 0.25).abs() > 0.1).any()

def test_constant_channels_stay_finite_after_the_clamp_ends():
    layer = RunningBatchNorm(2)
    for _ in range(30): y = layer(torch.full((2, 2, 3, 3), 1e4, requires_grad=True))
    y.sum().backward()
    assert y.isfinite().all() and (layer.running_var == 0).all()

def test_a_batch_of_one_value_per_channel_trains():
    layer = RunningBatchNorm(3)
    for i in range(30):
        x = draw((1, 3), torch.float32, seed=i).requires_grad_()
        layer(x).square().sum().backward()
        assert x.grad.isfinite().all()
    assert layer.running_var.min() > 0.1

def test_two_batches_of_one_keep_as_much_of_the_past_as_one_of_two():
    one, two = RunningBatchNorm(1).double(), RunningBatchNorm(1).double()
    for layer in (one, two): layer(draw((40, 1, 4)))
    past = one.counts.item()
    for bs, layer in ((1, one), (1, one), (2, two)): layer(torch.zeros(bs, 1, 4, dtype=torch.float64))
    assert one.counts == pytest.approx(0.9*past + 0.1*4) and two.counts == pytest.approx(0.9*past + 0.1*8)

def test_a_resumed_layer_goes_on_bit_for_bit(tmp_path):
    batches = [draw((2, 3, 4, 4), torch.float32, seed=i) for i in range(16)]
    whole = RunningBatchNorm(3)
    for xb in batches[:6]: whole(xb)
    save_state(tmp_path/'norm.pth', whole.state_dict())
    resumed = RunningBatchNorm(3)
    resumed.load_state_dict(load_state(tmp_path/'norm.pth'))
    for xb in batches[6:]: equal(whole(xb), resumed(xb))
    for key, value in whole.state_dict().items(): equal(resumed.state_dict()[key], value)
    equal(whole.eval()(xb), resumed.eval()(xb))

def test_two_forward_passes_before_a_backward_each_keep_their_statistics():
    layer, theirs = RunningBatchNorm(3).double(), Running2019(3).double()
    xs = [draw((4, 3, 2, 2), seed=i).requires_grad_() for i in range(2)]
    grads = []
    for f in (layer, theirs):
        loss = sum(f(x).pow(3).sum() for x in xs)
        grads.append(torch.autograd.grad(loss, xs))
    for a, b in zip(*grads): close(a, b, 1e-10)

def test_a_frozen_weight_or_bias_changes_no_gradient_of_the_input():
    x, grads = draw((4, 3, 2, 2)).requires_grad_(), []
    for frozen in ((), ('weight',), ('bias',), ('weight', 'bias')):
        layer = RunningBatchNorm(3).double()
        for name in frozen: getattr(layer, name).requires_grad_(False)
        grads.append(torch.autograd.grad(layer(x).pow(3).sum(), x)[0])
        assert all(getattr(layer, name).grad is None for name in frozen)
    for g in grads[1:]: close(g, grads[0], 1e-12)

def test_without_a_gradient_for_the_input_the_parameters_still_learn():
    layer, theirs, x = RunningBatchNorm(3).double(), Running2019(3).double(), draw((4, 3, 2, 2))
    for f in (layer, theirs): f(x).pow(3).sum().backward()
    close(layer.weight.grad, theirs.weight.grad, 1e-10)
    close(layer.bias.grad, theirs.bias.grad, 1e-10)
    with torch.no_grad(): assert not layer(x.requires_grad_()).requires_grad
    with torch.inference_mode(): layer(x)

@pytest.mark.slow
def test_a_retained_graph_can_be_walked_twice():
    layer, x = RunningBatchNorm(3).double(), draw((4, 3, 2, 2)).requires_grad_()
    loss = layer(x*1.).pow(3).sum()
    first, = torch.autograd.grad(loss, x, retain_graph=True)
    gc.collect()
    second, = torch.autograd.grad(loss, x)
    equal(first, second)

@pytest.mark.slow
def test_a_kept_loss_does_not_keep_the_activations():
    layer, x = RunningBatchNorm(3), draw((4, 3, 2, 2), torch.float32).requires_grad_()
    hidden = x*2
    dead = weakref.ref(hidden.untyped_storage())
    alive = weakref.ref(hidden)
    loss = layer(hidden).pow(3).sum()
    del hidden
    loss.backward()
    gc.collect()
    assert alive() is None and dead() is None and loss.isfinite()

def test_activation_checkpointing_gives_the_same_gradient():
    from torch.utils.checkpoint import checkpoint
    x = draw((4, 3, 2, 2)).requires_grad_()
    # with mom 1 the batch alone counts, so entering it twice changes nothing
    layer = RunningBatchNorm(3, mom=1.).double()
    plain, = torch.autograd.grad(layer(x*1.).pow(3).sum(), x)
    saved, = torch.autograd.grad(checkpoint(lambda x: layer(x*1.).pow(3).sum(), x, use_reentrant=False), x)
    close(saved, plain, 1e-12)


# All layers

LAYERS = [lambda: BatchNorm(6), lambda: LayerNorm((6, 4, 4)), lambda: InstanceNorm(6),
          lambda: GroupNorm(2, 6), lambda: RunningBatchNorm(6)]

@pytest.mark.parametrize('make', LAYERS)
def test_nothing_waits_for_the_device(make, monkeypatch):
    layer, xs, calls = make(), [draw((2, 6, 4, 4), torch.float32, seed=i).requires_grad_()
                                for i in range(14)], []
    for name in ('item', 'cpu', 'tolist', 'numpy', 'to', '__bool__', '__float__', '__int__', '__index__',
                 'nonzero', 'equal'):
        real = getattr(torch.Tensor, name)
        def spy(self, *args, _name=name, _real=real, **kwargs):
            if _name != 'to' or 'cpu' in map(str, args): calls.append(_name)
            return _real(self, *args, **kwargs)
        monkeypatch.setattr(torch.Tensor, name, spy)
    for x in xs: layer(x).sum().backward()
    layer.eval()(xs[0]).sum().backward()
    monkeypatch.undo()
    assert calls == []

@pytest.mark.parametrize('make', LAYERS)
def test_copies_and_pickles_go_on_alike(make):
    layer, x = randomize(make()), draw((4, 6, 4, 4), torch.float32)
    layer(x)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    loaded = make()
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded]
    expected = layer(x), layer.eval()(x)
    for other in others: equal((other(x), other.eval()(x)), expected)

@pytest.mark.parametrize('make', LAYERS)
def test_double_and_train_and_repr(make):
    layer = make().double()
    x = draw((4, 6, 4, 4))
    assert layer(x).dtype == torch.float64 and layer.train().training and not layer.eval().training
    assert type(layer).__name__ in repr(layer) and 'eps=1e-05' in repr(layer)

def test_the_layers_train_in_a_network():
    for make in (BatchNorm, InstanceNorm, RunningBatchNorm, lambda nf: GroupNorm(2, nf),
                 lambda nf: LayerNorm((nf, 6, 6))):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), make(4), nn.Flatten(), nn.Linear(144, 2))
        opt = torch.optim.SGD(model.parameters(), lr=0.05)
        x = draw((16, 1, 8, 8), torch.float32, shift=0.)
        y = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
        losses = []
        for _ in range(30):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0]/2

BATCHES = [BatchNorm, RunningBatchNorm]

def test_batch_norm_refuses_one_value_per_channel_in_training_only():
    for shape in ((1, 4), (1, 4, 1), (1, 4, 1, 1), (0, 4, 3, 3)):
        with pytest.raises(ValueError, match='larger'): BatchNorm(4)(torch.zeros(shape))
        assert BatchNorm(4).eval()(torch.zeros(shape)).shape == shape
    assert BatchNorm(4)(torch.rand(1, 4, 2)).shape == (1, 4, 2)
    with pytest.raises(ValueError, match='statistics'): RunningBatchNorm(4)(torch.zeros(0, 4, 3, 3))

def test_instance_norm_refuses_maps_of_one_value():
    for shape in ((3, 4, 1), (3, 4, 1, 1)):
        with pytest.raises(ValueError, match='mean'): InstanceNorm(4)(torch.zeros(shape))

@pytest.mark.parametrize('make', [lambda: BatchNorm(6), lambda: InstanceNorm(6), lambda: GroupNorm(2, 6),
                                  lambda: RunningBatchNorm(6)])
def test_a_wrong_number_of_channels_or_dimensions_is_named(make):
    with pytest.raises(ValueError, match='shape'): make()(torch.zeros(4, 5, 3, 3))
    with pytest.raises(ValueError, match='shape'): make()(torch.zeros(6))

@pytest.mark.parametrize('make', LAYERS)
@pytest.mark.parametrize('kind', [torch.long, torch.float64])
def test_integers_and_other_float_types_are_refused(make, kind):
    with pytest.raises(TypeError, match='floats'):
        make()(torch.zeros(4, 6, 4, 4, dtype=kind))

def test_layer_norm_names_the_shape_that_it_expects():
    with pytest.raises(ValueError, match='shape'): LayerNorm((4, 3))(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match='shape'): LayerNorm(5)(torch.zeros(()))
    with pytest.raises(ValueError, match='shape'): LayerNorm(())(torch.zeros(2, 3))

@pytest.mark.parametrize('call, error, message', [
    (lambda: BatchNorm(2.), TypeError, 'float'), (lambda: GroupNorm(3, 8), ValueError, 'divisible'),
    (lambda: LayerNorm('ab'), TypeError, 'str')])
def test_bad_settings_are_refused(call, error, message):
    with pytest.raises(error, match=message): call()
