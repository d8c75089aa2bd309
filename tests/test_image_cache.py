"""What opens in training opens in `verify_images`, and what does not is named, whatever the reader raises; a
cache changes no bit."""
import struct, zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from exp.data_block import ImageList, LabeledData, LabelList
from exp.image_cache import ImageError, verify_images
from exp.sources import get_files, image_extensions
from exp.transforms import MakeRGB, ResizeFixed, ToByteTensor, Transform
from test_data_block import Flip, Jitter, all_batches, labeled, same, write_images, folder  # noqa: F401

def photo(seed=0, size=(60, 40)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3),
                                                                dtype=np.uint8))

MALFORMED = b'Exif\0\0this is no block of tags'
XMP = ('<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
       'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
       'xmlns:tiff="http://ns.adobe.com/tiff/1.0/"%s</rdf:RDF></x:xmpmeta>')
XMP_AS = {'attribute': XMP % ' tiff:Orientation="6"/>',
          'element': XMP % '><tiff:Orientation>6</tiff:Orientation></rdf:Description>'}

def with_note(path, kind, note):
    "A file with a note of its orientation."
    exif, info = Image.Exif(), PngInfo()
    exif[0x0112] = 6
    if kind == 'exif': return photo().save(path, exif=exif)
    info.add_itxt('XML:com.adobe.xmp', note)
    photo().save(path, **{'.png': dict(pnginfo=info), '.tif': dict(tiffinfo={700: note.encode()})}.get(
        path.suffix, dict(xmp=note.encode())))

def trains(files):
    "The files with which training stops."
    bad = []
    for f in files:
        ds = LabeledData(ImageList([f]), None, [MakeRGB(), ResizeFixed(8), ToByteTensor()])
        try: ds[0]
        except ImageError as e:
            assert str(f) in str(e)
            bad.append(f)
    return bad

def batches_name(f, good):
    data = ImageList([good, f]).split_none().label_from_func(lambda _: 'x').transform(size=8).databunch(bs=2)
    with pytest.raises(ImageError) as e: list(data.train_dl)
    return str(f) in str(e.value) + str(e.value.__cause__)

BAD = {'text': lambda p: p.write_bytes(b'<html>no image</html>'), 'empty': lambda p: p.write_bytes(b''),
       'cut': lambda p: (photo().save(p), p.write_bytes(p.read_bytes()[:len(p.read_bytes())//2])),
       'malformed EXIF': lambda p: photo().save(p, exif=MALFORMED),
       'a hole': lambda p: (photo().save(p), p.write_bytes((b := p.read_bytes())[:40] + bytes(
           len(b)//3) + b[40 + len(b)//3:])), 'whole': lambda p: photo().save(p)}

@pytest.mark.parametrize('ending', ['.jpg', '.png', '.webp', '.gif', '.bmp', '.tif'])
@pytest.mark.parametrize('how', BAD)
def test_verify_lists_what_stops_training_and_no_other(tmp_path, how, ending):
    if how == 'malformed EXIF' and ending in ('.gif', '.bmp', '.tif'):
        pytest.skip('this format has none, or none that PIL writes')
    bad, good = tmp_path/f'bad{ending}', tmp_path/'good.png'
    photo(1).save(good)
    BAD[how](bad)
    stops = trains([bad, good])
    assert [p for p, _ in verify_images([bad, good])] == stops and good not in stops
    assert stops or how in ('whole', 'a hole', 'malformed EXIF')
    if stops: assert batches_name(bad, good)

@pytest.mark.parametrize('ending', ['.png', '.webp'])
def test_a_malformed_note_is_named_in_png_and_webp(tmp_path, ending):
    photo().save(tmp_path/f'a{ending}', exif=MALFORMED)
    (path, why), = verify_images([tmp_path/f'a{ending}'])
    assert 'SyntaxError' in why and trains([path]) == [path]
    with pytest.raises(ImageError, match='decoded'): ImageList([Image.open(path)]).get(0)

@pytest.mark.parametrize('kind', ['exif', *XMP_AS])
@pytest.mark.parametrize('ending', ['.jpg', '.png', '.webp', '.tif'])
def test_an_image_is_turned_wherever_the_note_stands(tmp_path, ending, kind):
    path = tmp_path/f'a{ending}'
    with_note(path, kind, XMP_AS.get(kind, ''))
    for item in (path, path.read_bytes(), Image.open(path)):
        assert MakeRGB()(ImageList([item]).get(0)).size == (40, 60)
    assert MakeRGB()(Image.open(path)).size == (40, 60) and verify_images([path]) == []

ERRORS = [SyntaxError('bad tag'), struct.error('unpack requires'), ValueError('bad mode'),
          OverflowError('too large'), zlib.error('Error -3'), Image.DecompressionBombError('a bomb'),
          EOFError('no more'), KeyError(7),
          IndexError('out of range'), TypeError('no number'), AttributeError('no tile'), AssertionError(),
          ZeroDivisionError(), RuntimeError('decoder'), NotImplementedError(), MemoryError(),
          OSError('broken data stream'), UnicodeDecodeError('ascii', b'x', 0, 1, 'no')]

@pytest.mark.parametrize('stage', ['open', 'load', 'note'])
@pytest.mark.parametrize('error', ERRORS, ids=lambda e: type(e).__name__)
def test_whatever_a_reader_raises_names_the_file(tmp_path, monkeypatch, error, stage):
    bad, good = tmp_path/'bad.png', tmp_path/'good.jpg'
    photo().save(bad)
    photo(1).save(good)
    def fails(self, *args, **kw):
        if self is None or getattr(self, 'format', '') == 'PNG': raise error
        return whole(self, *args, **kw)
    owner, name = {'open': (Image, 'open'), 'load': (ImageFile.ImageFile, 'load'),
                   'note': (Image.Image, 'getexif')}[stage]
    whole = getattr(owner, name)
    if stage == 'open':
        monkeypatch.setattr(owner, name, lambda f, *a, **kw: fails(None) if f.getvalue() == bad.read_bytes()
                            else whole(f, *a, **kw))
    else: monkeypatch.setattr(owner, name, fails)
    if stage == 'note': monkeypatch.setattr('PIL.PngImagePlugin.PngImageFile.getexif', fails)
    assert trains([good, bad]) == [bad] and batches_name(bad, good)
    (path, why), = verify_images([good, bad])
    assert path == bad and type(error).__name__ in why

# ---- targets' files

class MaskList(LabelList):
    kind, spatial = 'mask', True
    def open(self, item): return Image.open(item)

class Converted(MaskList):
    def open(self, item): return Image.open(item).convert('L')

class Pictures(LabelList):
    kind, spatial = 'image', True
    def open(self, item): return Image.open(item)

@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('cls', [MaskList, Converted, Pictures])
@pytest.mark.parametrize('how', ['text', 'empty', 'cut'])
def test_a_broken_mask_is_named_and_not_its_image(tmp_path, cls, how, workers):
    for k in range(4):
        photo(k).save(tmp_path/f'{k}.jpg')
        photo(k).convert('L').save(tmp_path/f'{k}_mask.png')
    BAD[how](tmp_path/'2_mask.png')
    data = ImageList.from_folder(tmp_path, '.jpg').split_none().label_from_func(lambda p: p.with_name(
        f'{p.stem}_mask.png'), cls).transform(size=8).databunch(bs=4, num_workers=workers)
    try:
        with pytest.raises(ImageError) as e: list(data.train_dl)
    finally: data.train_dl.close()
    words = str(e.value) + str(e.value.__cause__)
    assert ('2_mask.png' in words and '2.jpg' not in str(e.value).split('item')[0]
            and data.train_ds[1][0].shape == (3, 8, 8))

def test_a_broken_image_is_named_and_not_its_mask(tmp_path):
    for k in range(2):
        photo(k).save(tmp_path/f'{k}.jpg')
        photo(k).convert('L').save(tmp_path/f'{k}_mask.png')
    BAD['cut'](tmp_path/'1.jpg')
    ds = ImageList.from_folder(tmp_path, '.jpg').split_none().label_from_func(
        lambda p: p.with_name(f'{p.stem}_mask.png'), MaskList).transform(size=8).train
    with pytest.raises(ImageError, match='1.jpg'): ds[1]

def test_a_target_s_file_of_another_kind_is_named_and_its_error_keeps_its_type(tmp_path):
    class Numbers(LabelList):
        kind, spatial = 'points', True
        def open(self, item): return torch.tensor([float(v) for v in item.read_text().split()])
    photo().save(tmp_path/'a.png')
    (tmp_path/'a.txt').write_text('1 two 3')
    ds = ImageList([tmp_path/'a.png']).split_none().label_from_func(lambda p: p.with_suffix('.txt'),
                                                                    Numbers).transform(size=8).train
    with pytest.raises(ValueError, match='two') as e: ds[0]
    assert type(e.value) is ValueError and any('a.txt' in note for note in e.value.__notes__)

def test_a_mask_that_is_not_there_is_named(tmp_path):
    photo().save(tmp_path/'a.png')
    ds = ImageList([tmp_path/'a.png']).split_none().label_from_func(lambda p: p.with_name('none.png'),
                                                                    MaskList).transform(size=8).train
    with pytest.raises(FileNotFoundError, match='none.png'): ds[0]

def test_an_image_that_the_caller_opened_is_named(tmp_path):
    BAD['cut'](tmp_path/'a.jpg')
    ds = LabeledData(ImageList([]), None, [MakeRGB(), ResizeFixed(8), ToByteTensor()])
    with pytest.raises(ImageError, match='a.jpg'): ds.prepare(Image.open(tmp_path/'a.jpg'))
    assert len(verify_images([Image.open(tmp_path/'a.jpg'), (tmp_path/'a.jpg').read_bytes()])) == 2

# ---- the cache

@pytest.mark.slow
@pytest.mark.parametrize('tfms', [None, [Jitter()], [Flip()]],
                         ids=['fixed', 'after the cache', 'before resizing'])
@pytest.mark.parametrize('workers', [0, 2])
def test_a_cache_changes_no_bit(folder, tfms, workers):
    size = (24, 18)[::-1] if tfms and isinstance(tfms[0], Flip) else 12
    make = lambda cache, n: labeled(folder).transform(tfms, size=size,
                                                      cache=cache).databunch(bs=4, num_workers=n, seed=4)
    plain, cached = make(False, 0), make(True, workers)
    try:
        for epoch in range(3):
            assert same(all_batches(plain.train_dl), all_batches(cached.train_dl))
            assert same(all_batches(plain.valid_dl), all_batches(cached.valid_dl))
        if tfms is None: assert cached.train_ds.sliceable and cached.valid_ds.sliceable
        else: assert not getattr(cached.train_ds, 'sliceable', False)
    finally:
        cached.train_dl.close()
        cached.valid_dl.close()

def test_a_full_cache_needs_no_files(tmp_path):
    root = write_images(tmp_path, {'train/red': 4, 'train/blue': 4, 'val/red': 2})
    data = labeled(root).transform(size=8, cache=True).databunch(bs=4, seed=0)
    a = all_batches(data.train_dl)
    for f in get_files(root/'train'): f.unlink()
    data.train_dl.set_epoch(0)
    assert same(a, all_batches(data.train_dl))

def test_what_is_done_to_a_cached_item_stays_out_of_the_cache(folder):
    data = labeled(folder).transform(size=8, cache=True).databunch(bs=4)
    x, _ = data.train_ds[0]
    want = x.clone()
    x.zero_()
    x, _ = data.train_ds[0]
    x.zero_()
    assert torch.equal(data.train_ds[0][0], want)

def test_a_cache_that_does_not_fit_is_refused(folder, monkeypatch):
    items = labeled(folder)
    items.train.x.items = items.train.x.items*1
    data = items.transform(size=8, cache=True)
    big = lambda self: 10**9
    monkeypatch.setattr(LabeledData, '__len__', big)
    with pytest.raises(MemoryError, match='cache=False'): data.train.cache()

def test_a_cache_of_images_of_several_sizes_says_that_they_must_be_resized(tmp_path):
    write_images(tmp_path/'a', {'red': 3})
    write_images(tmp_path/'b', {'red': 3}, size=(30, 18))
    data = ImageList.from_folder(tmp_path).split_by_index([0]).label_from_folder().transform(
        size=None, cache=True).databunch(bs=2)
    with pytest.raises(ValueError, match='resize'): list(data.train_dl)

@pytest.mark.parametrize('cache', [False, True])
def test_rows_are_refused_unless_all_of_them_are_in_a_cache(folder, cache):
    data = ImageList.from_folder(folder).split_by_folder().label_from_folder().transform(
        size=8, cache=cache).databunch(bs=4, seed=1)
    ds = data.train_ds
    ds[0]
    with pytest.raises(TypeError, match='whole'): ds[:3]
    for i in range(len(ds)): ds[i]
    if not cache: return
    xb, yb = ds[1:3]
    assert (torch.equal(xb, torch.stack([ds[1][0], ds[2][0]]))
            and yb.tolist() == [int(ds[1][1]), int(ds[2][1])])

class _Masks(LabelList):
    kind, spatial = 'mask', True
    def open(self, item): return Image.open(item).convert('L')

class _Coin(Transform):
    order, random, moves = 25, True, True   # after resizing, before tensors
    def draw(self, x, rng): return rng.random() < 0.5
    def image(self, im, heads): return im
    def mask(self, m, heads): return m

class _PointPair(LabelList):
    kind, spatial = 'pair', True
    def open(self, item): return torch.tensor(item)
    def relate(self, obj, x): return obj/torch.tensor(x.size), len(obj)

def test_a_cached_target_that_is_no_tensor_has_gone_through_its_transforms(folder):
    split = ImageList.from_folder(folder).split_by_folder().label_from_func(lambda f: f, _Masks)
    ds = split.transform([_Coin()], size=8, tfm_y=True, cache=True).databunch(bs=4).train_ds
    first, second = ds[1], ds[1]
    assert first[1].shape == second[1].shape == (8, 8) and torch.equal(first[1], second[1])

def test_a_cached_target_stays_in_terms_of_its_image(folder):
    split = ImageList.from_folder(folder).split_by_folder().label_from_func(
        lambda f: [[6., 9.]]*(1 + int(f.stem) % 2), _PointPair)
    ds = split.transform(size=8, tfm_y=False, cache=True).databunch(bs=4, collate=list).train_ds
    for i in range(4):
        (points, n), (again, m) = ds[i][1], ds[i][1]
        assert torch.equal(points, again) and n == m and points[0].tolist() == [0.25, 0.5]
        again.zero_()
        assert torch.equal(ds[i][1][0], points)

class _Points(_PointPair):
    def relate(self, obj, x): return obj/torch.tensor(x.size)

def test_cached_targets_of_several_shapes_stay_as_they_are(folder):
    split = ImageList.from_folder(folder).split_by_folder().label_from_func(
        lambda f: [[6., 9.]]*(2 - int(f.stem) % 2), _Points)
    ds = split.transform(size=8, tfm_y=False, cache=True).databunch(bs=4, collate=list).train_ds
    for _ in range(2): assert ds[0][1].shape == (2, 2) and ds[1][1].shape == (1, 2)

# ---- verify_images

def test_verify_images_lists_the_broken_and_no_other(folder, tmp_path):
    root = write_images(tmp_path, {'red': 3}, ending='.jpg')
    whole = (root/'red'/'00.jpg').read_bytes()
    (root/'cut.jpg').write_bytes(whole[:len(whole)*2//3])
    (root/'text.jpg').write_text('hello')
    (root/'empty.jpg').write_bytes(b'')
    files = get_files(root, image_extensions)
    broken = verify_images(files)
    assert (sorted(p.name for p, why in broken) == ['cut.jpg', 'empty.jpg', 'text.jpg']
            and all(why for _, why in broken))
    assert ([p.name for p, _ in verify_images(ImageList(files, root))] == [p.name for p, _ in broken]
            and verify_images([]) == [])

def test_verify_images_finds_files_as_the_list_does_and_refuses_a_folder(folder):
    files = ImageList.from_folder(folder)
    assert verify_images(ImageList([f.relative_to(folder) for f in files], folder)) == []
    with pytest.raises(TypeError, match='paths'): verify_images(folder)

@pytest.mark.parametrize('array',
                         [np.zeros((8, 8, 5), np.float32), np.zeros((8, 8), np.int64), np.zeros(8, np.uint8)])
def test_arrays_that_are_no_image_are_refused(array):
    for item in (array, torch.from_numpy(array).movedim(-1, 0)):
        with pytest.raises(TypeError, match='image'): ImageList([item]).get(0)

def test_a_grey_tensor_with_a_channel_is_an_image():
    assert ImageList([torch.zeros(1, 6, 8, dtype=torch.uint8)]).get(0).size == (8, 6)
