"""From queries to Detectron2's ``Instances``: boxes, classes, scores and masks of things."""

import torch
from detectron2.structures import Boxes, Instances
from torchvision.ops import box_convert

from .mask_ops import Frame, masks_at_output


def best_things(
    scores: torch.Tensor, labels: torch.Tensor, is_thing: torch.Tensor, max_instances: int
) -> torch.Tensor:
    """The queries of best score per image whose class is a thing.

    Args:
        scores, labels: B x N, the best class of each query and its probability.
        is_thing: bool per class, no-object (the last) included.
        max_instances: most queries per image.

    Returns:
        B x N bool.
    """
    thing = is_thing[labels]
    if scores.shape[1] <= max_instances:
        return thing
    best = (scores * thing).topk(max_instances, dim=1).indices
    return torch.zeros_like(thing).scatter_(1, best, True) & thing


def to_instances(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    labels: torch.Tensor,
    mask_logits: torch.Tensor | None,
    frame: Frame,
) -> Instances:
    """Instances at the output size, best score first.

    Args:
        boxes: Q x 4, (cx, cy, w, h) relative to the image.
        scores, labels: Q.
        mask_logits: Q x h x w, or None for boxes alone.
        frame: sizes of canvas, image and output.
    """
    order = scores.argsort(descending=True)
    height, width = frame.output
    scale = boxes.new_tensor([width, height, width, height], dtype=torch.float32)
    result = Instances(frame.output)
    result.pred_boxes = Boxes(box_convert(boxes[order].float(), "cxcywh", "xyxy") * scale)
    result.pred_boxes.clip(frame.output)
    result.scores = scores[order]
    result.pred_classes = labels[order]
    if mask_logits is not None:
        result.pred_masks = masks_at_output(mask_logits[order], frame)
    return result
