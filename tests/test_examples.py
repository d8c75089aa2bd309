"""The scripts in examples/ do what their help says."""
import json, os, re, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.launch

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT/'examples').glob('*.py'))

def run(name, *args, before=(), **env):
    command = [sys.executable, *map(str, before), str(ROOT/'examples'/name), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, encoding='utf-8', timeout=600,
                          env={**os.environ, 'OMP_NUM_THREADS': '1', 'EXP_DATA_MIRROR': '',
                               'PYTHONPATH': str(ROOT), 'PYTHONIOENCODING': 'utf-8', **env})

@pytest.mark.parametrize('path', SCRIPTS, ids=lambda p: p.stem)
def test_an_example_says_what_it_is_for_and_how_it_is_set(path):
    done = run(path.name, '--help')
    assert (done.returncode == 0
            and path.read_text(encoding='utf-8').splitlines()[0].strip('"')[:30] in done.stdout), done.stderr
    assert '--epochs' in done.stdout and '--lr' in done.stdout and '--seed' in done.stdout

@pytest.mark.parametrize('path', SCRIPTS, ids=lambda p: p.stem)
def test_an_example_refuses_an_option_that_there_is_not(path):
    done = run(path.name, '--epoch_s', 1)
    assert done.returncode == 2 and 'unrecognized arguments' in done.stderr

def test_mnist_trains_and_goes_on_from_its_checkpoint(tmp_path):
    whole, file = run('train_mnist.py', '--epochs', 2, '--hidden', 20, '--checkpoint',
                      tmp_path/'whole.pth'), tmp_path/'whole.pth'
    assert whole.returncode == 0, whole.stderr
    reached = float(re.search(r'([\d.]+) %', whole.stdout.splitlines()[-1])[1])
    assert reached > 93
    # a finished fit is not trained again
    again = run('train_mnist.py', '--epochs', 2, '--hidden', 20, '--checkpoint', file)
    assert again.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1], again.stderr

def test_fashion_trains_with_each_seed_and_ends_with_the_mean():
    done = run('train_fashion.py', '--epochs', 1, '--images', 2_000, '--seed', 1, 2, '--held-out')
    assert done.returncode == 0, done.stderr
    *each, mean = (float(v) for v in re.findall(r'([\d.]+) %', done.stdout))
    assert len(each) == 2 and abs(mean - sum(each)/2) < 0.02 and min(each) > 50
    assert done.stdout.splitlines()[-1].endswith('of 10,000 valid images, mean of 2 seeds')

SMALL = '--epochs', 1, '--size', 28, '--width', 0.1, '--bs', 64

def results(path): return [json.loads(line) for line in path.read_text().splitlines()]

def test_imagenette_trains_on_the_stand_in_keeps_its_results_and_exports(tmp_path):
    kept, env = ('--results', tmp_path/'results.jsonl'), dict(EXP_DATA=str(tmp_path/'cache'))
    done = run('train_imagenette.py', *SMALL, *kept, '--grow', '14:0.5', '--export', tmp_path/'model.pth',
               **env)
    assert done.returncode == 0, done.stderr
    assert re.search(r'[\d.]+ % of 1,000 validation images \(stand-in\)', done.stdout), done.stdout
    assert (tmp_path/'model.pth').is_file()
    done = run('train_imagenette.py', *SMALL, *kept, '--grow', '--arch', 'resnet18', '--opt', 'sgd',
               '--mixup', 0.4, '--ema', 0.9, '--precision', 'bf16', '--holdout', 500, '--smoothing', 0, **env)
    assert done.returncode == 0, done.stderr
    first, second = results(tmp_path/'results.jsonl')
    assert first['data'] == 'stand-in' and first['images'] == 1000 and first['grow'] == [[14, 0.5]]
    assert second['arch'] == 'resnet18' and second['images'] == 500 and second['mixup'] == 0.4

def test_imagenette_trains_with_two_processes(tmp_path):
    done = run('train_imagenette.py', *SMALL, '--results', tmp_path/'results.jsonl', '--grow',
               before=('-m', 'torch.distributed.run', '--nproc-per-node', 2), EXP_DATA=str(tmp_path/'cache'))
    assert done.returncode == 0, done.stderr
    assert [r['processes'] for r in results(tmp_path/'results.jsonl')] == [2]

def test_multilabel_trains_on_the_stand_in_and_exports(tmp_path):
    done = run('train_multilabel.py', '--epochs', 1, '--size', 32, '--bs', 32, '--out', tmp_path,
               EXP_DATA=str(tmp_path/'cache'))
    assert done.returncode == 0, done.stderr
    said = re.search(r'F2 ([\d.]+) on 200 pictures \(stand-in\)', done.stdout)
    assert float(said[1]) > 0.5 and (tmp_path/'model.pth').is_file() and (tmp_path/'tags.pth').is_file()

def test_multilabel_trains_on_a_folder_of_one_s_own(tmp_path):
    import numpy as np
    from PIL import Image
    (tmp_path/'my pictures').mkdir()
    rng, rows = np.random.default_rng(0), ['id;what;by']
    for i in range(20):
        tags = [t for k, t in enumerate(('red sky', 'Wasser')) if i >> k & 1]
        pixels = rng.integers(0, 90, (40, 50 + i, 3)).astype(np.uint8)
        if 'red sky' in tags: pixels[:20, :, 0] += 150
        Image.fromarray(pixels).save(tmp_path/'my pictures'/f'{i}.png')
        rows.append(f'{i};{" | ".join(tags)};me')
    (tmp_path/'odd.csv').write_text('\n'.join(rows), encoding='utf-8')
    done = run('train_multilabel.py', tmp_path, '--csv', 'odd.csv', '--sep', ';', '--delim', '|', '--folder',
               'my pictures', '--suffix', '.png', '--label-col', 'what', '--epochs', 1, '--size', 32,
               '--bs', 8, '--scratch', '--upright', '--out', tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'red sky' in done.stdout and 'on 4 pictures (own pictures)' in done.stdout
    import exp.multilabel, exp.transfer   # noqa: E401, F401
    from exp.inference import load_predictor
    answer = load_predictor(tmp_path/'tags.pth').predict(tmp_path/'my pictures'/'3.png')
    assert set(answer.label) <= {'red sky', 'Wasser'}

def test_keypoints_learns_from_the_stand_in_and_exports(tmp_path):
    done = run('train_keypoints.py', '--arch', 'small', '--size', 48, '--epochs', 1, '--animals', 10,
               '--export', tmp_path/'mice.pth')
    assert done.returncode == 0, done.stderr
    assert '40 pictures to learn from, 10 held out; points: snout, left_ear' in done.stdout, done.stdout
    assert re.search(r'[\d.]+ px of 48 on 10 pictures \(stand-in\)', done.stdout)
    assert (tmp_path/'mice.pth').is_file()

def test_keypoints_learns_from_a_folder_of_ones_own(tmp_path):
    rows = ['file;nose_x;nose_y;left_eye_x;left_eye_y']
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path/f'{i:02}.png')
        rows.append(f'{i:02}.png;{10 + i};20;;' if i % 3 else f'{i:02}.png;{10 + i};20;30;5')
    (tmp_path/'table.csv').write_text('\n'.join(rows))
    done = run('train_keypoints.py', tmp_path, '--table', 'table.csv', '--sep', ';', '--arch', 'small',
               '--size', 32, 48, '--epochs', 1, '--bs', 4, '--export', tmp_path/'mine.pth')
    assert done.returncode == 0, done.stderr
    assert '16 pictures to learn from, 4 held out; points: nose, left_eye' in done.stdout, done.stdout
    assert '(yours)' in done.stdout and (tmp_path/'mine.pth').is_file()

def squares(folder, n=15):
    "Pictures with a red or a green square each, but for the last; and (file, label, x1, y1, x2, y2) rows."
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        pixels, (x, y) = rng.integers(0, 60, (48, 60, 3)).astype(np.uint8), rng.integers(0, 28, 2).tolist()
        if i < n - 1:
            pixels[y:y + 18, x:x + 18, i % 2] += 160
            rows.append((f'{i:02}.png', ('red', 'green')[i % 2], x, y, x + 18, y + 18))
        Image.fromarray(pixels).save(folder/f'{i:02}.png')
    return rows

def write_coco(folder, rows, n=15):
    names = ['red', 'green']
    (folder/'boxes.json').write_text(json.dumps({
        'images': [{'id': i, 'file_name': f'{i:02}.png'} for i in range(n)],
        'categories': [{'id': i, 'name': name} for i, name in enumerate(names)],
        'annotations': [{'image_id': int(f[:2]), 'category_id': names.index(label),
                         'bbox': [x1, y1, x2 - x1, y2 - y1]} for f, label, x1, y1, x2, y2 in rows]}))

def write_voc(folder, rows, n=15):
    by_file = {f: row for f, *row in rows}
    for i in range(n):
        label, *box = by_file.get(f'{i:02}.png', ('', 0, 0, 0, 0))
        sides = zip(('xmin', 'ymin', 'xmax', 'ymax'), (box[0] + 1, box[1] + 1, *box[2:]))
        thing = ''.join(f'<{k}>{v}</{k}>' for k, v in sides)
        thing = f'<object><name>{label}</name><bndbox>{thing}</bndbox></object>' if label else ''
        (folder/f'{i:02}.xml').write_text(f'<annotation>{thing}</annotation>')

def write_csv(folder, rows, n=15):
    text = [','.join(map(str, row)) for row in [('file', 'label', 'xmin', 'ymin', 'xmax', 'ymax'), *rows]]
    (folder/'boxes.csv').write_text('\n'.join([*text, f'{n - 1:02}.png,,,,,']))

@pytest.mark.parametrize('write,arch', [(write_coco, 'tiny'), (write_voc, 'yolo'), (write_csv, 'two')])
def test_detection_learns_from_a_folder_of_ones_own(tmp_path, write, arch):
    write(tmp_path, squares(tmp_path))
    done = run('train_detection.py', tmp_path, '--arch', arch, '--size', 48, '--epochs', 1, '--bs', 4,
               '--export', tmp_path/'mine.pth')
    assert done.returncode == 0, done.stderr
    assert '12 pictures to learn from, 3 held out; 2 classes' in done.stdout, done.stdout
    assert '(yours)' in done.stdout and (tmp_path/'mine.pth').is_file()
    import exp.box_files, exp.detection, exp.two_stage   # noqa: E401, F401
    from exp.inference import load_predictor
    assert isinstance(load_predictor(tmp_path/'mine.pth').predict(tmp_path/'03.png').label, list)

def test_detection_learns_from_the_stand_in_and_exports(tmp_path):
    done = run('train_detection.py', '--arch', 'tiny', '--size', 64, '--epochs', 1, '--images', 60,
               '--export', tmp_path/'seven.pth')
    assert done.returncode == 0, done.stderr
    assert '50 pictures to learn from, 10 held out; 1 classes: seven' in done.stdout, done.stdout
    assert re.search(r'AP50 [\d.]+, AP [\d.]+, .* on 10 pictures \(stand-in\)', done.stdout)
    assert (tmp_path/'seven.pth').is_file()

def test_segmentation_trains_on_streets_and_on_a_folder_and_exports(tmp_path):
    small = ('--epochs', 1, 1, '--size', 32, 48, '--arch', 'resnet18', '--scratch', '--export',
             tmp_path/'a.pth')
    done = run('train_segmentation.py', *small, '--images', 24, '--opt', 'adam')
    assert done.returncode == 0, done.stderr
    assert re.search(r'[\d.]+ % of the pixels right, mean IoU [\d.]+, on 4 validation images', done.stdout)
    from exp.segmentation import write_streets
    folder = write_streets(tmp_path/'own', 12, 2, (32, 48))
    (folder/'valid.txt').unlink()
    done = run('train_segmentation.py', folder, *small, '--void', 255, '--balance', 0, '--half')
    assert done.returncode == 0, done.stderr
    assert 'on 2 validation images' in done.stdout and (tmp_path/'a.pth').is_file()

def test_segmentation_takes_masks_in_black_and_white(tmp_path):
    from PIL import Image
    from exp.segmentation import write_streets
    folder = write_streets(tmp_path/'own', 12, 2, (32, 48))
    (folder/'codes.txt').write_text('other\nroad\n')
    for p in (folder/'masks').iterdir(): Image.open(p).point(lambda i: 255*(i == 1), 'L').save(p)
    done = run('train_segmentation.py', folder, '--black-white', '--epochs', 0, 1, '--size', 32, 48, '--arch',
               'resnet18', '--scratch', '--export', tmp_path/'a.pth')
    assert done.returncode == 0, done.stderr
    assert re.search(r'road +[\d.]+', done.stdout)

def test_segmentation_names_a_number_that_is_no_code(tmp_path):
    from exp.segmentation import write_streets
    done = run('train_segmentation.py', write_streets(tmp_path/'own', 12, 2, (32, 48)), '--scratch')
    assert done.returncode == 1 and '255' in done.stderr and 'void' in done.stderr
