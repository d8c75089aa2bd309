"""Real data, where a mirror offers it: each set unpacks, has its stand-in's structure, and gives a batch."""
import json, os, re, shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from exp import standins
from exp.core import environ
from exp.data_block import ImageList
from exp.downloads import URLs, DataUnavailable, data_kind, untar_data

pytestmark = pytest.mark.slow
MIRROR = Path(os.environ.get('COURSE_SMOKE_MIRROR') or os.environ.get('EXP_DATA_MIRROR') or 'no mirror')
SUMS = (MIRROR/'SHA256SUMS').read_text(encoding='utf-8') if (MIRROR/'SHA256SUMS').is_file() else ''
OFFERED = [name for name, source in vars(URLs).items() if all(f.name in SUMS.split() for f in source.files)]
STAND_INS = dict(IMAGENETTE_160=standins.imagenette_standin, PLANET_SAMPLE=standins.planet_standin,
                 CAMVID_TINY=standins.camvid_standin, CAMVID_11=standins.camvid_11_standin,
                 COCO_TINY=standins.coco_standin, IMDB_SAMPLE=standins.imdb_standin,
                 MNIST_TINY=standins.mnist_tiny_standin)

@pytest.fixture(scope='module')
def real(tmp_path_factory):
    "A function that unpacks a set from the mirror, in a cache of this file's own."
    cache = tmp_path_factory.mktemp('mirror')
    def get(name):
        with environ(EXP_DATA_MIRROR=str(MIRROR), EXP_DATA=str(cache)): return untar_data(getattr(URLs, name))
    yield get
    shutil.rmtree(cache, ignore_errors=True)

@pytest.mark.parametrize('name', OFFERED)
def test_a_set_unpacks_and_gives_a_batch(name, real):
    folder = real(name)
    assert data_kind(folder) == 'mirror' and real(name) == folder
    images = [p for p in folder.rglob('*') if p.suffix.lower() in ('.jpg', '.png')]
    if not images:
        assert any(p.stat().st_size for p in folder.rglob('*') if p.is_file())
        return
    items = ImageList(sorted(images)[:8], path=folder).split_none().label_from_func(lambda p: p.parent.name)
    xb, yb = items.transform(size=32).databunch(bs=8).one_batch()
    assert xb.shape == (8, 3, 32, 32) and len(yb) == 8 and xb.float().std() > 0

@pytest.mark.parametrize('name', [n for n in OFFERED if n in STAND_INS])
def test_what_a_mirror_gave_is_not_given_out_once_the_mirror_is_gone(name, real, tmp_path):
    folder = real(name)
    with environ(EXP_DATA_MIRROR='', EXP_DATA=str(folder.parents[1])):
        with pytest.raises(DataUnavailable, match='vouches'): untar_data(getattr(URLs, name))
        made = untar_data(getattr(URLs, name), fallback=STAND_INS[name])
    assert data_kind(made) == 'stand-in' and made != folder

def keys(x):
    "The shape of plain data: the keys of dictionaries, the types of values, one entry for a list."
    if isinstance(x, dict): return {k: keys(v) for k, v in x.items()}
    return [keys(x[0])] if isinstance(x, list) else type(x).__name__

def survey(folder):
    """What code that reads a data set relies on: folders, suffixes, formats and modes of files, headers,
    keys, kinds of columns."""
    found = set()
    for p in sorted(folder.rglob('*')):
        place = re.sub(r'\d{2,}|[A-Za-z]*\d+\w*', '#', p.relative_to(folder).with_suffix('').as_posix())
        if p.is_dir(): found.add((p.relative_to(folder).as_posix(), 'folder'))
        elif p.suffix in ('.jpg', '.png'):
            found.add((place.rsplit('/', 1)[0], p.suffix, *Image.open(p).mode.split()))
        elif p.suffix == '.csv':
            found.add((place, tuple((c, t.kind) for c, t in pd.read_csv(p).dtypes.items())))
        elif p.suffix == '.json': found.add((place, json.dumps(keys(json.loads(p.read_text())))))
        elif p.name == 'codes.txt': found.add((place, p.read_text()))
        else: found.add((place, 'text'))
    return found

@pytest.mark.parametrize('name', [n for n in OFFERED if n in STAND_INS and n != 'IMAGENETTE_160'])
def test_a_set_and_its_stand_in_have_the_same_structure(name, real, tmp_path):
    STAND_INS[name](tmp_path)
    assert survey(tmp_path) == survey(real(name))
