import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert, generalized_box_iou

from detr_panoptic_d2.modeling.matcher import HungarianMatcher, Targets, generalized_iou

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


def plain_pairs(logits, boxes, labels, target_boxes, weights):
    """The cheapest pairs of one image by the formula of the paper, with torchvision's GIoU."""
    corners = [box_convert(x.double(), "cxcywh", "xyxy") for x in (boxes, target_boxes)]
    cost = -weights[0] * logits.double().softmax(-1)[:, labels]
    cost += weights[1] * torch.cdist(boxes.double(), target_boxes.double(), p=1)
    rows, columns = linear_sum_assignment(cost - weights[2] * generalized_box_iou(*corners))
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def found_pairs(matches, layer, image):
    mine = matches.image == image
    query, target = matches.query[layer][mine].tolist(), matches.target[layer][mine].tolist()
    return list(zip(query, target, strict=True))


@pytest.mark.parametrize("weights", [(1, 5, 2), (2, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_pairs_are_the_cheapest_of_each_image_and_layer(weights):
    counts = [3, 0, 1, 4, 5]
    none = HungarianMatcher()(*make_problem(layers=2, queries=3, counts=[0, 0]))
    assert none.query.shape == none.target.shape == (2, 0) and none.image.dtype == torch.long
    logits, boxes, targets = make_problem(layers=2, queries=4, counts=counts)
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
            image = (logits[layer, b], boxes[layer, b])
            labels, target_boxes = targets.labels[b, :count], targets.boxes[b, :count]
            expected = plain_pairs(*image, labels, target_boxes, weights)
            assert found_pairs(matches, layer, b) == expected, f"layer {layer}, image {b}"


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


def test_boxes_without_area_have_finite_giou_and_gradients():
    """torchvision gives NaN for two of them."""
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.0, 0.3], [0.1, 0.1, 0.0, 0.0]])
    a, b = boxes.clone().requires_grad_(), boxes.clone().requires_grad_()
    giou = generalized_iou(a[:, None], b)
    gradients = torch.autograd.grad(giou.sum(), (a, b))
    assert all(x.isfinite().all() for x in (giou, *gradients))
