"""Other backbones of Detectron2, their levels renamed to ``res2`` to ``res5``."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from ...errors import UserError
from .levels import LEVELS


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
