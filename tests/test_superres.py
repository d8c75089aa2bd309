"""Pictures are made of pictures: measures equal torchmetrics' and a plain formula, damage is as it is said
to be and only where there is a target, and a restorer trains, resumes, predicts and is exported."""
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import nn
from torchmetrics.functional.image import (peak_signal_noise_ratio, structural_similarity_index_measure)

from exp.augmentation import CenterCrop, RandomCrop, RandomResizedCrop
from exp.batch_transforms import RandomFlip, get_transforms
from exp.callbacks import Callback
from exp.checkpoints import Checkpoint
from exp.core import test_close as assert_close, test_eq as assert_eq
from exp.data_block import CategoryList, GreyImageList, ImageList
from exp.dataloader import make_data
from exp.inference import load_learner, load_predictor
from exp.losses import AbsoluteLoss, SquaredLoss, item_losses
from exp.metrics import MeanMetric
from exp.mixup import MixUp
from exp.specs import from_spec, to_spec
from exp.superres import (Damage, FeatureLoss, GreyPictureList, PictureList, ResizeBicubic, Restorer,
                          create_restorer, gram, psnr, restore, sharpness, ssim, through_jpeg)
from exp.transfer import weights_file, PUBLISHED, efficientnet_lite0
from exp.transforms import Normalize, ResizeFixed
from exp.unet import Unet
from exp.xresnet import XResNet

def tiny_net(ni=3, c=10): return XResNet([1, 1], ni, c, widths=(8, 16), stem=(8,), stem_stride=2)

def picture(rng, h=40, w=50):
    "Soft colours with hard-edged squares on them."
    a = np.kron(rng.uniform(0, 255, (h//10, w//10, 3)), np.ones((10, 10, 1)))
    y, x = rng.randint(0, h - 12), rng.randint(0, w - 12)
    a[y:y + 12, x:x + 12] = rng.uniform(0, 255, 3)
    return a.astype(np.uint8)

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp('pictures'), np.random.RandomState(0)
    for i in range(16): Image.fromarray(picture(rng)).save(root/f'{i:02}.png')
    return root

def same(p): return p

def split(folder, cls=PictureList, items=ImageList):
    return items.from_folder(folder).split_by_index(range(4)).label_from_func(same, cls)

def bunch(folder, tfms=None, size=(32, 40), damage=Damage(4), items=ImageList):
    tfms = [ResizeBicubic(size), damage, *(tfms or [])]
    return split(folder, items=items).transform(tfms).databunch(bs=4)

def learner(folder, data=None, **how):
    torch.manual_seed(0)
    data = bunch(folder) if data is None else data
    return create_restorer(data, tiny_net, **{'pretrained': False, 'width': 8, 'metrics': [psnr, ssim],
                                              'path': folder, **how})

# ---- what is measured

def pair(seed, n, c, h, w, outside=0.):
    g = torch.Generator().manual_seed(seed)
    yb = torch.rand(n, c, h, w, generator=g)
    return (yb + 0.3*torch.randn(n, c, h, w, generator=g)).clamp(-outside, 1 + outside), yb

SHAPES = given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([1, 3]), st.integers(11, 30),
               st.integers(11, 30), st.sampled_from([0., 0.4]))

@SHAPES
@settings(max_examples=25, deadline=None)
def test_psnr_is_that_of_torchmetrics(seed, n, c, h, w, outside):
    pred, yb = pair(seed, n, c, h, w, outside)
    theirs = peak_signal_noise_ratio(pred, yb, data_range=(0., 1.), dim=(1, 2, 3), reduction='none')
    assert_close(psnr.per_item(pred, yb), theirs, 1e-4)
    assert_close(psnr(pred, yb), theirs.mean(), 1e-4)

@SHAPES
@settings(max_examples=25, deadline=None)
def test_ssim_is_that_of_torchmetrics(seed, n, c, h, w, outside):
    pred, yb = pair(seed, n, c, h, w, outside)
    theirs = structural_similarity_index_measure(pred.clamp(0, 1).double(), yb.double(), data_range=1.,
                                                 reduction='none')
    assert_close(ssim.per_item(pred, yb), theirs, 1e-6)

@SHAPES
@settings(max_examples=15, deadline=None)
def test_ssim_is_the_formula_of_scikit_image(seed, n, c, h, w, outside):
    "Its `structural_similarity` with gaussian_weights, sigma 1.5, without sample covariance, by channel."
    pred, yb = pair(seed, n, c, h, w, outside)
    def one(a, b):
        blur = partial(gaussian_filter, sigma=1.5, truncate=3.5, mode='reflect')
        ma, mb = blur(a), blur(b)
        va, vb, cov = blur(a*a) - ma*ma, blur(b*b) - mb*mb, blur(a*b) - ma*mb
        s = (2*ma*mb + 1e-4)*(2*cov + 9e-4)/((ma**2 + mb**2 + 1e-4)*(va + vb + 9e-4))
        return s[5:-5, 5:-5].mean()
    a, b = pred.clamp(0, 1).double().numpy(), yb.double().numpy()
    right = [np.mean([one(a[i, j], b[i, j]) for j in range(c)]) for i in range(n)]
    assert_close(ssim(pred, yb, pad=False), torch.tensor(right).mean(), 1e-6)

@pytest.mark.parametrize('metric', [psnr, ssim, sharpness])
def test_batches_and_ranks_of_any_size_add_up_to_the_mean_over_all_pictures(metric):
    pred, yb = pair(1, 10, 3, 16, 20)
    ranks = []
    for part in (slice(0, 7), slice(7, 10)):   # a rank each, of batches of three
        m = MeanMetric(metric)
        m.reset()
        for a, b in zip(pred[part].split(3), yb[part].split(3)): m.update(a, b)
        ranks.append(m.states())
    total = {name: sum(s[name] for s in ranks) for name in ranks[0]}
    assert_close(total['total']/total['weight'], metric(pred, yb), 1e-5)
    assert_close(metric.per_item(pred, yb).mean(), metric(pred, yb), 1e-6)

@pytest.mark.parametrize('metric', [psnr, ssim, sharpness])
def test_what_cannot_be_measured_is_refused(metric):
    with pytest.raises(ValueError, match='shape'): metric(torch.rand(2, 3, 16, 16), torch.rand(2, 1, 16, 16))

def test_ssim_needs_eleven_pixels_and_says_so():
    with pytest.raises(ValueError, match='11'): ssim(torch.rand(1, 1, 10, 30), torch.rand(1, 1, 10, 30))

def test_equal_pictures_have_the_best_values():
    x = torch.rand(3, 3, 20, 20)
    assert psnr(x, x) == 100   # and a set with one of them has a mean
    assert_close(ssim(x, x), torch.tensor(1., dtype=torch.float64), 1e-12)
    assert_close(sharpness(x, x), torch.tensor(1.), 1e-6)

def test_sharpness_falls_with_blur_and_is_finite_for_a_flat_target():
    x = torch.rand(2, 3, 24, 24)
    soft = nn.functional.avg_pool2d(x, 3, 1, 1)
    assert sharpness(soft, x) < 0.6 < 1 < sharpness(x, soft)

@pytest.mark.parametrize('value', [0., 0.5, 1.])
def test_a_flat_target_does_not_decide_the_sharpness_of_a_set(value):
    x = torch.rand(50, 3, 16, 16)
    with_flat = torch.cat([torch.full_like(x[:1], value), x])
    noisy = with_flat + 0.01*torch.randn(with_flat.shape)
    assert abs(sharpness(noisy, with_flat) - sharpness(noisy[1:], x)) < 0.02
    assert sharpness.per_item(noisy, with_flat)[0] == 1

def test_half_precision_is_measured_in_full():
    pred, yb = pair(3, 2, 3, 16, 16)
    pred, yb = pred.half(), yb.half()
    for metric in (psnr, ssim, sharpness):
        assert_close(metric(pred, yb), metric(pred.float(), yb.float()), 1e-6)

# ---- damage

def test_damage_is_its_parts_in_order(folder):
    im = Image.open(folder/'00.png').convert('RGB')
    made = Damage(scale=5, quality=30)(im)
    small = im.resize((10, 8), Image.Resampling.BICUBIC)
    assert_eq(np.asarray(made), np.asarray(through_jpeg(small, 30).resize(im.size, Image.Resampling.BICUBIC)))
    assert made.size == im.size and made.mode == im.mode

def test_grey_damage_has_three_equal_channels():
    a = np.asarray(Damage(scale=1, grey=True)(Image.fromarray(picture(np.random.RandomState(1)))))
    assert (a == a[..., :1]).all() and a.std() > 10

def test_more_damage_is_worse():
    rng = np.random.RandomState(2)
    im = Image.fromarray(rng.randint(0, 255, (48, 48, 3), np.uint8))
    def far(damage): return np.abs(np.asarray(damage(im), float) - np.asarray(im)).mean()
    assert far(Damage(1)) == 0 < far(Damage(2)) < far(Damage(6))
    assert far(Damage(1, quality=95)) < far(Damage(1, quality=10))
    assert far(Damage(1)) < far(Damage(1, blur=1)) < far(Damage(1, blur=3))

@given(st.integers(1, 40), st.integers(1, 40), st.floats(1, 60))
@settings(max_examples=25, deadline=None)
def test_a_picture_of_any_size_keeps_it(w, h, scale):
    im = Image.fromarray(np.zeros((h, w, 3), np.uint8))
    assert Damage(scale)(im).size == (w, h)

@pytest.mark.parametrize('how', [dict(scale=0.5), dict(scale=(0.5, 2)), dict(quality=0),
                                 dict(quality=(10, 200)), dict(blur=-1), dict(scale=(2, 3, 4)),
                                 dict(blur=(1,))])
def test_damage_that_makes_no_sense_is_refused(how):
    with pytest.raises(ValueError, match=next(iter(how))): Damage(**how)

def test_pairs_of_numbers_are_drawn_for_each_item_and_repeat(folder):
    data = bunch(folder, damage=Damage(scale=(2, 6), quality=(10, 60), blur=(0., 1.)))
    assert Damage((2, 3)).random and not Damage(2, 40, 1.).random
    first, again = data.one_batch()[0], data.one_batch()[0]
    assert_eq(first, again)
    ds = data.train_ds
    assert not torch.equal(ds[0][0], ds[0][0]) and torch.equal(ds[0][1], ds[0][1])

def test_only_items_with_a_target_are_damaged(folder):
    "A new picture, and those of a test set without targets, are bad already."
    labeled = split(folder).transform([ResizeBicubic((32, 40)), Damage(4)])
    data = labeled.add_test(sorted(folder.glob('*.png'))[:4]).databunch(bs=4)
    good = torch.stack([data.valid_ds[i][1] for i in range(4)])
    assert_eq(torch.stack([data.test_ds[i][0] for i in range(4)]), good)
    assert_eq(data.valid_ds.prepare(folder/'00.png'), good[0])
    assert not torch.equal(data.valid_ds[0][0], good[0])

def test_damage_is_written_by_name():
    tfm = from_spec(to_spec(Damage((2, 4), quality=50, grey=True)))
    assert (tfm.scale, tfm.quality, tfm.grey, tfm.random) == ((2, 4), 50, True, True)

def test_bicubic_has_the_size_and_is_pils():
    im = Image.fromarray(picture(np.random.RandomState(0)))
    right = im.resize((60, 80), Image.Resampling.BICUBIC)
    assert_eq(np.asarray(ResizeBicubic((80, 60))(im)), np.asarray(right))
    assert isinstance(ResizeBicubic(8), ResizeFixed) and ResizeBicubic(8).role == 'size'

# ---- the target of an item

def test_a_target_moves_with_its_image(folder):
    data = bunch(folder, [RandomFlip(p=1.), *get_transforms(do_flip=False)[0]], damage=Damage(1))
    xb, yb = data.one_batch()
    assert_close(xb, yb, 1e-6)
    still = bunch(folder, damage=Damage(1)).one_batch()[1]
    assert yb.dtype == torch.float32 and 0 <= yb.min() and yb.max() <= 1 and not torch.equal(yb, still)

def test_a_random_window_is_the_same_in_a_small_input_and_a_large_target(tmp_path):
    (tmp_path/'small').mkdir()
    for i in range(4):
        im = Image.fromarray(np.kron(picture(np.random.RandomState(i)), np.ones((4, 4, 1))).astype(np.uint8))
        im.save(tmp_path/f'{i}.png')
        im.resize((50, 40), Image.Resampling.BOX).save(tmp_path/'small'/f'{i}.png')
    data = (ImageList.from_folder(tmp_path/'small').split_none()
            .label_from_func(lambda p: p.parents[1]/p.name, PictureList)
            .transform(RandomResizedCrop(32, scale=(0.5, 1))).databunch(bs=4))
    xb, yb = data.one_batch()
    assert xb.shape == yb.shape and (xb - yb).abs().mean() < 0.05

def test_targets_stay_from_0_to_1_where_images_are_normalised(folder):
    stats = Normalize([0.5]*3, [0.25]*3)
    data = bunch(folder, [stats])
    xb, yb = data.one_batch()
    assert xb.min() < 0 <= yb.min() and yb.max() <= 1
    learn = learner(folder, data)
    with torch.no_grad(): assert_close(learn.model.cpu().eval()(xb), xb*0.25 + 0.5, 1e-5)

def test_statistics_that_stand_alone_among_the_batch_transforms_are_found(folder):
    data = bunch(folder)
    stats = Normalize([0.5]*3, [0.25]*3)
    data.batch_tfms = ([*data.batch_tfms[0], stats], [*data.batch_tfms[1], stats])
    model = create_restorer(data, tiny_net, pretrained=False).model
    assert_close(model.stats.flatten(), torch.tensor([0.5]*3 + [0.25]*3), 1e-6)

@pytest.mark.parametrize('metric', [psnr, ssim])
def test_bytes_are_parts_of_255(metric):
    pred, yb = (torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8) for _ in range(2))
    assert_close(metric(pred, yb), metric(pred/255, yb/255), 1e-5)
    assert_close(metric(pred/255, yb), metric(pred/255, yb/255), 1e-5)

@pytest.mark.parametrize('items, targets, ni, c', [
    (ImageList, PictureList, 3, 3), (GreyImageList, PictureList, 1, 3),
    (GreyImageList, GreyPictureList, 1, 1)])
def test_images_and_targets_have_each_their_own_colours(folder, tmp_path, items, targets, ni, c):
    "Whatever the files have: a grey scan is coloured, and a target of one channel becomes three."
    for i, f in enumerate(sorted(folder.glob('*.png'))):
        Image.open(f).convert(['L', 'P', 'RGBA', 'RGB'][i % 4]).save(tmp_path/f.name)
    data = split(tmp_path, targets, items).transform([ResizeBicubic(32), Damage(2)]).databunch(bs=4)
    xb, yb = data.one_batch()
    assert (xb.shape[1], yb.shape[1]) == (ni, c) and 0.1 < yb.max() <= 1
    learn = learner(folder, data)
    with learn.quiet(): learn.fit(1)
    assert learn.predict(folder/'00.png').label.mode == ('RGB' if c == 3 else 'L')

def test_more_channels_than_the_target_has_are_refused(folder):
    data = split(folder, GreyPictureList).transform(ResizeBicubic(32)).databunch(bs=4)
    with pytest.raises(ValueError, match='3 channels'): create_restorer(data, tiny_net, pretrained=False)

def test_squares_are_cut_from_photographs_and_damaged_in_step(folder):
    data = (split(folder).transform(([RandomCrop(32), Damage((2, 4), (30, 80)), RandomFlip()],
                                     [CenterCrop(32), Damage(3, 55)])).databunch(bs=4))
    xb, yb = data.one_batch()
    assert xb.shape == yb.shape == (4, 3, 32, 32) and 0.001 < (xb - yb).abs().mean() < 0.2
    (a, _), (b, _) = (data.one_batch(train=False) for _ in range(2))
    assert_eq(a, b)
    assert restore(learner(folder, data).predictor(), folder/'00.png', 2).size == (100, 80)

def test_a_target_of_another_shape_is_named(folder, tmp_path):
    Image.fromarray(np.zeros((40, 90, 3), np.uint8)).save(tmp_path/'wide.png')
    data = (ImageList.from_folder(folder).split_none()
            .label_from_func(lambda p: tmp_path/'wide.png', PictureList).transform(size=32).databunch(bs=4))
    with pytest.raises(ValueError, match='90×40'): data.one_batch()

def test_a_target_is_any_picture(folder):
    a = picture(np.random.RandomState(0))
    for item in (a, torch.tensor(a).movedim(-1, 0), Image.fromarray(a), folder/'00.png', '00.png'):
        got = PictureList([item], folder).get(0)
        assert got.size == (50, 40)

def test_a_target_decodes_to_a_picture_with_what_is_outside_cut_off():
    y = torch.tensor([-1., 0., 0.5, 1., 2.]).expand(3, 2, 5)
    im = PictureList([]).decode(y)
    assert im.size == (5, 2) and np.asarray(im)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert PictureList([]).decode(y[:1]).mode == 'L' and PictureList([]).text(y) == 'a picture of 5×2'

def test_a_phone_that_lay_on_its_side_turns_both(tmp_path):
    im, exif = Image.fromarray(picture(np.random.RandomState(0))), Image.Exif()
    exif[0x0112] = 6
    im.save(tmp_path/'a.jpg', exif=exif)
    data = (ImageList([tmp_path/'a.jpg']*2).split_none().label_from_func(same, PictureList)
            .transform(Damage(1), size=(50, 40)).databunch(bs=2))
    xb, yb = data.one_batch()
    assert_eq(xb, yb)

# ---- the network

@pytest.mark.parametrize('ni, c', [(3, 3), (1, 1), (1, 3)])
def test_at_first_pictures_come_out_as_they_went_in(ni, c):
    net = Restorer(Unet(tiny_net(ni)[:-3], c, 8), [0.4]*ni, [0.3]*ni).eval()
    x = torch.rand(2, ni, 21, 34)
    assert_close(net((x - 0.4)/0.3), x.expand(-1, c, -1, -1), 1e-6)
    again = from_spec(to_spec(net))
    assert_eq(again.stats, net.stats)
    again.load_state_dict(net.state_dict())

def test_a_restorer_takes_the_statistics_of_its_data(folder):
    stats = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    learn = learner(folder, bunch(folder).normalize(stats))
    xb, yb = learn.data.one_batch(train=False)
    assert yb.max() <= 1   # targets stay as they are
    with torch.no_grad(): assert_close(learn.model.cpu().eval()(xb), learn.data.decode_batch(xb), 1e-5)

def test_it_learns_and_beats_its_input(folder):
    learn = learner(folder)
    with learn.quiet():
        before = learn.validate()['psnr']
        learn.fit_one_cycle(20, 0.01)
        assert learn.validate()['psnr'] > before + 0.3

def test_grey_becomes_colour(folder):
    learn = learner(folder, bunch(folder, damage=Damage(1, grey=True)))
    with learn.quiet(): learn.fit_one_cycle(1, 0.01)
    assert learn.predict(folder/'00.png').label.mode == 'RGB'

def test_one_channel_of_grey_is_restored_too(folder):
    learn = learner(folder, split(folder, GreyPictureList, GreyImageList)
                    .transform([ResizeBicubic((32, 40)), Damage(4)]).databunch(bs=4))
    with learn.quiet(): learn.fit_one_cycle(1, 0.01)
    assert learn.predict(folder/'00.png').label.mode == 'L'

class Broken(Exception): pass

class BreakOff(Callback):
    order = 10**6   # after the checkpoint
    def after_batch(self):
        if self.in_train and self.n_iter == 4: raise Broken

@pytest.mark.parametrize('damage, loss_func', [
    (Damage(4), None), (Damage((2, 5), (20, 60)), None),
    (Damage(4), FeatureLoss(tiny_net(), levels=1, feature=0.5))])   # which draws where it looks
def test_a_fit_resumes_bit_for_bit(folder, tmp_path, damage, loss_func):
    def fresh(path):
        return learner(folder, bunch(folder, [RandomFlip()], damage=damage), path=path, loss_func=loss_func)
    file = tmp_path/'fit.pth'
    whole, first, second = fresh(tmp_path), fresh(tmp_path), fresh(tmp_path)
    torch.manual_seed(1)
    with whole.quiet(): whole.fit_one_cycle(2, 0.01)
    torch.manual_seed(1)
    with first.quiet(), pytest.raises(Broken):
        first.fit_one_cycle(2, 0.01, cbs=[Checkpoint(file, every=1), BreakOff()])
    with second.quiet(): second.fit_one_cycle(2, 0.01, resume=file)
    for a, b in zip(whole.model.state_dict().values(), second.model.state_dict().values()): assert_eq(a, b)

def test_targets_that_are_no_pictures_are_refused(folder):
    data = (ImageList.from_folder(folder).split_none().label_from_func(lambda p: p.stem[0], CategoryList)
            .transform(size=32).databunch(bs=4))
    with pytest.raises(ValueError, match='PictureList'): create_restorer(data, tiny_net, pretrained=False)
    x = torch.rand(8, 1, 7, 7)
    with pytest.raises(ValueError, match='PictureList'):
        create_restorer(make_data((x, torch.rand(8, 1, 28, 28)), None, bs=4), tiny_net, pretrained=False)

def test_tensors_of_pictures_are_data_enough():
    x = torch.rand(8, 1, 28, 28)
    learn = create_restorer(make_data((x, x), (x, x), bs=4), tiny_net, pretrained=False,
                            loss_func=SquaredLoss(), metrics=psnr)
    with learn.quiet(): learn.fit(1)

def test_mixed_pictures_train(folder):
    learn = learner(folder)
    with learn.quiet(): learn.fit(1, cbs=MixUp())

# ---- what is shown, asked, and handed on

def test_input_prediction_and_target_stand_side_by_side(folder):
    import matplotlib.pyplot as plt
    learn = learner(folder)
    learn.show_results(2)
    axs = [ax for ax in plt.gcf().axes if ax.images]
    assert [ax.get_title() for ax in axs] == ['input', 'prediction', 'target']*2
    learn.plot_top_losses(1)
    assert plt.gcf().axes[1].get_title().startswith('prediction (')
    learn.data.show_batch(3)
    assert [ax.get_title() for ax in plt.gcf().axes if ax.images] == ['input', 'target']*3
    plt.close('all')

def test_a_set_without_targets_is_shown_without_them(folder):
    import matplotlib.pyplot as plt
    labeled = split(folder).transform([ResizeBicubic(32), Damage(4)])
    learn = learner(folder, labeled.add_test(sorted(folder.glob('*.png'))[:2]).databunch(bs=4))
    learn.show_results(2, 'test')
    assert [ax.get_title() for ax in plt.gcf().axes if ax.images] == ['input', 'prediction']*2
    plt.close('all')

def test_the_answer_is_a_picture_and_the_worst_are_found(folder):
    learn = learner(folder)
    label, target, probs = learn.predict(folder/'00.png')
    assert isinstance(label, Image.Image) and label.size == (40, 32) and target.shape == (3, 32, 40)
    worst = learn.top_losses(3)
    assert list(worst['prediction']) == ['a picture of 40×32']*3 and worst['loss'].is_monotonic_decreasing

def test_what_is_exported_restores_alike_without_damage(folder, tmp_path):
    learn = learner(folder)
    with learn.quiet(): learn.fit(1)
    learn.export(tmp_path/'r.pth')
    own = load_predictor(tmp_path/'r.pth')
    a, b = learn.predict(folder/'03.png').target, own.predict(folder/'03.png').target
    assert_close(a, b, 1e-6)
    assert own.item_data.y.covers and isinstance(load_learner(tmp_path/'r.pth').loss_func, AbsoluteLoss)

def test_any_size_is_restored_whole(folder):
    own = learner(folder).predictor()
    im = Image.fromarray(picture(np.random.RandomState(5), 30, 70))
    assert restore(own, im).size == (70, 30) and restore(own, im, scale=2.5).size == (175, 75)
    file = folder/'00.png'
    for item in (file, file.read_bytes(), np.asarray(im), im.convert('P'), im.convert('L')):
        assert restore(own, item, 2).mode == 'RGB'
    assert_close(torch.tensor(np.asarray(restore(own, im)).astype(float)),
                 torch.tensor(np.asarray(im).astype(float)), 1.01)   # an untrained one changes nothing

def test_what_cannot_restore_is_refused(folder):
    learn = learner(folder)
    with pytest.raises(TypeError, match='predictor'): restore(learn, folder/'00.png')
    x = torch.rand(8, 1, 28, 28)
    plain = create_restorer(make_data((x, x), (x, x), bs=4), tiny_net, pretrained=False,
                            loss_func=SquaredLoss())
    with pytest.raises(ValueError, match='PictureList'): restore(plain.predictor(), folder/'00.png')

def test_tta_is_the_mean_over_both_ways(folder):
    learn = learner(folder)
    with learn.quiet(): learn.fit(1, 0.01)
    mean, targets = learn.tta()
    plain, _ = learn.get_preds()
    xb = torch.stack([x for x, _ in (learn.data.valid_ds[i] for i in range(4))])/255
    with torch.no_grad(): flipped = learn.model.cpu().eval()(xb.flip(-1)).flip(-1)
    assert_close(mean, (plain + flipped)/2, 1e-5)
    assert targets.shape == mean.shape

# ---- comparing what a network sees

def test_a_gram_matrix_is_einsums():
    maps = torch.randn(2, 5, 4, 6)
    assert_close(gram(maps), torch.einsum('nchw,ndhw->ncd', maps, maps)/(5*4*6), 1e-6)

def feature_loss(**how): return FeatureLoss(tiny_net(), levels=1, **{'feature': 0.5, **how})

@pytest.mark.parametrize('c', [1, 3])
def test_the_feature_loss_is_zero_for_equal_pictures_and_each_reduction_is_of_items(c):
    torch.manual_seed(0)
    loss, x, y = feature_loss(style=2.), torch.rand(4, c, 24, 30), torch.rand(4, c, 24, 30)
    assert loss(x, x) == 0
    each = item_losses(loss, x, y)
    assert each.shape == (4,) and (each > 0).all()
    assert_close(loss(x, y), each.mean(), 1e-6)
    sums = feature_loss(style=2., reduction='sum')
    sums.arch = loss.arch
    assert_close(sums(x, y), each.sum(), 1e-5)

def test_the_feature_loss_is_a_sum_of_its_parts():
    torch.manual_seed(0)
    loss, x, y = feature_loss(style=3.), torch.rand(2, 3, 24, 24), torch.rand(2, 3, 24, 24)
    (a,), body = loss.maps(x), loss.arch.eval()
    assert_close(a, body[:1](x), 1e-6)   # what the stem makes, which the next halving takes
    def want(top, left):
        (a,), (b,) = (loss.maps(t[..., top:, left:]) for t in (x, y))
        return (x - y).abs().mean() + 0.5*(a - b).abs().mean() + 3*(gram(a) - gram(b)).abs().mean()
    assert_close(loss(x, y), want(0, 0), 1e-6)
    values = [want(top, left) for top in range(4) for left in range(4)]   # in training, from any pixel
    drawn = [loss(x.clone().requires_grad_(), y).detach() for _ in range(40)]
    near = [min(range(16), key=lambda k: abs(values[k] - v)) for v in drawn]
    for v, k in zip(drawn, near): assert_close(v, values[k], 1e-6)
    assert len(set(near)) > 8

def plain_net(*layers): return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

def test_a_network_with_nothing_to_compare_is_refused():
    "Its loss would be zero."
    net = plain_net(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
    x = torch.rand(2, 3, 24, 24)
    with pytest.raises(ValueError, match='deeper'): FeatureLoss(net, pixel=0, feature=1)(x, x.flip(0))

def test_a_first_layer_that_keeps_the_size_is_looked_at_whole():
    net = plain_net(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(),
                    nn.MaxPool2d(2))
    loss, x = FeatureLoss(net, levels=1), torch.rand(1, 3, 24, 24)
    assert [m.shape[-1] for m in loss.maps(x)] == [24]
    loss.levels = 9   # as many as there are
    assert [m.shape[-1] for m in loss.maps(x)] == [24, 12]

def test_random_states_stay_where_they_are_when_the_loss_makes_its_network():
    weights_file(PUBLISHED[efficientnet_lite0])
    loss, x = FeatureLoss(levels=1), torch.rand(1, 3, 24, 24)
    state = torch.get_rng_state()
    loss(x, x)
    assert_eq(torch.get_rng_state(), state)

def test_the_network_of_the_loss_does_not_learn_and_gives_a_gradient(folder):
    torch.manual_seed(0)
    loss = feature_loss()
    before = {k: v.clone() for k, v in loss.maps(torch.rand(1, 3, 24, 24)) and loss.eye(
        torch.rand(1, 3, 24, 24)).body.state_dict().items()}
    learn = learner(folder, loss_func=loss)
    with learn.quiet(): learn.fit(1, 0.01)
    for k, v in loss.eye(torch.rand(1, 3, 24, 24)).body.state_dict().items(): assert_eq(v.cpu(), before[k])
    assert any(p.abs().sum() > 0 for p in learn.model.head.last.parameters())

def test_a_restorer_with_a_feature_loss_is_exported(folder, tmp_path):
    learn = learner(folder, loss_func=FeatureLoss())
    learn.export(tmp_path/'f.pth')
    again = load_predictor(tmp_path/'f.pth')   # needs no weights of the loss
    assert again.predict(folder/'00.png').label.size == (40, 32)
    assert again.loss_func.levels == 3

def test_the_published_network_sees_normalised_pictures():
    weights_file(PUBLISHED[efficientnet_lite0])
    loss, x = FeatureLoss(levels=2), torch.rand(1, 3, 32, 32)
    maps = loss.maps(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 16, 16), (24, 8, 8)]
    eye = loss.eye(x)
    assert_close(maps[0], eye.body[:2]((x*255 - 127)/128), 1e-4)

def test_pictures_of_two_shapes_are_not_compared():
    x = torch.rand(1, 3, 24, 25)
    with pytest.raises(ValueError, match='shape'): feature_loss()(x, x[..., 1:])
    with pytest.raises(ValueError, match='levels'): FeatureLoss(levels=0)
