"""Bars, the table, the plot and the log: in a terminal, a notebook and a file, under errors, and at a small
cost."""
import csv, io, json, math, os, re, subprocess, sys, threading, warnings
from types import SimpleNamespace

import hypothesis.strategies as st
import pandas as pd
import pytest
import torch
from hypothesis import given, settings as hypothesis_settings
from torch import nn

from exp import progress
from exp.callbacks import (AvgStats, Callback, CancelEpochException, CancelFitException, Recorder, Runner,
                           smoothed)
from exp.core import load_state, save_state
from exp.dataloader import DataBunch, DataLoader, Dataset
from exp.metrics import accuracy
from exp.progress import CSVLog, Progress, progress_bar, quiet

class Terminal(io.StringIO):
    encoding = 'utf-8'
    def isatty(self): return True

def screen(text):
    "The lines that a terminal shows after `text`."
    lines, row, at = [''], 0, 0
    for c in text.replace('\r\n', '\n').replace('\x1b[A', '\v'):
        if c == '\n': row, at = row + 1, 0
        elif c == '\r': at = 0
        elif c == '\v': row -= 1
        else: lines[row], at = lines[row].ljust(at)[:at] + c + lines[row][at + 1:], at + 1
        if row == len(lines): lines.append('')
    return [l.rstrip() for l in lines if l.strip()]

def set_streams(monkeypatch, out, err):
    "The standard streams that `exp.progress` sees; pytest sets the real ones anew for each phase of a test."
    monkeypatch.setattr(progress, 'sys', SimpleNamespace(stdout=out, stderr=err, modules=sys.modules))

@pytest.fixture
def terminal(monkeypatch):
    "A terminal in place of the standard streams, and drawings without a pause."
    t = Terminal()
    set_streams(monkeypatch, t, t)
    monkeypatch.setattr(progress, '_FIRST', 0.)
    monkeypatch.setattr(progress, '_next', lambda start, end: end)
    return t

def loaders(n=40, bs=4):
    torch.manual_seed(0)
    x = torch.randn(n, 3)
    dl = DataLoader(Dataset(x, (x.sum(1) > 0).long()), bs)
    return dl, dl

def new_run(*cbs, data=None, stats=True):
    return Runner(data or loaders(), nn.Linear(3, 2), lr=0.1,
                  cbs=[*([AvgStats(accuracy)] if stats else []), *cbs])
def first_words(lines): return [l.split()[0] for l in lines]

class At(Callback):
    "Calls `f(run)` at one batch of one epoch, after the bars were drawn."
    order = 90
    def __init__(self, epoch, batch, f, train=True): self.place, self.f = (epoch, batch, train), f
    def after_batch(self):
        if (self.epoch, self.iter, self.in_train) == self.place: self.f(self.run)

def throw(e):
    def f(run): raise e
    return f

# ---- in a terminal

def test_in_the_middle_there_are_rows_and_two_bars(terminal):
    seen = []
    new_run(Progress(), At(1, 5, lambda run: seen.extend(screen(terminal.getvalue())))).fit(2)
    assert first_words(seen) == ['epoch', '0', 'epoch', 'training']
    assert '6/10' in seen[3] and 'loss' in seen[3] and ' 65%|' in seen[2]   # 10 + 10 + 6 of 40 batches
    seen.clear()
    new_run(Progress(), At(1, 5, lambda run: seen.extend(screen(terminal.getvalue())), train=False)).fit(2)
    assert seen[-1].startswith('validation') and '6/10' in seen[-1] and ' 90%|' in seen[-2]   # 30 + 6 of 40

def test_at_the_end_there_are_only_the_rows_and_they_are_aligned(terminal):
    new_run(Progress()).fit(3)
    lines = screen(terminal.getvalue())
    assert first_words(lines) == ['epoch', '0', '1', '2'] and len({len(l) for l in lines}) == 1

@pytest.mark.parametrize('error', [CancelFitException(), ValueError('bad'), KeyboardInterrupt()])
@pytest.mark.parametrize('train', [True, False])
def test_a_fit_that_ends_early_leaves_its_rows_and_no_bar(terminal, error, train):
    run = new_run(Progress(), At(1, 5, throw(error), train))
    try: run.fit(3)
    except (ValueError, KeyboardInterrupt): pass
    assert first_words(screen(terminal.getvalue())) == ['epoch', '0']
    assert not [b for b in progress.tqdm._instances if not b.disable]

def test_a_callback_that_fails_before_the_fit_leaves_nothing(terminal):
    class Bad(Callback):
        order = 99
        def before_fit(self): raise ValueError('bad')
    with pytest.raises(ValueError): new_run(Progress(), Bad()).fit(1)
    assert not screen(terminal.getvalue())

def test_an_epoch_that_is_cancelled_has_the_row_that_the_history_has(terminal):
    run = new_run(Progress(), At(1, 5, throw(CancelEpochException())))
    run.fit(3)
    assert first_words(screen(terminal.getvalue()))[1:] == [str(r['epoch']) for r in run.avg_stats.history]

def test_without_stats_there_are_bars_and_no_table(terminal):
    seen = []
    new_run(Progress(), At(0, 5, lambda run: seen.extend(screen(terminal.getvalue()))), stats=False).fit(1)
    assert first_words(seen) == ['epoch', 'training'] and not screen(terminal.getvalue())

@pytest.mark.parametrize('kw, middle', [(dict(bars=False), ['epoch', '0']),
                                        (dict(table=False), ['epoch', 'training']), (dict(show=False), [])])
def test_each_switch_turns_off_its_part(terminal, kw, middle):
    seen = []
    new_run(Progress(**kw), At(1, 5, lambda run: seen.extend(screen(terminal.getvalue())))).fit(2)
    assert first_words(seen) == middle

def test_each_fit_of_one_callback_has_its_own_table(terminal):
    run = new_run(Progress())
    run.fit(2)
    run.fit(1)
    assert first_words(screen(terminal.getvalue())) == ['epoch', '0', '1', 'epoch', '2']
    assert [r['epoch'] for r in run.progress.rows] == [2]

def test_without_a_validation_set_and_with_no_epochs_it_works_too(terminal):
    new_run(Progress(), data=(loaders()[0], None)).fit(1)
    assert screen(terminal.getvalue())[0].split() == ['epoch', 'train_loss', 'train_accuracy', 'seconds']
    new_run(Progress()).fit(0)

def test_a_terminal_that_goes_away_does_not_end_the_training(monkeypatch):
    class Gone(Terminal):
        def write(self, s):
            if len(self.getvalue()) > 2000: raise OSError(5, 'Input/output error')
            return super().write(s)
    t = Gone()
    set_streams(monkeypatch, t, t)
    monkeypatch.setattr(progress, '_FIRST', 0.)
    monkeypatch.setattr(progress, '_next', lambda start, end: end)
    run = new_run(Progress())
    run.fit(3)
    assert len(t.getvalue()) > 1900 and [r['epoch'] for r in run.progress.rows] == [0, 1, 2]

def test_a_program_without_streams_shows_nothing(monkeypatch):
    set_streams(monkeypatch, None, None)
    new_run(Progress()).fit(1)
    assert list(progress_bar(range(3))) == [0, 1, 2]

def test_a_fit_that_goes_on_in_an_epoch_counts_what_it_skipped_as_done_and_not_as_fast(terminal):
    class Resume(Callback):
        order = 10**6
        def before_fit(self): self.run.epoch, self.run.first_epoch = 1, 0
        def before_train(self):
            if self.epoch == 1:
                self.run.iter = 6
                self.dl.set_epoch(1, 24)
    seen = []
    def look(run): seen.append(tuple(n for bar in run.progress._bars for n in (bar.n, bar.initial)))
    new_run(Progress(), Resume(), At(1, 7, look), At(2, 1, look)).fit(3)
    assert seen == [(20 + 8, 20 + 6, 8, 6), (42, 26, 2, 0)]

# ---- the loss

class Late:
    "A `DelayedRead` whose copies take several offers to arrive, as on a busy device."
    def __init__(self, seconds): self.copy, self.offers = None, 0
    def __call__(self, t):
        self.offers += 1
        # offered nothing, it has been waited for
        if self.copy is not None and self.offers % 3 and len(t): return None
        value, self.copy = None if self.copy is None else self.copy.tolist(), t
        return value

@pytest.mark.parametrize('late', [False, True])
def test_the_loss_is_the_smoothed_loss_of_all_batches(terminal, monkeypatch, late):
    if late: monkeypatch.setattr(progress, 'DelayedRead', Late)
    new_losses = []
    monkeypatch.setattr(Progress, '_add_losses', lambda self, losses, real=Progress._add_losses: (
        new_losses.extend(losses), real(self, losses)))
    run = new_run(Progress(), Recorder(),
                  At(1, 9, lambda run: setattr(run, 'middle', (len(new_losses), run.progress._loss()))))
    run.fit(2)
    n, value = run.middle
    assert new_losses[:10] == run.recorder.losses[:10] and 10 < n < 20
    assert new_losses[:n] == run.recorder.losses[:n] and value == smoothed(run.recorder.losses)[n - 1]
    if not late: assert new_losses == run.recorder.losses

@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_the_loss_shows_nan_and_recovers(terminal, bad):
    class Spoil(Callback):
        def after_loss(self):
            if self.iter == 5: self.run.loss = self.loss*bad
    shown = []
    def look(run): shown.append(run.progress._loss())
    run = new_run(Progress(), Spoil(), Recorder(), At(0, 6, look), At(0, 7, look))   # a drawing behind
    run.fit(1)
    assert not math.isfinite(shown[0]) and shown[1] == pytest.approx(run.recorder.losses[6])

def test_in_a_batch_no_number_is_read(terminal, monkeypatch):
    def forbidden(*_): raise AssertionError('a batch waited for the device')
    run = new_run(Progress())
    class Forbid(Callback):
        order = -1
        def before_train(self):
            self.progress._due = math.inf
            for name in ('item', 'tolist', '__float__', '__bool__', 'cpu', 'numpy'):
                monkeypatch.setattr(torch.Tensor, name, forbidden)
    class Allow(Callback):
        order = 99
        def after_train(self): monkeypatch.undo()
    run.add_cbs([Forbid(), Allow()])
    run.loss_func = nn.CrossEntropyLoss()
    run.fit(1)

def test_losses_are_not_kept_where_nobody_looks():
    kept = []
    new_run(Progress(), At(0, 9, lambda run: kept.append(len(run.progress._seen)))).fit(1)
    with quiet(): new_run(Progress(), At(0, 9, lambda run: kept.append(len(run.progress._seen)))).fit(1)
    assert kept == [0, 0]

def test_drawings_wait_for_two_hundred_times_as_long_as_they_take(terminal, monkeypatch):
    monkeypatch.undo()
    assert (progress._next(0., 1e-5) == pytest.approx(0.10001)
            and progress._next(1., 1.01) == pytest.approx(3.01) and progress._next(0., 9.) == 14.)

# ---- quiet

def test_quiet_and_other_ranks_write_nothing(terminal, monkeypatch):
    with quiet(), quiet():
        new_run(Progress()).fit(1)
        assert list(progress_bar(range(3))) == [0, 1, 2]
    with quiet():
        with quiet(): pass
        new_run(Progress()).fit(1)
    monkeypatch.setenv('RANK', '1')
    new_run(Progress()).fit(1)
    assert list(progress_bar(range(3))) == [0, 1, 2]
    assert terminal.getvalue() == ''
    monkeypatch.setenv('RANK', '0')
    new_run(Progress()).fit(1)
    assert terminal.getvalue() != ''

def test_quiet_ends_also_after_an_error_and_over_threads():
    with pytest.raises(KeyError):
        with quiet(): raise KeyError
    assert not progress._hushed
    def many():
        for _ in range(2000):
            with quiet(): pass
    threads = [threading.Thread(target=many) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not progress._hushed

# ---- a bar for any loop

def test_a_loop_has_a_bar_that_vanishes_or_stays(monkeypatch):
    for leave in (False, True):
        t = Terminal()
        set_streams(monkeypatch, t, t)
        monkeypatch.setattr(progress, '_FIRST', 0.)
        assert list(progress_bar(range(5), desc='files', leave=leave)) == list(range(5))
        assert [bool(re.match('files.*5/5', l)) for l in screen(t.getvalue())] == [True]*leave

def test_a_loop_takes_what_has_no_length_and_refuses_what_is_no_iterable():
    assert list(progress_bar(iter('ab'))) == ['a', 'b'] and list(progress_bar([])) == []
    assert len(progress_bar([1, 2])) == 2
    for bad in (5, None, nn.Linear(1, 1)):
        with pytest.raises(TypeError, match='iterable'): list(progress_bar(bad))

@pytest.mark.parametrize('name', ['show', 'bars', 'table', 'plot'])
def test_a_switch_that_is_no_bool_is_an_error(name):
    with pytest.raises(TypeError, match=name): Progress(**{name: 1})

# ---- the table

def test_cells_are_short_and_readable():
    cell = progress._cell
    assert ([cell('m', v) for v in (3, 0.5, 0., 1e-5, 1.5e7, math.nan, math.inf, None, 'x', True)]
            == ['3', '0.5000', '0.0000', '1.00e-05', '1.50e+07', 'nan', 'inf', 'None', 'x', 'True'])
    assert cell('seconds', 12.345) == '12.3'

def test_rows_survive_in_the_state_and_are_shown_again(tmp_path, capsys):
    run = new_run(Progress(False))
    run.fit(2)
    save_state(tmp_path/'state.pth', run.progress.state_dict())
    for during in (False, True):
        again = new_run(Progress())
        again.epoch, state = 2, load_state(tmp_path/'state.pth')
        class Load(Callback):
            order = 10**6
            def before_fit(self): self.progress.load_state_dict(state)
        capsys.readouterr()
        if not during: again.progress.load_state_dict(state)
        again.fit(1, cbs=Load() if during else None)
        assert first_words(capsys.readouterr().out.splitlines()) == ['epoch', '0', '1', '2']
        assert [r['epoch'] for r in again.progress.rows] == [0, 1, 2]
        again.fit(1)   # the next fit begins anew
        assert first_words(capsys.readouterr().out.splitlines()) == ['epoch', '3']

class LoadLast(Callback):
    "Loads rows when all other callbacks have begun, as a learner that resumes does."
    order = 10**6
    def __init__(self, state, then=None): self.state, self.then = state, then
    def before_fit(self):
        self.progress.load_state_dict(self.state)
        self.run.epoch, self.run.first_epoch = 2, 0
        if self.then is not None: raise self.then

def two_rows():
    (run := new_run(Progress(False))).fit(2)
    return run.progress.state_dict()

@pytest.mark.parametrize('then, epochs', [(None, ['0', '1', '2']), (CancelFitException(), ['0', '1'])])
def test_rows_that_are_loaded_last_are_shown_in_a_terminal(terminal, then, epochs):
    run = new_run(Progress())
    run.fit(3, cbs=LoadLast(two_rows(), then))
    assert (first_words(screen(terminal.getvalue())) == ['epoch', *epochs]
            and [str(r['epoch']) for r in run.progress.rows] == epochs)

def test_a_learner_that_resumes_shows_the_earlier_rows(terminal, tmp_path):
    from exp.checkpoints import Checkpoint
    from exp.learner import Learner
    def learner():
        return Learner(DataBunch(*loaders()), nn.Linear(3, 2), lr=0.1, metrics=accuracy, cbs=[Progress()])
    with pytest.raises(ValueError, match='killed'), quiet():
        learner().fit(3, cbs=[Checkpoint(tmp_path/'c.pth', every=3), At(2, 5, throw(ValueError('killed')))])
    assert terminal.getvalue() == ''
    learner().fit(3, cbs=[Checkpoint(tmp_path/'c.pth', every=3)], resume=tmp_path/'c.pth')
    assert first_words(screen(terminal.getvalue())) == ['epoch', '0', '1', '2']

# ---- in processes of their own

SCRIPT = '''
import sys, time, torch
from torch import nn
from exp.callbacks import *
from exp.dataloader import DataLoader, Dataset
from exp.metrics import accuracy
from exp.progress import *
from exp.schedules import LRFinder
torch.manual_seed(0)
x = torch.randn(40, 3)
dl = DataLoader(Dataset(x, (x.sum(1) > 0).long()), 1)
class Slow(Callback):
    def after_batch(self): time.sleep(0.006)
class Inner(Callback):
    def __init__(self, f): self.f = f
    def after_batch(self):
        if self.epoch == 1 and self.iter == 30: self.f()
def new_run(*cbs):
    return Runner((dl, dl), nn.Linear(3, 2), lr=0.1, cbs=[AvgStats(accuracy), Progress(), Slow(), *cbs])
'''

def environment(root):
    return {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1', 'PYTHONUTF8': '1'}

def in_a_real_terminal(code, root):
    "What a program writes to a terminal of its own, 100 columns wide."
    import fcntl, pty, struct, termios
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 100, 0, 0))
    p = subprocess.Popen([sys.executable, '-c', SCRIPT + code], stdin=theirs, stdout=theirs, stderr=theirs,
                         env=environment(root))
    os.close(theirs)
    written = b''
    while True:
        try: part = os.read(ours, 65536)
        except OSError: break   # on Linux the end is an error
        if not part: break
        written += part
    os.close(ours)
    return p.wait(), written.decode()

@pytest.mark.slow
@pytest.mark.skipif(os.name != 'posix', reason='a pseudo-terminal')
def test_a_real_terminal_ends_with_the_tables_alone(root):
    rc, written = in_a_real_terminal('''
import exp.progress
exp.progress._LONGEST = 0.1   # so that each pass, of 0.24 seconds, is drawn, however slow the machine
new_run().fit(2)
new_run().fit(1, cbs=LRFinder(10))
for i in progress_bar(range(50), desc='loop'): time.sleep(0.01)
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)   # a process in the background is born deaf to it
try: new_run(Inner(lambda: os.kill(os.getpid(), signal.SIGINT))).fit(3)
except KeyboardInterrupt: print('stopped')
''', root)
    assert rc == 0 and 'training' in written and 'validation' in written and 'loop' in written
    assert first_words(screen(written)) == ['epoch', '0', '1', 'epoch', '0', 'stopped']
    assert len(written) < 100_000   # 480 batches

@pytest.mark.launch
def test_a_file_gets_plain_rows_at_once_and_ipython_is_not_imported(root, tmp_path):
    p = subprocess.Popen([sys.executable, '-c', SCRIPT + f'''
import os
def wait():   # for the reader of the first row
    for _ in range(6000):
        if os.path.exists({str(tmp_path/'seen')!r}): return
        time.sleep(0.01)
    raise TimeoutError('nobody has seen the first row')
new_run(Inner(wait)).fit(2)
for i in progress_bar(range(50)): pass
assert not {{'IPython', 'ipywidgets'}} & set(sys.modules)
'''], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(root))
    head, row = p.stdout.readline(), p.stdout.readline()
    (tmp_path/'seen').touch()
    rest, err = p.communicate(timeout=60)
    assert (head.split()[0], row.split()[0], rest.split()[0], p.returncode, err) == ('epoch', '0', '1', 0, '')
    assert '\r' not in head + row + rest

@pytest.mark.launch
def test_a_killed_process_leaves_a_log_that_can_be_read(root, tmp_path):
    path = tmp_path/'log.csv'
    p = subprocess.Popen([sys.executable, '-c', SCRIPT + f'''
class Kill(Callback):
    order = 99
    def after_epoch(self):
        if self.epoch == 1:
            import os
            os._exit(9)
with quiet(): new_run(CSVLog({str(path)!r}), Kill()).fit(9)
'''], env=environment(root))
    assert p.wait(timeout=60) == 9
    assert (pd.read_csv(path)['epoch'].tolist() == [0, 1]
            and [f.name for f in tmp_path.iterdir()] == ['log.csv'])

def run_notebook(cells):
    "The outputs of each cell, after a run in a kernel."
    nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbclient.NotebookClient(nb, timeout=120, kernel_name='python3', store_widget_state=False,
                            allow_errors=True).execute()
    return [c.outputs for c in nb.cells]

@pytest.mark.slow
def test_a_stored_notebook_holds_tables_and_pictures_and_nothing_else(root, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(root))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    outputs = run_notebook([SCRIPT,
        "new_run().fit(2)",
        "Runner((dl, dl), nn.Linear(3, 2), cbs=[AvgStats(accuracy), Progress(plot=True), Slow()]).fit(2)",
        "for i in progress_bar(range(60), desc='loop'): time.sleep(0.01)",
        "for i in progress_bar(range(2), desc='seeds', leave=True): new_run().fit(1)",
        "def bad(): raise ValueError('bad')\nnew_run(Inner(bad)).fit(3)",
        "with quiet(): new_run().fit(1)",
        "%%capture out\nnew_run().fit(1)",
        "len(out.outputs)"])
    assert [o for o in outputs[0] if o.output_type != 'stream'] == []
    fit, plot, loop, seeds, error, hush, captured, n_captured = outputs[1:]
    rows = lambda o: re.findall(r'<tr><td>(\d+)</td>', o.data['text/html'])
    assert [o.output_type for o in fit] == ['display_data'] and rows(fit[0]) == ['0', '1']
    assert first_words(fit[0].data['text/plain'].splitlines()) == ['epoch', '0', '1']
    assert ([set(o.data) for o in plot] == [{'text/html', 'text/plain'}, {'image/png', 'text/plain'}]
            and len(plot[1].data['image/png']) < 40_000)
    assert [o.data for o in loop] == [{'text/html': '', 'text/plain': ''}]
    shown = [o.data['text/html'] for o in seeds]
    assert sum(html.count('<table>') for html in shown) == 2 and sum('seeds:' in html for html in shown) == 1
    assert [o.output_type for o in error] == ['display_data', 'error'] and rows(error[0]) == ['0']
    assert hush == [] and captured == [] and n_captured[0].data['text/plain'] == '0'
    whole = json.dumps(outputs)
    assert 'widget' not in whole and whole.count('<pre>') == 1   # the bar that was left

# ---- a panel, without a kernel

class Shell:
    "As much of IPython's shell as a panel needs."
    kernel, execution_count = object(), 1
    def __init__(self): self.display_pub, self.outputs, self.published = self, {}, 0
    def publish(self, data, transient, update):
        assert update == (transient['display_id'] in self.outputs)
        self.outputs[transient['display_id']], self.published = data, self.published + 1

@pytest.fixture
def shell(monkeypatch):
    s = Shell()
    monkeypatch.setattr(progress, '_shell', lambda: s)
    monkeypatch.setattr(progress, '_FIRST', 0.)
    monkeypatch.setattr(progress, '_next', lambda start, end: end)
    return s

def test_a_panel_shows_rows_and_bars_and_in_the_end_the_rows(shell):
    middle = []
    new_run(Progress(), At(3, 5, lambda run: middle.extend(dict(d) for d in shell.outputs.values()))).fit(4)
    (end,) = shell.outputs.values()
    assert middle[0]['text/html'].count('<tr>') == 4 and middle[0]['text/html'].count('<pre>') == 2
    assert (re.search(r'<pre>training .* 6/10 ', middle[0]['text/html'])
            and ' 6/10 ' in middle[0]['text/plain'])
    assert end['text/html'].count('<tr>') == 5 and '<pre>' not in end['text/html']

def test_rows_that_are_loaded_last_are_shown_on_a_panel(shell):
    new_run(Progress()).fit(3, cbs=LoadLast(two_rows()))
    (end,) = shell.outputs.values()
    assert first_words(end['text/plain'].splitlines()) == ['epoch', '0', '1', '2']

def test_what_is_short_leaves_no_trace_on_a_panel(shell, monkeypatch):
    monkeypatch.setattr(progress, '_FIRST', 10.)
    assert list(progress_bar(range(3))) == [0, 1, 2]
    new_run(Progress(), stats=False).fit(1)
    assert shell.published == 0

def test_each_loop_and_fit_has_a_display_of_its_own(shell):
    list(progress_bar(range(3), desc='loop', leave=True))
    inner = At(0, 5, lambda run: new_run(Progress()).fit(1))
    new_run(Progress(), inner).fit(1)
    loop, outer, within = [d['text/plain'] for d in shell.outputs.values()]
    assert loop.startswith('loop')
    for fit in (outer, within): assert first_words(fit.splitlines()) == ['epoch', '0']

def test_names_are_escaped(shell):
    list(progress_bar(range(2), desc='<b>', leave=True))
    assert '&lt;b&gt;' in list(shell.outputs.values())[0]['text/html']

def test_a_shell_without_a_kernel_gets_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, '_shell', SimpleNamespace)
    new_run(Progress(plot=True)).fit(1)
    assert first_words(capsys.readouterr().out.splitlines()) == ['epoch', '0']

def test_a_shell_in_a_terminal_is_a_terminal(monkeypatch):
    class TerminalInteractiveShell: pass
    class Embedded(TerminalInteractiveShell): pass
    monkeypatch.setattr(progress, '_shell', Embedded)
    set_streams(monkeypatch, Terminal(), Terminal())
    assert progress._place() == 'terminal'

def test_the_picture_has_the_losses_and_the_validation(shell):
    pictures = []
    run = new_run(Progress(plot=True), Recorder(),
                  At(1, 9, lambda run: pictures.append(run.progress._picture), train=False))
    run.fit(2)
    assert list(pictures[0].losses) == pytest.approx(smoothed(run.recorder.losses))
    assert pictures[0].valid == [(10, run.recorder.valid_losses[0]), (20, run.recorder.valid_losses[1])]

def test_pictures_take_a_hundredth_of_the_time(shell, monkeypatch):
    clock = [0.]
    def png(self):
        clock[0] += 0.08
        return ''
    monkeypatch.setattr(progress, 'time', SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(progress._Picture, 'png', png)
    monkeypatch.setattr(progress._Picture, 'show', lambda self, data: shown.append(clock[0]))
    picture, shown = progress._Picture(), []
    picture.losses.append(1.)
    for _ in range(3000):
        clock[0] += 0.1
        picture.draw()
        assert 0.08*len(shown) <= 0.01*clock[0] + 0.05
    assert 0.08*len(shown) > 0.005*clock[0]

# ---- the log

def read(path):
    with open(path, newline='', encoding='utf-8') as f:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]

class StateAt(Callback):
    order = 95
    def __init__(self, epoch, batch=None): self.at, self.batch, self.state = epoch, batch, None
    def after_epoch(self):
        if self.epoch == self.at and self.batch is None: self.state = self.csv_log.state_dict()
    def after_batch(self):
        if (self.epoch, self.iter) == (self.at, self.batch) and self.in_train:
            self.state = self.csv_log.state_dict()

def test_each_row_is_there_at_the_end_of_its_epoch_and_exact(tmp_path):
    path, lengths = tmp_path/'new'/'folder'/'log.csv', []
    class Look(Callback):
        order = 99
        def before_train(self):
            if self.epoch: lengths.append(len(pd.read_csv(path)))
    run = new_run(CSVLog(path), Look())
    run.fit(3)
    assert lengths == [1, 2] and read(path) == list(run.avg_stats.history)
    assert [f.name for f in path.parent.iterdir()] == ['log.csv']

def test_the_next_fit_replaces_or_adds(tmp_path):
    path = tmp_path/'log.csv'
    run = new_run(CSVLog(path))
    run.fit(2)
    run.fit(1)
    assert [r['epoch'] for r in read(path)] == [2]
    run = new_run(CSVLog(path, append=True))
    run.fit(2)
    run.fit(1)
    assert [r['epoch'] for r in read(path)] == [2, 0, 1, 2]

def test_a_fit_that_ends_no_epoch_leaves_an_old_log_alone(tmp_path):
    path = tmp_path/'log.csv'
    path.write_text('precious\n')
    new_run(CSVLog(path), At(0, 3, throw(CancelFitException()))).fit(1)
    assert path.read_text() == 'precious\n' and len(list(tmp_path.iterdir())) == 1

def test_a_row_of_other_columns_is_added_and_none_is_lost(tmp_path):
    path = tmp_path/'log.csv'
    new_run(CSVLog(path)).fit(1)
    new_run(CSVLog(path, append=True), data=(loaders()[0], None)).fit(1)
    table = pd.read_csv(path)
    assert table['epoch'].tolist() == [0, 0] and table['valid_loss'].isna().tolist() == [False, True]

def test_an_empty_file_gets_a_header(tmp_path):
    path = tmp_path/'log.csv'
    path.touch()
    new_run(CSVLog(path, append=True)).fit(1)
    assert [r['epoch'] for r in read(path)] == [0]

def test_a_place_that_cannot_be_written_is_an_error_before_training(tmp_path):
    (tmp_path/'file').touch()
    for path in (tmp_path, tmp_path/'file'/'log.csv'):
        for append in (False, True):
            run = new_run(CSVLog(path, append=append))
            with pytest.raises(OSError): run.fit(1)
            assert run.n_iter == 0

@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='permissions')
def test_a_folder_without_permission_is_an_error_before_training(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError): new_run(CSVLog(tmp_path/'log.csv')).fit(1)
    finally: tmp_path.chmod(0o700)

def test_without_stats_and_with_a_wrong_switch_it_says_so(tmp_path):
    with pytest.raises(ValueError, match='AvgStats'): new_run(CSVLog(tmp_path/'log.csv'), stats=False).fit(1)
    with pytest.raises(TypeError, match='append'): CSVLog(tmp_path/'log.csv', append='a')

@pytest.mark.parametrize('recovers', [True, False])
def test_a_disk_that_is_full_loses_no_row_and_no_training(tmp_path, monkeypatch, recovers):
    path, real = tmp_path/'log.csv', os.fsync
    def full(fd): raise OSError(28, 'No space left on device')
    class Fill(Callback):
        def before_epoch(self):
            monkeypatch.setattr(os, 'fsync', real if recovers and self.epoch == 2 or not self.epoch else full)
    run = new_run(CSVLog(path), Fill())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        run.fit(3)
    assert run.epoch == 3 and 'No space left' in str(caught[0].message)
    monkeypatch.setattr(os, 'fsync', real)
    if recovers: assert read(path) == list(run.avg_stats.history) and len(caught) == 1
    assert [f.name for f in tmp_path.iterdir()] == ['log.csv']

def test_a_log_that_is_deleted_or_a_row_of_other_columns_is_written_whole(tmp_path):
    path = tmp_path/'log.csv'
    class Change(Callback):
        order = 45
        def after_epoch(self):
            if self.epoch == 1: path.unlink()
            if self.epoch == 2: self.avg_stats.history[-1]['extra'] = 7
    new_run(CSVLog(path), Change()).fit(4)
    table = pd.read_csv(path)
    assert (table['epoch'].tolist() == [0, 1, 2, 3] and table['extra'].tolist()[2] == 7
            and table['extra'].isna().sum() == 3)

@pytest.mark.slow
@pytest.mark.parametrize('append', [True, False])
@pytest.mark.parametrize('batch', [None, 4])
@pytest.mark.parametrize('during', [True, False])
def test_after_a_resume_no_row_is_doubled(tmp_path, append, batch, during):
    path = tmp_path/'log.csv'
    if append: new_run(CSVLog(path)).fit(2)   # rows of an earlier training
    new_run(CSVLog(path, append=append), keep := StateAt(1, batch)).fit(4)
    save_state(tmp_path/'state.pth', keep.state)
    state = load_state(tmp_path/'state.pth')
    done = 2 if batch is None else 1
    again = new_run(CSVLog(path, append=append))
    again.epoch = done
    class Load(Callback):
        order = 10**6
        def before_fit(self): self.csv_log.load_state_dict(state)
    if not during: again.csv_log.load_state_dict(state)
    again.fit(4 - done, cbs=Load() if during else None)
    assert [r['epoch'] for r in read(path)] == [0, 1]*append + [0, 1, 2, 3]

def test_rows_that_were_lost_with_the_file_come_back_with_the_state(tmp_path):
    path = tmp_path/'log.csv'
    new_run(CSVLog(path), keep := StateAt(1)).fit(2)
    path.unlink()
    again = new_run(CSVLog(path))
    again.epoch = 2
    again.csv_log.load_state_dict(keep.state)
    again.fit(1)
    assert [r['epoch'] for r in read(path)] == [0, 1, 2]

def test_other_ranks_write_no_file_and_quiet_does(tmp_path, monkeypatch):
    path = tmp_path/'log.csv'
    with quiet(): new_run(CSVLog(path)).fit(1)
    assert len(read(path)) == 1
    path.unlink()
    monkeypatch.setenv('RANK', '2')
    new_run(CSVLog(path)).fit(1)
    assert not path.exists()

@hypothesis_settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(), min_size=1, max_size=4))
def test_any_float_comes_back_as_it_was(tmp_path_factory, values):
    path = tmp_path_factory.mktemp('log')/'log.csv'
    log = CSVLog(path)
    log._rows = [{'epoch': i, 'v': v} for i, v in enumerate(values)]
    log._write()
    got = [row['v'] for row in read(path)]
    assert all(a == b or a != a and b != b for a, b in zip(got, values)) and len(got) == len(values)
