"""Hugging Face's DETR with our weights: the other side of the comparison."""

import torch
from torch import nn

from detr_panoptic_d2.apps.convert_checkpoint import huggingface_checkpoint
from detr_panoptic_d2.errors import UserError


def build(ours: nn.Module) -> nn.Module:
    """``DetrForSegmentation`` of our model's shape and weights; its part ``.detr`` finds boxes.

    Its class head has a row per raw category id; those that our classes lack are never probable.

    Raises:
        UserError: transformers or timm are missing, or Hugging Face has no such model.
    """
    try:
        import timm  # noqa: F401  transformers builds its backbone with it
        from transformers import DetrConfig, DetrForSegmentation
    except ImportError as error:
        raise UserError(
            "--against huggingface needs transformers and timm, which are not installed: run "
            "`pip install '.[benchmark,timm]'`."
        ) from error
    weights, config, _ = huggingface_checkpoint(ours)
    config = DetrConfig(**config, **_losses(ours))
    theirs = DetrForSegmentation.from_pretrained(None, config=config, state_dict=weights)
    return theirs.to(ours.device).eval()


def _losses(ours: nn.Module) -> dict[str, float]:
    """Matching costs and loss weights; Hugging Face's config takes whole numbers only."""
    criterion, names = ours.criterion, {"eos_coefficient": float(ours.criterion.class_weight[-1])}
    for loss, costs in (
        ("loss_ce", ["class_cost"]),
        ("loss_bbox", ["bbox_cost", "bbox_loss_coefficient"]),
        ("loss_giou", ["giou_cost", "giou_loss_coefficient"]),
        ("loss_mask", ["mask_loss_coefficient"]),
        ("loss_dice", ["dice_loss_coefficient"]),
    ):
        names.update(dict.fromkeys(costs, int(criterion.weights[loss])))
    return names


def logits_of_our_classes(ours: nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """The columns ... x (K + 1) of our classes and of no-object."""
    return logits[..., [*ours.dataset_ids, -1]]


def post_process(ours: nn.Module, outputs, kept: torch.Tensor, output: tuple[int, int]) -> list:
    """Panoptic maps (H, W) of their outputs, by their own post-processing.

    Args:
        ours: our model.
        outputs: of theirs.
        kept: B x N bool, the queries that ours keeps; the others become no-object first.
        output: (H, W).
    """
    nothing = outputs.logits.new_full((outputs.logits.shape[-1],), -50.0)
    nothing[-1] = 50.0
    outputs.logits[~kept] = nothing
    things = ours.panoptic_inference.thing_ids
    stuff = {x for i, x in enumerate(ours.dataset_ids) if i not in things}
    return processor().post_process_panoptic_segmentation(
        outputs, threshold=0.0, label_ids_to_fuse=stuff, target_sizes=[output] * len(kept)
    )


def processor(**options):
    """Their image processor, which has their post-processing as well."""
    from transformers import DetrImageProcessor

    return DetrImageProcessor(**options)


def labels(ours: nn.Module, batched_inputs: list[dict], masks: bool) -> list[dict]:
    """Our training inputs as the ``labels`` of Hugging Face's models."""
    ids = torch.tensor(ours.dataset_ids, device=ours.device)
    result = []
    for x in batched_inputs:
        instances = x["instances"]
        height, width = instances.image_size
        boxes = instances.gt_boxes.tensor
        low, high = (boxes / boxes.new_tensor([width, height, width, height])).split(2, dim=1)
        label = {
            "class_labels": ids[instances.gt_classes],
            "boxes": torch.cat([(low + high) / 2, high - low], 1),
        }
        if masks:
            label["masks"] = instances.gt_masks.tensor.float()
        result.append(label)
    return result
