"The checks of lesson 05's exercises take a right answer and name what is wrong with a wrong one."
import torch
from torch import nn

from exp.core import check_exercise
from exp.dataloader import Rng


def balanced(y, seed, epoch):
    rng, classes = Rng(seed, epoch), y.unique().tolist()
    fewest = min(int((y == c).sum()) for c in classes)
    chosen = [i for c in classes for i in rng.sample((y == c).nonzero().flatten().tolist(), fewest)]
    rng.shuffle(chosen)
    return chosen

def test_05_1():
    assert check_exercise('05.1', balanced) == '05.1: right'
    assert '[50, 8, 20]' in check_exercise('05.1', lambda y, seed, epoch: list(range(len(y))))
    assert 'another epoch gives the same' in check_exercise('05.1',
                                                            lambda y, seed, epoch: balanced(y, seed, 0))
    assert 'another seed' in check_exercise('05.1', lambda y, seed, epoch: balanced(y, 1, epoch))
    assert 'twice' in check_exercise('05.1', lambda y, seed, epoch: [0]*8 + [50]*8 + [60]*8)
    assert 'one after the other' in check_exercise('05.1',
                                                   lambda y, seed, epoch: sorted(balanced(y, seed, epoch)))
    by_class = lambda y, seed, epoch: sorted(balanced(y, seed, epoch), key=lambda i: int(y[i]))
    assert 'one after the other' in check_exercise('05.1', by_class)


def pad_collate(samples):
    xs, ys = zip(*samples)
    return nn.utils.rnn.pad_sequence(xs, batch_first=True), torch.tensor(ys)

def test_05_2():
    assert check_exercise('05.2', pad_collate) == '05.2: right'
    def cut(samples):
        n = min(len(x) for x, _ in samples)
        return torch.stack([x[:n] for x, _ in samples]), torch.tensor([y for _, y in samples])
    assert 'shape (2, 1)' in check_exercise('05.2', cut)
    def in_front(samples):
        return torch.stack([nn.functional.pad(x, (3 - len(x), 0))
                            for x, _ in samples]), [y for _, y in samples]
    assert '[[1, 2, 3], [0, 0, 4]]' in check_exercise('05.2', in_front)
    def real(samples):
        xb, yb = pad_collate(samples)
        return xb.float(), yb
    assert 'float32' in check_exercise('05.2', real)


def running_mean_loss(model, loss_func, dl):
    mode, total, n = model.training, 0., 0
    model.eval()
    with torch.no_grad():
        for xb, yb in dl: total, n = total + loss_func(model(xb), yb)*len(xb), n + len(xb)
    model.train(mode)
    return total/n

def test_05_3():
    assert check_exercise('05.3', running_mean_loss) == '05.3: right'
    def unweighted(model, loss_func, dl):
        model.eval()
        with torch.no_grad(): losses = [loss_func(model(xb), yb) for xb, yb in dl]
        model.train()
        return sum(losses)/len(losses)
    assert '28.5 is right' in check_exercise('05.3', unweighted)
    def stays(model, loss_func, dl):
        loss = running_mean_loss(model, loss_func, dl)
        model.eval()
        return loss
    assert 'left in evaluation mode' in check_exercise('05.3', stays)
    def graph(model, loss_func, dl): return sum(loss_func(model(xb), yb) for xb, yb in dl)
    assert 'graph' in check_exercise('05.3', graph)
