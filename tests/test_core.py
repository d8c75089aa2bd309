import json, os, pickle, stat, subprocess, sys
from collections import namedtuple
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from exp.core import *
from exp.specs import from_spec, register, to_spec

# ---- claims

@pytest.mark.parametrize('a,b', [
    (torch.ones(3), torch.ones(1)), (torch.ones(2), torch.ones(2, 1)), ([1, 2], [1, 2, 3]),
    ({'x': 1}, {'y': 1}), ('a', 'b'), (1, 2),
    (torch.tensor([1., 2.]), np.array([1., 3.])), ([torch.ones(2)], [torch.zeros(2)]),
    (torch.tensor(float('nan')), torch.tensor(float('nan')))])
def test_what_differs_is_not_equal(a, b):
    with pytest.raises(AssertionError): test_eq(a, b)

@pytest.mark.parametrize('a,b', [(torch.ones(2), np.ones(2)), ((1, 2), [1, 2]), (None, None),
                                 ({'x': [torch.ones(1)]}, {'x': [torch.ones(1)]})])
def test_what_is_the_same_is_equal(a, b): test_eq(a, b)

@given(st.floats(-1e6, 1e6), st.floats(0, 1e-3))
def test_near_accepts_what_is_within_the_tolerance_and_nothing_much_further(x, tol):
    assert near(torch.tensor(x, dtype=torch.float64),
                torch.tensor(x + 0.9*tol*(1 + abs(x)), dtype=torch.float64), tol*1.01 + 1e-12)
    assert not near(torch.tensor(x, dtype=torch.float64),
                    torch.tensor(x + 3*(tol + 1e-9)*(1 + abs(x)), dtype=torch.float64), tol + 1e-9)

def test_a_failed_test_close_names_the_largest_gap():
    with pytest.raises(AssertionError, match='difference: 2.0 at index .3'):
        test_close(torch.zeros(4), torch.tensor([0, 1., 0, 2.]))
    with pytest.raises(AssertionError, match='shape'): test_close(torch.zeros(4), torch.zeros(2, 2))
    with pytest.raises(AssertionError, match='nan'):
        test_close(torch.tensor([0., float('nan')]), torch.zeros(2))

def test_expect_error_lets_another_kind_of_error_through():
    with pytest.raises(KeyError):
        with expect_error(ValueError): {}['x']

# ---- settings, devices

def settings_file(tmp_path, text):
    path = tmp_path/'settings.ini'
    path.write_text(text)
    return str(path)

def test_the_device_is_cpu_when_settings_ini_says_so(tmp_path):
    with environ(EXP_SETTINGS=settings_file(tmp_path, '[exp]\ndevice = cpu\n')):
        assert settings().device == 'cpu' and default_device() == torch.device('cpu')

def test_the_device_is_cpu_when_the_environment_says_so_whatever_the_file_says(tmp_path):
    with environ(EXP_SETTINGS=settings_file(tmp_path, '[exp]\ndevice = cuda:99\n'), EXP_DEVICE='cpu'):
        assert default_device() == torch.device('cpu')

@pytest.mark.parametrize('device', ['cuda:99', 'warp', 'cpu:7', 'cpu:-2', 'meta'])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(tmp_path, device):
    for how in (dict(EXP_DEVICE=device),
                dict(EXP_SETTINGS=settings_file(tmp_path, f'[exp]\ndevice = {device}\n'))):
        with environ(**how), pytest.raises(ValueError,
                                           match=f'{device}.*not on this machine; there are .*cpu'):
            default_device()

def test_the_checkouts_own_settings_file_is_read(root):
    assert checkout() == root
    assert settings().seed == 42 and settings().device == 'auto'

@pytest.mark.parametrize('text,message', [
    ('[exp]\nseeed = 1\n', "'seeed'.*did you mean 'seed'"), ('[exp]\nzzz = 1\n', "'zzz'.*'data'"),
    ('[expp]\nseed = 1\n', r'one section, \[exp\]'),
    ('seed = 1\n', 'one section'), ('[exp]\nseed = -3\n', 'seed should be a whole number'),
    ('[exp]\nthreads = two\n', 'threads should be a whole number')])
def test_a_wrong_settings_file_is_refused(tmp_path, text, message):
    with environ(EXP_SETTINGS=settings_file(tmp_path, text)), pytest.raises(ValueError, match=message):
        settings()

def test_a_settings_file_that_is_named_and_missing_is_refused(tmp_path):
    with environ(EXP_SETTINGS=str(tmp_path/'none.ini')), pytest.raises(FileNotFoundError, match='none.ini'):
        settings()

@pytest.mark.launch
def test_threads_are_applied_on_import():
    out = subprocess.run([sys.executable, '-c', 'import torch, exp.core; print(torch.get_num_threads())'],
                         env={**os.environ, 'EXP_THREADS': '1'}, capture_output=True, text=True)
    assert out.stdout.strip() == '1', out.stderr

def test_environ_is_restored_after_an_error():
    before = dict(os.environ)
    with pytest.raises(RuntimeError):
        with environ(EXP_SEED='1', HOME=None, NEW_ONE='x'): raise RuntimeError
    assert dict(os.environ) == before

def test_set_seed_takes_the_setting_and_repeats():
    with environ(EXP_SEED='5'): assert set_seed() == 5
    a = torch.rand(3), np.random.rand(3)
    set_seed(5)
    test_eq(a, (torch.rand(3), np.random.rand(3)))

def test_moving_keeps_the_structure():
    Pair = namedtuple('Pair', 'x y')
    moved = to_device(Pair(torch.ones(1), [{'a': torch.zeros(2), 'n': 3}, None]), 'cpu')
    assert type(moved) is Pair and moved.y[0]['n'] == 3 and moved.y[1] is None
    assert not to_cpu({'x': torch.ones(1, requires_grad=True)})['x'].requires_grad

# ---- code helpers

def test_patch_adds_to_each_class_of_a_union():
    class A: pass
    class B: pass
    def name(self: A|B): return type(self).__name__
    patch(name)
    assert (A().name(), B().name()) == ('A', 'B')

def test_patch_reads_an_annotation_written_as_a_string():
    def parity(self: 'ListContainer'): return len(self) % 2
    patch(parity)
    try: assert ListContainer([1]).parity() == 1
    finally: del ListContainer.parity

@given(st.lists(st.integers()), st.data())
def test_a_list_container_indexes_as_a_list_and_by_mask_and_places(items, data):
    c = ListContainer(items)
    test_eq(list(c), items)
    a, b = data.draw(st.integers(-12, 12)), data.draw(st.integers(-12, 12))
    assert c[a:b] == items[a:b]
    mask = data.draw(st.lists(st.booleans(), min_size=len(items), max_size=len(items)))
    assert c[mask] == [o for o, m in zip(items, mask) if m]
    assert c[np.array(mask, dtype=bool)] == c[torch.tensor(mask, dtype=torch.bool)] == c[mask]

def test_listify_takes_modules_and_data_frames_as_one_thing():
    import pandas as pd
    df = pd.DataFrame({'a': [1]})
    assert listify(df)[0] is df
    assert listify({1}) == [1] and listify(b'ab') == [b'ab'] and listify(0) == [0]

def test_compose_keeps_the_order_of_equals():
    assert compose(1, [lambda x, k: x + k, lambda x, k: x * k], 3) == 12

# ---- pictures

@pytest.mark.parametrize('im', [torch.rand(3, 8, 6), torch.rand(1, 8, 6), torch.rand(8, 6),
                                np.zeros((8, 6, 3)), Image.new('RGB', (6, 8)), Image.new('L', (6, 8)),
                                torch.randint(0, 256, (3, 8, 6), dtype=torch.uint8)])
def test_show_image_takes_tensors_arrays_and_pil_images(im):
    import matplotlib.pyplot as plt
    ax = show_image(im)
    assert ax.images[0].get_array().shape[:2] == (8, 6)
    plt.close(ax.figure)

def test_show_images_wants_a_title_for_each():
    with pytest.raises(ValueError, match='shorter'): show_images([torch.rand(3, 3)]*2, titles=['a'])
    with pytest.raises(ValueError, match='2 or 3 dimensions'): show_image(torch.rand(2))

# ---- files

def test_a_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path):
    path = tmp_path/'state.pth'
    save_state(path, {'a': torch.ones(2)})
    with pytest.raises(TypeError, match=r"state\['b'\] is a function"): save_state(path, {'b': lambda: 1})
    def fail(*_): raise OSError(28, 'No space left on device')
    with pytest.MonkeyPatch.context() as m:
        m.setattr(torch, 'save', fail)
        with pytest.raises(OSError): save_state(path, {'a': torch.zeros(2)})
    assert os.listdir(tmp_path) == ['state.pth']
    test_eq(load_state(path), {'a': torch.ones(2)})

@pytest.mark.skipif(os.name == 'nt', reason='no POSIX modes')
def test_a_finished_file_has_the_usual_rights(tmp_path):
    (tmp_path/'plain').touch()
    with atomic_path(tmp_path/'atomic') as p: p.write_text('x')
    assert stat.S_IMODE((tmp_path/'atomic').stat().st_mode) == stat.S_IMODE((tmp_path/'plain').stat().st_mode)

def test_whatever_is_saved_can_be_loaded(tmp_path):
    state = {'t': torch.rand(2, 3).half(), 'n': 3, 'f': 0.5, 's': 'x', 'b': b'x', 'none': None,
             'l': [1, (2, 3), {'k': True}], 1: 'int key',
             'dtype': torch.float16, 'size': torch.Size([2]),
             'opt': torch.optim.Adam(torch.nn.Linear(2, 2).parameters()).state_dict()}
    save_state(tmp_path/'s', state)
    test_eq(load_state(tmp_path/'s'), state)

def test_a_hostile_pickle_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'sprung'),)
    torch.save(Trap(), tmp_path/'a')
    (tmp_path/'b').write_bytes(pickle.dumps(Trap()))
    for name in 'ab':
        with pytest.raises(ValueError, match='refused'): load_state(tmp_path/name)
    assert not (tmp_path/'sprung').exists()

@pytest.mark.parametrize('keep', [0, 10, 200, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, keep):
    save_state(tmp_path/'s', {'t': torch.rand(100)})
    raw = (tmp_path/'s').read_bytes()
    (tmp_path/'s').write_bytes(raw[:int(keep*len(raw)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=str(tmp_path/'s').replace('\\', r'\\')): load_state(tmp_path/'s')

def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'): load_state(tmp_path/'nowhere.pth')

# ---- specs

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
    with pytest.raises(TypeError, match='no registered name'): to_spec(Other(1))

def test_a_name_has_one_owner():
    with pytest.raises(ValueError, match="'triple' is taken"):
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
    with pytest.raises(ValueError, match="'sextuple' is taken by a_module"):
        register(made_in('another_module'))

def test_an_argument_that_is_not_plain_is_refused():
    with pytest.raises(TypeError, match='no registered name'): to_spec(Box(object()))

# ---- reports

def test_a_report_is_shown_and_appended(tmp_path):
    with environ(EXP_REPORT=str(tmp_path/'r.jsonl')):
        r = report('05', 'accuracy', 97.5, source=97, source_name='a paper')
        report('05', 'loss', 0.1, unit='', data='stand-in', source=3, higher_is_better=False)
    first, second = map(json.loads, (tmp_path/'r.jsonl').read_text().splitlines())
    assert first['value'] == 97.5 and first['source'] == 97 and '97 % (a paper)' in r._repr_markdown_()
    assert second['source'] is None and second['higher_is_better'] is False

@pytest.mark.slow
def test_a_saved_state_that_was_cut_short_anywhere_is_refused(tmp_path):
    whole, cut = tmp_path/'whole.pth', tmp_path/'cut.pth'
    save_state(whole, {'a': torch.randn(100, 50), 'b': [1, 'two', None]})
    data = whole.read_bytes()
    for n in range(0, len(data), 97):
        cut.write_bytes(data[:n])
        with pytest.raises(ValueError, match='cut.pth'): load_state(cut)

def test_a_check_that_fails_says_how():
    @exercise('test.1')
    def check(answer): return answer(1)/0
    assert 'raised ZeroDivisionError' in check_exercise('test.1', lambda x: x)
    assert check_exercise('test.1', None) == 'test.1: not yet'
