"""Start a job in one process, in several by Detectron2's launcher, or under ``torchrun``."""

import argparse
import functools
import math
import os
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..config import merged_cfg
from ..errors import check_value, one_line_errors

_TIMEOUT = timedelta(minutes=30)

Main = Callable[[argparse.Namespace], object]


def launch_job(main: Main, args: argparse.Namespace) -> None:
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


def _run_with_one_line(main: Main, args: argparse.Namespace) -> None:
    with one_line_errors():
        main(args)


def _run_under_torchrun(main: Main, args: argparse.Namespace, on_gpu: bool) -> None:
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
