"""`~` is the home folder wherever a path is given, and a name that begins with it otherwise is a name."""
import hashlib, io, tarfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from exp.core import atomic_path, environ, load_state, read_text, report, save_state, settings, user_path
from exp.data_block import ImageList
from exp.sources import get_files
from exp.image_cache import verify_images
from exp.dataloader import Dataset, make_data
from exp.datasets import read_idx
from exp.downloads import DataFile, DataSource, atomic_folder, download, file_sums, unpack, untar_data
from exp.checkpoints import Checkpoint
from exp.learner import Learner
from exp.inference import load_learner
from exp.progress import CSVLog
from exp.schedules import SaveBest

@pytest.fixture
def home(tmp_path, monkeypatch):
    "A home folder with a data set in it, and an empty working folder."
    (tmp_path/'home'/'set'/'test').mkdir(parents=True)
    (tmp_path/'work').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.setenv('USERPROFILE', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path/'work')
    home = tmp_path/'home'
    for k in range(4):
        for name in (f'{k}.png', f'test/{k}.png'): Image.new('RGB', (4, 4)).save(home/'set'/name)
    (home/'set'/'valid.txt').write_text('1.png\n')
    (home/'set'/'labels.csv').write_text('name,label\n' + ''.join(f'{k}.png,{k % 2}\n' for k in range(4)))
    (home/'set'/'settings.ini').write_text('[exp]\nseed = 8\n')
    (home/'set'/'one.idx').write_bytes(b'\0\0\x08\1\0\0\0\1\7')
    with tarfile.open(home/'set'/'notes.tgz', 'w:gz') as tar:
        tar.addfile(tarfile.TarInfo('notes/a'), io.BytesIO(b''))
    return home

def learner(cbs=None, **kwargs):
    torch.manual_seed(0)
    ds = Dataset(torch.randn(16, 4), torch.randint(0, 3, (16,)))
    return Learner(make_data(ds, ds, bs=8), nn.Linear(4, 3), cbs=cbs, **kwargs)

def split(): return ImageList.from_folder('~/set', recurse=False).split_by_index([1])

def settings_file():
    with environ(EXP_SETTINGS='~/set/settings.ini'): return settings().seed == 8
def data_folder():
    with environ(EXP_DATA='~/cache'): return settings().data == Path.home()/'cache'
def reported():
    with environ(EXP_REPORT='~/out.jsonl'): report('00', 'x', 1.)
    return (Path.home()/'out.jsonl').exists()
def mirrored():
    raw = (Path.home()/'set'/'notes.tgz').read_bytes()
    (Path.home()/'set'/'SHA256SUMS').write_text(f'{hashlib.sha256(raw).hexdigest()}  notes.tgz\n')
    with environ(EXP_DATA_MIRROR='~/set', EXP_DATA='~/cache'):
        return Path.home() in untar_data(DataSource('notes', (DataFile('notes.tgz', None),))).parents
def atomic():
    with atomic_path('~/deep/a') as p: p.write_text('x')
    with atomic_folder('~/deeper/b') as p: (p/'a').write_text('x')
    return (Path.home()/'deep'/'a').exists() and (Path.home()/'deeper'/'b'/'a').exists()
def unpacked():
    unpack('~/set/notes.tgz', '~/out')
    return (Path.home()/'out'/'notes'/'a').exists()
def saved():
    save_state('~/a.pth', {'a': 1})
    return load_state('~/a.pth') == {'a': 1} and (Path.home()/'a.pth').exists()
def learner_path():
    learn = learner(path='~/models')
    return learn.save('a') == Path.home()/'models'/'a.pth' and learn.load('a') is not False
def learner_name():
    learn = learner()
    learn.load(learn.save('~/models/a'))
    return learn.save('~/models/a') == Path.home()/'models'/'a.pth'
def exported():
    learn = learner(loss_func=None)
    return (learn.export('~/models/e.pth') == Path.home()/'models'/'e.pth'
            and load_learner('~/models/e.pth', nn.Linear(4, 3)).path == Path.home()/'models')
def checkpointed():
    learner().fit(1, cbs=Checkpoint('~/c.pth', every=1))
    learner().fit(1, cbs=Checkpoint('~/c.pth'), resume='~/c.pth')
    return (Path.home()/'c.pth').exists()
def best():
    learner(metrics=[]).fit(1, cbs=SaveBest('~/b.pth', load_best=True))
    return (Path.home()/'b.pth').exists()
def logged():
    learner().fit(1, cbs=CSVLog('~/log.csv'))
    return (Path.home()/'log.csv').exists()

PLACES = [
    settings_file, data_folder, reported, mirrored, atomic, unpacked, saved, learner_path, learner_name,
    exported, checkpointed, best, logged,
    lambda: read_idx('~/set/one.idx').tolist() == [7],
    lambda: file_sums('~/set/one.idx') == file_sums(Path.home()/'set'/'one.idx'),
    lambda: download('http://nowhere/x', '~/set/one.idx') == Path.home()/'set'/'one.idx',
    lambda: read_text('~/set/valid.txt') == '1.png\n', lambda: len(get_files('~/set', '.png')) == 8,
    lambda: len(ImageList.from_folder(Path('~/set'))) == 8,
    lambda: ImageList(['0.png'], '~/set').get(0).size == (4, 4) == ImageList(['~/set/0.png']).get(0).size,
    lambda: verify_images(['~/set/0.png']) == [] == verify_images(ImageList(['0.png'], '~/set')),
    lambda: len(ImageList.from_csv('~/set')) == 4 == len(ImageList.from_csv('~/set', '~/set/labels.csv')),
    lambda: len(ImageList.from_df(pd.DataFrame({'n': ['0.png']}), '~/set')) == 1,
    lambda: len(ImageList.from_df(pd.DataFrame({'n': ['0.png']}), folder='~/set')) == 1,
    lambda: len(ImageList.from_folder('~/set', recurse=False).split_by_files('~/set/valid.txt').valid) == 1,
    lambda: split().label_from_csv('~/set/labels.csv').classes == [0, 1],
    lambda: len(split().label_from_csv().add_test_folder('~/set/test').test) == 4]

@pytest.mark.parametrize('place', PLACES)
def test_the_home_folder_is_meant_everywhere(home, place):
    assert place()
    assert not list(Path().glob('~*'))

@pytest.mark.parametrize('name', ['~$report.png', '~nobody_of_this_name/a.png', 'a~.png', 'b/~/c.png'])
def test_a_name_with_a_tilde_of_another_kind_is_a_name(home, name):
    (Path('set')/name).parent.mkdir(parents=True)
    Image.new('RGB', (4, 4)).save(Path('set')/name)
    assert (user_path(name) == Path(name) and ImageList([name], 'set').get(0).size == (4, 4)
            and len(ImageList.from_folder('set')) == 1)
