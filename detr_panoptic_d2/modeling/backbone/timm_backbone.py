"""Any timm model with four feature levels as a Detectron2 backbone."""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn

from ...errors import UserError, check_value
from .adapter import LEVELS, AdaptedBackbone, is_dilated

_KEY = "MODEL.DETR.BACKBONE.MODEL_NAME"


class TimmBackbone(AdaptedBackbone):
    """A timm feature extractor that returns ``res2`` to ``res5`` at strides 4, 8, 16 and 32.

    The input of window models (timm's Swin, for example) is padded with zeros at the right and
    bottom to a multiple of 32, and their levels are cropped to the true size.

    Args:
        model_name: a name that ``timm.create_model`` knows.
        dilated: output stride 16 (DC5); not every model supports it.
        norm, freeze_at: see :meth:`AdaptedBackbone.freeze`.

    Raises:
        UserError: timm or its weights are not there, or the model has other levels or needs one
            image size.
    """

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
        options = {"in_chans": in_channels, "pretrained": pretrained, "features_only": True}
        if dilated:
            options["output_stride"] = 16
        body, has_windows = _create_model(model_name, options)
        from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

        info, strides = body.feature_info, [4, 8, 16, 16 if dilated else 32]
        reductions = list(info.reduction())
        allowed = f"a model with strides {strides}, not {reductions} (convnext, swin, resnet, ...)"
        check_value(_KEY, model_name, reductions[-4:] == strides, allowed)
        super().__init__(body, info.channels()[-4:], strides)
        self._pad_to = 32 if has_windows else 1
        self._channels_last = str(getattr(body, "output_fmt", None)).endswith("NHWC")
        try:
            with torch.no_grad():
                self.eval()(torch.zeros(1, in_channels, 65, 97))
        except (AssertionError, RuntimeError, ValueError) as error:
            allowed = f"a model for images of any size (convnext, swin, ...): {error}"
            raise UserError(f"{_KEY} is {model_name!r}, but must be {allowed}") from error
        self.train()
        stages = [_find_stage(body, name) for name in info.module_name()[-4:]]
        self.freeze(stages, freeze_at, norm, freeze_batch_norm_2d, convert_sync_batchnorm)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Normalized images B x C x H x W of any size to ``res2`` .. ``res5``."""
        height, width = images.shape[-2:]
        if self._pad_to > 1:
            images = F.pad(images, (0, -width % self._pad_to, 0, -height % self._pad_to))
        outputs = {}
        for level, feature in zip(LEVELS, self.body(images)[-4:], strict=True):
            if self._channels_last:
                feature = feature.permute(0, 3, 1, 2)
            if self._pad_to > 1:
                stride = self._out_feature_strides[level]
                feature = feature[..., : -(-height // stride), : -(-width // stride)]
            outputs[level] = feature.contiguous()
        return outputs


def _create_model(model_name: str, options: dict[str, Any]) -> tuple[Any, bool]:
    """Build the feature extractor; also return whether it is a window model."""
    try:
        import timm
    except ImportError as error:
        raise UserError("build_timm_backbone needs timm: pip install '.[timm]'") from error
    try:
        try:
            # Window models accept any multiple of their stride if they do not check the size.
            return timm.create_model(model_name, strict_img_size=False, **options), True
        except TypeError as error:  # only window models have this option
            if "strict_img_size" not in str(error):
                raise
            return timm.create_model(model_name, **options), False
    except Exception as error:  # timm and its hub raise many types
        raise UserError(
            f"{_KEY} is {model_name!r}, but timm says: {error}. timm.list_models() has the names; "
            "for MODEL.DETR.BACKBONE.PRETRAINED True connect once so that timm can cache the "
            "weights, or set it to False and give MODEL.WEIGHTS"
        ) from error


def _find_stage(body: nn.Module, name: str) -> nn.Module:
    """Find the module that yields a level. timm's wrappers flatten or prefix its name."""
    modules = dict(body.named_modules())
    for candidate in (name, name.replace(".", "_"), f"model.{name}"):
        if candidate in modules:
            return modules[candidate]
    raise UserError(f"{_KEY}: cannot find the stage {name!r} in {type(body).__name__}")


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
