"""Label map -> ids of a panoptic PNG and ``segments_info``."""

from dataclasses import dataclass

import numpy as np

from ...data.masks import label_boxes_and_areas
from .source import VOID, Labels, Segment

# How far the colour of a thing may be from that of its class, at first.
_SPREAD = 30


@dataclass(frozen=True)
class FinishOptions:
    """How a label map is finished.

    Attributes:
        background: category id of the stuff class that gets the pixels without label, but not those
            of a void segment; None leaves all of them void.
        min_area: segments of fewer pixels become unlabelled, before the background is filled in.
    """

    background: int | None = None
    min_area: int = 1


def to_panoptic(
    labels: Labels, categories: list[dict], options: FinishOptions
) -> tuple[np.ndarray, list[dict], int]:
    """Make what COCO panoptic stores about an image.

    Parts of one stuff class, and the crowds of one thing class, become one segment each: the
    format and its evaluation know only one.

    Args:
        labels: of H x W pixels.
        categories: of the json.
        options: of the user.

    Returns:
        (ndarray, list[dict], int): uint32 ids (H, W), 0 is void; ``segments_info`` with ``id,
        category_id, iscrowd, area, bbox`` (tight ``x, y, width, height``); and the number of
        labelled objects that have no (or not enough) pixels left under the others.
    """
    labels = _merged(labels, {c["id"] for c in categories if c["isthing"]})
    boxes, areas = label_boxes_and_areas(labels.map, len(labels.segments))
    enough = areas >= max(options.min_area, 1)
    void = np.array([s.category_id == VOID for s in labels.segments], bool)
    hidden = int((~enough & ~void).sum())
    labels = _without(labels, ~enough & ~void)
    if options.background is not None and not labels.map.all():
        labels = _filled(labels, options.background)
        void = np.append(void, np.zeros(len(labels.segments) - len(void), bool))
    labels = _without(labels, void)
    boxes, areas = label_boxes_and_areas(labels.map, len(labels.segments))
    present = np.flatnonzero(areas)

    ids = np.zeros(len(labels.segments) + 1, np.uint32)
    ids[present + 1] = segment_ids([labels.segments[i] for i in present], categories)
    infos = []
    for i in present.tolist():
        x, y, right, bottom = boxes[i].astype(int).tolist()
        segment = labels.segments[i]
        infos.append(
            {
                "id": int(ids[i + 1]),
                "category_id": segment.category_id,
                "iscrowd": segment.iscrowd,
                "area": int(areas[i]),
                "bbox": [x, y, right - x + 1, bottom - y + 1],
            }
        )
    return ids[labels.map], infos, hidden


def segment_ids(segments: list[Segment], categories: list[dict]) -> list[int]:
    """Ids whose PNG colours are those of the class for stuff, and near it for things.

    As ``panopticapi.utils.IdGenerator`` chooses them, but always the same ones.

    Args:
        segments: S segments of one image.
        categories: of the json, with ``color``.

    Returns:
        list[int]: S different ids from 1 to 2^24 - 1.
    """
    colors = {c["id"]: tuple(c["color"]) for c in categories}
    stuff = {c["id"] for c in categories if not c["isthing"]}
    rng = np.random.default_rng(0)
    taken = {(0, 0, 0)} | {colors[s.category_id] for s in segments if s.category_id in stuff}
    used: set[tuple[int, ...]] = {(0, 0, 0)}
    result = []
    for segment in segments:
        base = color = colors[segment.category_id]
        tries = 0
        while color in (used if segment.category_id in stuff and not tries else taken):
            spread = _SPREAD + tries // 20
            offset = rng.integers(-spread, spread + 1, 3)
            color = tuple(np.clip(np.add(base, offset), 0, 255).tolist())
            tries += 1
        used.add(color)
        taken.add(color)
        red, green, blue = color
        result.append(red + 256 * green + 65536 * blue)
    return result


def _merged(labels: Labels, things: set[int]) -> Labels:
    """Give the parts of a stuff class one label, and the crowds of a thing class as well."""
    groups: dict[Segment, int] = {}
    segments: list[Segment] = []
    table = np.zeros(len(labels.segments) + 1, np.int32)
    for index, segment in enumerate(labels.segments):
        if segment.category_id not in things:
            segment = Segment(segment.category_id)
        elif not segment.iscrowd:
            segments.append(segment)
            table[index + 1] = len(segments)
            continue
        if segment not in groups:
            segments.append(segment)
            groups[segment] = len(segments)
        table[index + 1] = groups[segment]
    return Labels(table[labels.map], segments)


def _without(labels: Labels, dropped: np.ndarray) -> Labels:
    if not dropped.any():
        return labels
    table = np.arange(len(labels.segments) + 1, dtype=np.int32)
    table[1:][dropped] = 0
    return Labels(table[labels.map], labels.segments)


def _filled(labels: Labels, category_id: int) -> Labels:
    """Give unlabelled pixels to a stuff class, which may be there already."""
    segments = list(labels.segments)
    background = Segment(category_id)
    if background not in segments:
        segments.append(background)
    label = segments.index(background) + 1
    return Labels(np.where(labels.map == 0, label, labels.map).astype(np.int32), segments)
