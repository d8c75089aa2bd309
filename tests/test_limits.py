"""A number that would train, draw or count something else than was meant is refused where it enters."""
import math

import numpy as np
import pytest
import torch
from torch import nn

from exp.augmentation import PilRandomFlip, RandomResizedCrop
from exp.batch_transforms import RandomRotate, RandomZoom, get_transforms, resample
from exp.core import check_real
from exp.data_block import CategoryProcessor
from exp.faults import GradClip
from exp.layers import init_cnn
from exp.losses import BinaryCrossEntropy, HuberLoss
from exp.mixup import LabelSmoothing, MixUp
from exp.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RunningBatchNorm
from exp.regularization import Dropout, clip_grad_values, clip_grads
from exp.schedules import EMA, EarlyStopping, ReduceLROnPlateau

PARAM = nn.Parameter(torch.ones(2))
PARAM.grad = torch.ones(2)

LIMITS = {   # a function of the number, and numbers that lie outside
    'clip_grads': (lambda v: clip_grads(PARAM, v), [-1, math.nan]),
    'clip_grad_values': (lambda v: clip_grad_values(PARAM, v), [-0.1, math.nan]),
    'GradClip norm': (lambda v: GradClip(norm=v), [-1, math.nan]),
    'GradClip value': (lambda v: GradClip(value=v), [-1, math.nan]),
    'Dropout': (Dropout, [-0.1, 1.5, math.nan]),
    'HuberLoss': (HuberLoss, [0, -1, math.nan]),
    'thresh': (lambda v: BinaryCrossEntropy(thresh=v), [-0.1, 1.1, math.nan]),
    'factor': (lambda v: ReduceLROnPlateau(factor=v), [-0.1, 2., math.nan]),
    'min_lr': (lambda v: ReduceLROnPlateau(min_lr=v), [-0.1, math.nan]),
    'patience': (lambda v: EarlyStopping(patience=v), [0, -1]),
    'EMA': (EMA, [-0.1, 1, 1.5, math.nan]),
    'eps': (LabelSmoothing, [-0.1, 1.1, math.nan]),
    'MixUp': (MixUp, [-1, 0, math.nan]),
    'running mom': (lambda v: RunningBatchNorm(3, mom=v), [-0.1, 0, 1.5, math.nan]),
    'p on items': (PilRandomFlip, [-0.1, 1.1, math.nan]),
    'p on batches': (lambda v: RandomRotate(p=v), [-0.1, 1.1, math.nan]),
    'zoom': (lambda v: RandomZoom(2., v), [0, -1, 3, math.nan]),
    'get_transforms zoom': (lambda v: get_transforms(max_zoom=v), [0.5, -1, math.nan]),
    'smallest scale': (lambda v: RandomResizedCrop(9, scale=(v, 1.)), [0, -1, 2, math.nan]),
    'largest scale': (lambda v: RandomResizedCrop(9, scale=(0.1, v)), [0.05, 2, math.nan])}

@pytest.mark.parametrize('name, value', [(name, v) for name, (_, values) in LIMITS.items() for v in values])
@pytest.mark.parametrize('kind', [float, np.float64, torch.tensor], ids=['float', 'numpy', 'tensor'])
def test_a_number_out_of_its_range_is_refused(name, value, kind):
    make, _ = LIMITS[name]
    whole = name == 'patience'
    with pytest.raises(ValueError): make(value if whole else kind(value))

@pytest.mark.parametrize('value', [0, 1, 0.5, np.float32(0.5), torch.tensor(1.)])
def test_the_ends_belong_to_a_range(value):
    assert check_real(v=value, least=0, most=1) == float(value)
    Dropout(value)

@pytest.mark.parametrize('layer, shape', [(BatchNorm(4), (2, 4, 3, 3)), (RunningBatchNorm(4), (2, 4, 3, 3)),
                                          (InstanceNorm(4), (2, 4, 3, 3)), (GroupNorm(2, 4), (2, 4, 3, 3)),
                                          (LayerNorm(4), (2, 4))], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize('kind', [torch.int64, torch.uint8, torch.float64])
def test_a_norm_refuses_another_type_than_its_own_and_mixes_nothing(layer, shape, kind):
    with pytest.raises(TypeError, match='floats'): layer(torch.ones(shape).to(kind))
    assert layer(torch.randn(shape, dtype=torch.float32).bfloat16()).dtype == torch.bfloat16

def test_parametrized_weights_are_not_left_as_they_were_in_silence():
    with pytest.raises(ValueError, match='parametrized'):
        init_cnn(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU()))

def test_a_class_named_twice_is_refused():
    with pytest.raises(ValueError, match='twice'): CategoryProcessor(['cat', 'dog', 'cat'])

@pytest.mark.parametrize('size', [16, (16, 12)])
def test_a_batch_of_none_has_the_size_that_was_asked_for(size):
    want = (0, 3, 16, 16) if size == 16 else (0, 3, 16, 12)
    assert resample(torch.zeros(0, 3, 8, 8), torch.eye(3), size).shape == want
