"""Choosing a setting by cross-validation, and writing it: table, picture, config.

Shapes: G groups of images, S settings, K classes.
"""

import functools
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from matplotlib.figure import Figure
from tabulate import tabulate

from ...files import atomic_file
from .search import Setting


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
    """Choose a setting on half of the groups and test it on the other half, for all halves.

    Args:
        counts: G x S x K x 4. The first of the S settings is that of the config.
        candidates: indices of the settings to choose from.

    Returns:
        mean PQ on the other halves, and for each half the gain over the config.
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
    """Choose the setting with the best PQ.

    Args:
        counts: G x S x K x 4.
        settings: S settings. The first one is that of the config.
        is_thing: K bools.

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
