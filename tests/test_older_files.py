"""Files that earlier versions wrote are still read: a resumed training ends as an unbroken one does, and
answers are those of then.

The files in fixtures/ were written by `python tests/test_older_files.py` with the version whose checkpoints
hold the model's state, the optimizer's, the callbacks' and the random generators', and nothing of the loss.
Run it again only into another folder, to add newer files."""
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from exp.callbacks import Callback
from exp.core import load_state, save_state, set_seed
from exp.specs import register
from exp.data_block import ImageList
from exp.dataloader import Dataset, make_data
from exp.checkpoints import Checkpoint
from exp.inference import load_learner
from exp.learner import Learner
from exp.metrics import accuracy
from exp.progress import Progress
from exp.schedules import EarlyStopping, SaveBest

FIXTURES = Path(__file__).parent/'fixtures'


# ---------------------------------------------------------------- what was trained

@register
class FixtureNet(nn.Module):
    "A registered model of rows of numbers, or of the mean colours of images."
    def __init__(self, n_in=4, n_out=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_in, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, n_out))
    def forward(self, x): return self.layers(x.mean((2, 3)) if x.ndim == 4 else x)

class Unregistered(FixtureNet):
    "The same, under a name that nothing has registered."

def points(n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g)
    return Dataset(x, x[:, :3].argmax(1))

def learner(model=FixtureNet, cbs=(), **kwargs):
    set_seed(1)
    return Learner(make_data(points(40, 1), points(16, 2), bs=8, seed=3), model(), lr=0.01, metrics=accuracy,
                   cbs=[Progress(False), *cbs], **kwargs)

class Break(Callback):
    def after_batch(self):
        if self.n_iter == 7 and self.in_train: raise InterruptedError

def one_cycle(path, *cbs, **kwargs):
    learn = learner(cbs=[SaveBest(path.parent/'best.pth'), EarlyStopping(patience=9)])
    try: learn.fit_one_cycle(3, 0.02, cbs=[Checkpoint(path, every=2), *cbs], **kwargs)
    except InterruptedError: pass
    return learn

def pictures(folder):
    "Twelve images of 4×4 pixels in two classes, red and blue."
    from PIL import Image
    for split, n in (('train', 4), ('valid', 2)):
        for cls, rgb in (('blue', (10, 20, 240)), ('red', (230, 20, 10))):
            (folder/split/cls).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                Image.new('RGB', (4, 4), tuple(c + i for c in rgb)).save(folder/split/cls/f'{i}.png')
    return folder

def picture_learner(folder):
    data = ImageList.from_folder(pictures(folder)).split_by_folder().label_from_folder().databunch(
        bs=4).normalize()
    set_seed(1)
    return Learner(data, FixtureNet(3, 2), lr=0.02, cbs=Progress(False))

def inputs(): return points(5, 7).x

def write(folder):
    "Write all files, with what they answer."
    import tempfile
    learn = learner()
    learn.path = folder
    learn.fit(2)
    learn.save('weights_and_opt.pth')
    learn.save('weights.pth', with_opt=False)
    learn.export('export_registered.pth')
    with torch.no_grad(): answers = {'registered': learn.model.eval()(inputs())}
    learn = learner(Unregistered)
    learn.path = folder
    learn.fit(1)
    learn.export('export_unregistered.pth')
    with torch.no_grad(): answers['unregistered'] = learn.model.eval()(inputs())
    with tempfile.TemporaryDirectory() as tmp:
        learn = picture_learner(Path(tmp))
        learn.fit(3)
        learn.path = folder
        learn.export('export_images.pth')
        answers['images'] = torch.stack([learn.predict(Path(tmp)/'valid'/cls/'1.png').probs
                                         for cls in ('blue', 'red')])
        one_cycle(Path(tmp)/'middle.ckpt', Break())
        one_cycle(Path(tmp)/'end.ckpt')
        for name in ('middle.ckpt', 'end.ckpt', 'best.pth'):
            (folder/name).write_bytes((Path(tmp)/name).read_bytes())
    save_state(folder/'answers.pth', answers)

if __name__ == '__main__': write(Path(sys.argv[1]))


# ---------------------------------------------------------------- what is read today

@pytest.fixture(scope='module')
def answers(): return load_state(FIXTURES/'answers.pth')

def near(a, b): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

def answer(learn):
    with torch.no_grad(): return learn.model.eval()(inputs())

@pytest.mark.parametrize('name, with_opt', [('weights_and_opt.pth', True), ('weights_and_opt.pth', False),
                                            ('weights.pth', True), ('weights.pth', False)])
def test_saved_weights_are_loaded(answers, name, with_opt):
    learn = learner()
    learn.load(FIXTURES/name, with_opt=with_opt)
    near(answer(learn), answers['registered'])
    assert learn.epoch == (2 if with_opt and 'opt' in name else 0)
    if with_opt and 'opt' in name: assert len(learn.opt.state_dict()['state']) == 6

@pytest.mark.parametrize('name', ['best.pth', 'middle.ckpt'])
def test_best_weights_and_those_of_a_checkpoint_are_loaded(name):
    learn = learner()
    before = answer(learn)
    learn.load(FIXTURES/name, with_opt=False)
    assert not torch.equal(answer(learn), before)

@pytest.mark.parametrize('name', ['middle.ckpt', 'end.ckpt'])
def test_a_checkpoint_is_resumed_as_if_it_had_not_been_broken_off(tmp_path, name):
    (tmp_path/'whole').mkdir()
    whole = one_cycle(tmp_path/'whole'/'fit.ckpt')
    learn = one_cycle(tmp_path/'fit.ckpt', resume=FIXTURES/name)
    # batch norm takes out the first bias, so that Adam moves it by rounding alone, which is another on each
    # processor
    for k, v in whole.model.state_dict().items():
        if k not in ('layers.0.bias', 'layers.1.running_mean'): near(learn.model.state_dict()[k], v)
    assert [row['epoch'] for row in learn.history] == [0, 1, 2] and learn.n_iter == 15

@pytest.mark.parametrize('name, kwargs', [('registered', {}), ('unregistered', {'model': Unregistered})])
def test_an_exported_learner_answers_as_it_did(answers, name, kwargs):
    learn = load_learner(FIXTURES/f'export_{name}.pth', **{k: v() for k, v in kwargs.items()})
    near(answer(learn), answers[name])

def test_an_exported_learner_of_images_answers_as_it_did(answers, tmp_path):
    folder, learn = pictures(tmp_path), load_learner(FIXTURES/'export_images.pth')
    for cls, probs in zip(('blue', 'red'), answers['images']):
        got = learn.predict(folder/'valid'/cls/'1.png')
        near(got.probs, probs)
        assert got.label == cls
