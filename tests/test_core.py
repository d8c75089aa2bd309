"""Claims, settings and devices, helpers, files and reports."""
import json, os, pickle, stat, subprocess, sys, warnings
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from exp.core import *

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
    with pytest.raises(AssertionError, match=r'\(3,\)'):
        test_close(torch.zeros(4), torch.tensor([0, 1., 0, 2.]))
    with pytest.raises(AssertionError, match='shape'): test_close(torch.zeros(4), torch.zeros(2, 2))
    with pytest.raises(AssertionError, match='nan'):
        test_close(torch.tensor([0., float('nan')]), torch.zeros(2))

def test_expect_error_lets_another_kind_of_error_through():
    with pytest.raises(KeyError):
        with expect_error(ValueError): {}['x']

@pytest.mark.parametrize('name, cutoff, end', [('sead', 0.6, "; did you mean 'seed'?"), ('sead', 0.99, ''),
                                               ('xyz', 0.6, '')])
def test_a_near_name_is_suggested_and_no_far_one(name, cutoff, end):
    assert did_you_mean(name, ['device', 'seed'], cutoff) == end

def test_checks_return_pythons_own_types():
    n, f, b = check_int(n=np.int64(3)), check_real(f=torch.tensor(0.5)), check_bool(b=np.True_)
    assert [n, f, b] == [3, 0.5, True] and [type(v) for v in (n, f, b)] == [int, float, bool]
    assert check_int(least=0, a=1, b=0) == [1, 0] and check_choice(('min', None), mode=None) is None

@pytest.mark.parametrize('check, error', [
    (lambda: check_int(least=1, width=0), ValueError), (lambda: check_int(width=1.5), TypeError),
    (lambda: check_real(least=0, most=1, width=2), ValueError), (lambda: check_real(width='1'), TypeError),
    (lambda: check_bool(width=1), TypeError), (lambda: check_choice(('min', 'max'), width='mim'), ValueError),
    (lambda: check_choice(('min', 'max'), width=3), TypeError)])
def test_a_check_names_what_it_refuses(check, error):
    with pytest.raises(error, match='width'): check()

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
        with environ(**how), pytest.raises(ValueError, match=device):
            default_device()

def test_settings_have_their_types_and_cannot_be_changed():
    s = settings()
    assert isinstance(s, Settings)
    assert [type(v) for v in (s.seed, s.threads, s.data_mirror)] == [int, int, tuple]
    with pytest.raises(AttributeError): s.seed = 1

def test_each_device_that_is_named_is_there_and_the_cpu_comes_last():
    assert available_devices()[-1] == 'cpu'
    for name in available_devices():
        assert torch.zeros(1, device=name).device == torch.device(name)
        with environ(EXP_DEVICE=name): assert default_device() == torch.device(name)

def test_the_checkouts_own_settings_file_is_read(root):
    assert checkout() == root
    assert settings().seed == 42 and settings().device == 'auto'

@pytest.mark.parametrize('text,message', [
    ('[exp]\nseeed = 1\n', "'seed'"), ('[exp]\nzzz = 1\n', 'zzz'),
    ('[expp]\nseed = 1\n', 'section'),
    ('seed = 1\n', 'section'), ('[exp]\nseed = -3\n', 'seed'),
    ('[exp]\nthreads = two\n', 'threads')])
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

def test_a_tree_is_mapped_in_its_order_and_keeps_its_types():
    Pair = namedtuple('Pair', 'x y')
    tree = {'b': Pair(torch.ones(1), [torch.zeros(2), 'word']), 'a': (torch.full((3,), 2.), None)}
    assert [len(t) for t in tree_leaves(tree)] == [1, 2, 3]
    twice = tree_map(lambda t: 2*t, tree)
    assert type(twice['b']) is Pair and twice['b'].y[1] == 'word' and twice['a'][1] is None
    test_eq(tree_leaves(twice), [2*t for t in tree_leaves(tree)])

# ---- code helpers

@pytest.mark.parametrize('name, snake', [('Recorder', 'recorder'), ('AvgStats', 'avg_stats'),
                                         ('CSVLog', 'csv_log'), ('LRFinder', 'lr_finder'),
                                         ('ReduceLROnPlateau', 'reduce_lr_on_plateau'), ('a_b', 'a_b')])
def test_a_run_of_capitals_stays_one_word(name, snake): assert camel2snake(name) == snake

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
    with pytest.raises(ValueError, match='dimensions'): show_image(torch.rand(2))

@pytest.mark.parametrize('n, rows, cols, shape', [(5, None, None, (2, 3)), (4, 1, None, (1, 4)),
                                                  (7, None, 2, (4, 2)), (1, None, None, (1, 1))])
def test_a_grid_has_room_for_all_and_hides_the_rest(n, rows, cols, shape):
    import matplotlib.pyplot as plt
    fig, axs = get_grid(n, rows, cols, title='a grid')
    assert axs[0].get_gridspec().get_geometry() == shape and len(axs) == shape[0]*shape[1]
    assert [ax.axison for ax in axs] == [True]*n + [False]*(len(axs) - n)
    plt.close(fig)

# ---- files

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32'])
def test_an_encoding_is_known_by_the_first_bytes(encoding):
    raw = 'name,label\n'.encode(encoding)
    assert raw.decode(text_encoding(raw)) == 'name,label\n'

def test_clutter_is_what_systems_add_beside_peoples_own():
    assert all(map(is_clutter, ('._a.png', '.DS_Store', 'Thumbs.db', 'desktop.ini', '__MACOSX')))
    assert not any(map(is_clutter, ('a.png', '.hidden', '_a.png', 'DS_Store')))

def test_a_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path):
    path = tmp_path/'state.pth'
    save_state(path, {'a': torch.ones(2)})
    with pytest.raises(TypeError, match='function'): save_state(path, {'b': lambda: 1})
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

# ---- reports

def test_a_report_is_shown_and_appended(tmp_path):
    with environ(EXP_REPORT=str(tmp_path/'r.jsonl')):
        r = report('05', 'accuracy', 97.5, source=97, source_name='a paper')
        report('05', 'loss', 0.1, unit='', data='stand-in', source=3, higher_is_better=False)
    assert isinstance(r, Report) and '97.5 %' in repr(r)
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
    said = check_exercise('test.1', None)
    assert isinstance(said, Verdict) and said == repr(said) == 'test.1: not yet'

@pytest.mark.parametrize('name', ['EXP_NAME', 'EXP_DIR', 'EXP_ID', 'EXP_ROOT', 'EXP_PATH', 'EXP_LIBRARY_PATH',
                                  'EXP_MODE', 'EXP_TAG', 'EXP_VERSION', 'EXP_', 'EXP_LOG', 'exp_seed_x'])
def test_a_strangers_variable_is_silent(name):
    with environ(**{name: 'x'}), warnings.catch_warnings():
        warnings.simplefilter('error')
        settings()

@pytest.mark.launch
def test_the_library_is_imported_among_strangers():
    strangers = {f'EXP_{k}': 'x' for k in ('NAME', 'DIR', 'ID', 'ROOT', 'SEEED')}
    done = subprocess.run([sys.executable, '-c', 'import exp.core'], env={**os.environ, **strangers},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

@pytest.mark.parametrize('name', ['EXP_SEED', 'EXP_THREADS', 'EXP_DEVICE', 'EXP_DATA', 'EXP_SETTINGS'])
def test_an_empty_variable_is_as_none(name):
    with environ(**{name: None}): plain = settings()
    with environ(**{name: ''}): assert settings() == plain
