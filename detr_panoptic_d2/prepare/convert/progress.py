"""What an interrupted conversion has already done."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...checkpoint.atomic import atomic_file

logger = logging.getLogger(__name__)

# Changes whenever the same input would give other files.
_VERSION = 1


class Progress:
    """The hidden folder of a conversion that is not finished.

    It holds a fingerprint of the conversion and a journal with a line per finished image. A line
    is written when the files of its image are whole on the disk, so that what the journal has need
    not be done again; a line that was cut off is none.

    Args:
        folder: the hidden folder, made if need be.
        fingerprint: of the conversion.

    Raises:
        FileExistsError: the folder is that of another conversion.
    """

    def __init__(self, folder: Path, fingerprint: str):
        self._folder = folder
        self._journal = folder / "journal.jsonl"
        stamp = folder / "fingerprint"
        if stamp.is_file() and stamp.read_text(encoding="utf-8") != fingerprint:
            raise FileExistsError(
                f"'{folder.parent}' holds an unfinished conversion with other arguments or other "
                f"input. Choose another --output, or remove '{folder}' and what it has written."
            )
        folder.mkdir(parents=True, exist_ok=True)
        if not stamp.is_file():
            with atomic_file(stamp) as f:
                f.write(fingerprint)

    def done(self) -> dict[int, dict]:
        """Records of the finished images, by index."""
        if not self._journal.is_file():
            return {}
        records = {}
        whole = 0
        with open(self._journal, "rb") as f:
            for line in f:
                if not line.endswith(b"\n"):
                    break
                record = json.loads(line)
                records[record["index"]] = record
                whole += len(line)
        os.truncate(self._journal, whole)
        return records

    def write(self, records: Iterator[dict]) -> Iterator[dict]:
        """Append records, each at once, and pass them on."""
        with open(self._journal, "a", encoding="utf-8") as f:
            for record in records:
                f.write(json.dumps(record) + "\n")
                f.flush()
                yield record

    def finish(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder)


def fingerprint_of(content: Any, items: Iterator[Any]) -> str:
    """Hash everything that decides about the result.

    Args:
        content: json-able.
        items: json-able, one per image.
    """
    digest = hashlib.sha256(str(_VERSION).encode())
    for part in (content, *items):
        digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()
