"""The four levels of DETR's panoptic head, and adapters for other networks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from ...errors import UserError, check_value, look_up

LEVELS = ("res2", "res3", "res4", "res5")


def check_backbone(backbone: Backbone) -> None:
    """Raise a ``UserError`` if a backbone does not return ``res2`` to ``res5``."""
    names = list(backbone.output_shape())
    if missing := [level for level in LEVELS if level not in names]:
        raise UserError(
            f"{type(backbone).__name__} returns {names} but {missing} are needed: for a ResNet set "
            f"MODEL.RESNETS.OUT_FEATURES to {list(LEVELS)}; for another four-level backbone set "
            "MODEL.BACKBONE.NAME to build_renamed_backbone"
        )


def is_dilated(cfg: CfgNode) -> bool:
    """Whether ``res5`` keeps the stride of ``res4`` (DC5)."""
    dilation = cfg.MODEL.RESNETS.RES5_DILATION
    check_value("MODEL.RESNETS.RES5_DILATION", dilation, dilation in (1, 2), "1 or 2")
    return dilation == 2


class AdaptedBackbone(Backbone):
    """A network with parameters under ``body.`` and outputs ``LEVELS``."""

    body: Any

    def __init__(self, body: nn.Module, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        self._out_features = list(LEVELS)
        self._out_feature_channels = dict(zip(LEVELS, channels, strict=True))
        self._out_feature_strides = dict(zip(LEVELS, strides, strict=True))

    def freeze(
        self,
        stages: Sequence[nn.Module],
        freeze_at: int,
        norm: str,
        freeze_norm: Callable[[nn.Module], nn.Module],
        synchronize: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm,
    ) -> None:
        """Freeze the first parameters, and freeze or synchronize batch norms.

        Args:
            stages: the modules that yield ``res2`` to ``res5``.
            freeze_at: 0 freezes nothing, 1 everything before ``res2``, 2 also ``res2``, ...
            norm: ``"FrozenBN"`` freezes all batch norms, ``"BN"`` those of frozen parameters only;
                ``"SyncBN"`` also synchronizes the others.
            freeze_norm, synchronize: convert one norm, and all norms of a module.
        """
        allowed = f"FrozenBN, BN or SyncBN with {type(self).__name__}"
        check_value("MODEL.RESNETS.NORM", norm, norm in ("FrozenBN", "BN", "SyncBN"), allowed)
        parameters = list(self.body.parameters())
        position = {id(parameter): i for i, parameter in enumerate(parameters)}
        end = 0
        if freeze_at == 1:
            end = min(position[id(p)] for p in stages[0].parameters())
        elif freeze_at > 1:
            end = 1 + max(position[id(p)] for p in stages[min(freeze_at, 5) - 2].parameters())
        for parameter in parameters[:end]:
            parameter.requires_grad_(False)
        for name, module in list(self.body.named_modules()):
            if not isinstance(module, nn.BatchNorm2d):
                continue
            if norm == "FrozenBN" or not any(p.requires_grad for p in module.parameters()):
                parent, _, child = name.rpartition(".")
                setattr(self.body.get_submodule(parent), child, freeze_norm(module))
        if norm == "SyncBN":
            self.body = synchronize(self.body)


class RenamedBackbone(AdaptedBackbone):
    """Another Detectron2 backbone: four of its ``features``, finest first, are called ``res2`` to
    ``res5``."""

    def __init__(self, *, backbone: Backbone, features: Sequence[str]) -> None:
        shapes = backbone.output_shape()
        levels = [shapes[name] for name in features if name in shapes]
        strides = [shape.stride for shape in levels]
        valid = len(set(features)) == len(levels) == 4 and strides == sorted(strides)
        allowed = f"four of the levels of {type(backbone).__name__}, {list(shapes)}, finest first"
        check_value("MODEL.DETR.BACKBONE.FEATURES", list(features), valid, allowed)
        super().__init__(backbone, [shape.channels for shape in levels], strides)
        self._names = dict(zip(LEVELS, features, strict=True))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images B x C x H x W to the wrapped backbone's levels as ``res2`` .. ``res5``."""
        outputs = self.body(images)
        return {level: outputs[name] for level, name in self._names.items()}

    @property
    def size_divisibility(self) -> int:
        return self.body.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.body.padding_constraints


@BACKBONE_REGISTRY.register()
def build_renamed_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> RenamedBackbone:
    """Detectron2's backbone ``MODEL.DETR.BACKBONE.MODEL_NAME`` with its levels renamed."""
    key, name = "MODEL.DETR.BACKBONE.MODEL_NAME", cfg.MODEL.DETR.BACKBONE.MODEL_NAME
    check_value(key, name, name != "build_renamed_backbone", "the name of the backbone to wrap")
    backbone = look_up(key, name, BACKBONE_REGISTRY)(cfg, input_shape)
    return RenamedBackbone(backbone=backbone, features=cfg.MODEL.DETR.BACKBONE.FEATURES)
