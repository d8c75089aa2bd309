"""Mice from above: the same every time, with points that fit their table and their pictures."""
import math

import numpy as np
import pytest
from PIL import Image

from exp.keypoints import mirror_pairs, read_points
from exp.mice import MOUSE, draw_frame, mice_standin, move_on, new_animal

def test_the_stand_in_is_the_same_every_time_and_its_points_fit_its_table(tmp_path):
    for name in 'ab':
        (tmp_path/name).mkdir()
        mice_standin(tmp_path/name, animals=2, frames=3)
    files = sorted(p.relative_to(tmp_path/'a') for p in (tmp_path/'a').rglob('*.*'))
    assert len(files) == 7
    for f in files: assert (tmp_path/'a'/f).read_bytes() == (tmp_path/'b'/f).read_bytes()
    table = read_points(tmp_path/'a'/'points.csv')
    assert len(table) == 6 and mirror_pairs(table.names) == [('left_ear', 'right_ear')]
    assert tuple(table.names) == MOUSE
    for f in (tmp_path/'a').rglob('*.jpg'):
        p = table(f)
        assert Image.open(f).size == (96, 96)
        assert math.dist(p['snout'], p['tail_base']) > math.dist(p['left_ear'], p['right_ear'])

@pytest.mark.parametrize('size', [48, 96, 192])
def test_points_scale_with_the_picture_and_the_left_ear_is_on_the_left(size):
    for seed in range(20):
        animal = new_animal(np.random.default_rng(seed))
        im, (snout, left, right, tail) = draw_frame(animal, np.random.default_rng(seed), size)
        assert im.size == (size, size)
        ahead, across = snout - (left + right)/2, right - left
        assert ahead[0]*across[1] - ahead[1]*across[0] > 0   # y points down: to the right is clockwise
        assert np.linalg.norm(snout - tail) > 0.2*size

def test_an_animal_moves_a_little_from_frame_to_frame():
    rng = np.random.default_rng(0)
    animal = new_animal(rng)
    before = animal['place'].copy()
    for _ in range(50):
        move_on(animal, rng)
        assert np.linalg.norm(animal['place'] - before) < 15
        assert (animal['place'] >= 40).all() and (animal['place'] <= 152).all()
        before = animal['place'].copy()
