"""Torchvision's ResNets and ShuffleNets as Detectron2 backbones.

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

# The modules that return res2 to res5.
_RESNET = ("layer1", "layer2", "layer3", "layer4")
_SHUFFLENET = ("maxpool", "stage2", "stage3", "stage4")


class TorchvisionBackbone(AdaptedBackbone):
    """A ResNet, ResNeXt, Wide ResNet or ShuffleNetV2 of torchvision, with ``res2`` to ``res5``.

    Args:
        model_name: a network of ``torchvision.models``, such as ``resnet50``.
        dilated: dilation 2 instead of a stride in the last stage (DC5); ResNets with bottlenecks
            only.
        norm, freeze_at: see :meth:`AdaptedBackbone.freeze`.
        pretrained: load torchvision's ImageNet weights ``IMAGENET1K_V1``, as official DETR does.

    Raises:
        UserError: for an unknown model, or dilation without bottlenecks.
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
        include = ["resnet*", "resnext*", "wide_resnet*", "shufflenet*"]
        known = models.list_models(module=models, include=include)
        allowed = f"one of torchvision's networks {', '.join(known)}"
        check_value("MODEL.DETR.BACKBONE.MODEL_NAME", model_name, model_name in known, allowed)
        is_shufflenet = model_name.startswith("shufflenet")
        if dilated and (is_shufflenet or model_name in ("resnet18", "resnet34")):
            raise UserError(
                f"MODEL.RESNETS.RES5_DILATION: {model_name} has no bottlenecks that can be "
                "dilated; set it to 1 or choose a network with bottlenecks (resnet50 and up)"
            )
        options = {"replace_stride_with_dilation": [False, False, True]} if dilated else {}
        try:
            network = models.get_model(
                model_name, weights="IMAGENET1K_V1" if pretrained else None, **options
            )
        except OSError as error:
            raise UserError(
                "MODEL.DETR.BACKBONE.PRETRAINED is True, but the weights could not be downloaded: "
                f"{error}. Connect once, or put the file into {torch.hub.get_dir()}/checkpoints, "
                "or set the key to False and give MODEL.WEIGHTS"
            ) from error
        layers = _SHUFFLENET if is_shufflenet else _RESNET
        body = IntermediateLayerGetter(network, dict(zip(layers, LEVELS, strict=True)))
        with torch.no_grad():
            levels = body.eval()(torch.zeros(1, 3, 32, 32))
        channels = [levels[level].shape[1] for level in LEVELS]
        super().__init__(body.train(), channels, (4, 8, 16, 16 if dilated else 32))
        stages = [body[layer] for layer in layers]
        if is_shufflenet:
            # res2 is the stem after a pooling layer without parameters.
            stages[0], freeze_at = body["conv1"], 2 if freeze_at == 1 else freeze_at
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
def build_torchvision_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TorchvisionBackbone:
    """Torchvision's network ``MODEL.DETR.BACKBONE.MODEL_NAME``."""
    channels = input_shape.channels
    check_value("len(MODEL.PIXEL_MEAN)", channels, channels == 3, "3 for torchvision's networks")
    return TorchvisionBackbone(
        model_name=cfg.MODEL.DETR.BACKBONE.MODEL_NAME,
        norm=cfg.MODEL.RESNETS.NORM,
        dilated=is_dilated(cfg),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        pretrained=cfg.MODEL.DETR.BACKBONE.PRETRAINED,
    )
