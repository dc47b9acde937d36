"""Variants of a training that tools/experiments/from_scratch.py compares.

The network at inference stays official DETR's: a variant changes initial weights, the optimizer or
the losses.

Shapes: L decoder layers, B images, N queries, T targets of one image, G groups of queries.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)
from detectron2.structures import Instances
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.ops import sigmoid_focal_loss

from detr_panoptic_d2.engine import PanopticTrainer
from detr_panoptic_d2.modeling.mask_ops import target_masks
from detr_panoptic_d2.modeling.matcher import HungarianMatcher, Targets, generalized_iou
from detr_panoptic_d2.modeling.structures import Detections

MASK_LOSSES = ("loss_mask", "loss_dice")


def _kaiming(model: nn.Module) -> None:
    """Unscaled maps, as in official DETR."""
    model.mask_head.attention_scale.fill_(1)


def _weights(model: nn.Module) -> None:
    """Multiply the initial weights by the scale instead of the maps."""
    head = model.mask_head
    head.lay1.weight.data[:, head.hidden_dim :] *= head.attention_scale
    head.attention_scale.fill_(1)


def _tenth(model: nn.Module) -> None:
    model.mask_head.attention_scale.div_(10)


def _mask_prior(model: nn.Module) -> None:
    """Initial mask probability of 0.12 instead of 0.5."""
    nn.init.constant_(model.mask_head.out_lay.bias, -2.0)


def _sharp(model: nn.Module) -> None:
    """Double the initial box-attention logits, so that the maps are less uniform."""
    for linear in (model.bbox_attention.q_linear, model.bbox_attention.k_linear):
        linear.weight.data *= math.sqrt(2)


def _semantic_loss(model: nn.Module) -> None:
    """Add a semantic loss in training: a linear layer classifies each cell of the memory."""
    model.semantic = nn.Conv2d(model.mask_head.hidden_dim, model.num_classes, 1)

    def semantic(step):
        logits = model.semantic(step.out.memory).log_softmax(1)
        shares = torch.zeros_like(logits)
        for share, instances in zip(shares, step.instances, strict=True):
            masks = _on_grid(target_masks(instances), step.canvas, share.shape[-2:])
            share.index_add_(0, instances.gt_classes, masks)
        return {"loss_semantic": -(shares * logits).sum() / shares.sum().clamp(min=1)}

    _add_losses(model, semantic)


class _Step(NamedTuple):
    """What the added losses of a training step need; ``losses`` are those of the model."""

    out: Detections
    instances: list[Instances]
    targets: Targets
    canvas: tuple[int, int]
    losses: dict[str, torch.Tensor]


def _keep_detections(model: nn.Module) -> dict:
    """Return a dict that gets ``out`` and ``canvas`` of each call of ``model.detect``."""
    detect, kept = model.detect, {}

    def keep(images):
        kept["out"], kept["canvas"] = detect(images), tuple(images.tensor.shape[-2:])
        return kept["out"]

    model.detect = keep
    return kept


def _add_losses(model: nn.Module, function: Callable[[_Step], dict]) -> None:
    """Add the losses that ``function`` returns for each training step, or replace them."""
    losses, kept = model.losses, _keep_detections(model)

    def add(batched_inputs):
        own = losses(batched_inputs)
        instances = [x["instances"].to(model.device) for x in batched_inputs]
        targets = Targets.from_instances(instances, model.device)
        return own | function(_Step(kept["out"], instances, targets, kept["canvas"], own))

    model.losses = add


def _on_grid(masks: torch.Tensor, canvas: tuple[int, int], grid: torch.Size) -> torch.Tensor:
    """Pad bool masks T x H x W to the canvas, then average them in the cells of a grid."""
    height, width = masks.shape[-2:]
    padded = F.pad(masks.float(), (0, canvas[1] - width, 0, canvas[0] - height))
    return F.interpolate(padded[None], size=tuple(grid), mode="area")[0]


def _thing_boxes(model: nn.Module) -> None:
    """Leave stuff out of the box cost and of the box losses (Mask DINO, section 3.4)."""
    matcher, criterion = model.criterion.matcher, model.criterion
    costs, box_losses = matcher.costs, criterion.box_losses
    class_costs = HungarianMatcher(matcher.cost_class, 0, 0).costs

    def thing_costs(logits, boxes, targets):
        is_thing = model.is_thing[targets.labels][:, None]
        everything, classes = (f(logits, boxes, targets) for f in (costs, class_costs))
        return torch.where(is_thing, everything, classes)

    def thing_losses(logits, boxes, targets, matches, num_boxes):
        stuff = torch.zeros(boxes.shape[:3], dtype=torch.bool, device=boxes.device)
        layer = torch.arange(len(boxes), device=boxes.device)[:, None]
        labels = targets.labels[matches.image, matches.target]
        stuff[layer, matches.image, matches.query] = ~model.is_thing[labels]
        boxes = torch.where(stuff[..., None], boxes.detach(), boxes)
        return box_losses(logits, boxes, targets, matches, num_boxes)

    matcher.costs, criterion.box_losses = thing_costs, thing_losses


def _mask_cost(model: nn.Module) -> None:
    """Add focal and dice costs of all masks of the last layer to the matching (MaskFormer)."""
    losses, costs, kept = model.losses, model.criterion.matcher.costs, _keep_detections(model)

    def with_instances(batched_inputs):
        kept["instances"] = [x["instances"].to(model.device) for x in batched_inputs]
        return losses(batched_inputs)

    def with_masks(logits, boxes, targets):
        cost = costs(logits, boxes, targets)
        batch, queries = logits.shape[1:3]
        image = torch.arange(batch).repeat_interleave(queries)
        query = torch.arange(queries).repeat(batch)
        masks = model.predict_masks(kept["out"], image, query).unflatten(0, (batch, queries))
        for b, instances in enumerate(kept["instances"]):
            if not len(instances):
                continue
            target = _on_grid(target_masks(instances), kept["canvas"], masks.shape[-2:]).flatten(1)
            x = masks[b].flatten(1)
            p = x.sigmoid()
            dice = 1 - (2 * p @ target.T + 1) / (p.sum(1)[:, None] + target.sum(1) + 1)
            ones, zeros = torch.ones_like(x), torch.zeros_like(x)
            hit = sigmoid_focal_loss(x, ones, alpha=0.25, gamma=2) @ target.T
            miss = sigmoid_focal_loss(x, zeros, alpha=0.25, gamma=2) @ (1 - target).T
            cost[-1, b, :, : len(instances)] += 5 * dice + 20 * (hit + miss) / x.shape[1]
        return cost

    model.losses, model.criterion.matcher.costs = with_instances, with_masks


def _points(model: nn.Module) -> None:
    """Compute the mask losses at sampled points instead of all pixels (Mask2Former)."""
    criterion = model.criterion

    def point_losses(mask_logits, masks, canvas, matches, num_boxes):
        rows = matches.target[-1].split(matches.counts)
        chosen = [m[r] for m, r in zip(masks, rows, strict=True) if m is not None and len(r)]
        x = mask_logits[:, None]
        target = torch.cat([_on_grid(m, canvas, canvas) for m in chosen])[:, None]
        count = max(512, canvas[0] * canvas[1] // 16)
        with torch.no_grad():
            points = get_uncertain_point_coords_with_randomness(
                x, lambda logits: -logits.abs(), count, 3.0, 0.75
            )
            target = point_sample(target, points, align_corners=False)[:, 0]
        x = point_sample(x, points, align_corners=False)[:, 0]
        focal = sigmoid_focal_loss(x, target, alpha=0.25, gamma=2).mean(1).sum()
        p = x.sigmoid()
        dice = 1 - (2 * (p * target).sum(1) + 1) / (p.sum(1) + target.sum(1) + 1)
        weights = criterion.weights
        return {
            "loss_mask": weights["loss_mask"] * focal / num_boxes,
            "loss_dice": weights["loss_dice"] * dice.sum() / num_boxes,
        }

    criterion.mask_losses = point_losses


def _groups(model: nn.Module, groups: int = 4) -> None:
    """Train further groups of queries with their own matching; mean of the losses (Group DETR)."""
    queries, dim = model.query_embed.weight.shape
    model.group_embed = nn.Embedding((groups - 1) * queries, dim)

    def mean(step):
        weight = model.group_embed.weight.unflatten(0, (groups - 1, queries))
        logits, boxes = _decode(model, step.out, weight)
        num_boxes = model.criterion.num_boxes(step.targets)
        total = {k: v / groups for k, v in step.losses.items() if k not in MASK_LOSSES}
        for group in zip(logits.unbind(1), boxes.unbind(1), strict=True):
            matches = model.criterion.matcher(*group, step.targets)
            losses = model.criterion.box_losses(*group, step.targets, matches, num_boxes)
            total = {name: loss + losses[name] / groups for name, loss in total.items()}
        return total

    _add_losses(model, mean)


def _decode(model, out, embeddings):
    """Decode queries G x N x C (or G x B x N x C), without attention between groups.

    Returns:
        logits L x G x B x N x (K + 1) and boxes L x G x B x N x 4.
    """
    batch, size = len(out.memory), out.memory.shape[-2:]
    if embeddings.dim() == 3:
        embeddings = embeddings[:, None].expand(-1, batch, -1, -1)
    groups = len(embeddings)
    pos = model.position_embedding(size, out.padding, out.memory.device)
    pos = pos.expand(batch, -1, -1, -1).flatten(2).transpose(1, 2).repeat(groups, 1, 1)
    memory = out.memory.flatten(2).transpose(1, 2).repeat(groups, 1, 1)
    padding = None if out.padding is None else out.padding.flatten(1).repeat(groups, 1)
    hs = model.transformer.decoder(embeddings.flatten(0, 1), memory, pos, padding, True)
    hs = hs.unflatten(1, (groups, batch))
    return model.class_embed(hs), model.bbox_embed(hs)


def _denoising(model: nn.Module, groups: int = 4) -> None:
    """Train queries made of noisy boxes and classes of the targets (DN-DETR)."""
    dim = model.query_embed.embedding_dim
    model.noisy_label = nn.Embedding(model.num_classes, dim)
    model.noisy_box = nn.Sequential(nn.Linear(4, dim), nn.ReLU(), nn.Linear(dim, dim))

    def denoise(step):
        targets = step.targets
        boxes = targets.boxes.expand(groups, -1, -1, -1)
        # Centers move by up to a fifth of a side, sides change by up to 40 %, and so do the labels
        # of a fifth of the boxes.
        noise = torch.rand_like(boxes) * 2 - 1
        center = boxes[..., :2] + 0.4 * noise[..., :2] * boxes[..., 2:] / 2
        noisy = torch.cat([center, boxes[..., 2:] * (1 + 0.4 * noise[..., 2:])], -1).clamp(0, 1)
        labels = targets.labels.expand(groups, -1, -1)
        change = torch.rand(labels.shape) < 0.2
        labels = torch.where(change, torch.randint_like(labels, model.num_classes), labels)
        pred_logits, pred_boxes = _decode(
            model, step.out, model.noisy_box(noisy) + model.noisy_label(labels)
        )
        counts = torch.tensor(targets.counts)
        real = torch.arange(labels.shape[-1]) < counts[:, None]
        weights = model.criterion.weights
        total, num = {}, counts.sum().clamp(min=1)
        for i, (x, b) in enumerate(zip(pred_logits, pred_boxes, strict=True)):
            for g in range(groups):
                ce = F.cross_entropy(x[g][real], targets.labels[real], reduction="sum") / num
                l1 = (b[g][real] - targets.boxes[real]).abs().sum() / num
                giou = (1 - generalized_iou(b[g][real], targets.boxes[real])).sum() / num
                loss = weights["loss_ce"] * ce + weights["loss_bbox"] * l1
                loss = loss + weights["loss_giou"] * giou
                total[f"loss_noisy_{i}"] = total.get(f"loss_noisy_{i}", 0) + loss / groups
        return total

    _add_losses(model, denoise)


class _MaskHeadThrice(PanopticTrainer):
    """Train mask head and box attention at three times the learning rate."""

    @classmethod
    def build_optimizer(cls, cfg, model):
        optimizer = super().build_optimizer(cfg, model)
        head = [*model.bbox_attention.parameters(), *model.mask_head.parameters()]
        ids = {id(p) for p in head}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in ids]
        optimizer.add_param_group({"params": head, "lr": 3 * cfg.SOLVER.BASE_LR})
        return optimizer


class _Averaged(PanopticTrainer):
    """Evaluate an exponential moving average of the weights."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
        # BatchNorm statistics are copied from the model, not averaged.
        self.test = lambda cfg, model: PanopticTrainer.test(cfg, self.average.module)

    def run_step(self):
        super().run_step()
        self.average.update_parameters(self.model)


class Variant(NamedTuple):
    """A change of the training.

    Attributes:
        start: changes the newly built model.
        trainer: trainer class.
    """

    start: Callable[[nn.Module], None] = lambda model: None
    trainer: type[PanopticTrainer] = PanopticTrainer


VARIANTS = {
    "kaiming": Variant(_kaiming),
    "equal": Variant(),
    "weights": Variant(_weights),
    "tenth": Variant(_tenth),
    "prior": Variant(_mask_prior),
    "sharp": Variant(_sharp),
    "semantic": Variant(_semantic_loss),
    "thing_boxes": Variant(_thing_boxes),
    "mask_cost": Variant(_mask_cost),
    "points": Variant(_points),
    "groups": Variant(_groups),
    "denoising": Variant(_denoising),
    "head_lr": Variant(trainer=_MaskHeadThrice),
    "ema": Variant(trainer=_Averaged),
}
