"""`NanCheck` names the batch whose loss was not a number, and reading losses late costs no batch a wait."""
import math, warnings

import pytest
import torch

import exp.faults as module
from exp.callbacks import CancelBatchException, CancelEpochException
from exp.faults import DelayedRead, NanCheck
from test_callbacks import At, Do, bunch, net, runner
from test_callbacks_runner import reads  # noqa: F401


# ---------------------------------------------------------------- NaN

def spoil(n_iter, value=math.nan):
    "Makes the predictions of one training batch NaN or infinite."
    def after_pred(self):
        if self.in_train and self.n_iter == n_iter: self.run.pred = self.pred*value
    return Do(order=-1, after_pred=after_pred)

@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('n_iter, where', [(0, (0, 0)), (5, (1, 2)), (8, (2, 2))])
def test_nan_check_names_epoch_and_batch_and_ends_the_fit(n_iter, where, value):
    check = NanCheck()
    run = runner(check, data=bunch(12))
    with pytest.warns(UserWarning, match=rf'batch {where[1]}\b'):
        run.fit(5, cbs=spoil(n_iter, value))
    assert check.where == where and run.epoch <= where[0] + 1 and run.epoch < 5
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run.model = net()
        run.fit(1)
    assert check.where is None

def test_nan_check_without_stop_warns_once_and_trains_on():
    check = NanCheck(stop=False)
    run = runner(check, data=bunch(12))
    with pytest.warns(UserWarning) as caught: run.fit(4, cbs=spoil(1))
    assert len(caught) == 1 and check.where == (0, 1) and run.epoch == 4

@pytest.mark.parametrize('how', [CancelEpochException, CancelBatchException])
def test_a_nan_in_an_epoch_that_is_cancelled_is_told_too(how):
    check = NanCheck(stop=False)
    run = runner([check, spoil(0), At({('before_backward', 1): how()})])
    with pytest.warns(UserWarning, match='batch 0'): run.fit(2)

def test_a_nan_in_validation_or_a_metric_is_none_of_its_business():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        runner([NanCheck(), Do(after_loss=lambda self: self.in_train
                               or setattr(self.run, 'loss', self.loss*math.nan))]).fit(2)

def test_a_delayed_read_answers_later_and_at_most_ten_times_a_second(monkeypatch):
    clock = [100.]
    monkeypatch.setattr(module.time, 'perf_counter', lambda: clock[0])
    read, answers = DelayedRead(), []
    for i in range(1000):   # ten seconds
        answer = read(torch.tensor([float(i), 2.]))
        if answer is not None: answers.append((i, answer))
        clock[0] += 0.01
    assert 90 <= len(answers) <= 100
    for i, (value, two) in answers: assert two == 2. and 9 <= i - value <= 12
    read = DelayedRead(0.)
    assert [read(torch.tensor(i)) for i in range(4)] == [None, 0, 1, 2]

def test_nan_check_waits_for_no_batch(reads, monkeypatch):
    clock = [0.]
    monkeypatch.setattr(module.time, 'perf_counter', lambda: clock[0])
    def tick(self): clock[0] += 0.01
    run = runner([NanCheck(), Do(after_batch=tick)], data=bunch(400, 0), opt_func=torch.optim.SGD)
    run.fit(1)
    assert 1 <= sum(reads.values()) <= 11   # ten in this second, and one at its end
