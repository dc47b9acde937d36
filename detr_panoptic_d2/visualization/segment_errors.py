"""What is right and what is wrong in a panoptic prediction, pixel by pixel.

An id map is H x W with the ids of segments, others for void.
"""

from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError

Segments = list[dict[str, Any]]

# In the order of the legend; the values of :attr:`ErrorMap.kinds`.
CORRECT, WRONG_SEGMENT, WRONG_CLASS, MISSED, IGNORED = range(5)
# Two segments are the same object above this IoU (Kirillov et al. 2019, section 4.1).
_MATCH_IOU = 0.5


class ErrorMap(NamedTuple):
    """Result of :func:`compare`.

    Attributes:
        kinds: uint8 H x W, CORRECT ... IGNORED of each pixel.
        annotated: int64 H x W, index into the annotated segments, -1 for void.
        predicted: int64 H x W, index into the predicted segments, -1 for void.
    """

    kinds: np.ndarray
    annotated: np.ndarray
    predicted: np.ndarray


def compare(
    annotated_ids: np.ndarray,
    annotated: Segments,
    predicted_ids: np.ndarray,
    predicted: Segments,
) -> ErrorMap:
    """Sort the pixels by what happened to them.

    CORRECT: in both segments of a pair of one class with IoU above 0.5. WRONG_SEGMENT: the class is
    right, but the two segments are no such pair (split, merged, or too little of it found).
    WRONG_CLASS. MISSED: nothing is predicted there. IGNORED: void or crowd in the ground
    truth. The IoU is panopticapi's, which leaves out what is void in the ground truth.

    Args:
        annotated_ids: H x W segment ids of the ground truth.
        annotated: its segments with ``id``, contiguous ``category_id``, perhaps ``iscrowd``.
        predicted_ids: H x W segment ids of the prediction.
        predicted: its segments.

    Raises:
        UserError: the two maps have different sizes.
    """
    if annotated_ids.shape != predicted_ids.shape:
        sizes = [" x ".join(map(str, ids.shape)) for ids in (annotated_ids, predicted_ids)]
        raise UserError(
            f"The ground truth is {sizes[0]} (height x width), the prediction {sizes[1]}. Resize "
            "one of them (nearest neighbour) to the other."
        )
    expected = _index_map(annotated_ids, annotated)
    found = _index_map(predicted_ids, predicted)
    crowd = np.array([bool(s.get("iscrowd", 0)) for s in annotated] + [True])
    known = expected >= 0
    shape = len(annotated) + 1, len(predicted) + 1
    # -1 is the last row and the last column.
    flat = expected[known] * shape[1] + found[known] % shape[1]
    counts = np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)
    union = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0, keepdims=True) - counts
    expected_class = np.array([s["category_id"] for s in annotated] + [-1])
    found_class = np.array([s["category_id"] for s in predicted] + [-2])
    same_class = expected_class[:, None] == found_class[None]
    pair = same_class & (counts > _MATCH_IOU * union)

    of_pair = np.where(same_class, WRONG_SEGMENT, WRONG_CLASS).astype(np.uint8)
    of_pair[pair] = CORRECT
    of_pair[:, -1] = MISSED
    of_pair[crowd] = IGNORED
    return ErrorMap(of_pair[expected, found], expected, found)


def _index_map(ids: np.ndarray, segments: Segments) -> np.ndarray:
    """Replace ids by the segments' positions in the list; -1 where there is no segment."""
    position = {int(s["id"]): i for i, s in enumerate(segments)}
    present, inverse = np.unique(ids, return_inverse=True)
    lookup = np.array([position.get(int(i), -1) for i in present], dtype=np.int64)
    return lookup[inverse].reshape(ids.shape)
