"""Scenes from above: tags with the shares that were said, pictures of what they name, files as said."""
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from exp.scenes import GROUND, WEATHER, aerial_scene, aerial_standin, draw_tags, smooth_noise

def test_scenes_differ_repeat_and_fit_their_tags(tmp_path):
    for folder in ('a', 'b'):
        (tmp_path/folder).mkdir()
        aerial_standin(tmp_path/folder, n=12, side=64)
    files = sorted((tmp_path/'a'/'train').iterdir())
    assert len(files) == 12 and len({f.read_bytes() for f in files}) == 12
    assert all(f.read_bytes() == (tmp_path/'b'/'train'/f.name).read_bytes() for f in files)
    table = pd.read_csv(tmp_path/'a'/'labels.csv')
    assert list(table.columns) == ['image_name', 'tags'] and Image.open(files[0]).size == (64, 64)

def test_tags_come_as_said():
    rng = np.random.default_rng(0)
    drawn = [draw_tags(rng) for _ in range(3_000)]
    assert all(sum(tag in WEATHER for tag in tags) == 1 for tags in drawn)
    assert all(tags == ['cloudy'] for tags in drawn if 'cloudy' in tags)
    share = np.mean(['forest' in tags for tags in drawn if 'cloudy' not in tags])
    assert abs(share - GROUND['forest']) < 0.03 and max(map(len, drawn)) >= 6

@pytest.mark.parametrize('tag', [*WEATHER, *GROUND, 'houses', 'road'])
@pytest.mark.parametrize('side', [64, 256])
def test_every_tag_can_be_drawn_at_any_size(tag, side):
    im = aerial_scene(np.random.default_rng(1), [tag], side)
    assert im.shape == (side, side, 3) and im.dtype == np.uint8 and im.std() > 1

def test_noise_has_mean_zero_and_standard_deviation_one():
    for cells in (1, 3.7, 50):
        noise = smooth_noise(np.random.default_rng(0), 64, cells)
        assert abs(noise.mean()) < 1e-4 and abs(noise.std() - 1) < 1e-4
