"""Pictures of panoptic segmentation, alone and beside the ground truth.

Images are H x W x 3 uint8 RGB, segment ids H x W (a tensor or an array; ids without a segment are
void). The same input gives the same picture.
"""

from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from PIL import Image

from ..data.panoptic_png import read_panoptic_png
from ..errors import UserError
from .panels import enlarge, side_by_side, with_caption, with_legend
from .visualizer import PanopticVisualizer, Segments, as_array

# Ids and segments of one image.
Panoptic = tuple[torch.Tensor | np.ndarray, Segments]


def draw_panoptic(
    image: np.ndarray,
    panoptic_seg: torch.Tensor | np.ndarray,
    segments_info: Segments,
    metadata: Metadata,
    *,
    alpha: float = 0.55,
    min_size: int = 0,
    labels: bool = True,
    legend: bool = False,
) -> np.ndarray:
    """Draw segments over an image.

    Args:
        alpha: share of the color in a segment, 0 to 1.
        min_size: pixels. Small images are enlarged by a whole factor to about this shorter side, so
            that labels are readable. 0: the picture has the size of the image.
        labels: write names and scores where there is room.
        legend: list the classes without a label below the picture, which makes it higher.

    Returns:
        ndarray: H' x W' x 3 uint8 RGB. Without legend, H' and W' are multiples of H and W.

    Raises:
        UserError: image and ids have different sizes.
    """
    if image.shape[:2] != tuple(panoptic_seg.shape):
        raise UserError(
            "The image is {} x {} (height x width), ".format(*image.shape[:2])
            + "a map of segment ids {} x {}.".format(*panoptic_seg.shape)
        )
    visualizer = PanopticVisualizer(enlarge(image, min_size), metadata)
    ids = enlarge(as_array(panoptic_seg), min_size)
    visualizer.draw_panoptic_seg(ids, segments_info, alpha=alpha, labels=labels)
    picture = visualizer.get_picture()
    return with_legend(picture, visualizer.unlabelled) if legend else picture


def draw_beside_ground_truth(
    image: np.ndarray,
    ground_truth: Panoptic | None,
    prediction: Panoptic,
    metadata: Metadata,
    *,
    min_size: int = 320,
) -> np.ndarray:
    """Draw the image, its ground truth (if there is one) and the prediction side by side, each
    below its caption; see :func:`draw_panoptic`."""
    pictures = [with_caption(enlarge(image, min_size), "Image")]
    for panoptic, caption in ((ground_truth, "Ground truth"), (prediction, "Prediction")):
        if panoptic is not None:
            picture = draw_panoptic(image, *panoptic, metadata, min_size=min_size, legend=True)
            pictures.append(with_caption(picture, caption))
    return side_by_side(pictures)


def read_ground_truth(item: dict[str, Any]) -> Panoptic | None:
    """Return ids and segments of a dataset dict; None if it has no panoptic annotation."""
    if "pan_seg_file_name" not in item:
        return None
    return read_panoptic_png(item["pan_seg_file_name"]), item["segments_info"]


def limit_size(max_size: int, image: np.ndarray, *panoptic: Panoptic | None) -> list:
    """Reduce an image, and ids and segments or None, to a longer side of ``max_size`` pixels."""
    height, width = image.shape[:2]
    scale = max_size / max(height, width)
    if scale >= 1:
        return [image, *panoptic]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    results: list = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))]
    for pair in panoptic:
        if pair is not None:
            ids = Image.fromarray(as_array(pair[0]).astype(np.int32))
            pair = np.asarray(ids.resize(size, Image.Resampling.NEAREST)), pair[1]
        results.append(pair)
    return results
