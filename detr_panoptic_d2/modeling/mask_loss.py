"""Focal and dice losses of masks at full resolution, in bounded memory.

Shapes: P masks, h x w the grid of the logits, H x W the canvas they are upsampled to.
"""

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Full-resolution pixels per step. On a CPU its buffers should stay in the cache; on a GPU they
# should be worth a kernel.
_PIXELS_PER_STEP = {"cpu": 2**17, "cuda": 2**22}


def mask_loss_sums(
    mask_logits: torch.Tensor,
    target_masks: list[torch.Tensor],
    canvas: tuple[int, int],
    alpha: float = 0.25,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over masks of the focal loss (mean over pixels) and of the dice loss.

    Focal loss: Lin et al. 2017, eq. 5, with gamma 2. Dice loss: Milletari et al. 2016, with DETR's
    smoothing of 1. Both on logits that are upsampled bilinearly to the canvas; beyond its mask's
    size the target is background.

    A few masks are taken at a time, and what was made at full resolution is computed again in the
    backward pass instead of kept.

    Args:
        mask_logits: P x h x w.
        target_masks: P bool masks, each of its own image's size, none larger than the canvas.
        canvas: (H, W).
        alpha: weight of the foreground in the focal loss; 1 - alpha of the background.

    Returns:
        two float32 scalars.
    """
    device = mask_logits.device
    # A sum over no masks is 0 and still depends on the logits.
    focal = dice = mask_logits.float().sum() * 0
    pixels = _PIXELS_PER_STEP.get(device.type, _PIXELS_PER_STEP["cuda"])
    step = max(1, pixels // (canvas[0] * canvas[1]))
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(target_masks), step):
            part = slice(start, start + step)
            sums = checkpoint(
                _losses, mask_logits[part], target_masks[part], canvas, alpha, use_reentrant=False
            )
            focal, dice = focal + sums[0], dice + sums[1]
    return focal, dice


def _losses(mask_logits, target_masks, canvas, alpha):
    """Both losses of a few masks, summed."""
    logits = F.interpolate(
        mask_logits[:, None].float(), size=canvas, mode="bilinear", align_corners=False
    )[:, 0]
    target = torch.zeros_like(logits)
    for padded, mask in zip(target, target_masks, strict=True):
        padded[: mask.shape[0], : mask.shape[1]] = mask
    probability = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # The probability given to the wrong side, and alpha or 1 - alpha.
    wrong = (probability - target).abs()
    weight = (1 - alpha) + (2 * alpha - 1) * target
    focal = (weight * wrong.square() * ce).mean((1, 2)).sum()

    overlap = (probability * target).sum((1, 2))
    size = probability.sum((1, 2)) + target.sum((1, 2))
    dice = (1 - (2 * overlap + 1) / (size + 1)).sum()
    return focal, dice
