"""Atomic writing, protection of input files, and file names that stay inside their root."""

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import IO, Any

from .errors import UserError


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, mode: str = "w", *, sync: bool = True) -> Iterator[IO]:
    """Open a file for writing that appears under its name only when all of it is written.

    After an exception, an existing file is unchanged. Several processes may write the same file.

    Args:
        path: the file to write; its folder must exist.
        mode: "w" (UTF-8) or "wb".
        sync: wait until the disk has the data, so that they survive a power failure.
    """
    path = Path(path)
    # tempfile would make files that only their owner can read.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: str | os.PathLike, pattern: str) -> None:
    """Remove temporary files that killed writers of files like ``pattern`` left in a folder."""
    for path in Path(folder).glob(f".{pattern}.{'[0-9a-f]' * 32}.tmp"):
        path.unlink(missing_ok=True)


def check_not_overwritten(
    inputs: Iterable[str | os.PathLike], outputs: Iterable[str | os.PathLike]
) -> None:
    """Raise a ``UserError`` if a file to write is a file to read; call it before writing.

    Files are compared by device and inode. Links and file systems that ignore case are recognized.
    """
    sources = {_identify(path): path for path in inputs if os.path.exists(path)}
    for path in filter(os.path.exists, outputs):
        if source := sources.get(_identify(path)):
            raise UserError(
                f"'{path}' would overwrite the input '{source}'. Choose another --output."
            )


def _identify(path: str | os.PathLike) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def inside_root(root: str, file_name: Any) -> str:
    """Join a file name from a json to its root; a ``UserError`` if it leads out on any system."""
    if not isinstance(file_name, str) or not file_name:
        raise UserError("no 'file_name'")
    windows = PureWindowsPath(file_name)
    if windows.drive or windows.root or ".." in windows.parts or "\0" in file_name:
        raise UserError(
            f"file_name {file_name!r} leads out of '{root}'; names must be relative to their root "
            "and without '..'"
        )
    return os.path.join(root, file_name)
