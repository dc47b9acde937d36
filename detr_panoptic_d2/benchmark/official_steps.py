"""The published post-processing of DETR, step by step, as the yardstick of the inference hook.

The steps and their order are those of the official ``PostProcessPanoptic`` (Carion et al. 2020,
section 4.4): masks at the network's input size, a softmax over queries there, a PIL image that is
resized, numpy areas, and everything again after each filter pass. One thing differs, so that both
sides have the same result: the queries of one stuff class are merged in every pass and stay
together, where the official code drops all but one of them after the first pass. The official PNG
at the end is left out, because our hook writes none.
"""

from collections.abc import Set

import numpy as np
import torch
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from torch.nn import functional as F


def official_panoptic(
    mask_logits: torch.Tensor,
    labels: list[int],
    thing_ids: Set[int],
    image: tuple[int, int],
    output: tuple[int, int],
    min_area: int,
) -> tuple[np.ndarray, list[dict]]:
    """One image's panoptic map.

    Args:
        mask_logits: Q x h x w of the kept queries.
        labels: their classes.
        thing_ids: classes that are things.
        image: (H, W) of the network's input.
        output: (H, W) of the result.
        min_area: segments of this many output pixels and less are dropped.

    Returns:
        the map (ids from 1, 0 is void) and one dict per segment with ``id``, ``category_id`` and
        ``area``.
    """
    masks = F.interpolate(mask_logits[:, None].float(), size=image, mode="bilinear")[:, 0]
    labels = torch.as_tensor(labels, device=masks.device)
    while len(labels):
        ids = _winners(masks, labels, thing_ids, output)
        areas = [int((ids == i).sum()) for i in range(len(labels))]
        small = [area <= min_area for area in areas]
        first = _first_of_segment(labels.tolist(), thing_ids)
        # A stuff query that was merged into another one has no pixels left, and is no segment.
        dropped = [s and first[i] == i for i, s in enumerate(small)]
        if not any(dropped):
            break
        alive = torch.tensor([not dropped[i] for i in first], device=masks.device)
        masks, labels = masks[alive], labels[alive]
    if not len(labels):
        return np.zeros(output, dtype=np.int32), []
    result = np.zeros(output, dtype=np.int32)
    segments = []
    for i in sorted(set(first)):
        segments.append({"id": len(segments) + 1, "category_id": int(labels[i]), "area": areas[i]})
        result[ids == i] = len(segments)
    return result, segments


def _winners(masks, labels, thing_ids, output) -> np.ndarray:
    """The winning query of each output pixel, stuff merged, through an RGB picture."""
    height, width = masks.shape[-2:]
    ids = masks.flatten(1).transpose(0, 1).softmax(-1).argmax(-1).view(height, width)
    for query, first in enumerate(_first_of_segment(labels.tolist(), thing_ids)):
        if first != query:
            ids.masked_fill_(ids.eq(query), first)
    picture = Image.fromarray(id2rgb(ids.cpu().numpy()))
    picture = picture.resize((output[1], output[0]), resample=Image.Resampling.NEAREST)
    return rgb2id(np.asarray(picture))


def _first_of_segment(labels: list[int], thing_ids: Set[int]) -> list[int]:
    """For each query the first one of its segment: itself for things."""
    stuff: dict[int, int] = {}
    return [
        i if label in thing_ids else stuff.setdefault(label, i) for i, label in enumerate(labels)
    ]
