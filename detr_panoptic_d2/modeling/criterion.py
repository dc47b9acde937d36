"""DETR's set loss.

Shapes: L decoder layers (the last one counts, the others are auxiliary), B images, N queries,
K classes, P matched pairs.
"""

import torch
from detectron2.config import configurable
from detectron2.utils import comm
from torch import nn
from torch.nn import functional as F

from ..errors import check_value
from .mask_loss import mask_loss_sums
from .matcher import HungarianMatcher, Matches, Targets, generalized_iou


class SetCriterion(nn.Module):
    """Class, box and mask losses of matched queries (Carion et al. 2020, section 3.1, A.2).

    Losses are averaged over the number of targets per process, so that several processes give
    the loss of one process on the whole batch.
    """

    class_weight: torch.Tensor

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        weights: dict[str, float],
        no_object_weight: float = 0.1,
    ):
        """
        Args:
            num_classes: K; index K is no-object.
            matcher: assigns queries to targets.
            weights: weight of each of ``loss_ce``, ``loss_bbox``, ``loss_giou``, ``loss_mask``
                and ``loss_dice``.
            no_object_weight: weight of no-object in the cross entropy.
        """
        super().__init__()
        for name, value in weights.items():
            check_value(f"MODEL.DETR: the weight of {name}", value, value >= 0, "0 or more")
        key = "MODEL.DETR.NO_OBJECT_WEIGHT"
        check_value(key, no_object_weight, no_object_weight > 0, "above 0")
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = weights
        weight = torch.ones(num_classes + 1)
        weight[-1] = no_object_weight
        self.register_buffer("class_weight", weight, persistent=False)

    @classmethod
    def from_config(cls, cfg, num_classes):
        detr = cfg.MODEL.DETR
        return {
            "num_classes": num_classes,
            "matcher": HungarianMatcher(detr.CLASS_WEIGHT, detr.L1_WEIGHT, detr.GIOU_WEIGHT),
            "weights": {
                "loss_ce": detr.CLASS_WEIGHT,
                "loss_bbox": detr.L1_WEIGHT,
                "loss_giou": detr.GIOU_WEIGHT,
                "loss_mask": detr.MASK_WEIGHT,
                "loss_dice": detr.DICE_WEIGHT,
            },
            "no_object_weight": detr.NO_OBJECT_WEIGHT,
        }

    def box_losses(
        self,
        pred_logits: torch.Tensor,
        pred_boxes: torch.Tensor,
        targets: Targets,
        matches: Matches,
    ) -> dict[str, torch.Tensor]:
        """Weighted class, L1 and GIoU losses of every layer.

        Args:
            pred_logits: L x B x N x (K + 1).
            pred_boxes: L x B x N x 4, (cx, cy, w, h) relative.
            targets: the ground truth.
            matches: what :class:`HungarianMatcher` made of them.

        Returns:
            ``loss_ce``, ``loss_bbox`` and ``loss_giou`` of the last layer; ``loss_ce_0`` and so on
            of the auxiliary layers.
        """
        layers, batch, num_queries = pred_logits.shape[:3]
        layer_index = torch.arange(layers, device=pred_logits.device)[:, None]
        pairs = (layer_index, matches.image, matches.query)
        labels = torch.full(
            (layers, batch, num_queries), self.num_classes, device=pred_logits.device
        )
        labels[pairs] = targets.labels[matches.image, matches.target]
        loss_ce = F.cross_entropy(
            pred_logits.float().flatten(0, 2), labels.flatten(), self.class_weight, reduction="none"
        )
        # The weighted mean over queries: all layers match equally many, so they share the divisor.
        num_pairs = len(matches.image)
        divisor = num_pairs + (batch * num_queries - num_pairs) * self.class_weight[-1]
        losses = {"loss_ce": loss_ce.view(layers, -1).sum(1) / _process_mean(divisor)}

        boxes = pred_boxes.float()[pairs]
        truth = targets.boxes[matches.image, matches.target]
        num_boxes = self.num_boxes(targets, boxes)
        losses["loss_bbox"] = (boxes - truth).abs().sum((1, 2)) / num_boxes
        losses["loss_giou"] = (1 - generalized_iou(boxes, truth)).sum(1) / num_boxes
        named = {}
        for name, loss in losses.items():
            loss = loss * self.weights[name]
            named[name] = loss[-1]
            named.update({f"{name}_{i}": loss[i] for i in range(layers - 1)})
        return named

    def mask_losses(
        self,
        mask_logits: torch.Tensor,
        target_masks: list[torch.Tensor | None],
        canvas: tuple[int, int],
        targets: Targets,
        matches: Matches,
    ) -> dict[str, torch.Tensor]:
        """Weighted focal and dice losses of the last layer's matched masks.

        Logits are upsampled to the padded canvas and the padding counts as background, as in the
        official code.

        Args:
            mask_logits: P x h x w.
            target_masks: per image T x H_i x W_i bool; None where T is 0.
            canvas: (H, W) of the padded images.
            targets: the ground truth.
            matches: what :class:`HungarianMatcher` made of them.
        """
        rows_per_image = matches.target[-1].split(matches.counts)
        matched = [
            mask
            for masks, rows in zip(target_masks, rows_per_image, strict=True)
            if masks is not None and len(rows)
            for mask in masks[rows]
        ]
        focal, dice = mask_loss_sums(mask_logits, matched, canvas)
        num_boxes = self.num_boxes(targets, focal)
        return {
            "loss_mask": self.weights["loss_mask"] * focal / num_boxes,
            "loss_dice": self.weights["loss_dice"] * dice / num_boxes,
        }

    @torch.no_grad()
    def metrics(
        self, pred_logits: torch.Tensor, targets: Targets, matches: Matches
    ) -> dict[str, torch.Tensor]:
        """``class_error`` (percent) of the matched queries and ``cardinality_error`` (objects
        per image too many or missing) of the last layer, as official DETR logs them."""
        predicted = pred_logits[-1].argmax(-1)
        truth = targets.labels[matches.image, matches.target[-1]]
        hit = predicted[matches.image, matches.query[-1]] == truth
        counts = torch.as_tensor(targets.counts, device=predicted.device)
        objects = (predicted != self.num_classes).sum(1)
        return {
            "class_error": 100 * (1 - hit.float().sum() / max(1, len(hit))),
            "cardinality_error": (objects - counts).abs().float().mean(),
        }

    def num_boxes(self, targets: Targets, like: torch.Tensor) -> torch.Tensor:
        """Targets per process, at least 1."""
        return _process_mean(like.new_tensor(float(sum(targets.counts)))).clamp(min=1)


def _process_mean(value: torch.Tensor) -> torch.Tensor:
    """Mean of a scalar tensor over all processes."""
    if comm.get_world_size() == 1:
        return value
    value = value.clone()
    torch.distributed.all_reduce(value)
    return value / comm.get_world_size()


def zero_of(parameters) -> torch.Tensor:
    """A zero that depends on every parameter, so that distributed training sees each of them."""
    return sum(p.sum() * 0 for p in parameters)
