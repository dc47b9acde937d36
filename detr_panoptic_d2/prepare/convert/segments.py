"""Label map -> ids of a panoptic PNG and ``segments_info``."""

import numpy as np

from ...data.masks import label_boxes_and_areas
from ...data.panoptic_json import complete_segments
from .source import Labels, Segment

# How far the colour of a thing may be from that of its class, at first.
_SPREAD = 30


def to_panoptic(
    labels: Labels, categories: list[dict], *, background: str | None = None, min_area: int = 1
) -> tuple[np.ndarray, list[dict], int]:
    """Make what COCO panoptic stores about an image.

    Parts of one stuff class, and the crowds of one thing class, become one segment each: the
    format and its evaluation know only one.

    Args:
        labels: of H x W pixels.
        categories: of the json; segments of other classes are void.
        background: the stuff class that gets the pixels without label, but not those of a void
            segment; None leaves all of them void.
        min_area: segments of fewer pixels become unlabelled, before the background is filled in.

    Returns:
        (ndarray, list[dict], int): uint32 ids (H, W), 0 is void; ``segments_info`` with ``id,
        category_id, iscrowd, area, bbox`` (tight ``x, y, width, height``); and the number of
        labelled objects that have no (or not enough) pixels left under the others.
    """
    by_name = {c["name"]: c for c in categories}
    labels = _merged(labels, by_name)
    _, areas = label_boxes_and_areas(labels.map, len(labels.segments))
    void = np.array([s.name is None for s in labels.segments], bool)
    small = (areas < max(min_area, 1)) & ~void
    hidden = int(small.sum())
    labels = _without(labels, small)
    if background is not None and not labels.map.all():
        labels = _filled(labels, background)
        void = np.append(void, np.zeros(len(labels.segments) - len(void), bool))
    labels = _without(labels, void)
    _, areas = label_boxes_and_areas(labels.map, len(labels.segments))
    present = np.flatnonzero(areas)
    segments = [labels.segments[i] for i in present]
    chosen = [by_name[segment.name] for segment in segments]
    table = np.zeros(len(labels.segments) + 1, np.uint32)
    table[present + 1] = numbers = segment_ids(chosen)
    ids = table[labels.map]
    infos = [
        {"id": number, "category_id": category["id"], "iscrowd": segment.iscrowd}
        for number, category, segment in zip(numbers, chosen, segments, strict=True)
    ]
    return ids, complete_segments(ids, infos), hidden


def segment_ids(categories: list[dict]) -> list[int]:
    """Ids whose PNG colours are those of the class for stuff, and near it for things.

    As ``panopticapi.utils.IdGenerator`` chooses them, but always the same ones.

    Args:
        categories: that of each of the S segments of an image.

    Returns:
        list[int]: S different ids from 1 to 2^24 - 1.
    """
    rng = np.random.default_rng(0)
    taken = {(0, 0, 0)} | {tuple(c["color"]) for c in categories if not c["isthing"]}
    used: set[tuple[int, ...]] = {(0, 0, 0)}
    result = []
    for category in categories:
        base = color = tuple(category["color"])
        tries = 0
        while color in (taken if category["isthing"] or tries else used):
            spread = _SPREAD + tries // 20
            offset = rng.integers(-spread, spread + 1, 3)
            color = tuple(np.clip(np.add(base, offset), 0, 255).tolist())
            tries += 1
        used.add(color)
        taken.add(color)
        red, green, blue = color
        result.append(red + 256 * green + 65536 * blue)
    return result


def _merged(labels: Labels, categories: dict[str, dict]) -> Labels:
    """Give one label to the parts of a stuff class, the crowds of a thing class, and all void."""
    groups: dict[Segment, int] = {}
    segments: list[Segment] = []
    table = np.zeros(len(labels.segments) + 1, np.int32)
    for index, segment in enumerate(labels.segments):
        category = categories.get(segment.name)
        if category is None:
            segment = Segment(None)
        elif not category["isthing"]:
            segment = Segment(segment.name)
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


def _filled(labels: Labels, name: str) -> Labels:
    """Give unlabelled pixels to a stuff class, which may be there already."""
    segments = list(labels.segments)
    background = Segment(name)
    if background not in segments:
        segments.append(background)
    label = segments.index(background) + 1
    return Labels(np.where(labels.map == 0, label, labels.map).astype(np.int32), segments)
