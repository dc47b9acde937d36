"""The panoptic rules of an exported model in NumPy.

Shapes: Q kept queries, K classes, h x w the mask grid, H x W the image.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

# Values of upsampled mask logits held at one time.
_VALUES_PER_STRIP = 2**22
_MASK_NMS = "MaskNMSPanopticInference"

Segments = list[dict[str, Any]]


def select_queries(
    logits: np.ndarray, description: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return indices, probabilities and classes of the kept queries of N x (K + 1) logits."""
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    objects, no_object = probabilities[:, :-1], probabilities[:, -1]
    scores, labels = objects.max(-1), objects.argmax(-1)
    keep = scores > description["score_thresh"]
    if description["rule"] != _MASK_NMS:
        keep &= scores > no_object
    kept = keep.nonzero()[0]
    return kept, scores[kept], labels[kept]


def assemble(
    masks: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    description: dict[str, Any],
    size: tuple[int, int],
    output: tuple[int, int],
) -> tuple[np.ndarray, Segments]:
    """Make segments of Q x h x w mask logits by the panoptic rule of the exported model.

    Args:
        masks, scores, labels: of Q queries.
        description: of the exported model.
        size, output: (H, W) of the network's input and of the result.

    Returns:
        H x W int32 ids (0 is void) and the segments, see :class:`.model.PanopticModel`.
    """
    rule, min_area = description["rule"], description["min_segment_area"]
    min_part = 0.0 if rule == _MASK_NMS else description["overlap_thresh"]
    queries = range(len(masks))
    if rule == _MASK_NMS and len(masks):
        queries = _remove_duplicates(masks, scores, description["overlap_thresh"])
        masks = np.log(scores)[:, None, None] - np.logaddexp(0, -masks)
    groups: dict[tuple, dict] = {}
    for query in queries:
        category = description["classes"][labels[query]]
        key = category["id"], query if category["isthing"] else None
        segment = groups.setdefault(key, {"class": category, "score": 0.0, "queries": []})
        segment["queries"].append(query)
        segment["score"] = max(segment["score"], float(scores[query]))
    segments = list(groups.values())
    for segment in segments if min_part else ():
        # The pixels where one of its queries has a logit above 0.
        strips = _resized_strips(masks[segment["queries"]], size, output)
        segment["own_area"] = sum(int((strip > 0).any(0).sum()) for _, strip in strips)
    owner = _assign_pixels(masks, segments, size, output)
    if rule == "OfficialPanopticInference":
        # Merged stuff counts for the first of its queries; the others are dropped as small.
        segments = [s for s in segments if s["area"] > min_area]
        segments = [{**s, "queries": s["queries"][:1]} for s in segments]
        owner = _assign_pixels(masks, segments, size, output)
    while dropped := _segments_to_drop(segments, min_area, min_part):
        segments = [segment for segment in segments if segment not in dropped]
        owner = _assign_pixels(masks, segments, size, output)
    table = np.zeros(len(masks) + 1, np.int32)  # the last one is void's
    infos = []
    for number, segment in enumerate(segments, start=1):
        table[segment["queries"]] = number
        info = {"id": number, "category_id": segment["class"]["id"]}
        info |= {key: segment["class"][key] for key in ("name", "isthing")}
        infos.append(info | {key: segment[key] for key in ("area", "score")})
    return table[owner], infos


def _segments_to_drop(segments: Segments, min_area: int, min_part: float) -> Segments:
    """Return all small segments or, without any, the covered segment of the lowest score."""
    small = [s for s in segments if s["area"] <= min_area]
    if small or not min_part:
        return small
    covered = [s for s in segments if s["area"] < min_part * s["own_area"]]
    return sorted(covered, key=lambda s: s["score"])[:1]


def _taps(output: int, size: int, grid: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lower cell, upper cell and weight of the upper cell for each output pixel.

    The mask grid is upsampled bilinearly to the network's input. An output pixel takes the nearest
    pixel of that.
    """
    pixel = np.floor((np.arange(output) + 0.5) * (size / output)).clip(max=size - 1)
    position = ((pixel + 0.5) * (grid / size) - 0.5).clip(min=0)
    lower = np.floor(position).clip(max=grid - 1).astype(np.int64)
    return lower, (lower + 1).clip(max=grid - 1), (position - lower).astype(np.float32)


def _resized_strips(
    masks: np.ndarray, size: tuple[int, int], output: tuple[int, int]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield mask logits at the output size, some rows at a time: (rows, Q x rows x W)."""
    top, bottom, weight_y = _taps(output[0], size[0], masks.shape[1])
    left, right, weight_x = _taps(output[1], size[1], masks.shape[2])
    step = max(1, _VALUES_PER_STRIP // max(1, len(masks) * output[1]))
    for start in range(0, output[0], step):
        rows = slice(start, min(output[0], start + step))
        low = top[start]
        cells = masks[:, low : bottom[rows.stop - 1] + 1]
        wide = cells[:, :, left]
        wide += (cells[:, :, right] - wide) * weight_x
        strip = wide[:, top[rows] - low]
        strip += (wide[:, bottom[rows] - low] - strip) * weight_y[rows, None]
        yield rows, strip


def _assign_pixels(
    masks: np.ndarray, segments: Segments, size: tuple[int, int], output: tuple[int, int]
) -> np.ndarray:
    """Return the query of greatest logit at each pixel, or -1; set the ``area`` of each segment."""
    owner = np.full(output, -1)
    if segments:
        queries = np.array(sorted(q for segment in segments for q in segment["queries"]))
        for rows, strip in _resized_strips(masks[queries], size, output):
            owner[rows] = queries[strip.argmax(0)]
    areas = np.bincount(owner.ravel() + 1, minlength=len(masks) + 1)[1:]
    for segment in segments:
        segment["area"] = int(areas[segment["queries"]].sum())
    return owner


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))


def _remove_duplicates(masks: np.ndarray, scores: np.ndarray, overlap_thresh: float) -> list[int]:
    """Return the queries, ascending, that mask NMS leaves; see ``MaskNMSPanopticInference``."""
    binary = masks > 0
    areas = binary.sum((1, 2))
    mean_probability = (_sigmoid(masks) * binary).sum((1, 2)) / areas.clip(min=1)
    min_free = np.float32(overlap_thresh) * areas.astype(np.float32)
    covered, remaining = np.zeros_like(binary[0]), []
    for query in np.argsort(-scores * mean_probability**2, kind="stable").tolist():
        free = binary[query] & ~covered
        if areas[query] and free.sum() >= min_free[query]:
            covered |= free
            remaining.append(query)
    return sorted(remaining)


def confidence_map(
    ids: np.ndarray,
    segments: Segments,
    masks: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    description: dict[str, Any],
    size: tuple[int, int],
) -> np.ndarray:
    """Return class probability times mask probability of each pixel's class, as H x W uint8.

    The arguments are those of :func:`assemble` and its results.
    """
    label_of = {c["id"]: label for label, c in enumerate(description["classes"])}
    table = np.array([-1, *(label_of[s["category_id"]] for s in segments)])
    confidence = np.zeros(ids.shape, np.uint8)
    for rows, strip in _resized_strips(masks, size, ids.shape) if len(masks) else ():
        probabilities = _sigmoid(strip) * scores[:, None, None]
        probabilities[labels[:, None, None] != table[ids[rows]]] = 0
        confidence[rows] = (255 * probabilities.max(0)).round()
    return confidence
