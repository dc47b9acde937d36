"""The backbone of the demo: a narrow ResNet for training from scratch."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

from ...errors import check_value
from ...modeling.backbone import LEVELS, is_dilated


class UnpooledStem(BasicStem):
    """The ResNet stem without its max pooling: stride 2."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__(in_channels, out_channels, norm)
        self.stride = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu_(self.conv1(x))


@BACKBONE_REGISTRY.register()
def build_narrow_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a small ResNet of basic blocks.

    ``MODEL.DETR.BACKBONE`` has WIDTHS, the channels of ``res2`` to ``res5`` (the stem has those of
    ``res2``); BLOCKS, the number of blocks per stage; and STEM_STRIDE, the stride of stem and
    ``res2``: 4, or 2 for masks on a grid twice as fine. DC5 keeps the stride of ``res4``; basic
    blocks are not dilated.
    """
    keys, norm, prefix = cfg.MODEL.DETR.BACKBONE, cfg.MODEL.RESNETS.NORM, "MODEL.DETR.BACKBONE"
    widths, blocks, stem_stride = list(keys.WIDTHS), list(keys.BLOCKS), keys.STEM_STRIDE
    for key, values in (("WIDTHS", widths), ("BLOCKS", blocks)):
        valid = len(values) == 4 and min(values) >= 1
        check_value(f"{prefix}.{key}", values, valid, "four numbers from 1 on")
    check_value(f"{prefix}.STEM_STRIDE", stem_stride, stem_stride in (2, 4), "2 or 4")
    stages, channels = [], widths[0]
    strides = (1, 2, 2, 1 if is_dilated(cfg) else 2)
    for width, count, stride in zip(widths, blocks, strides, strict=True):
        # Detectron2's basic block has a shortcut with a stride only if the width changes.
        valid = stride == 1 or width != channels
        check_value(f"{prefix}.WIDTHS", widths, valid, "another number at each stride")
        block_strides = [stride] + [1] * (count - 1)
        options = {"in_channels": channels, "out_channels": width, "norm": norm}
        stages.append(
            ResNet.make_stage(BasicBlock, count, stride_per_block=block_strides, **options)
        )
        channels = width
    stem = BasicStem if stem_stride == 4 else UnpooledStem
    stem = stem(input_shape.channels, widths[0], norm)
    return ResNet(stem, stages, out_features=list(LEVELS), freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
