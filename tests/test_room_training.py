"""The kinds of tests/test_room.py from the first batch to a loaded file: each trains, answers, is handed on.

Models, losses and metrics are defined here as well: nothing of a kind is known to the learner."""
import copy
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.core import first_size, set_seed
from exp.dataloader import DataLoader
from exp.inference import Predictor, join_batches, load_learner, load_predictor, pick_rows
from exp.learner import Learner
from exp.losses import CrossEntropy, Loss
from exp.metrics import Metric, Rmse, accuracy, binary_accuracy
from exp.progress import Progress
from exp.specs import register
from exp.transforms import first_rows
from test_room import TEXTS, WordsList, flat, heard, pictures, read, scenes, sounds  # noqa: F401 (fixtures)

# ---- tiny networks

def pooled(channels, *head):
    "A convolution, four parts of the picture, and a head."
    body = nn.Conv2d(channels, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*body, *head)

@register
class ThreeSquares(nn.Module):
    "Three boxes for each picture, and for each box a score of the three classes and of none."
    def __init__(self):
        super().__init__()
        self.body = pooled(3, nn.Linear(24, 21), nn.Unflatten(1, (3, 7)))
    def forward(self, x): return self.body(x).split([4, 3], -1)

class WordByWord(nn.Module):
    "For each place of a text the scores of all words. It is not registered."
    def __init__(self, words, answers):
        super().__init__()
        self.words, self.places = nn.Embedding(words, 8, padding_idx=0), nn.Embedding(8, 8)
        self.head = nn.Linear(8, answers)
    def forward(self, x):
        text = self.words(x).sum(1, keepdim=True)
        return self.head(text + self.places(torch.arange(x.shape[1])))

# ---- losses and metrics of the kinds that the library has none for

def to_three(yb):
    "Boxes and labels, filled up to three with boxes of no class."
    where, label = yb
    missing = 3 - label.shape[1]
    return F.pad(where, (0, 0, 0, missing)), F.pad(label, (0, missing), value=-1)

@register
class SquaresLoss(Loss):
    "A box's place, where there is one, and its class: one value for each picture."
    def elements(self, pred, yb):
        where, label = to_three(yb)
        there = label >= 0
        scores = torch.cat([pred[1], -pred[1].logsumexp(-1, keepdim=True)], -1)   # the last is that of none
        classes = F.cross_entropy(scores.movedim(-1, 1), label.where(there, 3), reduction='none')
        return (((pred[0] - where)**2).mean(-1)*there + classes).mean(1)
    def decode(self, pred): return pred[0], pred[1].argmax(-1).where(pred[1].logsumexp(-1) > 0, -1)

@register
class FoundSquaresLoss(SquaresLoss):
    "Its answer is a list: for each picture the boxes that are there, and their labels."
    def decode(self, pred):
        return [(where[label >= 0], label[label >= 0]) for where, label in zip(*super().decode(pred))]

class RightLabels(Metric):
    "The share of boxes whose label is right. Training leaves it out."
    train = False
    def __init__(self):
        super().__init__()
        self.add_state('right', 0, 'sum')
        self.add_state('n', 0, 'sum')
    def update(self, pred, yb):
        label = to_three(yb)[1]
        self.add(right=((SquaresLoss().decode(pred)[1] == label) & (label >= 0)).sum(), n=(label >= 0).sum())
    def compute(self): return self.right/self.n

@register
class AnswerLoss(CrossEntropy):
    "Cross-entropy of each word of an answer, which may be shorter than what the model says."
    def __init__(self, reduction='mean'): super().__init__(reduction, ignore_index=0, dim=-1)
    def elements(self, pred, yb): return super().elements(pred[:, :yb.shape[1]], yb)

def right_words(pred, yb): return accuracy(pred[:, :yb.shape[1]], yb, dim=-1)

# ---- a learner of each kind, trained for one epoch

def words_model(data):
    x, y = data.train_ds.x, data.train_ds.y
    return WordByWord(len(x.processors[0].vocab), len(y.processors[0].vocab))

MODELS = {   # of the data
    'tags': lambda data: pooled(3, nn.Linear(24, data.c)),
    'mask': lambda data: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, data.c, 1)),
    'points': lambda data: pooled(3, nn.Linear(24, 2), nn.Unflatten(1, (1, 2))),
    'boxes': lambda data: ThreeSquares(),
    'sound': lambda data: pooled(1, nn.Linear(24, data.c)),
    'text': words_model,
}
KINDS = list(MODELS)
LOSSES = {'boxes': SquaresLoss(), 'text': AnswerLoss()}   # others have that of their targets
METRICS = {'tags': binary_accuracy, 'mask': accuracy, 'points': Rmse(),
           'boxes': RightLabels(), 'sound': accuracy, 'text': right_words}
NAMES = {'tags': 'binary_accuracy', 'points': 'rmse', 'boxes': 'right_labels', 'text': 'right_words'}

@pytest.fixture(scope='module')
def learners(scenes, sounds, tmp_path_factory):   # noqa: F811
    "A function of a kind: its learner after an epoch, the weights before it, the raw items of both sets."
    made = {}
    def trained(kind):
        if kind in made: return made[kind]
        if kind == 'sound': data = heard(sounds).normalize()
        else: data = read() if kind == 'text' else pictures(scenes, kind)
        set_seed(1)
        learn = Learner(data, MODELS[kind](data), loss_func=LOSSES.get(kind), lr=0.01, metrics=METRICS[kind],
                        path=tmp_path_factory.mktemp(kind), cbs=Progress(False))
        before = copy.deepcopy(learn.model.state_dict())
        learn.fit(1)
        raw = {'train': data.train_ds.x.items, 'valid': data.valid_ds.x.items}
        if kind == 'text': raw = {'train': TEXTS[:8], 'valid': TEXTS[8:]}   # its items are numbers by now
        made[kind] = SimpleNamespace(learn=learn, before=before, raw=raw)
        return made[kind]
    return trained

@pytest.fixture
def trained(learners, kind): return learners(kind)

@pytest.fixture(autouse=True)
def no_figures():
    yield
    plt.close('all')

def another(learn, loss_func=None):
    "A learner with the same data and a copy of the model."
    loss_func = learn.loss_func if loss_func is None else loss_func
    return Learner(learn.data, copy.deepcopy(learn.model), loss_func=loss_func, lr=0.02, cbs=Progress(False))

every_kind = pytest.mark.parametrize('kind', KINDS)

def same(a, b):
    "Equal in structure and words, close in numbers; batches may have numbers of another type."
    if isinstance(a, torch.Tensor): torch.testing.assert_close(a, b, check_dtype=False)
    elif isinstance(a, (tuple, list)):
        assert type(a) is type(b) and len(a) == len(b)
        for u, v in zip(a, b): same(u, v)
    else: assert a == b

def cut(t, like):
    "The part of an item's tensors that is in `like` too: batches pad."
    return tuple(map(cut, t, like)) if isinstance(t, tuple) else t[tuple(map(slice, like.shape))]

def drawn(): return [ax for ax in plt.gcf().axes if ax.images or ax.texts]

# ---- training and validation

@every_kind
def test_an_epoch_moves_all_weights_and_measures_both_sets(trained, kind):
    row, name = trained.learn.history[-1], NAMES.get(kind, 'accuracy')
    for column in ('train_loss', 'valid_loss', f'valid_{name}'): assert 0 <= row[column] < float('inf')
    assert (f'train_{name}' in row) == (kind != 'boxes')   # whose metric leaves training out
    for p, q in trained.learn.model.named_parameters(): assert not torch.equal(q, trained.before[p])

@pytest.mark.slow
@every_kind
def test_more_epochs_lower_the_loss(trained):
    again = another(trained.learn)
    again.fit(4)
    assert again.history[-1]['train_loss'] < again.history[0]['train_loss']

@every_kind
def test_a_look_at_the_validation_set_says_what_the_epoch_said(trained):
    said, row = trained.learn.validate(), trained.learn.history[-1]
    for name, value in said.items(): assert value == pytest.approx(row[f'valid_{name}'], rel=1e-4)

# ---- answers

@pytest.mark.slow
@every_kind
@pytest.mark.parametrize('dl', ['train', 'valid'])
def test_get_preds_answers_in_the_order_of_the_items(trained, dl):
    learn = trained.learn
    preds, targets = learn.get_preds(dl)
    ds = learn.plain(getattr(learn.data, f'{dl}_ds'))   # without random changes
    for i, item in enumerate(trained.raw[dl]):
        target, probs = ds[i][1], learn.predict(item).probs
        same(cut(pick_rows(targets, i), target), target)
        same(cut(pick_rows(preds, i), probs), probs)

@every_kind
def test_get_preds_joins_batches_of_other_lengths(trained):
    learn = trained.learn
    ds = learn.plain(learn.data.train_ds)
    one_by_one = DataLoader(ds, bs=1, collate=ds.collate_func())
    answers, targets = learn.get_preds(one_by_one, keep='decoded')
    for i, item in enumerate(trained.raw['train']):
        target = ds[i][1]
        same(cut(pick_rows(targets, i), target), target)   # what is padded stays padded
        same(pick_rows(answers, i), learn.predict(item).target)

LABELS = {'tags': list, 'mask': torch.Tensor, 'points': torch.Tensor,
          'boxes': tuple, 'sound': str, 'text': str}

@every_kind
def test_predict_answers_a_raw_item_in_the_terms_of_its_kind(trained, kind):
    learn = trained.learn
    for item in trained.raw['valid']:
        answer = learn.predict(item)
        assert type(answer.label) is LABELS[kind]
        if kind in ('mask', 'points', 'boxes'): same(answer.label, answer.target)
        if kind == 'tags': assert set(answer.label) <= {'red', 'green', 'blue'}
        if kind == 'sound': assert answer.label == ['high', 'low'][answer.target]
        if kind == 'text': assert len(answer.target) == len(item.split())
        assert all(t.isfinite().all() for t in flat(answer.probs))

@every_kind
def test_a_predictor_answers_as_its_learner(trained):
    learn, items = trained.learn, trained.raw['valid']
    own = learn.predictor()
    same(own.predict_batch(items), learn.predict_batch(items))
    for item in items: same(own.predict(item), learn.predict(item))

def test_a_decode_may_answer_a_list_of_boxes_of_any_number(learners):
    learn, items = learners('boxes').learn, learners('boxes').raw['valid']
    found, squares = another(learn, FoundSquaresLoss()), [learn.predict(o).target for o in items]
    want = [(where[label >= 0], label[label >= 0]) for where, label in squares]
    same([found.predict(o).target for o in items], want)
    same([answer.target for answer in found.predict_batch(items)], want)
    same(found.get_preds(keep='decoded')[0], want)
    found.show_results(n=4)
    assert [len(ax.patches) for ax in drawn()][1::2] == [len(label) for _, label in want]

class Contrary(Predictor):
    "Says what the model holds for least likely: stands for one that generates."
    def respond(self, xb): return -super().respond(xb)

@pytest.fixture
def contrary(learners, monkeypatch):
    "A learner of texts whose list has a predictor of its own, raw texts, and what it says of them."
    learn, items = another(learners('text').learn), learners('text').raw['valid']
    monkeypatch.setattr(WordsList, 'predictor_class', Contrary, raising=False)
    return learn, items, learn.predictor().predict_batch(items)

def test_texts_may_have_a_predictor_of_their_own(contrary):
    learn, items, said = contrary
    with torch.no_grad(): scores = learn.model.eval()(next(iter(learn.data.valid_dl))[0])
    for answer, of_words in zip(said, scores): same(answer.target, of_words.argmin(-1))
    same(learn.predict_batch(items), said)

def test_losses_are_the_models_after_a_predictor_of_its_own_was_asked(contrary):
    learn, items, _ = contrary
    before = learn.validate()
    learn.predict(items[0])
    assert learn.validate() == before
    assert 'get_pred' not in vars(learn)

def test_results_show_what_a_predictor_of_their_own_says(contrary):
    learn, _, said = contrary
    learn.show_results(n=2)
    assert [ax.get_title().split('\n')[1] for ax in drawn()] == [answer.label for answer in said]

# ---- looks

@pytest.mark.slow
@every_kind
def test_results_are_drawn_with_truth_and_prediction(trained, kind):
    trained.learn.show_results(n=2)
    beside = kind in ('mask', 'points', 'boxes')
    assert len(drawn()) == (4 if beside else 2)
    if beside: assert [ax.get_title().strip() for ax in drawn()] == ['truth', 'prediction']*2
    else: assert all(len(ax.get_title().split('\n')) == 2 for ax in drawn())
    if kind == 'boxes': assert [len(ax.patches) for ax in drawn()][::2] == [2, 3]
    if kind == 'points': assert all(len(ax.lines) == 1 for ax in drawn())

@pytest.mark.slow
@every_kind
def test_the_worst_items_are_found_and_drawn(trained):
    worst = trained.learn.top_losses(2)
    assert worst['loss'].is_monotonic_decreasing and set(worst['item']) <= {0, 1, 2, 3}
    trained.learn.plot_top_losses(2)
    assert drawn()

def test_a_confusion_matrix_counts_the_pixels_of_masks(learners):
    table = learners('mask').learn.confusion_matrix()
    assert table.values.sum() == 4*24*32 and list(table.index) == ['nothing', 'red', 'green', 'blue']

# ---- files

def exported(trained, kind):
    "The file of a learner, and a new model where it needs one: that of texts is not registered."
    if kind != 'text': return trained.learn.export(), None
    with pytest.warns(UserWarning, match='WordByWord'): path = trained.learn.export()
    return path, MODELS[kind](trained.learn.data)

@every_kind
def test_a_loaded_file_predicts_the_same(trained, kind):
    learn, items = trained.learn, trained.raw['valid']
    path, model = exported(trained, kind)
    for load in (load_learner, load_predictor):
        again = load(path, model)
        same(again.predict_batch(items), learn.predict_batch(items))
        same(again.predict(items[0]), learn.predict(items[0]))
    if model is not None:
        with pytest.raises(ValueError, match='WordByWord'): load_learner(path)

@pytest.mark.slow
@every_kind
def test_a_loaded_learner_that_is_given_data_trains_and_shows(trained, kind):
    again = load_learner(*exported(trained, kind))
    again.data = trained.learn.data
    with again.quiet(): again.fit(1)
    assert 0 <= again.history[-1]['valid_loss'] < float('inf')
    again.show_results(n=2)
    assert drawn()

def test_a_list_of_tuples_is_a_list_of_items_and_one_of_dicts_a_list_of_columns():
    boxes = [(torch.rand(k, 4), torch.zeros(k)) for k in (2, 0, 3)]
    columns = [{'a': torch.rand(3, 2)}, {'b': torch.rand(3)}]
    assert first_size(boxes) == 3 == first_size(columns)
    assert len(first_rows(boxes, 2)) == 2 and first_rows(boxes, 2)[0][0].shape == (2, 4)
    assert len(join_batches([boxes, boxes])) == 6
    assert [len(v) for column in join_batches([columns, columns]) for v in column.values()] == [6, 6]
