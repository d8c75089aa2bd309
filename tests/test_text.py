"""Texts become tokens by rules, tokens numbers, numbers batches of like length or a stream; whatever a person
writes goes through, and comes out of predict and a file as it went in."""
import random, tempfile

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exp.callbacks import Callback
from exp.checkpoints import Checkpoint
from exp.core import set_seed, test_eq as assert_eq
from exp.data_block import SplitData
from exp.dataloader import DataLoader
from exp.distributed import RankLoader
from exp.inference import load_learner, load_predictor
from exp.learner import Learner
from exp.standins import imdb_standin
from exp.text import (BOS, MARKS, PAD, UNK, LengthSampler, MeanOfWords, NextTokens, Numericalizer, ReadTexts,
                      TextList, TextTable, Tokenizer, TokenStream, clean_html, duplicates, join_words,
                      pad_front, words)

LIKED = ['I loved it!', 'What a GREAT film, great', 'loved the cast, great fun', 'so good... great',
         'loved loved it']
HATED = ['I hated it!', 'What a BAD film, bad', 'hated the cast, bad noise', 'so dull... bad',
         'hated hated it']
ODD = {'emoji': '👍🏽👍🏽👍🏽 loved it 👩‍💻 🇫🇷', 'right to left': 'שלום עולם, مرحبا بالعالم!', 'empty': '',
       'blanks': ' \n\t ', 'very long': 'great film ' * 20_000, 'one word': 'x' * 100_000,
       'Hindi': 'यह फ़िल्म अच्छी है', 'Chinese': '这部电影很好看', 'decomposed': 'cafe\u0301', 'null': 'a\0b',
       'half a character': 'a\ud800b', 'marks': 'xxbos xxpad xxunk', 'controls': 'a\x1cb\x85c\u2028d'}
odd_ones = pytest.mark.parametrize('text', ODD.values(), ids=ODD)

def frame():
    texts = [f'{t} {i}' for i in range(4) for t in LIKED + HATED]
    label = (['yes']*5 + ['no']*5)*4
    return pd.DataFrame({'label': label, 'text': texts, 'is_valid': [i >= 30 for i in range(40)]})

def bunch(bs=5, df=None, cls=TextList, seed=1):
    df = frame() if df is None else df
    return cls.from_df(df, cols='text').split_from_df(col=2).label_from_df(cols=0).databunch(bs=bs, seed=seed)

def trained(epochs=12):
    set_seed(0)
    data = bunch()
    model = MeanOfWords(len(data.item_data.x.vocab), data.c, 16)
    learn = Learner(data, model, lr=0.05, path=tempfile.mkdtemp())
    with learn.quiet(): learn.fit(epochs)
    return learn

@pytest.fixture(scope='module')
def learn(): return trained()

# ---- tokens

RULES = {"I didn't see it": "i did n't see it",
         "It’s John's, they'll": "xxmaj it 's xxmaj john 's , they 'll",
         'NASA and U.S. firms': 'xxup nasa and xxup u.s. firms', 'I saw A film': 'i saw a film',
         'WOW!!!! sooo good...': 'xxup wow xxrep 4 ! s xxrep 3 o good xxrep 3 .',
         'no!! yes?!': 'no ! ! yes ? !',
         '3.14 and 1,000 in the 1990s': '3.14 and 1,000 in the 1990s', '1000000 10/10': '1000000 10 / 10',
         'a<br /><br />b &amp;quot;c&quot; #39;d': 'a b " c " \' d', '5 < 6 &lt; 7 <3': '5 < 6 < 7 < 3',
         'well-known e-mail': 'well - known e - mail', 'xxbos xxmaj': 'xx bos xx maj',
         "Xxbos XXBOS xxbos's": "xxmaj xx bos xxup xx bos xx bos 's", 'oooxxpad': 'xxrep 3 o xx pad',
         'Xxrep 99999 a': 'xxmaj xx rep 99999 a', 'www.': 'xxrep 3 w .', "won't": "wo n't",
         'MP3 iPhone': 'xxup mp3 iphone', "DIDN'T Can't": "xxup did n't xxmaj ca n't",
         '👍🏽👍🏽👍🏽👩‍💻': 'xxrep 3 👍🏽 👩‍💻', 'cafe\u0301 यह': 'cafe\u0301 यह'}

@pytest.mark.parametrize('text', RULES)
def test_the_rules(text): assert_eq(' '.join(words(text)), RULES[text])

@settings(deadline=None, max_examples=200)
@given(st.text())
def test_any_text_has_tokens_without_blanks_and_marks_come_from_rules_alone(text):
    tokens = words(text)
    assert all(t and not any(c.isspace() for c in t) for t in tokens)
    assert not {BOS, PAD, UNK} & set(tokens)
    assert words(text) == tokens   # also from memory
    join_words(tokens)

@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from([*MARKS, *map(str.upper, MARKS), *map(str.title, MARKS), "'s", "n't", 'aaa',
                                 ' ', '.', '<b>', '&lt;b&gt;', '3', 'é']), max_size=6).map(''.join))
def test_no_writer_can_make_a_mark_of_the_stream(text):
    assert not {BOS, PAD, UNK} & set(words(text))

@settings(deadline=None)
@given(st.text(alphabet='ab .,!\'', max_size=40))
def test_no_letter_is_lost(text):
    kept = ''.join(join_words(words(text)).split())
    assert kept == ''.join(text.split())

@odd_ones
def test_odd_texts_have_tokens(text):
    tokens = Tokenizer().process(text)
    assert tokens[0] == BOS and tokens == Tokenizer().process_all([text])[0]

def test_html_is_cleaned_and_other_brackets_stay():
    assert_eq(clean_html('a<BR/>b<i class="x">c</i>'), 'a\nbc')
    assert_eq(clean_html('un<b>believ</b>able'), 'unbelievable')
    assert_eq(clean_html('bad &lt;br /&gt;good&amp;lt;p&amp;gt;!'), 'bad \ngood\n!')
    assert_eq(clean_html('if a<b and c>d: x <- y &eacute; &#233;'), 'if a<b and c>d: x <- y é é')
    assert_eq(clean_html('quot;x quot; AT&T; r&d'), '"x " AT&T; r&d')

def test_tokens_are_joined_as_people_write():
    for text in ("It's a GREAT film, isn't it?", 'Oh!!!! 5 of 10 (at most).', "John's cat can't"):
        assert_eq(join_words([BOS, *words(text), PAD]), text)
    assert join_words(['xxrep', 'x']) == 'x' and join_words(['xxrep']) == ''

@pytest.mark.launch
def test_several_processes_find_the_same_tokens():
    texts = [t for t in LIKED + HATED + list(ODD.values()) if len(t) < 1000 and '\ud800' not in t]*60
    assert Tokenizer(num_workers=2).process_all(texts) == Tokenizer(num_workers=0).process_all(texts)

def with_blanks(text): return text.split(',')

@pytest.mark.launch
def test_tokens_with_blanks_and_empty_ones_are_the_same_from_several_processes():
    texts = ['x y,z', '', ',', 'a,b c,,d', 'a']*200
    assert Tokenizer(with_blanks, 2).process_all(texts) == Tokenizer(with_blanks, 0).process_all(texts)

@pytest.mark.parametrize('item', [None, 3, b'x', ['x'], float('nan')])
def test_what_is_no_text_is_refused(item):
    with pytest.raises(TypeError, match='text 1'): Tokenizer().process_all(['x', item])
    with pytest.raises(TypeError): Tokenizer().process(item)

# ---- numbers

def learned(docs, **how):
    num = Numericalizer(**how)
    num.learn(docs)
    return num

def test_the_vocabulary_is_sorted_by_frequency_then_by_letters_after_the_marks():
    num = learned([[BOS, 'b', 'a', 'c', 'b'], [BOS, 'c', 'a', 'd']])
    assert_eq(num.vocab, [*MARKS, 'a', 'b', 'c'])
    assert_eq(num.process(['c', 'd', 'a']).tolist(), [8, 0, 6])
    assert_eq(learned([['a', 'b', 'b']], min_freq=1, max_vocab=1).vocab, [*MARKS, 'b'])

def test_numbers_go_back_to_tokens_and_a_length_is_cut():
    num = learned([['a', 'b']]*2, max_len=3)
    ids = num.process(['a', 'b', 'a', 'b'])
    assert ids.dtype == np.int32 and num.tokens_of(ids) == ['a', 'b', 'a'] and num.decode(ids) == 'a b a'
    again = Numericalizer()
    again.load_state_dict(num.state_dict())
    again.learn([['z']*5])   # what was loaded stays
    assert_eq((again.vocab, again.max_len), (num.vocab, 3))

@pytest.mark.parametrize('vocab', [['a', 'b'], [UNK, PAD, BOS, 'a', 'a'], ['a', UNK, PAD, BOS]])
def test_a_vocabulary_that_cannot_serve_is_refused(vocab):
    with pytest.raises(ValueError): Numericalizer(vocab)

# ---- the data block

def test_the_line_of_2018(tmp_path):
    imdb_standin(tmp_path)
    labeled = TextList.from_csv(tmp_path, 'texts.csv', cols='text').split_from_df(col=2).label_from_df(cols=0)
    data = labeled.databunch(bs=16)
    xb, yb = data.one_batch()
    assert xb.dtype == torch.int64 and len(xb) == len(yb) == 16 and data.classes == ['negative', 'positive']
    assert len(data.train_ds) == 800 and len(data.valid_ds) == 200

def test_texts_come_from_folders(tmp_path):
    for part in ('train', 'valid'):
        for label, texts in (('pos', LIKED), ('neg', HATED)):
            (tmp_path/part/label).mkdir(parents=True)
            for i, t in enumerate(texts):
                (tmp_path/part/label/f'{i}.txt').write_text(t + ' 👍', encoding='utf-8')
    (tmp_path/'README.md').write_text('no text of the set')
    split = TextList.from_folder(tmp_path).split_by_folder().label_from_folder()
    assert len(split.train) == 10 and split.classes == ['neg', 'pos']
    assert_eq(split.train.x.tokens(split.train.x.get(9))[-1], '👍')
    files = TextList.from_folder(tmp_path, include='train').split_none().label_none()
    assert len(files.train) == 10 and files.train[0][1] is None
    assert ReadTexts().process('as it is') == 'as it is'

def test_empty_cells_numbers_and_several_columns():
    df = pd.DataFrame({'title': ['One', None, '3'], 'text': ['a', 'b', None], 'y': [0, 1, 1]})
    assert_eq(TextList.from_df(df, cols=['title', 'text']).items, ['One\na', '\nb', '3\n'])
    assert_eq(TextList.from_df(df, cols='text').items, ['a', 'b', ''])
    with pytest.raises(ValueError, match='column'): TextList.from_df(df, cols='txt')

def test_numbers_in_a_table_stay_as_they_are_written(tmp_path):
    (tmp_path/'t.csv').write_text('text,y\n1984,0\n1.50,1\n007,1\n')
    assert_eq(TextList.from_csv(tmp_path, 't.csv', cols='text').items, ['1984', '1.50', '007'])

def test_processors_learn_from_training_alone():
    df = frame()
    df.loc[df.is_valid, 'text'] += ' zebra zebra'
    vocab = bunch(df=df).item_data.x.vocab
    assert 'zebra' not in vocab and 'loved' in vocab and vocab[:6] == list(MARKS)

def test_a_class_that_training_lacks_is_an_error_that_names_it_unless_there_is_another():
    df = frame()
    df.loc[35, 'label'] = 'maybe'
    with pytest.raises(ValueError, match='maybe'): bunch(df=df)
    texts = TextList.from_df(df, cols='text').split_from_df('is_valid')
    assert_eq(texts.label_from_df(cols='label', other='else').classes, ['no', 'yes', 'else'])

def test_labels_can_be_left_out():
    split = TextList(LIKED).split_none()
    assert isinstance(split.label_none(), SplitData) and split.train.y is None
    with pytest.raises(ValueError, match='labels already'): split.label_none()

# ---- batches

@settings(deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=8))
def test_padding_stands_in_front_and_nothing_is_lost(lengths):
    xs = [torch.arange(2, n + 2) for n in lengths]
    out = pad_front(xs, 1)
    assert out.shape == (len(xs), max(lengths))
    for row, x in zip(out, xs):
        assert_eq(row[len(row) - len(x):], x)
        assert (row[:len(row) - len(x)] == 1).all()

@settings(deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=100), st.integers(1, 12), st.integers(0, 5))
def test_the_sampler_gives_each_item_once_the_longest_first_by_seed_and_epoch(lengths, bs, epoch):
    s = LengthSampler(lengths, bs, seed=3)
    order = s.order(epoch)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert_eq(order, LengthSampler(lengths, bs, seed=3).order(epoch))
    assert_eq(s.order(epoch, bs), order[bs:])
    assert max(lengths) == max(lengths[i] for i in order[:bs])
    plain = [lengths[i] for i in LengthSampler(lengths, bs, shuffle=False).order(epoch)]
    assert plain == sorted(lengths, reverse=True)

def test_batches_of_like_length_need_little_padding_and_differ_between_epochs():
    rng = random.Random(0)
    lengths = [round(rng.lognormvariate(4, 0.7)) + 1 for _ in range(2000)]
    s = LengthSampler(lengths, 32, seed=0)
    def padded(order): return sum(32*max(lengths[i] for i in order[k:k + 32]) for k in range(0, 1984, 32))
    assert padded(s.order(0).tolist()) < 1.2*sum(lengths) and padded(list(range(2000))) > 2*sum(lengths)
    assert s.order(0).tolist() != s.order(1).tolist()
    sets = [{frozenset(o.tolist()) for o in s.order(e)[:1984].split(32)} for e in (0, 1)]
    assert not sets[0] & sets[1]   # other texts meet in a batch

def test_validation_is_sorted_and_answers_are_in_the_order_of_the_set(learn):
    sizes = [len(b[0][0]) for b in learn.data.valid_dl]
    assert sizes == sorted(sizes, reverse=True)
    probs, targets = learn.get_preds()
    assert_eq(targets, torch.tensor(learn.data.valid_ds.y.items))
    one = learn.predict(frame().text[33])
    assert torch.allclose(one.probs, probs[3], atol=1e-5)

@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.integers(2, 30), max_size=20), min_size=2, max_size=6))
def test_padding_changes_nothing_for_the_small_model(docs):
    set_seed(1)
    model = MeanOfWords(31, 3, 8)
    docs = [torch.tensor([2, *d]) for d in docs]
    both = model(pad_front(docs, 1))
    for d, row in zip(docs, both): assert torch.allclose(model(d[None])[0], row, atol=1e-5)

# ---- looking, asking, writing down

def test_a_batch_and_results_are_tables_of_whole_texts(learn):
    shown = learn.data.show_batch(3)
    assert isinstance(shown, TextTable) and len(shown) == 3 and list(shown.df) == ['text', 'target']
    assert 'xxbos' in shown._repr_html_() and 'xxbos' in repr(shown)
    assert list(learn.show_results(4).df) == ['text', 'truth', 'prediction']
    assert len(learn.plot_top_losses(2)) == 2
    worst = learn.top_losses(3)
    assert worst.text.str.startswith('xxbos').all() and worst.loss.is_monotonic_decreasing

def test_the_small_model_learns_and_comes_back_from_a_file(learn):
    assert learn.validate()['loss'] < 0.3
    assert learn.predict('I loved it, great').label == 'yes' and learn.predict('hated, bad').label == 'no'
    path = learn.export()
    for other in (load_learner(path), load_predictor(path), learn.predictor()):
        assert torch.allclose(other.predict('I loved it').probs, learn.predict('I loved it').probs, atol=1e-6)

@odd_ones
def test_odd_texts_get_an_answer(text, learn):
    own = learn.predictor()
    answer = own.predict(text)
    assert answer.label in ('yes', 'no') and answer.probs.isfinite().all()
    together = own.predict_batch([text, 'loved it', ''])
    assert torch.allclose(together[0].probs, answer.probs, atol=1e-4)

def test_odd_texts_are_trained_on_and_shown():
    df = pd.concat([frame(), pd.DataFrame({'label': ['yes', 'no']*6 + ['no'], 'text': list(ODD.values()),
                                           'is_valid': [i % 2 == 0 for i in range(13)]})])
    data = bunch(4, df[df.text.str.len() < 30_000])
    learn = Learner(data, MeanOfWords(len(data.item_data.x.vocab), data.c, 8))
    with learn.quiet(): learn.fit(1)
    assert np.isfinite(learn.history[-1]['valid_loss'])
    data.show_batch(train=False)._repr_html_()

# ---- the stream

def docs(n=12, rng=None):
    rng = rng or random.Random(0)
    lengths = [rng.randint(0, 30) for _ in range(n)]
    return [np.array([2, *(rng.randint(6, 99) for _ in range(k))], dtype=np.int32) for k in lengths]

@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.booleans(), st.integers(0, 3), st.integers(0, 99))
def test_a_stream_reads_each_column_through_and_targets_are_one_ahead(bs, bptt, shuffle, epoch, salt):
    ds = TokenStream(docs(rng=random.Random(salt)), bs, bptt, shuffle)
    dl = DataLoader(ds, bs, seed=7)
    dl.set_epoch(epoch)
    xs, ys = (torch.cat(parts, 1) for parts in zip(*dl))
    assert xs.shape == (bs, ds.n_rows) and xs.dtype == torch.int64
    assert_eq(xs[:, 1:], ys[:, :-1])
    assert_eq(xs[1:, 0], ys[:-1, -1])   # the next column begins where this one ends
    if not shuffle: assert_eq(xs.flatten(), torch.from_numpy(np.concatenate(ds.docs))[:xs.numel()].long())
    assert all(b.shape == (bs, bptt) for b, _ in list(dl)[:-1])

def test_documents_are_shuffled_whole_by_seed_and_epoch():
    ds = TokenStream(docs(), 1, 10, shuffle=True)
    flat = lambda seed, epoch: ds.columns(seed, epoch)[0].flatten().tolist()
    assert flat(0, 0) == flat(0, 0) != flat(0, 1) and flat(0, 0) != flat(1, 0)
    text = ' '.join(map(str, flat(0, 3) + ds.columns(0, 3)[1][:, -1].tolist()))
    assert all(' '.join(map(str, d.tolist())) in text for d in ds.docs)

@pytest.mark.parametrize('num_workers', [0, pytest.param(2, marks=pytest.mark.launch)])
def test_a_stream_goes_on_in_the_middle_of_an_epoch(num_workers):
    ds = TokenStream(docs(40), 4, 5, shuffle=True)
    whole, part = DataLoader(ds, 4, seed=3), DataLoader(ds, 4, seed=3, num_workers=num_workers)
    whole.set_epoch(2)
    part.set_epoch(2, skip_items=4*7)
    rest = list(whole)[7:]
    got = list(part)
    assert len(rest) == len(got) > 3
    for a, b in zip(rest, got):
        assert_eq(list(a), list(b))
        assert_eq(list(a.items), list(b.items))

def test_each_of_two_processes_reads_its_own_columns():
    dl = DataLoader(TokenStream(docs(40), 4, 5, shuffle=True), 4, seed=3)
    whole = [x for x, _ in dl]
    for rank in (0, 1):
        view = RankLoader(dl, rank, 2)
        view.set_epoch(0)
        for x, (mine, _) in zip(whole, view): assert_eq(mine, x[2*rank:2*rank + 2])

def test_a_stream_from_the_data_block():
    data = TextList(LIKED*8 + HATED*8).split_random(0.25, seed=1).stream(bs=3, bptt=7, seed=1)
    xb, yb = data.one_batch()
    assert xb.shape == yb.shape == (3, 7) and data.c == len(data.item_data.x.vocab)
    assert_eq(xb[:, 1:], yb[:, :-1])
    shown = data.show_batch(2).df
    assert shown.text[0].split()[1:] == shown.target[0].split()[:-1]
    assert isinstance(data.item_data.y, NextTokens) and data.item_data.y.decode(yb[0])
    with pytest.raises(ValueError, match='columns'): TextList(['a']).split_none().stream(bs=100)

class Next(torch.nn.Module):
    "Guesses the next token from this one, with a state that is carried from batch to batch."
    def __init__(self, n):
        super().__init__()
        self.emb, self.out = torch.nn.Embedding(n, 8), torch.nn.Linear(8, n)
        self.register_buffer('state', torch.zeros(3, 8))
    def forward(self, x):
        h = self.emb(x) + self.state[:len(x), None]
        if self.training: self.state = h[:, -1].detach()
        return self.out(h)

@pytest.mark.parametrize('every', [2, 5])
def test_a_training_on_a_stream_resumes_bit_for_bit_in_the_middle_of_an_epoch(tmp_path, every):
    class Stop(Callback):
        def after_batch(self):
            if self.in_train and self.n_iter == 7: raise KeyboardInterrupt
    def new():
        set_seed(0)
        data = TextList(LIKED*8 + HATED*8).split_none().stream(bs=3, bptt=7, seed=1)
        return Learner(data, Next(data.c), lr=0.1)
    whole, broken, resumed = new(), new(), new()
    with whole.quiet(): whole.fit(2)
    with broken.quiet(), pytest.raises(KeyboardInterrupt):
        broken.fit(2, cbs=[Checkpoint(tmp_path/'c.pth', every), Stop()])
    with resumed.quiet(): resumed.fit(2, cbs=Checkpoint(tmp_path/'c.pth', every), resume=tmp_path/'c.pth')
    states = (learn.model.state_dict().values() for learn in (whole, resumed))
    for a, b in zip(*states): assert torch.equal(a, b)

# ---- duplicates

def test_duplicates_are_found_whatever_their_case_blanks_and_signs():
    assert_eq(duplicates(['a b', 'c', 'A  b!', 'c<br />', 'd'], ['d']), [2, 3, 4])
    assert duplicates([], ['x']) == duplicates(['x'], []) == []

def test_texts_that_differ_in_vowel_signs_or_have_only_signs_are_not_duplicates():
    assert duplicates(['कि', 'का', '👍', '👎', '?', '!']) == []
    assert_eq(duplicates(['का', 'का!', '👍 👎', '👍👎', 'good ❤️', 'good', '']), [1, 3, 5])
