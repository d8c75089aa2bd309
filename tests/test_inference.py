"""A Predictor answers as its learner did when it was made, from any number of threads, whatever happens to
the learner; what is kept of a pass is what was asked for."""
import dataclasses, random, threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.callbacks import Callback
from exp.specs import register
from exp.core import set_seed
from exp.data_block import ItemList
from exp.dataloader import DataLoader, Dataset, make_data
from exp.hooks import BatchTransform
from exp.inference import Predictor, load_learner, load_predictor
from exp.learner import Learner
from exp.losses import BinaryCrossEntropy, CrossEntropy
from exp.progress import Progress

N = 24
x = torch.randn(N, 5, generator=torch.Generator().manual_seed(1))
y = x[:, :3].argmax(1)

def learner(path='.', model=None, **kwargs):
    set_seed(1)
    if model is None:
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3))
    return Learner(make_data(Dataset(x, y), Dataset(x, y), bs=8), model, lr=0.05, path=path,
                   cbs=[Progress(False), *kwargs.pop('cbs', ())], **kwargs)

def probs(o): return torch.stack([answer.probs for answer in o.predict_batch(x)])

@pytest.fixture
def trained(tmp_path):
    learn = learner(tmp_path)
    learn.fit(1)
    return learn

def test_it_answers_as_get_preds_does_alone_and_in_a_batch(trained):
    want, own = trained.get_preds()[0], trained.predictor()
    for o in (own, trained, load_learner(trained.export()), load_predictor(trained.export())):
        torch.testing.assert_close(probs(o), want)
        for i in (0, 7): torch.testing.assert_close(o.predict(x[i]).probs, want[i])
        assert [answer.label for answer in o.predict_batch(x)] == want.argmax(1).tolist()

def test_it_is_never_changed(trained):
    own = trained.predictor()
    with pytest.raises(dataclasses.FrozenInstanceError): own.model = None
    before = probs(own)
    trained.fit(1, lr=1.)
    with torch.no_grad():
        for p in trained.model.parameters(): p.zero_()
    trained.data.batch_tfms[1].append(lambda xb: 0*xb)
    trained.loss_func.smooth = 3
    assert torch.equal(probs(own), before) and not any(m.training for m in own.model.modules())

def test_making_and_asking_one_changes_no_training():
    def fitted(ask):
        learn = learner()
        set_seed(3)
        learn.fit(1)
        if ask:
            probs(learn.predictor())
            learn.predict_batch(x[:3])
            learn.get_preds(keep='decoded')
        learn.fit(1)
        return learn.model.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(fitted(True).values(), fitted(False).values()))

def test_threads_ask_it_while_its_learner_trains(trained):
    own = trained.predictor()
    want = [own.predict(row).probs for row in x]
    here, go_on = threading.Event(), threading.Event()
    class Wait(Callback):
        def after_backward(self):
            here.set()
            go_on.wait(20)
    fitting = threading.Thread(target=lambda: trained.fit(1, cbs=Wait()))
    fitting.start()
    here.wait(20)
    with ThreadPoolExecutor(4) as pool: got = list(pool.map(lambda i: own.predict(x[i % N]).probs, range(60)))
    go_on.set()
    fitting.join()
    assert all(torch.equal(p, want[i % N]) for i, p in enumerate(got))

def test_within_a_fit_none_is_made(trained):
    class Ask(Callback):
        def after_step(self): self.run.predictor()
    with pytest.raises(RuntimeError, match='within'): trained.fit(1, cbs=Ask())

def test_a_transform_that_a_callback_applies_is_in_the_copy_after_the_datas_own():
    learn = learner(cbs=[BatchTransform(lambda xb: xb + 1)])
    learn.data.batch_tfms[1].append(lambda xb: 2*xb)
    learn.data.batch_tfms[1][0].order = 90
    with torch.no_grad(): want = learn.model.eval()(2*x + 1).softmax(1)
    torch.testing.assert_close(probs(learn), want)
    torch.testing.assert_close(probs(learn.predictor()), want)

@pytest.mark.parametrize('change',
                         [lambda l: l.model.train(), lambda l: l.add_cbs(BatchTransform(lambda xb: 0*xb)),
                          lambda l: l.to_bf16(), lambda l: setattr(l, 'model', learner().model),
                          lambda l: nn.init.zeros_(l.model[0].weight), lambda l: l.model.append(nn.ReLU()),
                          lambda l: setattr(l, 'loss_func', nn.NLLLoss())], ids=lambda f: '')
def test_a_loaded_learner_answers_as_what_it_is_now(trained, change):
    loaded = load_learner(trained.export())
    probs(loaded)
    change(loaded)
    loaded.data.valid_dl = DataLoader(Dataset(x, y), 8)
    torch.testing.assert_close(probs(loaded), loaded.get_preds()[0])

def test_a_loaded_learner_can_be_trained_again(trained):
    loaded = load_learner(trained.export())
    before = probs(loaded)
    loaded.data = trained.data
    loaded.fit(2)
    assert not torch.equal(probs(loaded), before) and len(loaded.history) == 2

def test_loading_and_asking_draw_from_nobody(trained):
    path, states = trained.export(), lambda: (repr(random.getstate()), repr(np.random.get_state()),
                                              torch.get_rng_state().tolist())
    before = states()
    probs(load_predictor(path))
    probs(load_learner(path))
    assert states() == before

@register
class Words(ItemList):
    "Texts, as the numbers of their letters."
    kind = 'words'
    def open(self, item): return torch.tensor([ord(c) % 5 for c in item])

class Writer(Predictor):
    "Goes on by three letters, each of which is asked for with those before it."
    def respond(self, xb):
        for _ in range(3): xb = torch.cat([xb, super().respond(xb).argmax(-1)[:, None]], 1)
        return F.one_hot(xb.roll(3, 1)[:, 0], 5).float()
Words.predictor_class = Writer

class Next(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.eye(5))
    def forward(self, x): return F.one_hot((x[:, -1] + 1) % 5, 5).float() @ self.w

def test_an_item_list_names_a_predictor_that_generates(tmp_path):
    texts = ['ab', 'bc', 'cd', 'de', 'ea', 'ab']
    data = Words(texts).split_by_index([4, 5]).label_from_func(lambda t: t[0],
                                                               classes=list('abcde')).databunch(2)
    learn = Learner(data, Next(), path=tmp_path, cbs=Progress(False))
    for o in (learn, learn.predictor(), load_predictor(learn.export(), Next()),
              load_learner(learn.export(), Next())):
        first = (ord('d') % 5 + 1) % 5   # the first letter that it writes
        assert int(o.predict('cd').target) == first

class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
    def forward(self, x): return self.conv(x)

def masks():
    g = torch.Generator().manual_seed(2)
    xs, ys = torch.randn(10, 3, 4, 5, generator=g), torch.randint(0, 3, (10, 4, 5), generator=g)
    ys[0, 0] = -100
    set_seed(1)
    return Learner(make_data(Dataset(xs, ys), Dataset(xs, ys), bs=2), Pixels(),
                   loss_func=CrossEntropy(ignore_index=-100), cbs=Progress(False)), xs, ys

def test_a_confusion_matrix_counts_the_positions_of_masks_that_count():
    learn, xs, ys = masks()
    with torch.no_grad(): answers = learn.model(xs).argmax(1)
    want = [[int(((ys == t) & (answers == p)).sum()) for p in range(3)] for t in range(3)]
    assert learn.confusion_matrix().values.tolist() == want and sum(map(sum, want)) == 195

def test_several_yes_or_no_for_an_item_are_no_confusion_of_classes():
    ys = (x[:, :3] > 0).float()
    learn = Learner(make_data(Dataset(x, ys), Dataset(x, ys), bs=8), nn.Linear(5, 3),
                    loss_func=BinaryCrossEntropy(), cbs=Progress(False))
    with pytest.raises(ValueError, match='class'): learn.confusion_matrix()

def test_what_is_kept_of_a_pass_is_what_was_asked_for():
    learn, xs, ys = masks()
    logits = learn.get_preds(act=False)[0]
    assert torch.equal(learn.get_preds(keep='decoded')[0], logits.argmax(1))
    surest, targets = learn.get_preds(keep=lambda pred: pred.amax((1, 2, 3)))
    assert torch.equal(surest, logits.amax((1, 2, 3))) and torch.equal(targets, ys)
