"""Panoptic id maps to masks, boxes and areas, all segments in one pass.

Shapes: S segments, image of H x W pixels. An *id map* holds the ids of a panoptic PNG, 0 to
2^24 - 1; a *label map* holds, in the smallest integer type that fits, 0 for void and s + 1 for
segment s. Work is done on the horizontal runs of equal values, of which a map has some
thousands, and not on pixels times segments.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import UserError


def ids_to_labels(
    ids: np.ndarray, segment_ids: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compact an id map to labels.

    Args:
        ids: integer ids (H, W).
        segment_ids: (S,) different ids; segment s gets label s + 1.

    Returns:
        (ndarray, ndarray): the label map (H, W), uint8 for up to 255 segments and uint16 above,
        0 where no segment is; and the ids of the map, 0 left out, that are in no entry.

    Raises:
        UserError: ``segment_ids`` has an id twice, or more than 65535 entries.
    """
    segment_ids = np.asarray(segment_ids, dtype=np.int64)
    order = np.argsort(segment_ids, kind="stable")
    known = segment_ids[order]
    if (twice := known[1:][known[1:] == known[:-1]]).size:
        raise UserError(f"Segment id {twice[0]} is listed twice.")
    if len(known) > np.iinfo(np.uint16).max:
        raise UserError(f"{len(known)} segments in one image; at most 65535 are supported.")
    dtype = np.uint8 if len(known) <= np.iinfo(np.uint8).max else np.uint16
    flat = ids.reshape(-1)
    if flat.size == 0 or len(known) == 0:
        unnamed = np.unique(flat)
        return np.zeros(ids.shape, dtype), unnamed[unnamed != 0].astype(np.int64)

    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    values = flat[starts].astype(np.int64)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    found = known[place] == values
    run_labels = np.where(found, order[place] + 1, 0).astype(dtype)
    labels = np.repeat(run_labels, np.diff(starts, append=flat.size)).reshape(ids.shape)
    return labels, np.unique(values[~found & (values != 0)])


def label_boxes_and_areas(labels: np.ndarray, num_segments: int) -> tuple[np.ndarray, np.ndarray]:
    """Tight boxes and areas of all segments of a label map.

    Args:
        labels: label map (H, W), values 0 (void) to ``num_segments``.
        num_segments: S.

    Returns:
        (ndarray, ndarray): float32 boxes (S, 4), ``x_min, y_min, x_max, y_max`` as the smallest
        and largest pixel indices of the segment, both inclusive, as official DETR's
        ``util/box_ops.masks_to_boxes`` has them; and int64 areas (S,) in pixels. A segment
        without pixels has box and area 0.
    """
    width = labels.shape[1]
    corners = np.zeros((num_segments + 1, 4), dtype=np.int64)
    if labels.size == 0:
        return corners[1:].astype(np.float32), corners[1:, 0]
    begins = np.ones(labels.shape, dtype=bool)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    run_labels = labels.reshape(-1)[starts].astype(np.int64)
    lengths = np.diff(starts, append=labels.size)
    y, x = np.divmod(starts, width)

    areas = np.bincount(run_labels, weights=lengths, minlength=num_segments + 1).astype(np.int64)
    corners[:, :2] = np.iinfo(np.int64).max
    np.minimum.at(corners[:, 0], run_labels, x)
    np.minimum.at(corners[:, 1], run_labels, y)
    np.maximum.at(corners[:, 2], run_labels, x + lengths - 1)
    np.maximum.at(corners[:, 3], run_labels, y)
    corners[areas == 0] = 0
    return corners[1:].astype(np.float32), areas[1:]
