"""Backbones that return ``res2`` to ``res5``, registered in Detectron2's ``BACKBONE_REGISTRY``.

Every builder takes ``(cfg, input_shape)`` as Detectron2's own do. Only the builders see ``cfg``.
"""

from .levels import LEVELS, check_backbone
from .renamed import RenamedBackbone, build_renamed_backbone
from .resnet import build_detr_resnet_backbone, build_narrow_resnet_backbone, narrow_resnet
from .timm_backbone import TimmBackbone, build_timm_backbone
from .torchvision_backbone import TorchvisionResNet, build_torchvision_backbone

__all__ = [
    "LEVELS",
    "RenamedBackbone",
    "TimmBackbone",
    "TorchvisionResNet",
    "build_detr_resnet_backbone",
    "build_narrow_resnet_backbone",
    "build_renamed_backbone",
    "build_timm_backbone",
    "build_torchvision_backbone",
    "check_backbone",
    "narrow_resnet",
]
