"""The data sets that the repository carries are the published ones: sums, shapes, counts, and what
data/README.md says of them."""
import gzip, hashlib, re

import pytest
import torch

from exp.datasets import FASHION_CLASSES, fashion_mnist, mnist, read_idx
from exp.downloads import URLs, data_kind, untar_data

SPLITS = {'train': 50_000, 'valid': 10_000, 'test': 10_000}
READERS = {'mnist': mnist, 'fashion-mnist': fashion_mnist}
# of the 60,000: training and validation
MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST  = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
ORIGINAL_MD5 = {   # of MNIST's uncompressed files as first published
    'train-images-idx3-ubyte.gz': '6bbc9ace898e44ae57da46a324031adb',
    'train-labels-idx1-ubyte.gz': 'a25bea736e30d166cdddb491f175f624',
    't10k-images-idx3-ubyte.gz':  '2646ac647ad5339dbf082846283269ea',
    't10k-labels-idx1-ubyte.gz':  '27ae3e4e09519cfbb04c329615203637'}

def readme_rows(root):
    "file → (bytes, sum, bytes of the content, sum of the content) from the tables of data/README.md."
    text = (root/'data'/'README.md').read_text(encoding='utf-8')
    row = r'^\| `([\w-]+/[\w-]+\.gz)` \| ([\d,]+) \| `([0-9a-f]{64})` \| ([\d,]+) \| `([0-9a-f]{64})` \|$'
    number = lambda s: int(s.replace(',', ''))
    return {f: (number(n), a, number(m), b) for f, n, a, m, b in re.findall(row, text, re.M)}

@pytest.mark.slow
def test_the_readme_lists_every_file_with_its_sums(root):
    rows = readme_rows(root)
    assert (set(rows) == {p.relative_to(root/'data').as_posix() for p in (root/'data').rglob('*.gz')}
            and len(rows) == 8)
    for name, (size, packed_sum, content_size, content_sum) in rows.items():
        packed = (root/'data'/name).read_bytes()
        content = gzip.decompress(packed)
        assert (len(packed), hashlib.sha256(packed).hexdigest()) == (size, packed_sum), name
        assert (len(content), hashlib.sha256(content).hexdigest()) == (content_size, content_sum), name

def test_the_table_of_urls_has_the_readmes_sums_of_the_content(root):
    rows = readme_rows(root)
    for source in (URLs.MNIST, URLs.FASHION_MNIST):
        for f in source.files: assert f.content == f'sha256:{rows[f.name][3]}'

def test_mnist_is_to_the_byte_what_was_first_published(root):
    for name, md5 in ORIGINAL_MD5.items():
        content = gzip.decompress((root/'data'/'mnist'/name).read_bytes())
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == md5, name

@pytest.mark.slow
@pytest.mark.parametrize('name', READERS)
def test_shapes_and_types(name):
    for split, n in SPLITS.items():
        x, y = READERS[name](split)
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((n, 28, 28), torch.uint8, (n,), torch.uint8)

@pytest.mark.slow
def test_class_counts_are_the_published_ones():
    counts = {name: {s: f(s)[1].bincount(minlength=10) for s in SPLITS} for name, f in READERS.items()}
    assert (counts['mnist']['train'] + counts['mnist']['valid']).tolist() == MNIST_TRAIN
    assert counts['mnist']['test'].tolist() == MNIST_TEST
    assert (counts['fashion-mnist']['train'] + counts['fashion-mnist']['valid']).tolist() == [6000]*10
    assert counts['fashion-mnist']['test'].tolist() == [1000]*10
    assert len(FASHION_CLASSES) == 10

@pytest.mark.slow
@pytest.mark.parametrize('name', READERS)
def test_the_splits_are_the_published_order(root, name):
    x = read_idx(root/'data'/name/'train-images-idx3-ubyte.gz')
    y = read_idx(root/'data'/name/'train-labels-idx1-ubyte.gz')
    assert (torch.equal(READERS[name]('train')[0], x[:50_000])
            and torch.equal(READERS[name]('valid')[0], x[50_000:]))
    assert (torch.equal(READERS[name]('train')[1], y[:50_000])
            and torch.equal(READERS[name]('valid')[1], y[50_000:]))

def test_a_checkout_uses_its_own_files_with_no_cache_and_no_network(root, tmp_path, monkeypatch):
    cache = tmp_path/'cache'
    monkeypatch.setenv('EXP_DATA', str(cache))
    monkeypatch.setenv('EXP_DATA_MIRROR', '')
    assert (untar_data(URLs.MNIST) == root/'data'/'mnist'
            and untar_data(URLs.FASHION_MNIST) == root/'data'/'fashion-mnist')
    assert data_kind(untar_data(URLs.MNIST)) == 'real' and not cache.exists()

def test_no_pickle_is_kept_with_the_data(root):
    assert not [p for p in (root/'data').rglob('*') if p.suffix in ('.pkl', '.pickle', '.whl')
                or '.pkl.' in p.name]

def test_the_licences_are_carried(root):
    text = ' '.join((root/'data'/'README.md').read_text(encoding='utf-8').split())
    assert 'CC BY-SA 3.0' in text and 'Copyright' in text and 'Zalando SE' in text
    assert ('The above copyright notice and this permission notice shall be included in all copies or '
            'substantial portions' in text)
