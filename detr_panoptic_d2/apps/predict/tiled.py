"""Prediction on large images in overlapping tiles."""

from typing import Any

import numpy as np
import torch

from ...engine import Predictor
from ...export.runtime import Tile, segment_tiled
from ...modeling.mask_ops import resize_strips
from ...modeling.structures import Frame


class TiledPredictor:
    """A predictor that segments each image in tiles, see :mod:`detr_panoptic_d2.export.runtime`.

    Args:
        predictor: segments a tile.
        tile: side of the tiles, in pixels.
        overlap: smallest part of a tile, from 0 up to 1, that the next tile shares.
    """

    def __init__(self, predictor: Predictor, tile: int, overlap: float):
        self.predictor, self.tile, self.overlap = predictor, tile, overlap
        self.metadata = predictor.metadata

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """Segment an H x W x 3 uint8 BGR image."""
        ids, segments = segment_tiled(self._segment, image, self.tile, self.overlap)
        return {"panoptic_seg": (torch.from_numpy(ids), segments)}

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return the image: tiles are prepared one after the other."""
        return image

    def predict_batch(self, inputs: list[np.ndarray]) -> list[dict]:
        """Segment images."""
        return [self(image) for image in inputs]

    @torch.no_grad()
    def _segment(self, image: np.ndarray) -> Tile:
        model = self.predictor.model
        inputs = self.predictor.prepare(image)
        images = model.preprocess([inputs])
        detections = model.detect(images)
        selection = model.select(detections)
        pairs = selection.masked.nonzero(as_tuple=True)
        masks = model.predict_masks(detections, *pairs)
        canvas, size = tuple(images.tensor.shape[-2:]), tuple(images.image_sizes[0])
        frame = Frame(canvas, size, image.shape[:2])
        (result,) = model.assemble(detections, selection, masks, [frame])
        ids, segments = result["panoptic_seg"]
        panoptic, masked = selection.panoptic[0], selection.masked[0]
        scores, labels = selection.scores[0][panoptic], selection.labels[0][panoptic]
        masks = masks[panoptic[masked].to(masks.device)]
        confidence = _confidence_map(ids, segments, masks, scores, labels, frame)
        return Tile(ids.cpu().numpy(), segments, confidence.cpu().numpy())


def _confidence_map(
    ids: torch.Tensor,
    segments: list[dict],
    masks: torch.Tensor,
    scores: torch.Tensor,
    labels: torch.Tensor,
    frame: Frame,
) -> torch.Tensor:
    """Return class probability times mask probability of the class of each pixel, as H x W uint8.

    ``ids`` and ``segments`` are the result of the Q queries with these masks, scores and labels.
    """
    device = masks.device
    scores, labels = scores.to(device)[:, None, None], labels.to(device)[:, None, None]
    table = torch.tensor([-1, *(s["category_id"] for s in segments)], device=device)
    confidence = torch.zeros(ids.shape, dtype=torch.uint8, device=device)
    for rows, strip in resize_strips(masks, frame) if len(masks) else ():
        same_class = labels == table[ids[rows].long()]
        probabilities = (strip.sigmoid() * scores * same_class).amax(0)
        confidence[rows] = (255 * probabilities).round().to(torch.uint8)
    return confidence
