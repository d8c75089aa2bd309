"""Archives and lists of sums as Macs and Windows write them: their own files stay outside, and names arrive
as people gave them."""
import hashlib, io, tarfile, zipfile

import pytest

from exp.downloads import DataFile, DataSource, untar_data, unpack

CLUTTER = ['__MACOSX/set/._a.txt', '__MACOSX/._set', '._set', '.DS_Store', 'Thumbs.db', 'desktop.ini',
           'set/.DS_Store', 'set/Thumbs.db', 'set/._a.txt']

def zipped(members, flags=0x800):
    "A zip whose names are the given bytes, with or without the flag that says UTF-8."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as z:
        for k, (name, content) in enumerate(members): z.writestr(f'{k:04}'.ljust(len(name), '_'), content)
    raw = buffer.getvalue()
    for k, (name, _) in enumerate(members):
        old = f'{k:04}'.ljust(len(name), '_').encode()
        assert raw.count(old) == 2 and len(old) == len(name)
        raw = raw.replace(old, name)
    if flags:
        raw = bytearray(raw)
        for sign, place in (b'PK\3\4', 6), (b'PK\1\2', 8):
            at = -1
            while (at := raw.find(sign, at + 1)) >= 0: raw[at + place + 1] |= 8
        raw = bytes(raw)
    return raw

def tgz(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
        for name, content in members:
            info = tarfile.TarInfo(name.decode())
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()

@pytest.fixture
def mirror(tmp_path, monkeypatch):
    (tmp_path/'mirror').mkdir()
    monkeypatch.setenv('EXP_DATA', str(tmp_path/'cache'))
    monkeypatch.setenv('EXP_DATA_MIRROR', str(tmp_path/'mirror'))
    return tmp_path/'mirror'

def files(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())

@pytest.mark.parametrize('pack, name', [(zipped, 'set.zip'), (tgz, 'set.tgz')])
@pytest.mark.parametrize('clutter', CLUTTER + ['all'])
def test_a_systems_own_files_are_no_part_of_a_data_set(mirror, pack, name, clutter):
    extra = CLUTTER if clutter == 'all' else [clutter]
    raw = pack([(n.encode(), b'x') for n in ['set/a.txt', 'set/b/c.txt', *extra]])
    (mirror/name).write_bytes(raw)
    (mirror/'SHA256SUMS').write_text(f'{hashlib.sha256(raw).hexdigest()}  {name}\n')
    folder = untar_data(DataSource('set', (DataFile(name, None),)))
    assert folder.name == 'set' and files(folder) == ['a.txt', 'b/c.txt']

@pytest.mark.parametrize('raw, flags, name', [
    ('Äpfel/été.txt'.encode('utf-8'), 0x800, 'Äpfel/été.txt'),
    ('Äpfel/été.txt'.encode('utf-8'), 0, 'Äpfel/été.txt'), ('猫/犬.txt'.encode('utf-8'), 0, '猫/犬.txt'),
    ('Äpfel/été.txt'.encode('cp437'), 0, 'Äpfel/été.txt'), (b'plain/name.txt', 0, 'plain/name.txt'),
    (rb'folder\name.txt', 0, 'folder/name.txt')])
def test_a_zips_names_arrive_as_they_were_given(tmp_path, raw, flags, name):
    (tmp_path/'a.zip').write_bytes(zipped([(raw, b'x')], flags))
    unpack(tmp_path/'a.zip', tmp_path/'out')
    assert files(tmp_path/'out') == [name]

@pytest.mark.parametrize('encode', [lambda s: s.encode('utf-8'), lambda s: s.encode('utf-8-sig'),
                                    lambda s: s.encode('utf-16'), lambda s: s.encode('utf-16-le'),
                                    lambda s: s.replace('\n', '\r\n').encode('utf-8-sig'),
                                    lambda s: s.replace('\n', '\r\n').encode('utf-16')])
@pytest.mark.parametrize('line', ['{sum}  sub/set.tgz\n', '{sum} *sub\\set.tgz\n', '{sum} *./sub/set.tgz\n',
                                  '\\{sum}  sub\\\\set.tgz\n'])
def test_a_list_of_sums_is_read_however_it_was_written(mirror, encode, line):
    raw = tgz([(b'set/a.txt', b'x')])
    (mirror/'sub').mkdir()
    (mirror/'sub'/'set.tgz').write_bytes(raw)
    (mirror/'SHA256SUMS').write_bytes(encode(line.format(sum=hashlib.sha256(raw).hexdigest())))
    assert files(untar_data(DataSource('set', (DataFile('sub/set.tgz', None),)))) == ['a.txt']
