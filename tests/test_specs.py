"""What is registered, and a network of PyTorch's layers and ours, is written as names and arguments and made
again; a file names nothing else."""
import inspect, json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.core import save_state
from exp.layers import GeneralRelu, Lambda, conv_layer
from exp.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RunningBatchNorm
from exp.regularization import Dropout
from exp.specs import from_spec, of_torch, register, to_spec


# ---------------------------------------------------------------- specs

GIVEN = {   # arguments of layers that need other than those below
    'MultiheadAttention': [dict(embed_dim=8, num_heads=2, bias=False, add_bias_kv=True,
                                add_zero_attn=True, kdim=6, vdim=4, batch_first=True, dropout=.1),
                           dict(embed_dim=8, num_heads=2)],
    'RNN': [dict(input_size=3, hidden_size=4, num_layers=2, nonlinearity='relu', bias=False, dropout=.2)],
    'GRU': [dict(input_size=3, hidden_size=4)],
    'LSTM': [dict(input_size=3, hidden_size=4, proj_size=2, bidirectional=True, batch_first=True)],
    'TransformerEncoderLayer': [dict(d_model=8, nhead=2, dim_feedforward=16, dropout=.3, activation=F.gelu,
                                     layer_norm_eps=1e-3, batch_first=True, norm_first=True, bias=False),
                                dict(d_model=8, nhead=2, activation=nn.SiLU())],
    'TransformerDecoderLayer': [dict(d_model=8, nhead=2, dim_feedforward=16, dropout=.3)],
    'TransformerEncoder': [dict(encoder_layer=nn.TransformerEncoderLayer(8, 2, batch_first=True),
                                num_layers=2, norm=nn.LayerNorm(8))],
    'TransformerDecoder': [dict(decoder_layer=nn.TransformerDecoderLayer(8, 2), num_layers=2)],
    'Transformer': [dict(d_model=8, nhead=2, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=8,
                         batch_first=True)],
    'AdaptiveLogSoftmaxWithLoss': [dict(in_features=8, n_classes=20, cutoffs=[5, 10], head_bias=True)],
    'PairwiseDistance': [dict(p=3.)],
    'Upsample': [dict(scale_factor=2, mode='bilinear', align_corners=True), dict(size=(3, 4))],
    'FractionalMaxPool2d': [dict(kernel_size=2, output_ratio=.5)],
    'FractionalMaxPool3d': [dict(kernel_size=2, output_size=(3, 3, 3))],
    'TripletMarginWithDistanceLoss': [dict(distance_function=F.pairwise_distance, margin=2.)],
    'CrossEntropyLoss': [dict(weight=torch.ones(3), label_smoothing=.1, ignore_index=-1)],
    'BCEWithLogitsLoss': [dict(pos_weight=torch.ones(2))],
    'Embedding': [dict(num_embeddings=5, embedding_dim=3, padding_idx=0, max_norm=1.)],
    'EmbeddingBag': [dict(num_embeddings=5, embedding_dim=3, mode='sum', include_last_offset=True)],
    'Conv2d': [dict(in_channels=4, out_channels=8, kernel_size=3, stride=2, groups=2,
                    bias=False, padding_mode='reflect'),
               dict(in_channels=4, out_channels=8, kernel_size=(3, 1), padding='same')],
    'LayerNorm': [dict(normalized_shape=(3, 4), bias=False),
                  dict(normalized_shape=3, elementwise_affine=False)],
    'Hardtanh': [dict(min_val=-2., max_val=3., inplace=True)],
    'GroupNorm': [dict(num_groups=2, num_channels=4, affine=False)],
    'PReLU': [dict(num_parameters=3, init=.1)], 'CircularPad2d': [dict(padding=(1, 2, 3, 4))],
    'BatchNorm2d': [dict(num_features=3, momentum=None, eps=.1, affine=False, track_running_stats=False)],
}
USUAL = dict(num_features=3, in_channels=4, out_channels=4, kernel_size=2, in_features=3, out_features=4,
             in1_features=2, in2_features=3, normalized_shape=4, num_channels=4, num_groups=2,
             output_size=3, padding=1, value=.5, threshold=.1, hidden_size=4, input_size=3, groups=2,
             upscale_factor=2, downscale_factor=2, norm_type=2, dim=1, unflattened_size=(1, 3), num_classes=3,
             size=3)
NOT_ALONE = ('Module', 'ParameterList', 'ParameterDict', 'Container', 'RNNBase', 'RNNCellBase', 'NLLLoss2d',
             'Softmax2d')

def layers():
    for name, kind in of_torch().items():
        short = name.rpartition('.')[2]
        if not isinstance(kind, type) or short in NOT_ALONE or short.startswith('Lazy'): continue
        needed = [k for k, p in inspect.signature(kind).parameters.items() if p.default is p.empty
                  and p.kind == p.POSITIONAL_OR_KEYWORD]
        for given in GIVEN.get(short, [{k: USUAL[k] for k in needed if k in USUAL}]): yield short, given

def outline(m):
    return repr(m), {k: tuple(v.shape)
                     for k, v in m.state_dict().items()}, [k for k, _ in m.named_parameters()], {
        k: v for k, v in vars(m).items() if isinstance(v, (int, float, str, tuple))}

@pytest.mark.filterwarnings('ignore')
def test_every_layer_of_pytorch_is_made_again():
    cases = list(layers())
    made = [(short, getattr(nn, short)(**given)) for short, given in cases]
    assert len(made) > 130
    assert [short for short, m in made if outline(from_spec(to_spec(m))) != outline(m)] == []

def shared():
    act, lin = nn.ReLU(), nn.Linear(3, 3)
    return nn.Sequential(lin, act, nn.Sequential(lin, act), nn.ModuleList([act]), lin)

def with_names():
    m = nn.Sequential()
    m.add_module('body', nn.ModuleDict({'a': nn.Linear(2, 2, bias=False), 'b': nn.Sequential()}))
    m.add_module('nothing', None)
    return m

@register
def doubled(x, by=2): return by*x

@register
class Around(nn.Module):
    "A layer around another."
    def __init__(self, inner, act=nn.ReLU):
        super().__init__()
        self.inner, self.act = inner, act()
    def forward(self, x): return x + self.act(self.inner(x))

NETWORKS = {
    'shared': shared, 'named': with_names,
    'conv_layer': lambda: conv_layer(3, 8, norm=BatchNorm, act=GeneralRelu),
    'general relu': lambda: nn.Sequential(GeneralRelu(0.1, 0.4, 6.)),
    'partial norm': lambda: conv_layer(3, 8, norm=partial(BatchNorm, mom=0.2, eps=1e-3),
                                       act=partial(nn.LeakyReLU, 0.1), act_first=False),
    'norms': lambda: nn.Sequential(BatchNorm(4), LayerNorm((4, 4)), InstanceNorm(4, affine=False),
                                   GroupNorm(2, 4), RunningBatchNorm(4), Dropout(0.2)),
    'lambda': lambda: nn.Sequential(Lambda(torch.flatten), Lambda(F.relu), Lambda(F.gelu), Lambda(doubled),
                                    Lambda(partial(doubled, by=3)), Lambda(partial(F.softmax, dim=1))),
    'around': lambda: nn.Sequential(Around(nn.Linear(3, 3)), Around(Around(conv_layer(3, 3)), nn.SiLU)),
}

@pytest.mark.parametrize('make', NETWORKS.values(), ids=NETWORKS)
def test_what_is_put_together_is_made_again(make, tmp_path):
    model = make()
    save_state(tmp_path/'spec.pth', to_spec(model))
    again = from_spec(torch.load(tmp_path/'spec.pth', weights_only=True))
    assert outline(again)[:3] == outline(model)[:3]
    again.load_state_dict(model.state_dict())

def test_a_layer_in_two_places_stays_one():
    again = from_spec(to_spec(shared()))
    assert again[0] is again[2][0] is again[4] and again[1] is again[2][1] is again[3][0]

@pytest.mark.parametrize('loss', [F.cross_entropy, partial(F.cross_entropy, label_smoothing=0.1), F.mse_loss,
                                  nn.L1Loss()],
                         ids=['cross_entropy', 'smoothed', 'mse_loss', 'L1Loss'])
def test_losses_of_pytorch_are_known(loss):
    again = from_spec(to_spec(loss))
    assert (repr(again) == repr(loss) if isinstance(loss, nn.Module)
            else (again is loss or again.func is loss.func))

@pytest.mark.parametrize('name', ['os.system', 'torch.load', 'torch.hub.load', 'torch.from_file',
                                  'torch.save', 'torch.nn.DataParallel', 'torch.nn.functional.importlib',
                                  'torch.nn.functional._x', 'torch.nn.init.ones_',
                                  'torch.nn.modules.Linear', 'builtins.eval', 'exp.core.environ',
                                  'torch.nn.functional.handle_torch_function', 'torch.nn.functional.torch',
                                  'torch.__import__'])
def test_a_file_names_nothing_else(name):
    for spec in ({'spec': name}, {'spec': name, 'args': {}}, {'spec': name, 'partial': {}},
                 {'spec': name, 'parts': {}}):
        with pytest.raises(ValueError, match='registered'): from_spec(spec)

# ---------------------------------------------------------------- names, arguments, owners

@register
class Box:
    def __init__(self, w, *sizes, name='box', child=None):
        self.w, self.sizes, self.name, self.child = w, sizes, name, child

@register
class NamedLinear(torch.nn.Linear):
    def __init__(self, n, bias=True): super().__init__(n, n, bias)

@register
class Options:
    def __init__(self, first=0, **rest): self.first, self.rest = first, rest

@register(name='triple')
def thrice(x, plus=0): return 3*x + plus

def through_json(o): return from_spec(json.loads(json.dumps(to_spec(o))))

def test_specs_survive_json_with_nested_objects_and_partials():
    b = through_json(Box(1, 2, 3, name='outer', child=Box(4, child=thrice)))
    assert (b.w, b.sizes, b.name, b.child.w, b.child.child) == (1, (2, 3), 'outer', 4, thrice)
    assert through_json(partial(thrice, plus=1))(2) == 7
    assert through_json(partial(thrice, 2))() == 6
    assert through_json(NamedLinear(3, bias=False)).bias is None
    o = through_json(Options(2, a=1, b=[2]))
    assert (o.first, o.rest) == (2, {'a': 1, 'b': [2]})

def test_a_subclass_of_a_registered_class_is_not_registered_itself():
    class Other(Box): pass
    with pytest.raises(TypeError, match='registered'): to_spec(Other(1))

def test_a_name_has_one_owner():
    with pytest.raises(ValueError, match='triple'):
        @register(name='triple')
        def other(x): return x

def test_a_definition_in_a_notebook_gives_way_to_a_module_and_may_take_a_name_over():
    def made_in(module):
        def sextuple(x): return 6*x
        sextuple.__module__ = module
        return sextuple
    for module in ('__main__', 'a_module', '__main__', '__main__'):
        latest = register(made_in(module))
        assert from_spec({'spec': 'sextuple'}) is latest
    register(made_in('a_module'))
    with pytest.raises(ValueError, match='a_module'):
        register(made_in('another_module'))

def test_an_argument_that_is_not_plain_is_refused():
    with pytest.raises(TypeError, match='registered'): to_spec(Box(object()))
