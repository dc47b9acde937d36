"""Backbones, transformer, mask head and losses. Importing it registers backbones and mask heads."""

from .backbone import check_backbone
from .criterion import SetCriterion
from .mask_head import MASK_HEAD_REGISTRY, BoxAttentionMap, MaskHeadSmallConv, build_mask_head
from .matcher import HungarianMatcher
from .position_encoding import PositionEmbeddingSine
from .transformer import Transformer

__all__ = [
    "MASK_HEAD_REGISTRY",
    "BoxAttentionMap",
    "HungarianMatcher",
    "MaskHeadSmallConv",
    "PositionEmbeddingSine",
    "SetCriterion",
    "Transformer",
    "build_mask_head",
    "check_backbone",
]
