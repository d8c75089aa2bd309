"""Bags count what scikit-learn counts; naive Bayes, TF-IDF and logistic regression give its numbers; vectors
are looked up, compared and read."""
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from exp.bags import (Bags, NaiveBayes, NBLogistic, NGrams, WordVectors, bag_of_words, fit_logistic,
                      read_vectors, tfidf)
from exp.core import test_close as assert_close, test_eq as assert_eq

from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB

random_docs = st.lists(st.lists(st.integers(0, 7), max_size=12), min_size=2, max_size=10)

def arrays(docs): return [np.array(d, dtype=np.int32) for d in docs]
def some_docs(n=60, size=12, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, size, rng.integers(1, 30)).astype(np.int32) for _ in range(n)]
def words_of(docs): return [' '.join(f'w{i:03}' for i in d) for d in docs]

# ---- counting

@settings(deadline=None)
@given(random_docs)
def test_a_bag_counts_each_number_of_each_document(docs):
    bags = bag_of_words(arrays(docs), 8)
    counts = [torch.tensor(d, dtype=torch.int64).bincount(minlength=8) for d in docs]
    assert_eq(bags.dense(), torch.stack(counts))
    w = torch.randn(8, 3)
    assert_close(bags.times(w), bags.dense() @ w, 1e-4)
    assert_close(bags.transposed().dense(), bags.dense().T)
    assert_close(bags.transposed().times(torch.ones(len(docs), 2)), bags.dense().sum(0)[:, None].expand(8, 2))

@settings(deadline=None, max_examples=50)
@given(random_docs, random_docs, st.integers(1, 3), st.integers(1, 3))
def test_ngrams_are_those_of_scikit_learn(docs, others, n, min_docs):
    theirs = CountVectorizer(ngram_range=(1, n), token_pattern=r'\S+', min_df=min_docs)
    try: a = theirs.fit_transform(words_of(docs)).toarray()
    except ValueError: return   # nothing occurs often enough
    ours = NGrams(n, min_docs).learn(arrays(docs))
    columns = lambda m: sorted(np.asarray(m).T.tolist())
    # theirs keeps a pair of words that are themselves too rare only if the pair is not, which cannot be
    assert columns(ours(arrays(docs)).dense()) == columns(a)
    both = np.concatenate([a, theirs.transform(words_of(others)).toarray()])
    assert columns(ours(arrays(docs) + arrays(others)).dense()) == columns(both)

def test_pairs_do_not_reach_over_documents_and_unknown_words_do_not_count():
    grams = NGrams(2, 1).learn(arrays([[0, 1], [2, 0]]))
    assert_eq([len(k) for k in grams.known], [3, 2])
    assert_eq(grams(arrays([[1, 2], [9, 0, 1], []])).dense().sum(1).tolist(), [2, 3, 0])
    assert_eq(grams(arrays([[0, 3_000_000, 1]])).dense().sum().item(), 2)

# ---- naive Bayes, TF-IDF

@settings(deadline=None, max_examples=30)
@given(st.integers(2, 4), st.floats(0.01, 5), st.integers(0, 99))
def test_naive_bayes_is_that_of_scikit_learn(c, alpha, seed):
    docs, rng = some_docs(seed=seed), np.random.default_rng(seed)
    y = np.concatenate([np.arange(c), rng.integers(0, c, 60 - c)])
    bags, new = bag_of_words(docs, 12), bag_of_words(some_docs(seed=seed + 1), 12)
    theirs = MultinomialNB(alpha=alpha).fit(bags.dense().numpy(), y)
    ours = NaiveBayes(alpha).fit(bags, y)
    assert_close(ours.words, theirs.feature_log_prob_, 1e-9)
    assert_close(ours.log_probs(new), theirs.predict_log_proba(new.dense().numpy()), 1e-7)

@pytest.mark.parametrize('alpha', [0, -1, float('nan')])
@pytest.mark.parametrize('model', [NaiveBayes, lambda a: NBLogistic(alpha=a)], ids=['bayes', 'logistic'])
def test_words_have_been_seen_before(model, alpha):
    with pytest.raises(ValueError, match='alpha'): model(alpha)

@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99))
def test_tfidf_is_that_of_scikit_learn(seed):
    bags, new = bag_of_words(some_docs(seed=seed), 15), bag_of_words(some_docs(seed=seed + 1), 15)
    theirs = TfidfTransformer().fit(bags.dense().numpy())
    mine, idf = tfidf(bags)
    assert_close(mine.dense(), theirs.transform(bags.dense().numpy()).toarray(), 1e-6)
    assert_close(tfidf(new, idf)[0].dense(), theirs.transform(new.dense().numpy()).toarray(), 1e-6)

def test_an_empty_document_has_no_weights_and_no_nan():
    bags, _ = tfidf(bag_of_words(arrays([[0, 1], [], [2]]), 3))
    assert_eq(bags.dense()[1].tolist(), [0, 0, 0])
    nb = NaiveBayes().fit(bag_of_words(arrays([[0, 1], [], [2]]), 3), [0, 1, 1])
    assert_close(nb.log_probs(bag_of_words(arrays([[]]), 3)).exp(), torch.tensor([[1/3, 2/3]]))

# ---- logistic regression

def test_logistic_regression_is_that_of_scikit_learn():
    docs = some_docs(200)
    bags, y = bag_of_words(docs, 12), np.array([(d == 3).sum() > (d == 5).sum() for d in docs]).astype(int)
    l2 = 1e-3
    w, b = fit_logistic(bags, y, l2, steps=500)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        theirs = LogisticRegression(C=1/(l2*len(y)), tol=1e-9, max_iter=5000).fit(bags.dense().numpy(), y)
    # the columns are ±v, and theirs is 2v: 2·v² is half of its square
    assert_close(w[:, 1] - w[:, 0], theirs.coef_[0], 0.02)
    probs = (bags.times(w) + b).softmax(1)
    assert_close(probs, theirs.predict_proba(bags.dense().numpy()), 0.01)

@pytest.mark.parametrize('c', [2, 3])
def test_weights_by_naive_bayes_find_what_pairs_say(c):
    rng = np.random.default_rng(0)
    docs, y = [], []
    for i in range(300):   # the class is in a pair: 10 before 11, 12 or 13
        d = rng.integers(0, 10, 20)
        d[7:9] = 10, 11 + i % c
        d[15] = 11 + rng.integers(0, c)   # which alone says nothing
        docs.append(d.astype(np.int32))
        y.append(i % c)
    pairs, single = (NBLogistic(n, 1).fit(docs[:200], y[:200]).probs(docs[200:]) for n in (2, 1))
    right = lambda p: (p.argmax(1) == torch.tensor(y[200:])).float().mean()
    assert right(pairs) == 1 and right(single) < 0.95
    assert_close(pairs.sum(1), torch.ones(100))

def test_an_unknown_text_gets_the_bias_alone():
    m = NBLogistic(1, 1).fit(arrays([[0], [1], [1]]), [0, 1, 1])
    assert_close(m.probs(arrays([[], [7]])), m.bias.softmax(0).expand(2, 2))
    assert isinstance(m.grams(arrays([[0]])), Bags)

# ---- vectors

def test_vectors_are_read_and_compared(tmp_path):
    (tmp_path/'v.txt').write_text('man 1 0\nwoman 1 1\nking 3 0.1\nqueen 3 3\nрыба -1 0\n', encoding='utf-8')
    v = read_vectors(tmp_path/'v.txt')
    assert len(v) == 5 and 'king' in v and 'fish' not in v
    assert_eq(v['queen'].tolist(), [3, 3])
    assert v.nearest(v['man'], 1, without=['man'])[0][0] == 'king'
    assert v.analogy('man', 'woman', 'king', 1)[0][0] == 'queen'
    assert len(v.analogy('man', 'woman', 'king', 99)) == 2
    with pytest.raises(KeyError): v['fish']
    with pytest.raises(ValueError): WordVectors(['a', 'a'], torch.ones(2, 3))

def test_a_lookup_is_a_product_with_one_hot_rows():
    w, ids = torch.randn(9, 4), torch.tensor([3, 0, 3])
    assert_close(F.one_hot(ids, 9).float() @ w, w[ids])
