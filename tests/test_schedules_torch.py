"""`TorchScheduler` moves rates as PyTorch's own loop does, in each fit and over a break."""
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from exp.callbacks import Callback, Runner
from exp.checkpoints import Checkpoint
from exp.dataloader import DataLoader, Dataset
from exp.faults import GradClip
from exp.learner import Learner
from exp.optimizers import adam_opt
from exp.precision import GradAccumulation, MixedPrecision
from exp.progress import Progress
from exp.schedules import TorchScheduler, get_hyper
from test_precision_accumulation import net, points

S = torch.optim.lr_scheduler

PER_BATCH = dict(one_cycle=lambda o: S.OneCycleLR(o, max_lr=0.1, total_steps=20),
                 cosine=lambda o: S.CosineAnnealingLR(o, 20),
                 warm=lambda o: S.CosineAnnealingWarmRestarts(o, 7),
                 multi=lambda o: S.MultiStepLR(o, [4, 9]),
                 cyclic=lambda o: S.CyclicLR(o, 1e-3, 0.1, step_size_up=3),
                 func=lambda o: S.LambdaLR(o, lambda e: 1/(e + 1)),
                 sequence=lambda o: S.SequentialLR(o, [S.LinearLR(o), S.ExponentialLR(o, 0.9)], [3]),
                 chain=lambda o: S.ChainedScheduler([S.ConstantLR(o), S.ExponentialLR(o, 0.9)]))
PLATEAU = lambda o: S.ReduceLROnPlateau(o, patience=0, threshold=10.)   # nothing is good enough

def learner(cbs, **kw):
    dl = DataLoader(Dataset(*points(40)), 8, shuffle=True, seed=1)
    return Learner((dl, dl), net(), loss_func=F.cross_entropy, lr=0.02, cbs=[Progress(False), *cbs], **kw)

@pytest.mark.slow
@pytest.mark.parametrize('opt_func', (partial(torch.optim.SGD, momentum=0.9), adam_opt))
@pytest.mark.parametrize('name', PER_BATCH)
def test_rates_are_those_of_pytorchs_loop_in_each_fit_and_then_as_before(name, opt_func):
    learn = learner([TorchScheduler(PER_BATCH[name])], opt_func=opt_func)
    for lr in (0.02, 0.05):
        opt = opt_func(net().parameters(), lr=lr)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            sched, want = PER_BATCH[name](opt), []
            for _ in range(20):
                want.append(opt.param_groups[0]['lr'])
                opt.step()
                sched.step()
        with warnings.catch_warnings():
            warnings.filterwarnings('error', 'Detected call')
            learn.fit(4, lr)
        assert learn.recorder.lrs == pytest.approx(want)
        assert ({g['lr'] for g in learn.opt.param_groups} == {lr}
                and not {'initial_lr', 'max_lr'} & set(learn.opt.param_groups[0]))
        for key in {'momentum', 'betas'} & set(opt.param_groups[0]):
            assert learn.opt.param_groups[0][key] == opt_func(net().parameters(), lr=lr).param_groups[0][key]

@pytest.mark.parametrize('cbs', ([GradAccumulation(16)], [MixedPrecision(init_scale=2.**60)]))
def test_a_step_that_is_called_off_makes_no_warning(cbs):
    learn = learner([TorchScheduler(PER_BATCH['cosine']), *cbs])
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'Detected call')
        learn.fit(1)

def test_per_epoch_and_plateau_step_once_an_epoch():
    for make, per in ((lambda o: S.ExponentialLR(o, 0.5), 'epoch'),
                      (lambda o: S.ReduceLROnPlateau(o, factor=0.5, patience=0, mode='max', threshold=10.),
                       'batch')):
        learn = learner([TorchScheduler(make, per, monitor='valid_loss')])
        learn.fit(4)
        lrs = learn.recorder.lrs[::5]
        assert (lrs == pytest.approx([0.02, 0.01, 0.005, 0.0025] if per == 'epoch'
                                     else [0.02, 0.02, 0.01, 0.005]))

@pytest.mark.parametrize('monitor', ('valid_los', 'accuracy'))
def test_a_plateau_needs_a_number_that_is_there(monitor):
    with pytest.raises(ValueError, match=monitor): learner([TorchScheduler(PLATEAU, monitor=monitor)]).fit(1)
    with pytest.raises(ValueError, match='AvgStats'):
        Runner((DataLoader(Dataset(*points(8)), 8), None), net(), cbs=TorchScheduler(PLATEAU)).fit(1)
    with pytest.raises(ValueError, match='per'): TorchScheduler(PLATEAU, 'step')
    with pytest.raises(TypeError, match='function'):
        TorchScheduler(PER_BATCH['cosine'](torch.optim.SGD(net().parameters(), lr=0.1)))
    with pytest.raises(ValueError, match='ParamScheduler'):
        learner([TorchScheduler(PLATEAU)]).fit_one_cycle(1)

@pytest.mark.parametrize('make', (3, None, S.StepLR(torch.optim.SGD(net().parameters(), lr=0.1), 3)))
def test_what_makes_no_scheduler_is_refused(make):
    with pytest.raises(TypeError, match='make'): TorchScheduler(make)

def test_a_schedule_of_ours_beside_it_is_refused_and_only_where_it_moves_the_rate():
    learn = learner([TorchScheduler(PER_BATCH['cosine'])])
    with pytest.raises(ValueError, match='ParamScheduler'): learn.fit_one_cycle(1)
    learn.fit(1, wd=0.1)
    learn.lr_find(show=False)

@pytest.mark.slow
@pytest.mark.parametrize('name', (*PER_BATCH, 'plateau'))
def test_a_resumed_fit_is_the_unbroken_one_to_the_bit(name, tmp_path):
    class Break(Callback):
        def before_batch(self):
            if self.n_iter == 13: raise InterruptedError
    def fit(*cbs, **kw):
        learn = learner([TorchScheduler(PER_BATCH.get(name, PLATEAU)), GradClip(0.1),
                         Checkpoint(tmp_path/'c', every=1)])
        try: learn.fit(4, cbs=list(cbs), **kw)
        except InterruptedError: pass
        return learn
    whole = fit()
    fit(Break())
    again = fit(resume=tmp_path/'c')
    for p, q in zip(whole.model.parameters(), again.model.parameters()): assert torch.equal(p, q)
    assert (whole.recorder.lrs == again.recorder.lrs
            and get_hyper(whole.opt, 'lr') == get_hyper(again.opt, 'lr'))
