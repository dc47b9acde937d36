from itertools import permutations

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou

from detr_panoptic_d2.modeling import HungarianMatcher
from detr_panoptic_d2.modeling.matcher import Targets, generalized_iou

CLASSES = 4


def make_problem(layers, queries, counts, seed=0):
    """Random logits L x B x N x (K + 1), boxes L x B x N x 4 and targets.

    Rows of padding are made the best targets of all: they repeat what query 0 predicts.
    """
    generator = torch.Generator().manual_seed(seed)
    images, most = len(counts), max(counts, default=0)
    logits = torch.randn(layers, images, queries, CLASSES + 1, generator=generator) * 2
    boxes = torch.rand(layers, images, queries, 4, generator=generator) * 0.5 + 0.2
    labels = torch.randint(CLASSES, (images, most), generator=generator)
    truth = torch.rand(images, most, 4, generator=generator) * 0.5 + 0.2
    for b, count in enumerate(counts):
        labels[b, count:] = logits[0, b, 0, :-1].argmax()
        truth[b, count:] = boxes[0, b, 0]
    return logits, boxes, Targets(labels, truth, list(counts))


def plain_cost(logits, boxes, label, truth, weights):
    """Cost of one query and one target, with torchvision's GIoU."""
    cost_class, cost_bbox, cost_giou = weights
    corners = box_convert(torch.stack([boxes, truth]).double(), "cxcywh", "xyxy")
    giou = generalized_box_iou(corners[:1], corners[1:]).item()
    distance = sum(abs(a - b) for a, b in zip(boxes.tolist(), truth.tolist(), strict=True))
    probability = logits.double().softmax(-1)[label].item()
    return -cost_class * probability + cost_bbox * distance - cost_giou * giou


def best_pairs(cost):
    """The cheapest one-to-one pairs by trying all of them; ``cost``: N lists of T numbers."""
    queries, count = len(cost), len(cost[0])
    if count <= queries:
        choices = (
            [(q, t) for t, q in enumerate(chosen)] for chosen in permutations(range(queries), count)
        )
    else:
        choices = (list(enumerate(chosen)) for chosen in permutations(range(count), queries))
    return set(min(choices, key=lambda pairs: sum(cost[q][t] for q, t in pairs)))


def found_pairs(matches, layer, image):
    mine = matches.image == image
    query, target = matches.query[layer][mine].tolist(), matches.target[layer][mine].tolist()
    return list(zip(query, target, strict=True))


@pytest.mark.parametrize("weights", [(1, 5, 2), (2, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_finds_what_trying_all_assignments_finds(seed, weights):
    counts = [3, 0, 1, 4, 5]
    logits, boxes, targets = make_problem(layers=2, queries=4, counts=counts, seed=seed)
    if weights == (2, 0, 0):
        # Only the class counts: different labels, or assignments would cost the same.
        targets.labels[:] = torch.arange(5) % CLASSES
        counts = targets.counts[:] = [3, 0, 1, 4, 4]
    matches = HungarianMatcher(*weights)(logits, boxes, targets)
    kept = [min(count, 4) for count in counts]
    assert matches.counts == kept
    assert matches.image.tolist() == [b for b, n in enumerate(kept) for _ in range(n)]
    assert matches.query.shape == matches.target.shape == (2, sum(kept))
    for layer in range(2):
        for b, count in enumerate(counts):
            pairs = found_pairs(matches, layer, b)
            if not count:
                assert pairs == []
                continue
            cost = [
                [
                    plain_cost(
                        logits[layer, b, q],
                        boxes[layer, b, q],
                        targets.labels[b, t],
                        targets.boxes[b, t],
                        weights,
                    )
                    for t in range(count)
                ]
                for q in range(4)
            ]
            assert len(pairs) == kept[b]
            assert set(pairs) == best_pairs(cost), f"layer {layer}, image {b}"


def test_layers_are_matched_on_their_own():
    logits, boxes, targets = make_problem(layers=3, queries=6, counts=[4, 3])
    together = HungarianMatcher()(logits, boxes, targets)
    for layer in range(3):
        part = slice(layer, layer + 1)
        alone = HungarianMatcher()(logits[part], boxes[part], targets)
        assert torch.equal(together.query[layer], alone.query[0])
        assert torch.equal(together.target[layer], alone.target[0])
    assert any(set(found_pairs(together, i, 0)) != set(found_pairs(together, 0, 0)) for i in (1, 2))


@pytest.mark.parametrize("counts", [[0], [0, 0, 0]])
def test_no_targets_at_all(counts):
    matches = HungarianMatcher()(*make_problem(layers=2, queries=3, counts=counts))
    assert matches.counts == counts
    assert matches.image.shape == (0,) and matches.image.dtype == torch.long
    assert matches.query.shape == matches.target.shape == (2, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["logits", "boxes"])
def test_a_broken_prediction_does_not_crash(where, value):
    """The loss is NaN then and the trainer says so; a crash of scipy would hide that."""
    logits, boxes, targets = make_problem(layers=2, queries=4, counts=[3, 2])
    {"logits": logits, "boxes": boxes}[where][0, 0, 1] = value
    matches = HungarianMatcher()(logits, boxes, targets)
    assert matches.counts == [3, 2]
    for layer in range(2):
        for b, count in enumerate(matches.counts):
            query, target = zip(*found_pairs(matches, layer, b), strict=True)
            assert len(set(query)) == count and sorted(target) == list(range(count))
    expected = HungarianMatcher()(logits[1:], boxes[1:], targets)
    assert torch.equal(matches.query[1], expected.query[0])


# Generalized IoU


def corners(*boxes):
    """(x0, y0, x1, y1) to (cx, cy, w, h), in double precision."""
    return box_convert(torch.tensor(boxes, dtype=torch.float64), "xyxy", "cxcywh")


def test_giou_equals_torchvision_with_gradients():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 40, 4, generator=generator, dtype=torch.float64)
    # Boxes without width, without height, inside each other, far away.
    a[0, 2], a[1, 3], b[2, 2:], a[3, 2:] = 0, 0, 0, 0
    a[4], b[4] = torch.tensor([0.5, 0.5, 0.2, 0.2]), torch.tensor([0.5, 0.5, 0.8, 0.9])
    a[5], b[5] = torch.tensor([0.1, 0.1, 0.1, 0.1]), torch.tensor([0.9, 0.9, 0.1, 0.1])
    a.requires_grad_()
    b.requires_grad_()
    ours = generalized_iou(a[:, None], b)
    xyxy = [box_convert(x, "cxcywh", "xyxy") for x in (a, b)]
    expected = generalized_box_iou(*xyxy)
    # torchvision gives NaN for pairs without any area: see below.
    areas = [x.detach()[:, 2:].prod(-1) for x in (a, b)]
    real = (areas[0][:, None] + areas[1]) > 0
    assert real.sum() > 1500 and expected[real].isfinite().all()
    torch.testing.assert_close(ours[real], expected[real])
    grads = torch.autograd.grad(ours[real].sum(), (a, b))
    references = torch.autograd.grad(expected[real].sum(), (a, b))
    rows = [(areas[0] > 0), (areas[1] > 0)]
    for grad, reference, row in zip(grads, references, rows, strict=True):
        assert grad.isfinite().all()
        torch.testing.assert_close(grad[row], reference[row])
