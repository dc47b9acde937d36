"""Atomic writing, protection of input files, and file names that stay inside their root."""

import os
import uuid
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

from .errors import UserError


class atomic_file:
    """Open a file for writing that appears under its name only when all of it is written.

    After an exception, the temporary file is removed and an existing file is unchanged. Each writer
    has its own temporary file beside the target, so several processes may write the same file.

    Args:
        path: the file to write; its folder must exist.
        mode: "w" (UTF-8) or "wb".
        sync: wait until the disk has the data, so that they survive a power failure.
    """

    def __init__(self, path: str | os.PathLike, mode: str = "w", *, sync: bool = True):
        self._path = Path(path)
        # tempfile would make files that only their owner can read.
        self._temporary = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}.tmp")
        self._mode, self._sync = mode, sync

    def __enter__(self):
        encoding = None if "b" in self._mode else "utf-8"
        self._file = open(self._temporary, self._mode, encoding=encoding)
        return self._file

    def __exit__(self, kind, error, trace) -> None:
        try:
            # A full disk may cause an error when the file is flushed, synced or closed.
            with self._file:
                if kind is None and self._sync:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if kind is None:
                os.replace(self._temporary, self._path)
        finally:
            # It does not exist after renaming.
            self._temporary.unlink(missing_ok=True)


def remove_unfinished(folder: str | os.PathLike, pattern: str) -> None:
    """Remove the temporary files of writers that were killed.

    Args:
        folder: where to look; no process may be writing there.
        pattern: of the names of the target files, such as ``*.pth``.
    """
    for path in Path(folder).glob(f".{pattern}.{'[0-9a-f]' * 32}.tmp"):
        path.unlink(missing_ok=True)


def check_not_overwritten(
    inputs: Iterable[str | os.PathLike], outputs: Iterable[str | os.PathLike]
) -> None:
    """Check that no file to write is a file to read. Call it before the first file is written.

    Files are compared by device and inode. Links and file systems that ignore case are recognized.

    Raises:
        UserError: an output is one of the inputs.
    """

    def identify(path: str | os.PathLike) -> tuple[int, int] | None:
        try:
            status = os.stat(path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    input_ids = {identify(path): path for path in inputs}
    input_ids.pop(None, None)
    for path in outputs:
        source = input_ids.get(identify(path))
        if source is not None:
            raise UserError(
                f"'{path}' would overwrite the input '{source}'. Choose another --output."
            )


def inside_root(root: str, file_name: Any) -> str:
    """Join a file name from a json file to its root folder.

    Raises:
        UserError: the name is missing, absolute or contains "..", on any operating system.
    """
    if not isinstance(file_name, str) or not file_name:
        raise UserError("no 'file_name'")
    windows = PureWindowsPath(file_name)
    if windows.drive or windows.root or ".." in windows.parts or "\0" in file_name:
        raise UserError(
            f"file_name {file_name!r} leads out of '{root}'; names must be relative to their root "
            "and without '..'"
        )
    return os.path.join(root, file_name)
