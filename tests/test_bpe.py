"""Byte-pair encoding loses nothing, whatever is written, and learns the merges that Hugging Face's tokenizers
learns from the same texts."""
import copy, json, pickle, random

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exp.bpe import BPE
from exp.core import load_state, save_state, test_eq as assert_eq
from exp.inference import load_learner
from exp.learner import Learner
from exp.text import MeanOfWords, ReadTexts, TextList

@pytest.fixture(scope='module')
def texts(request):
    root = request.config.rootpath
    return [(root/name).read_text(encoding='utf-8') for name in ('LICENSE', 'CONTRIBUTING.md')]

@pytest.fixture(scope='module')
def bpe(texts):
    b = BPE(600)
    b.learn(texts)
    return b

# ---- nothing is lost

@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_any_string_comes_back(text):
    assert BPE().decode(BPE().encode(text)) == text

@settings(deadline=None, max_examples=200)
@given(st.text(alphabet='the licnsofr \n\'"…é½👍🏽שמ_\x1c\u2028'))
def test_any_string_comes_back_after_merges(text):
    b = _learned()
    assert b.decode(b.encode(text)) == text

def _learned(made=[]):
    if not made:
        made.append(BPE(400))
        made[0].learn(['the license of the licensor is for these others, the one of the rest ']*3)
    return made[0]

ODD = ['', ' ', '\ud800', '👍🏽👩‍💻', 'שלום עולם', 'a'*100_000, '\0\x1c\n\n\t ', 'xxbos xxpad', 'é'*999]
@pytest.mark.parametrize('text', ODD, ids=range(len(ODD)))
def test_odd_texts_come_back_and_are_never_empty(bpe, text):
    ids = bpe.process(text)
    assert ids[0] == bpe.bos and ids.dtype == np.int32 and bpe.decode(ids) == text
    assert_eq(bpe.process_all([text])[0], ids)

def test_a_text_cut_within_a_character_still_decodes(bpe):
    ids = bpe.encode('a👍')
    assert '�' in bpe.decode(ids[:-1]) and bpe.decode(torch.tensor(ids)) == 'a👍'

# ---- merges

def test_the_commonest_pair_is_merged_first():
    b = BPE(261)
    b.learn(['abab abab', 'abc'])
    assert_eq(b.tokens[258:], [b'ab', b'abab'])   # ' abab' occurs once
    assert b.encode('abab') == [259] and len(b.encode('ba')) == 2

def test_training_stops_where_no_pair_is_frequent_enough():
    b = BPE(1000)
    b.learn(['ab ab', 'xyz'])
    assert len(b.tokens) == 260 and b.tokens[-2:] == [b'ab', b' ab'] or len(b.tokens) == 259
    b.learn([])   # nothing at all
    assert len(b.tokens) == 258

@pytest.mark.parametrize('n', range(1, 9))
def test_runs_of_a_letter_are_merged_from_the_left(n):
    b = BPE(259)
    b.learn(['aa bb'[:2]]*3)
    assert_eq([len(b.tokens[i]) for i in b.encode('a'*n)], [2]*(n//2) + [1]*(n % 2))

def test_the_merges_of_tokenizers_are_ours(root, request):
    known = json.loads((root/'tests/fixtures/bpe_license.json').read_text(encoding='utf-8'))
    b = BPE(900)
    b.learn([(root/'LICENSE').read_text(encoding='utf-8')])
    assert_eq([list(pair) for pair in b.merges], known['merges'])
    assert_eq(b.encode(known['text']), known['ids'])

def theirs(texts, size):
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, special_tokens=['xxpad', 'xxbos'], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    return tok

@pytest.mark.parametrize('seed', range(8))
def test_merges_and_numbers_equal_those_of_tokenizers_on_random_texts(seed, texts):
    rng = random.Random(seed)
    made = [''.join(rng.choices('ab c²Ⅳ\x1c_é\n1😀\'s', k=rng.randint(0, 300))) for _ in range(20)]
    for corpus, size in ((made, 500), (texts, 500 + 100*seed)):
        ours, other = BPE(size), theirs(corpus, size)
        ours.learn(corpus)
        number = other.get_vocab()
        merges = [(number[a], number[b]) for a, b in json.loads(other.to_str())['model']['merges']]
        assert_eq(ours.merges, merges)
        for text in corpus + made: assert ours.encode(text) == other.encode(text).ids

# ---- as a processor

def test_it_is_saved_as_plain_data_and_copied(bpe, tmp_path):
    save_state(tmp_path/'bpe.pth', bpe.state_dict())
    again = BPE()
    again.load_state_dict(load_state(tmp_path/'bpe.pth'))
    for other in (again, copy.deepcopy(bpe), pickle.loads(pickle.dumps(bpe))):
        assert other.encode('the licensor') == bpe.encode('the licensor') and other.vocab == bpe.vocab

def test_texts_in_subwords_train_export_and_predict(tmp_path):
    texts = [f'{w} film {i}' for i in range(10) for w in ('good', 'bad')]
    items = TextList(texts).processed_by(ReadTexts, BPE(300, max_len=20))
    data = items.split_random(0.2, seed=1).label_from_func(lambda t: t.split()[0]).databunch(bs=4)
    assert 'xxbos' in data.show_batch(2).df.text[0] and len(data.item_data.x.vocab) <= 300
    learn = Learner(data, MeanOfWords(len(data.item_data.x.vocab), 2, 8, pad=0), lr=0.1, path=tmp_path)
    with learn.quiet(): learn.fit(5)
    for text in ('good 👍', '', 'bad'):
        again = load_learner(learn.export()).predict(text)
        assert torch.allclose(again.probs, learn.predict(text).probs, atol=1e-6)
    stream = TextList(texts).processed_by(ReadTexts, BPE(300)).split_none().stream(bs=2, bptt=8)
    assert stream.item_data.y.decode(stream.one_batch()[0][0])

@pytest.mark.parametrize('how,kind', [(dict(vocab_size=100), ValueError), (dict(vocab_size='x'), TypeError),
                                      (dict(min_freq=0), ValueError), (dict(max_len=0), ValueError)])
def test_bad_settings_are_refused(how, kind):
    with pytest.raises(kind): BPE(**how)

def test_what_is_no_text_is_refused(bpe):
    with pytest.raises(TypeError, match='text 1'): bpe.process_all(['a', None])
    with pytest.raises(TypeError): bpe.learn([3])
