"""From queries to the panoptic result: the registered panoptic inference.

Shapes: Q kept queries, K classes, h x w the mask grid (stride of res2), H x W the output image.
"""

import torch
from detectron2.config import configurable
from detectron2.utils.registry import Registry
from torch import nn

from ..errors import UserError, check_value
from .mask_ops import Frame, argmax_at_output, reassign

__all__ = [
    "PANOPTIC_INFERENCE_REGISTRY",
    "DETRPanopticInference",
    "OfficialPanopticInference",
    "build_panoptic_inference",
]

PANOPTIC_INFERENCE_REGISTRY = Registry("PANOPTIC_INFERENCE")
PANOPTIC_INFERENCE_REGISTRY.__doc__ = """
Rules from queries to segments: modules built as ``rule(cfg, thing_ids)`` with two methods,
``keep(pred_logits)`` and ``forward(mask_logits, scores, labels, frame)``;
see :class:`DETRPanopticInference`.
"""


def build_panoptic_inference(cfg, thing_ids: list[int]) -> nn.Module:
    """Build the panoptic inference named by ``cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE``.

    Raises:
        UserError: it is not registered; the message lists those that are.
    """
    name = cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE
    known = ", ".join(sorted(k for k, _ in PANOPTIC_INFERENCE_REGISTRY))
    check_value(
        "MODEL.DETR.TEST.PANOPTIC_INFERENCE",
        name,
        name in PANOPTIC_INFERENCE_REGISTRY,
        f"a registered one: {known}",
    )
    return PANOPTIC_INFERENCE_REGISTRY.get(name)(cfg, thing_ids)


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
        check_value(
            "MODEL.DETR.TEST.MIN_SEGMENT_AREA", min_segment_area, min_segment_area >= 0, "0 or more"
        )
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
        empty = torch.zeros(frame.output, dtype=torch.int32, device=mask_logits.device)
        score_list, classes = scores.tolist(), labels.tolist()
        if not classes:
            return empty, []
        segments = self._segments(classes)
        owner, own_area = argmax_at_output(
            mask_logits, frame, segments if self.overlap_thresh > 0 else None
        )
        areas = self._filter(mask_logits, frame, owner, own_area, segments, score_list)
        table = torch.zeros(len(classes), dtype=torch.int32)
        info: list[dict] = []
        for i, area in areas.items():
            queries = segments[i]
            category = classes[queries[0]]
            info.append(
                {
                    "id": len(info) + 1,
                    "isthing": category in self.thing_ids,
                    "category_id": category,
                    "area": area,
                    "score": max(score_list[q] for q in queries),
                }
            )
            table[queries] = len(info)
        return table.to(owner.device)[owner], info

    def _segments(self, labels: list[int]) -> list[list[int]]:
        """The queries of each segment: one for a thing, all of its class for stuff."""
        segments: list[list[int]] = []
        stuff: dict[int, list[int]] = {}
        for query, label in enumerate(labels):
            if label in stuff:
                stuff[label].append(query)
                continue
            segments.append([query])
            if label not in self.thing_ids:
                stuff[label] = segments[-1]
        return segments

    def _filter(self, mask_logits, frame, owner, own_area, segments, scores) -> dict[int, int]:
        """Drop segments until all that are left pass; changes ``owner`` (and, in other rules,
        ``segments``) in place.

        Returns:
            areas of the segments that are left, by index in ``segments``.
        """
        alive = dict(enumerate(segments))
        while alive:
            won = torch.bincount(owner.flatten(), minlength=len(scores)).tolist()
            areas = {i: sum(won[q] for q in queries) for i, queries in alive.items()}
            dropped = self._failing(areas, own_area, segments, scores)
            if not dropped:
                return areas
            lost = [q for i in dropped for q in alive.pop(i)]
            if alive and any(won[q] for q in lost):
                reassign(mask_logits, frame, owner, lost, sorted(sum(alive.values(), [])))
        return {}

    def _failing(self, areas, own_area, segments, scores) -> list[int]:
        small = [i for i, area in areas.items() if area <= self.min_segment_area]
        if small or own_area is None:
            return small
        # One at a time, the least certain first: of two copies of an object one survives.
        weak = [i for i, area in areas.items() if area < self.overlap_thresh * own_area[i]]
        return sorted(weak, key=lambda i: max(scores[q] for q in segments[i]))[:1]


@PANOPTIC_INFERENCE_REGISTRY.register()
class OfficialPanopticInference(DETRPanopticInference):
    """The rule of the official code (``PostProcessPanoptic``), for its published PQ.

    It merges the stuff queries of one class into the first of them, and then drops the others as
    small: their pixels go to the best of all queries that are left, and nothing is merged again.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.overlap_thresh > 0:
            raise UserError(
                f"MODEL.DETR.TEST.OVERLAP_THRESH is {self.overlap_thresh}, but "
                "OfficialPanopticInference has no such rule: set it to 0, or "
                "MODEL.DETR.TEST.PANOPTIC_INFERENCE to DETRPanopticInference."
            )

    def _filter(self, mask_logits, frame, owner, own_area, segments, scores) -> dict[int, int]:
        won = torch.bincount(owner.flatten(), minlength=len(scores)).tolist()
        areas = [sum(won[q] for q in queries) for queries in segments]
        # From here on one query per segment, so there is nothing to merge.
        segments[:] = [
            queries[:1]
            for queries, area in zip(segments, areas, strict=True)
            if area > self.min_segment_area
        ]
        left = [queries[0] for queries in segments]
        lost = [q for q in range(len(scores)) if q not in left]
        if left and any(won[q] for q in lost):
            reassign(mask_logits, frame, owner, lost, left)
        return super()._filter(mask_logits, frame, owner, own_area, segments, scores)
