import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from detr_panoptic_d2.modeling import mask_loss
from detr_panoptic_d2.modeling.mask_loss import mask_loss_sums

CANVAS = (40, 66)


def plain_sums(mask_logits, truth):
    """The same in double precision, written down as in the papers."""
    logits = F.interpolate(
        mask_logits[:, None].double(), size=CANVAS, mode="bilinear", align_corners=False
    )[:, 0]
    target = torch.zeros_like(logits)
    for padded, mask in zip(target, truth, strict=True):
        padded[: mask.shape[0], : mask.shape[1]] = mask
    focal = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2).mean((1, 2)).sum()
    p = logits.sigmoid()
    overlap, size = (p * target).sum((1, 2)), p.sum((1, 2)) + target.sum((1, 2))
    return focal, (1 - (2 * overlap + 1) / (size + 1)).sum()


@pytest.fixture
def masks():
    generator = torch.Generator().manual_seed(0)
    truth = [torch.rand(34 + i, 54 + 2 * i, generator=generator) > 0.7 for i in range(7)]
    truth[2][:] = False
    truth[3][:] = True
    return torch.randn(7, 12, 17, generator=generator), truth


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 80.0])
@pytest.mark.parametrize("which", [0, 1], ids=["focal", "dice"])
def test_value_and_gradient_are_those_of_the_plain_formula(masks, scale, which):
    logits, truth = masks
    logits = (logits * scale).requires_grad_()
    ours = mask_loss_sums(logits, truth, CANVAS)[which]
    expected = plain_sums(logits, truth)[which]
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-7)
    (reference,) = torch.autograd.grad(expected, logits)
    (grad,) = torch.autograd.grad(ours, logits)
    largest = reference.abs().max().item()
    torch.testing.assert_close(grad, reference, rtol=0, atol=max(1e-10, 2e-5 * largest))


def test_the_size_of_a_step_changes_nothing(masks, monkeypatch):
    logits, truth = masks
    logits = logits.requires_grad_()
    results = []
    for pixels in (1, 3 * CANVAS[0] * CANVAS[1], 2**24):
        monkeypatch.setitem(mask_loss._PIXELS_PER_STEP, "cpu", pixels)
        losses = mask_loss_sums(logits, truth, CANVAS)
        results.append((torch.stack(losses), torch.autograd.grad(sum(losses), logits)[0]))
    for value, grad in results[1:]:
        torch.testing.assert_close(value, results[0][0])
        torch.testing.assert_close(grad, results[0][1])


def test_autocast_does_not_lower_the_precision(masks):
    logits, truth = masks
    logits = logits.requires_grad_()
    (expected,) = torch.autograd.grad(sum(mask_loss_sums(logits, truth, CANVAS)), logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = mask_loss_sums(logits, truth, CANVAS)
    (grad,) = torch.autograd.grad(sum(losses), logits)
    assert torch.equal(grad, expected)


def test_no_masks_give_zero():
    logits = torch.zeros(0, 12, 17, requires_grad=True)
    focal, dice = mask_loss_sums(logits, [], CANVAS)
    (focal + dice).backward()
    assert focal == 0 and dice == 0 and logits.grad.shape == logits.shape
