"""Label map -> ids of a panoptic PNG and ``segments_info``."""

import numpy as np

from ...data.panoptic_json import complete_segments
from ...data.panoptic_png import MAX_SEGMENT_ID
from .source import Labels

# Between the ids of objects of one class, in each channel; odd, so that every id is reached.
_STEP = 37 * 0x010101


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
    # What becomes one segment has one key: (class, crowd), and its number if it is an object.
    merged: dict[tuple, int] = {}
    table = [0]
    for index, (name, crowd) in enumerate(labels.segments):
        if name not in by_name:
            key: tuple = (None, 0)
        elif not by_name[name]["isthing"]:
            key = (name, 0)
        else:
            key = (name, 1) if crowd else (name, 0, index)
        table.append(merged.setdefault(key, len(merged) + 1))
    if background is not None:
        merged.setdefault((background, 0), len(merged) + 1)
    joined = np.array(table, np.int32)[labels.map]
    areas = np.bincount(joined.ravel(), minlength=len(merged) + 1)
    ids = np.zeros(len(merged) + 1, np.uint32)
    unlabelled, infos, used = [0], [], {0}
    for label, (name, crowd, *_) in enumerate(merged, 1):
        if name is None:
            continue
        if areas[label] < max(min_area, 1) and name != background:
            unlabelled.append(label)
            continue
        # The colour of the class, or the next one that is free.
        red, green, blue = by_name[name]["color"]
        number = red + 256 * green + 65536 * blue
        while number in used:
            number = (number + _STEP) & MAX_SEGMENT_ID
        used.add(number)
        ids[label] = number
        infos.append({"id": number, "category_id": by_name[name]["id"], "iscrowd": crowd})
    if background is not None:
        ids[unlabelled] = ids[merged[background, 0]]
    ids = ids[joined]
    return ids, complete_segments(ids, infos), len(unlabelled) - 1
