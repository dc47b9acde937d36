"""Write the page of a run from the files in its folder."""

import json
import logging
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from detectron2.config import CfgNode

from ..._version import __version__
from ...data.register import register_from_config
from ...evaluation.low_pq import explain_low_pq
from ...evaluation.panoptic import PER_IMAGE_FILE
from ..page import Block, Section, write_page
from .chart import line_chart
from .results import read_evaluation

logger = logging.getLogger(__name__)

# Number of lines from the end of the log.
_LOG_LINES = 40
_PQ = "panoptic_seg/PQ"
_LOSSES = ("ce", "bbox", "giou", "mask", "dice")


class Run(NamedTuple):
    """The files of a run, complete or not.

    Attributes:
        folder: ``OUTPUT_DIR``.
        series: values by iteration, in order, for each metric.
        config: content of ``config.yaml``, {} if there is none.
    """

    folder: Path
    series: dict[str, dict[int, float]]
    config: dict[str, Any]

    @property
    def done(self) -> int:
        """Number of iterations in ``metrics.json``."""
        return 1 + max(self.series.get("total_loss", {}), default=-1)

    @property
    def finished(self) -> bool:
        """Whether the training is finished."""
        return (self.folder / "model_final.pth").is_file() or (
            0 < self.config.get("SOLVER", {}).get("MAX_ITER", math.inf) <= self.done
        )

    def values(self, name: str) -> np.ndarray:
        """Return the values of a metric, a NaN if there are none."""
        return np.array(list(self.series.get(name, {}).values()) or [math.nan], dtype=float)

    def text(self, name: str) -> str:
        """Return a text file of the folder, "" if there is none."""
        path = self.folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def early_stopping(self) -> dict[str, Any]:
        """Return the record of :class:`.engine.hooks.EarlyStopping`, {} if there is none."""
        return json.loads(self.text("early_stopping.json") or "{}")


def read_run(folder: Path) -> Run:
    """Read the files of a run.

    Invalid lines of ``metrics.json``, such as an incomplete last one, are skipped. If an iteration
    was repeated after a resume, its last values count.
    """
    if not any((folder / f).exists() for f in ("metrics.json", "config.yaml", "inference")):
        raise FileNotFoundError(
            f"'{folder}' is no folder of a run: it has no metrics.json, config.yaml or inference. "
            "Give the OUTPUT_DIR of a run."
        )
    run = Run(folder, defaultdict(dict), {})
    for line in run.text("metrics.json").splitlines():
        try:
            entry = json.loads(line)
            iteration = entry.pop("iteration")
        except (ValueError, LookupError, TypeError, AttributeError):
            continue
        for name, value in entry.items():
            run.series[name][iteration] = value
    try:
        config = yaml.safe_load(run.text("config.yaml"))
    except yaml.YAMLError:
        # Incomplete, or edited. The page shows the text.
        config = None
    series = {name: dict(sorted(values.items())) for name, values in run.series.items()}
    return Run(folder, series, config if isinstance(config, dict) else {})


def write_report(output_dir: str | Path) -> Path:
    """Write ``report.html`` into ``OUTPUT_DIR`` of a run: finished, running, or stopped.

    The page contains all its pictures and needs no network. Parts without data, such as the results
    of a run without evaluation, are left out.

    Raises:
        FileNotFoundError: the folder has no files of a run.
    """
    run = read_run(Path(output_dir))
    top = state(run)
    try:
        items = run.config.get("DATASETS", {}).get("REGISTER") or []
        register_from_config(CfgNode({"DATASETS": {"REGISTER": items}}))
    except (OSError, ValueError) as error:
        # Only the pictures need the data.
        top.append({"note": str(error)})
        logger.warning("%s", error)
    folders = sorted(p.parent for p in run.folder.glob(f"inference/*/{PER_IMAGE_FILE}"))
    evaluations = {folder.name: read_evaluation(folder) for folder in folders}
    if run.done and "DETR" in run.config.get("MODEL", {}):
        top += [{"note": line} for line in explain_low_pq(CfgNode(run.config), folders)]
    text = run.text("config.yaml")
    made = f"Report by detr_panoptic_d2 {__version__}, {_format_time(time.time())}."
    sections = [
        *(Section(name, f"Results on {name}", e[1]) for name, e in evaluations.items()),
        Section("curves", "Curves", curves(run)),
        Section(
            "config",
            "Config",
            [
                {"details": "config.yaml", "blocks": [{"pre": text}]} if text else {},
                {"text": made, "class": "quiet"},
            ],
        ),
    ]
    path = run.folder / "report.html"
    top += overview(run, [pq for pq, _ in evaluations.values()])
    write_page(path, run.folder.resolve().name, "run report", top, sections)
    return path


def state(run: Run) -> list[Block]:
    """Return the state of the run, and the end of the log if it is not finished."""
    total = run.config.get("SOLVER", {}).get("MAX_ITER")
    if not run.done:
        kind, sentence = "evaluation", "No training step on record."
    elif run.finished:
        kind, sentence = "finished", f"Finished: {run.done} iterations."
    else:
        kind, sentence = "stopped", f"Not finished: {run.done} of {total or '?'} iterations."
    # A later evaluation changes the other files.
    names = ("model_final.pth", "metrics.json", "log.txt", "config.yaml")
    times = [path.stat().st_mtime for path in map(run.folder.joinpath, names) if path.is_file()]
    text = f"{sentence} Last change: {_format_time(times[0] if times else time.time())}."
    blocks: list[Block] = [{"text": text, "id": "state", "class": kind}]
    if reason := run.early_stopping().get("reason"):
        blocks.append({"note": reason})
    if run.config.get("MODEL", {}).get("DEVICE") == "cpu":
        blocks.append({"text": "It ran on the CPU, not on a GPU (MODEL.DEVICE cpu)."})
    bad = [n for n in sorted(run.series) if "loss" in n and not np.isfinite(run.values(n)).all()]
    if bad:
        blocks.append({"note": f"Infinite or NaN in some iterations: {', '.join(bad)}."})
    log = run.text("log.txt").splitlines()
    if log and not run.finished and (run.done or not (run.folder / "inference").is_dir()):
        end = {"pre": "\n".join(log[-_LOG_LINES:])}
        blocks.append({"details": "The end of log.txt", "blocks": [end], "open": True})
    return blocks


def overview(run: Run, evaluated: list[float]) -> list[Block]:
    """Return the most important numbers, and all results in metrics.json.

    ``evaluated`` is the PQ of the datasets with files of an evaluation.
    """
    numbers = [
        ("PQ", "{:.1f}", evaluated[0] if evaluated else run.values(_PQ)[-1]),
        ("Loss", "{:.3g}", run.values("total_loss")[-1]),
        ("Per training step", "{:.3g} s", np.median(run.values("time"))),
        ("of which waiting for data", "{:.3g} s", np.median(run.values("data_time"))),
    ]
    tiles = [(name, form.format(value)) for name, form, value in numbers if math.isfinite(value)]
    blocks: list[Block] = [{"tiles": tiles}]
    if text := run.text("model_best.json"):
        best = json.loads(text)
        value, iterations = f"{best['metric']} {best['value']:.2f}", best["iteration"] + 1
        average = " (average of the weights, EMA)" if best.get("weights") == "ema" else ""
        text = f"model_best.pth: {value}, after {iterations} iterations{average}."
        blocks.append({"text": text})
    pairs = [(n, f"{run.values(n)[-1]:.2f}") for n in run.series if "/" in n]
    if pairs:
        is_open = not evaluated
        blocks.append({"details": "metrics.json", "blocks": [{"pairs": pairs}], "open": is_open})
    elif not evaluated:
        text = "There was no evaluation yet: one runs every TEST.EVAL_PERIOD iterations."
        blocks.append({"text": text})
    return blocks


def curves(run: Run) -> list[Block]:
    """Return losses, learning rate, PQ and time over the iterations."""
    named = {
        "Total loss": {"total": "total_loss"},
        "Losses of the last layer, weighted": {key: f"loss_{key}" for key in _LOSSES},
    }
    if "val/total_loss" in run.series:
        # One chart for each loss, with both curves.
        del named["Losses of the last layer, weighted"]
        for key in _LOSSES:
            names = {"training": f"loss_{key}", "validation": f"val/loss_{key}"}
            named[f"loss_{key} of the last layer"] = names
    for prefix in (name.removesuffix("PQ") for name in run.series if name.endswith(_PQ)):
        groups = {"all": "PQ", "things": "PQ_th", "stuff": "PQ_st"}
        dataset = prefix.removesuffix("panoptic_seg/").rstrip("/")
        named[f"PQ {dataset}".rstrip()] = {name: prefix + end for name, end in groups.items()}
    named["Learning rate"] = {"lr": "lr"}
    named["Seconds per training step"] = {"all": "time", "waiting for data": "data_time"}
    marks = _mark_early_stopping(run.early_stopping())
    charts = []
    for title, names in named.items():
        series = {curve: run.series.get(name, {}) for curve, name in names.items()}
        marked = marks if title.startswith("PQ") or "validation" in names else {}
        svg = line_chart(series, from_zero="loss" not in title.lower(), marks=marked)
        charts += [(title, svg)] if svg else []
    return [{"charts": charts}] if charts else []


def _mark_early_stopping(record: dict[str, Any]) -> dict[str, int]:
    """Return the iterations of the best value and of the stop."""
    if not record.get("reason"):
        return {}
    values = [(-math.inf if math.isnan(value) else value, i) for i, value in record["values"]]
    return {"best at": max(values)[1], "stopped at": values[-1][1]}


def _format_time(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
