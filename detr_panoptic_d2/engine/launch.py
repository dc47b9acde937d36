"""Start a job in one process, in several by Detectron2's launcher, or under ``torchrun``."""

import argparse
import functools
import logging
import os
from collections.abc import Callable

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..errors import UserError, one_line_errors
from .rendezvous import connect
from .setup import merged_cfg

logger = logging.getLogger(__name__)


def launch_job(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> object:
    """Run ``main(args)`` in every process of the job.

    Under ``torchrun`` (its environment variables tell) the processes are there already and are
    connected: by NCCL on GPUs, by Gloo on the CPU. Else Detectron2's ``launch`` starts
    ``--num-gpus`` processes on each of ``--num-machines``.

    Errors that a user can put right end the program with one line: see :mod:`..tool_errors`.

    Args:
        main: importable function, because other processes import it.
        args: what Detectron2's ``default_argument_parser`` returns.

    Raises:
        SystemExit: after such an error, or Ctrl-C.
    """
    with one_line_errors():
        if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
            return _run_under_torchrun(main, args)
        _check_process_counts(args)
        if args.num_gpus * args.num_machines == 1:
            return main(args)
        return _launch(main, args)


def _launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
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
        raise UserError(
            f"Process {error.error_index} was ended by {error.signal_name} (the system does that "
            "when memory runs out). The others were stopped; --resume goes on from the last "
            "checkpoint."
        ) from error


def _run_with_one_line(main: Callable[[argparse.Namespace], object], args: argparse.Namespace):
    with one_line_errors():
        return main(args)


def _check_process_counts(args: argparse.Namespace) -> None:
    gpus = torch.cuda.device_count()
    if args.num_gpus < 1 or (gpus and args.num_gpus > gpus):
        there = f"this machine has {gpus} GPUs" if gpus else "it must be 1 or more"
        raise UserError(f"--num-gpus is {args.num_gpus}, but {there}.")
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank is {args.machine_rank} and --num-machines {args.num_machines}: the "
            "first machine has rank 0, and the last one the number of machines less 1."
        )


def _run_under_torchrun(
    main: Callable[[argparse.Namespace], object], args: argparse.Namespace
) -> object:
    local_rank = int(os.environ["LOCAL_RANK"])
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    device = merged_cfg(args.config_file, args.opts).MODEL.DEVICE
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    connect("nccl" if on_gpu else "gloo")
    try:
        comm.create_local_process_group(local_world_size)
        return main(args)
    finally:
        torch.distributed.destroy_process_group()
