"""From a config to the best rule and thresholds for its weights.

Shapes: G groups of images, S settings, K classes.
"""

import functools
import itertools
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from matplotlib.figure import Figure
from tabulate import tabulate

from ...data.metadata import dataset_ids, thing_class_ids
from ...engine import setup_cfg
from ...errors import UserError
from ...files import atomic_file
from .search import Setting, count_settings, make_settings

logger = logging.getLogger(__name__)

# Fewer images tell little about thresholds.
_FEW_IMAGES = 20
# Every way to choose 4 of 8 groups is a division into halves.
_NUM_GROUPS = 8


def tune(
    config_file: str, opts: list[str], dataset: str | None = None, output: Path | None = None
) -> tuple[str, Path, Path]:
    """Find the rule and the thresholds of the panoptic inference that give the best PQ.

    Args:
        config_file, opts: as of :func:`detr_panoptic_d2.engine.setup_cfg`.
        dataset: a registered panoptic dataset; None: the first of ``DATASETS.TEST``.
        output: folder of ``tuned.yaml`` and ``tuned.png``; None: ``OUTPUT_DIR``.

    Returns:
        the table of results, and the paths of config and picture.

    Raises:
        UserError: the dataset has no panoptic annotation, the model no masks, or the config would
            be overwritten.
    """
    if dataset is not None:
        opts = [*opts, "DATASETS.TEST", f"('{dataset}',)"]
    # Only PQ is tuned.
    outputs = {"PANOPTIC_ON": True, "INSTANCE_ON": False, "SEMANTIC_ON": False}
    extra = [str(x) for key, value in outputs.items() for x in (f"MODEL.DETR.TEST.{key}", value)]
    cfg = setup_cfg(config_file, [*opts, *extra])
    names = cfg.DATASETS.TEST
    metadata = MetadataCatalog.get(names[0]) if names else None
    if metadata is None or metadata.get("panoptic_json") is None:
        raise UserError(
            f"DATASETS.TEST is {tuple(names)}, but its first name must be that of a panoptic data "
            "set. Give --dataset NAME."
        )
    folder = Path(output or cfg.OUTPUT_DIR)
    target = folder / "tuned.yaml"
    if Path(config_file).is_file() and target.resolve() == Path(config_file).resolve():
        raise UserError(f"{target} is the config file itself: choose another folder with --output.")
    folder.mkdir(parents=True, exist_ok=True)
    settings = make_settings(cfg)
    counts, num_images = count_settings(cfg, settings, _NUM_GROUPS)
    if num_images < _FEW_IMAGES:
        logger.warning(
            "'%s' has only %d images: other thresholds may be better on other images.",
            names[0],
            num_images,
        )
    is_thing = np.isin(np.arange(len(dataset_ids(metadata))), thing_class_ids(metadata))
    table, chosen, gains = choose_setting(counts, settings, is_thing)
    gain, low, high = np.nanmean(gains), np.nanmin(gains), np.nanmax(gains)
    lines = [
        f"{names[0]}: {num_images} images, {len(settings)} settings",
        table,
        "held-out PQ: chosen on half of the images, measured on the other half, mean over "
        f"{len(gains)} ways to divide them.",
        f"Held-out gain over the config: {gain:+.2f} PQ, from {low:+.2f} to {high:+.2f}.",
    ]
    if not gain > 0:
        logger.warning("Tuning gains nothing on held-out images: keep the values of the config.")
    picture = folder / "tuned.png"
    pq = panoptic_quality(counts.sum(0))
    write_picture(picture, pq, settings, chosen, f"{names[0]}, {num_images} images")
    write_config(target, config_file, cfg, opts, settings[chosen])
    return "\n\n".join(lines), target, picture


def panoptic_quality(counts: np.ndarray) -> np.ndarray:
    """Return PQ in percent: ... x K x 4 sums to ... means over the classes that occur."""
    iou, tp, fp, fn = np.moveaxis(counts, -1, 0)
    denominator = tp + fp / 2 + fn / 2
    occurs = denominator > 0
    quality = np.divide(iou, denominator, out=np.zeros_like(iou), where=occurs)
    num_classes = occurs.sum(-1)
    sums = 100 * quality.sum(-1)
    return np.divide(sums, num_classes, out=np.full_like(sums, np.nan), where=num_classes > 0)


def _best(pq: np.ndarray, candidates: np.ndarray) -> int:
    # Of equal ones the first.
    return int(candidates[np.nan_to_num(pq[candidates], nan=-1).argmax()])


def cross_validate(counts: np.ndarray, candidates: np.ndarray) -> tuple[float, np.ndarray]:
    """Choose a candidate on each half of the groups and test it on the other half.

    Returns:
        mean PQ on the other halves, and for each half the gain over the config, setting 0.
    """
    tested = []
    for half in itertools.combinations(range(len(counts)), len(counts) // 2):
        other = np.setdiff1d(range(len(counts)), half)
        chosen = _best(panoptic_quality(counts[list(half)].sum(0)), candidates)
        tested.append(panoptic_quality(counts[other][:, [0, chosen]].sum(0)))
    config_pq, chosen_pq = np.transpose(tested)
    return float(np.nanmean(chosen_pq)), chosen_pq - config_pq


def choose_setting(
    counts: np.ndarray, settings: Sequence[Setting], is_thing: np.ndarray
) -> tuple[str, int, np.ndarray]:
    """Choose the setting with the best PQ from G x S x K x 4 counts.

    Returns:
        a table of the config's setting, the best one of each rule and the chosen one; the index of
        the chosen one; and its gains on held-out halves.
    """
    total = counts.sum(0)
    pq, every = panoptic_quality(total), np.arange(len(settings))
    rules = np.array([setting.PANOPTIC_INFERENCE for setting in settings])
    rows = []
    for title, candidates in (
        ("config", every[:1]),
        *(("best of the rule", every[rules == rule]) for rule in dict.fromkeys(rules)),
        ("chosen", every),
    ):
        chosen = _best(pq, candidates)
        held_out, gains = cross_validate(counts, candidates)
        groups = [panoptic_quality(total[chosen][mask]) for mask in (is_thing, ~is_thing)]
        rows.append([title, *settings[chosen], pq[chosen], *groups, held_out])
    headers = ["", "rule", "score", "overlap", "area", "PQ", "PQ_th", "PQ_st", "held-out PQ"]
    formats = ("", "", "g", "g", "g", ".3f", ".3f", ".3f", ".2f")
    return tabulate(rows, headers, floatfmt=formats), chosen, gains


def write_picture(
    path: Path, pq: np.ndarray, settings: Sequence[Setting], chosen: int, title: str
) -> None:
    """Draw the best PQ of each score threshold, one curve per rule."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    labels = {"xlabel": "MODEL.DETR.TEST.SCORE_THRESH", "ylabel": "PQ, best of the other values"}
    axes = figure.add_subplot(title=title, **labels)
    curves: dict[str, dict[float, float]] = {}
    for (rule, score, *_), value in zip(settings, pq, strict=True):
        curve = curves.setdefault(rule, {})
        curve[score] = max(value, curve.get(score, -1.0))
    for rule, curve in curves.items():
        axes.plot(*zip(*sorted(curve.items()), strict=True), marker=".", label=rule)
    for index, marker, label in ((0, "s", "config"), (chosen, "*", "chosen")):
        point = settings[index].SCORE_THRESH, pq[index]
        axes.plot(*point, marker, color="black", markersize=9, label=f"{label}: {point[1]:.2f}")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)


def write_config(
    path: Path, config_file: str, cfg: CfgNode, opts: Sequence[str], setting: Setting
) -> None:
    """Write a config that adds the options of the command and a setting to a config file.

    ``cfg`` is the config of file and options. Paths in the new file are relative to it.
    """
    values = {key: functools.reduce(getattr, key.split("."), cfg) for key in opts[::2]}
    values.update({f"MODEL.DETR.TEST.{k}": v for k, v in setting._asdict().items()})
    tree = CfgNode()
    for key, value in values.items():
        *parents, name = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, CfgNode())
        node[name] = value
    base = config_file
    if Path(config_file).is_file():
        base = Path(os.path.relpath(config_file, path.parent)).as_posix()
    with atomic_file(path) as file:
        file.write(f"_BASE_: {json.dumps(base)}\n{tree.dump()}")
