"""A folder to work in beside the one that is made; killed processes do not leave it for good."""

import contextlib
import fcntl
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

# Held by the process that the folder is of.
_LOCK = "lock"
# Seconds after which a folder without a lock is nobody's.
_NO_LOCK_YET = 600


@contextlib.contextmanager
def work_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder that is gone at the end; those that killed processes left go as well.

    A process holds a lock in its folder as long as it lives, on whatever machine it runs.

    Args:
        parent: where to make it.
        prefix: of its name; all folders in ``parent`` with this prefix must be made here.
    """
    for left in parent.glob(f"{prefix}*"):
        _remove_if_stale(left)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        with open(work / _LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_if_stale(work: Path) -> None:
    try:
        with open(work / _LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        # Its process is just about to lock it, or was killed there long ago.
        if not work.is_dir() or time.time() - work.stat().st_mtime < _NO_LOCK_YET:
            return
    except OSError:
        return
    logger.info("Removing '%s', left by a process that was killed.", work)
    shutil.rmtree(work, ignore_errors=True)
