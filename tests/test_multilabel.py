"""Any number of labels for an item: from tables to targets and back to words, metrics as scikit-learn and
torchmetrics have them, and answers that never contradict the metric."""
import shutil, sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import fbeta_score, precision_recall_fscore_support
from torch import nn

from exp.batch_transforms import get_transforms
from exp.callbacks import Callback
from exp.core import test_close as assert_close
from exp.data_block import CategoryList, FloatList, ImageList
from exp.inference import load_learner, load_predictor
from exp.learner import Learner
from exp.losses import BinaryCrossEntropy
from exp.metrics import MeanMetric, binary_accuracy
from exp.mixup import CutMix, MixUp
from exp.multilabel import (MultiCategoryList, MultiCategoryProcessor, accuracy_thresh, choose_thresh, fbeta,
                            kaggle_file, tag_table, tags_from_columns)
from exp.transfer import create_cnn
from exp.xresnet import XResNet
import exp.checkpoints   # noqa: F401 (a learner's files)

# ---- pictures with colours as tags

COLOURS = {'red': 0, 'green': 1, 'blue': 2}
CELLS = ['red', 'red green', '', 'blue  red ', 'green', 'blue', 'red blue green', 'green green'] * 4

def tiny_net(c=3): return XResNet([1, 1], 3, c, widths=(4, 8), stem=(4,))

@pytest.fixture
def folder(tmp_path):
    "A picture for each of `CELLS`, with a band of each colour, and labels.csv."
    rng = np.random.RandomState(0)
    for i, cell in enumerate(CELLS):
        pixels = rng.normal(60, 20, (32, 30, 3))
        for tag in cell.split(): pixels[8*COLOURS[tag]:8*COLOURS[tag] + 8, :, COLOURS[tag]] += 150
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path/f'{i}.png')
    table = pd.DataFrame({'image_name': [str(i) for i in range(len(CELLS))], 'tags': CELLS})
    table.to_csv(tmp_path/'labels.csv', index=False)
    return tmp_path

def split(folder): return ImageList.from_folder(folder).split_random(0.25, seed=1)
def labeled(folder, **how): return split(folder).label_from_csv(sep=' ', suffix='.png', **how)
def data_of(folder, tfms=None, bs=8): return labeled(folder).transform(tfms, size=16).databunch(bs=bs)

def colours_of(file): return set(CELLS[int(file.stem)].split())

# ---- from tables to targets and back

def test_a_separator_in_label_from_csv_makes_lists_of_tags(folder):
    data = labeled(folder)
    assert isinstance(data.train.y, MultiCategoryList) and data.classes == ['blue', 'green', 'red']
    for part in (data.train, data.valid):
        for file, (_, y) in zip(part.x.items, part):
            assert y.dtype == torch.float32 and y.shape == (3,) and set(y.tolist()) <= {0., 1.}
            assert set(part.y.decode(y)) == colours_of(file)

def by_file(folder):
    (folder/'labels.txt').write_text('\n'.join(f'{i}.png {"|".join(cell.split()) or "|"}'
                                               for i, cell in enumerate(CELLS)))
    return split(folder).label_from_file('labels.txt', label_delim='|')

@pytest.mark.parametrize('label', [
    lambda folder: split(folder).label_from_csv(label_delim=' ', suffix='.png'),
    lambda folder: split(folder).label_from_df(pd.read_csv(folder/'labels.csv', dtype={'image_name': str}),
                                               label_delim=' ', suffix='.png'),
    lambda folder: split(folder).label_from_func(lambda f: sorted(colours_of(f))),
    lambda folder: split(folder).label_from_func(colours_of),
    lambda folder: split(folder).label_from_func(lambda f: np.array(sorted(colours_of(f)), dtype=object),
                                                 label_cls=MultiCategoryList),
    lambda folder: split(folder).label_from_func(lambda f: tuple(colours_of(f)), label_cls=MultiCategoryList),
    by_file])
def test_every_way_to_label_gives_the_same_targets(folder, label):
    got, right = label(folder), labeled(folder)
    assert got.classes == right.classes
    for a, b in ((got.train, right.train), (got.valid, right.valid)):
        assert torch.equal(a.y.column(), b.y.column())

@pytest.mark.parametrize('delim', [' ', ';', '|', ', '])
def test_delimiters_with_odd_spaces_and_columns_that_are_quoted(folder, delim):
    rows = [f'{i}.png,"{delim.join(cell.split())}"' for i, cell in enumerate(CELLS)]
    (folder/'odd.csv').write_text('name,tags\n' + '\n'.join(rows))
    got = split(folder).label_from_csv('odd.csv', label_delim=delim)
    assert torch.equal(got.train.y.column(), labeled(folder).train.y.column())

@pytest.mark.parametrize('sep', [';', '\t', '|'])
def test_a_separator_of_columns_stays_one(folder, sep):
    rows = [f'{i}.png{sep}{cell}' for i, cell in enumerate(CELLS)]
    (folder/'odd.csv').write_text(f'name{sep}tags\n' + '\n'.join(rows))
    got = split(folder).label_from_csv('odd.csv', sep=sep, label_delim=' ')
    assert torch.equal(got.valid.y.column(), labeled(folder).valid.y.column())

@pytest.mark.parametrize('flags', [(0, 1), (True, False), (np.bool_(True), 1.)])
def test_rows_of_yes_and_no_are_no_class(folder, flags):
    with pytest.raises(ValueError, match='tags_from_columns'): split(folder).label_from_func(lambda f: flags)
    df = pd.DataFrame({'name': [f'{i}.png' for i in range(len(CELLS))], 'a': flags[0], 'b': flags[1]})
    with pytest.raises(ValueError, match='tags_from_columns'):
        split(folder).label_from_df(df, label_col=['a', 'b'])
    part = ImageList.from_df(df, folder).split_none()
    with pytest.raises(ValueError, match='tags_from_columns'): part.label_from_df(['a', 'b'])

@pytest.mark.parametrize('cells', [CELLS, [c.replace(' ', ';') for c in CELLS], ['a', 'b', 'a | b', 'c']*8,
                                   ['a', '', 'b', 'c']*8])
def test_cells_that_nobody_took_apart_are_no_tags(folder, cells):
    df = pd.DataFrame({'name': [f'{i}.png' for i in range(len(CELLS))], 'tags': cells})
    with pytest.raises(ValueError, match='label_delim'):
        ImageList.from_df(df, folder).split_none().label_from_df('tags', label_cls=MultiCategoryList)

def test_names_with_spaces_are_names_and_classes_settle_a_doubt():
    proc = MultiCategoryProcessor()
    proc.learn([['red sky', 'sky'], ['New York']])
    assert proc.classes == ['New York', 'red sky', 'sky']
    items = [['red sky', 'sky', 'red']]
    MultiCategoryProcessor(['sky', 'red', 'red sky']).learn(items)
    with pytest.raises(ValueError, match='classes='): MultiCategoryProcessor().learn(items)

def test_tags_that_look_like_numbers_stay_names(folder):
    (folder/'n.csv').write_text('name,tags\n' + '\n'.join(f'{i}.png,{i % 3} 007' for i in range(len(CELLS))))
    assert split(folder).label_from_csv('n.csv', sep=' ').classes == ['0', '007', '1', '2']

def test_floats_and_tuples_are_no_tags_by_themselves(folder):
    assert isinstance(split(folder).label_from_func(lambda f: float(f.stem)).train.y, FloatList)
    assert isinstance(split(folder).label_from_func(lambda f: ('a', 'b')).train.y, CategoryList)

def test_a_folder_s_name_is_a_list_of_one_and_a_number_a_name(folder):
    got = split(folder).label_from_func(lambda f: int(f.stem) % 3 + 5, MultiCategoryList)
    assert got.classes == [5, 6, 7] and all(y.sum() == 1 for _, y in got.train)

def test_an_item_without_tags_is_a_row_of_zeros_and_says_so(folder):
    y = labeled(folder).train.y
    assert y.text(torch.zeros(3)) == '(none)' and y.text(torch.tensor([False, True, True])) == 'green, red'
    assert y.new([[], [2]]).column().tolist() == [[0., 0., 0.], [0., 0., 1.]]

texts = st.text(st.characters(exclude_categories=['Z', 'C'], exclude_characters=',;|'), min_size=1)

@given(st.lists(st.lists(texts, max_size=5), min_size=1, max_size=8).filter(any))
@settings(max_examples=50, deadline=None)
def test_names_to_numbers_and_back_give_the_names(items):
    proc = MultiCategoryProcessor()
    proc.learn(items)
    assert proc.classes == sorted(set(sum(items, [])))
    for names in items: assert proc.decode(proc.process(names)) == sorted(set(names))
    again = MultiCategoryProcessor()
    again.load_state_dict(proc.state_dict())
    assert [again.process(names) for names in items] == [proc.process(names) for names in items]

@pytest.mark.parametrize('items, word', [([[], []], 'label_delim'), ([[0, 1], [1, 0]], 'tags_from_columns'),
                                         ([['a', None]], 'missing'), ([[float('nan')]], 'missing'),
                                         ([(True, False)], 'tags_from_columns')])
def test_what_cannot_be_tags_is_refused(items, word):
    with pytest.raises(ValueError, match=word): MultiCategoryProcessor().learn(items)

def test_a_tag_that_training_has_not_is_an_error_or_the_other_class(folder):
    def rare(f): return ['rare'] if f in split(folder).valid.items[:1] else ['often']
    with pytest.raises(ValueError, match='rare'): split(folder).label_from_func(rare, MultiCategoryList)
    given_all = split(folder).label_from_func(rare, MultiCategoryList, classes=['often', 'rare'])
    assert given_all.valid.y.column()[0].tolist() == [0., 1.]
    other = split(folder).label_from_func(rare, MultiCategoryList, other='else')
    assert other.classes == ['often', 'else'] and other.valid.y.column()[0].tolist() == [0., 1.]

def test_without_the_lesson_lists_of_labels_are_an_error(folder, monkeypatch):
    from exp.data_block import SplitData
    monkeypatch.setattr(SplitData, 'many_labels', None)
    with pytest.raises(ValueError, match='exp.multilabel'): labeled(folder)

@pytest.mark.parametrize('values', [[0, 1, 1], [False, True, True], np.array([0., 1., 1.])])
def test_columns_of_yes_and_no_become_tags(values):
    df = pd.DataFrame({'name': list('abc'), 'x': values, 'y': [1, 0, 0]})
    assert tags_from_columns(df, ['x', 'y']) == [['y'], ['x'], ['x']]
    for bad in ([0, 2, 1], [0.5, 1, 0]):
        with pytest.raises(ValueError, match='0 and 1'): tags_from_columns(df.assign(x=bad), ['x'])
    with pytest.raises(ValueError, match='empty'): tags_from_columns(df.assign(x=[0, None, 1]), ['x'])
    with pytest.raises(ValueError, match='no column'): tags_from_columns(df, ['z'])

# ---- metrics

def fbeta_by_loops(said, there, beta, zero_division):
    "scikit-learn's formula, from precision and recall."
    scores = []
    for s, t in zip(said.tolist(), there.tolist()):
        found = sum(a and b for a, b in zip(s, t))
        if not sum(s) + sum(t): scores.append(zero_division)
        elif not found: scores.append(0.)
        else:
            P, R = found/sum(s), found/sum(t)
            scores.append((1 + beta**2)*P*R/(beta**2*P + R))
    return sum(scores)/len(scores)

cases = st.tuples(st.integers(1, 30), st.integers(1, 9), st.integers(0, 10**6),
                  st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([0.5, 1., 2.]),
                  st.sampled_from([0.2, 0.5, 0.8]))

def case(n, c, seed, share):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=g)*2, (torch.rand(n, c, generator=g) < share)

@given(cases, st.sampled_from([torch.float32, torch.float64, torch.bool, torch.int64]),
       st.sampled_from([0., 1.]))
@settings(max_examples=100, deadline=None)
def test_fbeta_is_scikit_learns_formula(given_case, dtype, zero_division):
    n, c, seed, share, beta, thresh = given_case
    pred, there = case(n, c, seed, share)
    said = pred.sigmoid() > thresh
    right = fbeta_by_loops(said, there, beta, zero_division)
    for p, sigmoid in ((pred, True), (pred.sigmoid(), False)):
        got = fbeta(p, there.to(dtype), thresh, beta, sigmoid, zero_division)
        assert_close(got.item(), right, 1e-5)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('beta', [0, 0.5, 1., 2])
@pytest.mark.parametrize('seed', range(6))
def test_fbeta_equals_scikit_learn_and_torchmetrics(beta, seed):
    tm = pytest.importorskip('torchmetrics.functional.classification')
    pred, there = case(40, 2 + seed, seed, 0.4)
    pred[:5] -= 9.   # nothing is named
    said = pred.sigmoid() > 0.3
    for zero in (0, 1):
        right = fbeta_score(there.numpy(), said.numpy(), beta=beta, average='samples', zero_division=zero)
        assert_close(fbeta(pred, there, 0.3, beta, zero_division=zero).item(), right, 1e-5)
    if not beta: return   # torchmetrics wants more
    theirs = tm.binary_fbeta_score(pred.sigmoid(), there.int(), float(beta), 0.3,
                                   multidim_average='samplewise').mean()
    assert_close(fbeta(pred, there, 0.3, beta), theirs, 1e-5)

@given(cases)
@settings(max_examples=50, deadline=None)
def test_accuracy_thresh_equals_torchmetrics(given_case):
    tm = pytest.importorskip('torchmetrics.functional.classification')
    n, c, seed, share, _, thresh = given_case
    pred, there = case(n, c, seed, share)
    got = accuracy_thresh(pred, there, thresh)
    assert_close(got, ((pred.sigmoid() > thresh) == there).float().mean(), 1e-6)
    if c > 1:
        theirs = tm.multilabel_accuracy(pred.sigmoid(), there.int(), c, thresh, average='micro')
        assert_close(got, theirs, 1e-5)

@pytest.mark.parametrize('metric', [fbeta, accuracy_thresh])
@pytest.mark.parametrize('sizes', [(7, 7, 7), (16, 5), (1, 20), (21,)])
def test_over_batches_and_ranks_it_is_the_mean_over_items(metric, sizes):
    pred, there = case(21, 5, 3, 0.4)
    ranks = [MeanMetric(metric), MeanMetric(metric)]
    for i, (p, y) in enumerate(zip(pred.split(sizes), there.split(sizes))): ranks[i % 2].update(p, y)
    whole = MeanMetric(metric)
    for m in ranks: whole.add(**m.states())
    assert_close(whole.compute(), metric(pred, there), 1e-5)

@pytest.mark.parametrize('metric', [fbeta, accuracy_thresh])
@pytest.mark.parametrize('pred, yb', [((4, 3), (4, 2)), ((4,), (4,)), ((4, 3), (4,)), ((4, 1), (4, 3)),
                                      ((2, 3, 4), (2, 3, 4))])
def test_other_shapes_are_refused(metric, pred, yb):
    with pytest.raises(ValueError, match='shape'): metric(torch.zeros(pred), torch.zeros(yb))

@pytest.mark.parametrize('bad', [dict(beta=-1), dict(zero_division=float('nan')), dict(zero_division=2)])
def test_a_negative_beta_and_a_score_that_is_none_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))): fbeta(torch.zeros(2, 2), torch.ones(2, 2), **bad)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_same_score(dtype):
    pred, there = case(50, 7, 0, 0.4)
    assert_close(fbeta(pred.to(dtype), there), fbeta(pred.to(dtype).float(), there), 0.02)

def test_the_chosen_threshold_is_the_best_of_all():
    pred, there = case(60, 6, 5, 0.3)
    probs = (pred + 2*there).sigmoid()
    best = choose_thresh(probs, there)
    scores = {t/100: fbeta(probs, there, t/100, sigmoid=False).item() for t in range(1, 100)}
    assert scores[best] == max(scores.values())
    assert choose_thresh(probs, there, partial(fbeta, beta=0.2)) > best
    assert choose_thresh(probs, there, candidates=np.array([0.4, 0.45])) in (0.4, 0.45)
    assert 0.4 <= choose_thresh(torch.tensor([[0.9, 0.1]]), torch.tensor([[1., 0.]])) <= 0.6   # the middle

def test_the_table_of_tags_has_precision_and_recall():
    pred, there = case(50, 4, 1, 0.5)
    table = tag_table(pred.sigmoid(), there, list('abcd'), 0.4)
    P, R, f1, n = precision_recall_fscore_support(there.numpy(), pred.sigmoid().numpy() > 0.4)
    same = table.loc[list('abcd')]
    assert_close(same[['precision', 'recall', 'F1']].values, np.stack([P, R, f1], 1), 1e-6)
    assert same['there'].tolist() == n.tolist() and table['there'].is_monotonic_decreasing
    never = tag_table(torch.zeros(3, 1), torch.zeros(3, 1), ['x'])
    assert never.loc['x', ['there', 'said']].tolist() == [0, 0] and never['recall'].isna().all()

# ---- a learner

@pytest.fixture
def learn(folder):
    torch.manual_seed(0)
    learn = Learner(data_of(folder), tiny_net(), metrics=[fbeta, accuracy_thresh], lr=0.03, path=folder)
    with learn.quiet(): learn.fit(2)
    return learn

def by_words(learn, files):
    "F2 of what `predict` says in words."
    scores = []
    for file, answer in zip(files, learn.predict_batch(files)):
        there, named = colours_of(file), set(answer.label)
        scores.append(5*len(there & named)/(4*len(there) + len(named)) if there | named else 0.)
    return np.mean(scores)

@pytest.mark.parametrize('thresh', [0.1, 0.35, 0.5, 0.7])
def test_predictions_never_contradict_the_metric(learn, thresh):
    learn.loss_func = BinaryCrossEntropy(thresh=thresh)
    files = learn.data.valid_ds.x.items
    told = learn.validate()
    assert_close(by_words(learn, files), told['fbeta'], 1e-5)
    probs, y = learn.get_preds()
    assert_close(told['fbeta'], fbeta(probs, y, thresh, sigmoid=False), 1e-5)
    assert_close(told['accuracy_thresh'], accuracy_thresh(probs, y, thresh, sigmoid=False), 1e-5)
    assert_close(by_words(load_predictor(learn.export(learn.path/'x.pth')), files), told['fbeta'], 1e-5)
    with learn.quiet(): learn.fit(1, lr=0.)   # so does the table of a fit
    assert_close(learn.history[-1]['valid_fbeta'], fbeta(*learn.get_preds(act=False), thresh), 1e-5)

@pytest.mark.parametrize('loss', [nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits])
def test_a_loss_of_pytorch_cuts_at_a_half_in_both(learn, loss):
    learn.loss_func = loss
    assert_close(by_words(learn, learn.data.valid_ds.x.items), learn.validate()['fbeta'], 1e-5)

def test_a_threshold_that_the_answer_does_not_use_is_not_the_metric_s(learn):
    learn.loss_func = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1., 2., 3.]))
    learn.loss_func.thresh = 0.1
    assert_close(by_words(learn, learn.data.valid_ds.x.items), learn.validate()['fbeta'], 1e-5)

@pytest.mark.parametrize('loss', [nn.BCELoss(), F.binary_cross_entropy, partial(F.binary_cross_entropy)])
def test_a_loss_of_probabilities_needs_a_metric_of_probabilities(learn, loss):
    with_sigmoid = nn.Sequential(learn.model, nn.Sigmoid())
    def asked(metric): return Learner(learn.data, with_sigmoid, loss_func=loss, metrics=metric)
    for metric in (fbeta, accuracy_thresh, binary_accuracy, partial(fbeta, thresh=0.3)):
        with pytest.raises(ValueError, match='probabilities'): asked(metric).validate()
        with pytest.raises(ValueError, match='probabilities'): asked(metric).fit(1)
    probs = partial(fbeta, sigmoid=False)
    probs.__name__ = 'fbeta'
    again = asked(probs)
    assert_close(by_words(again, learn.data.valid_ds.x.items), again.validate()['fbeta'], 1e-5)

def test_a_threshold_set_later_and_weights_go_into_the_exported_file(learn, folder):
    learn.loss_func = BinaryCrossEntropy(pos_weight=torch.tensor([1., 2., 4.]))
    learn.loss_func.thresh = 0.15
    told = learn.validate()
    predictor = load_predictor(learn.export(folder/'w.pth'))
    assert predictor.loss_func.thresh == 0.15 and predictor.loss_func.pos_weight == [1., 2., 4.]
    files = learn.data.valid_ds.x.items
    for answers in (learn.predict_batch(files), predictor.predict_batch(files)):
        assert [a.label for a in answers] == [a.label for a in learn.predict_batch(files)]
    assert_close(by_words(learn, files), told['fbeta'], 1e-5)

def test_a_partial_has_its_own_threshold_or_follows_without_one(learn):
    own, follows = partial(fbeta, thresh=0.9), partial(fbeta, beta=1.)
    own.name, follows.name = 'own', 'follows'
    again = Learner(learn.data, learn.model, loss_func=BinaryCrossEntropy(thresh=0.2),
                    metrics=[own, follows, binary_accuracy])
    told, (pred, y) = again.validate(), learn.get_preds(act=False)
    assert_close(told['own'], fbeta(pred, y, 0.9), 1e-5)
    assert_close(told['follows'], fbeta(pred, y, 0.2, beta=1.), 1e-5)
    assert_close(told['binary_accuracy'], binary_accuracy(pred, y, 0.2), 1e-5)

def test_a_prediction_has_names_yes_or_no_and_probabilities(learn, folder):
    for item in (folder/'3.png', (folder/'3.png').read_bytes(), Image.open(folder/'3.png')):
        label, target, probs = learn.predict(item)
        assert isinstance(label, list) and target.dtype == torch.bool and probs.shape == (3,)
        assert label == [c for c, yes in zip(learn.data.classes, probs > 0.5) if yes]
    a, b = learn.predictor().predict(folder/'3.png'), learn.predict(folder/'3.png')
    assert a.label == b.label and torch.equal(a.probs, b.probs)

def test_no_label_at_all_is_an_answer(learn, folder):
    learn.loss_func = BinaryCrossEntropy(thresh=1.)
    assert learn.predict(folder/'0.png').label == []

def test_an_exported_learner_has_classes_threshold_and_labels(learn, folder):
    learn.loss_func = BinaryCrossEntropy(thresh=0.23)
    again = load_learner(learn.export(folder/'e.pth'), model=tiny_net())
    assert again.loss_func.thresh == 0.23 and again.data.classes == ['blue', 'green', 'red']
    a, b = again.predict(folder/'6.png'), learn.predict(folder/'6.png')
    assert a.label == b.label and torch.equal(a.target, b.target)
    assert_close(a.probs, b.probs, 1e-6)

def test_pictures_with_truth_and_answer(learn):
    import matplotlib.pyplot as plt
    learn.data.show_batch(4)
    learn.show_results(4)
    titles = [ax.get_title() for ax in plt.gcf().axes if ax.get_title()]
    truth = [learn.data.item_data.y.text(y) for _, y in learn.data.valid_ds][:4]
    assert [t.split('\n')[0] for t in titles] == truth
    learn.plot_top_losses(3)
    plt.close('all')

def test_the_largest_losses_name_tags_and_files(learn):
    table = learn.top_losses(4)
    probs, y = learn.get_preds()
    worst = F.binary_cross_entropy(probs, y, reduction='none').mean(1)
    assert table['item'].tolist() == worst.topk(4).indices.tolist()
    assert_close(table['loss'].values, worst.topk(4).values.numpy(), 1e-4)
    item = table['item'][0]
    assert table['truth'][0] == learn.data.item_data.y.text(y[item]) and table['file'][0].endswith('.png')

def test_a_confusion_matrix_needs_one_class_for_each_item(learn):
    with pytest.raises(ValueError, match='one class'): learn.confusion_matrix()

def test_tta_averages_probabilities(folder):
    data = data_of(folder, get_transforms(flip_vert=True, max_warp=0.))
    learn = Learner(data, tiny_net(), metrics=fbeta)
    probs, y = learn.tta(n=2)
    assert probs.shape == y.shape == (len(data.valid_ds), 3) and bool(((probs > 0) & (probs < 1)).all())
    assert_close(y, learn.get_preds()[1])

@pytest.mark.parametrize('mixer', [MixUp, CutMix])
def test_mixing_trains_on_the_loss_of_mixed_targets(folder, mixer):
    seen, mix = [], mixer(0.4)
    class Check(Callback):
        order = 100
        def after_loss(self):
            if not self.in_train: return
            mixed = mix.lam[:, None]*self.yb + (1 - mix.lam[:, None])*self.yb[mix.partner]
            seen.append((self.loss.item(), F.binary_cross_entropy_with_logits(self.pred, mixed).item()))
    learn = Learner(data_of(folder), tiny_net(), metrics=[fbeta, accuracy_thresh])
    with learn.quiet(): learn.fit(1, cbs=[mix, Check()])
    assert len(seen) > 1
    for got, right in seen: assert_close(got, right, 1e-5)
    assert 'valid_fbeta' in learn.history[-1] and 'train_fbeta' not in learn.history[-1]

def test_resume_goes_on_with_tags(folder):
    whole, parts = [], []
    for rows, stops in ((whole, (2,)), (parts, (1, 1))):
        torch.manual_seed(0)
        learn = Learner(data_of(folder), tiny_net(), metrics=fbeta, path=folder)
        with learn.quiet():
            for n in stops: learn.fit(n)
        rows.extend(learn.get_preds()[0])
    assert_close(torch.stack(whole), torch.stack(parts), 1e-5)

def test_create_cnn_takes_the_number_of_tags_and_freezes(folder):
    learn = create_cnn(data_of(folder), tiny_net(c=10), metrics=fbeta)
    assert learn.model.head.fc.out_features == 3 and isinstance(learn.loss_func, BinaryCrossEntropy)
    with learn.quiet(): learn.fine_tune(1, 0.01)
    assert 0 <= learn.validate()['fbeta'] <= 1

def test_long_titles_break_into_lines(folder):
    import matplotlib.pyplot as plt
    def many(f): return [f'a rather long name {i}' for i in range(5)]
    split(folder).label_from_func(many).transform(size=16).databunch(bs=8).show_batch(4)
    titles = [ax.get_title() for ax in plt.gcf().axes]
    plt.close('all')
    assert titles and all(max(map(len, t.split('\n'))) <= 32 and '\n' in t for t in titles)

# ---- Kaggle's client, made

CLIENT = '''
import pathlib, shutil, sys
how, folder, file = sys.argv[1], pathlib.Path(sys.argv[-1]), sys.argv[sys.argv.index('-f') + 1]
if how == 'rules': sys.exit('403 - Forbidden - Permission "competitions.participate" was denied')
if how == 'authentication': sys.exit('Authentication required. Run kaggle auth login')
if how == 'odd403': sys.exit('file 40312.zip is broken')
if how == 'token': sys.exit('OSError: Could not find kaggle.json. Make sure it is located in ~/.kaggle')
if how == 'odd': sys.exit('the moon is full')
if how == 'nothing': sys.exit()
inside = folder/'inside'
(inside/'train').mkdir(parents=True)
(inside/'train'/'a.txt').write_text('here')
if how == 'plain': (folder/pathlib.Path(file).name).write_text('image_name,tags')
elif how == 'zipped':
    import zipfile
    with zipfile.ZipFile(folder/f'{file}.zip', 'w') as z: z.writestr(file, 'image_name,tags')
else:
    kind = 'zip' if how == 'zip' else 'gztar' if how == 'gztar' else 'tar'
    made = pathlib.Path(shutil.make_archive(str(folder/'made'), kind, inside))
    made.rename(folder/file)
shutil.rmtree(inside)
'''
SEVEN = '''
import pathlib, shutil, sys
archive, folder = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3].removeprefix('-o'))
shutil.copy(archive, folder/archive.stem)
'''

@pytest.fixture
def client(tmp_path):
    (tmp_path/'client.py').write_text(CLIENT)
    (tmp_path/'seven.py').write_text(SEVEN)
    def fetch(how, file):
        return kaggle_file('amazon', file, tmp_path/'got', (sys.executable, str(tmp_path/'client.py'), how),
                           (sys.executable, str(tmp_path/'seven.py')))
    return fetch

@pytest.mark.parametrize('how, file', [('zip', 'train.zip'), ('tar', 'train.tar'), ('7z', 'train.tar.7z'),
                                       ('gztar', 'train.tar.gz'), ('gztar', 'train.tgz')])
def test_an_archive_of_kaggle_is_unpacked(client, how, file):
    folder = client(how, file)
    assert (folder/'train'/'a.txt').read_text() == 'here' and [p.name for p in folder.iterdir()] == ['train']

def test_a_table_that_kaggle_zipped_is_unpacked_and_one_that_did_not_come_is_an_error(client, tmp_path):
    assert (client('zipped', 'labels.csv')/'labels.csv').read_text() == 'image_name,tags'
    assert [p.name for p in (tmp_path/'got').iterdir()] == ['labels.csv']
    with pytest.raises(FileNotFoundError, match='its name'): client('nothing', 'other.csv')

def test_a_damaged_archive_of_kaggle_is_not_kept_and_nothing_else_is_touched(client, tmp_path):
    (tmp_path/'got').mkdir()
    (tmp_path/'got'/'labels.csv').write_text('mine')
    with pytest.raises(shutil.ReadError): client('plain', 'train.zip')   # a text, not an archive
    assert [p.name for p in (tmp_path/'got').iterdir()] == ['labels.csv']

def test_an_old_table_does_not_hide_the_new_one_that_came_zipped(client, tmp_path):
    (tmp_path/'got').mkdir()
    (tmp_path/'got'/'labels.csv').write_text('old')
    assert (client('zipped', 'labels.csv')/'labels.csv').read_text() == 'image_name,tags'

@pytest.mark.parametrize('metric', [accuracy_thresh, fbeta])
def test_an_answer_of_nan_is_never_right(metric):
    yb = torch.tensor([[1., 0.], [0., 1.]])
    assert metric(torch.full((2, 2), torch.nan), yb) == 0

@pytest.mark.parametrize('file', ['labels.csv', 'labels.csv/labels.csv'])
def test_a_plain_file_of_kaggle_stays_as_it_is(client, file):
    assert (client('plain', file)/'labels.csv').read_text() == 'image_name,tags'

@pytest.mark.parametrize('how, error, word', [('rules', PermissionError, 'c/amazon/rules'),
                                              ('token', PermissionError, 'token'),
                                              ('authentication', PermissionError, 'token'),
                                              ('odd403', RuntimeError, 'broken'),
                                              ('odd', RuntimeError, 'moon')])
def test_what_kaggle_refuses_is_said_with_its_remedy(client, how, error, word):
    with pytest.raises(error, match=word): client(how, 'labels.csv')

def test_a_client_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='pip'):
        kaggle_file('a', 'b.csv', tmp_path, ('no_such_client',))
