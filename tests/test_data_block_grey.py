"""Images of one channel, from the folder to an answer."""
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from exp.core import load_state, save_state
from exp.data_block import GreyImageList, LabeledData
from exp.inference import load_learner
from exp.learner import Learner
from exp.transforms import Normalize
from test_image_cache_pixels import first

@pytest.fixture
def folder(tmp_path):
    for k in range(8):
        im = Image.fromarray(np.random.default_rng(k).integers(0, 256, (30, 40, 3), dtype=np.uint8))
        (tmp_path/'ab'[k % 2]).mkdir(exist_ok=True)
        im.save(tmp_path/'ab'[k % 2]/f'{k}.png')
    return tmp_path

@pytest.mark.parametrize('cache', [False, True])
@pytest.mark.parametrize('workers', [0, 2])
def test_one_channel_from_the_folder_to_the_batch(folder, workers, cache):
    data = GreyImageList.from_folder(folder).split_random(0.25, seed=0).label_from_folder().transform(
        size=16, cache=cache).databunch(bs=6, num_workers=workers).normalize()
    try: got = [xb for xb, _ in data.train_dl]
    finally: data.train_dl.close()
    assert got[0].shape == (6, 1, 16, 16) and got[0].dtype == torch.uint8
    xb, _ = data.one_batch()
    assert xb.shape == (6, 1, 16, 16) and abs(xb.mean()) < 1e-4
    want = Image.open(data.train_ds.x[0]).convert('L').resize((16, 16), Image.Resampling.BILINEAR)
    assert (data.train_ds[0][0][0].int() - torch.from_numpy(np.array(want)).int()).abs().max() <= 2

def test_one_channel_is_shown_predicted_written_down_and_read_again(folder, tmp_path):
    import matplotlib.pyplot as plt
    data = GreyImageList.from_folder(folder).split_random(0.25, seed=0).label_from_folder().transform(
        size=16).databunch(bs=6).normalize()
    data.show_batch(3)
    assert len([ax for ax in plt.gcf().axes if ax.images and ax.images[0].get_array().ndim == 2]) == 3
    plt.close('all')
    learn = Learner(data, nn.Sequential(nn.Flatten(), nn.Linear(256, 2)))
    again = load_learner(learn.export(tmp_path/'grey.pth'),
                         model=nn.Sequential(nn.Flatten(), nn.Linear(256, 2)))
    for item in (data.train_ds.x[0], Image.open(data.train_ds.x[0]), data.train_ds.x[0].read_bytes()):
        assert torch.equal(learn.predict(item).probs, again.predict(item).probs)
    save_state(tmp_path/'s', data.train_ds.state())
    assert isinstance(LabeledData.from_state(load_state(tmp_path/'s')).x, GreyImageList)

def test_a_grey_level_is_the_same_in_one_channel_as_in_three():
    grey = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    assert (torch.equal(first(grey.convert('RGB'), GreyImageList)[0], first(grey)[0])
            and first(grey, GreyImageList).flatten().tolist() == list(range(256)))
    assert Normalize([.5], [.5])(torch.rand(2, 1, 3, 3)).shape == (2, 1, 3, 3)
