"""The parts of the report, each from a run or an evaluation to the blocks of a page."""

import logging
import math
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from detectron2.config import CfgNode

from ..._version import __version__
from ...data.register import register_from_config
from ...visualization.draw import ERROR_COLORS, ERROR_NAMES
from ..page import Block, Section, write_page
from .chart import line_chart
from .examples import draw_examples, training_pictures
from .quality import Evaluation, Row, read_evaluations
from .run_folder import Run, read_run

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
# Images shown at each end, classes up to which their table is open, lines of the log at its end.
_EXAMPLES, _OPEN_CLASSES, _LOG_LINES = 3, 24, 40
_CONFIG_KEYS = (
    *("DATASETS.TRAIN", "DATASETS.TEST", "MODEL.WEIGHTS", "MODEL.BACKBONE.NAME"),
    *("MODEL.RESNETS.DEPTH", "MODEL.DETR.NUM_OBJECT_QUERIES", "MODEL.DETR.FREEZE_DETECTOR"),
    *("SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.MAX_ITER", "SOLVER.AMP.ENABLED"),
    *("MODEL.DEVICE", "SEED"),
)


def write_report(output_dir: str | Path) -> Path:
    """Write ``report.html`` into the folder of a run: finished, going on, or stopped.

    The page holds all its pictures and needs no network. What is missing, a run that has not been
    evaluated for one, is left out of it or said in it.

    Args:
        output_dir: ``OUTPUT_DIR`` of a training or an evaluation.

    Returns:
        Path: of the page, which appears only when it is whole.

    Raises:
        FileNotFoundError: there is no such folder, or it holds nothing of a run.
    """
    folder = Path(output_dir)
    run = read_run(folder)
    evaluations = read_evaluations(folder)
    top = state(run)
    try:
        items = run.config.get("DATASETS", {}).get("REGISTER") or []
        register_from_config(CfgNode({"DATASETS": {"REGISTER": items}}))
    except (OSError, ValueError) as error:
        # Only the pictures need the data.
        top.append({"note": str(error)})
        logger.warning("%s", error)
    top.append(overview(run, evaluations))
    path = folder / REPORT_FILE
    sections = [
        Section("results", "Results", results(run, evaluations)),
        Section("curves", "Curves", curves(run)),
        *(
            Section(f"images-{e.dataset}", f"Best and worst images of {e.dataset}", examples(e))
            for e in evaluations
        ),
        Section("course", "During training", training_pictures(run.folder)),
        Section("time", "Time and memory", time_and_memory(run)),
        Section("config", "Config", config(run)),
    ]
    write_page(path, folder.resolve().name, "run report", top, sections)
    return path


def state(run: Run) -> list[Block]:
    """Say how far the run is; of one that did not end well, the end of its log."""
    steps = f"{run.done} of {run.max_iter} iterations" if run.max_iter else f"{run.done} iterations"
    sign = "" if run.last_sign is None else f" Last sign of life: {_when(run.last_sign)}."
    left = run.latest("eta_seconds")
    eta = f", about {_duration(left)} left" if left else ""
    sentence = {
        "finished": f"Finished: {steps}.",
        "running": f"Going on, or stopped only now: {steps}{eta}.{sign}",
        "stopped": f"Stopped after {steps}, before its end.{sign}",
        "not started": f"No training step on record yet.{sign}",
        "evaluation": "An evaluation without a training.",
    }[run.state]
    blocks: list[Block] = [{"text": sentence, "id": "state", "class": run.state}]
    bad = sorted({k for m in run.metrics for k, v in m.items() if _is_bad(k, v)})
    if bad:
        blocks.append({"note": f"Not finite at some time: {', '.join(bad)}."})
    log = run.text("log.txt").splitlines()
    if log and run.state in ("running", "stopped", "not started"):
        end = {"pre": "\n".join(log[-_LOG_LINES:])}
        is_open = run.state != "running"
        blocks.append({"details": "The end of log.txt", "blocks": [end], "open": is_open})
    return blocks


def overview(run: Run, evaluations: list[Evaluation]) -> Block:
    """Return the numbers to see first."""
    prefixes = run.pq_prefixes()
    quality = run.latest(f"{prefixes[0]}PQ") if prefixes else None
    if evaluations:
        quality = evaluations[0].groups[0].pq
    loss, best, seconds = run.latest("total_loss"), run.best(), run.seconds()
    return {
        "tiles": [
            ("PQ", None if quality is None or math.isnan(quality) else f"{quality:.1f}"),
            ("Best PQ", f"{best['value']:.1f}" if best else None),
            ("Loss", None if loss is None else f"{loss:.3g}"),
            ("Iterations", f"{run.done}" if run.done else None),
            ("Per iteration", f"{seconds / run.done:.3g} s" if seconds else None),
            ("Training time", _duration(seconds)),
            ("Most memory", _memory(run)),
        ]
    }


def results(run: Run, evaluations: list[Evaluation]) -> list[Block]:
    """Return tables of PQ, SQ and RQ, the best checkpoint, and all other results."""
    blocks: list[Block] = []
    best = run.best()
    if best:
        sentence = f"model_best.pth: {best['metric']} {best['value']:.2f}"
        blocks.append(
            {"text": f"Best checkpoint: {sentence}, after {best['iteration'] + 1} iterations."}
        )
    for evaluation in evaluations:
        count = f"{len(evaluation.annotations)} images{_iteration_of(run, evaluation)}"
        blocks += [{"heading": evaluation.dataset}, {"text": count, "class": "quiet"}]
        blocks.append(_quality_table(evaluation.groups, "classes"))
        blocks.append(
            {
                "details": f"All {len(evaluation.classes)} classes",
                "blocks": [_quality_table(evaluation.classes, "segments")],
                "open": len(evaluation.classes) <= _OPEN_CLASSES,
            }
        )
    # Without an evaluation's files metrics.json has PQ, also of the classes.
    for prefix in run.pq_prefixes() if not evaluations else ():
        line = next(m for m in reversed(run.metrics) if f"{prefix}PQ" in m)
        pairs = [
            (k.removeprefix(prefix), f"{v:.2f}") for k, v in line.items() if k.startswith(prefix)
        ]
        blocks += [
            {"text": f"{prefix} in metrics.json, iteration {line['iteration']}", "class": "quiet"},
            {"pairs": pairs},
        ]
    names = [n for n in run.metric_names() if "/" in n and "-" not in n and "panoptic_seg" not in n]
    others = [(n, f"{value:.2f}") for n in names if (value := run.latest(n)) is not None]
    if others:
        blocks += [{"heading": "Other results"}, {"pairs": others}]
    return blocks or [
        {"text": "There was no evaluation yet: TEST.EVAL_PERIOD iterations make one."}
    ]


def curves(run: Run) -> list[Block]:
    """Return losses, learning rate, PQ and time over the iterations."""
    losses = {key: run.series(f"loss_{key}") for key in ("ce", "bbox", "giou", "mask", "dice")}
    times = {"all": run.series("time"), "waiting for data": run.series("data_time")}
    charts = [
        ("Total loss", line_chart({"total": run.series("total_loss")})),
        ("Losses of the last layer, weighted", line_chart(losses)),
    ]
    for prefix in run.pq_prefixes():
        groups = {"all": "", "things": "_th", "stuff": "_st"}
        series = {name: run.series(f"{prefix}PQ{suffix}") for name, suffix in groups.items()}
        dataset = prefix.removesuffix("panoptic_seg/").rstrip("/")
        charts.append((f"PQ {dataset}".rstrip(), line_chart(series, from_zero=True)))
    charts += [
        ("Learning rate", line_chart({"lr": run.series("lr")}, from_zero=True)),
        ("Seconds per training step", line_chart(times, from_zero=True)),
    ]
    charts = [(title, svg) for title, svg in charts if svg]
    return [{"charts": charts}] if charts else []


def examples(evaluation: Evaluation) -> list[Block]:
    """Return the best and the worst images, or why there are none."""
    count = min(_EXAMPLES, math.ceil(len(evaluation.images) / 2))
    worst = evaluation.images[:count]
    best = [image for image in reversed(evaluation.images[-count:]) if image not in worst]
    try:
        drawn = draw_examples(evaluation, best), draw_examples(evaluation, worst)
    except (KeyError, OSError, ValueError) as error:
        # A report of numbers is better than none: data may have moved since.
        reason = f"image or class {error}" if isinstance(error, KeyError) else error
        logger.warning("No pictures of %s: %s", evaluation.dataset, reason)
        return [{"note": f"There are no pictures: {reason}"}]
    legend = [(ERROR_COLORS[kind], name) for kind, name in ERROR_NAMES.items()]
    blocks: list[Block] = [
        {"text": "By PQ over the segments of all classes of an image."},
        {"legend": legend},
    ]
    for heading, group in zip(("Best", "Worst"), drawn, strict=True):
        blocks += [{"heading": heading}, *group] if group else []
    return blocks


def time_and_memory(run: Run) -> list[Block]:
    """Return what the run took; what is outside of the training steps is in the whole time."""
    wall, step, waiting = run.seconds(), run.median("time"), run.median("data_time")
    batch = run.config.get("SOLVER", {}).get("IMS_PER_BATCH")
    checkpoints = sorted(run.folder.glob("*.pth"))
    size = sum(p.stat().st_size for p in checkpoints)
    return [
        {
            "pairs": [
                ("Training time, all in all", _duration(wall)),
                ("Per iteration, all in all", f"{wall / run.done:.3g} s" if wall else None),
                ("Training step, median", None if step is None else f"{step:.3g} s"),
                ("of which waiting for data", None if waiting is None else f"{waiting:.3g} s"),
                ("Images per second in training steps", _rate(batch, step)),
                ("Most memory", _memory(run)),
                ("Checkpoints", f"{len(checkpoints)}, {size / 2**20:.0f} MiB"),
                ("Last checkpoint", run.text("last_checkpoint")),
            ]
        }
    ]


def config(run: Run) -> list[Block]:
    """Return the config: what is looked up most, and all of it."""
    rows = []
    for key in _CONFIG_KEYS:
        value = run.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        rows.append((key, None if value is None else text))
    whole = run.text("config.yaml")
    return [
        {"pairs": [*rows, ("report by", f"detr_panoptic_d2 {__version__}, {_when(time.time())}")]},
        {"details": "config.yaml", "blocks": [{"pre": whole}]} if whole else {},
    ]


def _quality_table(rows: Iterable[Row], counted: str) -> Block:
    """Return a table of PQ, SQ and RQ.

    Args:
        rows: of groups or of classes.
        counted: what :attr:`Row.count` counts, the heading of its column.
    """
    lines = []
    for row in rows:
        numbers = ["–" if math.isnan(v) else f"{v:.1f}" for v in (row.pq, row.sq, row.rq)]
        lines.append((row.name, row.kind, [*numbers, str(row.count)]))
    return {"table": {"heads": ["PQ", "SQ", "RQ", counted], "rows": lines}}


def _iteration_of(run: Run, evaluation: Evaluation) -> str:
    """Say after how many iterations, if the numbers are those of the last line with PQ."""
    for prefix in run.pq_prefixes():
        iteration, value = run.series(f"{prefix}PQ")[-1]
        if math.isclose(value, evaluation.groups[0].pq, abs_tol=1e-6):
            return f", after {min(iteration + 1, run.done)} iterations"
    return ""


def _is_bad(key: str, value: object) -> bool:
    return "loss" in key and isinstance(value, float) and not math.isfinite(value)


def _rate(batch: int | None, seconds: float | None) -> str | None:
    return f"{batch / seconds:.3g}" if batch and seconds else None


def _memory(run: Run) -> str | None:
    used = max((v for _, v in run.series("max_memory_mib")), default=None)
    if used is None:
        return None
    return f"{used / 1024:.1f} GiB" if used >= 1024 else f"{used:.0f} MiB"


def _duration(seconds: float | None) -> str | None:
    return None if seconds is None else str(timedelta(seconds=round(seconds)))


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
