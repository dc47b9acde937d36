"""Checkpoints that survive a crash at any moment."""

import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer

from ..errors import UserError

logger = logging.getLogger(__name__)

_TEMPORARY = ".tmp"


class AtomicCheckpointerMixin:
    """Put before fvcore's ``Checkpointer`` (or a child of it) in the list of bases.

    Files are written under a temporary name, flushed to the disk and only then renamed, so that a
    checkpoint is whole or not there, and ``last_checkpoint`` names only whole ones. A checkpoint
    that is broken all the same (a full or faulty disk) is passed over for the one before.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``{name}.pth`` and make it the one that resuming starts from.

        Args:
            name: file name without suffix.
            kwargs: further data to save.
        """
        if self._write(name, kwargs):
            self.tag_last_checkpoint(f"{name}.pth")

    def save_untagged(self, name: str, **kwargs: Any) -> None:
        """As :meth:`save`, but resuming does not start from this one."""
        self._write(name, kwargs)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that resuming starts from."""
        target = Path(self.save_dir, "last_checkpoint")
        with atomic_file(target, "w") as f:
            f.write(last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the newest whole checkpoint of ``save_dir``, or else the weights in ``path``.

        Raises:
            UserError: there are checkpoints to resume from, but none is whole.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        return self.load(self._newest_whole())

    def _write(self, name: str, extra: dict[str, Any]) -> bool:
        if not self.save_dir or not self.save_to_disk:
            return False
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(extra)
        target = Path(self.save_dir, f"{name}.pth")
        self._refuse_broken_weights(data["model"], target)
        logger.info("Saving checkpoint to %s", target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target, "wb") as f:
                torch.save(data, f)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"The checkpoint {target} could not be written: {_reason(error)}. "
                f"{resume_hint(self)} Make room first."
            ) from error
        return True

    def _refuse_broken_weights(self, weights: dict[str, torch.Tensor], target: Path) -> None:
        broken = [
            name
            for name, value in weights.items()
            if value.is_floating_point() and not torch.isfinite(value).all()
        ]
        if broken:
            raise UserError(
                f"{len(broken)} tensors of the model are infinite or NaN, {broken[0]} for one, so "
                f"{target} was not written. {resume_hint(self)} Lower SOLVER.BASE_LR, or use "
                "SOLVER.AMP.DTYPE bfloat16 in place of float16."
            )

    def _newest_whole(self) -> str:
        """The same on every process: what the main process finds."""
        choice = None
        if comm.is_main_process():
            choice = newest_whole_checkpoint(self.save_dir, self.get_checkpoint_file())
        choice = comm.all_gather(choice)[0]
        if choice is None:
            raise UserError(
                f"No checkpoint in {self.save_dir} can be read. Remove the folder, or train "
                "without --resume, to start anew."
            )
        return choice


def resume_hint(checkpointer: Checkpointer) -> str:
    """Say from what a training can go on."""
    if not checkpointer.has_checkpoint():
        return "No checkpoint was written yet."
    last = checkpointer.get_checkpoint_file()
    return f"The last good checkpoint is {last} (--resume goes on from it)."


def _reason(error: BaseException) -> str:
    """The operating system's words, which torch hides behind its own."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        last, error = error, error.__cause__ or error.__context__
    return str(last).splitlines()[0]


class atomic_file:
    """Open a file for writing that appears under its name only when all of it is on the disk.

    Left by an exception, it removes what was written and leaves an older file as it was.

    Args:
        path: the file to write.
        mode: "w" (UTF-8) or "wb".
    """

    def __init__(self, path: str | os.PathLike, mode: str = "w"):
        self._path = Path(path)
        self._temporary = self._path.with_name(self._path.name + _TEMPORARY)
        self._mode = mode

    def __enter__(self):
        encoding = None if "b" in self._mode else "utf-8"
        self._file = open(self._temporary, self._mode, encoding=encoding)
        return self._file

    def __exit__(self, kind, error, trace) -> None:
        whole = False
        try:
            # A full disk may show only now, or once more.
            with self._file:
                if kind is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if kind is None:
                os.replace(self._temporary, self._path)
                whole = True
        finally:
            if not whole:
                self._temporary.unlink(missing_ok=True)


def newest_whole_checkpoint(folder: str, tagged: str) -> str | None:
    """Find the checkpoint to resume from; broken ones are named in a warning.

    Args:
        folder: where the checkpoints are.
        tagged: the one that ``last_checkpoint`` names; tried first, then the others from the
            newest to the oldest. Checkpoints of the best result are not among them.

    Returns:
        A path, or None if none is whole.
    """
    others = [p for p in Path(folder).glob("*.pth") if not p.name.startswith("model_best")]
    others.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    for path in dict.fromkeys([Path(tagged), *others]):
        problem = _what_is_broken(path)
        if problem is None:
            return str(path)
        logger.warning("Checkpoint %s cannot be used (%s); trying the one before.", path, problem)
    return None


def _what_is_broken(path: Path) -> str | None:
    """torch.save writes zip files with a checksum per entry: what is wrong with this one?"""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile) as e:
        return str(e)
    return f"bad checksum in {broken}" if broken else None
