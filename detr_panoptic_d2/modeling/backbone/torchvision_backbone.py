"""Torchvision's residual networks as Detectron2 backbones.

The parameters keep torchvision's own names under ``body.`` (``body.conv1.weight``,
``body.layer1.0.bn1.running_mean``, ...), which are those of the official DETR checkpoints.
"""

from collections import OrderedDict

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn
from torchvision import models

from ...errors import UserError
from .levels import LEVELS, is_dilated

_BODY_MODULES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_LEVEL_OF_LAYER = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}


class TorchvisionResNet(Backbone):
    """A ResNet, ResNeXt or Wide ResNet of torchvision that returns ``res2`` to ``res5``.

    Args:
        model_name: a residual network of ``torchvision.models``, such as ``resnet50``.
        norm: ``"FrozenBN"``, ``"BN"``, ``"SyncBN"``, ``"GN"`` or a callable from channels to module
            (see :func:`detectron2.layers.get_norm`).
        dilated: give the last stage dilation 2 in place of its stride (DC5); bottlenecks only.
        freeze_at: 0 freezes nothing, 1 the stem, 2 the stem and ``res2``, ... 5 everything.
        pretrained: load torchvision's ImageNet weights (``IMAGENET1K_V1``, those DETR began with).

    Raises:
        UserError: for an unknown model or a combination that the model does not have.
        UserError: if the weights can be neither found nor downloaded.
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
        super().__init__()
        known = models.list_models(module=models, include=["resnet*", "resnext*", "wide_resnet*"])
        if model_name not in known:
            raise UserError(
                f"MODEL.DETR.BACKBONE.MODEL_NAME is {model_name!r}: torchvision's residual "
                f"networks are {', '.join(known)}"
            )
        try:
            network = models.get_model(
                model_name,
                weights=None,
                norm_layer=lambda channels: get_norm(norm, channels),
                replace_stride_with_dilation=[False, False, dilated],
            )
        except NotImplementedError as error:
            raise UserError(
                f"MODEL.RESNETS.RES5_DILATION: {model_name} has basic blocks, which cannot be "
                "dilated; set it to 1 or choose a network with bottlenecks (resnet50 and up)"
            ) from error
        if pretrained:
            _load_imagenet_weights(network, model_name)
        self.body = nn.Sequential(
            OrderedDict((name, getattr(network, name)) for name in _BODY_MODULES)
        )
        expansion = network.layer4[0].expansion
        self._out_features = list(LEVELS)
        self._out_feature_channels = {
            level: 64 * 2**i * expansion for i, level in enumerate(LEVELS)
        }
        self._out_feature_strides = dict(
            zip(LEVELS, (4, 8, 16, 16 if dilated else 32), strict=True)
        )
        self._freeze(freeze_at)

    def _freeze(self, freeze_at: int) -> None:
        """Freeze the first stages: no gradient, and batch norms with fixed statistics."""
        frozen = []
        if freeze_at >= 1:
            frozen += ["conv1", "bn1"]
        frozen += [f"layer{stage - 1}" for stage in range(2, min(freeze_at, 5) + 1)]
        for name in frozen:
            module = getattr(self.body, name)
            module.requires_grad_(False)
            # A batch norm itself comes back as a new module, a container is changed in place.
            setattr(self.body, name, FrozenBatchNorm2d.convert_frozen_batchnorm(module))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            images: B x 3 x H x W, normalised; H and W are free.

        Returns:
            ``res2`` .. ``res5``, each B x C x ceil(H / stride) x ceil(W / stride).
        """
        outputs = {}
        x = images
        for name, module in self.body.named_children():
            x = module(x)
            if name in _LEVEL_OF_LAYER:
                outputs[_LEVEL_OF_LAYER[name]] = x
        return outputs


def _load_imagenet_weights(network: nn.Module, model_name: str) -> None:
    """Load torchvision's ImageNet weights into ``network``, whatever its batch norm's class."""
    weights = models.get_model_weights(model_name)["IMAGENET1K_V1"]
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise UserError(
            f"MODEL.DETR.BACKBONE.PRETRAINED is True, but the weights of {model_name} could not be "
            f"downloaded from {weights.url}: {error}. Connect once, or put the file into "
            f"{torch.hub.get_dir()}/checkpoints, or set the key to False and give MODEL.WEIGHTS"
        ) from error
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in state]
    unplaced = [
        key for key in state if key not in wanted and not key.endswith("num_batches_tracked")
    ]
    if missing or unplaced:
        raise UserError(
            f"MODEL.DETR.BACKBONE.PRETRAINED is True, but the weights of {model_name} are those of "
            "batch norms and do not fit MODEL.RESNETS.NORM "
            f"(for example {(missing + unplaced)[0]}); use FrozenBN, BN or SyncBN"
        )
    network.load_state_dict({key: state[key] for key in wanted})


@BACKBONE_REGISTRY.register()
def build_torchvision_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TorchvisionResNet:
    """Torchvision's network ``MODEL.DETR.BACKBONE.MODEL_NAME``."""
    if input_shape.channels != 3:
        raise UserError(
            f"MODEL.PIXEL_MEAN has {input_shape.channels} channels: torchvision's networks take 3"
        )
    return TorchvisionResNet(
        model_name=cfg.MODEL.DETR.BACKBONE.MODEL_NAME,
        norm=cfg.MODEL.RESNETS.NORM,
        dilated=is_dilated(cfg),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        pretrained=cfg.MODEL.DETR.BACKBONE.PRETRAINED,
    )
