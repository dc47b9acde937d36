"""Connecting the processes that ``torchrun`` starts, and starts again after one has died."""

import datetime
import time
import uuid

import torch.distributed as dist

from ..errors import UserError

_TIMEOUT = datetime.timedelta(minutes=30)
_POLL_SECONDS = 0.1


def connect(backend: str) -> None:
    """``init_process_group`` from the environment, safe when the processes were started again.

    ``torchrun`` may keep its key-value store over a restart (recent versions of torch), and with it
    the network addresses of processes that are gone. The first process to read such an address
    fails to connect, so each start uses keys of its own.

    Args:
        backend: "nccl" or "gloo".

    Raises:
        UserError: the other processes did not come within half an hour.
    """
    store, rank, world_size = next(dist.rendezvous("env://"))
    store.set_timeout(_TIMEOUT)
    start = agree_on_start(dist.PrefixStore("detr_panoptic_d2", store), rank, world_size)
    dist.init_process_group(
        backend, store=dist.PrefixStore(start, store), rank=rank, world_size=world_size
    )


def agree_on_start(store: dist.Store, rank: int, world_size: int) -> str:
    """Return a name for this start of the processes: the same in all, and never used before.

    Rank 0 draws it. The others answer under it until rank 0 has named them back, which it can do
    only in this start: names of processes that are gone lead nowhere.

    Args:
        store: shared by all, perhaps with keys of earlier starts.
        rank: of this process.
        world_size: number of processes.

    Raises:
        UserError: see :func:`connect`.
    """
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("leader", me)
        for other in range(1, world_size):
            # Waits until the other one has set it.
            name = store.get(f"{me}/{other}").decode()
            store.set(f"{me}/{name}", "")
        return me
    end = time.monotonic() + _TIMEOUT.total_seconds()
    while time.monotonic() < end:
        leader = store.get("leader").decode()
        store.set(f"{leader}/{rank}", me)
        if store.check([f"{leader}/{me}"]):
            return leader
        time.sleep(_POLL_SECONDS)
    raise UserError(
        f"Process {rank} of {world_size} has waited {_TIMEOUT} for process 0. Do all machines have "
        "the same --rdzv_endpoint (or --master_addr and --master_port), and can they reach it?"
    )
