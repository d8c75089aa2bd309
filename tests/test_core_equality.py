"""The helpers of tests take any two things: what differs is an AssertionError that says so, never an error of
the comparison itself."""
import math
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from exp.core import near, test_close, test_eq

NAN = float('nan')
THINGS = dict(
    none=None, true=True, number=3, float=2.5, nan=NAN, text='abc', raw=b'abc', names=['a', 'b'],
    numbers=[1, 2, 8], ragged=[[1], [1, 2]], empty=[],
    table={'a': 1}, several={1, 2}, tensor=torch.tensor([1, 2, 3]),
    grad=torch.tensor([1., 2., 3.5], requires_grad=True), half=torch.tensor([1, 2, 5], dtype=torch.bfloat16),
    scalar=torch.tensor(4), matrix=torch.ones(2, 3), nans=torch.tensor([1., NAN, 3.]),
    complex=torch.tensor([1 + 2j, 2, 3]), array=np.array([4., 5., 6.]),
    sixteen=np.array([1, 2, 4], np.uint16), backwards=np.array([1, 2, 9])[::-1],
    big_endian=np.array([7, 2, 3], '>i4'), strings=np.array(['a', 'c']),
    objects=np.array(['a', None, 3], dtype=object), series=pd.Series([1, 2, 9], index=[7, 8, 9]),
    text_series=pd.Series(['a', 'd'], index=[5, 6]),
    missing=pd.Series([1, None, 3], dtype='Int64'), frame=pd.DataFrame({'a': [1, 2]}),
    index=pd.Index([1, 2, 7]), image=Image.new('L', (3, 1)), decimal=Decimal('0.1'))
PAIRS = [(a, b) for i, a in enumerate(THINGS) for j, b in enumerate(THINGS) if i < j]
CASES = [pytest.param(THINGS[a], THINGS[b], id=f'{a}-{b}') for a, b in PAIRS]

@pytest.mark.parametrize('wrap', [lambda o: o, lambda o: {'deep': [o]}], ids=['bare', 'nested'])
@pytest.mark.parametrize('a, b', CASES)
def test_two_different_things_are_not_equal(a, b, wrap):
    with pytest.raises(AssertionError): test_eq(wrap(a), wrap(b))
    with pytest.raises(AssertionError): test_eq(wrap(b), wrap(a))

@pytest.mark.parametrize('a, b', CASES)
def test_two_different_things_are_not_close(a, b):
    assert near(a, b) is False and near(b, a) is False
    with pytest.raises(AssertionError): test_close(a, b)

@pytest.mark.parametrize('a, b', [
    (torch.tensor([1, 2]), pd.Series([1, 2], index=[8, 9])), (pd.Series([1, 2], index=[8, 9]), [1, 2]),
    (pd.Series(['a', 'b'], index=[8, 9]), ['a', 'b']),
    (np.array(['a', 'b']), ['a', 'b']), (np.array(['a', None], dtype=object), ['a', None]),
    (np.array([1, 2, 3])[::-1], [3, 2, 1]), (np.array([1, 2], '>i4'), (1, 2)),
    (np.array([1, 2], np.uint16), torch.tensor([1, 2])), (pd.DataFrame({'a': [1]}), pd.DataFrame({'a': [1]})),
    (pd.Series([1., 2.]), pd.Series([1., 2.])),
    (np.array([[1, 2]]), pd.DataFrame({'a': [1], 'b': [2]})),
    ({'x': [pd.Series(['a'])]}, {'x': [np.array(['a'])]}), (np.float32(2), 2),
    (torch.tensor([], dtype=torch.long), [])])
def test_what_holds_the_same_is_equal_whatever_holds_it(a, b):
    test_eq(a, b)
    test_eq(b, a)

@pytest.mark.parametrize('a, b',
                         [(np.array([1., 2.])[::-1], [2, 1]), (pd.Series([1., 2.], index=[8, 9]), [1, 2]),
                          (np.array([1., 2.], '>f8'), torch.tensor([1., 2.])),
                          (torch.tensor([1 + 2j]), [1 + 2j]), (math.inf, math.inf),
                          (torch.tensor([True]), [1])])
def test_near_takes_numbers_wherever_they_are(a, b):
    assert near(a, b) and near(b, a)
    test_close(a, b)

def test_two_complex_numbers_differ_in_their_imaginary_part_too():
    assert not near(torch.tensor([1 + 2j]), torch.tensor([1 + 3j]))
    with pytest.raises(AssertionError, match='difference'):
        test_close(torch.tensor([1 + 2j]), torch.tensor([1 + 3j]))

def test_two_infinities_are_not_the_largest_gap():
    with pytest.raises(AssertionError, match=r'\(1,\)'):
        test_close(torch.tensor([math.inf, 1.]), torch.tensor([math.inf, 2.]))

def test_frames_of_other_columns_are_not_equal():
    with pytest.raises(AssertionError): test_eq(pd.DataFrame({'a': [1]}), pd.DataFrame({'b': [1]}))

@dataclass
class Pair:
    one: object
    two: object

@pytest.mark.parametrize('make',
                         [lambda v: Pair(torch.tensor([1, v]), v), lambda v: torch.eye(2).mul(v).to_sparse(),
                          lambda v: [Pair(np.array([v, 2]), None)]])
def test_dataclasses_and_sparse_tensors_are_compared_by_value(make):
    test_eq(make(3), make(3))
    with pytest.raises(AssertionError): test_eq(make(3), make(4))
