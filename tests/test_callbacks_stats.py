"""`AvgStats`, `History` and `Recorder`: averages are those of the whole set, and what was recorded outlives
an error."""
import copy, functools, math, os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import nn

from exp.callbacks import AvgStats, Callback, CancelEpochException, History, Recorder, Runner, smoothed
from exp.core import test_close as close
from exp.dataloader import DataLoader, Dataset
from exp.losses import CrossEntropy, SquaredLoss
from exp.metrics import Metric, Rmse, accuracy
from test_callbacks import At, Boom, Do, few, points, runner


# ---------------------------------------------------------------- averages and metrics

@pytest.mark.parametrize('n, n_valid', [(10, 7), (9, 5), (8, 8), (3, 1)])
@pytest.mark.parametrize('loss_func', [F.cross_entropy, CrossEntropy(), nn.CrossEntropyLoss()])
def test_averages_over_uneven_batches_are_the_means_over_the_set(n, n_valid, loss_func):
    model = nn.Linear(3, 2).double()
    x, y, xv, yv = *points(n), *points(n_valid, 1)
    x, xv = x.double(), xv.double()
    stats, rec = AvgStats(accuracy), Recorder()
    run = Runner((DataLoader(Dataset(x, y), 4), DataLoader(Dataset(xv, yv), 4)), model, loss_func=loss_func,
                 lr=0., cbs=[stats, rec])
    run.fit(1)
    row = stats.history[0]
    for which, a, b in (('train', x, y), ('valid', xv, yv)):
        close(row[f'{which}_loss'], F.cross_entropy(model(a), b), 1e-6)
        close(row[f'{which}_accuracy'], (model(a).argmax(1) == b).double().mean(), 1e-6)
    close(rec.valid_losses[0], F.cross_entropy(model(xv), yv), 1e-6)
    close(rec.losses, [F.cross_entropy(model(a), b).item() for a, b in zip(x.split(4), y.split(4))], 1e-6)

def test_a_losss_own_count_weighs_the_averages():
    x, y = torch.randn(6, 2, 5), torch.tensor([[1, 0, 9, 9, 9], [9]*5, [1]*5, [0, 9, 1, 9, 1],
                                               [9, 9, 9, 9, 0], [1, 1, 0, 0, 9]])
    for loss in (CrossEntropy(ignore_index=9),
                 type('Counts', (), {'__call__': lambda s, p, t: F.cross_entropy(p, t, ignore_index=9),
                                     'count': lambda s, t: int((t != 9).sum())})()):
        stats, rec = AvgStats(), Recorder()
        run = Runner((DataLoader(Dataset(x, y), 4),)*2, nn.Conv1d(2, 2, 1), loss_func=loss, lr=0.,
                     cbs=[stats, rec])
        run.fit(1)
        want = F.cross_entropy(run.model(x), y, ignore_index=9)
        for got in (stats.history[0]['train_loss'], stats.history[0]['valid_loss'], rec.valid_losses[0]):
            close(got, want.double(), 1e-6)

class Count(Metric):
    def __init__(self):
        super().__init__()
        self.add_state('n', 0, 'sum')
    def update(self, pred, yb):
        assert not pred.requires_grad
        self.add(n=len(yb))
    def compute(self): return self.n

class Bare:
    "A metric of no class of ours, which answers a plain number."
    def reset(self): self.largest = -1.
    def update(self, pred, yb): self.largest = max(self.largest, float(len(yb)))
    def compute(self): return self.largest

def test_metrics_may_be_objects_functions_and_partials():
    x = torch.randn(10, 3)
    y = x.sum(1, keepdim=True)
    def mean_error(pred, yb, power=1): return ((pred - yb).abs()**power).mean()
    class Other(Rmse): name = 'other'
    pattern = Rmse()
    stats = AvgStats(mean_error, pattern, Other(), Count(), Bare())
    run = Runner((DataLoader(Dataset(x, y), 4),)*2, nn.Linear(3, 1), loss_func=SquaredLoss(), lr=0.,
                 cbs=stats)
    run.fit(2)
    row, pred = stats.history[1], run.model(x)
    for which in ('train', 'valid'):
        close(row[f'{which}_mean_error'], (pred - y).abs().mean().double(), 1e-6)
        close(row[f'{which}_rmse'], (pred - y).square().mean().sqrt().double(), 1e-6)
        close(row[f'{which}_other'], row[f'{which}_rmse'])
        assert row[f'{which}_count'] == 10 and row[f'{which}_bare'] == 4.
    assert pattern.n == 0   # the object that was given is copied
    stats = AvgStats(functools.partial(mean_error, power=3))
    Runner((DataLoader(Dataset(x, y), 4),)*2, run.model, loss_func=F.mse_loss, lr=0., cbs=stats).fit(1)
    close(stats.history[0]['valid_mean_error'], ((pred - y).abs()**3).mean().double(), 1e-6)

def test_two_metrics_of_one_name_and_what_is_no_metric_are_refused():
    for two in [(accuracy, accuracy), (Rmse(), Rmse()), (accuracy, functools.partial(accuracy)),
                (lambda p, y: 0, lambda p, y: 1)]:
        with pytest.raises(ValueError, match='named'): AvgStats(*two)
    def loss(pred, yb): return 0.
    with pytest.raises(ValueError, match="'loss'"): AvgStats(loss)
    for bad in (Rmse, 'accuracy', 3, None):
        with pytest.raises(TypeError): AvgStats(bad)

def test_a_metric_that_needs_other_shapes_says_so_and_names_the_callback():
    x, y = points()
    run = Runner((DataLoader(Dataset(x, y[:, None].float()), 4), None), nn.Linear(3, 1), loss_func=F.mse_loss,
                 cbs=AvgStats(accuracy))
    with pytest.raises(ValueError, match='accuracy: ') as caught: run.fit(1)
    assert 'batch 0 of 2' in caught.value.__notes__[0]

def test_metrics_start_anew_in_each_epoch_and_serve_one_runner():
    stats = AvgStats(Count())
    run = runner(stats)
    run.fit(3)
    assert ([(r['epoch'], r['train_count'], r['valid_count'])
             for r in stats.history] == [(0, 8, 4), (1, 8, 4), (2, 8, 4)])
    with pytest.raises(ValueError, match='already'): runner(stats)

def test_history_has_a_row_for_each_epoch_of_the_last_fit_and_none_for_a_broken_one():
    stats = AvgStats(accuracy)
    run = runner(stats)
    run.fit(2)
    assert isinstance(stats.history, History)
    assert (list(stats.history[0]) == ['epoch', 'train_loss', 'train_accuracy', 'valid_loss',
                                       'valid_accuracy', 'seconds'])
    assert stats.history.column('epoch') == [0, 1] and 'valid_accuracy' in stats.history._repr_markdown_()
    assert all(type(v) in (int, float) for row in stats.history for v in row.values())
    with pytest.raises(Boom): run.fit(2, cbs=At({('after_loss', 5): Boom()}))
    assert stats.history.column('epoch') == [2]
    state = stats.state_dict()
    torch.save(state, '/dev/null') if os.name == 'posix' else None
    other = AvgStats(accuracy)
    other.load_state_dict(copy.deepcopy(state))
    assert (other.history == stats.history and type(other.history) is type(stats.history)
            and other.history[0] is not state['history'][0])

@pytest.mark.parametrize('nth', [1, 2])
def test_an_epoch_cancelled_before_it_began_makes_no_row_and_no_error(nth):
    """Its `before_epoch` never reached AvgStats, so that there is nothing to average, and certainly not the
    epoch before's numbers."""
    stats = AvgStats(accuracy)
    run = runner([stats, At({('before_epoch', nth): CancelEpochException()})])
    run.fit(3)
    rows = {r['epoch']: r for r in stats.history}
    assert {0, 1, 2} - {nth - 1} <= set(rows)
    assert nth - 1 not in rows or math.isnan(rows[nth - 1]['train_loss'])

# ---------------------------------------------------------------- Recorder

def test_the_recorder_keeps_losses_rates_and_validation_losses():
    rec, seen = Recorder(), []
    def rate(self): self.opt.param_groups[-1]['lr'] = 0.1/(1 + self.n_iter)
    def note(self): self.in_train and seen.append(float(self.loss))
    run = runner([rec, Do(before_batch=rate, after_loss=note)])
    run.fit(1)
    run.fit(3)
    assert (rec.losses == seen[2:] and rec.lrs == [0.1/(1 + n) for n in range(2, 8)]
            and len(rec.valid_losses) == 3)
    assert all(type(v) is float for v in (*rec.losses, *rec.lrs, *rec.valid_losses))

def test_the_recorder_keeps_the_rates_of_an_optimizer_that_holds_them_as_tensors():
    "torch's schedulers change such a rate in place."
    rec = Recorder()
    def halve(self): self.in_train and self.opt.param_groups[0]['lr'].mul_(0.5)
    run = runner([rec, Do(after_batch=halve)],
                 opt_func=functools.partial(torch.optim.Adam, capturable=False, foreach=False))
    run.fit(1, lr=torch.tensor(0.25))
    assert rec.lrs == [0.25, 0.125]

def test_a_broken_fit_leaves_what_was_recorded():
    rec = Recorder()
    run = runner(rec)
    with pytest.raises(Boom): run.fit(2, cbs=At({('after_backward', 4): Boom()}))
    assert len(rec.losses) == len(rec.lrs) == 4 and len(rec.valid_losses) == 1
    rec.plot_loss()
    rec.plot_lr()

def test_the_recorders_state_makes_a_round_trip(tmp_path):
    from exp.core import load_state, save_state
    rec = Recorder()
    runner(rec).fit(2)
    save_state(tmp_path/'rec', rec.state_dict())
    other = Recorder()
    other.load_state_dict(load_state(tmp_path/'rec'))
    assert other.state_dict() == rec.state_dict() and other.losses == rec.losses
    other.plot_loss()
    runner(other).fit(1)
    assert len(other.losses) == 2   # the last fit's

@pytest.mark.parametrize('epochs', [0, 1, 3])
def test_plots_have_labels(epochs):
    import matplotlib.pyplot as plt
    rec = Recorder()
    runner(rec).fit(epochs)
    for ax, x, y in [(rec.plot_loss(), 'training batch', 'loss'),
                     (rec.plot_lr(), 'training batch', 'learning rate'),
                     (rec.plot_loss(skip=1, smooth=0), 'training batch', 'loss')]:
        assert ax.get_xlabel() == x and ax.get_ylabel() == y
    ax = rec.plot_loss()
    assert ([t.get_text() for t in ax.get_legend().get_texts()] == ['training', 'training, smoothed']
            + ['validation']*(epochs > 0))
    line = {l.get_label(): l for l in ax.lines}
    assert len(line['training'].get_xdata()) == 2*epochs
    if epochs: assert list(line['validation'].get_xdata()) == [2*(e + 1) for e in range(epochs)]
    _, given = plt.subplots()
    assert rec.plot_lr(given) is given and rec.plot_loss(given) is given
    plt.close('all')

def test_smoothing_does_not_pull_towards_zero():
    assert (smoothed([3.]*5) == pytest.approx([3.]*5) and smoothed([1., 2.], 0.) == [1., 2.]
            and smoothed([]) == [])

@given(st.lists(st.floats(-1e3, 1e3), max_size=20), st.floats(0, 0.99))
@few
def test_smoothing_weighs_each_value_beta_times_what_the_next_weighs(values, beta):
    expected = [np.average(values[:n], weights=beta**np.arange(n - 1, -1, -1.))
                for n in range(1, len(values) + 1)]
    assert smoothed(iter(values), beta) == pytest.approx(expected, rel=1e-6, abs=1e-6)

# ---------------------------------------------------------------- how metrics keep count

class HalfWeights(Callback):
    "Measures in its own way, leaves one metric out, and says that all was twice as much."
    def before_fit(self):
        inner = self.run.measure
        self.run.measure = (lambda metric, pred: False if self.in_train and metric.name == 'rmse'
                            else inner(metric, pred))
        self.run.gather = self.twice
    def twice(self, metric):
        whole = copy.deepcopy(metric)
        whole.add(**metric.states())
        return whole

def test_a_callback_may_say_how_metrics_see_a_batch_and_where_their_sums_are():
    off = lambda pred, yb: (pred.argmax(1) - yb).float().abs().mean()
    off.__name__ = 'rmse'
    plain = runner(AvgStats(accuracy, off, Count()))
    plain.fit(2)
    mine = runner([AvgStats(accuracy, off, Count()), HalfWeights()])
    mine.fit(2)
    for a, b in zip(plain.avg_stats.history, mine.avg_stats.history):
        assert a.keys() - b.keys() == {'train_rmse'}
        assert all(a[k] == b[k] for k in b if k not in ('seconds', 'train_count', 'valid_count'))
        assert b['train_count'] == 2*a['train_count'] == 16 and b['valid_count'] == 8
    assert not {'measure', 'gather', 'rank'} & vars(mine).keys()   # as it was
    assert mine.measure.__func__ is Runner.measure

def test_a_metric_that_says_so_is_computed_in_validation_alone():
    class Late(Count): name, train = 'late', False
    def late_function(pred, yb): return pred.sum()*0 + 1
    late_function.train = False
    run = runner(AvgStats(accuracy, Late(), late_function))
    run.fit(1)
    row = run.avg_stats.history[0]
    assert {k for k in row if 'late' in k} == {'valid_late', 'valid_late_function'} and row['valid_late'] == 4
    assert run.avg_stats.columns == ['loss', 'accuracy', 'late', 'late_function']

def test_sums_of_a_broken_epoch_go_to_the_first_process_alone():
    states = []
    class Keep(Callback):
        order = 100
        def after_batch(self):
            if self.in_train and self.iter == 0: states.append(self.run.avg_stats.state_dict())
    runner([AvgStats(Count()), Keep()]).fit(1)
    class Rank(Callback):
        order = -50
        def __init__(self, rank): self.rank_ = rank
        def before_fit(self): self.run.rank = self.rank_
        def after_fit(self): self.seen = self.run.rank
    for rank, more in ((0, 4), (1, 0)):
        who = Rank(rank)
        again = runner([AvgStats(Count()), who])
        again.avg_stats.load_state_dict(states[0])
        class Load(Callback):
            order = 10**6
            def before_fit(self): self.run.avg_stats.load_state_dict(states[0])
        again.fit(1, cbs=Load())
        assert again.avg_stats.history[-1]['train_count'] == 8 + more and who.seen == rank and again.rank == 0
