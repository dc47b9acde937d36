"""Panoptic quality from segment id maps (Kirillov et al. 2019, "Panoptic Segmentation", section 4).

The results equal those of panopticapi's ``pq_compute``, which reads PNGs and sorts all pixels.
The maps are counted on the host: moving one of them from a GPU costs less than moving the
annotation there.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from panopticapi.evaluation import PQStat, PQStatCat

Segments = Sequence[dict[str, Any]]

QUALITIES = ("pq", "sq", "rq")

VOID = 0
# Stands for ids without an entry; no class has this id.
_NO_SEGMENT = {"category_id": -1}
# Two segments match above this IoU.
MATCH_IOU = 0.5


def intersections(
    annotated_ids: np.ndarray, predicted_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the pixels of each pair of ids in two H x W maps of ids from 0 to 2^31 - 1.

    Returns:
        the A ids that occur in the annotation and the P ids that occur in the prediction, both
        ascending, and the int64 histogram A x P of their pixels.
    """
    annotated, predicted = annotated_ids.reshape(-1), predicted_ids.reshape(-1)
    # A map has some thousand runs of equal pairs: sorting these is much faster than sorting pixels.
    is_end = (annotated[1:] != annotated[:-1]) | (predicted[1:] != predicted[:-1])
    ends = np.append(np.flatnonzero(is_end), annotated.size - 1)
    runs = (annotated[ends].astype(np.int64) << 32) + predicted[ends]
    pairs, inverse = np.unique(runs, return_inverse=True)
    rows, row = np.unique(pairs >> 32, return_inverse=True)
    columns, column = np.unique(pairs & (2**32 - 1), return_inverse=True)
    pixels = np.zeros((len(rows), len(columns)), dtype=np.int64)
    pixels[row, column] = np.bincount(inverse, weights=np.diff(ends, prepend=-1))
    return rows, columns, pixels


def count_matches(
    annotated_ids: np.ndarray, annotated: Segments, predicted_ids: np.ndarray, predicted: Segments
) -> PQStat:
    """Match the segments of two H x W maps of ids; see :func:`count_pairs`."""
    return count_pairs(*intersections(annotated_ids, predicted_ids), annotated, predicted)


def count_pairs(
    rows: np.ndarray,
    columns: np.ndarray,
    pixels: np.ndarray,
    annotated: Segments,
    predicted: Segments,
) -> PQStat:
    """Match the segments of an image and count them per class.

    Void pixels (id 0) and crowd segments of the annotation are treated as in panopticapi. Among
    segments with the same id, the last one counts.

    Args:
        rows, columns, pixels: the results of :func:`intersections`.
        annotated: with ``id`` and ``category_id``; ``iscrowd`` defaults to 0, and ``area``, from
            which the IoU is computed, to the area in the map.
        predicted: with ``id`` and ``category_id`` of the same kind as in ``annotated``.

    Returns:
        PQStat: ``stat[category_id]`` has ``iou`` (sum over matched pairs), ``tp``, ``fp``, ``fn``.

    Raises:
        ValueError: a predicted id has pixels and no entry, or an entry and no pixels.
    """
    annotated_by_id = {s["id"]: s for s in annotated}
    predicted_by_id = {s["id"]: s for s in predicted}
    if ids := (predicted_by_id.keys() ^ set(columns.tolist())) - {VOID}:
        raise ValueError(f"Predicted ids {sorted(ids)} have no pixels, or no entry.")

    expected = [annotated_by_id.get(i, _NO_SEGMENT) for i in rows.tolist()]
    segments = [predicted_by_id.get(j, _NO_SEGMENT) for j in columns.tolist()]
    areas = [s.get("area", area) for s, area in zip(expected, pixels.sum(axis=1), strict=True)]
    classes = np.array([-1 if is_crowd(s) else s["category_id"] for s in expected])
    predicted_classes = np.array([s["category_id"] for s in segments])
    void, predicted_areas = pixels[rows == VOID].sum(axis=0), pixels.sum(axis=0)
    # A wrong area in the json can make a union 0: an infinite IoU, as in panopticapi.
    with np.errstate(divide="ignore", invalid="ignore"):
        ious = pixels / (np.array(areas)[:, None] + predicted_areas - pixels - void)
    matches = (classes[:, None] == predicted_classes) & (classes >= 0)[:, None] & (ious > MATCH_IOU)

    stat = PQStat()
    for category_id, iou in zip(classes[matches.nonzero()[0]].tolist(), ious[matches], strict=True):
        stat[category_id].tp += 1
        stat[category_id].iou += float(iou)
    matched = set(rows[matches.any(axis=1)].tolist())
    crowds = {s["category_id"]: i for i, s in annotated_by_id.items() if is_crowd(s)}
    for i, segment in annotated_by_id.items():
        if i not in matched and not is_crowd(segment):
            stat[segment["category_id"]].fn += 1
    for column in np.flatnonzero(~matches.any(axis=0) & (predicted_classes >= 0)):
        # A segment mostly on void or on the crowd of its class is ignored.
        category_id = segments[column]["category_id"]
        crowd = pixels[rows == crowds.get(category_id, -1), column].sum()
        if not (void[column] + crowd) / predicted_areas[column] > MATCH_IOU:
            stat[category_id].fp += 1
    return stat


def is_crowd(segment: dict[str, Any]) -> bool:
    return segment.get("iscrowd", 0) == 1


def to_rows(stat: PQStat) -> list[list[float]]:
    """Return rows of category id, sum of IoU, TP, FP, FN, as json takes them."""
    return [[c, float(s.iou), s.tp, s.fp, s.fn] for c, s in stat.pq_per_cat.items()]


def add_rows(stat: PQStat, rows: Iterable[Sequence[float]]) -> None:
    """Add the rows of :func:`to_rows`."""
    for category_id, iou, tp, fp, fn in rows:
        sums = PQStatCat()
        sums.iou, sums.tp, sums.fp, sums.fn = iou, tp, fp, fn
        stat.pq_per_cat[category_id] += sums


def average(
    stat: PQStat, categories: dict[int, dict], isthing: bool | None = None
) -> dict[str, float]:
    """Return ``pq``, ``sq`` and ``rq`` from 0 to 1: the means over the ``n`` classes that occur
    (Kirillov et al. 2019, section 4.2), or NaN without any, where panopticapi divides by zero.

    ``isthing`` chooses only things or only stuff; None: all.
    """
    try:
        return stat.pq_average(categories, isthing)[0]
    except ZeroDivisionError:
        return {**dict.fromkeys(QUALITIES, math.nan), "n": 0}
