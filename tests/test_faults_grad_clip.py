"""`GradClip` clips the whole gradient at the step as PyTorch's functions do."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.callbacks import Callback, CancelStepException, Runner
from exp.dataloader import DataLoader, Dataset
from exp.faults import GradClip
from exp.precision import GradAccumulation
from test_precision_accumulation import Frozen, PRECISIONS, Steps, fit, net, points, tol

@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('own', (False, True))
def test_the_whole_gradient_is_clipped_at_the_step(precision, own):
    class EverySecond(Callback):
        def before_step(self):
            if self.n_iter % 2 == 0: raise CancelStepException
    p = PRECISIONS[precision]
    clipped = fit(32, 8, [EverySecond() if own else GradAccumulation(16), GradClip(0.05), steps := Steps()],
                  p, epochs=2)
    assert len(steps.norms) == 4 and all(n == pytest.approx(0.05, rel=1e-3) for n in steps.norms)
    if not own: assert (clipped - fit(32, 16, [GradClip(0.05)], p, epochs=2)).abs().max() < tol(p)

@pytest.mark.parametrize('kw', (dict(norm=0.05), dict(value=0.01), dict(norm=0.02, value=0.01)))
def test_norm_and_value_are_pytorchs(kw):
    got, model = fit(32, 8, [GradClip(**kw)]), net().double()
    opt, (x, y) = torch.optim.SGD(model.parameters(), lr=0.1), points(32)
    for i in range(0, 32, 8):
        opt.zero_grad()
        F.cross_entropy(model(x[i:i+8].double()), y[i:i+8]).backward()
        if 'value' in kw: nn.utils.clip_grad_value_(model.parameters(), kw['value'])
        if 'norm' in kw: nn.utils.clip_grad_norm_(model.parameters(), kw['norm'])
        opt.step()
    torch.testing.assert_close(got, torch.cat([p.detach().flatten() for p in model.parameters()]))

@pytest.mark.parametrize('kw, error', (({}, ValueError), (dict(norm=-1), ValueError),
                                       (dict(value=float('nan')), ValueError), (dict(norm='1'), TypeError),
                                       (dict(value=True), TypeError)))
def test_gradclip_refuses_what_is_no_limit(kw, error):
    with pytest.raises(error): GradClip(**kw)

def test_gradclip_takes_missing_gradients():
    for case in (GradClip(1.), GradClip(value=1.)):
        Runner((DataLoader(Dataset(*points(8)), 8), None), Frozen(), loss_func=F.cross_entropy,
               cbs=case).fit(1)
