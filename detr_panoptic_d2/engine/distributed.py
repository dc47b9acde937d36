"""Launch several training processes, and prepare the model for them."""

import argparse
import math
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import create_ddp_model, launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing import ProcessExitedException
from torch.nn.parallel import DistributedDataParallel

from ..config import merged_cfg
from ..errors import UserError, check_value, one_line_errors

# NVIDIA's driver on Linux and on Windows.
_GPU_DRIVERS = ("/proc/driver/nvidia/version", "C:/Windows/System32/nvcuda.dll")


def synchronize_batch_norms(model: nn.Module) -> None:
    """Make trainable batch norms of PyTorch's types use statistics of all processes, in place.

    Call it before the optimizer is built.
    """
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            known = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm) and norm.affine
            if not (known and norm.training and norm.weight.requires_grad):
                continue
            options = (norm.num_features, norm.eps, norm.momentum)
            synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
            if not norm.weight.is_cuda:
                synchronized = _CPUSyncBatchNorm(*options, stats_mode="N")
                synchronized.load_state_dict(norm.state_dict())
            setattr(parent, name, synchronized)


class _CPUSyncBatchNorm(NaiveSyncBatchNorm):
    """Detectron2's, which works on the CPU, with statistics in float32 under autocast."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        return super().forward(input.float()).to(input.dtype)


def distribute_model(model: nn.Module) -> nn.Module:
    """Wrap the model in ``DistributedDataParallel`` if there are several processes.

    No search for unused parameters is needed. ``PanopticDETR`` gives each trainable parameter a
    gradient in every iteration, of zero if there are no targets.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    device_ids = [comm.get_local_rank()] if on_gpu else None
    return create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)


def unwrap(model: nn.Module) -> Any:
    """Return the model without the wrapper for several processes."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def broadcast_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the main one, such as statistics of batch norms."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def launch_job(main: Callable, args: argparse.Namespace) -> None:
    """Run ``main(args)`` in every process of the job, with :func:`.errors.one_line_errors`.

    Under ``torchrun`` (its environment variables are set) the processes exist already. Otherwise
    Detectron2's ``launch`` starts ``--num-gpus`` processes on each of ``--num-machines``.

    Args:
        main: a function that other processes can import.
        args: what Detectron2's ``default_argument_parser`` returns.
    """
    with one_line_errors():
        on_gpu = _use_gpu(merged_cfg(args.config_file, args.opts).MODEL.DEVICE)
        if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
            return _run_under_torchrun(main, args, on_gpu)
        limit = torch.cuda.device_count() if on_gpu else math.inf
        allowed = f"from 1 to {limit}, the GPUs of this machine" if on_gpu else "1 or more"
        check_value("--num-gpus", args.num_gpus, 1 <= args.num_gpus <= limit, allowed)
        if not on_gpu:
            # Detectron2's launcher uses NCCL if a process sees a GPU.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # New processes do not inherit the filters for warnings about Detectron2 and fvcore.
        os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
        machines = args.num_machines, args.machine_rank, args.dist_url
        try:
            launch(_run_with_one_line, args.num_gpus, *machines, args=(main, args))
        except ProcessExitedException as error:
            if error.signal_name is None:
                # The process has printed its error.
                raise SystemExit(error.exit_code) from None
            raise


def _use_gpu(device: str) -> bool:
    """Whether to train on GPUs; raises a ``UserError`` if PyTorch cannot use those there are."""
    on_gpu = device.startswith("cuda")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not on_gpu or hidden or torch.cuda.is_available():
        return on_gpu and torch.cuda.is_available()
    if any(map(os.path.exists, _GPU_DRIVERS)):
        raise UserError(
            f"MODEL.DEVICE is '{device}' and this machine has a GPU driver, but PyTorch "
            f"{torch.__version__} cannot use it. Install a PyTorch that fits the driver (see "
            "pytorch.org), or set MODEL.DEVICE cpu to run on the CPU."
        )
    return False


def _run_with_one_line(main: Callable, args: argparse.Namespace) -> None:
    with one_line_errors():
        main(args)


def _run_under_torchrun(main: Callable, args: argparse.Namespace, on_gpu: bool) -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    if on_gpu:
        torch.cuda.set_device(local_rank)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=DEFAULT_TIMEOUT))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun's key-value store survives restarts with the network addresses of the old
        # processes, so each start needs its own keys. Machines may count restarts differently:
        # for several machines, see TORCH_DISABLE_SHARE_RDZV_TCP_STORE in docs/training.md.
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"start_{restarts}", store)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=DEFAULT_TIMEOUT
    )
    try:
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
        main(args)
    finally:
        dist.destroy_process_group()
