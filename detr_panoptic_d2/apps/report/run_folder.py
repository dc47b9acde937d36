"""What a run left in its output folder, whole or not: config, metrics and checkpoints."""

import json
import os
import statistics
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# A run that has written nothing for this long is not called running any more, in seconds.
_SILENCE = 900
# Detectron2 writes metrics every so many iterations.
_PERIOD = 20
_FILES = ("metrics.json", "log.txt", "config.yaml", "inference")

Metrics = list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        folder: ``OUTPUT_DIR``.
        metrics: lines of ``metrics.json``, iterations ascending.
        config: of ``config.yaml``, {} if there is none.
        last_sign: when metrics or log were written last, in seconds since 1970; None: never.
    """

    folder: Path
    metrics: Metrics
    config: dict[str, Any]
    last_sign: float | None

    @property
    def done(self) -> int:
        """Iterations that are on record."""
        return 1 + max((m["iteration"] for m in self.metrics if "total_loss" in m), default=-1)

    @property
    def max_iter(self) -> int | None:
        """Iterations of the whole training; None if that is not known."""
        solver = self.config.get("SOLVER", {})
        if solver.get("REFERENCE_WORLD_SIZE") and (self.folder / "model_final.pth").is_file():
            # Detectron2 scales it to the number of processes, and writes the config before.
            return self.done
        return solver.get("MAX_ITER")

    @property
    def state(self) -> str:
        """ "finished", "running", "stopped", "not started" or "evaluation"."""
        if not self.done:
            return "evaluation" if (self.folder / "inference").is_dir() else "not started"
        if self.max_iter is not None and self.done >= self.max_iter:
            return "finished"
        silent = self.last_sign is None or time.time() - self.last_sign > _SILENCE
        return "stopped" if silent else "running"

    def series(self, key: str) -> list[tuple[float, float]]:
        """Return (iteration, value) of a metric."""
        return [
            (m["iteration"], float(m[key]))
            for m in self.metrics
            if isinstance(m.get(key), int | float)
        ]

    def latest(self, key: str) -> float | None:
        """Return the last value of a metric, None if there is none."""
        values = self.series(key)
        return values[-1][1] if values else None

    def median(self, key: str) -> float | None:
        """Return the median of a metric over the run, None if there is none."""
        values = [v for _, v in self.series(key) if v == v]
        return statistics.median(values) if values else None

    def metric_names(self) -> list[str]:
        """Return the names of all metrics, in order of appearance."""
        return list(dict.fromkeys(key for m in self.metrics for key in m))

    def pq_prefixes(self) -> list[str]:
        """Return what stands before "PQ" in the names: with several data sets one for each."""
        return [n.removesuffix("PQ") for n in self.metric_names() if n.endswith("panoptic_seg/PQ")]

    def seconds(self) -> float | None:
        """Return the wall-clock time of the training, over all its starts; None if not known.

        Each start has a file of TensorBoard events, which have times; the file is made with the
        first metrics, after ``_PERIOD`` steps.
        """
        files = list(self.folder.glob("events.out.tfevents.*"))
        spans = [times[-1] - times[0] for path in files if (times := _event_times(path))]
        first = _PERIOD * (self.median("time") or 0)
        return sum(spans) + first * len(spans) if spans and self.done else None

    def best(self) -> dict[str, Any] | None:
        """Return metric, value and iteration of the best checkpoint; None if there is none."""
        try:
            best = json.loads((self.folder / "model_best.json").read_text(encoding="utf-8"))
            return {key: best[key] for key in ("metric", "value", "iteration")}
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def text(self, name: str) -> str:
        """Return a text file of the folder, "" if there is none."""
        path = self.folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_run(folder: Path) -> Run:
    """Read what is there.

    Args:
        folder: ``OUTPUT_DIR`` of a training or an evaluation.

    Raises:
        FileNotFoundError: there is no such folder, or it holds nothing of a run.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder}' is no folder. Give the OUTPUT_DIR of a run.")
    if not any((folder / name).exists() for name in _FILES):
        raise FileNotFoundError(
            f"'{folder}' holds nothing of a run: none of {', '.join(_FILES)}. Give the OUTPUT_DIR "
            "of a run."
        )
    signs = [folder / name for name in _FILES[:3] if (folder / name).is_file()]
    last_sign = max((p.stat().st_mtime for p in signs), default=None)
    run = Run(folder, read_metrics(folder / "metrics.json"), {}, last_sign)
    try:
        config = yaml.safe_load(run.text("config.yaml"))
    except yaml.YAMLError:
        # Half written, or changed by hand; the page shows the text.
        config = None
    return Run(folder, run.metrics, config if isinstance(config, dict) else {}, last_sign)


def _event_times(path: Path) -> list[float]:
    """Return when the events of a TensorBoard file were made, in seconds since 1970."""
    times = []
    with open(path, "rb") as file:
        # A record is length (8 bytes), checksum (4), event, checksum (4); an event begins with its
        # time, field 1 of the protocol buffer, a double.
        while len(head := file.read(21)) == 21:
            length, _, field, moment = struct.unpack("<QIBd", head)
            if field == 9:
                times.append(moment)
            file.seek(length - 9 + 4, os.SEEK_CUR)
    return times


def read_metrics(path: Path) -> Metrics:
    """Read lines of json; those that cannot be read, as a last one half written, are left out.

    Iterations that come again, after a training was resumed or started anew in the same folder,
    replace those that were there. Detectron2 writes some lines at once, in any order; so it is a
    metric, and not a line, by which it is seen that iterations come again.
    """
    if not path.is_file():
        return []
    metrics: Metrics = []
    newest: dict[str, int] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            iteration = int(entry.pop("iteration"))
        except (ValueError, LookupError, TypeError, AttributeError):
            continue
        if any(newest.get(key, -1) >= iteration for key in entry):
            metrics = [m for m in metrics if m["iteration"] < iteration]
            newest.clear()
        newest.update(dict.fromkeys(entry, iteration))
        metrics.append({"iteration": iteration, **entry})
    return sorted(metrics, key=lambda m: m["iteration"])
