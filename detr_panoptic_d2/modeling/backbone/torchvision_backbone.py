"""Torchvision's residual networks as Detectron2 backbones.

The parameters keep torchvision's own names under ``body.`` (``body.conv1.weight``,
``body.layer1.0.bn1.running_mean``, ...), which are those of the official DETR checkpoints.
"""

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter

from ...errors import UserError, check_value
from .adapter import LEVELS, AdaptedBackbone, is_dilated

_LAYERS = ("layer1", "layer2", "layer3", "layer4")


class TorchvisionResNet(AdaptedBackbone):
    """A ResNet, ResNeXt or Wide ResNet of torchvision that returns ``res2`` to ``res5``.

    Args:
        model_name: a residual network of ``torchvision.models``, such as ``resnet50``.
        dilated: dilation 2 instead of a stride in the last stage (DC5); bottlenecks only.
        norm, freeze_at: see :meth:`AdaptedBackbone.freeze`.
        pretrained: load torchvision's ImageNet weights ``IMAGENET1K_V1``, as official DETR does.

    Raises:
        UserError: for an unknown model, or basic blocks with dilation.
        UserError: if the weights are not cached and cannot be downloaded.
    """

    def __init__(
        self,
        *,
        model_name: str,
        norm: str = "FrozenBN",
        dilated: bool = False,
        freeze_at: int = 0,
        pretrained: bool = False,
    ) -> None:
        known = models.list_models(module=models, include=["resnet*", "resnext*", "wide_resnet*"])
        allowed = f"one of torchvision's residual networks, {', '.join(known)}"
        check_value("MODEL.DETR.BACKBONE.MODEL_NAME", model_name, model_name in known, allowed)
        try:
            network = models.get_model(
                model_name,
                weights="IMAGENET1K_V1" if pretrained else None,
                replace_stride_with_dilation=[False, False, dilated],
            )
        except NotImplementedError as error:
            raise UserError(
                f"MODEL.RESNETS.RES5_DILATION: {model_name} has basic blocks, which cannot be "
                "dilated; set it to 1 or choose a network with bottlenecks (resnet50 and up)"
            ) from error
        except OSError as error:
            raise UserError(
                "MODEL.DETR.BACKBONE.PRETRAINED is True, but the weights could not be downloaded: "
                f"{error}. Connect once, or put the file into {torch.hub.get_dir()}/checkpoints, "
                "or set the key to False and give MODEL.WEIGHTS"
            ) from error
        stages = [getattr(network, layer) for layer in _LAYERS]
        channels = [64 * 2**i * stages[0][0].expansion for i in range(4)]
        body = IntermediateLayerGetter(network, dict(zip(_LAYERS, LEVELS, strict=True)))
        super().__init__(body, channels, (4, 8, 16, 16 if dilated else 32))
        self.freeze(stages, freeze_at, norm, _freeze_norm)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Normalized images B x 3 x H x W of any size to ``res2`` .. ``res5``, each
        B x C x ceil(H / stride) x ceil(W / stride)."""
        return dict(self.body(images))


def _freeze_norm(norm: nn.Module) -> nn.Module:
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    # A counter of batches, which official checkpoints do not have.
    frozen.num_batches_tracked = None
    return frozen


@BACKBONE_REGISTRY.register()
def build_torchvision_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TorchvisionResNet:
    """Torchvision's network ``MODEL.DETR.BACKBONE.MODEL_NAME``."""
    channels = input_shape.channels
    check_value("len(MODEL.PIXEL_MEAN)", channels, channels == 3, "3 for torchvision's networks")
    return TorchvisionResNet(
        model_name=cfg.MODEL.DETR.BACKBONE.MODEL_NAME,
        norm=cfg.MODEL.RESNETS.NORM,
        dilated=is_dilated(cfg),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        pretrained=cfg.MODEL.DETR.BACKBONE.PRETRAINED,
    )
