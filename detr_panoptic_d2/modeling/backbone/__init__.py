"""Backbones that return ``res2`` to ``res5``, registered in Detectron2's ``BACKBONE_REGISTRY``.

Every builder takes ``(cfg, input_shape)`` as Detectron2's own do. Only the builders see ``cfg``.
"""

from .adapter import LEVELS, RenamedBackbone, check_backbone, is_dilated
from .freezing import freeze_unused_parameters, frozen_norms, lacks_norm_statistics
from .resnet import build_detr_resnet_backbone
from .timm_backbone import TimmBackbone
from .torchvision_backbone import TorchvisionBackbone

__all__ = [
    "LEVELS",
    "RenamedBackbone",
    "TimmBackbone",
    "TorchvisionBackbone",
    "build_detr_resnet_backbone",
    "check_backbone",
    "freeze_unused_parameters",
    "frozen_norms",
    "is_dilated",
    "lacks_norm_statistics",
]
