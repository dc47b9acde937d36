"""Start a job in one process, in several by Detectron2's launcher, or under ``torchrun``."""

import argparse
import logging
import os
from collections.abc import Callable

import torch
from detectron2.engine import launch
from detectron2.utils import comm

from .setup import merged_cfg

logger = logging.getLogger(__name__)


def launch_job(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> object:
    """Run ``main(args)`` in every process of the job.

    Under ``torchrun`` (its environment variables tell) the processes are there already and are
    connected: by NCCL on GPUs, by Gloo on the CPU. Else Detectron2's ``launch`` starts
    ``--num-gpus`` processes on each of ``--num-machines``.

    Args:
        main: importable function, because other processes import it.
        args: what Detectron2's ``default_argument_parser`` returns.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    local_rank = int(os.environ["LOCAL_RANK"])
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    device = merged_cfg(args.config_file, args.opts).MODEL.DEVICE
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        comm.create_local_process_group(local_world_size)
        return main(args)
    finally:
        torch.distributed.destroy_process_group()
