"""Bipartite matching of queries and targets.

Shapes: L decoder layers, B images, N queries, T targets of one image, K classes.
"""

from typing import NamedTuple

import torch
from detectron2.structures import Instances
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from ..errors import UserError


class Targets(NamedTuple):
    """Ground truth of a batch, padded to the largest number of targets.

    Attributes:
        labels: B x T contiguous class ids.
        boxes: B x T x 4, (cx, cy, w, h) relative to each image's own size.
        counts: number of real targets per image; rows from there on are padding.
    """

    labels: torch.Tensor
    boxes: torch.Tensor
    counts: list[int]

    @classmethod
    def from_instances(cls, instances: list[Instances], device: torch.device) -> "Targets":
        """From one ``Instances`` per image with ``gt_classes`` and ``gt_boxes``."""
        sizes = [x.image_size[::-1] * 2 for x in instances]
        scale = torch.tensor(sizes, dtype=torch.float32).to(device, non_blocking=True)
        labels = pad_sequence([x.gt_classes for x in instances], batch_first=True)
        boxes = pad_sequence([x.gt_boxes.tensor.float() for x in instances], batch_first=True)
        boxes = box_convert(boxes.to(device) / scale[:, None], "xyxy", "cxcywh")
        return cls(labels.to(device), boxes, [len(x) for x in instances])


class Matches(NamedTuple):
    """Pairs of a query and a target; P pairs per decoder layer.

    Attributes:
        image: P image indices, the same in every layer.
        query: L x P query indices.
        target: L x P target indices within the image.
        counts: pairs per image; they sum to P.
    """

    image: torch.Tensor
    query: torch.Tensor
    target: torch.Tensor
    counts: list[int]


def generalized_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """Generalized IoU (Rezatofighi et al. 2019, algorithm 1) of paired boxes.

    Boxes are (..., 4) in (cx, cy, w, h) form; leading dimensions broadcast.
    """
    a, b = (box_convert(boxes, "cxcywh", "xyxy") for boxes in (boxes1, boxes2))
    area = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    union = area - intersection
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).prod(-1)
    # Two boxes without area have no union; their IoU counts as 0 and not as NaN.
    tiny = torch.finfo(union.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


class HungarianMatcher(nn.Module):
    """One-to-one assignment of minimum cost per image and decoder layer.

    The cost is ``-class * probability + l1 * |box difference| - giou * GIoU``
    (Carion et al. 2020, section 3.1 and appendix A.2). Masks take no part in it.
    """

    def __init__(self, cost_class: float = 1.0, cost_bbox: float = 5.0, cost_giou: float = 2.0):
        super().__init__()
        if cost_class == cost_bbox == cost_giou == 0:
            raise UserError("CLASS_WEIGHT, L1_WEIGHT and GIOU_WEIGHT cannot all be 0")
        self.cost_class, self.cost_bbox, self.cost_giou = cost_class, cost_bbox, cost_giou

    def costs(
        self, pred_logits: torch.Tensor, pred_boxes: torch.Tensor, targets: Targets
    ) -> torch.Tensor:
        """Compute the costs L x B x N x T of all pairs; arguments as in :meth:`forward`."""
        layers, _, num_queries = pred_logits.shape[:3]
        labels = targets.labels[None, :, None].expand(layers, -1, num_queries, -1)
        cost_class = -pred_logits.softmax(-1).gather(-1, labels)
        boxes, target_boxes = pred_boxes[..., :, None, :], targets.boxes[:, None]
        cost_bbox = (boxes - target_boxes).abs().sum(-1)
        cost_giou = -generalized_iou(boxes, target_boxes)
        cost = self.cost_class * cost_class + self.cost_bbox * cost_bbox
        return cost + self.cost_giou * cost_giou

    @torch.no_grad()
    def forward(
        self, pred_logits: torch.Tensor, pred_boxes: torch.Tensor, targets: Targets
    ) -> Matches:
        """Match logits L x B x N x (K + 1) and boxes L x B x N x 4, (cx, cy, w, h) relative.

        Of more than N targets in an image, the N of least cost are matched.
        """
        layers, _, num_queries = pred_logits.shape[:3]
        cost = self.costs(pred_logits, pred_boxes, targets)
        # The assignment runs on the host, after one transfer for all layers and images. A NaN here
        # is a NaN in the loss too, and the trainer reports it there.
        query, target = self.assign(cost.nan_to_num().cpu(), targets.counts)
        counts = [min(count, num_queries) for count in targets.counts]
        image = [b for b, count in enumerate(counts) for _ in range(count)]
        indices = torch.tensor([image, *query, *target], dtype=torch.long)
        indices = indices.to(pred_logits.device, non_blocking=True)
        return Matches(indices[0], indices[1 : 1 + layers], indices[1 + layers :], counts)

    @staticmethod
    def assign(costs: torch.Tensor, counts: list[int]) -> tuple[list[list[int]], list[list[int]]]:
        """Query and target indices of each layer, from costs L x B x N x T on the host."""
        query: list[list[int]] = [[] for _ in costs]
        target: list[list[int]] = [[] for _ in costs]
        for layer, layer_costs in enumerate(costs.numpy()):
            for image_costs, count in zip(layer_costs, counts, strict=True):
                rows, columns = linear_sum_assignment(image_costs[:, :count])
                query[layer].extend(rows.tolist())
                target[layer].extend(columns.tolist())
        return query, target
