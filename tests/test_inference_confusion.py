"""The confusion matrix: one logit is enough for two classes, and what the loss ignores is left out."""
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.dataloader import Dataset
from exp.losses import BinaryCrossEntropy, CrossEntropy, add_loss_parts
from exp.metrics import binary_accuracy
from exp.mixup import LabelSmoothing
from test_losses_errors import learner, x, y
from test_metrics import yes

class OneLogit(nn.Module):
    def __init__(self, flat):
        super().__init__()
        self.layer, self.flat = nn.Linear(4, 1), flat
    def forward(self, x):
        return self.layer(x.flatten(1)).squeeze(1) if self.flat else self.layer(x.flatten(1))

@pytest.mark.slow
@pytest.mark.parametrize('loss',
                         [nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits, BinaryCrossEntropy()])
@pytest.mark.parametrize('flat', [True, False])
def test_one_logit_has_a_confusion_matrix_and_answers_of_0_and_1(loss, flat):
    targets = yes.float() if flat else yes.float()[:, None]
    learn = learner(Dataset(images := x.view(64, 1, 2, 2), targets), loss_func=loss, metrics=binary_accuracy)
    learn.model = OneLogit(flat)
    learn.fit(2, lr=0.1)
    said = (learn.model(images).flatten() > 0).long()
    want = [[int(((yes.long() == t) & (said == p)).sum()) for p in (0, 1)] for t in (0, 1)]
    table = learn.confusion_matrix()
    assert table.values.tolist() == want and list(table.index) == [0, 1]
    assert (want[0][0] + want[1][1])/64 == pytest.approx(learn.validate()['binary_accuracy'])
    assert learn.predict(images[0]).label == int(said[0]) and type(learn.predict(images[0]).label) is int
    top = learn.top_losses(64)
    assert (set(top['truth']) | set(top['prediction']) <= {'0', '1'}
            and (top['truth'] == top['prediction']).sum() == want[0][0] + want[1][1])
    learn.show_results(4)
    plt.close('all')

def test_one_logit_that_is_never_right_has_a_matrix_of_two_classes():
    learn = learner(Dataset(x, torch.zeros(64, 1)), loss_func=nn.BCEWithLogitsLoss(), c=1)
    assert learn.confusion_matrix().shape == (2, 2)

@pytest.mark.parametrize('targets', [torch.rand(64, 1), (x > 0).float(), torch.full((64, 1), float('nan'))])
def test_what_has_no_classes_has_no_confusion_matrix(targets):
    with pytest.raises(ValueError, match='class'):
        learner(Dataset(x, targets), loss_func=BinaryCrossEntropy() if targets.shape[1] > 1 else nn.MSELoss(),
                c=targets.shape[1]).confusion_matrix()

def own_loss(pred, yb): return F.cross_entropy(pred, yb)
add_loss_parts(own_loss, activation=partial(torch.softmax, dim=1), decode=lambda pred: pred.argmax(1))
IGNORING = {-100: [nn.CrossEntropyLoss(), F.cross_entropy, CrossEntropy(ignore_index=-100),
                   nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.rand(3)), own_loss, F.nll_loss],
            -1: [CrossEntropy(ignore_index=-1), partial(F.cross_entropy, ignore_index=-1),
                 LabelSmoothing(ignore_index=-1), nn.CrossEntropyLoss(ignore_index=np.int64(-1).item())],
            2: [CrossEntropy(ignore_index=2), partial(F.cross_entropy, ignore_index=2, weight=torch.rand(3)),
                nn.NLLLoss(ignore_index=2)]}

@pytest.mark.parametrize('index,loss', [(i, loss) for i, losses in IGNORING.items() for loss in losses])
def test_what_the_loss_ignores_is_left_out_of_the_confusion_matrix(index, loss):
    targets = y.clone()
    targets[:20] = index
    learn = learner(Dataset(x, targets), loss_func=loss)
    said, kept = learn.model(x).argmax(1), targets != index
    want = [[int((kept & (targets == t) & (said == p)).sum()) for p in range(3)] for t in range(3)]
    assert learn.confusion_matrix().values.tolist() == want
