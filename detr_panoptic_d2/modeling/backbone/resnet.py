"""Backbones that return ``res2`` to ``res5``, registered in Detectron2's ``BACKBONE_REGISTRY``.

Every builder takes ``(cfg, input_shape)`` as Detectron2's own do. Only the builders see ``cfg``.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    ResNet,
    build_resnet_backbone,
)
from detectron2.modeling.backbone.swin import SwinTransformer

from ...errors import UserError
from .timm_backbone import TimmBackbone
from .torchvision_backbone import LEVELS, TorchvisionResNet

__all__ = [
    "LEVELS",
    "RenamedBackbone",
    "Swin",
    "TimmBackbone",
    "TorchvisionResNet",
    "build_detr_resnet_backbone",
    "build_narrow_resnet_backbone",
    "build_renamed_backbone",
    "build_swin_backbone",
    "build_timm_backbone",
    "build_torchvision_backbone",
    "check_backbone",
    "narrow_resnet",
]


def check_backbone(backbone: Backbone) -> None:
    """Check that a backbone returns the four levels of DETR's panoptic head.

    Raises:
        UserError: if one of ``res2`` .. ``res5`` is missing from ``output_shape()``.
    """
    names = list(backbone.output_shape())
    missing = [level for level in LEVELS if level not in names]
    if missing:
        raise UserError(
            f"{type(backbone).__name__} returns {names} but {missing} are needed: for a ResNet set "
            f"MODEL.RESNETS.OUT_FEATURES to {list(LEVELS)}; for another four-level backbone set "
            "MODEL.BACKBONE.NAME to build_renamed_backbone"
        )


class RenamedBackbone(Backbone):
    """Another Detectron2 backbone whose four levels are called ``res2`` to ``res5``.

    Args:
        backbone: the backbone to wrap; its parameters appear under ``body.``.
        features: names of its four levels, finest first.

    Raises:
        UserError: if there are not four of them, or one is missing, or they are out of order.
    """

    def __init__(self, *, backbone: Backbone, features: Sequence[str]) -> None:
        super().__init__()
        key = "MODEL.DETR.BACKBONE.FEATURES"
        shapes = backbone.output_shape()
        if len(features) != 4:
            raise UserError(f"{key} is {list(features)}: it must name four levels, finest first")
        missing = [name for name in features if name not in shapes]
        if missing:
            raise UserError(
                f"{key} names {missing}, but {type(backbone).__name__} returns {list(shapes)}"
            )
        strides = [shapes[name].stride for name in features]
        if strides != sorted(strides) or len(set(features)) != 4:
            raise UserError(
                f"{key} is {list(features)} with strides {strides}: name four levels, finest first"
            )
        self.body = backbone
        self._names = dict(zip(LEVELS, features, strict=True))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            images: B x C x H x W, normalised, padded to ``size_divisibility``.

        Returns:
            the wrapped backbone's levels as ``res2`` .. ``res5``.
        """
        outputs = self.body(images)
        return {level: outputs[name] for level, name in self._names.items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level."""
        shapes = self.body.output_shape()
        return {level: shapes[name] for level, name in self._names.items()}

    @property
    def size_divisibility(self) -> int:
        """That of the wrapped backbone."""
        return self.body.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Those of the wrapped backbone."""
        return self.body.padding_constraints


class Swin(SwinTransformer):
    """Detectron2's Swin transformer with a readable ``size_divisibility``.

    Detectron2's class stores that number under a misspelled name, so reading it raises. Its layers
    pad their input themselves: any size will do.
    """

    @property
    def size_divisibility(self) -> int:
        """0: any size will do."""
        return 0


def narrow_resnet(
    *,
    in_channels: int,
    widths: Sequence[int],
    blocks: Sequence[int],
    norm: str,
    dilated: bool = False,
    freeze_at: int = 0,
) -> ResNet:
    """A small ResNet of basic blocks, to be trained from scratch.

    Args:
        in_channels: channels of the input.
        widths: channels of ``res2`` .. ``res5``; the stem has those of ``res2``.
        blocks: blocks per stage.
        norm: see :func:`detectron2.layers.get_norm`.
        dilated: ``res5`` keeps the stride of ``res4``, 16 (basic blocks are not dilated).
        freeze_at: see :meth:`detectron2.modeling.backbone.ResNet.freeze`.

    Raises:
        UserError: for numbers that make no network.
    """
    prefix = "MODEL.DETR.BACKBONE"
    if len(widths) != 4 or len(blocks) != 4 or min(*widths, *blocks) < 1:
        raise UserError(
            f"{prefix}.WIDTHS {list(widths)} and {prefix}.BLOCKS {list(blocks)} must each be four "
            "positive numbers"
        )
    if norm == "GN" and any(width % 32 for width in widths):
        raise UserError(
            f"{prefix}.WIDTHS {list(widths)} must be multiples of 32 under MODEL.RESNETS.NORM GN"
        )
    strides = (1, 2, 2, 1 if dilated else 2)
    stages = []
    channels = widths[0]
    for width, count, stride in zip(widths, blocks, strides, strict=True):
        if stride != 1 and width == channels:
            raise UserError(
                f"{prefix}.WIDTHS {list(widths)}: a basic block with a stride must change its width"
            )
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                count,
                in_channels=channels,
                out_channels=width,
                stride_per_block=[stride] + [1] * (count - 1),
                norm=norm,
            )
        )
        channels = width
    stem = BasicStem(in_channels=in_channels, out_channels=widths[0], norm=norm)
    return ResNet(stem, stages, out_features=list(LEVELS), freeze_at=freeze_at)


def _is_dilated(cfg: CfgNode) -> bool:
    """Whether ``res5`` keeps the stride of ``res4`` (DC5)."""
    dilation = cfg.MODEL.RESNETS.RES5_DILATION
    if dilation not in (1, 2):
        raise UserError(f"MODEL.RESNETS.RES5_DILATION is {dilation}: it must be 1 or 2")
    return dilation == 2


@BACKBONE_REGISTRY.register()
def build_detr_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet with torchvision's DC5, which is that of the official DETR.

    Both give ``res5`` dilation 2 in place of its stride. Torchvision leaves the first 3x3
    convolution of the stage undilated; Detectron2 dilates it too, which is another network.
    """
    backbone = build_resnet_backbone(cfg, input_shape)
    if _is_dilated(cfg) and hasattr(backbone, "res5"):
        first = backbone.res5[0]
        if type(first) is not BottleneckBlock:
            raise UserError(
                f"build_detr_resnet_backbone: res5 of {type(first).__name__} cannot be DETR's DC5; "
                "set MODEL.RESNETS.RES5_DILATION to 1 or clear MODEL.RESNETS.DEFORM_ON_PER_STAGE"
            )
        first.conv2.dilation = (1, 1)
        first.conv2.padding = (1, 1)
    return backbone


@BACKBONE_REGISTRY.register()
def build_torchvision_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TorchvisionResNet:
    """Torchvision's network ``MODEL.DETR.BACKBONE.MODEL_NAME``."""
    if input_shape.channels != 3:
        raise UserError(
            f"MODEL.PIXEL_MEAN has {input_shape.channels} channels: torchvision's networks take 3"
        )
    return TorchvisionResNet(
        model_name=cfg.MODEL.DETR.BACKBONE.MODEL_NAME,
        norm=cfg.MODEL.RESNETS.NORM,
        dilated=_is_dilated(cfg),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        pretrained=cfg.MODEL.DETR.BACKBONE.PRETRAINED,
    )


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """timm's model ``MODEL.DETR.BACKBONE.MODEL_NAME``."""
    return TimmBackbone(
        model_name=cfg.MODEL.DETR.BACKBONE.MODEL_NAME,
        in_channels=input_shape.channels,
        norm=cfg.MODEL.RESNETS.NORM,
        dilated=_is_dilated(cfg),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        pretrained=cfg.MODEL.DETR.BACKBONE.PRETRAINED,
    )


@BACKBONE_REGISTRY.register()
def build_renamed_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> RenamedBackbone:
    """Detectron2's backbone ``MODEL.DETR.BACKBONE.MODEL_NAME`` with its levels renamed."""
    name = cfg.MODEL.DETR.BACKBONE.MODEL_NAME
    known = sorted(key for key, _ in BACKBONE_REGISTRY if key != "build_renamed_backbone")
    if name not in known:
        raise UserError(
            f"MODEL.DETR.BACKBONE.MODEL_NAME is {name!r}: build_renamed_backbone wraps one of "
            f"{', '.join(known)}"
        )
    return RenamedBackbone(
        backbone=BACKBONE_REGISTRY.get(name)(cfg, input_shape),
        features=cfg.MODEL.DETR.BACKBONE.FEATURES,
    )


@BACKBONE_REGISTRY.register()
def build_narrow_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """A small ResNet, see :func:`narrow_resnet`."""
    return narrow_resnet(
        in_channels=input_shape.channels,
        widths=cfg.MODEL.DETR.BACKBONE.WIDTHS,
        blocks=cfg.MODEL.DETR.BACKBONE.BLOCKS,
        norm=cfg.MODEL.RESNETS.NORM,
        dilated=_is_dilated(cfg),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Swin:
    """Detectron2's Swin transformer; it returns ``p0`` .. ``p3``, see build_renamed_backbone."""
    swin = cfg.MODEL.DETR.BACKBONE.SWIN
    return Swin(
        in_chans=input_shape.channels,
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        num_heads=swin.NUM_HEADS,
        window_size=swin.WINDOW_SIZE,
        drop_path_rate=swin.DROP_PATH_RATE,
        # Detectron2 counts from -1 (nothing), 1 is the patch embedding, 2 the first stage.
        frozen_stages=cfg.MODEL.BACKBONE.FREEZE_AT or -1,
    )
