"""Make the config, the output folder and the log from command line arguments."""

import argparse
import itertools
import logging

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.utils import comm

from ..config import get_config_file, merged_cfg
from ..data.metadata import categories_of
from ..data.register import register_from_config
from ..errors import UserError, check_value, look_up
from .console import set_up_logging

logger = logging.getLogger(__name__)
_PRECISIONS = ("highest", "high", "medium")


def setup_cfg(config_file: str, opts: list[str] | None = None) -> CfgNode:
    """Make the frozen config that a model can be built from.

    Registers the datasets of ``DATASETS.REGISTER``, compares the classes of all datasets, fills
    in ``MODEL.DETR.NUM_CLASSES`` if it is -1, changes ``MODEL.DEVICE`` to ``cpu`` if there is no
    GPU, and sets PyTorch's precision of matrix products to ``FLOAT32_MATMUL_PRECISION``.

    Args:
        config_file, opts: see :func:`.config.merged_cfg`.

    Raises:
        UserError: a value is not allowed, a dataset is not registered, or datasets and model
            have different classes.
    """
    cfg = merged_cfg(config_file, opts)
    look_up("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning(
            "No GPU was found. This runs on the CPU, which is much slower. (MODEL.DEVICE cpu "
            "turns this warning off.)"
        )
        cfg.MODEL.DEVICE = "cpu"
    mean = cfg.MODEL.PIXEL_MEAN
    allowed = f"3 numbers, one for each channel of INPUT.FORMAT {cfg.INPUT.FORMAT}"
    check_value("MODEL.PIXEL_MEAN", list(mean), len(mean) == 3, allowed)
    precision, allowed = cfg.FLOAT32_MATMUL_PRECISION, "highest, high or medium"
    check_value("FLOAT32_MATMUL_PRECISION", precision, precision in _PRECISIONS, allowed)
    register_from_config(cfg)
    _check_classes(cfg)
    torch.set_float32_matmul_precision(precision)
    cfg.freeze()
    return cfg


def setup_job(args: argparse.Namespace) -> CfgNode:
    """Set up config, logging, seeds and the output folder of a training or evaluation.

    Args:
        args: what Detectron2's ``default_argument_parser`` returns, optionally with ``verbosity``,
            see :func:`.console.set_up_logging`.
    """
    if args.config_file:
        args.config_file = get_config_file(args.config_file)
    # Logging comes first, so that the log has what making the config reports.
    set_up_logging(
        merged_cfg(args.config_file, args.opts).OUTPUT_DIR,
        comm.get_rank(),
        verbosity=getattr(args, "verbosity", "normal"),
    )
    cfg = setup_cfg(args.config_file, args.opts)
    default_setup(cfg, args)
    return cfg


def _check_classes(cfg: CfgNode) -> None:
    """Compare the classes of all datasets, and fill in ``MODEL.DETR.NUM_CLASSES``."""
    names = list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
    allowed = (
        "a registered dataset: name your own in DATASETS.REGISTER of the config, or call "
        "register_panoptic first"
    )
    for name in names:
        check_value("DATASETS.TRAIN or TEST", name, name in DatasetCatalog.list(), allowed)
    classes = {name: _describe_classes(name) for name in names}
    for name in names[1:]:
        pairs = itertools.zip_longest(classes[names[0]], classes[name], fillvalue="missing")
        for index, (first, other) in enumerate(pairs):
            if first != other:
                raise UserError(
                    f"DATASETS.TRAIN and TEST: class {index} is {first} in '{names[0]}', but "
                    f"{other} in '{name}'. All datasets of a config need the same classes with "
                    "the same ids: give their json files the same list of categories."
                )
    count, key = cfg.MODEL.DETR.NUM_CLASSES, "MODEL.DETR.NUM_CLASSES"
    if not names:
        return check_value(key, count, count >= 1, "1 or more without a dataset")
    size = len(classes[names[0]])
    if count == -1:
        cfg.MODEL.DETR.NUM_CLASSES = size
        logger.info("%s is %d, from dataset '%s'.", key, size, names[0])
    allowed = f"{size}, things and stuff of dataset '{names[0]}' together, or -1 to be filled in"
    check_value(key, count, count in (-1, size), allowed)


def _describe_classes(name: str) -> list[str]:
    return [
        f"'{c['name']}' (id {c['id']}, {'thing' if c['isthing'] else 'stuff'})"
        for c in categories_of(MetadataCatalog.get(name))
    ]
