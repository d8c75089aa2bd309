"""`untar_data` ends in the right data or in a clear error, whatever happens."""
import errno, functools, gzip, hashlib, http.server, io, os, shutil, socket, stat, subprocess, sys, tarfile
import textwrap, threading, time, types, urllib.error, urllib.request, zipfile
from pathlib import Path

import pytest

from exp import downloads, standins
from exp.datasets import fashion_mnist, mnist
from exp.downloads import (ArchiveError, CacheError, DataFile, DataSource, DataUnavailable, URLs,
                           atomic_folder, data_kind, download, file_sums, unpack, untar_data)

# ---- what the tests share

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    "A cache of the test's own, no mirror, and no host but this machine."
    monkeypatch.setenv('EXP_DATA', str(tmp_path/'cache'))
    monkeypatch.setenv('EXP_DATA_MIRROR', '')
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr(downloads, '_PAUSES', (0.01, 0.02))
    knock = downloads._knock
    def only_here(url, seconds=5):
        if '//127.0.0.1' not in url: raise OSError(errno.ENETUNREACH, 'the tests reach no network')
        knock(url, seconds)
    monkeypatch.setattr(downloads, '_knock', only_here)
    return tmp_path/'cache'

@pytest.fixture
def mirror(tmp_path, monkeypatch):
    "An empty folder that is set as the mirror."
    (tmp_path/'mirror').mkdir()
    monkeypatch.setenv('EXP_DATA_MIRROR', str(tmp_path/'mirror'))
    return tmp_path/'mirror'

def tgz(members):
    "A .tgz of pairs (name, bytes) and of `TarInfo`s."
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz', compresslevel=1) as tar:
        for m in members:
            if isinstance(m, tarfile.TarInfo):
                tar.addfile(m)
                continue
            info = tarfile.TarInfo(m[0])
            info.size = len(m[1])
            tar.addfile(info, io.BytesIO(m[1]))
    return buffer.getvalue()

def zipped(members):
    "A .zip of pairs (name or `ZipInfo`, bytes)."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, content in members:
            if isinstance(name, str):
                info = zipfile.ZipInfo('x')
                info.filename = name   # past the constructor, which mends some names
                name = info
            z.writestr(name, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()

def offer(mirror, name, raw, sum_of=None):
    "Put `raw` into the folder `mirror`, with the sum of `sum_of` (None: its own)."
    (mirror/name).write_bytes(raw)
    digest = hashlib.sha256(raw if sum_of is None else sum_of).hexdigest()
    with open(mirror/'SHA256SUMS', 'a') as f: f.write(f'{digest}  {name}\n')

NOTES = tgz([('notes/a.txt', b'first'), ('notes/sub/b.txt', b'second')])

def source(name='notes.tgz', url=None, size=None, sum=None):
    return DataSource(name.split('.')[0], (DataFile(name, url, size, sum),))

def md5(raw): return 'md5:' + hashlib.md5(raw, usedforsecurity=False).hexdigest()
def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
def left(cache, name='notes'):
    return sorted(p.name for p in (cache/name).iterdir()) if (cache/name).is_dir() else []
def standin(folder): (folder/'made.txt').write_text('made up')

class Server(http.server.ThreadingHTTPServer):
    """Files by path on 127.0.0.1, with ranges; it can fail, break off, forget ranges, and notes what it is
    asked."""
    daemon_threads = True
    def __init__(self):
        self.files, self.asked, self.fail, self.cut, self.ranges, self.tag, self.length, self.chunk = (
            {}, [], [], None, True, '"1"', True, 2**16)
        self.slow = 0
        super().__init__(('127.0.0.1', 0), Handler)
    def url(self, path): return f'http://127.0.0.1:{self.server_port}/{path}'
    def handle_error(self, *_): pass

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        s = self.server
        asked = self.headers['Range']
        s.asked.append((self.path, asked))
        body = s.files.get(self.path.lstrip('/'))
        if s.fail: return self.send_error(s.fail.pop(0))
        if body is None: return self.send_error(404)
        start = int(asked[6:-1]) if asked and s.ranges and self.headers['If-Range'] in (None, s.tag) else 0
        if start >= len(body) and start: return self.send_error(416)
        self.send_response(206 if start else 200)
        if s.tag: self.send_header('ETag', s.tag)
        if s.length: self.send_header('Content-Length', str(len(body) - start))
        if start: self.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
        self.end_headers()
        end, s.cut = (len(body) if s.cut is None else start + s.cut), None
        for i in range(start, end, s.chunk):
            self.wfile.write(body[i:min(i + s.chunk, end)])
            if s.slow: time.sleep(s.slow)

@pytest.fixture
def server():
    s = Server()
    threading.Thread(target=s.serve_forever, args=(0.02,), daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()

def process(code, *args):
    "Another Python that runs `code`, with `args` in sys.argv."
    return subprocess.Popen([sys.executable, '-c', textwrap.dedent(code), *map(str, args)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, encoding='utf-8')

ASK = '''
    import sys
    from exp.downloads import DataFile, DataSource, untar_data
    url = sys.argv[2] if len(sys.argv) > 2 else None
    print(untar_data(DataSource('notes', (DataFile('notes.tgz', url, None, sys.argv[3] if url else None),))))
'''

# ---- the table of URLs

PUBLISHED = '''mnist_tiny 342207 56143e8f24db90d925d82a5a74141875
mnist_sample 3214948 2dbc7ec6f9259b583af0072c55816a88
mnist_png 15683414 03639f83c4e3d19e0a3a53a8a997c487
planet_tiny 997569 490873c5683454d4b2611fb1f00a68a9
planet_sample 15523994 8bfb174b3162f07fbde09b54555bdb00
camvid_tiny 2314212 2cf6daf91b7a2083ecfa3e9968e9d915
camvid 598913237 648371e4f3a833682afb39b08a3ce2aa
biwi_sample 593774 9179f4c1435f4b291f0d5b072d60c2c9
biwi_head_pose 452316199 00f4ccf66e8cba184bc292fdc08fb237
coco_tiny 801038 367467451ac4fba79a647753c2c66d3a
coco_sample 3245877008 006cd55d633d94b36ecaf661467830ec
imdb_sample 571827 0842e61a9867caa2e6fbdb14fa703d61
imdb 144440600 90f9b1c4ff43a90d67553c9240dc0249
wikitext-2 4070055 2a82d47a7b85c8b6a8e068dc4c1d37e7
wt103-fwd 105067061 7d1114cd9684bf9d1ca3c9f6a54da6f9
human_numbers 30252 8a19c3bfa2bcb08cd787e741261f3ea2
oxford-iiit-pet 811706944 e4db5c768afd933bb91f5f594d7417a4'''

def test_sizes_and_sums_are_those_that_the_publishers_list():
    by_name = {s.name: s.files[0] for s in vars(URLs).values()}
    for row in PUBLISHED.replace('\n', ';').split(';'):
        name, size, digest = row.split()
        assert ((by_name[name].size, by_name[name].sum) == (int(size), f'md5:{digest}')
                and by_name[name].url.endswith(f'/{name}.tgz'))
    assert by_name['banana-detection'].sum == 'sha1:5de26c8fce5ccdea9f91267273464dc968d20d72'
    assert by_name['hotdog'].sum == 'sha1:fba480ffa8aa7e0febbb511d181409f899b9baa5'

def test_the_names_of_the_data_sets():
    assert {'IMAGENETTE', 'IMAGENETTE_160', 'IMAGENETTE_320', 'IMAGEWOOF', 'IMAGEWOOF_160', 'IMAGEWOOF_320',
            'BANANAS', 'HOTDOG', 'MNIST_TINY',
            'PLANET_SAMPLE', 'CAMVID_TINY', 'COCO_TINY', 'IMDB_SAMPLE', 'WIKITEXT_2', 'WT103_FWD',
            'OXFORD_IIIT_PET', 'MNIST',
            'FASHION_MNIST', 'CAMVID_11', 'CAMVID', 'BIWI_SAMPLE', 'BIWI_HEAD_POSE', 'HUMAN_NUMBERS', 'IMDB',
            'COCO_SAMPLE', 'PLANET_TINY',
            'MNIST_SAMPLE', 'MNIST_PNG'} == set(vars(URLs))
    assert (URLs.BANANAS.files[0].name == 'banana-detection.zip'
            and URLs.IMAGENETTE.files[0].name == 'imagenette2.tgz')
    assert URLs.CAMVID_11.files[0].url is None
    assert [len(s.files) for s in (URLs.MNIST, URLs.FASHION_MNIST)] == [4, 4]

def test_what_has_no_published_sum_is_fetched_over_https_only():
    for s in vars(URLs).values():
        for f in s.files: assert f.sum or f.url is None or f.url.startswith('https://')
    with pytest.raises(ValueError, match='https'): DataFile('x.tgz', 'http://example.org/x.tgz')

def test_a_misspelt_name_is_met_with_the_right_one():
    with pytest.raises(AttributeError, match='IMAGENETTE_160'): URLs.IMAGENETE_160
    with pytest.raises(TypeError, match='URLs'): untar_data('MNIST_TINY')

def test_sums_are_those_of_hashlib_for_a_path_and_an_open_file(tmp_path):
    raw = os.urandom(2**21 + 5)
    (tmp_path/'f').write_bytes(raw)
    want = {kind: f'{kind}:{hashlib.new(kind, raw, usedforsecurity=False).hexdigest()}'
            for kind in ('sha256', 'sha1', 'md5')}
    assert file_sums(tmp_path/'f') == file_sums(str(tmp_path/'f')) == want
    with open(tmp_path/'f', 'rb') as f:
        f.seek(7)
        assert file_sums(f, ('md5',)) == {'md5': md5(raw[7:])}

# ---- archives that are broken

@pytest.mark.parametrize('place', [0, 5, 30, -9, -1])
def test_a_flipped_byte_is_an_error_that_names_the_file_and_leaves_nothing(mirror, own_cache, place):
    raw = bytearray(NOTES)
    raw[place] ^= 0x10
    offer(mirror, 'notes.tgz', bytes(raw), sum_of=NOTES)
    with pytest.raises(ArchiveError, match='notes.tgz'):
        untar_data(source(), fallback=standin)
    assert left(own_cache) == ['.lock']

@pytest.mark.parametrize('keep', [0, 1, 20, len(NOTES)//2, len(NOTES) - 1])
def test_a_truncated_archive_is_an_error_whether_its_sum_tells_or_not(mirror, own_cache, keep):
    offer(mirror, 'notes.tgz', NOTES[:keep], sum_of=NOTES)
    with pytest.raises(ArchiveError, match='checksum'): untar_data(source())
    (mirror/'SHA256SUMS').unlink()
    offer(mirror, 'notes.tgz', NOTES[:keep])
    with pytest.raises(ArchiveError, match='damaged'): untar_data(source())
    assert left(own_cache) == ['.lock']

@pytest.mark.parametrize('keep', [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_zip_is_an_error(mirror, own_cache, keep):
    raw = zipped([(f'notes/{i}.txt', os.urandom(100)) for i in range(20)])
    offer(mirror, 'notes.zip', raw[:int(keep*len(raw))])
    with pytest.raises(ArchiveError, match='damaged'): untar_data(source('notes.zip'))
    assert left(own_cache) == ['.lock']

def tar_member(kind, name='notes/x', link=''):
    m = tarfile.TarInfo(name)
    m.type, m.linkname = kind, link
    return m

ESCAPES = ['../evil', 'notes/../../evil', '/tmp/evil', r'..\evil', r'notes\..\..\evil', 'C:/evil', 'C:evil']
def zip_member(mode, name='notes/x'):
    m = zipfile.ZipInfo(name)
    m.create_system, m.external_attr = 3, mode << 16
    return m

HOSTILE = {
    **{f'tar {name!r}': ('notes.tgz', tgz([('notes/a', b'a'), (name, b'evil')])) for name in ESCAPES},
    **{f'zip {name!r}': ('notes.zip', zipped([('notes/a', b'a'), (name, b'evil')])) for name in ESCAPES},
    'tar symlink':     ('notes.tgz',
                        tgz([tar_member(tarfile.SYMTYPE, link='/etc'), ('notes/x/passwd', b'evil')])),
    'tar symlink in':  ('notes.tgz', tgz([('notes/a', b'a'), tar_member(tarfile.SYMTYPE, link='a')])),
    'tar hard link':   ('notes.tgz', tgz([tar_member(tarfile.LNKTYPE, link='/etc/passwd')])),
    'tar device':      ('notes.tgz', tgz([tar_member(tarfile.CHRTYPE)])),
    'tar block device':('notes.tgz', tgz([tar_member(tarfile.BLKTYPE)])),
    'tar pipe':        ('notes.tgz', tgz([tar_member(tarfile.FIFOTYPE)])),
    'zip symlink':     ('notes.zip', zipped([(zip_member(stat.S_IFLNK | 0o777), b'/etc')])),
    'zip device':      ('notes.zip', zipped([(zip_member(stat.S_IFCHR | 0o666), b'')])),
    'tar twice':       ('notes.tgz', tgz([('notes/a', b'1'), ('notes/a', b'2')])),
    'tar file and folder': ('notes.tgz', tgz([('notes/a', b'1'), ('notes/a/b', b'2')])),
    'neither':         ('notes.tgz', b'<html>please log in</html>'),
}

@pytest.mark.parametrize('case', HOSTILE)
def test_a_hostile_archive_is_refused_by_name_and_leaves_nothing(mirror, own_cache, tmp_path, case):
    name, raw = HOSTILE[case]
    offer(mirror, name, raw)
    before = set(tmp_path.rglob('*'))
    with pytest.raises(ArchiveError, match=name): untar_data(source(name))
    with pytest.raises(ArchiveError, match=name): untar_data(source(name), fallback=standin)
    made = set(tmp_path.rglob('*')) - before
    assert {p.relative_to(own_cache).as_posix() for p in made} == {'.', 'notes', 'notes/.lock'}
    assert not Path('/tmp/evil').exists() and not (tmp_path.parent/'evil').exists()

BOMBS = {'tar of zeros': lambda: ('notes.tgz', tgz([('notes/zeros', bytes(100_000_000))])),
         'tar of many': lambda: ('notes.tgz', tgz([(f'notes/{i}', bytes(10_000_000)) for i in range(10)])),
         'zip of zeros': lambda: ('notes.zip', zipped([('notes/zeros', bytes(100_000_000))])),
         'zip of many': lambda: ('notes.zip', zipped([(f'notes/{i}', bytes(10_000_000)) for i in range(10)]))}

@pytest.mark.slow
@pytest.mark.parametrize('case', BOMBS)
def test_an_archive_that_unpacks_to_far_more_than_it_should_is_refused(mirror, own_cache, case):
    name, raw = BOMBS[case]()
    assert len(raw) < 2_000_000
    offer(mirror, name, raw)
    with pytest.raises(ArchiveError, match='unpacks'):
        untar_data(source(name))
    assert left(own_cache) == ['.lock']

@pytest.mark.parametrize('make', [tgz, zipped])
def test_archives_with_and_without_a_top_folder(mirror, own_cache, make):
    end = 'tgz' if make is tgz else 'zip'
    for name, members in [('one', [('top/a', b'1'), ('top/b/c', b'2')]),
                          ('none', [('a', b'1'), ('b/c', b'2')]),
                          ('file', [('a', b'1')]), ('dotted', [('./top/a', b'1')])]:
        offer(mirror, f'{name}.{end}', make(members))
        folder = untar_data(source(f'{name}.{end}'))
        assert folder.name == name
        assert content(folder) == {n.removeprefix('./').removeprefix('top/'): raw for n, raw in members}

def test_unpack_alone_is_as_careful(tmp_path):
    (tmp_path/'a.tgz').write_bytes(HOSTILE['tar symlink'][1])
    with pytest.raises(ArchiveError): unpack(tmp_path/'a.tgz', tmp_path/'out')
    assert os.listdir(tmp_path) == ['a.tgz']
    (tmp_path/'a.tgz').write_bytes(NOTES)
    unpack(tmp_path/'a.tgz', tmp_path/'out')
    assert set(content(tmp_path/'out')) == {'notes/a.txt', 'notes/sub/b.txt'}

# ---- the cache, and who vouches for what is in it

def test_a_mirrors_variant_is_given_out_only_while_the_mirror_is_set(mirror, own_cache, monkeypatch):
    upstream = source(url='http://127.0.0.1:9/notes.tgz', sum=md5(b'the original, which differs'))
    offer(mirror, 'notes.tgz', NOTES)
    folder = untar_data(upstream)
    assert data_kind(folder) == data_kind(folder/'sub') == 'mirror'
    (mirror/'notes.tgz').unlink()
    assert untar_data(upstream) == folder   # from the cache
    monkeypatch.setenv('EXP_DATA_MIRROR', '')
    with pytest.raises(DataUnavailable,
                       match='vouches'):
        untar_data(upstream)
    assert data_kind(untar_data(upstream, fallback=standin)) == 'stand-in'

@pytest.mark.network
def test_a_variant_and_the_original_are_two_entries(mirror, own_cache, server, monkeypatch):
    server.files['notes.tgz'] = original = tgz([('notes/a.txt', b'original')])
    upstream = source(url=server.url('notes.tgz'), sum=md5(original))
    offer(mirror, 'notes.tgz', NOTES)
    variant = untar_data(upstream)
    monkeypatch.setenv('EXP_DATA_MIRROR', '')
    real = untar_data(upstream)
    assert (data_kind(variant), data_kind(real)) == ('mirror', 'real') and variant != real
    assert content(real) == {'a.txt': b'original'} and len(content(variant)) == 2

def test_a_mirror_that_changed_its_archive_is_asked_again(mirror):
    offer(mirror, 'notes.tgz', NOTES)
    old = untar_data(source())
    (mirror/'SHA256SUMS').unlink()
    offer(mirror, 'notes.tgz', tgz([('notes/new.txt', b'new')]))
    new = untar_data(source())
    assert old != new and content(new) == {'new.txt': b'new'}

def test_a_mirror_that_carries_the_publishers_archive_gives_the_real_data_set(mirror, monkeypatch):
    upstream = source(url='http://127.0.0.1:9/notes.tgz', sum=md5(NOTES))
    offer(mirror, 'notes.tgz', NOTES)
    folder = untar_data(upstream)
    monkeypatch.setenv('EXP_DATA_MIRROR', '')
    assert data_kind(folder) == 'real' and untar_data(upstream) == folder

def test_a_mirror_needs_its_sums(mirror, tmp_path):
    (mirror/'notes.tgz').write_bytes(NOTES)
    with pytest.raises(DataUnavailable, match='such'): untar_data(source())
    offer(mirror, 'other.tgz', NOTES)
    with pytest.raises(DataUnavailable, match='list'): untar_data(source())

def test_of_several_mirrors_the_first_that_has_the_set_is_used(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv('EXP_DATA_MIRROR', f'{tmp_path/"absent"}, {mirror}')
    offer(mirror, 'notes.tgz', NOTES)
    assert len(content(untar_data(source()))) == 2

@pytest.mark.network
def test_a_mirror_by_address_and_the_cache_when_it_is_gone(server, monkeypatch):
    server.files |= {'m/notes.tgz': NOTES,
                     'm/SHA256SUMS': f'{hashlib.sha256(NOTES).hexdigest()} *./notes.tgz\n'.encode()}
    monkeypatch.setenv('EXP_DATA_MIRROR', server.url('m/'))
    folder = untar_data(source())
    assert data_kind(folder) == 'mirror' and len(content(folder)) == 2
    fetched = [p for p, _ in server.asked].count('/m/notes.tgz')
    assert (untar_data(source()) == folder
            and fetched == 1 == [p for p, _ in server.asked].count('/m/notes.tgz'))
    server.files.clear()
    assert untar_data(source()) == folder   # set, but it answers 404 now
    monkeypatch.setenv('EXP_DATA_MIRROR', '')
    with pytest.raises(DataUnavailable): untar_data(source())

def test_the_error_lists_the_places_and_the_remedies(mirror):
    with pytest.raises(DataUnavailable) as e:
        untar_data(source(url='http://127.0.0.1:9/notes.tgz', sum=md5(NOTES)))
    text = str(e.value)
    for part in ('the cache', 'data: notes.tgz is not there', 'the mirror', '/usr/share/datasets',
                 'upstream http://127.0.0.1:9/notes.tgz: ',
                 'EXP_DATA_MIRROR', 'SHA256SUMS', 'stand-in'): assert part in text
    assert isinstance(e.value, FileNotFoundError)

def test_what_was_taken_out_of_a_finished_entry_is_noticed(mirror):
    offer(mirror, 'notes.tgz', NOTES)
    folder = untar_data(source())
    (folder/'own.txt').write_text('something of yours may be there')
    (folder/'models').mkdir()
    assert untar_data(source()) == folder
    (folder/'a.txt').unlink()
    (folder/'own.txt').unlink()
    with pytest.raises(CacheError, match='damaged'): untar_data(source())
    shutil.rmtree(folder.parent)
    assert len(content(untar_data(source()))) == 2

def test_the_marker_lies_outside_the_data(mirror):
    offer(mirror, 'notes.tgz', NOTES)
    assert set(content(untar_data(source()))) == {'a.txt', 'sub/b.txt'}
    assert set(content(untar_data(source('other.tgz'), fallback=standin))) == {'made.txt'}

def test_a_folder_from_elsewhere_has_no_kind(tmp_path):
    with pytest.raises(ValueError, match='nobody'): data_kind(tmp_path)

# ---- stand-ins

def test_a_stand_in_is_announced_in_one_line_and_made_once(capsys):
    calls = []
    def make(folder):
        calls.append(list(folder.iterdir()))
        standin(folder)
    folder = untar_data(source(), fallback=make)
    assert untar_data(source(), fallback=make) == folder and calls == [[]]
    assert data_kind(folder) == 'stand-in' and folder.name == 'notes'
    assert (capsys.readouterr().out.splitlines()
            == ['notes: a stand-in, since the real data set could not be had']*2)

def test_real_data_is_announced_too_and_wins_over_a_stand_in_made_before(mirror, capsys):
    made = untar_data(source(), fallback=standin)
    offer(mirror, 'notes.tgz', NOTES)
    assert untar_data(source(), fallback=standin) != made
    assert capsys.readouterr().out.splitlines()[-1] == "notes: a mirror's variant of the data set"

def test_without_a_fallback_a_stand_in_made_before_is_not_given(own_cache):
    untar_data(source(), fallback=standin)
    with pytest.raises(DataUnavailable): untar_data(source())

def test_a_changed_stand_in_function_makes_a_new_one(tmp_path):
    def first(folder): (folder/'a').write_text('1')
    a = untar_data(source(), fallback=first)
    def first(folder): (folder/'a').write_text('2')
    b = untar_data(source(), fallback=first)
    assert content(a) == {'a': b'1'} and content(b) == {'a': b'2'}
    def sized(folder, n): (folder/'a').write_text(str(n))
    c, d = (untar_data(source(), fallback=functools.partial(sized, n=n)) for n in (3, 4))
    assert content(c) == {'a': b'3'} and content(d) == {'a': b'4'}

@pytest.mark.launch
def test_the_fingerprint_of_a_stand_in_is_the_same_in_every_process():
    code = '''
        from exp import downloads
        f = eval('lambda folder: (folder/"a").write_text("x")')
        print(downloads._version(f), downloads._version(downloads.unpack))'''
    answers = [p.communicate(timeout=120)[0] for p in (process(code), process(code))]
    assert answers[0] == answers[1] and len(answers[0].split()) == 2

def test_a_stand_in_that_fails_leaves_nothing(own_cache):
    def fails(folder):
        (folder/'half').write_text('')
        raise RuntimeError('in the middle')
    with pytest.raises(RuntimeError, match='middle'): untar_data(source(), fallback=fails)
    def looks(folder): open(folder/'absent')
    with pytest.raises(FileNotFoundError) as e: untar_data(source(), fallback=looks)
    assert not isinstance(e.value, (CacheError, DataUnavailable)) and left(own_cache) == ['.lock']

# ---- folders that are no mirrors, and a wheel

def test_an_archive_in_data_of_the_checkout_is_taken_by_the_publishers_sum(tmp_path, monkeypatch):
    (tmp_path/'repo'/'data').mkdir(parents=True)
    monkeypatch.setattr(downloads, 'checkout', lambda: tmp_path/'repo')
    (tmp_path/'repo'/'data'/'notes.tgz').write_bytes(NOTES)
    folder = untar_data(source(url='http://127.0.0.1:9/notes.tgz', sum=md5(NOTES)))
    assert data_kind(folder) == 'real' and len(content(folder)) == 2
    with pytest.raises(ArchiveError, match='checksum'):
        untar_data(source(url='http://127.0.0.1:9/notes.tgz', sum=md5(b'other')))
    with pytest.raises(DataUnavailable, match='lists'): untar_data(source())

@pytest.mark.slow
def test_loose_files_of_a_system_folder_are_used_where_they_lie_if_their_content_is_right(
    tmp_path, monkeypatch, root):
    monkeypatch.setattr(downloads, 'checkout', lambda: None)
    monkeypatch.setattr(downloads, '_SYSTEM_FOLDERS', (str(tmp_path/'system'),))
    folder = tmp_path/'system'/'mnist'
    folder.mkdir(parents=True)
    for p in (root/'data'/'mnist').glob('*.gz'):   # compressed anew, as a system's package may do
        (folder/p.name).write_bytes(p.read_bytes() if 'train-images' in p.name
                                    else gzip.compress(gzip.decompress(p.read_bytes()), 1))
    assert (untar_data(URLs.MNIST) == folder and data_kind(folder) == 'real'
            and mnist('test')[0].shape == (10_000, 28, 28))
    damaged = bytearray((folder/'t10k-labels-idx1-ubyte.gz').read_bytes())
    damaged[1000] ^= 1
    (folder/'t10k-labels-idx1-ubyte.gz').write_bytes(damaged)
    with pytest.raises(ArchiveError, match='t10k-labels-idx1-ubyte.gz'): untar_data(URLs.MNIST)
    (folder/'t10k-labels-idx1-ubyte.gz').write_bytes(gzip.compress(bytes(10_008)))
    with pytest.raises(ArchiveError, match='published'): untar_data(URLs.MNIST)

def test_an_installed_wheel_says_that_it_carries_no_data_and_reads_mnist_from_a_mirror(mirror, monkeypatch,
                                                                                       root, own_cache):
    monkeypatch.setattr(downloads, 'checkout', lambda: None)
    monkeypatch.setattr(downloads, '_SYSTEM_FOLDERS', ())
    with pytest.raises(DataUnavailable, match='places') as e: mnist('test')
    assert 'https://ossci-datasets' in str(e.value)
    (mirror/'mnist').mkdir()
    for p in (root/'data'/'mnist').glob('*.gz'): offer(mirror, f'mnist/{p.name}', p.read_bytes())
    assert mnist('test')[0].shape == (10_000, 28, 28)
    folder = untar_data(URLs.MNIST)
    assert own_cache in folder.parents and len(content(folder)) == 4 and data_kind(folder) == 'real'

@pytest.mark.slow
def test_a_mirror_may_list_mnists_files_without_their_folder_but_not_pass_them_for_another_set(
    mirror, monkeypatch, root, own_cache):
    monkeypatch.setattr(downloads, 'checkout', lambda: None)
    monkeypatch.setattr(downloads, '_SYSTEM_FOLDERS', ())
    for p in (root/'data'/'mnist').glob('*.gz'): offer(mirror, p.name, p.read_bytes())
    assert mnist('test')[0].shape == (10_000, 28, 28) and data_kind(untar_data(URLs.MNIST)) == 'real'
    with pytest.raises(ArchiveError, match='fashion-mnist'):
        fashion_mnist('test')
    assert left(own_cache, 'fashion-mnist') == ['.lock']

def test_mnist_needs_no_cache_in_a_checkout(own_cache):
    own_cache.write_text('a file where the cache should be')
    assert len(mnist('test')[1]) == 10_000

# ---- several processes, and processes that die

@pytest.mark.network
def test_processes_that_ask_at_once_fetch_once_and_answer_the_same(server, own_cache):
    raw = tgz([(f'notes/{i}', os.urandom(300)) for i in range(2000)])
    server.files['notes.tgz'], server.slow, server.chunk = raw, 0.02, 2**15
    asking = [process(ASK, 'x', server.url('notes.tgz'), md5(raw)) for _ in range(3)]
    answers = [p.communicate(timeout=120) for p in asking]
    assert all(p.returncode == 0 for p in asking), answers
    folders = {out.splitlines()[-1] for out, _ in answers}
    assert len(folders) == 1 and len(content(Path(folders.pop()))) == 2000
    assert len(server.asked) == 1
    assert len(left(own_cache)) == 2   # the lock and one entry

def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(0.002)
    return found

@pytest.mark.launch
def test_a_kill_in_the_middle_of_unpacking_leaves_nothing_that_passes_for_whole(mirror, own_cache):
    n = 20_000
    offer(mirror, 'notes.tgz', tgz([(f'notes/{i}', b'%d' % i) for i in range(n)]))
    p = process(ASK)
    half = (lambda: [t for t in (own_cache/'notes').glob('.*.tmp/.*.tmp/notes')
                     if len(os.listdir(t)) > 500] if (own_cache/'notes').is_dir() else [])
    def unpacking():
        try: return half()
        except OSError: return []
    wait_for(unpacking)
    p.kill()
    assert p.communicate(timeout=60)[0] == ''
    assert (len(list((own_cache/'notes').glob('.*.tmp'))) == 1
            and not list((own_cache/'notes').glob('*/exp-data.json')))
    folder = untar_data(source())
    assert len(content(folder)) == n and len(left(own_cache)) == 2   # what the killed one left is swept away

@pytest.mark.network
def test_a_kill_in_the_middle_of_a_download_and_the_next_call_goes_on(server, own_cache):
    raw = tgz([(f'notes/{i}', os.urandom(1000)) for i in range(1000)])
    server.files['notes.tgz'], server.slow, server.chunk = raw, 0.02, 2**14
    p = process(ASK, 'x', server.url('notes.tgz'), md5(raw))
    begun = (lambda: [f for f in (own_cache/'notes').glob('*.part')
                      if f.stat().st_size > 100_000] if (own_cache/'notes').is_dir() else [])
    wait_for(begun)
    p.kill()
    p.communicate(timeout=60)
    server.slow = 0
    folder = untar_data(source(url=server.url('notes.tgz'), sum=md5(raw)))
    assert len(content(folder)) == 1000 and data_kind(folder) == 'real'
    assert int(server.asked[-1][1][6:-1]) >= 100_000   # it asked for the rest
    assert len(left(own_cache)) == 2

def test_threads_that_ask_at_once_answer_the_same(mirror, own_cache):
    offer(mirror, 'notes.tgz', tgz([(f'notes/{i}', b'x') for i in range(500)]))
    got = []
    threads = [threading.Thread(target=lambda: got.append(untar_data(source()))) for _ in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(got) == 6 and len(set(got)) == 1 and len(left(own_cache)) == 2

def test_atomic_folder_refuses_a_place_that_is_taken_and_keeps_it(tmp_path):
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'old').write_text('old')
    with pytest.raises(OSError):
        with atomic_folder(tmp_path/'a') as new: (new/'new').write_text('new')
    assert content(tmp_path) == {'a/old': b'old'}

# ---- disks that refuse

def test_a_file_where_the_cache_should_be_is_a_clear_error(mirror, own_cache):
    offer(mirror, 'notes.tgz', NOTES)
    own_cache.write_text('not a folder')
    for fallback in (None, standin):
        with pytest.raises(CacheError, match='EXP_DATA'):
            untar_data(source(), fallback)
    with pytest.raises(CacheError): untar_data(source('other.tgz'), standin)
    assert own_cache.read_text() == 'not a folder'

@pytest.mark.skipif(os.name == 'nt' or getattr(os, 'geteuid', lambda: 0)() == 0,
                    reason='root, and Windows, write to a read-only folder')
def test_a_read_only_cache_is_a_clear_error_and_still_gives_what_it_holds(mirror, own_cache):
    offer(mirror, 'notes.tgz', NOTES)
    folder = untar_data(source())
    own_cache.chmod(0o555)
    try:
        assert untar_data(source()) == folder
        with pytest.raises(CacheError): untar_data(source('other.tgz'), standin)
    finally: own_cache.chmod(0o755)

@pytest.mark.parametrize('number', [errno.ENOSPC, getattr(errno, 'EDQUOT', errno.ENOSPC)])
def test_a_disk_that_fills_while_unpacking_is_a_clear_error(mirror, own_cache, monkeypatch, number):
    offer(mirror, 'notes.tgz', NOTES)
    copy, calls = shutil.copyfileobj, []
    def full(*args):
        calls.append(1)
        if len(calls) == 2: raise OSError(number, os.strerror(number))
        copy(*args)
    monkeypatch.setattr(downloads.shutil, 'copyfileobj', full)
    with pytest.raises(CacheError, match='EXP_DATA') as e: untar_data(source())
    assert e.value.errno == number and left(own_cache) == ['.lock']
    assert len(content(untar_data(source()))) == 2   # with room again

FULL = '''
    import sys, os, subprocess
    from exp.downloads import CacheError, DataFile, DataSource, untar_data
    os.makedirs(os.environ['EXP_DATA'])
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8m', 'none', os.environ['EXP_DATA']], check=True)
    filler = os.environ['EXP_DATA'] + '/filler'
    with open(filler, 'wb') as f: f.write(bytes(7_500_000))
    ask = lambda: untar_data(DataSource('notes', (DataFile('notes.tgz', None),)))
    try: ask(); print('no error')
    except CacheError as e: print('full' if e.errno == 28 else e)
    print(sorted(os.listdir(os.environ['EXP_DATA'] + '/notes')))
    def make(folder): (folder/'a').write_bytes(bytes(2_000_000))
    try: untar_data(DataSource('notes', (DataFile('other.tgz', None),)), make); print('no error')
    except CacheError as e: print('full' if e.errno == 28 else e)
    print(sorted(os.listdir(os.environ['EXP_DATA'] + '/notes')))
    os.remove(filler)
    print(len(os.listdir(ask())))
'''

@pytest.mark.launch
@pytest.mark.skipif(not shutil.which('unshare'), reason='needs a private file system')
def test_a_disk_that_is_really_full_is_a_clear_error_and_the_next_call_succeeds(mirror):
    if subprocess.run(['unshare', '-rm', 'mount', '-t', 'tmpfs', 'none', '/mnt'],
                      capture_output=True).returncode:
        pytest.skip('no private mounts here')
    offer(mirror, 'notes.tgz', tgz([(f'notes/{i}', os.urandom(100_000)) for i in range(30)]))
    done = subprocess.run(['unshare', '-rm', sys.executable, '-c', textwrap.dedent(FULL)],
                          capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ['full', "['.lock']", 'full', "['.lock']", '30'], done

# ---- downloads

@pytest.mark.network
def test_a_download_of_the_publishers_archive(server, own_cache):
    server.files['notes.tgz'] = NOTES
    upstream = source(url=server.url('notes.tgz'), size=len(NOTES), sum=md5(NOTES))
    folder = untar_data(upstream)
    assert data_kind(folder) == 'real' and len(content(folder)) == 2
    server.files.clear()
    assert untar_data(upstream) == folder and len(left(own_cache)) == 2

@pytest.mark.network
def test_a_broken_connection_goes_on_where_it_broke(server, tmp_path):
    server.files['f'], server.cut = os.urandom(500_000), 200_000
    path = download(server.url('f'), tmp_path/'f')
    assert path.read_bytes() == server.files['f'] and server.asked == [('/f', None), ('/f', 'bytes=200000-')]
    assert os.listdir(tmp_path) == ['f']

@pytest.mark.network
@pytest.mark.parametrize('change', ['shorter', 'no ranges'])
def test_a_download_begins_anew_where_it_cannot_go_on(server, tmp_path, monkeypatch, change):
    server.files['f'], server.cut = os.urandom(500_000), 200_000
    with monkeypatch.context() as m, pytest.raises(ConnectionError, match='200000'):
        m.setattr(downloads, '_PAUSES', ())
        download(server.url('f'), tmp_path/'f')
    if change == 'shorter': server.files['f'] = os.urandom(100_000)
    if change == 'no ranges': server.ranges = False
    assert download(server.url('f'), tmp_path/'f').read_bytes() == server.files['f']

@pytest.mark.network
def test_what_passes_is_tried_again_and_what_does_not_is_not(server, tmp_path):
    server.files['f'], server.fail = b'x'*1000, [503, 429]
    assert (download(server.url('f'), tmp_path/'f').read_bytes() == server.files['f']
            and len(server.asked) == 3)
    server.asked.clear()
    with pytest.raises(urllib.error.HTTPError, match='404'): download(server.url('absent'), tmp_path/'absent')
    assert len(server.asked) == 1
    server.fail = [500]*9
    with pytest.raises(urllib.error.HTTPError, match='500'): download(server.url('f'), tmp_path/'g')
    assert len(server.fail) == 9 - 3   # the first attempt, and one after each pause

@pytest.mark.network
def test_upstreams_refusal_is_in_the_list_of_places(server):
    with pytest.raises(DataUnavailable, match='404'):
        untar_data(source(url=server.url('notes.tgz'), sum=md5(NOTES)))

@pytest.mark.network
def test_a_wrong_size_or_sum_upstream_is_an_error_and_the_file_is_not_kept(server, own_cache):
    damaged = bytearray(NOTES)
    damaged[40] ^= 1
    upstream = source(url=server.url('notes.tgz'), size=len(NOTES), sum=md5(NOTES))
    for raw in NOTES + b'!', bytes(damaged):
        server.files['notes.tgz'] = raw
        with pytest.raises(ArchiveError, match='checksum'):
            untar_data(upstream, fallback=standin)
        assert not [p for p in left(own_cache) if 'tgz' in p]
    server.files['notes.tgz'], server.tag = NOTES, '"mended"'
    assert len(content(untar_data(upstream))) == 2

@pytest.mark.network
def test_loose_files_are_downloaded_and_checked_one_by_one(server, monkeypatch, own_cache):
    monkeypatch.setattr(downloads, 'checkout', lambda: None)
    parts = {f'pair/{n}.gz': gzip.compress(n.encode()) for n in 'ab'}
    server.files |= parts
    pair = DataSource('pair', tuple(DataFile(n, server.url(n), None, md5(raw),
                                             'sha256:' + hashlib.sha256(n[5:6].encode()).hexdigest())
                                    for n, raw in parts.items()))
    folder = untar_data(pair)
    assert (set(content(folder)) == {'a.gz', 'b.gz'} and data_kind(folder) == 'real'
            and untar_data(pair) == folder)
    assert len(server.asked) == 2

def test_a_redirect_from_https_to_http_is_refused(monkeypatch):
    for asked, got, fine in [('https', 'http', False), ('https', 'https', True), ('http', 'https', True),
                               ('http', 'http', True)]:
        monkeypatch.setattr(urllib.request, 'urlopen',
                            lambda *_, **k: types.SimpleNamespace(url=f'{got}://example.net/a.tgz'))
        if fine: assert downloads._request(f'{asked}://example.org/a.tgz')
        else:
            with pytest.raises(urllib.error.URLError, match='https'):
                downloads._request(f'{asked}://example.org/a.tgz')

def test_a_set_without_a_published_sum_is_recorded_and_reported_as_unverified(monkeypatch, capsys, mirror):
    fetched = []
    def fake(url, path):
        fetched.append(url)
        path.write_bytes(NOTES)
        return path
    monkeypatch.setattr(downloads, 'download', fake)
    unlisted = source(url='https://example.org/notes.tgz')
    offer(mirror, 'notes.tgz', tgz([('notes/a.txt', b'the variant of a mirror')]))
    variant = untar_data(unlisted)
    monkeypatch.setenv('EXP_DATA_MIRROR', '')
    folder = untar_data(unlisted)
    said = capsys.readouterr().out
    assert 'unverified' in said and hashlib.sha256(NOTES).hexdigest() in said and folder != variant
    assert data_kind(folder) == 'real' and len(content(folder)) == 2
    assert untar_data(unlisted) == folder and len(fetched) == 1   # the recorded sum vouches for it

def test_the_same_bytes_from_a_mirror_and_from_upstream_are_one_entry(monkeypatch, mirror):
    monkeypatch.setattr(downloads, 'download', lambda url, path: (path.write_bytes(NOTES), path)[1])
    unlisted = source(url='https://example.org/notes.tgz')
    offer(mirror, 'notes.tgz', NOTES)
    by_mirror = untar_data(unlisted)
    assert data_kind(by_mirror) == 'mirror'
    monkeypatch.setenv('EXP_DATA_MIRROR', '')
    assert untar_data(unlisted) == by_mirror and data_kind(by_mirror) == 'real'

def test_being_offline_is_noticed_at_once(monkeypatch):
    # a name server that does not answer
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *a, **k: time.sleep(30))
    monkeypatch.setattr(downloads, '_knock', KNOCK)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match='data.example'):
        downloads._knock('https://data.example/x', seconds=0.3)
    assert time.monotonic() - start < 2

def test_behind_a_proxy_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(downloads, '_knock', KNOCK)
    monkeypatch.setenv('http_proxy', 'http://user:word@127.0.0.1:9')
    monkeypatch.setenv('no_proxy', '')
    monkeypatch.delenv('NO_PROXY', raising=False)
    downloads._knock('http://nowhere.invalid/x', seconds=3)

KNOCK = downloads._knock

# ---- the stand-ins

STAND_INS = dict(IMAGENETTE_160=standins.imagenette_standin, PLANET_SAMPLE=standins.planet_standin,
                 CAMVID_TINY=standins.camvid_standin,
                 COCO_TINY=standins.coco_standin, IMDB_SAMPLE=standins.imdb_standin,
                 MNIST_TINY=standins.mnist_tiny_standin)
@pytest.mark.slow
@pytest.mark.parametrize('name', STAND_INS)
def test_without_a_mirror_and_a_network_there_is_the_error_or_the_stand_in(name):
    with pytest.raises(DataUnavailable, match='places'): untar_data(getattr(URLs, name))
    assert data_kind(untar_data(getattr(URLs, name), fallback=STAND_INS[name])) == 'stand-in'
