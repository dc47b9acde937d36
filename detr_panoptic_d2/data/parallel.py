"""Work on the images of a data set in several processes."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing.connection import wait as wait_for_handles
from typing import Any

from tqdm import tqdm

from ..errors import UserError

# Set in every worker: the function and its first argument.
_task: tuple[Callable[[Any, int], Any], Any]


def run_parallel(
    function: Callable[[Any, int], Any],
    shared: Any,
    indices: Iterable[int],
    *,
    workers: int,
    description: str,
) -> Iterator[tuple[int, Any]]:
    """Call ``function(shared, index)`` for each index, with a progress bar.

    Args:
        function: of a module's top level. What it raises is raised here, and nothing more is
            started.
        shared: anything that can be pickled; goes to every process once.
        indices: one call each.
        workers: number of processes; 1 or less works in this one.
        description: stands before the progress bar.

    Yields:
        (index, result), in the order in which calls end.

    Raises:
        UserError: ``workers`` is negative.
        concurrent.futures.process.BrokenProcessPool: a worker was killed.
    """
    indices = list(indices)
    if workers < 0:
        raise UserError(f"workers is {workers}; 1 (this process alone) or more is needed.")
    workers = min(workers, len(indices))
    if workers <= 1:
        for index in tqdm(indices, desc=description, unit="image"):
            yield index, function(shared, index)
        return
    # Forked workers need no second import of torch; elsewhere than on Linux forking is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (function, shared))
    try:
        yield from _results(pool, indices, 4 * workers, description)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _results(
    pool: ProcessPoolExecutor, indices: list[int], window: int, description: str
) -> Iterator[tuple[int, Any]]:
    """Keep ``window`` calls under way, so that neither calls nor results pile up."""
    waiting = iter(indices)
    running: dict[Future, int] = {pool.submit(_call, i): i for i in islice(waiting, window)}
    with tqdm(total=len(indices), desc=description, unit="image") as bar:
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                index = running.pop(future)
                yield index, future.result()
                bar.update()
            for index in islice(waiting, window - len(running)):
                running[pool.submit(_call, index)] = index


def _start_worker(function: Callable[[Any, int], Any], shared: Any) -> None:
    global _task
    _task = (function, shared)
    # Ctrl-C is for the main process, which then ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed main process cannot end its workers, so they watch it."""
    wait_for_handles([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _call(index: int) -> Any:
    function, shared = _task
    return function(shared, index)
