import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from detr_panoptic_d2.modeling import criterion as criterion_module
from detr_panoptic_d2.modeling.criterion import SetCriterion, mask_loss_sums
from detr_panoptic_d2.modeling.matcher import HungarianMatcher, Matches, Targets

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


def plain_mask_losses(mask_logits, masks):
    """Sums of focal and dice losses in double precision, written down as in the papers."""
    logits = F.interpolate(mask_logits[:, None].double(), CANVAS, mode="bilinear")[:, 0]
    target = torch.zeros_like(logits)
    for padded, mask in zip(target, masks, strict=True):
        padded[: mask.shape[0], : mask.shape[1]] = mask
    focal = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2).mean((1, 2)).sum()
    p = logits.sigmoid()
    overlap, size = (p * target).sum((1, 2)), p.sum((1, 2)) + target.sum((1, 2))
    return {"loss_mask": focal, "loss_dice": (1 - (2 * overlap + 1) / (size + 1)).sum()}


def test_more_targets_than_queries_count_all_targets(criterion):
    """As in the official code, unmatched targets are in the divisor of the box losses."""
    logits = torch.zeros(1, 1, 2, CLASSES + 1)
    boxes = torch.full((1, 1, 2, 4), 0.5)
    targets = Targets(torch.zeros(1, 5, dtype=torch.long), torch.full((1, 5, 4), 0.4), [5])
    matches = criterion.matcher(logits, boxes, targets)
    losses = criterion.box_losses(logits, boxes, targets, matches, criterion.num_boxes(targets))
    assert losses["loss_bbox"].item() == pytest.approx(5.0 * 2 * 4 * 0.1 / 5)
    assert losses["loss_ce"].item() == pytest.approx(1.5 * math.log(CLASSES + 1))


# Masks


@pytest.mark.parametrize("scale", [0.0, 1.0, 80.0])
@pytest.mark.parametrize("name", ["loss_mask", "loss_dice"])
def test_mask_losses_are_the_plain_formulas(criterion, masks, matches, name, scale):
    """Values and gradients; what the second image has no targets for needs no masks."""
    logits, truth = masks
    logits = (logits.detach() * scale).requires_grad_()
    wanted = [truth[b][t] for b, _, t in pairs_of(matches, -1)]
    expected = WEIGHTS[name] * plain_mask_losses(logits, wanted)[name] / 5
    loss = criterion.mask_losses(
        logits, [truth[0], None, truth[2]], CANVAS, matches, torch.tensor(5.0)
    )[name]
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-7)
    (reference,) = torch.autograd.grad(expected, logits)
    (grad,) = torch.autograd.grad(loss, logits)
    largest = reference.abs().max().item()
    torch.testing.assert_close(grad, reference, rtol=0, atol=max(1e-10, 2e-5 * largest))


def test_neither_the_size_of_a_step_nor_autocast_changes_mask_losses(masks, monkeypatch):
    logits, truth = masks
    wanted = [*truth[0], *truth[2]]
    results = []
    for pixels, enabled in ((1, False), (2**24, False), (3 * CANVAS[0] * CANVAS[1], True)):
        monkeypatch.setitem(criterion_module._PIXELS_PER_STEP, "cpu", pixels)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses = mask_loss_sums(logits, wanted, CANVAS)
        results.append((torch.stack(losses), torch.autograd.grad(sum(losses), logits)[0]))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])
