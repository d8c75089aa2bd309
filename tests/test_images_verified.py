"""What opens in training opens in `verify_images`, and what does not is named: the image's file or its
target's, whatever the reader raises."""
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from exp.data_block import ImageList, LabeledData, LabelList
from exp.image_cache import ImageError, verify_images
from exp.transforms import MakeRGB, ResizeFixed, ToByteTensor

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
    with pytest.raises(ImageError, match='cannot be decoded'): ImageList([Image.open(path)]).get(0)

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
    with pytest.raises(ImageError, match=r'1\.jpg cannot be decoded'): ds[1]

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
