"""Convert panoptic id maps to masks, boxes and areas of all segments in one pass.

Shapes: S segments, image of H x W pixels. An *id map* holds the ids of a panoptic PNG, 0 to
2^24 - 1. A *label map* holds 0 for void and s + 1 for segment s, in the smallest integer type that
fits. All functions work on the horizontal runs of equal values. A map has some thousands of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks

from ..errors import UserError


class LabelMasks(BitMasks):
    """``BitMasks`` of segments that do not overlap, stored as one label map.

    ``tensor`` (T x H x W, bool) is computed on the device of the label map at each access. The
    loader's workers and the copy to the GPU handle one byte per pixel for all segments together.
    """

    def __init__(self, labels: torch.Tensor, values: torch.Tensor):
        """
        Args:
            labels: H x W integers.
            values: T, the label of each mask.
        """
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

    def __getitem__(self, item: int | slice | torch.Tensor) -> "LabelMasks":
        return LabelMasks(self.labels, self.values[item].reshape(-1))

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
        ids: integer ids (H, W).
        segment_ids: (S,) different ids; segment s gets label s + 1.

    Returns:
        (ndarray, ndarray): the label map (H, W), uint8 for up to 255 segments and uint16 above,
        with 0 for pixels of no segment; and the ids of the map that are not in ``segment_ids``,
        without 0.

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
    dtype = np.uint8 if len(known) <= np.iinfo(np.uint8).max else np.uint16
    flat = ids.reshape(-1)
    if flat.size == 0 or len(known) == 0:
        unknown_ids = np.unique(flat)
        return np.zeros(ids.shape, dtype), unknown_ids[unknown_ids != 0].astype(np.int64)

    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    values = flat[starts].astype(np.int64)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    is_known = known[place] == values
    run_labels = np.where(is_known, order[place] + 1, 0).astype(dtype)
    labels = np.repeat(run_labels, np.diff(starts, append=flat.size)).reshape(ids.shape)
    return labels, np.unique(values[~is_known & (values != 0)])


def label_boxes_and_areas(labels: np.ndarray, num_segments: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute tight boxes and areas of all segments of a label map.

    Args:
        labels: label map (H, W), values 0 (void) to ``num_segments``.
        num_segments: S.

    Returns:
        (ndarray, ndarray): float32 boxes (S, 4), ``x_min, y_min, x_max, y_max`` as the smallest
        and largest pixel indices of the segment, both inclusive, as in official DETR's
        ``util/box_ops.masks_to_boxes``; and int64 areas (S,) in pixels. A segment without pixels
        has box and area 0.
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
