"""Norm layers under PyTorch's tools: state in buffers, a forward that may be run twice, base classes that
tools know, tracing and export."""
import copy, pickle

import pytest
import torch
from torch import fx, nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

from exp.core import test_close as close, test_eq as equal
from exp.dataloader import Dataset, make_data
from exp.layers import GeneralRelu, conv_layer
from exp.checkpoints import Checkpoint
from exp.learner import Learner
from exp.lsuv import lsuv_init
from exp.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RunningBatchNorm
from exp.regularization import Dropout

NORMS = {'batch': lambda nf=6, **kw: BatchNorm(nf, **kw),
         'running': lambda nf=6, **kw: RunningBatchNorm(nf, **kw),
         'instance': lambda nf=6, **kw: InstanceNorm(nf, **kw),
         'group': lambda nf=6, **kw: GroupNorm(2, nf, **kw),
         'layer': lambda nf=6, **kw: LayerNorm((nf, 6, 6), **kw)}
WITH_STATE = ['batch', 'running']
every, stateful = pytest.mark.parametrize('kind', list(NORMS)), pytest.mark.parametrize('kind', WITH_STATE)

def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)*2 + 1
BATCHES = [draw(bs, 3, 8, 8, seed=i) for i, bs in enumerate((2, 3, 2, 9, 33, 2))]

def network(kind, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3), NORMS[kind](), GeneralRelu(0.1, 0.5), Dropout(0.),
                         nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 2)).double()

def steps(model, call=None, batches=BATCHES):
    "The gradients of some training steps, and the state afterwards."
    grads = []
    for x in batches:
        model.zero_grad()
        x = x.clone().requires_grad_()
        (model if call is None else call)(x).pow(3).sum().backward()
        grads.append([x.grad, *(p.grad for p in model.parameters())])
    return grads, {name: b.double() for name, b in model.named_buffers()}

def same(a, b, tol=1e-8):
    for mine, theirs in zip(a[0], b[0]):
        for p, q in zip(mine, theirs): close(p/q.abs().max(), q/q.abs().max(), tol)
    for name, value in b[1].items():
        if 'num_batches' not in name: close(a[1][name], value, tol)

# State

@every
def test_all_that_changes_in_training_is_in_the_state_dict(kind):
    layer = NORMS[kind]()
    before = copy.deepcopy(vars(layer))
    layer(draw(4, 6, 6, 6).float())
    assert (set(layer.state_dict()) == {name
                                        for name, _ in (*layer.named_parameters(), *layer.named_buffers())})
    for name, value in vars(layer).items():
        if name not in ('_buffers', '_parameters'): equal(value, before[name])

@pytest.mark.slow
@every
@pytest.mark.parametrize('assign', [False, True])
def test_a_model_made_on_the_meta_device_and_loaded_is_the_one_that_was_saved(kind, assign):
    trained = network(kind)
    for x in BATCHES: trained(x)
    with torch.device('meta'): made = network(kind)
    assert all(t.is_meta for t in (*made.parameters(), *made.buffers()))
    if not assign: made = made.to_empty(device='cpu')
    made.load_state_dict(copy.deepcopy(trained.state_dict()), assign=assign)
    for model in (trained, made): model.eval()
    equal(made(BATCHES[0]), trained(BATCHES[0]))
    same(steps(made.train()), steps(trained.train()), 1e-12)   # nothing is left of stray memory

@stateful
@pytest.mark.parametrize('use_buffers', [False, True])
def test_an_averaged_model_has_the_mean_of_the_statistics(kind, use_buffers):
    model, states = network(kind), []
    averaged = AveragedModel(model, use_buffers=use_buffers)
    for x in BATCHES:
        model(x)
        averaged.update_parameters(model)
        states.append({name: b.clone() for name, b in model.named_buffers()})
    for name, b in averaged.module.named_buffers():
        if b.is_floating_point():
            close(b, torch.stack([s[name] for s in states]).mean(0) if use_buffers else states[-1][name],
                  1e-12)
    if not use_buffers:
        equal(averaged.module.eval()(x), model.eval()(x))
        equal(averaged.module.train()(x), model.train()(x))   # it goes on as the model does

@every
def test_stacked_models_under_vmap_are_the_models_one_by_one(kind):
    models = [network(kind, seed) for seed in range(3)]
    for i, m in enumerate(models):   # one has seen nothing, the others much
        for x in BATCHES[:2*i]: m(x)
    params, buffers = torch.func.stack_module_state([copy.deepcopy(m) for m in models])
    base = copy.deepcopy(models[0]).to('meta')
    def call(params, buffers, x): return torch.func.functional_call(base, (params, buffers), (x,))
    for x in BATCHES:
        close(torch.vmap(call, (0, 0, None))(params, buffers, x), torch.stack([m(x) for m in models]), 1e-10)
    for m in (base, *models): m.eval()
    close(torch.vmap(call, (0, 0, None))(params, buffers, x), torch.stack([m(x) for m in models]), 1e-10)

def older(state):
    "A state dict as it was when counts and items were one `_extra_state`."
    state = dict(state)
    for name in [k[:-len('counts')] for k in state if k.endswith('counts')]:
        state[name + '_extra_state'] = torch.cat([state.pop(name + 'counts'),
                                                  state.pop(name + 'items')]).double()
    return state

@pytest.mark.parametrize('assign', [False, True])
def test_older_state_dicts_are_read(assign):
    trained, again = network('running'), network('running', 1)
    for x in BATCHES: trained(x)
    state = older(trained.state_dict())
    assert '1._extra_state' in state and '1.counts' not in state
    again.load_state_dict(copy.deepcopy(state), assign=assign)
    equal(again(x), trained(x))
    equal(again.state_dict(), trained.state_dict())

def test_the_learners_older_files_are_read(tmp_path):
    from exp.core import load_state, save_state
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    data = make_data(Dataset(x, (x[:, 0] > 0).long()), Dataset(x, (x[:, 0] > 0).long()), bs=8, seed=0)
    def learner(*cbs):
        torch.manual_seed(0)
        return Learner(data, nn.Sequential(nn.Linear(6, 6), RunningBatchNorm(6), nn.Linear(6, 2)), lr=0.1,
                       path=tmp_path, cbs=[*cbs])
    learn = learner(Checkpoint(tmp_path/'fit.pth'))
    learn.fit(2)
    learn.save('weights')
    for name in ('fit.pth', 'weights.pth'):
        state = load_state(tmp_path/name)
        state['model'] = older(state['model'])
        if 'hidden' in state: state['hidden'] = {'1.zero': torch.zeros(6)}
        save_state(tmp_path/name, state)
    again = learner()
    again.load('weights')
    equal(again.model.state_dict(), learn.model.state_dict())
    again = learner()
    again.fit(2, resume=tmp_path/'fit.pth')
    equal(again.model.state_dict(), learn.model.state_dict())


# A forward that may be run twice

@pytest.mark.parametrize('kind', ['instance', 'group', 'layer', 'batch'])
def test_a_checkpoint_changes_no_gradient_of_the_other_norms(kind):
    model = network(kind)
    same((steps(model, lambda x: checkpoint(model, x, use_reentrant=False))[0], {}),
         (steps(network(kind))[0], {}))

@pytest.mark.slow
@every
def test_compiled_without_a_break_it_has_the_same_gradients_and_statistics(kind):
    torch._dynamo.reset()
    # the second is compiled for any size
    ours, theirs, batches = NORMS[kind]().double(), NORMS[kind]().double(), [draw(bs, 6, 6, 6, seed=bs)
                                                                             for bs in (2, 9, 3)]
    same(steps(ours, torch.compile(ours, backend='aot_eager', fullgraph=True), batches),
         steps(theirs, None, batches))

def test_the_second_derivative_is_that_of_finite_differences():
    layer = RunningBatchNorm(2).double()
    layer(draw(5, 2, 3))
    def f(x): return copy.deepcopy(layer)(x)
    assert torch.autograd.gradgradcheck(f, [draw(3, 2, 3, seed=1).requires_grad_()])


# What tools ask of norms

CLASSES = {'batch': nn.modules.batchnorm._BatchNorm, 'running': nn.modules.batchnorm._BatchNorm,
           'instance': nn.modules.instancenorm._InstanceNorm,
           'group': nn.GroupNorm, 'layer': nn.LayerNorm}
THEIRS = {'batch': nn.BatchNorm2d(6), 'running': nn.BatchNorm2d(6),
          'instance': nn.InstanceNorm2d(6, affine=True), 'group': nn.GroupNorm(2, 6),
          'layer': nn.LayerNorm((6, 6, 6))}

@every
def test_it_is_an_instance_of_pytorchs_class_with_its_attributes(kind):
    layer = NORMS[kind]()
    assert isinstance(layer, CLASSES[kind])
    for name in CLASSES[kind].__constants__: assert getattr(layer, name) == getattr(THEIRS[kind], name), name

@every
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_device_and_type_may_be_given(kind, dtype):
    layer = NORMS[kind](eps=1e-3, device='meta', dtype=dtype)
    for t in (*layer.parameters(), *layer.buffers()):
        assert t.is_meta and (t.dtype == dtype or not t.is_floating_point())
    assert layer.eps == 1e-3
    assert NORMS[kind](dtype=torch.float64)(draw(4, 6, 6, 6)).dtype == torch.float64

@every
def test_reset_parameters_makes_it_new(kind):
    layer = NORMS[kind]()
    with torch.no_grad():
        for p in layer.parameters(): p.normal_()
    layer(draw(4, 6, 6, 6).float())
    layer.reset_parameters()
    equal(layer.state_dict(), NORMS[kind]().state_dict())

@every
def test_without_a_scale_it_equals_pytorchs(kind):
    name = 'elementwise_affine' if kind == 'layer' else 'affine'
    layer, x = NORMS[kind](**{name: False}).double(), draw(4, 6, 6, 6)
    assert not list(layer.parameters()) and getattr(layer, name) is False
    close(layer(x), NORMS[kind]().double()(x), 1e-12)

def test_layer_norm_without_a_bias():
    layer, theirs = (make((6, 6, 6), bias=False).double() for make in (LayerNorm, nn.LayerNorm))
    assert list(layer.state_dict()) == ['weight']
    close(layer(draw(4, 6, 6, 6)), theirs(draw(4, 6, 6, 6)), 1e-10)

@pytest.mark.parametrize('track', [True, False])
def test_batch_norm_without_momentum_or_tracking_is_pytorchs(track):
    ours, theirs = BatchNorm(6, mom=None, track_running_stats=track).double(), nn.BatchNorm2d(
        6, momentum=None, track_running_stats=track).double()
    for train in (True, False):
        for layer in (ours, theirs): layer.train(train)
        for i in range(3): close(ours(draw(4, 6, 3, 3, seed=i)), theirs(draw(4, 6, 3, 3, seed=i)), 1e-10)
    for name, value in theirs.state_dict().items():
        close(ours.state_dict()[name].double(), value.double(), 1e-10)

def test_update_bn_gives_the_statistics_of_all_items():
    x = draw(40, 6)
    ours, theirs, running = (nn.Sequential(layer.double())
                             for layer in (BatchNorm(6), nn.BatchNorm1d(6), RunningBatchNorm(6)))
    for model in (ours, theirs, running):
        model(draw(8, 6, seed=1)*50)
        update_bn(x.split(10), model)
    equal(ours[0].momentum, 0.1)
    for name in ('running_mean', 'running_var', 'num_batches_tracked'):
        close(getattr(ours[0], name).double(), getattr(theirs[0], name).double(), 1e-10)
    close(running[0].running_mean, x.mean(0), 1e-10)
    close(running[0].running_var, x.var(0, correction=0), 1e-10)

def test_batch_norm_becomes_sync_batch_norm_and_running_batch_norm_does_not():
    model = nn.Sequential(BatchNorm(6, mom=0.3))
    model(draw(4, 6, 3).float())
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(synced[0]) is nn.SyncBatchNorm and synced[0].momentum == 0.3
    equal(synced.state_dict(), model.state_dict())
    with pytest.raises(AttributeError, match='RunningBatchNorm'):
        nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(RunningBatchNorm(6)))

@stateful
def test_statistics_that_are_not_tracked_stay(kind):   # as Lightning's BaseFinetuning freezes
    layer, theirs = NORMS[kind]().double(), nn.BatchNorm2d(6).double()
    for m in (layer, theirs):
        m(draw(4, 6, 3, 3))
        m.track_running_stats = False
    before = copy.deepcopy(layer.state_dict())
    y, want = layer(draw(4, 6, 3, 3, seed=1)), theirs(draw(4, 6, 3, 3, seed=1))
    equal(layer.state_dict(), before)
    if kind == 'batch': close(y, want, 1e-10)

def test_lightning_freezes_and_frees_our_batch_norms():
    finetuning = pytest.importorskip('pytorch_lightning.callbacks').BaseFinetuning
    for kind in WITH_STATE:
        model = network(kind)
        finetuning.freeze(model, train_bn=True)
        assert ([p.requires_grad for p in model[1].parameters()] == [True, True]
                and not model[0].weight.requires_grad)
        finetuning.freeze(model, train_bn=False)
        assert not model[1].weight.requires_grad and not model[1].track_running_stats

@pytest.mark.slow
@every
@pytest.mark.parametrize('train', [True, False])
def test_a_traced_model_goes_on_as_the_model_does(kind, train):
    model = network(kind).train(train)
    if not train: model(BATCHES[0])
    traced = fx.symbolic_trace(copy.deepcopy(model))
    same(steps(traced), steps(model))
    # the numbers are the module's, not the graph's
    new = {name: t + 1 for name, t in model.state_dict().items() if name != '2.sub'}
    for m in (traced, model): m.load_state_dict(new, strict=False)
    close(traced(BATCHES[0]), model(BATCHES[0]), 1e-10)
    equal(len(pickle.dumps(traced)) > 0, True)

@pytest.mark.parametrize('p', [0.3, 1.])
def test_a_traced_dropout_draws_anew_in_each_pass(p):
    model, x = nn.Sequential(nn.Linear(4, 5), Dropout(p)), torch.randn(8, 4)
    traced = fx.symbolic_trace(model)
    for seed in (1, 2):
        torch.manual_seed(seed)
        want = model(x)
        torch.manual_seed(seed)
        equal(traced(x), want)

@every
def test_a_traced_model_refuses_what_the_model_refuses(kind):
    with pytest.raises(ValueError, match='shape'):
        fx.symbolic_trace(nn.Sequential(NORMS[kind]()))(torch.zeros(4, 5, 7, 7))

@pytest.mark.slow
@every
def test_it_is_exported_with_a_batch_of_any_size(kind):
    model = network(kind).eval()
    exported = torch.export.export(model, (BATCHES[1],),
                                   dynamic_shapes=({0: torch.export.Dim('n', min=2, max=1000)},)).module()
    for x in BATCHES: close(exported(x), model(x), 1e-10)

@every
def test_the_learner_freezes_it_and_lsuv_leaves_it(kind):
    class Mine(type(NORMS[kind]())): "A class of another name."
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = network(kind).float()
    model[1].__class__ = Mine
    data = make_data(Dataset(x, x[:, 0, 0, 0].gt(0).long()), None, bs=8, seed=0)
    learn = Learner(data, model, lr=0.1,
                    splitter=lambda m: [list(m[:4].parameters()), list(m[4:].parameters())])
    learn.freeze()
    assert ([p.requires_grad for p in model[1].parameters()] == [True, True]
            and not model[0].weight.requires_grad)
    learn.freeze(train_bn=False)
    before = copy.deepcopy(model[1].state_dict())
    learn.fit(1)
    equal(model[1].state_dict(), before)
    weights = model[1].weight.detach().clone()
    lsuv_init(conv := nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3), model[1]), nn.Flatten(),
                                    nn.Linear(216, 2)), x)
    equal(conv[0][1].weight, weights)

def test_blocks_with_norms_start_right():
    block = conv_layer(3, 6, norm=BatchNorm)
    assert block.conv.bias is None and isinstance(block.norm, nn.modules.batchnorm._BatchNorm)

@pytest.mark.parametrize('use_reentrant', [False, True])
def test_a_checkpoint_changes_neither_gradients_nor_statistics(use_reentrant):
    model = network('running')
    same(steps(model, lambda x: checkpoint(model, x, use_reentrant=use_reentrant)), steps(network('running')))
