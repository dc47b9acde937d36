"""Call a function for each image in several processes, with a progress bar."""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from ..errors import UserError


def map_images(
    function: Callable[[Any], Any], items: Sequence[Any], *, workers: int, description: str
) -> list[Any]:
    """Return ``[function(item) for item in items]``; both must be picklable.

    One worker is this process alone.
    """
    if workers < 1:
        raise UserError(f"--workers is {workers}, but must be 1 (this process alone) or more.")
    # No bar in files and pipes.
    bar = {"total": len(items), "desc": description, "mininterval": 1, "disable": None}
    if workers == 1 or len(items) < 2:
        return list(tqdm(map(function, items), **bar))
    # A terminal sends Ctrl-C to all processes. The main process ends the others.
    ignore_ctrl_c = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    pool = ProcessPoolExecutor(min(workers, len(items)), **ignore_ctrl_c)
    try:
        return list(tqdm(pool.map(function, items, chunksize=4), **bar))
    except BrokenProcessPool as error:
        raise UserError(
            "A process was killed, probably because memory ran out. --workers 1 needs less memory."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
