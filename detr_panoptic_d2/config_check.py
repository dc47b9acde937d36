"""Values of the config that cannot work, found before anything is built from them."""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from fvcore.common.registry import Registry

from .errors import UserError

Rule = tuple[str, Callable[[Any], bool]]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _sizes(value: Any) -> bool:
    values = value if isinstance(value, Sequence) else [value]
    return len(values) > 0 and all(isinstance(v, int) and v > 0 for v in values)


_COUNT: Rule = ("a whole number from 1 on", lambda v: v >= 1)
_SWITCHED: Rule = ("a whole number from 0 on, where 0 turns it off", lambda v: v >= 0)
_POSITIVE: Rule = ("a number above 0", lambda v: _number(v) and v > 0)
_WEIGHT: Rule = ("a number from 0 on", lambda v: _number(v) and v >= 0)
_SHARE: Rule = ("a number from 0 to 1", lambda v: _number(v) and 0 <= v <= 1)
_SIZES: Rule = ("one or more sizes in pixels, from 1 on", _sizes)

_MODEL_RULES = {
    "HIDDEN_DIM": _COUNT,
    "NHEADS": _COUNT,
    "DROPOUT": ("a number from 0 to below 1", lambda v: _number(v) and 0 <= v < 1),
    "DIM_FEEDFORWARD": _COUNT,
    "ENC_LAYERS": ("a whole number from 0 on", lambda v: v >= 0),
    "DEC_LAYERS": _COUNT,
    "NUM_OBJECT_QUERIES": _COUNT,
    "CLASS_WEIGHT": _WEIGHT,
    "GIOU_WEIGHT": _WEIGHT,
    "L1_WEIGHT": _WEIGHT,
    "MASK_WEIGHT": _WEIGHT,
    "DICE_WEIGHT": _WEIGHT,
    "NO_OBJECT_WEIGHT": _POSITIVE,
    "MASK_HEAD.CHUNK_MB": _POSITIVE,
    "TEST.SCORE_THRESH": _SHARE,
    "TEST.MIN_SEGMENT_AREA": ("a number of pixels, 0 or more", lambda v: v >= 0),
    "TEST.OVERLAP_THRESH": _SHARE,
    "TEST.BATCH_SIZE": _COUNT,
}
_JOB_RULES = {
    "SOLVER.MAX_ITER": _COUNT,
    "SOLVER.IMS_PER_BATCH": _COUNT,
    "SOLVER.BASE_LR": _POSITIVE,
    "SOLVER.BACKBONE_MULTIPLIER": _WEIGHT,
    "SOLVER.WEIGHT_DECAY": _WEIGHT,
    "SOLVER.CHECKPOINT_PERIOD": _COUNT,
    "SOLVER.WARMUP_ITERS": _SWITCHED,
    "TEST.EVAL_PERIOD": _SWITCHED,
    "TEST.VIS_IMAGES": _SWITCHED,
    "TEST.DETECTIONS_PER_IMAGE": _COUNT,
    "VIS_PERIOD": _SWITCHED,
    "DATALOADER.NUM_WORKERS": _SWITCHED,
    "INPUT.MIN_SIZE_TRAIN": _SIZES,
    "INPUT.MAX_SIZE_TRAIN": _SIZES,
    # 0 is Detectron2's way to say: not resized.
    "INPUT.MIN_SIZE_TEST": _SWITCHED,
    "INPUT.MAX_SIZE_TEST": _SIZES,
    "INPUT.CROP.PROB": _SHARE,
    "INPUT.CROP.RESIZE_MIN_SIZES": _SIZES,
}
_CHOICES = {
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.CROP.TYPE": ("absolute", "absolute_range", "relative", "relative_range"),
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupMultiStepLR",
        "WarmupCosineLR",
        "WarmupStepWithFixedGammaLR",
    ),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model", "norm", "value"),
}


def check_config(cfg: CfgNode) -> None:
    """Check what :func:`check_model_config` checks, and the keys of training and evaluation.

    Raises:
        UserError: a value cannot work; the message names the key, the value and what it may be.
    """
    check_name(cfg, "MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY)
    for key, rule in _JOB_RULES.items():
        _check(cfg, key, rule)
    for key, known in _CHOICES.items():
        if get(cfg, key) not in known:
            raise UserError(_unknown(key, get(cfg, key), known))
    if cfg.MODEL.META_ARCHITECTURE == "PanopticDETR":
        check_model_config(cfg)


def check_model_config(cfg: CfgNode) -> None:
    """Check the keys that ``PanopticDETR`` is built from.

    Raises:
        UserError: see :func:`check_config`.
    """
    # Here, because these modules' own models import this one.
    from .modeling.mask_head import MASK_HEAD_REGISTRY
    from .modeling.panoptic_inference import PANOPTIC_INFERENCE_REGISTRY

    check_name(cfg, "MODEL.BACKBONE.NAME", BACKBONE_REGISTRY)
    check_name(cfg, "MODEL.DETR.TEST.PANOPTIC_INFERENCE", PANOPTIC_INFERENCE_REGISTRY)
    if cfg.MODEL.MASK_ON:
        check_name(cfg, "MODEL.DETR.MASK_HEAD.NAME", MASK_HEAD_REGISTRY)
    for key, rule in _MODEL_RULES.items():
        _check(cfg, f"MODEL.DETR.{key}", rule)
    detr = cfg.MODEL.DETR
    if detr.HIDDEN_DIM % detr.NHEADS or detr.HIDDEN_DIM % 4:
        raise UserError(
            f"MODEL.DETR.HIDDEN_DIM is {detr.HIDDEN_DIM} and MODEL.DETR.NHEADS is {detr.NHEADS}: "
            "the first must be a multiple of the second (and of 4). DETR's own are 256 and 8."
        )
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if len(mean) != len(std) or min(std, default=0) <= 0:
        raise UserError(
            f"MODEL.PIXEL_MEAN is {list(mean)} and MODEL.PIXEL_STD is {list(std)}: one number per "
            "channel of INPUT.FORMAT is needed in each, and those of PIXEL_STD must be above 0."
        )


def check_name(cfg: CfgNode, key: str, registry: Registry) -> None:
    """Check that a key's value is a name in a registry.

    Raises:
        UserError: it is not; the message lists the names.
    """
    known = [name for name, _ in registry]
    if get(cfg, key) not in known:
        raise UserError(
            f"{_unknown(key, get(cfg, key), known)} A class of your own must be registered by an "
            "import before the model is built."
        )


def get(cfg: CfgNode, key: str) -> Any:
    """Return the value of a key with dots."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return a hint, " Did you mean ...?", or "" where nothing is similar."""
    similar = difflib.get_close_matches(word, known, n=2, cutoff=0.7)
    return f" Did you mean {' or '.join(similar)}?" if similar else ""


def _check(cfg: CfgNode, key: str, rule: Rule) -> None:
    what, holds = rule
    if not holds(get(cfg, key)):
        raise UserError(f"{key} is {get(cfg, key)!r}, but must be {what}.")


def _unknown(key: str, value: Any, known: Sequence[str]) -> str:
    return f"{key} is {value!r}; known are {', '.join(sorted(known))}."
