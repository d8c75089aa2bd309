"""Boxes beside plain loops, and beside torchvision's kernels where they import: suppression of 1,000 and
10,000 boxes, assignment of 5,444 anchors to 50 truths for each of 32 images, decoding of their offsets; in
turn, as medians.

    python benchmarks/boxes.py
    python benchmarks/boxes.py --threads 1 --clock cpu    on a busy machine: processor seconds
"""
import argparse, statistics, time

import torch

from exp.boxes import assign_anchors, box_iou, decode_boxes, make_anchors, nms

SSD = (32, (0.2, 0.272)), (16, (0.37, 0.447)), (8, (0.54, 0.619)), (4, (0.71, 0.79)), (1, (0.88, 0.961))

def random_boxes(*shape, least=0.02, most=0.12):
    corner = torch.rand(*shape, 2)*(1 - most)
    return torch.cat([corner, corner + least + torch.rand(*shape, 2)*(most - least)], -1)

def nms_plainly(boxes, scores, thresh=0.5):
    "A step for each box that stays, as D2L's loop; the overlaps with what is left in one go."
    order, kept = scores.argsort(descending=True), []
    while len(order):
        kept.append(order[0])
        iou = box_iou(boxes[order[:1]], boxes[order[1:]])[0]
        order = order[1:][iou <= thresh]
    return torch.stack(kept)

def assign_plainly(anchors, truths, thresh=0.5):
    "D2L's loop: for each image a step for each truth."
    rows = []
    for boxes in truths:
        iou = box_iou(anchors, boxes)
        best, which = iou.max(1)
        which[best < thresh] = -1
        for _ in boxes:
            a, t = divmod(int(iou.argmax()), len(boxes))
            which[a] = t
            iou[a], iou[:, t] = -1, -1
        rows.append(which)
    return torch.stack(rows)

def decode_plainly(anchors, offsets):
    "An image after the other."
    rows = []
    for o in offsets:
        size = anchors[:, 2:] - anchors[:, :2]
        center = (anchors[:, 2:] + anchors[:, :2])/2 + o[:, :2]/10*size
        size = (o[:, 2:]/5).exp()*size
        rows.append(torch.cat([center - size/2, center + size/2], 1))
    return torch.stack(rows)

def theirs():
    "torchvision's suppression; None without the package."
    try: from torchvision.ops import nms
    except (ImportError, RuntimeError): return None
    return lambda boxes, scores: nms(boxes, scores, 0.5)

def race(title, rivals, args, rounds, clock):
    "Each rival in turn, its median, and the median of its paired ratios to the first."
    outs = {name: f(*args) for name, f in rivals.items()}   # warm
    first = next(iter(outs.values()))
    equal = all(o.shape == first.shape and torch.allclose(o.double(), first.double(), atol=1e-5)
                for o in outs.values())
    times = {name: [] for name in rivals}
    for i in range(rounds):
        for name, f in list(rivals.items())[::1 if i % 2 else -1]:
            start = clock()
            f(*args)
            if args[0].is_cuda: torch.cuda.synchronize()
            times[name].append(clock() - start)
    print(f'\n{title}; the same answers: {equal}')
    base = next(iter(times.values()))
    for name, ts in times.items():
        ratio = statistics.median(t/b for t, b in zip(ts, base))
        print(f'{name:14} {1000*statistics.median(ts):9.2f} ms   ratio {ratio:.2f}')

if __name__ == '__main__':
    how = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(description=__doc__, **how)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--threads', type=int)
    parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall')
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.clock == 'wall' else time.process_time
    torch.manual_seed(0)
    print(f'{torch.get_num_threads()} threads, {args.device}; torchvision '
          + ('imports' if theirs() else 'does not import here'))
    for n in (1000, 10_000):
        boxes, scores = (t.to(args.device) for t in (random_boxes(n), torch.rand(n)))
        rivals = {'exp': nms, 'loop': nms_plainly} | ({'torchvision': theirs()} if theirs() else {})
        race(f'suppression of {n:,} boxes', rivals, (boxes, scores), args.rounds, clock)
    anchors = torch.cat([make_anchors(k, s, (1, 2, 0.5)) for k, s in SSD]).to(args.device)
    truths = random_boxes(32, 50, least=0.05, most=0.3).to(args.device)
    race(f'assignment of {len(anchors):,} anchors to 50 truths, 32 images',
         {'exp': assign_anchors, 'loop': assign_plainly}, (anchors, truths), args.rounds, clock)
    offsets = torch.randn(32, len(anchors), 4, device=args.device)
    race(f'decoding of 32×{len(anchors):,} offsets',
         {'exp': decode_boxes, 'loop': decode_plainly}, (anchors, offsets), args.rounds, clock)
