"""The outputs of the network for one image, and what the page computes from them.

Shapes: H x W is the image, Q the number of queries whose class is an object, M that of the heads.
"""

import logging
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from matplotlib import colormaps
from PIL import Image
from torch import nn

from ...data.dataset_mapper import read_image
from ...data.metadata import thing_class_ids
from ...engine import Predictor
from ...errors import UserError
from ...modeling.mask_ops import argmax_at_output
from ...modeling.panoptic_inference import build_panoptic_inference
from ...modeling.structures import Frame
from ...visualization.draw import draw_panoptic
from ...visualization.panels import enlarge

logger = logging.getLogger(__name__)

# Largest upload, in millions of bytes and of pixels.
MAX_MEGABYTES, MAX_MEGAPIXELS = 20, 16
# Approximate smallest shorter side in pixels, of the picture with labels and of the maps.
_SIDE, _MAP_SIDE = 480, 240


class View(NamedTuple):
    """The panoptic result of an image at some thresholds.

    Attributes:
        analysis: of the image.
        ids: H x W int32 segment ids.
        segments: as the model returns them.
        queries: the query of each segment. For stuff, the one with most of the pixels.
        picture: segments over the image, enlarged by a whole factor.
    """

    analysis: "Analysis"
    ids: np.ndarray
    segments: list[dict[str, Any]]
    queries: list[int]
    picture: np.ndarray

    def at(self, x: int, y: int) -> int | None:
        """Index of the segment at a pixel of the picture; None on void."""
        factor = self.picture.shape[0] // self.ids.shape[0]
        segment_id = int(self.ids[y // factor, x // factor])
        return next((k for k, s in enumerate(self.segments) if s["id"] == segment_id), None)

    def details(self, index: int) -> list[tuple[np.ndarray, str]]:
        """Return pictures of a segment with captions: its pixels, and the mask logits and the M
        box-attention maps of its query."""
        analysis = self.analysis
        inside = self.ids == self.segments[index]["id"]
        faded = 255 - (255 - analysis.image.astype(np.float32)) * 0.25
        pixels = np.where(inside[..., None], analysis.image, faded.round().astype(np.uint8))
        query = self.queries[index]
        logits = analysis.mask_logits[query].float().cpu().numpy()
        attention = analysis.box_attention[query].float().cpu().numpy()
        half = 2 * max(float(np.abs(logits).max()), 1e-3)
        maps = {"mask logits": colormaps["PuOr"](logits / half + 0.5)}
        # One scale for all heads. The square root makes small weights visible.
        for head, weights in enumerate(np.sqrt(attention / attention.max()), 1):
            maps[f"head {head}"] = colormaps["viridis"](weights)
        pictures = {"pixels": pixels}
        pictures |= {name: (m[..., :3] * 255).astype(np.uint8) for name, m in maps.items()}
        return [(enlarge(picture, _MAP_SIDE), name) for name, picture in pictures.items()]


class Analysis(NamedTuple):
    """Outputs of the network for one image.

    Attributes:
        cfg, metadata: of the model and of its classes.
        image: H x W x 3 uint8 RGB.
        frame: sizes of canvas, image and output.
        pred_logits: 1 x Q x (K + 1).
        scores, labels: Q.
        mask_logits: Q x H2 x W2.
        box_attention: Q x M x h x w.
    """

    cfg: CfgNode
    metadata: Metadata
    image: np.ndarray
    frame: Frame
    pred_logits: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    mask_logits: torch.Tensor
    box_attention: torch.Tensor

    @torch.no_grad()
    def view(self, score_thresh: float, min_area: int) -> View:
        """Run the panoptic inference only, without the network.

        Args:
            score_thresh: ``MODEL.DETR.TEST.SCORE_THRESH``.
            min_area: ``MODEL.DETR.TEST.MIN_SEGMENT_AREA``, in pixels of the image.

        Raises:
            UserError: one of them is out of range.
        """
        rule = panoptic_rule(self.cfg, self.metadata, score_thresh, min_area)
        kept = rule.keep(self.pred_logits)[0].cpu().nonzero()[:, 0]
        masks = self.mask_logits[kept.to(self.mask_logits.device)]
        ids, segments = rule(masks, self.scores[kept], self.labels[kept], self.frame)
        queries = []
        if segments:
            owner = kept[argmax_at_output(masks, self.frame).cpu()]
            for segment in segments:
                won = torch.bincount(owner[ids.cpu() == segment["id"]], minlength=len(self.labels))
                won = won * (self.labels == segment["category_id"])
                queries.append(int(won.argmax()))
        ids = ids.cpu().numpy()
        picture = draw_panoptic(self.image, ids, segments, self.metadata, min_size=_SIDE)
        return View(self, ids, segments, queries, picture)


@torch.no_grad()
def analyze(predictor: Predictor, image: np.ndarray) -> Analysis:
    """Run the network on one image, H x W x 3 uint8 RGB."""
    start = time.perf_counter()
    model, cfg, metadata = predictor.model, predictor.cfg, predictor.metadata
    images = model.preprocess([predictor.prepare(image[:, :, ::-1])])
    detections = model.detect(images)
    selection = model.select(detections)
    # Masks of every query that any threshold can keep.
    logits = detections.pred_logits[-1]
    queries = panoptic_rule(cfg, metadata, 0.0, 0).keep(logits)[0].cpu().nonzero()[:, 0]
    masks = model.predict_masks(detections, torch.zeros_like(queries), queries)
    rows = queries.to(model.device)
    attention = model.bbox_attention(
        detections.hs[-1][:, rows], detections.memory, detections.padding
    )
    frame = Frame(tuple(images.tensor.shape[-2:]), tuple(images.image_sizes[0]), image.shape[:2])
    size, seconds = "{1} x {0}".format(*image.shape), time.perf_counter() - start
    logger.info("Network: one image of %s pixels, %.1f s.", size, seconds)
    return Analysis(
        cfg,
        metadata,
        image,
        frame,
        logits[:, rows],
        selection.scores[0, queries],
        selection.labels[0, queries],
        masks,
        attention[0],
    )


def panoptic_rule(
    cfg: CfgNode, metadata: Metadata, score_thresh: float, min_area: int
) -> nn.Module:
    """Build the panoptic inference of the config with other thresholds.

    Raises:
        UserError: one of them is out of range.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETR.TEST.SCORE_THRESH = float(score_thresh)
    cfg.MODEL.DETR.TEST.MIN_SEGMENT_AREA = int(min_area)
    return build_panoptic_inference(cfg, thing_class_ids(metadata))


def read_upload(path: str) -> np.ndarray:
    """Read an uploaded image. Its pixels are decoded only if it is small enough.

    Args:
        path: the file on this machine. The server has checked its size in bytes.

    Returns:
        H x W x 3 uint8 RGB.

    Raises:
        UserError: it is too large or not an image. The message has no paths of this machine.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
        if width * height <= MAX_MEGAPIXELS * 1e6:
            return read_image(path, "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        logger.info("Refused an upload: %s", error)
        raise UserError(
            "This file cannot be read as an image: it is damaged, or of an unknown type. JPEG, "
            "PNG, WebP, BMP and TIFF work."
        ) from error
    raise UserError(
        f"The image has {width} x {height} pixels. The maximum is {MAX_MEGAPIXELS} million: make "
        "it smaller."
    )
