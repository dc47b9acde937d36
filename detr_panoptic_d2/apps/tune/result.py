"""Choosing a setting by cross-validation, and writing it: table, picture, config.

Shapes: G groups of images, S settings, K classes.
"""

import functools
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode
from matplotlib.figure import Figure
from tabulate import tabulate

from ...files import atomic_file
from .search import Setting


class Validation(NamedTuple):
    """Cross-validation: settings are chosen on half of the groups and tested on the other half.

    Attributes:
        pq: mean PQ on the other halves, in percent.
        gains: difference to the setting of the config, one value per division into halves.
    """

    pq: float
    gains: np.ndarray


def panoptic_quality(counts: np.ndarray) -> np.ndarray:
    """Return PQ in percent: ... x K x 4 sums to ... means over the classes that occur."""
    iou, tp, fp, fn = np.moveaxis(counts, -1, 0)
    denominator = tp + fp / 2 + fn / 2
    occurs = denominator > 0
    quality = np.divide(iou, denominator, out=np.zeros_like(iou), where=occurs)
    num_classes = occurs.sum(-1)
    sums = 100 * quality.sum(-1)
    return np.divide(sums, num_classes, out=np.full_like(sums, np.nan), where=num_classes > 0)


def best_setting(pq: np.ndarray, candidates: Sequence[int]) -> int:
    """Return the candidate of greatest PQ; of equal ones the first."""
    return max(candidates, key=lambda i: -1.0 if np.isnan(pq[i]) else pq[i])


def cross_validate(counts: np.ndarray, candidates: Sequence[int]) -> Validation:
    """Choose a setting on half of the groups and test it on the other half, for all halves.

    Args:
        counts: G x S x K x 4. The first of the S settings is that of the config.
        candidates: indices of the settings to choose from.
    """
    num_groups = len(counts)
    qualities, gains = [], []
    for half in itertools.combinations(range(num_groups), num_groups // 2):
        other = [group for group in range(num_groups) if group not in half]
        chosen = best_setting(panoptic_quality(counts[list(half)].sum(0)), candidates)
        tested = panoptic_quality(counts[other][:, [0, chosen]].sum(0))
        qualities.append(tested[1])
        gains.append(tested[1] - tested[0])
    return Validation(float(np.mean(qualities)), np.array(gains))


def results_table(
    counts: np.ndarray, settings: Sequence[Setting], is_thing: np.ndarray, chosen: int
) -> str:
    """Return the table of the config's setting, the best one of each rule and the chosen one."""
    total = counts.sum(0)
    pq = panoptic_quality(total)
    rows = []

    def add_row(title: str, index: int, candidates: Sequence[int]) -> None:
        groups = [panoptic_quality(total[index][mask]) for mask in (is_thing, ~is_thing)]
        held_out = cross_validate(counts, candidates).pq if len(counts) > 1 else float("nan")
        rows.append([title, *settings[index], pq[index], *groups, held_out])

    add_row("config", 0, [0])
    rules = np.array([setting.PANOPTIC_INFERENCE for setting in settings])
    for rule in dict.fromkeys(rules.tolist()):
        candidates = np.flatnonzero(rules == rule).tolist()
        add_row("best of the rule", best_setting(pq, candidates), candidates)
    add_row("chosen", chosen, range(len(settings)))
    headers = ["", "rule", "score", "overlap", "area", "PQ", "PQ_th", "PQ_st", "held-out PQ"]
    formats = ("", "", "g", "g", "g", ".3f", ".3f", ".3f", ".2f")
    return tabulate(rows, headers, floatfmt=formats)


def write_picture(
    path: Path, pq: np.ndarray, settings: Sequence[Setting], chosen: int, title: str
) -> None:
    """Draw PQ over the score threshold, one curve per rule.

    Every point of a curve has the best overlap threshold and minimum area for its score threshold.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(
        title=title, xlabel="MODEL.DETR.TEST.SCORE_THRESH", ylabel="PQ, best of the other values"
    )
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

    Args:
        path: of the new file. Its ``_BASE_`` is relative to it.
        config_file: path, or name of a config of the package.
        cfg: the config that was made of file and options.
        opts: KEY VALUE pairs.
        setting: overrides the options.
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
