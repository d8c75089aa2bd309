"""The checks of lesson 01's exercises tell right answers from wrong ones."""
import hashlib, struct

import pytest

from exp.core import check_exercise

def per_pixel(train, x):
    mean, std = train.float().mean(0), train.float().std(0)
    return (x.float() - mean)/std.where(std > 0, 1)

def divides_by_zero(train, x): return (x.float() - train.float().mean(0))/train.float().std(0)
def over_all_pixels(train, x): return (x.float() - train.float().mean(0))/train.float().std()
def of_its_own(train, x): return per_pixel(x, x)
def hides_with_eps(train, x): return (x.float() - train.float().mean(0))/(train.float().std(0) + 10)

def bad_files(folder):
    lines = [line.split(maxsplit=1) for line in (folder/'SHA256SUMS').read_text().splitlines()]
    good = (lambda digest, name: (folder/name).is_file()
            and hashlib.sha256((folder/name).read_bytes()).hexdigest() == digest)
    return sorted(name for digest, name in lines if not good(digest, name))

def missing_only(folder): return [n for n in bad_files(folder) if not (folder/n).exists()]
def all_files(folder): return [line.split()[1] for line in (folder/'SHA256SUMS').read_text().splitlines()]

def to_idx(t): return struct.pack(f'>BBBB{t.ndim}I', 0, 0, 8, t.ndim, *t.shape) + t.numpy().tobytes()
def little_endian(t): return struct.pack(f'<BBBB{t.ndim}I', 0, 0, 8, t.ndim, *t.shape) + t.numpy().tobytes()
def wrong_type(t): return struct.pack(f'>BBBB{t.ndim}I', 0, 0, 9, t.ndim, *t.shape) + t.numpy().tobytes()
def no_shape(t): return struct.pack('>BBBBI', 0, 0, 8, 1, t.numel()) + t.numpy().tobytes()

@pytest.mark.parametrize('name, answer', [('01.1', per_pixel), ('01.2', bad_files), ('01.3', to_idx)])
def test_a_right_answer_is_right(name, answer): assert check_exercise(name, answer) == f'{name}: right'

@pytest.mark.parametrize('name, answer', [('01.1', divides_by_zero), ('01.1', over_all_pixels),
                                          ('01.1', of_its_own), ('01.1', hides_with_eps),
                                          ('01.2', missing_only), ('01.2', all_files),
                                          ('01.3', little_endian), ('01.3', wrong_type), ('01.3', no_shape)])
def test_a_wrong_answer_is_told_what_is_wrong(name, answer):
    verdict = check_exercise(name, answer)
    assert 'right' not in verdict.split()[1] and len(verdict) > 30

def test_no_answer_is_not_yet(): assert check_exercise('01.1', None) == '01.1: not yet'
