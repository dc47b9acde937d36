"""The parts of the page, each from a run or an evaluation to HTML; "" where there is nothing."""

import logging
import math
import statistics
import time
from datetime import timedelta

from ..._version import __version__
from ...visualization.draw import ERROR_COLORS, ERROR_NAMES
from . import html_parts as h
from .chart import line_chart
from .examples import Example, draw_examples, training_pictures
from .quality import Evaluation, rows_of_metrics
from .run_folder import EVALUATION, FAILED, FINISHED, NOT_STARTED, RUNNING, STOPPED, Run

logger = logging.getLogger(__name__)

# Images shown at each end, and classes up to which their table is open.
_EXAMPLES, _OPEN_CLASSES = 3, 24


def state(run: Run) -> str:
    """Say how far the run is, and why it is not further."""
    steps = f"{run.done} of {run.max_iter} iterations" if run.max_iter else f"{run.done} iterations"
    sign = "" if run.last_sign is None else f" Last sign of life: {_when(run.last_sign)}."
    left = run.latest("eta_seconds")
    eta = f", about {_duration(left)} left" if left else ""
    sentence = {
        FINISHED: f"Finished: {steps}.",
        RUNNING: f"Going on: {steps}{eta}.{sign}",
        FAILED: f"Failed after {steps}.{sign}",
        STOPPED: f"Stopped after {steps}, before its end.{sign}",
        NOT_STARTED: f"No training step on record yet.{sign}",
        EVALUATION: "An evaluation without a training.",
    }[run.state]
    parts = [f'<p id="state" class="{run.state.replace(" ", "-")}">{h.text(sentence)}</p>']
    if run.state == FAILED:
        message = run.log.traceback.strip().splitlines()[-1]
        parts.append(h.note(message))
        parts.append(h.details("Traceback", h.preformatted(run.log.traceback)))
    if run.skipped_lines:
        parts.append(h.note(f"{run.skipped_lines} lines of metrics.json could not be read."))
    return "".join(parts)


def overview(run: Run, evaluations: list[Evaluation]) -> str:
    """Return the numbers to see first."""
    prefixes = run.pq_prefixes()
    quality = run.latest(f"{prefixes[0]}PQ") if prefixes else None
    if evaluations:
        quality = evaluations[0].groups[0].pq
    loss = run.latest("total_loss")
    seconds = run.median("time")
    return h.facts(
        [
            ("PQ", _percent(quality)),
            ("Loss", None if loss is None else f"{loss:.3g}"),
            ("Iterations", f"{run.done}" if run.done else None),
            ("Per iteration", _seconds(seconds)),
            ("Training time", run.log.total_time.strip() if run.log else None),
            ("Most memory", _memory(run)),
        ]
    )


def results(run: Run, evaluations: list[Evaluation]) -> str:
    """Return tables of PQ, SQ and RQ, and all other results."""
    parts = []
    for evaluation in evaluations:
        groups = evaluation.groups
        parts.append(
            f"<h3>{h.text(evaluation.dataset)}</h3>"
            f'<p class="quiet">{len(evaluation.annotations)} images{_iteration_of(run, evaluation)}'
            "</p>" + h.quality_table(groups, "classes")
        )
        title = f"All {len(evaluation.classes)} classes"
        table = h.quality_table(evaluation.classes, "segments")
        parts.append(h.details(title, table, is_open=len(evaluation.classes) <= _OPEN_CLASSES))
    for prefix in run.pq_prefixes() if not evaluations else ():
        line = next(m for m in reversed(run.metrics) if f"{prefix}PQ" in m)
        parts.append(
            f'<p class="quiet">{h.text(prefix)} in metrics.json, iteration {line["iteration"]}; SQ '
            "and RQ of the classes come with the files of the evaluation.</p>"
            + "".join(h.quality_table(rows, "") for rows in rows_of_metrics(line, prefix))
        )
    others = [
        k for k in run.metric_names() if "/" in k and "-" not in k and "panoptic_seg" not in k
    ]
    rows = [(key, f"{run.latest(key):.2f}") for key in others if run.latest(key) is not None]
    if rows:
        parts.append("<h3>Other results</h3>" + h.pairs(rows))
    if not parts:
        parts.append("<p>There was no evaluation yet: TEST.EVAL_PERIOD iterations make one.</p>")
    return _section("results", "Results", "".join(parts))


def curves(run: Run) -> str:
    """Return losses, learning rate, PQ and time over the iterations."""
    losses = {key: run.series(f"loss_{key}") for key in ("ce", "bbox", "giou", "mask", "dice")}
    charts = [
        line_chart("Total loss", {"total": run.series("total_loss")}),
        line_chart("Losses of the last layer, weighted", losses),
        *(_quality_chart(run, prefix) for prefix in run.pq_prefixes()),
        line_chart("Learning rate", {"lr": run.series("lr")}, least=0.0),
        line_chart("Matched queries of a wrong class, percent", _class_error(run), least=0.0),
        line_chart(
            "Seconds per iteration",
            {"all": run.series("time"), "waiting for data": run.series("data_time")},
            least=0.0,
        ),
    ]
    drawn = "".join(charts)
    if not drawn:
        return ""
    return _section("curves", "Curves", f'<div class="grid">{drawn}</div>')


def examples(evaluation: Evaluation) -> str:
    """Return the best and the worst images, or why there are none."""
    title = f"Best and worst images of {evaluation.dataset}"
    identity = f"images-{evaluation.dataset}"
    if evaluation.under_way:
        message = "An evaluation is under way, or was broken off: its pictures replace those that "
        return _section(identity, title, h.note(f"{message}belong to the table above."))
    count = min(_EXAMPLES, math.ceil(len(evaluation.images) / 2))
    worst = evaluation.images[:count]
    best = [image for image in reversed(evaluation.images[-count:]) if image not in worst]
    try:
        drawn = draw_examples(evaluation, best), draw_examples(evaluation, worst)
    except (KeyError, OSError, ValueError) as error:
        # A report of numbers is better than none: data may have moved since.
        reason = error.args[0] if isinstance(error, KeyError) else error
        logger.warning("No pictures of %s: %s", evaluation.dataset, reason)
        return _section(identity, title, h.note(f"There are no pictures: {reason}"))
    parts = [
        "<p>By PQ over the segments of all classes of an image.</p>",
        _error_legend(),
    ]
    for heading, group in zip(("Best", "Worst"), drawn, strict=True):
        if group:
            parts.append(f"<h3>{heading}</h3>{''.join(map(_example, group))}")
    return _section(identity, title, "".join(parts))


def training_course(run: Run) -> str:
    """Return the pictures that the hook drew."""
    pictures = training_pictures(run.folder)
    if not pictures:
        return ""
    inside = "".join(h.image(caption, jpeg) for caption, jpeg in pictures)
    return _section("course", "During training", f'<div class="grid wide">{inside}</div>')


def time_and_memory(run: Run) -> str:
    """Return what the run took."""
    seconds, waiting = run.median("time"), run.median("data_time")
    batch = run.config.get("SOLVER", {}).get("IMS_PER_BATCH")
    checkpoints = sorted(run.folder.glob("*.pth"))
    size = sum(p.stat().st_size for p in checkpoints)
    last = run.folder / "last_checkpoint"
    rows = [
        ("Training time", run.log.total_time.strip() if run.log else None),
        ("of which evaluation, pictures, checkpoints", run.log.hooks_time if run.log else None),
        ("Per iteration, median", _seconds(seconds)),
        ("of which waiting for data", _seconds(waiting)),
        ("Images per second", f"{batch / seconds:.3g}" if batch and seconds else None),
        ("Most memory", _memory(run)),
        (
            "Checkpoints",
            f"{len(checkpoints)}, {size / 2**20:.0f} MiB" if checkpoints else "none yet",
        ),
        ("Last checkpoint", last.read_text(encoding="utf-8") if last.is_file() else None),
    ]
    return _section("time", "Time and memory", h.pairs(rows))


def config(run: Run) -> str:
    """Return the config: what is looked up most, and all of it."""
    if not run.config_text:
        return _section("config", "Config", "<p>There is no config.yaml.</p>")
    keys = (
        "DATASETS.TRAIN",
        "DATASETS.TEST",
        "MODEL.WEIGHTS",
        "MODEL.BACKBONE.NAME",
        "MODEL.RESNETS.DEPTH",
        "MODEL.DETR.NUM_CLASSES",
        "MODEL.DETR.NUM_OBJECT_QUERIES",
        "MODEL.DETR.FREEZE_DETECTOR",
        "SOLVER.IMS_PER_BATCH",
        "SOLVER.BASE_LR",
        "SOLVER.MAX_ITER",
        "SOLVER.AMP.ENABLED",
        "MODEL.DEVICE",
        "SEED",
    )
    rows = [(key, _config_value(run.config, key)) for key in keys]
    whole = h.details("config.yaml", h.preformatted(run.config_text))
    return _section("config", "Config", h.pairs(rows) + whole)


def versions(run: Run) -> str:
    """Return what the run ran on, and what wrote the page."""
    rows = list(run.log.environment) if run.log else []
    rows.append(("report by", f"detr_panoptic_d2 {__version__}, {_when(time.time())}"))
    return _section("versions", "Versions", h.pairs(rows))


def _section(identity: str, title: str, inside: str) -> str:
    return f'<section id="{h.text(identity)}"><h2>{h.text(title)}</h2>{inside}</section>'


def _example(example: Example) -> str:
    q = example.quality
    pictures = "".join(h.image(caption, jpeg) for caption, jpeg in example.pictures)
    numbers = f"PQ {q.pq:.1f}; {q.tp} segments matched, {q.fn} missed, {q.fp} wrong"
    return (
        f'<p><b>{h.text(example.name)}</b> <span class="quiet">{numbers}</span></p>'
        f'<div class="pictures">{pictures}</div>'
    )


def _error_legend() -> str:
    items = "".join(
        f'<li><i style="background: rgb{ERROR_COLORS[kind]}"></i>{h.text(name)}</li>'
        for kind, name in ERROR_NAMES.items()
    )
    return f'<ul class="legend">{items}</ul>'


def _iteration_of(run: Run, evaluation: Evaluation) -> str:
    """Say after how many iterations, if the numbers are those of the last line with PQ."""
    for prefix in run.pq_prefixes():
        iteration, value = run.series(f"{prefix}PQ")[-1]
        if math.isclose(value, evaluation.groups[0].pq, abs_tol=1e-6):
            return f", after {min(iteration + 1, run.done)} iterations"
    return ""


def _quality_chart(run: Run, prefix: str) -> str:
    series = {
        name: run.series(f"{prefix}PQ{suffix}")
        for name, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st"))
    }
    dataset = prefix.removesuffix("panoptic_seg/").rstrip("/")
    return line_chart(f"PQ, {dataset}" if dataset else "PQ", series, least=0.0)


def _class_error(run: Run) -> dict[str, list[tuple[float, float]]]:
    """The errors of single batches jump; a running median of nine shows where they go."""
    points = run.series("class_error")
    return {
        "class error": [
            (x, statistics.median(y for _, y in points[max(0, i - 4) : i + 5]))
            for i, (x, _) in enumerate(points)
        ]
    }


def _config_value(config: dict, key: str) -> str | None:
    value = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _percent(value: float | None) -> str | None:
    return None if value is None or math.isnan(value) else f"{value:.1f}"


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g} s"


def _memory(run: Run) -> str | None:
    used = max((v for _, v in run.series("max_memory_mib")), default=None)
    if used is None:
        used = run.log.max_memory_mib if run.log else None
    if used is None:
        return None
    return f"{used / 1024:.1f} GiB" if used >= 1024 else f"{used:.0f} MiB"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
