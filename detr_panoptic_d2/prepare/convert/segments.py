"""Convert a label map to the ids of a panoptic PNG and ``segments_info``."""

from typing import NamedTuple

import numpy as np

from ...data.panoptic_json import complete_segments
from ...data.panoptic_png import MAX_SEGMENT_ID
from .source import Labels

# Step between the ids of objects of one class, in each channel; odd, so that it reaches every id.
_STEP = 37 * 0x010101


class Panoptic(NamedTuple):
    """What COCO panoptic stores about an image, and how much is not in it."""

    ids: np.ndarray  # uint32 (H, W), 0 is void
    segments_info: list[dict]  # id, category_id, iscrowd, area, bbox (tight x, y, width, height)
    num_dropped: int  # segments that lie completely under others, or have too few pixels


def to_panoptic(
    labels: Labels, categories: list[dict], *, background: str | None = None, min_area: int = 1
) -> Panoptic:
    """Convert the labels of an image.

    The segments of one stuff class, and the crowds of one thing class, become one segment each:
    the format and its evaluation know only one. Segments of classes that ``categories`` do not
    list are void. Segments of fewer pixels than ``min_area`` become unlabelled. The stuff class
    ``background`` takes all unlabelled pixels; if it is None, they are void.
    """
    by_name = {c["name"]: c for c in categories}
    # Segments with equal keys are merged: (class, crowd), and a number if it is an object.
    label_of_key: dict[tuple, int] = {}
    table = [0]
    for index, (name, crowd) in enumerate(labels.segments):
        if name not in by_name:
            key: tuple = (None, 0)
        elif not by_name[name]["isthing"]:
            key = (name, 0)
        else:
            key = (name, 1) if crowd else (name, 0, index)
        table.append(label_of_key.setdefault(key, len(label_of_key) + 1))
    if background is not None:
        label_of_key.setdefault((background, 0), len(label_of_key) + 1)
    merged = np.array(table, np.int32)[labels.map]
    areas = np.bincount(merged.ravel(), minlength=len(label_of_key) + 1)
    segment_ids = np.zeros(len(label_of_key) + 1, np.uint32)
    unlabelled, infos, used_ids = [0], [], {0}
    for (name, crowd, *_), label in label_of_key.items():
        if name is None:
            continue
        if areas[label] < max(min_area, 1) and name != background:
            unlabelled.append(label)
            continue
        # The color of the class, or the next free id.
        red, green, blue = by_name[name]["color"]
        segment_id = red + 256 * green + 65536 * blue
        while segment_id in used_ids:
            segment_id = (segment_id + _STEP) & MAX_SEGMENT_ID
        used_ids.add(segment_id)
        segment_ids[label] = segment_id
        infos.append({"id": segment_id, "category_id": by_name[name]["id"], "iscrowd": crowd})
    if background is not None:
        segment_ids[unlabelled] = segment_ids[label_of_key[background, 0]]
    ids = segment_ids[merged]
    return Panoptic(ids, complete_segments(ids, infos), len(unlabelled) - 1)
