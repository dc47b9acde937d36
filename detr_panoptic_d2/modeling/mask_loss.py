"""Focal and dice losses of masks at full resolution, in bounded memory.

Shapes: P masks, h x w the grid of the logits, H x W the canvas they are upsampled to.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Full-resolution pixels per step. On a CPU its buffers should stay in the cache; on a GPU they
# should be worth a kernel.
_PIXELS_PER_STEP = {"cpu": 2**17, "cuda": 2**22}


def mask_loss_sums(
    mask_logits: torch.Tensor,
    truth: list[torch.Tensor],
    canvas: tuple[int, int],
    alpha: float = 0.25,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over masks of the focal loss (mean over pixels) and of the dice loss.

    Focal loss: Lin et al. 2017, eq. 5, with gamma 2. Dice loss: Milletari et al. 2016, with DETR's
    smoothing of 1. Both on logits that are upsampled bilinearly to the canvas; beyond its mask's
    size the truth is background.

    The gradient at the logits is worked out together with the loss, step by step, so nothing of
    full resolution is kept for the backward pass or computed twice.

    Args:
        mask_logits: P x h x w.
        truth: P bool masks, each of its own image's size, none larger than the canvas.
        canvas: (H, W).
        alpha: weight of the foreground in the focal loss; 1 - alpha of the background.

    Returns:
        two float32 scalars. They can be differentiated once.
    """
    with torch.autocast(mask_logits.device.type, enabled=False):
        return _MaskLossSums.apply(mask_logits, truth, tuple(canvas), alpha)


class _MaskLossSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mask_logits, truth, canvas, alpha):
        device = mask_logits.device
        wants_grad = ctx.needs_input_grad[0]
        focal = torch.zeros((), device=device)
        dice = torch.zeros((), device=device)
        if wants_grad:
            ctx.dtype = mask_logits.dtype
            grads = torch.empty((2, *mask_logits.shape), device=device)
            to_rows = _bilinear_matrix(mask_logits.shape[1], canvas[0], device)
            to_columns = _bilinear_matrix(mask_logits.shape[2], canvas[1], device)
        pixels = _PIXELS_PER_STEP.get(device.type, _PIXELS_PER_STEP["cuda"])
        step = max(1, pixels // (canvas[0] * canvas[1]))
        for start in range(0, len(truth), step):
            part = slice(start, start + step)
            logits = F.interpolate(
                mask_logits[part, None].float(), size=canvas, mode="bilinear", align_corners=False
            )[:, 0]
            sums, full_grads = _losses(logits, _signs(truth[part], logits), alpha, wants_grad)
            focal += sums[0]
            dice += sums[1]
            if wants_grad:
                for grad, full in zip(grads, full_grads, strict=True):
                    grad[part] = to_rows.T @ full @ to_columns
        if wants_grad:
            ctx.save_for_backward(grads)
        return focal, dice

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_focal, grad_dice):
        (grads,) = ctx.saved_tensors
        grad = grads[0] * grad_focal + grads[1] * grad_dice
        return grad.to(ctx.dtype), None, None, None


def _signs(truth, like):
    """-1 on foreground, 1 elsewhere, on the canvas."""
    signs = torch.ones_like(like)
    for sign, mask in zip(signs, truth, strict=True):
        sign[: mask.shape[0], : mask.shape[1]].masked_fill_(mask, -1)
    return signs


def _losses(logits, signs, alpha, wants_grad):
    """Both losses of p masks, summed, and their gradients at the logits (p x H x W each).

    In terms of q, the probability given to the wrong side, and ce = -log(1 - q):
    focal = weight q^2 ce; and dice from the sums of q over foreground and background.
    """
    ce = F.softplus(logits * signs)
    hit = torch.exp(-ce)
    q = 1 - hit
    weight = (0.5 - alpha) * signs + 0.5
    weighted = weight * q * q
    pixels = logits[0].numel()
    focal = (weighted * ce).sum() / pixels

    total, difference = q.sum((1, 2)), (q * signs).sum((1, 2))
    area = (pixels - signs.sum((1, 2))) / 2
    missed, false = (total - difference) / 2, (total + difference) / 2
    overlap = 2 * (area - missed) + 1
    size = 2 * area - missed + false + 1
    dice = (1 - overlap / size).sum()
    if not wants_grad:
        return (focal, dice), None

    # d ce / d logits = sign q and d q / d logits = sign q (1 - q).
    focal_grad = ce.mul_(hit).mul_(2).add_(q).mul_(weighted).mul_(signs).div_(pixels)
    foreground, background = (overlap / size - 2) / size, overlap / size / size
    middle, half = (background + foreground) / 2, (background - foreground) / 2
    slope = signs.mul_(half[:, None, None]).add_(middle[:, None, None])
    return (focal, dice), (focal_grad, slope.mul_(q).mul_(hit))


def _bilinear_matrix(grid: int, size: int, device) -> torch.Tensor:
    """size x grid weights of linear upsampling (``align_corners=False``)."""
    unit = torch.eye(grid, device=device)[None]
    return F.interpolate(unit, size=size, mode="linear", align_corners=False)[0].T
