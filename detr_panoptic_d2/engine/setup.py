"""From command line arguments to a config and a running job, for every tool."""

import argparse
import logging
import os
import tempfile
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..checkpoint.atomic import atomic_file
from ..config import add_detr_panoptic_config
from ..config_check import check_config, did_you_mean
from ..config_files import get_config_file
from ..config_merge import merge_file, merge_options
from ..data.metadata import num_classes
from ..data.register import register_from_config
from ..errors import UserError, quiet_console

logger = logging.getLogger(__name__)

_PACKAGE = __name__.split(".")[0]


def merged_cfg(config_file: str, opts: list[str] | None = None) -> CfgNode:
    """Merge a config file and ``KEY VALUE`` pairs into the defaults. Nothing else happens.

    Args:
        config_file: a path, or the name of a config that comes with the package. "": none.
        opts: flat list of keys and values.

    Raises:
        FileNotFoundError: there is no such config.
        UserError: it is no config, a key is not known, or a value of another type.
    """
    cfg = get_cfg()
    add_detr_panoptic_config(cfg)
    if config_file:
        merge_file(cfg, resolve_config_file(config_file))
    merge_options(cfg, opts or [])
    return cfg


def resolve_config_file(config_file: str) -> str:
    """Return the path of a config given by path or by the name it has in the package.

    Raises:
        FileNotFoundError: there is no such config.
    """
    return config_file if Path(config_file).is_file() else str(get_config_file(config_file))


def setup_cfg(config_file: str, opts: list[str] | None = None) -> CfgNode:
    """Make the frozen config that a model can be built from.

    Registers the data sets of ``DATASETS.REGISTER``, fills in ``MODEL.DETR.NUM_CLASSES`` where it
    is -1, and takes the CPU where there is no GPU.

    Args:
        config_file, opts: see :func:`merged_cfg`.

    Raises:
        FileNotFoundError: there is no such config.
        UserError: a value cannot work, or a data set is not known or has another number of
            classes than the model.
    """
    cfg = merged_cfg(config_file, opts)
    check_config(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.info("No GPU was found: running on the CPU (MODEL.DEVICE cpu).")
        cfg.MODEL.DEVICE = "cpu"
    register_from_config(cfg)
    _fit_num_classes(cfg)
    cfg.freeze()
    return cfg


def setup_job(args: argparse.Namespace) -> CfgNode:
    """Set up config, logging, seeds and the output folder of a training or evaluation.

    What Detectron2's ``default_setup`` does, with a ``config.yaml`` that is whole or not there.

    Args:
        args: what Detectron2's ``default_argument_parser`` returns.

    Raises:
        OSError: ``OUTPUT_DIR`` cannot be written to.
        UserError: see :func:`setup_cfg`.
    """
    if args.config_file:
        args.config_file = resolve_config_file(args.config_file)
    output_dir = merged_cfg(args.config_file, args.opts).OUTPUT_DIR
    if comm.is_main_process():
        check_writable(output_dir)
    comm.synchronize()
    rank = comm.get_rank()
    setup_logger(output_dir, distributed_rank=rank, name=_PACKAGE, abbrev_name="detr")
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    setup_logger(output_dir, distributed_rank=rank)
    quiet_console(_PACKAGE, "detectron2")

    cfg = setup_cfg(args.config_file, args.opts)
    logger.info("Process %d of %d. Arguments: %s", rank, comm.get_world_size(), args)
    logger.info("Environment:\n%s", collect_env_info())
    if comm.is_main_process():
        path = Path(output_dir, "config.yaml")
        with atomic_file(path) as f:
            f.write(cfg.dump())
        logger.info("The whole config, in %s:\n%s", path, cfg.dump())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    return cfg


def check_writable(folder: str | os.PathLike) -> None:
    """Make a folder if need be, and find out whether files can be written in it.

    Raises:
        OSError: they cannot.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as f:
            f.write(b"\0" * 4096)
    except OSError as error:
        raise type(error)(
            f"Nothing can be written to the output folder '{folder}': {error.strerror}. Choose "
            "another one (OUTPUT_DIR FOLDER at the end of the command, or --output), or make room."
        ) from error


def _fit_num_classes(cfg: CfgNode) -> None:
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        if name not in DatasetCatalog.list():
            raise UserError(
                f"DATASETS.TRAIN or TEST names '{name}', which is not a registered data set."
                f"{did_you_mean(name, DatasetCatalog.list())} Own data sets go into "
                "DATASETS.REGISTER of the config, or are registered in Python with "
                "register_panoptic."
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
