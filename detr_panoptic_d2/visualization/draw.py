"""Pictures of panoptic segmentation, drawn with Detectron2's ``Visualizer``.

Images are H x W x 3 uint8 RGB, segment ids H x W (a tensor or an array; ids without a segment are
void). Nothing here draws random numbers: the same input gives the same picture.
"""

from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from PIL import Image

from ..data.masks import panoptic_png_to_ids
from ..data.palette import default_color
from ..errors import UserError
from .panels import Color, enlarge, side_by_side, text_size, with_caption, with_legend
from .segment_drawing import LUMINANCE, SegmentDrawing
from .segment_errors import (
    CORRECT,
    IGNORED,
    MISSED,
    WRONG_CLASS,
    WRONG_SEGMENT,
    Segments,
    compare,
    index_map,
)

__all__ = [
    "class_colors",
    "draw_beside_truth",
    "draw_errors",
    "draw_panoptic",
    "limit_size",
    "read_truth",
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
# Brightness of the first, second, third ... object of a class, to tell neighbours apart.
_OBJECT_SHADES = (1.0, 0.72, 1.35, 0.86, 1.18)
# Errors over a smaller part of the image get no label.
_LEAST_LABELLED = 0.006


def class_colors(metadata: Metadata, count: int) -> list[Color]:
    """Return the colours of the first ``count`` classes.

    Those of the metadata (COCO's for COCO), else a palette for every kind of colour vision.

    Args:
        metadata: ``thing_colors`` or ``stuff_colors`` of all classes, or neither.
        count: contiguous classes.
    """
    given = max(metadata.get("thing_colors") or [], metadata.get("stuff_colors") or [], key=len)
    return [tuple(given[i] if i < len(given) else default_color(i)) for i in range(count)]


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

    Objects of a class have the class's colour in different shades. A label lies within its segment
    where it fits; one that could only be put over another label is left out.

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
    ids = _as_array(panoptic_seg)
    _check_sizes(image, ids)
    index = enlarge(index_map(ids, segments_info), min_size)
    drawing = SegmentDrawing(enlarge(image, min_size), metadata)
    colors = _segment_colors(segments_info, metadata)
    drawing.fill(index, colors, alpha)
    if labels:
        masks = [index == i for i in range(len(segments_info))]
        shown = [i for i, mask in enumerate(masks) if mask.any()]
        drawing.write(
            [masks[i] for i in shown],
            [_label(segments_info[i], metadata) for i in shown],
            [colors[i] for i in shown],
        )
    return drawing.result()


def draw_beside_truth(
    image: np.ndarray,
    truth: Panoptic | None,
    prediction: Panoptic,
    metadata: Metadata,
    *,
    captions: tuple[str, str, str] = ("Image", "Truth", "Prediction"),
    with_image: bool = True,
    min_size: int = 320,
) -> np.ndarray:
    """Draw the image, its truth and the prediction side by side, each below its caption.

    Args:
        image: H x W x 3 uint8 RGB.
        truth: ids and segments; None where it is not known, which leaves its picture out.
        prediction: ids and segments.
        metadata: names and colours of the classes.
        captions: of the three pictures.
        with_image: show the image itself as well.
        min_size: see :func:`draw_panoptic`.

    Raises:
        UserError: image and ids have different sizes.
    """
    pictures = []
    if with_image:
        pictures.append((enlarge(image, min_size), captions[0]))
    for panoptic, caption in ((truth, captions[1]), (prediction, captions[2])):
        if panoptic is not None:
            pictures.append((draw_panoptic(image, *panoptic, metadata, min_size=min_size), caption))
    size = text_size(*pictures[0][0].shape[:2])
    return side_by_side([with_caption(picture, text, size) for picture, text in pictures])


def draw_errors(
    image: np.ndarray,
    truth: Panoptic,
    prediction: Panoptic,
    metadata: Metadata,
    *,
    alpha: float = 0.6,
    legend: bool = True,
    min_size: int = 320,
) -> np.ndarray:
    """Draw what is right and what is wrong in a prediction, over the image in grey.

    Colours stand for: correct; right class but wrong segment; wrong class; missed; void in the
    truth and so ignored (see :func:`.segment_errors.compare`). White lines are the edges of the
    true segments. Larger errors are labelled, as "true class, not predicted class".

    Args:
        image: H x W x 3 uint8 RGB.
        truth: ids and segments, with ``iscrowd`` where it is so.
        prediction: ids and segments.
        metadata: names of the classes.
        alpha: share of the colour, 0 to 1.
        legend: below the picture, with the share of the pixels of each kind.
        min_size: see :func:`draw_panoptic`.

    Raises:
        UserError: image, truth and prediction have different sizes.
    """
    ids = [_as_array(truth[0]), _as_array(prediction[0])]
    _check_sizes(image, ids[0])
    errors = compare(ids[0], truth[1], ids[1], prediction[1])
    grey = image.astype(np.float32) @ LUMINANCE
    base = enlarge(np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2), min_size)
    kinds, index = enlarge(errors.kinds, min_size), enlarge(errors.truth, min_size)
    drawing = SegmentDrawing(base, metadata)
    drawing.img = _tinted(base, kinds, alpha)
    drawing.fill(index, [(0, 0, 0)] * len(truth[1]), 0.0)
    masks, texts, colors = _error_labels(errors, truth[1], prediction[1], metadata)
    drawing.write([enlarge(mask, min_size) for mask in masks], texts, colors)
    picture = drawing.result()
    if not legend:
        return picture
    shares = np.bincount(errors.kinds.ravel(), minlength=len(ERROR_NAMES)) / errors.kinds.size
    entries = [
        (ERROR_COLORS[kind], f"{name} {_percent(shares[kind])}")
        for kind, name in ERROR_NAMES.items()
        if shares[kind]
    ]
    return with_legend(picture, entries, text_size(*picture.shape[:2]))


def read_truth(item: dict[str, Any]) -> Panoptic | None:
    """Return ids and segments of a dataset dict; None if it has no panoptic truth.

    Raises:
        FileNotFoundError, OSError, ValueError: see :func:`.data.masks.panoptic_png_to_ids`.
    """
    if "pan_seg_file_name" not in item:
        return None
    return panoptic_png_to_ids(item["pan_seg_file_name"]), item["segments_info"]


def limit_size(
    max_size: int, image: np.ndarray, truth: Panoptic | None, prediction: Panoptic
) -> tuple[np.ndarray, Panoptic | None, Panoptic]:
    """Make image, truth and prediction smaller, for pictures of a reasonable size.

    Args:
        max_size: longer side in pixels; what is not larger stays as it is.
        image: H x W x 3 uint8 RGB.
        truth: ids H x W and segments, or None.
        prediction: ids H x W and segments.

    Returns:
        tuple: image, truth and prediction.
    """
    height, width = image.shape[:2]
    scale = max_size / max(height, width)
    if scale >= 1:
        return image, truth, prediction
    size = [max(1, round(side * scale)) for side in (height, width)]
    small = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))
    # The id at the middle of each new pixel.
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, (height, width), strict=True)
    )

    def shrink(panoptic: Panoptic) -> Panoptic:
        return _as_array(panoptic[0])[np.ix_(rows, columns)], panoptic[1]

    return small, truth and shrink(truth), shrink(prediction)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "< 1 %"


def _as_array(ids: torch.Tensor | np.ndarray) -> np.ndarray:
    return ids.cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)


def _check_sizes(image: np.ndarray, ids: np.ndarray) -> None:
    if image.shape[:2] != ids.shape:
        raise UserError(
            "The image is {} x {} (height x width), ".format(*image.shape[:2])
            + "the map of segment ids {} x {}.".format(*ids.shape)
        )


def _segment_colors(segments: Segments, metadata: Metadata) -> list[Color]:
    palette = class_colors(metadata, 1 + max((s["category_id"] for s in segments), default=0))
    seen: dict[int, int] = {}
    colors = []
    for segment in segments:
        color = np.array(palette[segment["category_id"]], dtype=np.float32)
        if segment.get("isthing", True):
            number = seen[segment["category_id"]] = seen.get(segment["category_id"], -1) + 1
            color *= _OBJECT_SHADES[number % len(_OBJECT_SHADES)]
        colors.append(tuple(int(c) for c in color.clip(0, 255)))
    return colors


def _class_name(category: int, metadata: Metadata) -> str:
    names = metadata.get("thing_classes") or metadata.get("stuff_classes") or []
    return names[category] if category < len(names) else f"class {category}"


def _label(segment: dict[str, Any], metadata: Metadata) -> str:
    name = _class_name(segment["category_id"], metadata)
    if segment.get("iscrowd", 0):
        return f"{name} (crowd)"
    if segment.get("isthing", True) and segment.get("score") is not None:
        return f"{name} {100 * float(segment['score']):.0f}%"
    return name


def _tinted(base: np.ndarray, kinds: np.ndarray, alpha: float) -> np.ndarray:
    """Mix the colours of the kinds of errors into a grey image; what is ignored gets stripes."""
    table = np.array([ERROR_COLORS[kind] for kind in sorted(ERROR_COLORS)], dtype=np.float32)
    period = max(6, round(np.sqrt(kinds.size) / 45))
    y, x = np.ogrid[: kinds.shape[0], : kinds.shape[1]]
    plain = (kinds != IGNORED) | ((x + y) % period < period / 2)
    share = np.where(plain, np.float32(alpha), np.float32(0.15))[..., None]
    return (base * (1 - share) + table[kinds] * share).astype(np.uint8)


def _error_labels(
    errors, truth: Segments, predicted: Segments, metadata: Metadata
) -> tuple[list[np.ndarray], list[str], list[Color]]:
    """Return mask, text and colour of each larger error, by pair of segments."""
    wrong = (errors.kinds != CORRECT) & (errors.kinds != IGNORED)
    pairs = np.stack([errors.truth[wrong], errors.prediction[wrong]], axis=1)
    masks, texts, colors = [], [], []
    for (true, found), count in zip(*np.unique(pairs, axis=0, return_counts=True), strict=True):
        if count < _LEAST_LABELLED * errors.kinds.size:
            continue
        mask = (errors.truth == true) & (errors.prediction == found) & wrong
        kind = int(errors.kinds[mask][0])
        text = _class_name(truth[true]["category_id"], metadata)
        if kind == WRONG_CLASS:
            text += f", not {_class_name(predicted[found]['category_id'], metadata)}"
        masks.append(mask)
        texts.append(text)
        colors.append(ERROR_COLORS[kind])
    return masks, texts, colors
