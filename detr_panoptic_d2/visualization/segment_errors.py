"""What is right and what is wrong in a panoptic prediction, pixel by pixel.

An id map is H x W with the ids of segments, others for void.
"""

import numpy as np
from detectron2.data import Metadata

from .draw import Panoptic, check_sizes
from .panels import Color, enlarge, with_legend
from .visualizer import PanopticVisualizer, Segments, as_array, class_name

CORRECT, WRONG_SEGMENT, WRONG_CLASS, MISSED, IGNORED = range(5)
# Colour and name of each kind. The colours are told apart by hue with every common kind of colour
# vision, and by lightness without any.
ERROR_LEGEND: list[tuple[Color, str]] = [
    ((0, 114, 178), "correct"),
    ((204, 121, 167), "right class, wrong segment"),
    ((213, 94, 0), "wrong class"),
    ((240, 228, 66), "missed"),
    ((150, 150, 150), "void, ignored"),
]
# Two segments are the same object above this IoU (Kirillov et al. 2019, section 4.1).
_MATCH_IOU = 0.5
# Errors over a smaller part of the image get no label.
_LEAST_LABELLED = 0.006
# Weights of red, green and blue in the brightness of a colour (ITU-R BT.601).
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def draw_errors(
    image: np.ndarray,
    ground_truth: Panoptic,
    prediction: Panoptic,
    metadata: Metadata,
    *,
    alpha: float = 0.6,
    min_size: int = 320,
) -> np.ndarray:
    """Draw what is right and what is wrong in a prediction, over the image in grey.

    Colours are those of ``ERROR_LEGEND`` for the kinds of :func:`compare`, with a legend below;
    what is ignored has none. White lines are the edges of the annotated segments. Larger errors are
    labelled, as "annotated class, not predicted class".

    Args:
        image: H x W x 3 uint8 RGB.
        ground_truth: ids and segments, with ``iscrowd`` where it is so.
        prediction: ids and segments.
        metadata: names of the classes.
        alpha: share of the colour, 0 to 1.
        min_size: see :func:`.draw.draw_panoptic`.

    Raises:
        UserError: image, ground truth and prediction have different sizes.
    """
    annotated_ids, predicted_ids = as_array(ground_truth[0]), as_array(prediction[0])
    check_sizes(image, annotated_ids, predicted_ids)
    kinds, annotated, predicted = compare(
        annotated_ids, ground_truth[1], predicted_ids, prediction[1]
    )
    colors = np.array([color for color, _ in ERROR_LEGEND], dtype=np.float32)
    share = np.where(kinds == IGNORED, 0, alpha)[..., None]
    picture = (image @ _LUMINANCE)[..., None] * (1 - share) + colors[kinds] * share
    picture, segments = enlarge(picture, min_size), enlarge(annotated, min_size)
    picture[:, 1:][segments[:, 1:] != segments[:, :-1]] = 255
    picture[1:][segments[1:] != segments[:-1]] = 255
    visualizer = PanopticVisualizer(picture, metadata)
    wrong = (kinds != CORRECT) & (kinds != IGNORED)
    pairs = np.stack([annotated[wrong], predicted[wrong], kinds[wrong]], axis=1)
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    # Larger ones first: where there is no room for all labels, theirs are written.
    for i in np.argsort(-counts):
        if counts[i] < _LEAST_LABELLED * kinds.size:
            break
        expected, found, kind = pairs[i]
        text = class_name(ground_truth[1][expected]["category_id"], metadata)
        if kind == WRONG_CLASS:
            text += f", not {class_name(prediction[1][found]['category_id'], metadata)}"
        place = np.nonzero(wrong & (annotated == expected) & (predicted == found))
        middle = (np.median(place, axis=1)[::-1] + 0.5) * picture.shape[0] / image.shape[0]
        visualizer.draw_text(text, middle, color=colors[kind] / 255)
    return with_legend(visualizer.get_picture(), [ERROR_LEGEND[k] for k in np.unique(kinds)])


def compare(
    annotated_ids: np.ndarray,
    annotated: Segments,
    predicted_ids: np.ndarray,
    predicted: Segments,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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

    Returns:
        H x W arrays: uint8 kind of each pixel; index into the annotated and into the predicted
        segments, -1 for void.
    """
    expected = _index_map(annotated_ids, annotated)
    found = _index_map(predicted_ids, predicted)
    # -1 is the last row and the last column.
    shape = len(annotated) + 1, len(predicted) + 1
    known = expected >= 0
    pairs = expected[known] * shape[1] + found[known] % shape[1]
    counts = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
    union = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0, keepdims=True) - counts
    expected_class = np.array([s["category_id"] for s in annotated] + [-1])
    found_class = np.array([s["category_id"] for s in predicted] + [-2])
    same_class = expected_class[:, None] == found_class[None]

    of_pair = np.where(same_class, WRONG_SEGMENT, WRONG_CLASS).astype(np.uint8)
    of_pair[same_class & (counts > _MATCH_IOU * union)] = CORRECT
    of_pair[:, -1] = MISSED
    of_pair[[bool(s.get("iscrowd", 0)) for s in annotated] + [True]] = IGNORED
    return of_pair[expected, found], expected, found


def _index_map(ids: np.ndarray, segments: Segments) -> np.ndarray:
    """Replace ids by the segments' positions in the list; -1 where there is no segment."""
    position = {int(s["id"]): i for i, s in enumerate(segments)}
    present, inverse = np.unique(ids, return_inverse=True)
    lookup = np.array([position.get(int(i), -1) for i in present], dtype=np.int64)
    return lookup[inverse].reshape(ids.shape)
