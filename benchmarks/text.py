"""Tokens a second: exp's `words` beside the tokenizer of spaCy's blank English, and `BPE.encode` beside
Hugging Face's tokenizers, with the same merges; in turn, one thread each, as medians of paired ratios. Texts
are those of IMDB's sample, or of its stand-in.

    python benchmarks/text.py
    python benchmarks/text.py --clock cpu     on a busy machine: processor seconds
    python benchmarks/text.py --folder texts  your own .txt files

spaCy makes objects with places in the text and attributes, and leaves words as they are; exp's words are
strings in small letters, with marks. The first pass, with an empty memory of words, is listed by itself.
"""
import argparse, os, statistics, time

os.environ.setdefault('RAYON_NUM_THREADS', '1')   # of tokenizers
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import pandas as pd

from exp.bpe import BPE
from exp.core import read_text
from exp.downloads import URLs, data_kind, untar_data
from exp.sources import get_files
from exp.standins import imdb_standin
from exp.text import words

def corpus(folder):
    "A list of texts."
    if folder: return [read_text(f) for f in get_files(folder, '.txt')]
    path = untar_data(URLs.IMDB_SAMPLE, fallback=imdb_standin)
    print('data:', data_kind(path))
    return list(pd.read_csv(path/'texts.csv').text)

def spacy_words():
    try: import spacy
    except ImportError: return print('spaCy does not import here')
    print('spaCy', spacy.__version__)
    return spacy.blank('en').tokenizer

def their_bpe(texts, size):
    try: import tokenizers as tk
    except ImportError: return print('tokenizers does not import here')
    print('tokenizers', tk.__version__)
    tok = tk.Tokenizer(tk.models.BPE())
    tok.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.train_from_iterator(texts, tk.trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, special_tokens=['xxpad', 'xxbos'], show_progress=False,
        initial_alphabet=tk.pre_tokenizers.ByteLevel.alphabet()))
    return tok

def compare(title, tools, texts, rounds, clock):
    "Print each tool's tokens a second, and the ratio to the first."
    times, tokens = {name: [] for name in tools}, {}
    for i in range(rounds + 1):
        for name, tool in list(tools.items())[::1 if i % 2 else -1]:
            start = clock()
            tokens[name] = sum(len(tool(t)) for t in texts)
            times[name].append(clock() - start)
    print(f'\n{title}: {sum(map(len, texts))/1e6:.1f} million characters, {rounds} rounds')
    first = next(iter(tools))
    for name, (cold, *warm) in times.items():
        ratio = statistics.median(b/a*tokens[first]/tokens[name] for a, b in zip(times[first][1:], warm))
        print(f'{name:28} {tokens[name]/statistics.median(warm)/1e6:6.3f} M tokens/s   '
              f'first pass {tokens[name]/cold/1e6:6.3f}   {first} is {ratio:.2f} times as fast')

if __name__ == '__main__':
    how = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(description=__doc__, **how)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall')
    parser.add_argument('--folder', help='with .txt files (default: IMDB\'s sample)')
    parser.add_argument('--vocab-size', type=int, default=4000, help='of the sub-words')
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == 'wall' else time.process_time
    texts = corpus(args.folder)

    tools = {'exp words': words}
    if (spacy := spacy_words()) is not None: tools['spaCy blank English'] = spacy
    compare('words', tools, texts, args.rounds, clock)

    start = clock()
    bpe = BPE(args.vocab_size)
    bpe.learn(texts)
    ours = clock() - start
    start = clock()
    other = their_bpe(texts, args.vocab_size)
    print(f'\ntraining to {len(bpe.tokens)} tokens: exp {ours:.1f} s, tokenizers {clock() - start:.1f} s')
    if other is not None:
        assert all(bpe.encode(t) == other.encode(t).ids for t in texts)
        again = BPE(args.vocab_size)   # with an empty memory
        again.load_state_dict(bpe.state_dict())
        bpe = again
    tools = {'exp BPE': bpe.encode} | ({} if other is None else {'tokenizers': other.encode})
    compare('sub-words', tools, texts, args.rounds, clock)
