"""From command line arguments to a config and a running job, for every program."""

import argparse
import difflib
import logging
import os
import tempfile

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import merged_cfg, resolve_config_file
from ..data.metadata import num_classes
from ..data.register import register_from_config
from ..errors import UserError, check_value, quiet_console

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
    for key, value, registry in (
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
    ):
        known = ", ".join(sorted(name for name, _ in registry))
        allowed = f"a registered name; known are {known}. Import a class of your own first"
        check_value(key, value, value in registry, allowed)
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
    if comm.is_main_process():
        check_writable(cfg.OUTPUT_DIR)
    # The others go on only when the main process has found nothing wrong.
    comm.synchronize()
    setup_logger(
        cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=_PACKAGE, abbrev_name="detr"
    )
    default_setup(cfg, args)
    quiet_console(_PACKAGE, "detectron2")
    return cfg


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make a folder if need be, and find out whether files can be written in it.

    Raises:
        OSError: they cannot.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=os.fspath(folder)) as f:
            f.write(b"\0" * 4096)
    except OSError as error:
        raise type(error)(
            f"Nothing can be written to the output folder '{folder}': {error.strerror}. Choose "
            "another one (OUTPUT_DIR FOLDER at the end of the command, or --output), or make room."
        ) from error


def _fill_in_num_classes(cfg: CfgNode) -> None:
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        if name not in DatasetCatalog.list():
            similar = difflib.get_close_matches(name, DatasetCatalog.list(), n=2, cutoff=0.7)
            hint = f" Did you mean {' or '.join(similar)}?" if similar else ""
            raise UserError(
                f"DATASETS.TRAIN or TEST names '{name}', which is not a registered data set.{hint} "
                "Own data sets go into DATASETS.REGISTER of the config, or are registered in "
                "Python with register_panoptic."
            )
        count = num_classes(MetadataCatalog.get(name))
        if cfg.MODEL.DETR.NUM_CLASSES == -1:
            cfg.MODEL.DETR.NUM_CLASSES = count
            logger.info("MODEL.DETR.NUM_CLASSES is %d, from data set '%s'.", count, name)
        elif count != cfg.MODEL.DETR.NUM_CLASSES:
            raise UserError(
                f"MODEL.DETR.NUM_CLASSES is {cfg.MODEL.DETR.NUM_CLASSES}, but data set '{name}' "
                f"has {count} classes, things and stuff together. Set MODEL.DETR.NUM_CLASSES to "
                f"{count}, or to -1 to have it filled in."
            )
    if cfg.MODEL.DETR.NUM_CLASSES < 1:
        raise UserError(
            "MODEL.DETR.NUM_CLASSES is -1, and neither DATASETS.TRAIN nor DATASETS.TEST names a "
            "data set to take it from."
        )
