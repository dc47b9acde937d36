"""Pictures of panoptic segmentation: a prediction, the ground truth beside it, and its errors.

Images are H x W x 3 uint8 RGB, segment ids H x W (a tensor or an array; ids without a segment are
void). Nothing here draws random numbers: the same input gives the same picture.
"""

from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from PIL import Image

from ..data.panoptic_png import read_panoptic_png
from ..errors import UserError
from .panels import Color, enlarge, side_by_side, with_caption, with_legend
from .segment_errors import CORRECT, IGNORED, MISSED, WRONG_CLASS, WRONG_SEGMENT, compare
from .visualizer import PanopticVisualizer, Segments, class_colors, class_name

__all__ = [
    "class_colors",
    "draw_beside_ground_truth",
    "draw_errors",
    "draw_panoptic",
    "limit_size",
    "read_ground_truth",
]

# Ids and segments of one image.
Panoptic = tuple[torch.Tensor | np.ndarray, Segments]

# Told apart by hue with every common kind of colour vision, and by lightness without any.
ERROR_COLORS: dict[int, Color] = {
    CORRECT: (0, 114, 178),
    WRONG_SEGMENT: (204, 121, 167),
    WRONG_CLASS: (213, 94, 0),
    MISSED: (240, 228, 66),
    IGNORED: (150, 150, 150),
}
ERROR_NAMES = {
    CORRECT: "correct",
    WRONG_SEGMENT: "right class, wrong segment",
    WRONG_CLASS: "wrong class",
    MISSED: "missed",
    IGNORED: "void, ignored",
}
# Errors over a smaller part of the image get no label.
_LEAST_LABELLED = 0.006
# Weights of red, green and blue in the brightness of a colour (ITU-R BT.601).
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def draw_panoptic(
    image: np.ndarray,
    panoptic_seg: torch.Tensor | np.ndarray,
    segments_info: Segments,
    metadata: Metadata,
    *,
    alpha: float = 0.55,
    labels: bool = True,
    min_size: int = 0,
) -> np.ndarray:
    """Draw segments over an image, each with its name and, for things, its score.

    Args:
        image: H x W x 3 uint8 RGB.
        panoptic_seg: H x W segment ids.
        segments_info: with ``id``, contiguous ``category_id``, ``isthing``; perhaps ``score``.
        metadata: names and colours of the classes.
        alpha: share of the colour in a segment, 0 to 1.
        labels: write the names.
        min_size: small images are enlarged by a whole factor to about this shorter side, in
            pixels, so that labels can be read. 0: the picture has the size of the image.

    Returns:
        ndarray: H' x W' x 3 uint8 RGB, H' and W' multiples of H and W.

    Raises:
        UserError: image and ids have different sizes.
    """
    _check_sizes(image, panoptic_seg)
    classes = 1 + max((s["category_id"] for s in segments_info), default=0)
    image, ids = enlarge(image, min_size), enlarge(_as_array(panoptic_seg), min_size)
    visualizer = PanopticVisualizer(image, metadata, classes=classes, labels=labels)
    visualizer.draw_panoptic_seg(ids, segments_info, alpha=alpha)
    return visualizer.get_picture()


def draw_beside_ground_truth(
    image: np.ndarray,
    ground_truth: Panoptic | None,
    prediction: Panoptic,
    metadata: Metadata,
    *,
    min_size: int = 320,
) -> np.ndarray:
    """Draw the image, its ground truth and the prediction side by side, each below its caption.

    Args:
        image: H x W x 3 uint8 RGB.
        ground_truth: ids and segments; None where there is none, which leaves its picture out.
        prediction: ids and segments.
        metadata: names and colours of the classes.
        min_size: see :func:`draw_panoptic`.

    Raises:
        UserError: image and ids have different sizes.
    """
    pictures = [with_caption(enlarge(image, min_size), "Image")]
    for panoptic, caption in ((ground_truth, "Ground truth"), (prediction, "Prediction")):
        if panoptic is not None:
            picture = draw_panoptic(image, *panoptic, metadata, min_size=min_size)
            pictures.append(with_caption(picture, caption))
    return side_by_side(pictures)


def draw_errors(
    image: np.ndarray,
    ground_truth: Panoptic,
    prediction: Panoptic,
    metadata: Metadata,
    *,
    alpha: float = 0.6,
    legend: bool = True,
    min_size: int = 320,
) -> np.ndarray:
    """Draw what is right and what is wrong in a prediction, over the image in grey.

    Colours stand for: correct; right class but wrong segment; wrong class; missed; void in the
    ground truth and so ignored (see :func:`.segment_errors.compare`). White lines are the edges of
    the annotated segments. Larger errors are labelled, as "annotated class, not predicted class".

    Args:
        image: H x W x 3 uint8 RGB.
        ground_truth: ids and segments, with ``iscrowd`` where it is so.
        prediction: ids and segments.
        metadata: names of the classes.
        alpha: share of the colour, 0 to 1.
        legend: below the picture, with the share of the pixels of each kind.
        min_size: see :func:`draw_panoptic`.

    Raises:
        UserError: image, ground truth and prediction have different sizes.
    """
    annotated, predicted = (_as_array(ids) for ids, _ in (ground_truth, prediction))
    _check_sizes(image, annotated)
    errors = compare(annotated, ground_truth[1], predicted, prediction[1])
    base, kinds, index = (
        enlarge(x, min_size) for x in (image @ _LUMINANCE, errors.kinds, errors.annotated)
    )
    table = np.array([ERROR_COLORS[kind] for kind in sorted(ERROR_COLORS)], dtype=np.float32)
    # What is ignored gets stripes.
    period = max(6, round(np.sqrt(kinds.size) / 45))
    y, x = np.ogrid[: kinds.shape[0], : kinds.shape[1]]
    plain = (kinds != IGNORED) | ((x + y) % period < period / 2)
    share = np.where(plain, alpha, 0.15)[..., None]
    picture = base[..., None] * (1 - share) + table[kinds] * share
    picture[_edges(index)] = 255
    visualizer = PanopticVisualizer(picture, metadata)
    factor = kinds.shape[0] // image.shape[0]
    for mask, text, color in _labels(errors, ground_truth[1], prediction[1], metadata):
        middle = (np.median(np.nonzero(mask), axis=1)[::-1] + 0.5) * factor
        visualizer.draw_text(text, middle, color=np.divide(color, 255))
    picture = visualizer.get_picture()
    if not legend:
        return picture
    shares = np.bincount(errors.kinds.ravel(), minlength=len(ERROR_NAMES)) / errors.kinds.size
    entries = [
        (ERROR_COLORS[kind], f"{name} {_percent(shares[kind])}")
        for kind, name in ERROR_NAMES.items()
        if shares[kind]
    ]
    return with_legend(picture, entries)


def read_ground_truth(item: dict[str, Any]) -> Panoptic | None:
    """Return ids and segments of a dataset dict; None if it has no panoptic annotation.

    Raises:
        FileNotFoundError, OSError, ValueError: see :func:`.data.panoptic_png.read_panoptic_png`.
    """
    if "pan_seg_file_name" not in item:
        return None
    return read_panoptic_png(item["pan_seg_file_name"]), item["segments_info"]


def limit_size(max_size: int, image: np.ndarray, *panoptic: Panoptic | None) -> list:
    """Make an image and its segmentations smaller, for pictures of a reasonable size.

    Args:
        max_size: longer side in pixels; what is not larger stays as it is.
        image: H x W x 3 uint8 RGB.
        panoptic: pairs of ids H x W and segments, or None.

    Returns:
        list: the image and each of ``panoptic``.
    """
    height, width = image.shape[:2]
    scale = max_size / max(height, width)
    if scale >= 1:
        return [image, *panoptic]
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))
    # The id at the middle of each new pixel.
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, (height, width), strict=True)
    )
    return [small, *(p and (_as_array(p[0])[np.ix_(rows, columns)], p[1]) for p in panoptic)]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "< 1 %"


def _as_array(ids: torch.Tensor | np.ndarray) -> np.ndarray:
    return ids.cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)


def _check_sizes(image: np.ndarray, ids: torch.Tensor | np.ndarray) -> None:
    if image.shape[:2] != tuple(ids.shape):
        raise UserError(
            "The image is {} x {} (height x width), ".format(*image.shape[:2])
            + "the map of segment ids {} x {}.".format(*ids.shape)
        )


def _edges(index: np.ndarray) -> np.ndarray:
    """Return H x W bool, True on lines between different values."""
    edges = np.zeros(index.shape, dtype=bool)
    for shift in range(1, max(1, round(np.sqrt(index.size) / 450)) + 1):
        edges[:, :-shift] |= index[:, shift:] != index[:, :-shift]
        edges[:-shift] |= index[shift:] != index[:-shift]
    return edges


def _labels(errors, annotated: Segments, predicted: Segments, metadata: Metadata):
    """Yield mask, text and colour of each larger error, by pair of segments, largest first."""
    wrong = (errors.kinds != CORRECT) & (errors.kinds != IGNORED)
    pairs = np.stack([errors.annotated[wrong], errors.predicted[wrong]], axis=1)
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    for i in np.argsort(-counts):
        if counts[i] < _LEAST_LABELLED * errors.kinds.size:
            return
        expected, found = pairs[i]
        mask = (errors.annotated == expected) & (errors.predicted == found) & wrong
        kind = int(errors.kinds[mask][0])
        text = class_name(annotated[expected]["category_id"], metadata)
        if kind == WRONG_CLASS:
            text += f", not {class_name(predicted[found]['category_id'], metadata)}"
        yield mask, text, ERROR_COLORS[kind]
