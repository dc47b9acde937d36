"""Any timm model with four feature levels as a Detectron2 backbone."""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from ...errors import UserError
from .levels import LEVELS, is_dilated

_KEY = "MODEL.DETR.BACKBONE.MODEL_NAME"


class TimmBackbone(Backbone):
    """A timm feature extractor that returns ``res2`` to ``res5`` at strides 4, 8, 16 and 32.

    Models that need an input size of a multiple of 32 (timm's Swin for one) get their input
    padded with zeros at the right and at the bottom; the levels are cropped to their true size.

    Args:
        model_name: a name that ``timm.create_model`` knows.
        in_channels: channels of the input.
        norm: ``"FrozenBN"`` fixes the statistics and the affine part of every batch norm, ``"BN"``
            leaves the model as it is, ``"SyncBN"`` synchronises its batch norms. Models without
            batch norm are the same under all three.
        dilated: ask timm for output stride 16 (DC5); not every model has it.
        freeze_at: 0 freezes nothing, 1 what comes before ``res2``, 2 ``res2`` as well, ...
        pretrained: load timm's own weights.

    Raises:
        UserError: if timm is not installed.
        UserError: if the model does not exist or is no four-level backbone for free image sizes.
        UserError: if the weights can be neither found nor downloaded.
    """

    body: Any

    def __init__(
        self,
        *,
        model_name: str,
        in_channels: int = 3,
        norm: str = "FrozenBN",
        dilated: bool = False,
        freeze_at: int = 0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if norm not in ("FrozenBN", "BN", "SyncBN"):
            raise UserError(
                f"MODEL.RESNETS.NORM is {norm!r}: build_timm_backbone knows FrozenBN, BN and SyncBN"
            )
        options: dict[str, Any] = {"in_chans": in_channels}
        if dilated:
            options["output_stride"] = 16
        self.body = _create_model(model_name, pretrained, options)
        strides = (4, 8, 16, 16 if dilated else 32)
        reductions = tuple(self.body.feature_info.reduction())
        self._first = len(reductions) - 4
        if reductions[-4:] != strides:
            raise UserError(
                f"{_KEY} is {model_name!r}: its features have strides {list(reductions)}, but the "
                f"last four must be {list(strides)}; choose a model with four levels (convnext, "
                "swin, efficientnet, resnet, ...)"
            )
        self._out_features = list(LEVELS)
        self._out_feature_channels = dict(
            zip(LEVELS, self.body.feature_info.channels()[-4:], strict=True)
        )
        self._out_feature_strides = dict(zip(LEVELS, strides, strict=True))
        self._channels_last = str(getattr(self.body, "output_fmt", None)).endswith("NHWC")
        self._freeze(freeze_at)
        self._set_norm(norm)
        self._pad_to = self._find_padding(model_name, in_channels)

    def _freeze(self, freeze_at: int) -> None:
        """Freeze every parameter up to the last one of the level ``freeze_at`` stands for."""
        if freeze_at < 1:
            return
        names = self.body.feature_info.module_name()[-4:]
        stages = [_find_stage(self.body, name) for name in names]
        parameters = list(self.body.parameters())
        position = {id(parameter): i for i, parameter in enumerate(parameters)}
        if freeze_at == 1:
            end = min(position[id(p)] for p in stages[0].parameters())
        else:
            end = 1 + max(position[id(p)] for p in stages[min(freeze_at, 5) - 2].parameters())
        for parameter in parameters[:end]:
            parameter.requires_grad_(False)

    def _set_norm(self, norm: str) -> None:
        """Fix the statistics of all batch norms or of the frozen ones, or synchronise them."""
        from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

        for name, module in list(self.body.named_modules()):
            if not isinstance(module, nn.BatchNorm2d):
                continue
            frozen = not any(parameter.requires_grad for parameter in module.parameters())
            if norm == "FrozenBN" or frozen:
                parent, _, child = name.rpartition(".")
                setattr(self.body.get_submodule(parent), child, freeze_batch_norm_2d(module))
        if norm == "SyncBN":
            self.body = convert_sync_batchnorm(self.body)

    def _find_padding(self, model_name: str, in_channels: int) -> int:
        """Run tiny images: 1 if the model takes any size, 32 if it needs multiples of 32."""
        self.eval()  # no batch statistics, no dropout
        failure = None
        for multiple in (1, 32):
            sizes = [(-(-65 // multiple) * multiple, -(-97 // multiple) * multiple), (128, 96)]
            try:
                with torch.no_grad():
                    for height, width in sizes:
                        self.body(torch.zeros(1, in_channels, height, width))
            except (AssertionError, RuntimeError, ValueError) as error:
                failure = error
                continue
            self.train()
            return multiple
        raise UserError(
            f"{_KEY} is {model_name!r}: this model works on images of one fixed size only "
            f"({failure}); choose one for free sizes (convnext, swin, efficientnet, resnet, ...)"
        ) from failure

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            images: B x C x H x W, normalised; H and W are free.

        Returns:
            ``res2`` .. ``res5``, each B x C x H / stride x W / stride, rounded as the model does.
        """
        height, width = images.shape[-2:]
        if self._pad_to > 1:
            images = F.pad(images, (0, -width % self._pad_to, 0, -height % self._pad_to))
        outputs = {}
        for level, feature in zip(LEVELS, self.body(images)[self._first :], strict=True):
            if self._channels_last:
                feature = feature.permute(0, 3, 1, 2)
            if self._pad_to > 1:
                stride = self._out_feature_strides[level]
                feature = feature[..., : -(-height // stride), : -(-width // stride)]
            outputs[level] = feature.contiguous()
        return outputs


def _create_model(model_name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """``timm.create_model`` as a feature extractor for free image sizes, with clear errors."""
    try:
        import timm
    except ImportError as error:
        raise UserError(
            "build_timm_backbone needs timm: pip install 'detr_panoptic_d2[timm]'"
        ) from error
    options = {"pretrained": pretrained, "features_only": True, **options}
    try:
        try:
            return timm.create_model(model_name, strict_img_size=False, **options)
        except TypeError as error:  # only window models have that option
            if "strict_img_size" not in str(error):
                raise
            return timm.create_model(model_name, **options)
    except Exception as error:  # timm and its hub raise errors of many libraries
        advice = "timm.list_models() has the names"
        if pretrained:
            advice = (
                "for MODEL.DETR.BACKBONE.PRETRAINED True connect once so that timm can cache the "
                "weights, or set it to False and give MODEL.WEIGHTS"
            )
        raise UserError(f"{_KEY} is {model_name!r}, but timm says: {error}; {advice}") from error


def _find_stage(body: nn.Module, name: str) -> nn.Module:
    """The module that yields a level; timm's wrappers flatten or prefix its name."""
    for candidate in (name, name.replace(".", "_"), f"model.{name}"):
        try:
            return body.get_submodule(candidate)
        except AttributeError:
            continue
    raise UserError(
        f"MODEL.BACKBONE.FREEZE_AT: cannot find the stage {name!r} in {type(body).__name__}; "
        "set the key to 0"
    )


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """timm's model ``MODEL.DETR.BACKBONE.MODEL_NAME``."""
    return TimmBackbone(
        model_name=cfg.MODEL.DETR.BACKBONE.MODEL_NAME,
        in_channels=input_shape.channels,
        norm=cfg.MODEL.RESNETS.NORM,
        dilated=is_dilated(cfg),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        pretrained=cfg.MODEL.DETR.BACKBONE.PRETRAINED,
    )
