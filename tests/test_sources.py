"""Files, items, splits and labels from what users have: folders, masks, columns, tables and lists as Excel,
pandas and Windows write them, and paths by one rule."""
import gzip, warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from exp.core import read_text, settings, environ, user_path
from exp.data_block import CategoryList, CategoryProcessor, FloatList, ImageList, ItemList, LabelList
from exp.image_cache import verify_images
from exp.sources import cell_labels, get_files, image_extensions, path_ends, row_for
from test_data_block import folder  # noqa: F401

def picture(path, colour=0, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (colour,)*3).save(path)

# ---- masks and places

MASK = [False]*8 + [True]*2
MASKS = dict(
    list=MASK, numpy=np.array(MASK), tensor=torch.tensor(MASK), series=pd.Series(MASK),
    shuffled_index=pd.Series(MASK, index=range(10)[::-1]),
    named_index=pd.Series(MASK, index=list('abcdefghij')),
    nullable=pd.Series(MASK, dtype='boolean'), extension=pd.array(MASK, dtype='boolean'),
    objects=np.array(MASK, dtype=object), numpy_scalars=[np.bool_(v) for v in MASK],
    tensors=[torch.tensor(v) for v in MASK],
    index=pd.Index(MASK), iterator=(v for v in MASK), tuple=tuple(MASK), zeros_and_ones=[0]*8 + [1]*2,
    column=pd.Series([0]*8 + [1]*2), int_array=np.array([0]*8 + [1]*2, np.uint8),
    int_tensor=torch.tensor([0]*8 + [1]*2), floats=pd.Series([0.]*8 + [1.]*2),
    nullable_ints=pd.array([0]*8 + [1]*2, dtype='Int64'))

@pytest.mark.parametrize('mask', MASKS.values(), ids=MASKS)
def test_a_mask_chooses_the_items_that_it_marks(mask):
    split = ItemList(list(range(10))).split_by_index(mask)
    assert split.valid.items == [8, 9] and split.train.items == list(range(8))

@pytest.mark.parametrize('places', [[8, 9], (8, 9), {8, 9}, range(8, 10), [-1, -2], np.array([8, 9]),
                                    torch.tensor([9, 8]), pd.Series([8, 9], index=[4, 2]), pd.Index([8, 9]),
                                    iter([8, 9, 9])])
def test_places_are_places(places):
    assert ItemList(list(range(10))).split_by_index(places).valid.items == [8, 9]
    assert (ItemList(list(range(10))).split_by_index([0, 1]).valid.items == [0, 1]
            and ItemList(list(range(10))).split_by_index([1]).valid.items == [1])

@pytest.mark.parametrize('mask, error', [([True, False], IndexError), (np.array([True]*11), IndexError),
                                         (pd.Series([True, None]*5, dtype='boolean'), IndexError),
                                         ([0.5]*10, TypeError), (['True']*10, TypeError)])
def test_what_is_neither_a_mask_nor_places_is_refused(mask, error):
    with pytest.raises(error): ItemList(list(range(10))).split_by_index(mask)

# ---- what holds several items

GREYS, COLOURS = np.zeros((10, 5, 7), np.uint8), np.zeros((10, 5, 7, 3), np.uint8)
@pytest.mark.parametrize('items', [GREYS, COLOURS, torch.from_numpy(GREYS),
                                   torch.from_numpy(COLOURS).movedim(-1, 1), list(GREYS), tuple(COLOURS),
                                   iter(COLOURS), pd.Series(list(COLOURS), index=range(5, 15)),
                                   {k: im for k, im in enumerate(COLOURS)}.values(),
                                   ImageList(list(COLOURS))])
@pytest.mark.parametrize('how', [ImageList, lambda o: ImageList([]).new(o),
                                 lambda o: ImageList(list(GREYS[:4])).split_none().label_from_func(
                                     lambda _: 'x').add_test(o).test], ids=['ImageList', 'new', 'add_test'])
def test_ten_images_are_ten_items_whatever_holds_them(items, how):
    if hasattr(items, '__next__'): items = iter(list(COLOURS))
    got = how(items)
    images = got if isinstance(got, ImageList) else got.x
    assert len(images) == 10 and all(images.get(i).size == (7, 5) for i in range(10))

@pytest.mark.parametrize('one', [GREYS[0], COLOURS[0], torch.from_numpy(GREYS)[0],
                                 torch.from_numpy(COLOURS)[0].movedim(-1, 0), np.zeros((5, 7, 4), np.uint8),
                                 np.zeros((5, 7, 1), np.uint8),
                                 torch.zeros(1, 5, 7, dtype=torch.uint8), Image.new('RGB', (7, 5)), b'bytes',
                                 'a.png'])
def test_one_image_is_one_item(one): assert len(ImageList(one)) == 1 and ImageList(one).items[0] is one

@pytest.mark.parametrize('items',
                         [pd.Series([3, 1, 2], index=[7, 8, 9]), np.array([3, 1, 2]), torch.tensor([3, 1, 2]),
                          pd.Index([3, 1, 2]), pd.array([3, 1, 2], dtype='Int64'), (3, 1, 2),
                          {3: 0, 1: 0, 2: 0}.keys(), ItemList([3, 1, 2])])
def test_numbers_are_items_as_pythons_own(items):
    got = ItemList(items).items
    assert got == [3, 1, 2] and all(type(v) is int for v in got)

@pytest.mark.parametrize('several', [np.array(['a', 'b']), pd.Series(['a', 'b'], index=[3, 4]), ('a', 'b'),
                                     pd.Index(['a', 'b']), {'a': 0, 'b': 0}.keys()])
def test_names_of_folders_classes_endings_and_columns_come_in_any_sequence(tmp_path, several):
    for k, name in enumerate(['a/0.png', 'b/1.png', 'c/2.png']): picture(tmp_path/name, k)
    images = ImageList.from_folder(tmp_path)
    assert (len(images.split_by_folder(train='c', valid=several).valid) == 2
            and len(get_files(tmp_path, include=several)) == 2)
    assert (CategoryProcessor(several).classes == ['a', 'b']
            and all(type(c) is str for c in CategoryProcessor(several).classes))
    df = pd.DataFrame({'name': ['a/0.png', 'b/1.png', 'c/2.png'], 'a': [1., 2., 3.], 'b': [4., 5., 6.]})
    assert (images.split_none().label_from_df(df, label_col=several, label_cls=FloatList).train.y.items
            == [(1., 4.), (2., 5.), (3., 6.)])
    named = [f'{n}/{k}.png' for k, n in enumerate('ab')]
    names = (named if isinstance(several, tuple) else type(several)(named)
             if isinstance(several, (pd.Series, pd.Index)) else np.array(named))
    assert len(images.split_by_files(names).valid) == 2

# ---- one rule for paths

@pytest.fixture
def shadowed(tmp_path, monkeypatch):
    "A data set in `set`, and files of the same names in the working folder."
    monkeypatch.chdir(tmp_path)
    for k in range(4):
        picture(tmp_path/'set'/f'{k}.png', 10 + k)
        picture(tmp_path/f'{k}.png', 200)
        picture(tmp_path/'set'/'test'/f'{k}.png', 10)
        picture(tmp_path/'test'/f'{k}.png', 200)
    (tmp_path/'set'/'valid.txt').write_text('3.png\n')
    (tmp_path/'valid.txt').write_text('0.png\n1.png\n')
    (tmp_path/'set'/'labels.csv').write_text('name,label\n' + ''.join(f'{k}.png,right\n' for k in range(4)))
    (tmp_path/'labels.csv').write_text('name,label\n' + ''.join(f'{k}.png,wrong\n' for k in range(4)))
    return tmp_path

SPELLINGS = [lambda name, here: name, lambda name, here: f'set/{name}', lambda name, here: f'./set/{name}',
             lambda name, here: str(here/'set'/name), lambda name, here: here/'set'/name]
ROOTS = [lambda here: 'set', lambda here: './set/', lambda here: here/'set', lambda here: '~/set']

def spelt(spelling, root, name, here):
    "A name, and the list's folder; a name from the working folder goes with a folder from there."
    root = root(here)
    return (spelling(name, here) if not str(root).startswith(('~', '/'))
            or spelling in (SPELLINGS[0], *SPELLINGS[3:]) else name, root)

@pytest.mark.parametrize('root', ROOTS)
@pytest.mark.parametrize('spelling', SPELLINGS)
def test_a_name_is_looked_for_below_path_everywhere(shadowed, monkeypatch, spelling, root):
    monkeypatch.setenv('HOME', str(shadowed))
    monkeypatch.setenv('USERPROFILE', str(shadowed))
    at = lambda name: spelt(spelling, root, name, shadowed)
    path = root(shadowed)
    images = ImageList([at(f'{k}.png')[0] for k in range(4)], path)
    grey = lambda l: [l.get(i).getpixel((0, 0))[0] for i in range(len(l))]
    assert grey(images) == [10, 11, 12, 13] and verify_images(images) == []
    assert (grey(images.split_by_files(at('valid.txt')[0]).valid) == [13]
            == grey(images.split_by_files([at('3.png')[0]]).valid))
    assert images.split_none().label_from_csv(at('labels.csv')[0]).classes == ['right']
    df = pd.DataFrame({'name': [at(f'{k}.png')[0] for k in range(4)], 'label': ['r', 'r', 's', 's']})
    labelled = images.split_none().label_from_df(df)
    assert labelled.train.y.items == [0, 0, 1, 1]
    assert (grey(ImageList.from_df(df, path)) == [10, 11, 12,
                                                  13] == grey(ImageList.from_csv(path, at('labels.csv')[0])))
    assert (grey(labelled.add_test_folder(at('test')[0]).test.x) == [10]*4
            == grey(labelled.add_test([at(f'test/{k}.png')[0] for k in range(4)]).test.x))
    folder = ImageList.from_folder(path)
    assert (grey(folder) == [10, 11, 12, 13] + [10]*4
            and folder.split_by_folder(train='0.png', valid='test').valid.items == folder.items[4:])
    assert (set(images.split_none().label_from_folder().classes) == {'set'}
            and images.name_of(user_path(at('0.png')[0], path)) == '0.png')

@pytest.mark.parametrize('call', [lambda l: l.get(0), lambda l: l.split_by_files('only_here.txt'),
                                  lambda l: l.split_none().label_from_csv('only_here.txt'),
                                  lambda l: ImageList.from_csv('set', 'only_here.txt'),
                                  lambda l: ImageList.from_df(pd.DataFrame({'n': ['only_here.png']}), 'set'),
                                  lambda l: ImageList(['1.png'], 'set').split_none().label_from_folder()
                                  .add_test_folder('only')])
def test_what_the_working_folder_alone_has_is_not_there(shadowed, call):
    for name in 'only_here.png', 'only/0.png': picture(shadowed/name)
    (shadowed/'only_here.txt').write_text('name,label\n0.png,x\n')
    with pytest.raises(FileNotFoundError, match='set'): call(ImageList(['only_here.png'], 'set'))

def test_a_folder_inside_one_of_its_own_name_is_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path/'set'/'a.png', 1)
    picture(tmp_path/'set'/'set'/'a.png', 2)
    images = ImageList.from_folder('set')
    assert [images.get(i).getpixel((0, 0))[0] for i in range(2)] == [1, 2]

# ---- a table's text

def csv_of(folder, labels, name='labels.csv', names=None, encoding='utf-8', sep=','):
    "Images, and a file with a label for each."
    names = [f'{k}.png' for k in range(len(labels))] if names is None else names
    for n in names: picture(folder/n.replace('\\', '/'))
    text = f'name{sep}label\n' + ''.join(f'{n}{sep}{l}\n' for n, l in zip(names, labels))
    (folder/name).write_bytes(text.replace('\n', '\r\n').encode(encoding))
    return folder

WAYS = {'label_from_csv': lambda p, **k: ImageList.from_folder(p).split_none().label_from_csv(**k),
        'from_csv, label_from_df': lambda p, **k: ImageList.from_csv(p).split_none().label_from_df(
            'label', **k)}

@pytest.mark.parametrize('way', WAYS.values(), ids=WAYS)
@pytest.mark.parametrize('labels', [['001', '010', '100'], ['1', '1e5', '2e5'], ['NA', 'None', 'null'],
                                    ['nan', 'cat', 'n/a'], ['True', 'False', 'true'], ['1', '2', 'x'],
                                    ['0x1', '0x2', '1_0'],
                                    ['1.10', '1.1', 'a'], ['01.05', '12.11', '02.03'],
                                    ['inf', '-inf', 'Infinity'], ['+1', '+2', '-'],
                                    ['12345678901234567890', '12345678901234567891', '5'],
                                    ['2020-01-01', '2021-01-01', '1'], ['NULL', '#N/A', '<NA>'],
                                    ['1,5', '2', '3']])
def test_a_label_is_the_text_that_stands_there(tmp_path, labels, way):
    quoted = [f'"{l}"' if ',' in l else l for l in labels]
    got = way(csv_of(tmp_path, quoted))
    assert got.classes == sorted(labels) and [got.train.y.decode(y) for y in got.train.y.items] == labels

@pytest.mark.parametrize('way', WAYS.values(), ids=WAYS)
def test_whole_numbers_keep_their_order_and_numbers_with_a_point_are_a_regression(tmp_path, way):
    assert way(csv_of(tmp_path/'a', ['10', '9', '-3'])).classes == [-3, 9, 10]
    for labels in (['0.5', '2', '1e-05'], ['.5', '-1.25', '3.'], ['1.50', '2.25E3', '0.0'],
                   ['0.5 ', ' 1.5', '2']):
        got = way(csv_of(tmp_path/'b', labels))
        assert (isinstance(got.train.y, FloatList)
                and got.train.y.column()[:, 0].tolist() == pytest.approx(list(map(float, labels))))

@pytest.mark.parametrize('asked', [dict(label_cls=CategoryList), dict(classes=['1.10', '1.2', '1.1']),
                                   dict(other='rest')])
def test_categories_that_are_asked_for_keep_their_text(tmp_path, asked):
    got = ImageList.from_folder(csv_of(tmp_path, ['1.10', '1.2', '1.1'])).split_none().label_from_csv(**asked)
    assert [got.train.y.decode(y) for y in got.train.y.items] == ['1.10', '1.2', '1.1']

def test_a_regression_that_is_asked_for_reads_text(tmp_path):
    got = ImageList.from_folder(csv_of(tmp_path,
                                       ['001', '1e5', '2'])).split_none().label_from_csv(label_cls=FloatList)
    assert got.train.y.column()[:, 0].tolist() == [1, 1e5, 2] and got.train.y.get(1).tolist() == [1e5]

@pytest.mark.parametrize('hole', ['', 'NA', 'NaN', 'nan', 'null', 'None'])
def test_a_hole_in_a_regression_is_named(tmp_path, hole):
    with pytest.raises(ValueError, match='empty'):
        WAYS['label_from_csv'](csv_of(tmp_path, ['0.5', hole, '1.5']))

@pytest.mark.parametrize('name', ['NA', 'None', 'null', 'nan', '007', '1e5', '1.50', 'True', ' spaced'])
def test_a_files_name_is_the_text_that_stands_there(tmp_path, name):
    csv_of(tmp_path, ['x', 'y'], names=[f'{name.strip()}.png', 'b.png'])
    (tmp_path/'labels.csv').write_text(f'name, label\n{name}, x\nb, y\n')
    items = ImageList.from_csv(tmp_path, suffix='.png')
    assert items.items[0].name == f'{name.strip()}.png'
    assert ImageList.from_folder(tmp_path).split_none().label_from_csv(suffix='.png').classes == ['x', 'y']

@pytest.mark.parametrize('cell, tags', [('a  b', ['a', 'b']), ('b ', ['b']), (' a', ['a']), ('', []),
                                        ('  ', []), ('a', ['a']), ('a b a', ['a', 'b']), ('1', ['1']),
                                        ('1.50 NA', ['1.50', 'NA']), ('001', ['001'])])
@pytest.mark.parametrize('sep', [' ', ';', '|'])
def test_tags_are_never_empty_and_an_empty_cell_has_none(tmp_path, cell, tags, sep):
    csv_of(tmp_path, [cell.replace(' ', sep), 'z'])
    split = lambda: ImageList.from_folder(tmp_path).split_none()
    assert split().label_from_csv(label_delim=sep, label_cls=LabelList).train.y.items == [tags, ['z']]
    df = pd.read_csv(tmp_path/'labels.csv', dtype=str)
    assert split().label_from_df(df, label_delim=sep, label_cls=LabelList).train.y.items[1] == ['z']
    df = pd.DataFrame({'name': ['0.png', '1.png'],
                       'label': [None if not tags else cell.replace(' ', sep), 'z']})
    assert split().label_from_df(df, label_delim=sep, label_cls=LabelList).train.y.items == [tags, ['z']]
    assert (ImageList.from_df(df, tmp_path).split_none()
            .label_from_df('label', label_delim=sep, label_cls=LabelList).train.y.items == [tags, ['z']])

@pytest.mark.parametrize('names', [['x/a.png', 'y/a.png'], ['a.png', 'y/a.png'], ['x/y/a.png', 'x/a.png']])
def test_two_files_of_one_name_do_not_share_a_row(tmp_path, names):
    for n in names: picture(tmp_path/n)
    df = pd.DataFrame({'name': ['a.png'], 'label': ['cat']})
    for split in (lambda l: l.split_none(), lambda l: l.split_by_index([0])):
        with pytest.raises(ValueError, match='share') as e:
            split(ImageList.from_folder(tmp_path)).label_from_df(df)
        assert all(n in str(e.value) for n in names)
    with pytest.raises(ValueError, match='share'):
        ImageList([tmp_path/names[0]],
                  tmp_path).split_none().label_from_df(df).add_test([tmp_path/names[1]], labeled=True)

def test_one_file_that_is_listed_twice_may_use_its_row_twice(tmp_path):
    picture(tmp_path/'x'/'a.png')
    assert (ImageList([tmp_path/'x'/'a.png', 'x/a.png'], tmp_path).split_none()
            .label_from_df(pd.DataFrame({'name': ['a.png'], 'label': ['cat']})).classes == ['cat'])

# ---- files as Macs and Windows write them

ENCODINGS = ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32']
@pytest.mark.parametrize('encoding', ENCODINGS)
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_text_files_are_read_whatever_wrote_them(tmp_path, encoding, end):
    names = ['x/été.png', 'y/b.png', 'y/c.png']
    for n in names: picture(tmp_path/n)
    write = lambda name, lines: (tmp_path/name).write_bytes((end.join(lines) + end).encode(encoding))
    write('valid.txt', [names[0].replace('/', '\\'), 'b.png  ', ''])
    write('labels.csv', ['name,label']
          + [f'{n},{k}' for k, n in enumerate([names[0].replace('/', '\\'), 'y/b.png', 'c.png'])])
    images = ImageList.from_folder(tmp_path)
    split = images.split_by_files('valid.txt')
    assert [p.name for p in split.valid] == ['été.png', 'b.png']
    assert images.split_none().label_from_csv(col='name', label_col='label').train.y.items == [0, 1, 2]
    write('all.csv', ['name,label', *(n.replace('/', '\\') + ',x' for n in names)])
    assert ([p.name for p in ImageList.from_csv(tmp_path, 'all.csv', col='name')]
            == ['été.png', 'b.png', 'c.png'])
    write('settings.ini', ['[exp]', 'seed = 5'])
    with environ(EXP_SETTINGS=str(tmp_path/'settings.ini')): assert settings().seed == 5
    assert read_text(tmp_path/'settings.ini') == '[exp]\nseed = 5\n'

def test_a_text_in_another_encoding_is_named(tmp_path):
    (tmp_path/'valid.txt').write_bytes('été.png'.encode('latin-1'))
    for call in (read_text, lambda f: ItemList([]).split_by_files(f),
                 lambda f: ImageList.from_csv(tmp_path, f)):
        with pytest.raises(ValueError, match='valid.txt'): call(tmp_path/'valid.txt')

def test_names_with_accents_are_the_same_whether_composed_or_not(tmp_path):
    picture(tmp_path/'e\u0301.png')
    picture(tmp_path/'b.png')
    df = pd.DataFrame({'name': ['\u00e9.png', 'b.png'], 'label': ['x', 'y']})
    assert ImageList.from_folder(tmp_path).split_none().label_from_df(df).classes == ['x', 'y']
    assert len(ImageList.from_folder(tmp_path).split_by_files(['\u00e9.png']).valid) == 1

def test_a_compressed_table_is_read(tmp_path):
    csv_of(tmp_path, ['x', 'y'])
    (tmp_path/'labels.csv.gz').write_bytes(gzip.compress((tmp_path/'labels.csv').read_bytes()))
    assert ImageList.from_folder(tmp_path).split_none().label_from_csv('labels.csv.gz').classes == ['x', 'y']

@pytest.mark.parametrize('name', ['.DS_Store', 'Thumbs.db', 'desktop.ini', '._a.png', '__MACOSX/a.png',
                                  '__MACOSX/._a.png', 'set/Thumbs.db', 'set/._b.png'])
def test_a_systems_own_files_are_not_listed(tmp_path, name):
    picture(tmp_path/'set'/'a.png')
    (tmp_path/name).parent.mkdir(exist_ok=True)
    (tmp_path/name).write_bytes(b'x')
    assert ([p.name for p in get_files(tmp_path)] == ['a.png']
            == [p.name for p in ImageList.from_folder(tmp_path)])

# ---- endings

@pytest.mark.parametrize('ending', sorted(e for e, kind in Image.registered_extensions().items()
                                          if kind in Image.SAVE and kind in Image.OPEN))
def test_what_pillow_writes_and_reads_is_listed(tmp_path, ending):
    for mode in 'RGB', 'L', 'P', '1', 'F':
        try:
            Image.new(mode, (32, 32)).save(tmp_path/f'a{ending}')
            with Image.open(tmp_path/f'a{ending}') as im: im.load()
            break
        except Exception: pass
    else: return   # stubs, PostScript without its interpreter
    if ending in ('.eps', '.ps'): return
    assert [p.name for p in ImageList.from_folder(tmp_path)] == [f'a{ending}']
    ImageList.from_folder(tmp_path).get(0).load()

@pytest.mark.parametrize('ending', ['.jpg', '.jfif', '.jp2', '.tga', '.mpo'])
def test_what_pillow_opens_by_anothers_reader_is_listed_too(ending): assert ending in image_extensions

@pytest.mark.parametrize('ending', ['.heic', '.svg', '.pdf', '.mpg', '.h5', '.grib', '.eps', '.csv', '.txt'])
def test_what_pillow_cannot_show_is_not_listed(ending):
    assert Image.registered_extensions().get(ending) == 'HEIF' or ending not in image_extensions

@pytest.mark.parametrize('names, said', [(['b.heic', 'c.HEIC', 'd.qqq'], '2 .heic, 1 .qqq'),
                                         (['e'], '1 without ending'), (['f.svg'], '1 .svg')])
def test_what_is_left_out_is_counted_once(tmp_path, names, said):
    picture(tmp_path/'a.png')
    for n in names: (tmp_path/n).write_bytes(b'x')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        assert len(ImageList.from_folder(tmp_path)) == 1
    assert [said in str(w.message) for w in caught] == [True]

def test_texts_beside_images_and_endings_that_are_asked_for_are_no_news(tmp_path):
    for n in ('a.png', 'b.jpg'): picture(tmp_path/n)
    for n in ('labels.csv', 'notes.txt', 'boxes.json', 'page.xml', '.DS_Store'): (tmp_path/n).write_text('x')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(ImageList.from_folder(tmp_path)) == 2 and len(ImageList.from_folder(tmp_path, '.png')) == 1

# ---- the table that items came from

def rows(flags):
    return pd.DataFrame({'name': [f'{k}.png' for k in range(len(flags))],
                         'label': [('cat', 'dog')[k % 2] for k in range(len(flags))], 'is_valid': flags},
                        index=range(100, 100 + len(flags)))

FLAGS = [True, False, False, False, True, False]
@pytest.mark.parametrize('flags', [FLAGS, [int(f) for f in FLAGS], [float(f) for f in FLAGS],
                                   ['valid' if f else 'train' for f in FLAGS],
                                   ['Val' if f else 'Train' for f in FLAGS], [str(f) for f in FLAGS],
                                   [str(f).upper() for f in FLAGS], pd.array(FLAGS, dtype='boolean'),
                                   np.array(FLAGS), ['valid', 'train', 'train', 'train', 'valid', 'test']])
@pytest.mark.parametrize('source', ['df', 'csv', 'filtered'])
def test_a_column_splits_and_labels_follow_their_items(tmp_path, flags, source):
    df = rows(flags)
    for n in df['name']: picture(tmp_path/n)
    df.to_csv(tmp_path/'labels.csv', index=False)
    items = ImageList.from_csv(tmp_path) if source == 'csv' else ImageList.from_df(df, tmp_path)
    if source == 'filtered': items = items.filter(lambda p: p.stem != '1')
    split = items.split_by_col()
    assert [p.stem for p in split.valid] == ['0', '4']
    assert ([p.stem for p in split.train] == [s for s in '12345' if s != '4' and not (
        s == '1' and source == 'filtered') and not (s == '5' and list(flags)[5] == 'test')])
    split.label_from_df('label')
    for part in (split.train, split.valid):
        assert [part.y.decode(y) for y in part.y.items] == [('cat', 'dog')[int(p.stem) % 2] for p in part.x]

@pytest.mark.parametrize('split',
                         [lambda l: l.split_random(0.4, seed=1), lambda l: l.split_by_index([5, 0]),
                          lambda l: l.split_by_func(lambda p: p.stem == '3'), lambda l: l.split_none(),
                          lambda l: l.split_by_files(['2.png', '5.png']), lambda l: l.split_by_col(2)])
@pytest.mark.parametrize('label',
                         [lambda s: s.label_from_df('label'), lambda s: s.label_from_df(label_col='label'),
                          lambda s: s.label_from_df(1), lambda s: s.label_from_df()])
def test_rows_stay_with_their_items_through_every_split(tmp_path, split, label):
    df = rows(FLAGS)
    for n in df['name']: picture(tmp_path/n)
    done = label(split(ImageList.from_df(df, tmp_path)))
    for part in filter(None, (done.train, done.valid)):
        assert [part.y.decode(y) for y in part.y.items] == [('cat', 'dog')[int(p.stem) % 2] for p in part.x]

def test_texts_that_occur_twice_keep_the_labels_of_their_own_rows():
    df = pd.DataFrame({'text': ['good', 'good', 'bad', 'good'], 'label': ['pos', 'neg', 'neg', 'pos'],
                       'is_valid': [0, 0, 0, 1]})
    done = ItemList.from_df(df, col='text').split_by_col().label_from_df('label')
    assert [done.train.y.decode(y) for y in done.train.y.items] == ['pos', 'neg', 'neg']

@pytest.mark.parametrize('call, match', [
    (lambda l, d: ImageList(l.items).split_none().label_from_df('label'), 'table'),
    (lambda l, d: ImageList(l.items).split_by_col(), 'table'),
    (lambda l, d: l.split_by_col('valid'), 'column'),
    (lambda l, d: l.split_none().label_from_df('lable'), 'lable'),
    (lambda l, d: l.split_by_col('label'), "'cat'"), (lambda l, d: l.split_by_col('name'), "'0.png'"),
    (lambda l, d: ImageList.from_df(d.assign(is_valid=True), l.path).split_by_col(), 'training'),
    (lambda l, d: ImageList.from_df(d.assign(is_valid=[1, None, 0, 0, 1, 0]), l.path).split_by_col(),
     'empty'),
    (lambda l, d: l.items.pop() and l.split_none().label_from_df('label'), 'row'),
    (lambda l, d: l.items.reverse() or l.split_none().label_from_df('label'), 'row'),
    (lambda l, d: l.items.reverse() or l.split_by_col(), 'row'),
    (lambda l, d: l.split_none().label_from_df('label').add_test([l.items[0]], labeled=True), 'row')])
def test_a_column_that_cannot_be_says_why(tmp_path, call, match):
    df = rows(FLAGS)
    for n in df['name']: picture(tmp_path/n)
    with pytest.raises(ValueError, match=match): call(ImageList.from_df(df, tmp_path), df)

# ---- labels and items of other types

@pytest.mark.parametrize('of', [torch.tensor, np.int64, np.array, lambda v: np.float32(v).astype(int)])
def test_a_number_of_any_type_is_one_class(of):
    split = ItemList(list(range(6))).split_by_index([5]).label_from_func(lambda i: of(i % 2)).add_test(
        [1], labeled=True)
    assert split.classes == [0, 1] and split.test.y.items == [1]

@pytest.mark.parametrize('label', [lambda i: torch.tensor(float(i)), np.float32, lambda i: i/2 if i else 0])
def test_numbers_with_a_point_are_a_regression_whatever_their_type(label):
    assert isinstance(ItemList(list(range(4))).split_none().label_from_func(label).train.y, FloatList)

@pytest.mark.parametrize('hole', [None, float('nan'), np.float32('nan'), torch.tensor(float('nan')), pd.NA,
                                  pd.NaT, np.datetime64('NaT')])
def test_no_label_is_refused_whatever_its_type(hole):
    with pytest.raises(ValueError, match='label'):
        ItemList([1, 2]).split_none().label_from_func(lambda i: hole)

def test_a_data_frame_is_its_rows_and_a_place_alone_is_a_place():
    assert [r.tolist() for r in ItemList(pd.DataFrame({'a': [1, 2], 'b': [3, 4]}))] == [[1, 3], [2, 4]]
    assert (ItemList([5, 6, 7]).split_by_index(pd.DataFrame({'is_valid': [False, True, False]})).valid.items
            == [6])
    for place in (1, np.int64(1), np.array(1), torch.tensor(1)):
        assert ItemList([5, 6, 7]).split_by_index(place).valid.items == [6]

def test_the_working_folder_has_its_name_as_a_label(tmp_path, monkeypatch):
    picture(tmp_path/'train'/'cat'/'a.png')
    monkeypatch.chdir(tmp_path/'train'/'cat')
    assert ImageList.from_folder('.').split_none().label_from_folder().classes == ['cat']
    picture(tmp_path/'train'/'dog'/'b.png')
    picture(tmp_path/'train'/'dog'/'valid'/'x'/'b.png')
    monkeypatch.chdir(tmp_path/'train')
    assert len(ImageList.from_folder('.').split_by_grandparent().train) == 2

def test_a_table_that_its_owner_sorts_later_keeps_its_rows_here():
    df = pd.DataFrame({'text': ['b', 'a', 'c'], 'label': ['of b', 'of a', 'of c'],
                       'is_valid': [True, False, False]})
    items = ItemList.from_df(df, col='text')
    df.sort_values('text', inplace=True)
    split = items.split_by_col().label_from_df('label', classes=['of a', 'of b', 'of c'])
    assert (split.valid.x.items == ['b']
            and [split.train.y.decode(y) for y in split.train.y.items] == ['of a', 'of c'])

def test_get_files_finds_what_glob_finds(folder):
    want = sorted(p for p in folder.rglob('*.png') if not p.name.startswith('.'))
    assert sorted(get_files(folder, image_extensions)) == want
    assert get_files(folder, '.png') == get_files(folder, 'PNG') == get_files(folder, ['png'])
    assert {p.name for p in get_files(folder) if p not in want} == {'notes.txt'}

def test_get_files_is_in_one_order_whatever_the_system_says(folder):
    files = get_files(folder, '.png')
    assert files == get_files(folder, '.png')
    assert ([p.name for p in files if p.parent.name == 'red' and p.parent.parent.name == 'train']
            == [f'{k:02}.png' for k in range(7)])

def test_get_files_takes_only_named_folders_and_no_deeper(folder):
    assert {p.relative_to(folder).parts[0] for p in get_files(folder, '.png', include=['train'])} == {'train'}
    assert get_files(folder/'train', '.png', recurse=False) == []
    with pytest.raises(FileNotFoundError, match='trian'): get_files(folder, include=['trian'])

def test_get_files_ends_where_a_link_leads_back(folder, tmp_path):
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'1.png').write_bytes(b'')
    try: (tmp_path/'a'/'up').symlink_to(tmp_path, target_is_directory=True)
    except OSError: pytest.skip('no links here')
    assert [p.name for p in get_files(tmp_path)] == ['1.png']

def test_image_endings_are_those_of_mimetypes():
    assert ({'.jpg', '.jpeg', '.png', '.gif', '.bmp'} <= set(image_extensions)
            and '.svg' not in image_extensions)

@pytest.mark.parametrize('col', ['name', 0, -2])
def test_names_in_a_csv_keep_their_zeros(folder, col):
    pd.DataFrame({'name': ['00', '01', '02', '03'],
                  'label': ['x', 'y', 'x', 'y']}).to_csv(folder/'zeros.csv', index=False)
    items = ImageList.from_csv(folder, 'zeros.csv', col=col, folder='train/blue', suffix='.png')
    assert [f.name for f in items] == ['00.png', '01.png', '02.png', '03.png']
    split = items.split_by_index([3, 2]).label_from_csv('zeros.csv', col=col, folder='train/blue',
                                                        suffix='.png')
    assert split.train.y.items == [0, 1] and split.classes == ['x', 'y']

def test_numbers_in_a_csv_stay_numbers(tmp_path):
    pd.DataFrame({'v': [1.5, 2.5], 'w': [1, 2]}).to_csv(tmp_path/'labels.csv', index=False)
    assert ItemList.from_csv(tmp_path, col='v').items == [1.5, 2.5]

def test_a_file_of_pairs_with_a_name_twice_is_an_error_that_names_it(folder):
    (folder/'twice.txt').write_text('a.png 1\nb.png 2\na.png 1\n')
    with pytest.raises(ValueError, match='a.png'):
        ImageList.from_folder(folder).split_none().label_from_file(folder/'twice.txt')

@pytest.mark.parametrize('kind', [list, tuple, set, np.array])
def test_cells_that_hold_lists_already_are_taken_as_they_are(kind):
    df = pd.DataFrame({'name': ['a', 'b', 'c'], 'tags': [kind(['x y', 'z']), kind(['z']), None]})
    found = cell_labels(df, 'tags', ' ')
    assert [sorted(tags) for tags in found] == [['x y', 'z'], ['z'], []]

@pytest.mark.parametrize('key, row', [('a/b/c.png', 'b/c.png'), ('x/c.png', 'c.png'), ('c.png', 'c.png'),
                                      ('b/d.png', None), ('ac.png', None)])
def test_a_path_finds_the_row_with_the_longest_end_of_it(key, row):
    assert row_for(key, {'b/c.png': 1, 'c.png': 2}) == row
    assert path_ends(key)[0] == key and path_ends(key)[-1] == key.split('/')[-1]

@pytest.mark.parametrize('name', ['b/1.png', 'a/b/1.png', '2.png'])
def test_a_list_of_validation_files_may_name_paths_from_any_folder(tmp_path, name):
    for n in ('a/b/1.png', 'a/c/1.png', 'a/b/2.png'):
        (tmp_path/n).parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (2, 2)).save(tmp_path/n)
    (tmp_path/'valid.txt').write_text(name)
    split = ImageList.from_folder(tmp_path).split_by_files('valid.txt')
    assert [p.as_posix().endswith(name) for p in split.valid.items] == [True] and len(split.train) == 2
