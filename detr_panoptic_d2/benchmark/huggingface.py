"""Hugging Face's DETR with our weights: the other side of the comparison."""

import re

import torch
from detectron2.config import CfgNode
from torch import nn

from ..checkpoint.huggingface_names import BACKBONE, from_own, older_name
from ..checkpoint.names import rename_resnet
from ..checkpoint.resnet_names import ResNetNames
from ..errors import UserError
from .agreement import Disagreement

_INSTALL = (
    "--against huggingface needs transformers and timm, which are not installed; run "
    "`pip install 'detr-panoptic-d2[huggingface,timm]'`"
)
_RESNETS = ("build_resnet_backbone", "build_detr_resnet_backbone")


def build_huggingface(cfg: CfgNode, ours: nn.Module) -> nn.Module:
    """``DetrForSegmentation`` of the same shape and weights, in eval mode on the same device.

    Its part ``.detr`` is a ``DetrForObjectDetection``.

    Args:
        cfg: our config.
        ours: our model; its weights are copied.

    Raises:
        ModuleNotFoundError: transformers or timm are missing; one line with the remedy.
        UserError: Hugging Face has no such model (backbone, norm, pre-norm).
    """
    try:
        import timm  # noqa: F401  transformers builds its backbone with it
        from transformers import DetrConfig, DetrForSegmentation
    except ImportError as error:
        raise ModuleNotFoundError(_INSTALL) from error
    detr = cfg.MODEL.DETR
    config = DetrConfig(
        use_timm_backbone=True,
        backbone=_backbone_name(cfg),
        use_pretrained_backbone=False,
        dilation=cfg.MODEL.RESNETS.RES5_DILATION == 2,
        num_labels=detr.NUM_CLASSES,
        num_queries=detr.NUM_OBJECT_QUERIES,
        d_model=detr.HIDDEN_DIM,
        encoder_layers=detr.ENC_LAYERS,
        decoder_layers=detr.DEC_LAYERS,
        encoder_attention_heads=detr.NHEADS,
        decoder_attention_heads=detr.NHEADS,
        encoder_ffn_dim=detr.DIM_FEEDFORWARD,
        decoder_ffn_dim=detr.DIM_FEEDFORWARD,
        dropout=detr.DROPOUT,
        attention_dropout=detr.DROPOUT,
        activation_dropout=detr.DROPOUT,
        eos_coefficient=detr.NO_OBJECT_WEIGHT,
        **_costs(detr),
    )
    model = DetrForSegmentation(config).to(ours.device).eval()
    copy_weights(ours, model)
    return model


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy every weight of our model to Hugging Face's.

    Raises:
        Disagreement: a weight of either side has no counterpart.
    """
    # The names of transformers 4, without the prefix that the panoptic model gives the detector.
    tensors = rename_resnet(ours.state_dict(), ResNetNames(BACKBONE, "torchvision"))
    source = {older_name(name): tensor for name, tensor in from_own(tensors).items()}
    wanted = theirs.state_dict()
    names = {older_name(name) for name in wanted}
    if source.keys() != names:
        only = [sorted(side)[:3] for side in (source.keys() - names, names - source.keys())]
        raise Disagreement(
            f"weights without a counterpart: on our side {only[0]}, on Hugging Face's {only[1]}"
        )
    theirs.load_state_dict({name: source[older_name(name)] for name in wanted})


def panoptic_labels(batched_inputs: list[dict], with_masks: bool) -> list[dict]:
    """Our training inputs as the ``labels`` of Hugging Face's models."""
    labels = []
    for x in batched_inputs:
        instances = x["instances"]
        height, width = instances.image_size
        boxes = instances.gt_boxes.tensor
        corners = boxes / boxes.new_tensor([width, height, width, height])
        low, high = corners[:, :2], corners[:, 2:]
        label = {
            "class_labels": instances.gt_classes,
            "boxes": torch.cat([(low + high) / 2, high - low], 1),
        }
        if with_masks:
            label["masks"] = instances.gt_masks.tensor.float()
        labels.append(label)
    return labels


def _costs(detr: CfgNode) -> dict[str, int]:
    """Matching costs and loss weights; Hugging Face's config takes whole numbers only."""
    keys = {
        "CLASS_WEIGHT": ("class_cost",),
        "L1_WEIGHT": ("bbox_cost", "bbox_loss_coefficient"),
        "GIOU_WEIGHT": ("giou_cost", "giou_loss_coefficient"),
        "MASK_WEIGHT": ("mask_loss_coefficient",),
        "DICE_WEIGHT": ("dice_loss_coefficient",),
    }
    for key in keys:
        if int(detr[key]) != detr[key]:
            raise UserError(
                f"--against huggingface: MODEL.DETR.{key} is {detr[key]}, but Hugging Face's DETR "
                "takes whole numbers only"
            )
    return {name: int(detr[key]) for key, names in keys.items() for name in names}


def _backbone_name(cfg: CfgNode) -> str:
    """What timm calls the config's ResNet."""
    name, resnets = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS
    if cfg.MODEL.DETR.PRE_NORM:
        raise UserError("Hugging Face's DETR has no pre-norm: set MODEL.DETR.PRE_NORM to False")
    if resnets.NORM == "FrozenBN":
        if name in _RESNETS and not resnets.STRIDE_IN_1X1 and resnets.NUM_GROUPS == 1:
            return f"resnet{resnets.DEPTH}"
        model_name = cfg.MODEL.DETR.BACKBONE.MODEL_NAME
        if name == "build_torchvision_backbone" and re.fullmatch(r"resnet\d+", model_name):
            return model_name
    raise UserError(
        f"--against huggingface: MODEL.BACKBONE.NAME {name} with these settings has no counterpart "
        "there. Plain ResNets with MODEL.RESNETS.NORM FrozenBN and STRIDE_IN_1X1 False do."
    )
