"""The exercises of lesson 20 accept a right answer and say what is wrong with a wrong one."""
import pytest

from exp.core import check_exercise

def says(name, answer): return str(check_exercise(name, answer))

def test_not_yet():
    assert [says(f'20.{k}', None) for k in (1, 2, 3)] == [f'20.{k}: not yet' for k in (1, 2, 3)]


def factors(counts): return [c*len(counts)/sum(counts) for c in counts]

def test_the_factors_of_the_losses(): assert says('20.1', factors) == '20.1: right'

@pytest.mark.parametrize('wrong, words',
                         [(lambda counts: [c/sum(counts) for c in counts], 'DDP divides by 2 once more'),
                          (lambda counts: [1.]*len(counts), 'makes the average'),
                          (lambda counts: [1.], 'answers 1 factors')])
def test_wrong_factors(wrong, words): assert words in says('20.1', wrong)


def joined(stats):
    n = sum(m for m, *_ in stats)
    mean = sum(m*mu for m, mu, _ in stats)/n
    return n, mean, sum(m*(var + (mu - mean)**2) for m, mu, var in stats)/n

def test_the_variance_of_parts(): assert says('20.2', joined) == '20.2: right'

def mean_of_means(stats):
    n, mean, var = joined(stats)
    return n, sum(mu for _, mu, _ in stats)/len(stats), var

def mean_of_variances(stats):
    n, mean, _ = joined(stats)
    return n, mean, sum(m*var for m, _, var in stats)/n

def unbiased(stats):
    n, mean, var = joined(stats)
    return n, mean, var*n/(n - 1)

@pytest.mark.parametrize('wrong, words', [(mean_of_means, 'each value counts the same'),
                                          (mean_of_variances, 'how far apart'), (unbiased, 'the variance is'),
                                          (lambda stats: (len(stats), 0., 1.), 'n is 2')])
def test_wrong_variances(wrong, words): assert words in says('20.2', wrong)


def goyal(lr, k, warm, drops):
    def sched(pos):
        if pos < warm: return lr + (k - 1)*lr*pos/warm
        return k*lr*0.1**sum(pos >= d for d in drops)
    return sched

def test_the_warm_up(): assert says('20.3', goyal) == '20.3: right'

@pytest.mark.parametrize('wrong, words', [(lambda lr, k, warm, drops: goyal(0., k, warm, drops), 'at 0.0'),
                                          (lambda lr, k, warm, drops: goyal(lr, k, warm, drops[:1]),
                                           'at 0.61'),
                                          (lambda lr, k, warm, drops: lr, 'a function of the position')])
def test_wrong_warm_ups(wrong, words): assert words in says('20.3', wrong)
