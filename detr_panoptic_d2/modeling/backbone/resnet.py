"""Detectron2's ResNet with DETR's DC5."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import (
    BottleneckBlock,
    ResNet,
    build_resnet_backbone,
)

from ...errors import UserError
from .adapter import is_dilated


@BACKBONE_REGISTRY.register()
def build_detr_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet with torchvision's DC5, which official DETR uses.

    Both use dilation 2 instead of a stride in ``res5``. Detectron2 also dilates the first 3x3
    convolution of the stage, torchvision does not.
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
