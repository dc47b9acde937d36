"""What is right and what is wrong in a panoptic prediction, pixel by pixel.

An id map is H x W with the ids of segments; other ids are void.
"""

import numpy as np

from ...data.colors import Color
from ...evaluation.pq import MATCH_IOU, is_crowd
from ...visualization.draw import Panoptic, check_sizes
from ...visualization.panels import enlarge
from ...visualization.visualizer import Segments, as_array, draw_edges

CORRECT, LOW_OVERLAP, WRONG_CLASS, MISSED, IGNORED = range(5)
# Color and name of each kind. The colors differ in hue with every common kind of color vision, and
# in lightness without any.
ERROR_COLORS: dict[str, Color] = {
    "correct": (0, 114, 178),
    f"right class, overlap at most {MATCH_IOU}": (204, 121, 167),
    "wrong class": (213, 94, 0),
    "missed": (240, 228, 66),
    "void, ignored": (150, 150, 150),
}
# Weights of red, green and blue in the brightness of a color (ITU-R BT.601).
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def draw_errors(
    image: np.ndarray,
    ground_truth: Panoptic,
    prediction: Panoptic,
    *,
    alpha: float = 0.6,
    min_size: int = 320,
) -> np.ndarray:
    """Draw what is right and what is wrong in a prediction, over the image in grey.

    The colors are those of ``ERROR_COLORS`` for the kinds of :func:`compare`. Ignored pixels have
    none. White lines are the edges of the annotated segments.

    Args:
        image: H x W x 3 uint8 RGB.
        ground_truth: ids and segments, perhaps with ``iscrowd``.
        prediction: ids and segments.
        alpha: share of the color, 0 to 1.
        min_size: see :func:`.draw.draw_panoptic`.

    Raises:
        UserError: image, ground truth and prediction have different sizes.
    """
    annotated_ids, predicted_ids = as_array(ground_truth[0]), as_array(prediction[0])
    check_sizes(image, annotated_ids, predicted_ids)
    kinds, annotated = compare(annotated_ids, ground_truth[1], predicted_ids, prediction[1])
    colors = np.array(list(ERROR_COLORS.values()), dtype=np.float32)
    share = np.where(kinds == IGNORED, 0, alpha)[..., None]
    picture = (image @ _LUMINANCE)[..., None] * (1 - share) + colors[kinds] * share
    picture = enlarge(picture, min_size)
    draw_edges(picture, enlarge(annotated, min_size))
    return picture.round().astype(np.uint8)


def compare(
    annotated_ids: np.ndarray,
    annotated: Segments,
    predicted_ids: np.ndarray,
    predicted: Segments,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the kind of each pixel.

    CORRECT: in both segments of a pair of one class with IoU above 0.5. LOW_OVERLAP: the class is
    right, but the two segments are no such pair (split, merged, or too small). WRONG_CLASS: the
    class differs. MISSED: nothing is predicted. IGNORED: void or crowd in the ground truth. The IoU
    is panopticapi's, which leaves out void pixels of the ground truth.

    Args:
        annotated_ids: H x W segment ids of the ground truth.
        annotated: its segments with ``id``, contiguous ``category_id``, perhaps ``iscrowd``.
        predicted_ids: H x W segment ids of the prediction.
        predicted: its segments.

    Returns:
        H x W arrays: uint8 kind of each pixel; index of the annotated segment, -1 for void.
    """
    row, column = _index_map(annotated_ids, annotated), _index_map(predicted_ids, predicted)
    # -1 is the last row and the last column.
    shape = len(annotated) + 1, len(predicted) + 1
    known = row >= 0
    pairs = row[known] * shape[1] + column[known] % shape[1]
    pixels = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
    union = pixels.sum(axis=1, keepdims=True) + pixels.sum(axis=0, keepdims=True) - pixels
    classes = np.array([s["category_id"] for s in annotated] + [-1])
    predicted_classes = np.array([s["category_id"] for s in predicted] + [-2])
    same_class = classes[:, None] == predicted_classes[None]

    kinds = np.where(same_class, LOW_OVERLAP, WRONG_CLASS).astype(np.uint8)
    kinds[same_class & (pixels > MATCH_IOU * union)] = CORRECT
    kinds[:, -1] = MISSED
    kinds[[is_crowd(s) for s in annotated] + [True]] = IGNORED
    return kinds[row, column], row


def _index_map(ids: np.ndarray, segments: Segments) -> np.ndarray:
    """Replace ids by the positions of the segments in the list; -1 for void."""
    position = {int(s["id"]): i for i, s in enumerate(segments)}
    present, inverse = np.unique(ids, return_inverse=True)
    lookup = np.array([position.get(int(i), -1) for i in present], dtype=np.int64)
    return lookup[inverse].reshape(ids.shape)
