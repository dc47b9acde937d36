"""What an evaluator keeps per image, on the disk: memory does not grow with the data set."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from ..checkpoint.atomic import atomic_file

logger = logging.getLogger(__name__)


class ImageRecords:
    """One line of json per image in a file per process, which outlives the process.

    The first line of a file is its key, which says what the records were made from. Records of
    another key are never taken up again.

    Args:
        folder: where the files are.
        name: of the evaluator.
        key: see above; None: an evaluation that was broken off is not gone on with.
    """

    def __init__(self, folder: Path, name: str, key: str | None = None):
        self._folder, self._name, self._key = folder, name, key
        self._path = folder / f"{name}.rank{comm.get_rank()}.jsonl"
        self._file = None
        # Ids of the images that need not be predicted again; the same in every process.
        self.done: set[int | str] = set()

    def open(self, is_usable: Callable[[Any], bool] = lambda record: True) -> None:
        """Start anew, or with what is left of an evaluation with the same key.

        Args:
            is_usable: record -> whether it can be taken up.
        """
        self.close()
        kept: list[dict[str, Any]] = []
        if comm.is_main_process():
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._key is not None:
                kept = [entry for entry in self._left_over() if is_usable(entry["record"])]
            self._start_file(kept)
            # Otherwise a later evaluation might take them up, beside PNGs of this one.
            for path in self._folder.glob(f"{self._name}.rank*.jsonl"):
                if path != self._path:
                    path.unlink()
        self.done = set(comm.all_gather([entry["image_id"] for entry in kept])[0])
        if not comm.is_main_process():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._start_file([])
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, image_id: int | str, record: Any) -> None:
        """Add the record of an image, unless it is there; nothing of it waits in this process."""
        if image_id in self.done:
            return
        self._file.write(json.dumps({"image_id": image_id, "record": record}) + "\n")
        self._file.flush()

    def gather(self) -> Iterator[tuple[int | str, Any]]:
        """Return (image id, record) of all processes, each image once; nothing but on rank 0."""
        self.close()
        return _once(comm.gather(self._path.read_text(encoding="utf-8").splitlines()[1:]))

    def remove(self) -> None:
        """Remove this process's file: the results are written."""
        self.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; it stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _start_file(self, kept: list[dict[str, Any]]) -> None:
        with atomic_file(self._path) as f:
            f.write(json.dumps({"key": self._key}) + "\n")
            for entry in kept:
                f.write(json.dumps(entry) + "\n")

    def _left_over(self) -> list[dict[str, Any]]:
        """Whole records with this key of every process that there was, each image once."""
        found: dict[int | str, dict[str, Any]] = {}
        for path in sorted(self._folder.glob(f"{self._name}.rank*.jsonl")):
            # Broken off in the middle of a line, or of a letter.
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
            if not lines or json.loads(lines[0]).get("key") != self._key:
                logger.info("%s is of another evaluation and is not taken up.", path)
                continue
            for line in lines[1:]:
                entry = json.loads(line)
                found[entry["image_id"]] = entry
        return list(found.values())


def _once(gathered: list[list[str]]) -> Iterator[tuple[int | str, Any]]:
    seen = set()
    while gathered:
        for line in gathered.pop(0):
            entry = json.loads(line)
            image_id = entry["image_id"]
            if image_id in seen:
                logger.warning("Image id %r was predicted twice; it counts once.", image_id)
                continue
            seen.add(image_id)
            yield image_id, entry["record"]
