"""A network of PyTorch's layers and ours is written down and made again without help; files of compiled,
data-parallel and foreign trainings are read."""
import inspect, re
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.core import save_state, set_seed
from exp.specs import from_spec, of_torch, register, to_spec
from exp.dataloader import Dataset, make_data
from exp.layers import GeneralRelu, Lambda, conv_layer
from exp.inference import load_learner
from exp.learner import Learner
from exp.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RunningBatchNorm
from exp.progress import Progress
from exp.regularization import Dropout

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
        with pytest.raises(ValueError, match='nothing is registered'): from_spec(spec)

# ---------------------------------------------------------------- export

def readme_network(c=3):
    "The network of the README's example, from its own lines."
    text = (Path(__file__).parents[1]/'README.md').read_text(encoding='utf-8')
    lines = [line for line in text.splitlines() if re.match(r'(layers|model) = ', line)]
    names = dict(conv_layer=conv_layer, BatchNorm=BatchNorm, nn=nn, data=type('Data', (), {'c': c}))
    exec('\n'.join(lines), names)
    return names['model']

def image_learner(model, path, **k):
    x, y = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
    return Learner(make_data(Dataset(x, y), Dataset(x, y), bs=4), model, path=path, cbs=Progress(False), **k)

def test_the_readmes_network_is_read_back_without_help(tmp_path, recwarn):
    set_seed(1)
    learn = image_learner(readme_network(), tmp_path)
    learn.fit(1)
    again = load_learner(learn.export())
    assert not [w for w in recwarn if 'load_learner' in str(w.message)]
    x = learn.data.valid_ds.x[0]
    assert (torch.equal(again.predict(x).probs, learn.predict(x).probs)
            and repr(again.model) == repr(learn.model))

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 3)
    def forward(self, x): return self.lin(x.mean((2, 3)))

def tied():
    m = nn.Sequential(nn.Flatten(), nn.Linear(768, 768), nn.Linear(768, 768))
    m[2].weight = m[1].weight
    return m

def replaced():
    m = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Around(nn.Linear(3, 3)))
    m[2].inner = nn.Linear(3, 3, bias=False)
    return m

@pytest.mark.parametrize('make, word',
                         [(Own, 'Own'), (lambda: nn.Sequential(nn.Identity(), nn.Sequential(Own())), 'Own'),
                          (lambda: nn.Sequential(Lambda(lambda x: x.mean((2, 3)))), '<lambda>'),
                          (tied, 'Sequential'), (replaced, 'Sequential'),
                          (lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(
                              nn.Linear(768, 3))), 'ParametrizedLinear')],
                         ids=['own', 'inner', 'lambda', 'tied', 'replaced', 'parametrized'])
def test_export_says_what_load_learner_will_lack(make, word, tmp_path):
    learn = image_learner(make(), tmp_path)
    with pytest.warns(UserWarning, match=f'{word}.*model='): path = learn.export()
    with pytest.raises(ValueError, match='model=…'): load_learner(path)
    x = learn.data.valid_ds.x[0]
    assert torch.equal(load_learner(path, make()).predict(x).probs, learn.predict(x).probs)

def test_a_network_in_double_comes_back_in_double(tmp_path):
    learn = image_learner(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).double(),
                          tmp_path)
    again, x = load_learner(learn.export()), learn.data.valid_ds.x[0].double()
    assert (torch.equal(again.predict(x).probs, learn.predict(x).probs)
            and again.predict(x).probs.dtype == torch.float64)

# ---------------------------------------------------------------- names and holders of weights

class Wrapped(nn.Module):
    "As torch.compile and DataParallel name the model within."
    def __init__(self, name, model):
        super().__init__()
        self.add_module(name, model)

def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

def point_learner(model, path):
    x, y = torch.randn(12, 5), torch.arange(12) % 3
    return Learner(make_data(Dataset(x, y), Dataset(x, y), bs=4), model, path=path, cbs=Progress(False))

PREFIXES = {'plain': '', 'module': 'module.', 'compiled': '_orig_mod.', 'both': 'module._orig_mod.',
            'other way': '_orig_mod.module.'}
HOLDERS = {'bare': lambda s: s, 'state_dict': lambda s: {'epoch': 3, 'state_dict': s},
           'model': lambda s: {'model': s, 'args': [1]},
           'model_state_dict': lambda s: {'model_state_dict': s, 'opt': None},
           'twice': lambda s: {'model': {'state_dict': s}}}

@pytest.mark.parametrize('holder', HOLDERS)
@pytest.mark.parametrize('there', PREFIXES)
def test_weights_of_wrapped_models_are_read(there, holder, tmp_path):
    state = {PREFIXES[there] + k: v for k, v in small(1).state_dict().items()}
    torch.save(HOLDERS[holder](state), tmp_path/'theirs.pth')
    learn = point_learner(small(), tmp_path)
    assert learn.load('theirs') is learn
    assert all(torch.equal(a, b)
               for a, b in zip(learn.model.state_dict().values(), small(1).state_dict().values()))

@pytest.mark.parametrize('here', ['module', '_orig_mod'])
@pytest.mark.parametrize('there', PREFIXES)
def test_a_wrapped_model_reads_them_too(here, there, tmp_path):
    torch.save({PREFIXES[there] + k: v for k, v in small(1).state_dict().items()}, tmp_path/'theirs.pth')
    model = Wrapped(here, small())
    point_learner(model, tmp_path).load('theirs')
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), small(1).state_dict().values()))

def test_a_module_that_is_named_module_keeps_its_name(tmp_path):
    def make(seed): return nn.ModuleDict({'module': small(seed), 'other': small(seed + 1)})
    torch.save(make(5).state_dict(), tmp_path/'same.pth')
    model = make(0)
    point_learner(model, tmp_path).load('same')
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), make(5).state_dict().values()))

@pytest.mark.parametrize('wrap', [lambda m: torch.compile(m, backend='eager'), nn.DataParallel],
                         ids=['compile', 'data parallel'])
def test_our_own_files_of_wrapped_models_are_read(wrap, tmp_path):
    learn = point_learner(wrap(small(1)), tmp_path)
    _saved, exported = learn.save('wrapped'), learn.export('exported.pth')
    other = point_learner(small(), tmp_path).load('wrapped')
    x, right = learn.data.valid_ds.x[0], small(1).eval()
    for l in (other, load_learner(exported), load_learner(exported, small(3))):
        with torch.no_grad():
            assert torch.allclose(l.predict(x).probs, right(x[None]).softmax(1)[0], atol=1e-6)

def test_another_architecture_is_named_by_its_keys(tmp_path):
    torch.save({'state_dict': {'module.conv.weight': torch.ones(2)}}, tmp_path/'other.pth')
    with pytest.raises(ValueError, match='conv.weight is not'): point_learner(small(), tmp_path).load('other')

# ---------------------------------------------------------------- what fits

def test_load_takes_what_fits_and_names_the_rest(tmp_path):
    big = nn.Sequential(*small(1)[:2], nn.Linear(4, 7), nn.Linear(7, 2))
    learn = point_learner(big, tmp_path)
    learn.fit(0)
    learn.save('big')
    mine = point_learner(nn.Sequential(*small(2), nn.ReLU(), nn.PReLU()), tmp_path)
    before = {k: v.clone() for k, v in mine.model.state_dict().items()}
    with pytest.raises(ValueError, match='another architecture'): mine.load('big')
    differ = mine.load('big', strict=False)
    assert (differ.missing == ['4.weight'] and differ.unexpected == ['3.weight', '3.bias']
            and differ.mismatched == ['2.weight', '2.bias'])
    for k, v in mine.model.state_dict().items():
        assert torch.equal(v, before[k] if k in differ.missing + differ.mismatched else big.state_dict()[k])
    assert mine.epoch == 0 and not mine.fit(1)

def test_where_all_fits_not_strict_is_strict(tmp_path):
    learn = point_learner(small(1), tmp_path)
    learn.fit(2)
    learn.save('same')
    other = point_learner(small(), tmp_path)
    assert (other.load('same', strict=False) == ([], [], []) and other.epoch == 2
            and len(other.opt.state) == len(learn.opt.state))
    with pytest.raises(ValueError):
        (other.load('nothing', strict=False) if torch.save([1], tmp_path/'nothing.pth')
         else other.load('nothing', strict=False))

# ---------------------------------------------------------------- what is no item

@pytest.mark.parametrize('item', [torch.zeros(3, 5), torch.zeros(1, 5), torch.zeros(3, 5).numpy(),
                                  torch.zeros(3, 5).tolist(), (torch.zeros(3, 5),)],
                         ids=['tensor', 'one', 'array', 'list', 'tuple'])
@pytest.mark.parametrize('loaded', [False, True], ids=['trained', 'loaded'])
def test_a_batch_is_no_item(item, loaded, tmp_path):
    learn = point_learner(small(), tmp_path)
    if loaded: learn = load_learner(learn.export())
    with pytest.raises(ValueError, match='batch'): learn.predict(item)
    learn.predict(torch.zeros(5))

@pytest.mark.parametrize('item', ['words', None, {'a'}, object()], ids=['str', 'None', 'set', 'object'])
def test_what_is_no_array_is_no_item(item, tmp_path):
    with pytest.raises(TypeError, match='item'): point_learner(small(), tmp_path).predict(item)

@pytest.mark.parametrize('item', [['a.png'], None, 7, {'a': 1}, torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
                                  [torch.zeros(3, 8, 8)]], ids=lambda i: type(i).__name__)
def test_what_is_no_image_is_called_so_and_not_cut_short(item, tmp_path):
    from PIL import Image
    from exp.data_block import ImageList
    for part in ('train/a', 'train/b', 'valid/a', 'valid/b'):
        (tmp_path/part).mkdir(parents=True)
        Image.new('RGB', (9, 9), (len(part)*9, 9, 9)).save(tmp_path/part/'0.png')
    data = ImageList.from_folder(tmp_path).split_by_folder().label_from_folder().transform(size=8).databunch(
        2)
    learn = Learner(data, nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), cbs=Progress(False))
    with pytest.raises(TypeError, match='image') as e: learn.predict(item)
    assert 'cut short' not in str(e.value)
