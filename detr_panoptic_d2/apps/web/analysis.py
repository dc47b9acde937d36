"""One image after the network: everything that the page can ask without running it again.

Shapes: H x W the image, Q the queries whose class is an object, M attention heads.
"""

import io
import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from PIL import Image
from torch import nn

from ...data.metadata import thing_class_ids
from ...engine import Predictor
from ...modeling.panoptic_inference import build_panoptic_inference
from ...visualization.draw import draw_panoptic
from ...visualization.panels import enlarge
from ..explain.context import Context, array
from ..explain.figures import Panel, draw_sheet
from ..explain.recorder import record
from ..explain.run import recordable, to_picture

logger = logging.getLogger(__name__)

# Small images are enlarged to about this shorter side, so that names can be read.
_SHORTER_SIDE = 480
# Queries of a segment whose maps are shown; only stuff can have more than one.
_MOST_QUERIES = 3
# Pixels at the top that the page lays a picture's label over.
_LABEL = 40


@dataclass
class View:
    """The panoptic result of an image at some thresholds.

    Attributes:
        ids: H x W int32 segment ids.
        segments: as the model returns them.
        kept: positions of the kept queries in the recording.
    """

    ids: np.ndarray
    segments: list[dict[str, Any]]
    kept: list[int]

    def at(self, x: int, y: int) -> dict[str, Any] | None:
        """The segment at a pixel; None on void and outside of the image."""
        height, width = self.ids.shape
        if not (0 <= x < width and 0 <= y < height):
            return None
        found = int(self.ids[y, x])
        return next((s for s in self.segments if s["id"] == found), None)


class Analysis:
    """What the network made of one image. Made by :class:`Analyzer`.

    Args:
        context: a recording of the image, with the masks of all queries whose class is an object.
    """

    def __init__(self, context: Context):
        self._context = context
        self.image = context.originals[0]
        self.metadata = context.metadata

    def view(self, score_thresh: float, min_area: int) -> View:
        """Run the panoptic inference, and nothing of the network.

        Args:
            score_thresh: ``MODEL.DETR.TEST.SCORE_THRESH``.
            min_area: ``MODEL.DETR.TEST.MIN_SEGMENT_AREA``, in pixels of the image.

        Raises:
            UserError: one of them is out of range.
        """
        recording = self._context.recording
        record, masks = recording.per_image[0], recording.mask_logits
        rule = panoptic_rule(self._context.cfg, self.metadata, score_thresh, min_area)
        keep = rule.keep(recording.detections.pred_logits[-1])[0].cpu()
        kept = keep[record.queries].nonzero()[:, 0]
        chosen = masks[kept.to(masks.device)], record.scores[kept], record.labels[kept]
        with torch.no_grad():
            ids, segments = rule(*chosen, record.frame)
        return View(ids.cpu().numpy(), segments, kept.tolist())

    def picture(self, view: View) -> np.ndarray:
        """The panoptic picture, H and W times a whole number."""
        return draw_panoptic(
            self.image, view.ids, view.segments, self.metadata, min_size=_SHORTER_SIDE
        )

    def queries(self, view: View, segment: dict[str, Any]) -> list[int]:
        """Positions of the queries that a segment is made of, best score first."""
        recording = self._context.recording
        record, masks = recording.per_image[0], recording.mask_logits
        labels, scores = record.labels.tolist(), record.scores.tolist()
        found = [k for k in view.kept if labels[k] == segment["category_id"]]
        found.sort(key=lambda k: -scores[k])
        if not segment["isthing"]:
            return found
        same = [k for k in found if scores[k] == segment["score"]]
        if len(same) < 2:
            return same
        # Of several with the very same score the one whose mask logits are greatest there.
        frame, grid = record.frame, masks.shape[-2:]
        y, x = np.nonzero(view.ids == segment["id"])
        row, column = (
            ((p + 0.5) * frame.image[d] / frame.output[d] * grid[d] / frame.canvas[d]).astype(int)
            for d, p in enumerate((y, x))
        )
        return [max(same, key=lambda k: float(array(masks[k])[row, column].mean()))]

    def mask_picture(self, view: View, segment: dict[str, Any]) -> np.ndarray:
        """The image with all but one segment faded, enlarged as :meth:`picture`."""
        inside = view.ids == segment["id"]
        faded = 255 - (255 - self.image.astype(np.float32)) * 0.25
        picture = np.where(inside[..., None], self.image, faded.round().astype(np.uint8))
        return enlarge(picture, _SHORTER_SIDE)

    def maps_picture(self, view: View, segment: dict[str, Any]) -> np.ndarray:
        """Cross-attention, mask logits and the M box-attention maps of a segment's queries."""
        context, recording = self._context, self._context.recording
        record = recording.per_image[0]
        chosen = self.queries(view, segment)[:_MOST_QUERIES]
        titles = context.query_titles(record)
        grid = tuple(recording.detections.src_proj.shape[-2:])
        cross = recording.decoder[-1].weights(0, record.queries[chosen]).mean(0).view(-1, *grid)
        rows, labels = [], []
        for k, attention in zip(chosen, array(cross), strict=True):
            logits, maps = array(recording.mask_logits[k]), array(recording.box_attention[k])
            most = max(float(np.abs(logits).max()), 1e-3)
            box = context.query_boxes(0, [k])
            panels = [
                Panel(attention, "cross-attention", bar=True, boxes=box),
                Panel(logits, "mask logits", "PuOr", (-most, most), bar=True),
            ]
            panels += [
                Panel(m, f"box attention, head {n + 1}", limits=(0, float(maps.max())), bar=True)
                for n, m in enumerate(maps)
            ]
            for i in range(0, len(panels), 5):
                rows.append(panels[i : i + 5])
                labels.append(titles[k] if i == 0 else "")
        png = draw_sheet(rows, context.aspect, width=context.width, row_labels=labels, most=200)
        sheet = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        return np.pad(sheet, ((_LABEL, 0), (0, 0), (0, 0)), constant_values=255)


class Analyzer:
    """A model that is asked about one image at a time, from any thread.

    Args:
        cfg: a config with ``MODEL.WEIGHTS``.

    Raises:
        UserError: the weights do not fit the model.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg = recordable(cfg)
        self._predictor = Predictor(self.cfg)
        self.model = self._predictor.model
        self._lock = threading.Lock()

    def __call__(self, image: np.ndarray) -> Analysis:
        """Run the network.

        Args:
            image: H x W x 3 uint8 RGB.
        """
        predictor = self._predictor
        batch = [predictor.prepare(image[:, :, ::-1])]
        # Masks of every query that some threshold could keep.
        rule = panoptic_rule(self.cfg, predictor.metadata, 0.0, 0)
        start = time.perf_counter()
        with self._lock:
            recording = record(self.model, batch, panoptic_inference=rule)
        size = "{1} x {0}".format(*image.shape)
        seconds = time.perf_counter() - start
        logger.info("Network: one image of %s pixels, %.1f s.", size, seconds)
        # The page does not show these, and they are the largest part.
        recording.detections = recording.detections._replace(features={})
        recording.encoder, recording.steps = [], {}
        return Analysis(
            Context(
                cfg=self.cfg,
                metadata=predictor.metadata,
                recording=recording,
                originals=[image],
                inputs=[to_picture(batch[0]["image"], self.cfg.INPUT.FORMAT)],
                points=[[]],
                width=1000,
            )
        )


def panoptic_rule(
    cfg: CfgNode, metadata: Metadata, score_thresh: float, min_area: int
) -> nn.Module:
    """The config's panoptic inference with other thresholds.

    Raises:
        UserError: one of them is out of range.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETR.TEST.SCORE_THRESH = float(score_thresh)
    cfg.MODEL.DETR.TEST.MIN_SEGMENT_AREA = int(min_area)
    return build_panoptic_inference(cfg, thing_class_ids(metadata))
