"""Panoptic quality from segment id maps (Kirillov et al. 2019, "Panoptic Segmentation", section 4).

The results equal panopticapi's ``pq_compute``, which reads PNGs and sorts all pixels. Here the maps
stay on their device, and only runs of equal pixels are sorted.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from panopticapi.evaluation import PQStat
from torch.nn import functional as F

Segments = Sequence[dict[str, Any]]

VOID = 0
# Two segments match above this IoU.
MATCH_IOU = 0.5


def intersections(annotated_ids: torch.Tensor, predicted_ids: torch.Tensor) -> dict:
    """Count the pixels of each pair of ids.

    Args:
        annotated_ids: integer ids H x W from 0 to 2^31 - 1, on any device.
        predicted_ids: integer ids H x W from 0 to 2^31 - 1.

    Returns:
        dict[tuple[int, int], int]: pixels by (annotated id, predicted id), in ascending order;
        only pairs that occur.
    """
    annotated, predicted = annotated_ids.to(predicted_ids.device).flatten(), predicted_ids.flatten()
    # A map has some thousand runs of equal pairs: sorting these is much faster than sorting pixels.
    is_start = (annotated[1:] != annotated[:-1]) | (predicted[1:] != predicted[:-1])
    starts = F.pad(is_start, (1, 0), value=True).nonzero().squeeze(1)
    runs = (annotated[starts].long() << 32) + predicted[starts]
    pairs, inverse = np.unique(runs.cpu().numpy(), return_inverse=True)
    lengths = np.diff(starts.cpu().numpy(), append=annotated.numel())
    areas = np.bincount(inverse, weights=lengths).astype(np.int64).tolist()
    ids = zip((pairs >> 32).tolist(), (pairs & (2**32 - 1)).tolist(), strict=True)
    return dict(zip(ids, areas, strict=True))


def count_matches(
    annotated_ids: torch.Tensor,
    annotated: Segments,
    predicted_ids: torch.Tensor,
    predicted: Segments,
) -> PQStat:
    """Match the segments of an image and count them per class.

    Void pixels (id 0) and crowd segments of the annotation are treated as in panopticapi. Among
    segments with the same id, the last one counts.

    Args:
        annotated_ids: integer ids H x W.
        annotated: with ``id`` and ``category_id``; ``iscrowd`` defaults to 0 and ``area``, which is
            part of the IoU, to the area in the map.
        predicted_ids: integer ids H x W, on any device. The counting runs there.
        predicted: with ``id`` and ``category_id`` of the same kind as in ``annotated``.

    Returns:
        PQStat: panopticapi's sums: ``stat[category_id]`` has ``iou`` (sum over the matched pairs),
        ``tp``, ``fp`` and ``fn``. Sums of images are added with ``+=``.

    Raises:
        ValueError: a predicted id has pixels and no entry, or an entry and no pixels.
    """
    pixels = intersections(annotated_ids, predicted_ids)
    annotated_areas, predicted_areas = _sum_areas(pixels, 0), _sum_areas(pixels, 1)
    annotated_by_id = {s["id"]: s for s in annotated}
    predicted_by_id = {s["id"]: s for s in predicted}
    if unlisted := predicted_areas.keys() - predicted_by_id.keys() - {VOID}:
        raise ValueError(f"Predicted ids without an entry in segments_info: {sorted(unlisted)}.")
    if empty := predicted_by_id.keys() - predicted_areas.keys():
        raise ValueError(f"Predicted segments without a pixel: {sorted(empty)}.")

    stat, crowd_of_class = PQStat(), {}
    matched_annotated, matched_predicted = set(), set()
    for (i, j), intersection in pixels.items():
        expected, segment = annotated_by_id.get(i), predicted_by_id.get(j)
        if expected is None or segment is None or expected.get("iscrowd", 0) == 1:
            continue
        if expected["category_id"] != segment["category_id"]:
            continue
        area = expected.get("area", annotated_areas[i])
        union = area + predicted_areas[j] - intersection - pixels.get((VOID, j), 0)
        # A division by 0 is an infinite IoU, as in panopticapi: the area of the json is wrong.
        iou = intersection / union if union else float("inf")
        if iou > MATCH_IOU:
            stat[expected["category_id"]].tp += 1
            stat[expected["category_id"]].iou += iou
            matched_annotated.add(i)
            matched_predicted.add(j)
    for i, expected in annotated_by_id.items():
        if expected.get("iscrowd", 0) == 1:
            crowd_of_class[expected["category_id"]] = i
        elif i not in matched_annotated:
            stat[expected["category_id"]].fn += 1
    for j, segment in predicted_by_id.items():
        # A segment mostly on void or on the crowd of its class is ignored.
        crowd = crowd_of_class.get(segment["category_id"])
        ignored = pixels.get((VOID, j), 0) + pixels.get((crowd, j), 0)
        if j not in matched_predicted and not ignored / predicted_areas[j] > MATCH_IOU:
            stat[segment["category_id"]].fp += 1
    return stat


def _sum_areas(pixels: dict[tuple[int, int], int], side: int) -> dict[int, int]:
    areas: dict[int, int] = {}
    for pair, count in pixels.items():
        areas[pair[side]] = areas.get(pair[side], 0) + count
    return areas
