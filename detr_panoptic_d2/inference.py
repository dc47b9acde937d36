"""From queries to results: the panoptic inference hook and the pure functions below it.

Shapes: Q kept queries, K classes, h x w the mask grid (stride of res2), H x W the output image.
Everything stays on the device of the masks; pixels are never looped over.
"""

from typing import NamedTuple

import torch
from detectron2.config import configurable
from detectron2.utils.registry import Registry
from torch import nn

PANOPTIC_INFERENCE_REGISTRY = Registry("PANOPTIC_INFERENCE")
PANOPTIC_INFERENCE_REGISTRY.__doc__ = """
Panoptic inference hooks: modules built as ``hook(cfg, thing_ids)`` with two methods,
``keep(pred_logits)`` and ``forward(mask_logits, scores, labels, frame)``;
see :class:`DETRPanopticInference`.
"""

# Values of upsampled mask logits held at one time.
_VALUES_PER_STRIP = 2**25


class Frame(NamedTuple):
    """Where an image lies on the mask grid, all as (height, width) in pixels.

    Attributes:
        canvas: size of the padded network input, which the mask grid covers.
        image: size of the image on the canvas, without padding.
        output: size that results are wanted in.
    """

    canvas: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]


def build_panoptic_inference(cfg, thing_ids: list[int]) -> nn.Module:
    """Build the hook named by ``cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE``.

    Raises:
        KeyError: if no such hook is registered; the message lists those that are.
    """
    name = cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE
    if name not in PANOPTIC_INFERENCE_REGISTRY:
        known = ", ".join(sorted(k for k, _ in PANOPTIC_INFERENCE_REGISTRY))
        raise KeyError(
            f"MODEL.DETR.TEST.PANOPTIC_INFERENCE is {name!r}, but the registered hooks are: {known}"
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
        num_classes: int,
        score_thresh: float = 0.85,
        min_segment_area: int = 4,
        overlap_thresh: float = 0.0,
    ):
        """
        Args:
            thing_ids: contiguous class ids that are things.
            num_classes: K.
            score_thresh: least class probability of a kept query.
            min_segment_area: segments of this many output pixels and less are dropped.
            overlap_thresh: least share of its own mask that a segment must win; 0 is off.
        """
        super().__init__()
        for key, value in (("SCORE_THRESH", score_thresh), ("OVERLAP_THRESH", overlap_thresh)):
            if not 0 <= value <= 1:
                raise ValueError(f"MODEL.DETR.TEST.{key} must lie in [0, 1], got {value}")
        if min_segment_area < 0:
            raise ValueError(
                f"MODEL.DETR.TEST.MIN_SEGMENT_AREA must be 0 or more, got {min_segment_area}"
            )
        self.thing_ids = frozenset(thing_ids)
        self.num_classes = num_classes
        self.score_thresh = score_thresh
        self.min_segment_area = min_segment_area
        self.overlap_thresh = overlap_thresh

    @classmethod
    def from_config(cls, cfg, thing_ids):
        test = cfg.MODEL.DETR.TEST
        return {
            "thing_ids": thing_ids,
            "num_classes": cfg.MODEL.DETR.NUM_CLASSES,
            "score_thresh": test.SCORE_THRESH,
            "min_segment_area": test.MIN_SEGMENT_AREA,
            "overlap_thresh": test.OVERLAP_THRESH,
        }

    def keep(self, pred_logits: torch.Tensor) -> torch.Tensor:
        """Which queries count: B x N x (K + 1) logits to B x N bool."""
        scores, labels = pred_logits.float().softmax(-1).max(-1)
        return (labels != self.num_classes) & (scores > self.score_thresh)

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
        scores, labels = scores.tolist(), labels.tolist()
        if not labels:
            return empty, []
        groups = self._groups(labels)
        owner, own_area = argmax_at_output(
            mask_logits, frame, groups if self.overlap_thresh > 0 else None
        )
        alive = self._filter(mask_logits, frame, owner, own_area, groups, scores)
        if alive is None:
            return empty, []
        areas = alive
        table = torch.zeros(len(labels), dtype=torch.int32)
        info, ids = [], {}
        for group, area in areas.items():
            members = [q for q, g in enumerate(groups) if g == group]
            ids[group] = len(info) + 1
            info.append(
                {
                    "id": ids[group],
                    "isthing": labels[group] in self.thing_ids,
                    "category_id": labels[group],
                    "area": area,
                    "score": max(scores[q] for q in members),
                }
            )
            table[members] = ids[group]
        return table.to(owner.device)[owner.long()], info

    def _groups(self, labels: list[int]) -> list[int]:
        """The segment of each query, named by its first query: stuff of one class is merged."""
        first = {}
        return [
            q if label in self.thing_ids else first.setdefault(label, q)
            for q, label in enumerate(labels)
        ]

    def _filter(self, mask_logits, frame, owner, own_area, groups, scores):
        """Drop segments until all that are left pass; changes ``owner`` in place.

        Returns:
            areas of the segments that are left, keyed by group; None if there are none.
        """
        members = {g: [q for q, x in enumerate(groups) if x == g] for g in dict.fromkeys(groups)}
        num_queries = len(groups)
        alive = list(range(num_queries))
        while True:
            won = torch.bincount(owner.flatten(), minlength=num_queries).tolist()
            areas = {g: sum(won[q] for q in qs) for g, qs in members.items()}
            dropped = self._failing(areas, own_area, members, scores)
            if not dropped:
                return areas
            lost = [q for g in dropped for q in members.pop(g)]
            if not members:
                return None
            alive = [q for q in alive if q not in lost]
            if any(won[q] for q in lost):
                reassign(mask_logits, frame, owner, lost, alive)

    def _failing(self, areas, own_area, members, scores) -> list[int]:
        small = [g for g, area in areas.items() if area <= self.min_segment_area]
        if small or own_area is None:
            return small
        # One at a time, the least certain first: of two copies of an object one survives.
        weak = [g for g, area in areas.items() if area < self.overlap_thresh * own_area[g]]
        return sorted(weak, key=lambda g: max(scores[q] for q in members[g]))[:1]


def _source_pixels(size: int, image: int, device: torch.device) -> torch.Tensor:
    """For each of ``size`` output pixels the nearest of ``image`` network-input pixels."""
    centre = (torch.arange(size, device=device, dtype=torch.float64) + 0.5) * (image / size)
    return centre.floor().clamp(max=image - 1)


def _bilinear_taps(pixels: torch.Tensor, canvas: int, grid: int):
    """Grid cells and weights that bilinear upsampling from ``grid`` to ``canvas`` cells
    (``align_corners=False``) uses at the given canvas pixels.

    Returns:
        lower cell, upper cell (int64) and weight of the upper one (float32), like ``pixels``.
    """
    position = ((pixels + 0.5) * (grid / canvas) - 0.5).clamp(min=0)
    lower = position.floor().clamp(max=grid - 1)
    upper = (lower + 1).clamp(max=grid - 1)
    return lower.long(), upper.long(), (position - lower).float()


def output_taps(frame: Frame, grid: tuple[int, int], device: torch.device):
    """Taps of output rows and of output columns on a mask grid of size ``grid``.

    The official code upsamples logits to the network input and takes the nearest of its pixels
    for each output pixel; here only those pixels are computed, and padding is cropped away.
    """
    return [
        _bilinear_taps(_source_pixels(frame.output[d], frame.image[d], device), frame.canvas[d], g)
        for d, g in enumerate(grid)
    ]


def resize_strips(mask_logits: torch.Tensor, frame: Frame):
    """Mask logits at the output size, in strips of rows of bounded memory.

    Args:
        mask_logits: Q x h x w.
        frame: sizes of canvas, image and output.

    Yields:
        (slice of output rows, Q x rows x W float32 logits).
    """
    rows, columns = output_taps(frame, mask_logits.shape[-2:], mask_logits.device)
    mask_logits = mask_logits.float()
    left, right, weight = columns
    wide = torch.lerp(mask_logits[:, :, left], mask_logits[:, :, right], weight)
    height, width = frame.output
    step = max(1, _VALUES_PER_STRIP // (max(1, len(mask_logits)) * width))
    top, bottom, weight = rows
    for start in range(0, height, step):
        part = slice(start, min(height, start + step))
        strip = torch.lerp(wide[:, top[part]], wide[:, bottom[part]], weight[part, None])
        yield part, strip


def argmax_at_output(
    mask_logits: torch.Tensor, frame: Frame, groups: list[int] | None = None
) -> tuple[torch.Tensor, dict[int, int] | None]:
    """The query of greatest logit at every output pixel. (A softmax would not change it.)

    Args:
        mask_logits: Q x h x w, Q > 0.
        frame: sizes of canvas, image and output.
        groups: if given, the segment of each query; the area of each segment's own mask
            (where any of its queries has a logit of at least 0) is then counted as well.

    Returns:
        H x W int64 query indices, and the own areas by group or None.
    """
    owner = torch.empty(frame.output, dtype=torch.int64, device=mask_logits.device)
    members = None if groups is None else {g: [] for g in groups}
    own_area = None
    if groups is not None:
        for q, g in enumerate(groups):
            members[g].append(q)
        own_area = torch.zeros(len(members), dtype=torch.int64, device=mask_logits.device)
    for part, strip in resize_strips(mask_logits, frame):
        owner[part] = strip.argmax(0)
        if groups is not None:
            inside = strip >= 0
            own_area += torch.stack([inside[qs].any(0).sum() for qs in members.values()])
    if groups is None:
        return owner, None
    return owner, dict(zip(members, own_area.tolist(), strict=True))


def reassign(
    mask_logits: torch.Tensor, frame: Frame, owner: torch.Tensor, lost: list[int], alive: list[int]
) -> None:
    """Give the pixels of lost queries to the best living query; changes ``owner`` in place.

    Args:
        mask_logits: Q x h x w.
        frame: sizes of canvas, image and output.
        owner: H x W query indices.
        lost, alive: query indices.
    """
    device = owner.device
    gone = torch.zeros(len(mask_logits), dtype=torch.bool, device=device)
    gone[lost] = True
    alive = torch.as_tensor(alive, device=device)
    rows, columns = output_taps(frame, mask_logits.shape[-2:], device)
    y, x = gone[owner].nonzero(as_tuple=True)
    step = max(1, _VALUES_PER_STRIP // (4 * len(alive)))
    living = mask_logits[alive].float()
    for yy, xx in zip(y.split(step), x.split(step), strict=True):
        top, bottom, weight_y = (t[yy] for t in rows)
        left, right, weight_x = (t[xx] for t in columns)
        upper = torch.lerp(living[:, top, left], living[:, top, right], weight_x)
        lower = torch.lerp(living[:, bottom, left], living[:, bottom, right], weight_x)
        owner[yy, xx] = alive[torch.lerp(upper, lower, weight_y).argmax(0)]


def masks_at_output(mask_logits: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Binary masks Q x H x W (probability above one half) of Q x h x w logits."""
    masks = torch.empty(
        (len(mask_logits), *frame.output), dtype=torch.bool, device=mask_logits.device
    )
    for part, strip in resize_strips(mask_logits, frame):
        masks[:, part] = strip > 0
    return masks


def semantic_scores(
    mask_logits: torch.Tensor,
    scores: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    frame: Frame,
) -> torch.Tensor:
    """Class scores per pixel: the sum over queries of class probability times mask probability
    (Cheng et al. 2021, MaskFormer, section 3.4), restricted to the kept queries.

    Returns:
        K x H x W float32.
    """
    semantic = mask_logits.new_zeros((num_classes, *frame.output), dtype=torch.float32)
    for part, strip in resize_strips(mask_logits, frame):
        semantic[:, part].index_add_(0, labels, strip.sigmoid() * scores[:, None, None])
    return semantic
