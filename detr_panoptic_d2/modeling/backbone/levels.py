"""The four feature levels that DETR's panoptic head takes from a backbone."""

from detectron2.config import CfgNode
from detectron2.modeling import Backbone

from ...errors import UserError, check_value

LEVELS = ("res2", "res3", "res4", "res5")


def check_backbone(backbone: Backbone) -> None:
    """Check that a backbone returns the four levels of DETR's panoptic head.

    Raises:
        UserError: if one of ``res2`` .. ``res5`` is missing from ``output_shape()``.
    """
    names = list(backbone.output_shape())
    missing = [level for level in LEVELS if level not in names]
    if missing:
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
