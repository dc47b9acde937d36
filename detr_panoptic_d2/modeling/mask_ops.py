"""Pure functions on mask logits: resizing without the padding, argmax, instances, class scores.

Shapes: Q kept queries, K classes, h x w the mask grid (stride of res2), H x W the output image.
Everything stays on the device of the masks; pixels are never looped over.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torchvision.ops import box_convert

# Values of upsampled mask logits held at one time: on a CPU few, so that no large blocks of memory
# are asked of the system; on a GPU enough to be worth a kernel.
_VALUES_PER_STRIP = {"cpu": 2**22, "cuda": 2**25}


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


def output_taps(frame: Frame, grid: Sequence[int], device: torch.device):
    """Taps of output rows and of output columns on a mask grid of size ``grid``.

    The official code upsamples logits to the network input and takes the nearest of its pixels
    for each output pixel; here only those pixels are computed, and padding is cropped away.
    """
    return [_taps(frame, grid, dimension, device) for dimension in (0, 1)]


def _taps(frame: Frame, grid: Sequence[int], dimension: int, device: torch.device):
    pixels = _source_pixels(frame.output[dimension], frame.image[dimension], device)
    return _bilinear_taps(pixels, frame.canvas[dimension], grid[dimension])


def _strip_values(device: torch.device) -> int:
    return _VALUES_PER_STRIP.get(device.type, _VALUES_PER_STRIP["cuda"])


def resize_strips(mask_logits: torch.Tensor, frame: Frame):
    """Mask logits at the output size, in strips of rows of bounded memory.

    Args:
        mask_logits: Q x h x w.
        frame: sizes of canvas, image and output.

    Yields:
        (slice of output rows, Q x rows x W float32 logits).
    """
    grid = mask_logits.shape[-2:]
    # Row numbers on the host, because slices that are made of them should not wait for a GPU.
    first, last, _ = _taps(frame, grid, 0, torch.device("cpu"))
    (top, bottom, weight), (left, right, weight_x) = output_taps(frame, grid, mask_logits.device)
    height, width = frame.output
    step = max(1, _strip_values(mask_logits.device) // (max(1, len(mask_logits)) * width))
    for start in range(0, height, step):
        part = slice(start, min(height, start + step))
        low, high = int(first[start]), int(last[part.stop - 1]) + 1
        # Columns come first in memory: rows of a matrix are gathered faster than single values.
        cells = mask_logits[:, low:high].float().permute(2, 0, 1).contiguous()
        wide = torch.lerp(cells[left], cells[right], weight_x[:, None, None])
        wide = wide.permute(1, 2, 0).contiguous()
        upper, lower = wide[:, top[part] - low], wide[:, bottom[part] - low]
        yield part, torch.lerp(upper, lower, weight[part, None])


def argmax_at_output(
    mask_logits: torch.Tensor, frame: Frame, segments: list[list[int]] | None = None
) -> tuple[torch.Tensor, list[int] | None]:
    """The query of greatest logit at every output pixel. (A softmax would not change it.)

    Args:
        mask_logits: Q x h x w, Q > 0.
        frame: sizes of canvas, image and output.
        segments: if given, the queries of each segment; the area of each segment's own mask
            (where any of its queries has a logit of at least 0) is then counted as well.

    Returns:
        H x W int64 query indices, and the own area of each segment or None.
    """
    owner = torch.empty(frame.output, dtype=torch.int64, device=mask_logits.device)
    own_area = torch.zeros((), dtype=torch.int64, device=mask_logits.device)
    for part, strip in resize_strips(mask_logits, frame):
        # On a CPU ``argmax`` over the first dimension takes seven times as long.
        owner[part] = strip.max(0).indices
        if segments is not None:
            inside = strip >= 0
            own_area = own_area + torch.stack(
                [inside[queries].any(0).sum() for queries in segments]
            )
    return owner, None if segments is None else own_area.tolist()


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
    living = torch.as_tensor(alive, device=device)
    rows, columns = output_taps(frame, mask_logits.shape[-2:], device)
    y, x = gone[owner].nonzero(as_tuple=True)
    step = max(1, _strip_values(device) // (4 * len(alive)))
    logits = mask_logits[living].float()
    for yy, xx in zip(y.split(step), x.split(step), strict=True):
        top, bottom, weight_y = (t[yy] for t in rows)
        left, right, weight_x = (t[xx] for t in columns)
        upper = torch.lerp(logits[:, top, left], logits[:, top, right], weight_x)
        lower = torch.lerp(logits[:, bottom, left], logits[:, bottom, right], weight_x)
        owner[yy, xx] = living[torch.lerp(upper, lower, weight_y).argmax(0)]


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
    scores, labels = scores.to(mask_logits.device), labels.to(mask_logits.device)
    semantic = mask_logits.new_zeros((num_classes, *frame.output), dtype=torch.float32)
    for part, strip in resize_strips(mask_logits, frame):
        semantic[:, part].index_add_(0, labels, strip.sigmoid() * scores[:, None, None])
    return semantic


def to_instances(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    labels: torch.Tensor,
    mask_logits: torch.Tensor | None,
    frame: Frame,
) -> Instances:
    """Detectron2's instances at the output size, best score first.

    Args:
        boxes: Q x 4, (cx, cy, w, h) relative to the image.
        scores, labels: Q.
        mask_logits: Q x h x w, or None for boxes alone.
        frame: sizes of canvas, image and output.
    """
    order = scores.argsort(descending=True)
    height, width = frame.output
    scale = boxes.new_tensor([width, height, width, height], dtype=torch.float32)
    result = Instances(frame.output)
    result.pred_boxes = Boxes(box_convert(boxes[order].float(), "cxcywh", "xyxy") * scale)
    result.pred_boxes.clip(frame.output)
    result.scores = scores[order]
    result.pred_classes = labels[order]
    if mask_logits is not None:
        result.pred_masks = masks_at_output(mask_logits[order], frame)
    return result


def target_masks(instances: Instances) -> torch.Tensor:
    """The annotated masks T x H x W (bool) of one image.

    Args:
        instances: with ``gt_masks`` in any form that Detectron2's mappers give: ``BitMasks``,
            ``PolygonMasks``, or a tensor (Mask2Former's mapper).
    """
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks.polygons, *instances.image_size)
    if isinstance(masks, BitMasks):
        masks = masks.tensor
    return masks.to(instances.gt_classes.device, torch.bool)
