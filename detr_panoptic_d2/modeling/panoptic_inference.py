"""From queries to the panoptic result: the registered panoptic inference.

Shapes: Q kept queries, K classes, h x w the mask grid (stride of res2), H x W the output image.
"""

import torch
from detectron2.config import configurable
from detectron2.utils.registry import Registry
from torch import nn

from ..errors import check_value, look_up
from .mask_ops import argmax_at_output, masks_at_output
from .structures import Frame

PANOPTIC_INFERENCE_REGISTRY = Registry("PANOPTIC_INFERENCE")
PANOPTIC_INFERENCE_REGISTRY.__doc__ = """
Rules from queries to segments: modules built as ``rule(cfg, thing_ids)`` with two methods,
``keep(pred_logits)`` and ``forward(mask_logits, scores, labels, frame)``;
see :class:`DETRPanopticInference`.
"""


def build_panoptic_inference(cfg, thing_ids: list[int]) -> nn.Module:
    """Build the panoptic inference named by ``cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE``.

    Raises:
        UserError: there is no such rule.
    """
    key, name = "MODEL.DETR.TEST.PANOPTIC_INFERENCE", cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE
    return look_up(key, name, PANOPTIC_INFERENCE_REGISTRY)(cfg, thing_ids)


@PANOPTIC_INFERENCE_REGISTRY.register()
class DETRPanopticInference(nn.Module):
    """DETR's panoptic rule (Carion et al. 2020, section 4.4): pixel-wise argmax of kept queries.

    Stuff queries of one class are one segment. Small segments (and, if asked for, segments that
    win too little of their own mask) are dropped and their pixels go to the best of the rest,
    until nothing is left to drop.
    """

    @configurable
    def __init__(
        self,
        *,
        thing_ids: list[int],
        score_thresh: float = 0.85,
        min_segment_area: int = 4,
        overlap_thresh: float = 0.0,
    ):
        """
        Args:
            thing_ids: contiguous class ids that are things.
            score_thresh: least class probability of a kept query.
            min_segment_area: segments of this many output pixels and less are dropped.
            overlap_thresh: least share of its own mask that a segment must win; 0 is off.
        """
        super().__init__()
        for key, value in (("SCORE_THRESH", score_thresh), ("OVERLAP_THRESH", overlap_thresh)):
            check_value(f"MODEL.DETR.TEST.{key}", value, 0 <= value <= 1, "a number from 0 to 1")
        key = "MODEL.DETR.TEST.MIN_SEGMENT_AREA"
        check_value(key, min_segment_area, min_segment_area >= 0, "0 or more")
        self.thing_ids = frozenset(thing_ids)
        self.score_thresh = score_thresh
        self.min_segment_area = min_segment_area
        self.overlap_thresh = overlap_thresh

    @classmethod
    def from_config(cls, cfg, thing_ids):
        test = cfg.MODEL.DETR.TEST
        return {
            "thing_ids": thing_ids,
            "score_thresh": test.SCORE_THRESH,
            "min_segment_area": test.MIN_SEGMENT_AREA,
            "overlap_thresh": test.OVERLAP_THRESH,
        }

    def keep(self, pred_logits: torch.Tensor) -> torch.Tensor:
        """Which queries count: B x N x (K + 1) logits to B x N bool."""
        scores, labels = pred_logits.float().softmax(-1).max(-1)
        no_object = pred_logits.shape[-1] - 1
        return (labels != no_object) & (scores > self.score_thresh)

    def forward(
        self, mask_logits: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, frame: Frame
    ) -> tuple[torch.Tensor, list[dict]]:
        """
        Args:
            mask_logits: Q x h x w of the kept queries.
            scores: Q class probabilities.
            labels: Q contiguous class ids.
            frame: sizes of canvas, image and output.

        Returns:
            H x W int32 map of segment ids (0 is void) and one dict per segment: ``id`` from 1,
            ``isthing``, ``category_id`` (contiguous), ``area`` (pixels of the map) and ``score``
            (the best of the segment's queries).
        """
        classes = labels.tolist()
        segments: list[dict] = []
        stuff: dict[int, dict] = {}
        for query, (category, score) in enumerate(zip(classes, scores.tolist(), strict=True)):
            if category in stuff:
                stuff[category]["queries"].append(query)
                stuff[category]["score"] = max(score, stuff[category]["score"])
                continue
            segments.append({"category_id": category, "score": score, "queries": [query]})
            if category not in self.thing_ids:
                stuff[category] = segments[-1]
        owner, segments = self._assign(mask_logits, frame, segments)
        table = torch.zeros(1 + len(classes), dtype=torch.int32)
        info: list[dict] = []
        for segment in segments:
            table[segment["queries"]] = len(info) + 1
            info.append(
                {
                    "id": len(info) + 1,
                    "isthing": segment["category_id"] in self.thing_ids,
                    **{key: segment[key] for key in ("category_id", "area", "score")},
                }
            )
        return table.to(owner.device)[owner], info

    def _assign(self, mask_logits, frame, segments) -> tuple[torch.Tensor, list[dict]]:
        """Give each pixel to a query, and drop segments until all that are left pass.

        Args:
            segments: their ``queries`` and ``score``.

        Returns:
            H x W query indices (-1: void), and the segments that are left with their ``area``.
        """
        if not segments:
            return torch.full(frame.output, -1, device=mask_logits.device), []
        if self.overlap_thresh > 0:
            masks = masks_at_output(mask_logits, frame)
            for segment in segments:
                segment["own_area"] = int(masks[segment["queries"]].any(0).sum())
        owner = _share_out(mask_logits, frame, segments)
        while dropped := self._failing(segments):
            segments = [segment for segment in segments if segment not in dropped]
            if not segments:
                return torch.full_like(owner, -1), []
            if any(segment["area"] for segment in dropped):
                owner = _share_out(mask_logits, frame, segments)
        return owner, segments

    def _failing(self, segments: list[dict]) -> list[dict]:
        small = [s for s in segments if s["area"] <= self.min_segment_area]
        if small or not self.overlap_thresh:
            return small
        # One at a time, the least certain first: of two copies of an object one survives.
        weak = [s for s in segments if s["area"] < self.overlap_thresh * s["own_area"]]
        return sorted(weak, key=lambda s: s["score"])[:1]


@PANOPTIC_INFERENCE_REGISTRY.register()
class OfficialPanopticInference(DETRPanopticInference):
    """The rule of the official code (``PostProcessPanoptic``), for its published PQ.

    It merges the stuff queries of one class into the first of them, and then drops the others as
    small: their pixels go to the best of all queries that are left, and nothing is merged again.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        key, value = "MODEL.DETR.TEST.OVERLAP_THRESH", self.overlap_thresh
        check_value(key, value, value == 0, "0 under OfficialPanopticInference")

    def _assign(self, mask_logits, frame, segments) -> tuple[torch.Tensor, list[dict]]:
        if segments:
            _share_out(mask_logits, frame, segments)
        left = [s for s in segments if s["area"] > self.min_segment_area]
        left = [{**s, "queries": s["queries"][:1]} for s in left]
        return super()._assign(mask_logits, frame, left)


def _share_out(mask_logits, frame, segments: list[dict]) -> torch.Tensor:
    """Each pixel to the query of greatest logit; sets the ``area`` of each segment."""
    queries = sorted(query for segment in segments for query in segment["queries"])
    owner = argmax_at_output(mask_logits, frame, queries)
    won = torch.bincount(owner.flatten(), minlength=len(mask_logits)).tolist()
    for segment in segments:
        segment["area"] = sum(won[query] for query in segment["queries"])
    return owner
