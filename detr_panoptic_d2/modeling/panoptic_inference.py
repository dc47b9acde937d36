"""Panoptic inference: from queries with classes and masks to segments.

Shapes: Q kept queries, K classes, h x w the mask grid (stride of res2), H x W the output image.
"""

from functools import cached_property
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.utils.registry import Registry
from torch import nn
from torch.nn import functional as F

from ..errors import check_value, look_up
from .mask_ops import argmax_at_output, crop_padding, masks_at_output
from .structures import Frame

PANOPTIC_INFERENCE_REGISTRY = Registry("PANOPTIC_INFERENCE")
PANOPTIC_INFERENCE_REGISTRY.__doc__ = """
Rules from queries to segments: modules built as ``rule(cfg, thing_ids)`` with two methods,
``keep(pred_logits)`` and ``forward(mask_logits, scores, labels, frame)``;
see :class:`DETRPanopticInference`.
"""


def build_panoptic_inference(cfg, thing_ids: list[int]) -> nn.Module:
    """Build the panoptic inference named by ``cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE``."""
    key, name = "MODEL.DETR.TEST.PANOPTIC_INFERENCE", cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE
    return look_up(key, name, PANOPTIC_INFERENCE_REGISTRY)(cfg, thing_ids)


class PixelAssigner:
    """Assigns each output pixel of one image to the query of greatest value (Q x h x w). The mask
    of a query is where its logit is above 0."""

    def __init__(self, pixel_values: torch.Tensor, mask_logits: torch.Tensor, frame: Frame):
        self.pixel_values, self.mask_logits, self.frame = pixel_values, mask_logits, frame
        self._mask_areas: dict[tuple[int, ...], int] = {}

    @cached_property
    def _masks(self) -> torch.Tensor:
        return masks_at_output(self.mask_logits, self.frame)

    def assign(self, queries: list[int]) -> tuple[torch.Tensor, list[int]]:
        """Assign every pixel to one of some queries (ascending indices, at least one).

        Returns:
            H x W query indices, and the number of pixels of each of the Q queries.
        """
        owner = argmax_at_output(self.pixel_values, self.frame, queries)
        return owner, torch.bincount(owner.flatten(), minlength=len(self.pixel_values)).tolist()

    def mask_area(self, queries: list[int]) -> int:
        """Count the output pixels in the union of the masks of the given queries."""
        key = tuple(queries)
        if key not in self._mask_areas:
            self._mask_areas[key] = int(self._masks[queries].any(0).sum())
        return self._mask_areas[key]


@PANOPTIC_INFERENCE_REGISTRY.register()
class DETRPanopticInference(nn.Module):
    """DETR's panoptic inference (Carion et al. 2020, section 4.4): argmax over the kept queries.

    The stuff queries of one class form one segment. Segments that are too small, or that win too
    small a part of their own mask, are dropped. Their pixels go to the remaining segments. This is
    repeated until no segment is dropped.
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
            score_thresh: a query is kept if its class probability is above this value.
            min_segment_area: segments of at most this many output pixels are dropped.
            overlap_thresh: smallest allowed part of its own mask that a segment wins. 0: off.
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
        """Choose the queries whose masks are needed: B x N x (K + 1) logits to B x N bool."""
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
            ``isthing``, ``category_id`` (contiguous), ``score`` (the highest of the segment's
            queries) and ``area`` (pixels of the map).
        """
        segments: list[dict] = []
        if len(labels):
            assigner = PixelAssigner(self.pixel_values(mask_logits, scores), mask_logits, frame)
            ranking = self.rank_masks(mask_logits, scores, frame)
            queries = self.remove_duplicates(ranking, list(range(len(labels))))
            owner, segments = self.find_segments(
                assigner, scores.tolist(), labels.tolist(), queries
            )
        if not segments:
            return torch.zeros(frame.output, dtype=torch.int32, device=mask_logits.device), []
        segment_ids = torch.zeros(len(labels), dtype=torch.int32)
        info: list[dict] = []
        for i, segment in enumerate(segments, start=1):
            segment_ids[segment.pop("queries")] = i
            info.append({"id": i, "isthing": segment["category_id"] in self.thing_ids, **segment})
        return segment_ids.to(owner.device)[owner], info

    def pixel_values(self, mask_logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the Q x h x w values whose argmax decides to which query a pixel goes."""
        return mask_logits

    def rank_masks(self, mask_logits: torch.Tensor, scores: torch.Tensor, frame: Frame) -> Any:
        """Return what :meth:`remove_duplicates` needs to know about the masks. Here: nothing."""
        return None

    def remove_duplicates(self, ranking: Any, queries: list[int]) -> list[int]:
        """Return those of the queries that compete for pixels, ascending. Here: all of them."""
        return queries

    def find_segments(
        self, assigner: PixelAssigner, scores: list[float], labels: list[int], queries: list[int]
    ) -> tuple[Any, list[dict]]:
        """Group queries into segments, and drop segments until all remaining ones are large enough.

        Args:
            assigner: assigns pixels to queries.
            scores, labels: of all Q queries; ``queries`` take part.

        Returns:
            the first result of ``assigner.assign`` for the remaining queries (None if no segment
            remains), and the segments: ``category_id``, ``score``, ``queries`` and ``area``.
        """
        segments: dict[Any, dict] = {}
        for query in queries:
            category = labels[query]
            key = ("thing", query) if category in self.thing_ids else ("stuff", category)
            new = {"category_id": category, "score": 0.0, "queries": []}
            segment = segments.setdefault(key, new)
            segment["queries"].append(query)
            segment["score"] = max(segment["score"], scores[query])
        return self._drop_segments(assigner, list(segments.values()))

    def _drop_segments(self, assigner: PixelAssigner, segments: list[dict]) -> tuple[Any, list]:
        owner = _assign_pixels(assigner, segments) if segments else None
        while dropped := self._segments_to_drop(assigner, segments):
            segments = [segment for segment in segments if segment not in dropped]
            if not segments:
                return None, []
            if any(segment["area"] for segment in dropped):
                owner = _assign_pixels(assigner, segments)
        return owner, segments

    def _segments_to_drop(self, assigner: PixelAssigner, segments: list[dict]) -> list[dict]:
        small = [s for s in segments if s["area"] <= self.min_segment_area]
        if small or not self.overlap_thresh:
            return small
        # Only the one with the lowest score: of two copies of an object one must remain.
        min_area = [self.overlap_thresh * assigner.mask_area(s["queries"]) for s in segments]
        covered = [s for s, area in zip(segments, min_area, strict=True) if s["area"] < area]
        return sorted(covered, key=lambda s: s["score"])[:1]


@PANOPTIC_INFERENCE_REGISTRY.register()
class OfficialPanopticInference(DETRPanopticInference):
    """The rule of the official code (``PostProcessPanoptic``), for its published PQ.

    It merges the stuff queries of one class into the first of them and then drops the others as
    small. Their pixels go to the best of all remaining queries, and nothing is merged again.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        key, value = "MODEL.DETR.TEST.OVERLAP_THRESH", self.overlap_thresh
        check_value(key, value, value == 0, "0 under OfficialPanopticInference")

    def _drop_segments(self, assigner, segments):
        if segments:
            _assign_pixels(assigner, segments)
        large = [s for s in segments if s["area"] > self.min_segment_area]
        return super()._drop_segments(assigner, [{**s, "queries": s["queries"][:1]} for s in large])


@PANOPTIC_INFERENCE_REGISTRY.register()
class MaskNMSPanopticInference(DETRPanopticInference):
    """Non-maximum suppression on masks, then DETR's argmax over the remaining queries.

    1. Keep every query whose best object class has a probability s above ``SCORE_THRESH``, also
       if no-object is more probable.
    2. Order the queries by s * p^2, where p is the mean mask probability inside the query's mask
       (logit above 0). This is the order of mask-wise merging in Panoptic SegFormer (Li et al.
       2021).
    3. Go through the queries in this order. Remove a query if less than ``OVERLAP_THRESH`` of its
       mask lies outside the masks of the remaining queries before it.
    4. Assign every pixel to the remaining query with the greatest product of s and mask
       probability. Mask-wise merging gives it to the first mask that contains it, or to none.
    5. Merge stuff and drop small segments, as :class:`DETRPanopticInference` does.

    Masks are compared on the mask grid, on the device. The host waits for the device once.
    """

    def keep(self, pred_logits: torch.Tensor) -> torch.Tensor:
        return pred_logits.float().softmax(-1)[..., :-1].amax(-1) > self.score_thresh

    def pixel_values(self, mask_logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.to(mask_logits.device, non_blocking=True)
        # The logarithm of the product: it has the same argmax and its resizing is more accurate.
        return F.logsigmoid(mask_logits.float()) + scores.log()[:, None, None]

    def rank_masks(self, mask_logits, scores, frame):
        """Return the order of the Q queries, and in this order their masks on the grid (Q x cells)
        and the areas of these."""
        logits = crop_padding(mask_logits, frame).float().flatten(1)
        masks = logits > 0
        areas = masks.count_nonzero(1)
        mean_probability = (logits.sigmoid() * masks).sum(1) / areas.clamp(min=1)
        scores = scores.to(logits.device, non_blocking=True)
        order = (scores * mean_probability**2).argsort(descending=True, stable=True)
        return order, masks[order], areas[order]

    def remove_duplicates(self, ranking, queries):
        order, masks, areas = ranking
        if len(queries) < len(order):
            among = torch.isin(order, order.new_tensor(queries))
            order, masks, areas = order[among], masks[among], areas[among]
        min_free, remains = self.overlap_thresh * areas, areas > 0
        covered = masks.new_zeros(masks.shape[1])
        for i, mask in enumerate(masks):
            free = mask & ~covered
            remains[i] &= free.count_nonzero() >= min_free[i]
            covered |= free & remains[i]
        # One transfer.
        return sorted(query for query in torch.where(remains, order, -1).tolist() if query >= 0)

    def _segments_to_drop(self, assigner, segments):
        return [s for s in segments if s["area"] <= self.min_segment_area]


def _assign_pixels(assigner: PixelAssigner, segments: list[dict]) -> Any:
    """Assign every pixel to one of the segments' queries, and set the ``area`` of each segment."""
    queries = sorted(query for segment in segments for query in segment["queries"])
    owner, areas = assigner.assign(queries)
    for segment in segments:
        segment["area"] = sum(areas[query] for query in segment["queries"])
    return owner
