"""Convert panoptic id maps to masks, boxes and areas of all segments in one pass.

Shapes: S segments, image of H x W pixels. An *id map* holds the ids of a panoptic PNG, 0 to
2^24 - 1. A *label map* holds 0 for void and s + 1 for segment s.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks
from scipy.ndimage import find_objects

from ..errors import UserError


class LabelMasks(BitMasks):
    """``BitMasks`` of segments that do not overlap, stored as one label map.

    ``tensor`` (T x H x W, bool) is computed at each access. The loader's workers and the copy to
    the GPU handle one byte per pixel for all segments together.
    """

    def __init__(self, labels: torch.Tensor, values: torch.Tensor):
        """Take the label map, H x W integers, and the label of each of the T masks."""
        self.labels = labels
        self.values = values
        self.image_size = labels.shape

    @property
    def tensor(self) -> torch.Tensor:
        return self.labels == self.values.to(self.labels.dtype)[:, None, None]

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def to(self, *args: Any, **kwargs: Any) -> "LabelMasks":
        return LabelMasks(self.labels.to(*args, **kwargs), self.values.to(*args, **kwargs))

    def __len__(self) -> int:
        return len(self.values)

    @staticmethod
    def cat(bitmasks_list: Sequence[BitMasks]) -> BitMasks:
        """Concatenate masks of several images of one size to plain ``BitMasks``."""
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list]))


def ids_to_labels(
    ids: np.ndarray, segment_ids: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Convert an id map to a label map.

    Args:
        ids: H x W integers.
        segment_ids: S different ids; segment s gets label s + 1.

    Returns:
        (ndarray, ndarray): the label map H x W, uint8 for up to 255 segments and uint16 above; and
        the ids of the map that are not in ``segment_ids``, without 0. Their pixels have label 0.

    Raises:
        UserError: ``segment_ids`` has an id twice, or more than 65535 entries.
    """
    segment_ids = np.asarray(segment_ids, dtype=np.int64)
    order = np.argsort(segment_ids, kind="stable")
    known = segment_ids[order]
    if (repeated := known[1:][known[1:] == known[:-1]]).size:
        raise UserError(f"Segment id {repeated[0]} is listed twice.")
    if len(known) > np.iinfo(np.uint16).max:
        raise UserError(f"{len(known)} segments in one image; at most 65535 are supported.")
    # Runs of equal values: a map has some thousands of them.
    flat = ids.reshape(-1)
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    values = flat[starts].astype(np.int64)
    place = np.searchsorted(known, values)
    # A last entry that no id equals.
    is_known = np.append(known, -1)[place] == values
    run_labels = np.where(is_known, np.append(order, 0)[place] + 1, 0)
    dtype = np.uint8 if len(known) <= np.iinfo(np.uint8).max else np.uint16
    labels = np.repeat(run_labels.astype(dtype), np.diff(starts, append=flat.size))
    return labels.reshape(ids.shape), np.unique(values[~is_known & (values != 0)])


def label_boxes_and_areas(labels: np.ndarray, num_segments: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute tight boxes and areas of all segments of a label map.

    Args:
        labels: label map H x W, values 0 (void) to ``num_segments``.
        num_segments: S.

    Returns:
        (ndarray, ndarray): float32 boxes S x 4, ``x_min, y_min, x_max, y_max`` as the smallest and
        largest pixel indices of the segment, both inclusive, as in official DETR's
        ``util/box_ops.masks_to_boxes``; and S areas in pixels. A segment without pixels has box and
        area 0.
    """
    boxes = np.zeros((num_segments, 4), dtype=np.float32)
    # With a maximum of 0, SciPy would look for all labels.
    slices = find_objects(labels, num_segments) if num_segments else []
    for box, rows_and_columns in zip(boxes, slices, strict=True):
        if rows_and_columns is not None:
            y, x = rows_and_columns
            box[:] = x.start, y.start, x.stop - 1, y.stop - 1
    return boxes, np.bincount(labels.reshape(-1), minlength=num_segments + 1)[1:]
