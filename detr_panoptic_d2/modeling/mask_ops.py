"""Pure functions on mask logits: resizing without the padding, argmax, instances, class scores.

Shapes: Q kept queries, K classes, h x w the mask grid (stride of res2), H x W the output image.
Everything stays on the device of the masks; pixels are never looped over.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torchvision.ops import box_convert

from .structures import Frame

# Values of upsampled mask logits held at one time: on a CPU few, so that no large blocks of memory
# are asked of the system; on a GPU enough to be worth a kernel.
_VALUES_PER_STRIP = {"cpu": 2**20, "cuda": 2**25}


def _taps(frame: Frame, grid: Sequence[int], dimension: int):
    """Grid cells and weights of which the output's rows (0) or columns (1) are made.

    The official code upsamples logits bilinearly to the network input and takes the nearest of its
    pixels for each output pixel. Here only those pixels are computed, without the padding.

    Returns:
        lower cell, upper cell (int64) and weight of the upper one (float32), one per row or column,
        on the host: not every device has float64.
    """
    canvas, image, output = (size[dimension] for size in frame)
    centre = (torch.arange(output, dtype=torch.float64) + 0.5) * (image / output)
    pixel = centre.floor().clamp(max=image - 1)
    position = ((pixel + 0.5) * (grid[dimension] / canvas) - 0.5).clamp(min=0)
    lower = position.floor().clamp(max=grid[dimension] - 1)
    upper = (lower + 1).clamp(max=grid[dimension] - 1)
    return lower.long(), upper.long(), (position - lower).float()


def resize_strips(mask_logits: torch.Tensor, frame: Frame):
    """Mask logits at the output size, in strips of rows of bounded memory.

    Args:
        mask_logits: Q x h x w.
        frame: sizes of canvas, image and output.

    Yields:
        (slice of output rows, Q x rows x W float32 logits).
    """
    grid, device = mask_logits.shape[-2:], mask_logits.device
    rows = _taps(frame, grid, 0)
    # Slices are made of row numbers on the host, so that they do not wait for a GPU.
    first, last = rows[0].tolist(), rows[1].tolist()
    top, bottom, weight = (x.to(device, non_blocking=True) for x in rows)
    left, right, weight_x = (x.to(device, non_blocking=True) for x in _taps(frame, grid, 1))
    height, width = frame.output
    values = _VALUES_PER_STRIP.get(device.type, _VALUES_PER_STRIP["cuda"])
    step = max(1, values // (max(1, len(mask_logits)) * width))
    for start in range(0, height, step):
        part = slice(start, min(height, start + step))
        low, high = first[start], last[part.stop - 1] + 1
        # Columns come first in memory: rows of a matrix are gathered faster than single values.
        cells = mask_logits[:, low:high].float().permute(2, 0, 1).contiguous()
        wide = torch.lerp(cells[left], cells[right], weight_x[:, None, None])
        wide = wide.permute(1, 2, 0).contiguous()
        upper, lower = wide[:, top[part] - low], wide[:, bottom[part] - low]
        yield part, torch.lerp(upper, lower, weight[part, None])


def values_at_pixels(mask_logits: torch.Tensor, frame: Frame, pixels: torch.Tensor) -> torch.Tensor:
    """Mask logits at some pixels of the output: those that :func:`resize_strips` gives there.

    Args:
        mask_logits: Q x h x w.
        frame: sizes of canvas, image and output.
        pixels: P indices into the flat H x W output.

    Returns:
        Q x P float32.
    """
    grid, device = mask_logits.shape[-2:], mask_logits.device
    rows, columns = pixels // frame.output[1], pixels % frame.output[1]
    top, bottom, weight = (x.to(device)[rows] for x in _taps(frame, grid, 0))
    left, right, weight_x = (x.to(device)[columns] for x in _taps(frame, grid, 1))
    cells = mask_logits.float().flatten(1)

    def at_row(row: torch.Tensor) -> torch.Tensor:
        first = row * grid[1]
        return torch.lerp(cells[:, first + left], cells[:, first + right], weight_x)

    return torch.lerp(at_row(top), at_row(bottom), weight)


def argmax_at_output(
    mask_logits: torch.Tensor, frame: Frame, queries: list[int] | None = None
) -> torch.Tensor:
    """The query of greatest logit at every output pixel. (A softmax would not change it.)

    Args:
        mask_logits: Q x h x w, Q > 0.
        frame: sizes of canvas, image and output.
        queries: those that take part, ascending; None: all.

    Returns:
        H x W int64 query indices.
    """
    owner = torch.empty(frame.output, dtype=torch.int64, device=mask_logits.device)
    chosen = None
    if queries is not None and len(queries) < len(mask_logits):
        chosen = torch.as_tensor(queries, device=mask_logits.device)
        mask_logits = mask_logits[chosen]
    for part, strip in resize_strips(mask_logits, frame):
        # On a CPU ``argmax`` over the first dimension takes seven times as long.
        owner[part] = strip.max(0).indices
    return owner if chosen is None else chosen[owner]


def masks_at_output(mask_logits: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Binary masks Q x H x W (probability above one half) of Q x h x w logits."""
    masks = torch.empty(
        (len(mask_logits), *frame.output), dtype=torch.bool, device=mask_logits.device
    )
    for part, strip in resize_strips(mask_logits, frame):
        masks[:, part] = strip > 0
    return masks


def semantic_scores(
    mask_logits: torch.Tensor, probabilities: torch.Tensor, frame: Frame
) -> torch.Tensor:
    """Class scores per pixel: the sum over queries of class probability times mask probability
    (Cheng et al. 2021, MaskFormer, section 3.4).

    Args:
        mask_logits: Q x h x w of all queries.
        probabilities: Q x K class probabilities, without no-object.
        frame: sizes of canvas, image and output.

    Returns:
        K x H x W float32.
    """
    classes = probabilities.float().T
    semantic = mask_logits.new_empty((len(classes), *frame.output), dtype=torch.float32)
    for part, strip in resize_strips(mask_logits, frame):
        semantic[:, part] = (classes @ strip.sigmoid().flatten(1)).unflatten(1, strip.shape[1:])
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
