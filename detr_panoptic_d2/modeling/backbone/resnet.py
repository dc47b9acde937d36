"""Detectron2's ResNet with DETR's DC5, and a narrow one to be trained from scratch."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    ResNet,
    build_resnet_backbone,
)

from ...errors import UserError, check_value
from .adapter import LEVELS, is_dilated


@BACKBONE_REGISTRY.register()
def build_detr_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet with torchvision's DC5, which is that of the official DETR.

    Both give ``res5`` dilation 2 in place of its stride. Torchvision leaves the first 3x3
    convolution of the stage undilated; Detectron2 dilates it too, which is another network.
    """
    backbone = build_resnet_backbone(cfg, input_shape)
    if is_dilated(cfg) and hasattr(backbone, "res5"):
        first = backbone.res5[0]
        if type(first) is not BottleneckBlock:
            raise UserError(
                f"build_detr_resnet_backbone: res5 of {type(first).__name__} cannot be DETR's DC5; "
                "set MODEL.RESNETS.RES5_DILATION to 1 or clear MODEL.RESNETS.DEFORM_ON_PER_STAGE"
            )
        first.conv2.dilation = (1, 1)
        first.conv2.padding = (1, 1)
    return backbone


class UnpooledStem(BasicStem):
    """The ResNet stem without its max pooling: stride 2."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__(in_channels, out_channels, norm)
        self.stride = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu_(self.conv1(x))


def narrow_resnet(
    *,
    in_channels: int,
    widths: Sequence[int],
    blocks: Sequence[int],
    norm: str,
    dilated: bool = False,
    stem_stride: int = 4,
    freeze_at: int = 0,
) -> ResNet:
    """A small ResNet of basic blocks, to be trained from scratch.

    Args:
        in_channels: channels of the input.
        widths: channels of ``res2`` .. ``res5``; the stem has those of ``res2``.
        blocks: blocks per stage.
        norm: see :func:`detectron2.layers.get_norm`.
        dilated: ``res5`` keeps the stride of ``res4`` (basic blocks are not dilated).
        stem_stride: that of ``res2`` as well; 4, or 2 for masks on a grid twice as fine.
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
    check_value(f"{prefix}.STEM_STRIDE", stem_stride, stem_stride in (2, 4), "2 or 4")
    valid = norm != "GN" or all(width % 32 == 0 for width in widths)
    allowed = "multiples of 32 under MODEL.RESNETS.NORM GN"
    check_value(f"{prefix}.WIDTHS", list(widths), valid, allowed)
    strides = (1, 2, 2, 1 if dilated else 2)
    stages = []
    channels = widths[0]
    for width, count, stride in zip(widths, blocks, strides, strict=True):
        # A basic block of Detectron2 has a shortcut for its stride only where the width changes.
        valid = stride == 1 or width != channels
        check_value(f"{prefix}.WIDTHS", list(widths), valid, "another number at each stride")
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
    stem = (BasicStem if stem_stride == 4 else UnpooledStem)(in_channels, widths[0], norm)
    return ResNet(stem, stages, out_features=list(LEVELS), freeze_at=freeze_at)


@BACKBONE_REGISTRY.register()
def build_narrow_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """A small ResNet, see :func:`narrow_resnet`."""
    return narrow_resnet(
        in_channels=input_shape.channels,
        widths=cfg.MODEL.DETR.BACKBONE.WIDTHS,
        blocks=cfg.MODEL.DETR.BACKBONE.BLOCKS,
        norm=cfg.MODEL.RESNETS.NORM,
        dilated=is_dilated(cfg),
        stem_stride=cfg.MODEL.DETR.BACKBONE.STEM_STRIDE,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
