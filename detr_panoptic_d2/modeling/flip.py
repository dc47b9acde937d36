"""Test-time augmentation: segments from the averaged queries of an image and its mirror image.

Shapes: P and Q queries of the two views, K classes, h x w the mask grid.
"""

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment

from .mask_ops import crop_padding
from .structures import Frame

# Queries whose best class has a lower probability are ignored. It does not depend on the rule.
_MIN_SCORE = 0.05
# Queries of both views whose masks have a greater IoU are the same object.
_MATCH_IOU = 0.5


@torch.no_grad()
def segment_with_flip(model: Any, x: dict) -> tuple[torch.Tensor, list[dict]]:
    """Return the ``panoptic_seg`` of one input of a ``PanopticDETR``; see :func:`average_views`."""
    images = model.preprocess([x, {**x, "image": x["image"].flip(-1)}])
    detections = model.detect(images)
    probabilities = detections.pred_logits[-1].float().softmax(-1)
    kept = (probabilities[..., :-1].amax(-1) > _MIN_SCORE).cpu()
    masks = model.predict_masks(detections, *kept.nonzero(as_tuple=True)).float()
    masks, mirrored = masks.split(kept.sum(1).tolist())
    first, second = (p[k.to(p.device)] for p, k in zip(probabilities, kept, strict=True))
    height, width = map(int, images.image_sizes[0])
    output = x.get("height", height), x.get("width", width)
    frame = Frame(tuple(images.tensor.shape[-2:]), (height, width), output)
    mirrored = mirror_masks(mirrored, frame)
    probabilities, masks = average_views(first, masks, second, mirrored, frame)
    keep = model.panoptic_inference.keep(probabilities.log()[None])[0]
    scores, labels = probabilities[keep][:, :-1].max(-1)
    return model.panoptic_inference(masks[keep], scores.cpu(), labels.cpu(), frame)


def mirror_masks(masks: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Mirror mask logits Q x h x w left to right within the image, which has its padding on the
    right. Columns between two cells are interpolated."""
    columns = masks.shape[-1]
    image_columns = frame.image[1] * columns / frame.canvas[1]
    position = image_columns - 1 - torch.arange(columns, device=masks.device)
    position = position.clamp(0, columns - 1)
    left = position.floor().long()
    right = (left + 1).clamp(max=columns - 1)
    return torch.lerp(masks[..., left], masks[..., right], position - left)


def average_views(
    first: torch.Tensor,
    masks: torch.Tensor,
    second: torch.Tensor,
    mirrored: torch.Tensor,
    frame: Frame,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Match the queries of two views by mask and class, and average them.

    The Hungarian matching maximizes the IoU of the masks plus the Bhattacharyya coefficient of the
    class probabilities. A query without a partner is averaged with no-object.

    Args:
        first, second: P x (K + 1) and Q x (K + 1) class probabilities.
        masks, mirrored: P x h x w and Q x h x w mask logits, both of the image as it is.
        frame: sizes of canvas and image; masks are compared without the padding.

    Returns:
        class probabilities R x (K + 1) and mask logits R x h x w of the R different queries.
    """
    a, b = ((crop_padding(m, frame) > 0).flatten(1).float() for m in (masks, mirrored))
    shared = a @ b.T
    iou = shared / (a.sum(1)[:, None] + b.sum(1) - shared).clamp(min=1)
    rows, columns = linear_sum_assignment((iou + first.sqrt() @ second.sqrt().T).cpu(), True)
    rows, columns = (torch.from_numpy(i).to(masks.device) for i in (rows, columns))
    same = iou[rows, columns] > _MATCH_IOU
    rows, columns = rows[same], columns[same]
    no_object = torch.zeros_like(first[:1])
    no_object[:, -1] = 1
    probabilities, logits = (first + no_object) / 2, masks.clone()
    probabilities[rows] = (first[rows] + second[columns]) / 2
    logits[rows] = (masks[rows] + mirrored[columns]) / 2
    alone = torch.ones(len(second), dtype=torch.bool, device=masks.device)
    alone[columns] = False
    probabilities = torch.cat([probabilities, (second[alone] + no_object) / 2])
    return probabilities, torch.cat([logits, mirrored[alone]])
