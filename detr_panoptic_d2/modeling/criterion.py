"""DETR's set loss.

Shapes: L decoder layers (the last one counts, the others are auxiliary), B images, N queries,
K classes, P matched pairs; h x w the grid of mask logits, H x W the canvas of padded images.
"""

import torch
from detectron2.config import configurable
from detectron2.utils import comm
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import sigmoid_focal_loss

from ..errors import check_value
from .matcher import HungarianMatcher, Matches, Targets, generalized_iou

# Pixels of full-resolution masks per step. On a CPU the buffers of a step should stay in the cache.
# On a GPU they take about 60 bytes per pixel: 4 GB.
_PIXELS_PER_STEP = {"cpu": 2**17, "cuda": 2**26}


class SetCriterion(nn.Module):
    """Class, box and mask losses of matched queries (Carion et al. 2020, section 3.1, A.2).

    Losses are divided by the mean number of targets per process. The mean over several processes
    is therefore the loss of one process on the whole batch.

    Attributes:
        step_targets: targets of all batches of an iteration that accumulates gradients; the losses
            of each batch are divided by numbers of all of them. None: by numbers of the batch.
    """

    class_weight: torch.Tensor
    step_targets: Targets | None = None

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        weights: dict[str, float],
        no_object_weight: float = 0.1,
        class_weights: dict[int, float] | None = None,
    ):
        """
        Args:
            num_classes: K; index K is no-object.
            matcher: assigns queries to targets.
            weights: weight of each of ``loss_ce``, ``loss_bbox``, ``loss_giou``, ``loss_mask``
                and ``loss_dice``.
            no_object_weight: weight of no-object in the cross entropy.
            class_weights: weights of other classes there; 1 if a class is missing.
        """
        super().__init__()
        for name, value in weights.items():
            check_value(f"MODEL.DETR: the weight of {name}", value, value >= 0, "0 or more")
        key = "MODEL.DETR.NO_OBJECT_WEIGHT"
        check_value(key, no_object_weight, no_object_weight > 0, "above 0")
        self.num_classes, self.matcher, self.weights = num_classes, matcher, weights
        weight = torch.ones(num_classes + 1)
        weight[-1] = no_object_weight
        for index, value in (class_weights or {}).items():
            check_value("MODEL.DETR.CLASS_WEIGHTS", value, value > 0, "names and weights above 0")
            weight[index] = value
        self.register_buffer("class_weight", weight, persistent=False)

    @classmethod
    def from_config(cls, cfg, num_classes, class_names):
        detr, class_weights = cfg.MODEL.DETR, {}
        for name, weight in detr.CLASS_WEIGHTS:
            allowed = f"names of classes: {', '.join(class_names or [])}"
            check_value("MODEL.DETR.CLASS_WEIGHTS", name, name in (class_names or []), allowed)
            class_weights[class_names.index(name)] = weight
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
            "class_weights": class_weights,
        }

    def box_losses(
        self,
        pred_logits: torch.Tensor,
        pred_boxes: torch.Tensor,
        targets: Targets,
        matches: Matches,
        num_boxes: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Weighted class, L1 and GIoU losses of every layer.

        Args:
            pred_logits: L x B x N x (K + 1).
            pred_boxes: L x B x N x 4, (cx, cy, w, h) relative.
            targets, matches: the ground truth, and its pairs from :class:`HungarianMatcher`.
            num_boxes: divisor of the box losses, see :meth:`num_boxes`.

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
            pred_logits.flatten(0, 2), labels.flatten(), self.class_weight, reduction="none"
        )
        boxes = pred_boxes[pairs]
        target_boxes = targets.boxes[matches.image, matches.target]
        losses = {
            "loss_ce": loss_ce.view(layers, -1).sum(1) / self._class_divisor(targets, num_queries),
            "loss_bbox": (boxes - target_boxes).abs().sum((1, 2)) / num_boxes,
            "loss_giou": (1 - generalized_iou(boxes, target_boxes)).sum(1) / num_boxes,
        }
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
        matches: Matches,
        num_boxes: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Weighted focal and dice losses of the last layer's matched masks.

        Args:
            mask_logits: P x h x w.
            target_masks: per image T x H_i x W_i bool; None if T is 0.
            canvas: (H, W) of the padded images.
            matches, num_boxes: see :meth:`box_losses`.
        """
        rows_per_image = matches.target[-1].split(matches.counts)
        matched = [
            mask
            for masks, rows in zip(target_masks, rows_per_image, strict=True)
            if masks is not None and len(rows)
            for mask in masks[rows]
        ]
        focal, dice = mask_loss_sums(mask_logits, matched, canvas)
        return {
            "loss_mask": self.weights["loss_mask"] * focal / num_boxes,
            "loss_dice": self.weights["loss_dice"] * dice / num_boxes,
        }

    def _class_divisor(self, targets: Targets, num_queries: int) -> torch.Tensor:
        """Return the sum of the class weights of all queries, per process.

        If an image has more targets than queries, its targets share the weight of its queries.
        """
        targets = self.step_targets or targets
        device = self.class_weight.device
        counts = torch.tensor(targets.counts).to(device, non_blocking=True)
        is_target = torch.arange(targets.labels.shape[1], device=device) < counts[:, None]
        weights = (self.class_weight[targets.labels] * is_target).sum(1)
        matched = counts.clamp(max=num_queries)
        matched_weights = (weights * matched / counts.clamp(min=1)).sum()
        unmatched = (num_queries - matched).sum()
        return self._process_mean(matched_weights + unmatched * self.class_weight[-1])

    def num_boxes(self, targets: Targets) -> torch.Tensor:
        """Return the mean number of targets per process, at least 1."""
        count = torch.tensor(float(sum((self.step_targets or targets).counts)))
        count = count.to(self.class_weight.device, non_blocking=True)
        return self._process_mean(count).clamp(min=1)

    def _process_mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a scalar over all processes, in training."""
        if comm.get_world_size() == 1 or not self.training:
            return value
        value = value.clone()
        torch.distributed.all_reduce(value)
        return value / comm.get_world_size()


def mask_loss_sums(
    mask_logits: torch.Tensor, target_masks: list[torch.Tensor], canvas: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over masks of the focal loss (mean over pixels) and of the dice loss.

    Focal loss: Lin et al. 2017, eq. 5, with alpha 0.25 and gamma 2. Dice loss: Milletari et al.
    2016, with DETR's smoothing of 1. Logits are upsampled bilinearly to the canvas. Its padding
    counts as background, as in the official code.

    Args:
        mask_logits: P x h x w.
        target_masks: P bool masks, each of its own image's size, none larger than the canvas.
        canvas: (H, W).

    Returns:
        two float32 scalars.
    """
    device = mask_logits.device.type
    # A sum over no masks is 0 and still depends on the logits.
    focal = dice = mask_logits.float().sum() * 0
    pixels = _PIXELS_PER_STEP.get(device, _PIXELS_PER_STEP["cuda"])
    step = max(1, pixels // (canvas[0] * canvas[1]))
    with torch.autocast(device, enabled=False):
        for i, logits in enumerate(mask_logits.split(step)):
            args = (logits, target_masks[i * step : (i + 1) * step], canvas)
            # Masks at full resolution take much memory: if there are several steps, the backward
            # pass computes them again.
            if len(mask_logits) > step:
                sums = checkpoint(_losses, *args, use_reentrant=False, preserve_rng_state=False)
            else:
                sums = _losses(*args)
            focal, dice = focal + sums[0], dice + sums[1]
    return focal, dice


def _losses(mask_logits, target_masks, canvas):
    """Both losses of a few masks, summed."""
    logits = F.interpolate(
        mask_logits[:, None].float(), size=canvas, mode="bilinear", align_corners=False
    )[:, 0]
    target = torch.zeros_like(logits)
    for padded, mask in zip(target, target_masks, strict=True):
        padded[: mask.shape[0], : mask.shape[1]] = mask
    focal = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2, reduction="sum")
    probability = logits.sigmoid()
    overlap = (probability * target).sum((1, 2))
    area = probability.sum((1, 2)) + target.sum((1, 2))
    dice = (1 - (2 * overlap + 1) / (area + 1)).sum()
    return focal / (canvas[0] * canvas[1]), dice
