import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou

from detr_panoptic_d2.modeling import HungarianMatcher, SetCriterion
from detr_panoptic_d2.modeling.matcher import Matches, Targets

CLASSES, QUERIES, LAYERS = 4, 5, 3
CANVAS, GRID = (24, 40), (6, 10)
WEIGHTS = {
    "loss_ce": 1.5,
    "loss_bbox": 5.0,
    "loss_giou": 2.0,
    "loss_mask": 0.7,
    "loss_dice": 3.0,
}
SIZES = [(24, 33), (17, 40), (20, 20)]


@pytest.fixture
def criterion():
    return SetCriterion(
        num_classes=CLASSES, matcher=HungarianMatcher(), weights=WEIGHTS, no_object_weight=0.3
    )


@pytest.fixture
def predictions():
    """logits L x B x N x (K + 1) and boxes L x B x N x 4 of three images, in double precision."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(LAYERS, 3, QUERIES, CLASSES + 1, generator=generator) * 2
    boxes = torch.rand(LAYERS, 3, QUERIES, 4, generator=generator) * 0.5 + 0.2
    return logits.requires_grad_(), boxes.requires_grad_()


@pytest.fixture
def targets():
    """Two targets, none and three; what lies behind them is rubbish that must not be read."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (3, 3), generator=generator)
    boxes = torch.rand(3, 3, 4, generator=generator) * 0.5 + 0.2
    labels[0, 2], labels[1] = CLASSES - 1, CLASSES - 1
    boxes[0, 2], boxes[1] = float("nan"), float("nan")
    return Targets(labels, boxes, [2, 0, 3])


@pytest.fixture
def matches():
    """Pairs written by hand, other ones in every layer."""
    return Matches(
        image=torch.tensor([0, 0, 2, 2, 2]),
        query=torch.tensor([[0, 3, 1, 2, 4], [4, 1, 0, 1, 2], [2, 4, 0, 3, 4]]),
        target=torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 1, 0], [1, 0, 2, 0, 1]]),
        counts=[2, 0, 3],
    )


@pytest.fixture
def masks():
    """Logits of the five pairs and the masks of the three images."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(5, *GRID, generator=generator) * 2
    truth = [
        torch.rand(n, *size, generator=generator) > 0.6
        for n, size in zip((2, 0, 3), SIZES, strict=True)
    ]
    truth[2][0] = False
    truth[2][1] = True
    return logits.requires_grad_(), truth


def pairs_of(matches, layer):
    """(image, query, target) of a layer."""
    columns = (matches.image, matches.query[layer], matches.target[layer])
    return list(zip(*(c.tolist() for c in columns), strict=True))


def plain_box_losses(logits, boxes, targets, matches, layer, no_object_weight=0.3):
    """Unweighted losses of one layer, query by query and pair by pair."""
    pairs = pairs_of(matches, layer)
    label_of = {(b, q): targets.labels[b, t].item() for b, q, t in pairs}
    loss, weight_sum = 0.0, 0.0
    for b in range(logits.shape[1]):
        for q in range(logits.shape[2]):
            label = label_of.get((b, q), CLASSES)
            weight = 1.0 if label < CLASSES else no_object_weight
            row = logits[layer, b, q]
            loss = loss + weight * (torch.logsumexp(row, 0) - row[label])
            weight_sum += weight
    num_boxes = max(1, sum(targets.counts))
    l1, giou = 0.0, 0.0
    for b, q, t in pairs:
        ours, truth = boxes[layer, b, q], targets.boxes[b, t]
        l1 = l1 + (ours - truth).abs().sum() / num_boxes
        a, c = (box_convert(x[None], "cxcywh", "xyxy") for x in (ours, truth))
        giou = giou + (1 - generalized_box_iou(a, c)[0, 0]) / num_boxes
    return {"loss_ce": loss / weight_sum, "loss_bbox": l1, "loss_giou": giou}


def plain_mask_losses(logits, truth, canvas, num_boxes):
    """Unweighted losses of a list of pairs (logits h x w, mask), pixel formulas in full."""
    focal, dice = 0.0, 0.0
    for row, mask in zip(logits, truth, strict=True):
        x = F.interpolate(row[None, None], size=canvas, mode="bilinear", align_corners=False)
        p = 1 / (1 + torch.exp(-x[0, 0].double()))
        y = torch.zeros(canvas, dtype=torch.float64)
        y[: mask.shape[0], : mask.shape[1]] = mask
        foreground = -0.25 * (1 - p) ** 2 * torch.log(p)
        background = -0.75 * p**2 * torch.log(1 - p)
        focal = focal + (y * foreground + (1 - y) * background).mean()
        dice = dice + 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
    return {"loss_mask": focal / num_boxes, "loss_dice": dice / num_boxes}


def assert_losses(losses, expected, inputs):
    """The weighted losses and the gradients of each of them."""
    assert losses.keys() == expected.keys()
    for name, reference in expected.items():
        reference = reference * WEIGHTS["_".join(name.split("_")[:2])]
        torch.testing.assert_close(
            losses[name].double(), reference.double(), rtol=1e-5, atol=1e-6, msg=name
        )
        for x in inputs:
            ours, theirs = (
                torch.autograd.grad(
                    v, x, retain_graph=True, allow_unused=True, materialize_grads=True
                )[0]
                for v in (losses[name], reference)
            )
            assert ours.isfinite().all(), name
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


# Class and boxes


def test_box_losses_are_the_plain_formulas_in_every_layer(criterion, predictions, targets, matches):
    expected = {}
    for layer in range(LAYERS):
        suffix = "" if layer == LAYERS - 1 else f"_{layer}"
        plain = plain_box_losses(*predictions, targets, matches, layer)
        expected |= {name + suffix: loss for name, loss in plain.items()}
    losses = criterion.box_losses(*predictions, targets, matches)
    assert set(losses) == {
        f"loss_{kind}{suffix}" for kind in ("ce", "bbox", "giou") for suffix in ("", "_0", "_1")
    }
    assert_losses(losses, expected, predictions)


def test_more_targets_than_queries_count_all_targets(criterion):
    """As in the official code, unmatched targets are in the divisor of the box losses."""
    logits = torch.zeros(1, 1, 2, CLASSES + 1)
    boxes = torch.full((1, 1, 2, 4), 0.5)
    targets = Targets(torch.zeros(1, 5, dtype=torch.long), torch.full((1, 5, 4), 0.4), [5])
    matches = criterion.matcher(logits, boxes, targets)
    losses = criterion.box_losses(logits, boxes, targets, matches)
    assert losses["loss_bbox"].item() == pytest.approx(5.0 * 2 * 4 * 0.1 / 5)
    assert losses["loss_ce"].item() == pytest.approx(1.5 * math.log(CLASSES + 1))


def test_without_targets_only_the_class_is_taught(criterion, predictions):
    targets = Targets(torch.zeros(3, 0, dtype=torch.long), torch.zeros(3, 0, 4), [0, 0, 0])
    logits, boxes = predictions
    matches = criterion.matcher(logits, boxes, targets)
    losses = criterion.box_losses(logits, boxes, targets, matches)
    no_object = F.cross_entropy(logits[-1].flatten(0, 1), torch.full((3 * QUERIES,), CLASSES))
    torch.testing.assert_close(losses["loss_ce"], 1.5 * no_object)
    for name, loss in losses.items():
        assert loss.isfinite() and (loss == 0) == ("ce" not in name), name
    sum(losses.values()).backward()
    assert logits.grad.isfinite().all() and logits.grad.any()
    assert boxes.grad.isfinite().all() and not boxes.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_give_full_precision_losses(
    criterion, predictions, targets, matches, dtype
):
    half = [x.detach().to(dtype) for x in predictions]
    losses = criterion.box_losses(*half, targets, matches)
    expected = criterion.box_losses(*(x.float() for x in half), targets, matches)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name])


# Masks


def test_mask_losses_are_the_plain_formulas(criterion, masks, targets, matches):
    logits, truth = masks
    wanted = [truth[b][t] for b, _, t in pairs_of(matches, -1)]
    expected = plain_mask_losses(logits, wanted, CANVAS, num_boxes=5)
    losses = criterion.mask_losses(logits, truth, CANVAS, targets, matches)
    assert_losses(losses, expected, [logits])


def test_images_without_targets_need_no_masks(criterion, masks, targets, matches):
    logits, truth = masks
    expected = criterion.mask_losses(logits, truth, CANVAS, targets, matches)
    losses = criterion.mask_losses(logits, [truth[0], None, truth[2]], CANVAS, targets, matches)
    assert losses == expected


def test_padding_counts_as_background(criterion, masks, targets, matches):
    """A mask cut out of the canvas costs what it costs with zeros around it."""
    logits, truth = masks
    full = []
    for mask in truth:
        padded = torch.zeros(len(mask), *CANVAS, dtype=torch.bool)
        padded[:, : mask.shape[1], : mask.shape[2]] = mask
        full.append(padded)
    losses = criterion.mask_losses(logits, truth, CANVAS, targets, matches)
    expected = criterion.mask_losses(logits, full, CANVAS, targets, matches)
    torch.testing.assert_close(losses, expected)
    # The third image ends at column 20 of 40: the last columns of the grid see padding only.
    louder = logits.detach().clone()
    louder[2:, :, -2:] = 8.0
    worse = criterion.mask_losses(louder, truth, CANVAS, targets, matches)
    assert worse["loss_mask"] > losses["loss_mask"] * 1.2
    assert worse["loss_dice"] > losses["loss_dice"]


def test_without_targets_mask_losses_are_zero_with_a_gradient(criterion):
    targets = Targets(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, 4), [0, 0])
    empty = torch.zeros(1, 0, dtype=torch.long)
    matches = Matches(empty[0], empty, empty, [0, 0])
    logits = torch.zeros(0, *GRID, requires_grad=True)
    losses = criterion.mask_losses(logits, [None, None], CANVAS, targets, matches)
    assert {name: loss.item() for name, loss in losses.items()} == {"loss_mask": 0, "loss_dice": 0}
    sum(losses.values()).backward()
    assert logits.grad.shape == logits.shape


# Metrics


def test_metrics_by_hand(criterion):
    """Image 0: 2 targets, 3 queries say object; image 1: no target, 1 says object."""
    said = [[[0, 1, CLASSES, 3, CLASSES], [CLASSES, CLASSES, 2, CLASSES, CLASSES]]]
    logits = F.one_hot(torch.tensor(said), CLASSES + 1).float()
    other = F.one_hot(torch.full((1, 2, QUERIES), 2), CLASSES + 1).float()
    targets = Targets(torch.tensor([[0, 2], [0, 0]]), torch.rand(2, 2, 4), [2, 0])
    matches = Matches(
        torch.tensor([0, 0]), torch.tensor([[4, 3], [0, 3]]), torch.tensor([[1, 0], [0, 1]]), [2, 0]
    )
    metrics = criterion.metrics(torch.cat([other, logits]), targets, matches)
    # Query 0 says 0 and is 0; query 3 says 3 and is 2.
    assert metrics["class_error"].item() == 50
    assert metrics["cardinality_error"].item() == 1
