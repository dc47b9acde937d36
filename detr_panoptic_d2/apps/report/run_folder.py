"""What a run left in its output folder, whole or not."""

import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .log_file import LogFacts, read_log

# A run that has written nothing for this long is not called running any more, in seconds.
_SILENCE = 900

FINISHED, RUNNING, FAILED, STOPPED, NOT_STARTED, EVALUATION = (
    "finished",
    "running",
    "failed",
    "stopped",
    "no training step yet",
    "evaluation only",
)

Metrics = list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        folder: ``OUTPUT_DIR``.
        metrics: lines of ``metrics.json``, iterations ascending.
        skipped_lines: how many of them could not be read, other than the last one, which may be
            written at this moment.
        config: of ``config.yaml``, {} if there is none.
        config_text: the file.
        log: None if there is none.
        last_sign: when metrics or log were written last, in seconds since 1970; None: never.
    """

    folder: Path
    metrics: Metrics
    skipped_lines: int
    config: dict[str, Any]
    config_text: str
    log: LogFacts | None
    last_sign: float | None

    @property
    def done(self) -> int:
        """Iterations that are on record."""
        return 1 + max((m["iteration"] for m in self.metrics if "total_loss" in m), default=-1)

    @property
    def max_iter(self) -> int | None:
        """Iterations of the whole training; None if that is not known."""
        if self.log and self.log.scaled_max_iter:
            return self.log.scaled_max_iter
        return self.config.get("SOLVER", {}).get("MAX_ITER")

    @property
    def state(self) -> str:
        """One of FINISHED, RUNNING, FAILED, STOPPED, NOT_STARTED, EVALUATION."""
        complete = bool(self.done) and self.max_iter is not None and self.done >= self.max_iter
        if self.log and self.log.traceback:
            return FAILED
        if self.log and self.log.total_time:
            return FINISHED if complete else STOPPED
        started = self.log is not None and self.log.started
        if complete and not started:
            return FINISHED
        if not self.done and not started:
            return EVALUATION if (self.folder / "inference").is_dir() else NOT_STARTED
        silent = self.last_sign is None or time.time() - self.last_sign > _SILENCE
        return STOPPED if silent else RUNNING

    def series(self, key: str) -> list[tuple[float, float]]:
        """Return (iteration, value) of a metric."""
        return [
            (m["iteration"], float(m[key]))
            for m in self.metrics
            if isinstance(m.get(key), int | float)
        ]

    def pq_prefixes(self) -> list[str]:
        """Return what stands before "PQ" in the names: with several data sets one for each."""
        ending = "panoptic_seg/PQ"
        return [key.removesuffix("PQ") for key in self.metric_names() if key.endswith(ending)]

    def latest(self, key: str) -> float | None:
        """Return the last value of a metric, None if there is none."""
        values = self.series(key)
        return values[-1][1] if values else None

    def median(self, key: str) -> float | None:
        """Return the median of a metric, None if there is none."""
        values = [v for _, v in self.series(key) if math.isfinite(v)]
        return statistics.median(values) if values else None

    def metric_names(self) -> list[str]:
        """Return the names of all metrics, in order of appearance."""
        return list(dict.fromkeys(key for m in self.metrics for key in m))


def read_run(folder: Path) -> Run:
    """Read what is there.

    Args:
        folder: ``OUTPUT_DIR`` of a training or an evaluation.

    Raises:
        FileNotFoundError: there is no such folder, or it holds nothing of a run.
    """
    names = ("metrics.json", "log.txt", "config.yaml", "inference")
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder}' is no folder. Give the OUTPUT_DIR of a run.")
    if not any((folder / name).exists() for name in names):
        raise FileNotFoundError(
            f"'{folder}' holds nothing of a run: none of {', '.join(names)}. Give the OUTPUT_DIR "
            "of a run."
        )
    metrics, skipped = read_metrics(folder / "metrics.json")
    config_file = folder / "config.yaml"
    text = config_file.read_text(encoding="utf-8") if config_file.is_file() else ""
    signs = [folder / name for name in names[:3] if (folder / name).is_file()]
    return Run(
        folder=folder,
        metrics=metrics,
        skipped_lines=skipped,
        config=_parse_config(text),
        config_text=text,
        log=read_log(folder / "log.txt"),
        last_sign=max((p.stat().st_mtime for p in signs), default=None),
    )


def read_metrics(path: Path) -> tuple[Metrics, int]:
    """Read lines of json, of which the last may be half written.

    Iterations that come again, after a training was resumed or started anew in the same folder,
    replace those that were there. Detectron2 writes some lines at once, in any order; so it is a
    metric, and not a line, by which it is seen that iterations come again.

    Returns:
        (list, int): the lines by iteration, and how many besides the last could not be read.
    """
    if not path.is_file():
        return [], 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    metrics: Metrics = []
    newest: dict[str, int] = {}
    skipped = 0
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
            iteration = int(entry.pop("iteration"))
        except (ValueError, LookupError, TypeError, AttributeError):
            skipped += number != len(lines) - 1
            continue
        if any(newest.get(key, -1) >= iteration for key in entry):
            metrics = [m for m in metrics if m["iteration"] < iteration]
            newest.clear()
        newest.update(dict.fromkeys(entry, iteration))
        metrics.append({"iteration": iteration, **entry})
    return sorted(metrics, key=lambda m: m["iteration"]), skipped


def _parse_config(text: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        # Half written, or changed by hand; the page shows the text.
        return {}
    return config if isinstance(config, dict) else {}
