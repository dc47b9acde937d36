"""From command line arguments to a config and a running job, for every program."""

import argparse
import logging

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import merged_cfg, resolve_config_file
from ..data.metadata import dataset_ids
from ..data.register import register_from_config
from ..errors import check_value, look_up, quiet_console

logger = logging.getLogger(__name__)

_PACKAGE = __name__.split(".")[0]


def setup_cfg(config_file: str, opts: list[str] | None = None) -> CfgNode:
    """Make the frozen config that a model can be built from.

    Registers the data sets of ``DATASETS.REGISTER``, fills in ``MODEL.DETR.NUM_CLASSES`` where it
    is -1, and takes the CPU where there is no GPU.

    Args:
        config_file, opts: see :func:`.config.merged_cfg`.

    Raises:
        FileNotFoundError: there is no such config.
        UserError: a value cannot work, or a data set is not known or has another number of
            classes than the model.
    """
    cfg = merged_cfg(config_file, opts)
    look_up("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.info("No GPU was found: running on the CPU (MODEL.DEVICE cpu).")
        cfg.MODEL.DEVICE = "cpu"
    register_from_config(cfg)
    _fill_in_num_classes(cfg)
    cfg.freeze()
    return cfg


def setup_job(args: argparse.Namespace) -> CfgNode:
    """Set up config, logging, seeds and the output folder of a training or evaluation.

    Args:
        args: what Detectron2's ``default_argument_parser`` returns.

    Raises:
        OSError: ``OUTPUT_DIR`` cannot be written to.
        UserError: see :func:`setup_cfg`.
    """
    if args.config_file:
        args.config_file = resolve_config_file(args.config_file)
    cfg = setup_cfg(args.config_file, args.opts)
    rank = comm.get_rank()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=_PACKAGE, abbrev_name="detr")
    default_setup(cfg, args)
    quiet_console(_PACKAGE, "detectron2")
    return cfg


def _fill_in_num_classes(cfg: CfgNode) -> None:
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        check_value(
            "DATASETS.TRAIN or TEST",
            name,
            name in DatasetCatalog.list(),
            "a registered data set: name your own in DATASETS.REGISTER of the config, or call "
            "register_panoptic first",
        )
        count = len(dataset_ids(MetadataCatalog.get(name)))
        if cfg.MODEL.DETR.NUM_CLASSES == -1:
            cfg.MODEL.DETR.NUM_CLASSES = count
            logger.info("MODEL.DETR.NUM_CLASSES is %d, from data set '%s'.", count, name)
        check_value(
            "MODEL.DETR.NUM_CLASSES",
            cfg.MODEL.DETR.NUM_CLASSES,
            count == cfg.MODEL.DETR.NUM_CLASSES,
            f"{count}, things and stuff of data set '{name}' together, or -1 to be filled in",
        )
    classes = cfg.MODEL.DETR.NUM_CLASSES
    check_value("MODEL.DETR.NUM_CLASSES", classes, classes >= 1, "1 or more without a data set")
