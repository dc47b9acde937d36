"""From command line arguments to a config and a running job, in one process or in several."""

import argparse
import functools
import logging
import math
import os
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup, launch
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from ..config import get_config_file, merged_cfg
from ..data.metadata import dataset_ids
from ..data.register import register_from_config
from ..errors import check_value, look_up, one_line_errors, quiet_console

logger = logging.getLogger(__name__)

_PACKAGE = __name__.split(".")[0]
_TIMEOUT = timedelta(minutes=30)


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
        args.config_file = get_config_file(args.config_file)
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


def launch_job(main: Callable, args: argparse.Namespace) -> None:
    """Run ``main(args)`` in every process of the job.

    Under ``torchrun`` (its environment variables say so) the processes are there already and are
    connected: by NCCL on GPUs, by Gloo on the CPU. Else Detectron2's ``launch`` starts
    ``--num-gpus`` processes on each of ``--num-machines``.

    Args:
        main: importable function, because other processes import it.
        args: what Detectron2's ``default_argument_parser`` returns.

    Raises:
        SystemExit: after ``UserError`` and ``OSError``, which are printed as one line, or Ctrl-C.
    """
    with one_line_errors():
        device = merged_cfg(args.config_file, args.opts).MODEL.DEVICE
        on_gpu = device.startswith("cuda") and torch.cuda.is_available()
        if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
            return _run_under_torchrun(main, args, on_gpu)
        most = torch.cuda.device_count() if on_gpu else math.inf
        allowed = f"from 1 to {most}, the GPUs of this machine" if on_gpu else "1 or more"
        check_value("--num-gpus", args.num_gpus, 1 <= args.num_gpus <= most, allowed)
        if not on_gpu:
            # Detectron2's launcher takes NCCL wherever a process sees a GPU.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # Of interfaces that Detectron2 and fvcore still use; the new processes inherit no filters.
        os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
        try:
            launch(
                functools.partial(_run_with_one_line, main),
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
        except ProcessExitedException as error:
            if error.signal_name is None:
                # It has said why.
                raise SystemExit(error.exit_code) from None
            raise


def _run_with_one_line(main: Callable, args: argparse.Namespace) -> None:
    with one_line_errors():
        main(args)


def _run_under_torchrun(main: Callable, args: argparse.Namespace, on_gpu: bool) -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if on_gpu:
        torch.cuda.set_device(local_rank)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=_TIMEOUT))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun keeps one key-value store over restarts, and with it the network addresses of
        # processes that are gone, so each start needs keys of its own. On several machines the
        # count of restarts is not the same everywhere: there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
        # in torchrun's environment is needed, which gives each start a new store.
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"start_{restarts}", store)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=_TIMEOUT,
    )
    try:
        comm.create_local_process_group(local_world_size)
        main(args)
    finally:
        dist.destroy_process_group()
