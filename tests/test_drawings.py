"""Names of people's own are drawn as they are: `$` opens no formula."""
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from exp.autograd import Variable, draw_graph
from exp.core import get_grid, show_image, show_images
from exp.data_block import ImageList, ItemList
from exp.learner import Learner

NAMES = ['$5_{', 'a$\\frac$', '$', r'50\$ and $x^', '$$']

def drawn():
    "Draw all, and return what the texts of the current figure say."
    fig = plt.gcf()
    fig.canvas.draw()
    texts = [t for t in fig.findobj(plt.Text) if '$' in t.get_text()]
    assert texts and not any(t.get_parse_math() for t in texts)
    plt.close('all')
    return '\n'.join(t.get_text() for t in texts)

def images(classes):
    ims = [np.full((8, 8, 3), 20*k, np.uint8) for k in range(10)]
    return ImageList(ims).split_by_index([8, 9]).label_from_func(
        lambda a: classes[int(a[0, 0, 0])//20 % 2]).transform(size=8).databunch(bs=4)

def learner(classes):
    return Learner(images(classes), nn.Sequential(nn.Flatten(), nn.Linear(192, 2)))

@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('draw', [
    lambda n: show_image(np.zeros((4, 4)), title=n), lambda n: show_images([np.zeros((4, 4))], titles=[n]),
    lambda n: get_grid(1, title=n), lambda n: images([n, 'b']).show_batch(),
    lambda n: learner([n, 'b']).show_results(), lambda n: learner([n, 'b']).plot_top_losses(2),
    lambda n: learner([n, 'b']).plot_confusion_matrix(),
    lambda n: ItemList([n]).show(n, get_grid(1)[1][0], title=n),
    lambda n: draw_graph(Variable(torch.tensor(2.), requires_grad=True, name=n)*3)],
    ids=['show_image', 'show_images', 'get_grid', 'show_batch', 'show_results', 'top losses', 'confusion',
         'text', 'graph'])
def test_a_name_with_a_dollar_is_drawn_as_it_is(draw, name):
    draw(name)
    assert name in drawn()
