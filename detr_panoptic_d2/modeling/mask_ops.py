"""Pure functions on mask logits: resizing without the padding, argmax, instances, class scores.

Shapes: Q kept queries, K classes, h x w the mask grid (stride of res2), H x W the output image. A
``frame`` has the sizes of canvas, image and output. Everything stays on the device of the masks.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torchvision.ops import box_convert

from .structures import Frame

# Number of upsampled mask logits that exist at one time. On a CPU larger blocks of memory are
# slower, because the allocator returns them to the system after each use.
_VALUES_PER_STRIP = {"cpu": 2**20, "cuda": 2**25}


def _interpolation_cells(frame: Frame, grid: Sequence[int], dimension: int):
    """Grid cells and weights to interpolate the output's rows (0) or columns (1) from.

    The official code upsamples logits bilinearly to the network input and takes the nearest of its
    pixels for each output pixel. Here only those pixels are computed, without the padding.

    Returns:
        lower cell, upper cell (int64) and weight of the upper cell (float32) of each row or
        column, on the host, because not every device supports float64.
    """
    # Sizes are tensors while a model is traced.
    canvas, image, output = (int(size[dimension]) for size in frame)
    num_cells = int(grid[dimension])
    pixel = np.minimum(np.floor((np.arange(output) + 0.5) * (image / output)), image - 1)
    position = np.maximum((pixel + 0.5) * (num_cells / canvas) - 0.5, 0)
    lower = np.minimum(np.floor(position), num_cells - 1).astype(np.int64)
    upper = np.minimum(lower + 1, num_cells - 1)
    return lower, upper, (position - lower).astype(np.float32)


def crop_padding(mask_logits: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Crop mask logits Q x h x w to the cells that the image covers, wholly or in part."""
    sizes = zip(frame.image, mask_logits.shape[1:], frame.canvas, strict=True)
    height, width = (-(-image * cells // canvas) for image, cells, canvas in sizes)
    return mask_logits[:, :height, :width]


def resize_strips(mask_logits: torch.Tensor, frame: Frame):
    """Upsample mask logits Q x h x w to the output size, in strips of rows to bound the memory.

    Yields:
        (slice of output rows, Q x rows x W float32 logits).
    """
    grid, device = mask_logits.shape[-2:], mask_logits.device
    rows, columns = (_interpolation_cells(frame, grid, i) for i in (0, 1))
    # Slices need row numbers on the host; a copy from a GPU would wait for it.
    first, last = rows[0].tolist(), rows[1].tolist()
    top, bottom, weight = (torch.from_numpy(x).to(device, non_blocking=True) for x in rows)
    left, right, weight_x = (torch.from_numpy(x).to(device, non_blocking=True) for x in columns)
    height, width = frame.output
    values = _VALUES_PER_STRIP.get(device.type, _VALUES_PER_STRIP["cuda"])
    step = max(1, values // (max(1, len(mask_logits)) * width))
    for start in range(0, height, step):
        part = slice(start, min(height, start + step))
        low, high = first[start], last[part.stop - 1] + 1
        # Columns come first in memory, because gathering whole rows is faster than single values.
        cells = mask_logits[:, low:high].float().permute(2, 0, 1).contiguous()
        wide = torch.lerp(cells[left], cells[right], weight_x[:, None, None])
        wide = wide.permute(1, 2, 0).contiguous()
        upper, lower = wide[:, top[part] - low], wide[:, bottom[part] - low]
        yield part, torch.lerp(upper, lower, weight[part, None])


def values_at_pixels(mask_logits: torch.Tensor, frame: Frame, pixels: torch.Tensor) -> torch.Tensor:
    """Mask logits Q x P at P pixels of the output (indices into the flat H x W), as
    :func:`resize_strips` gives there."""
    grid, device = mask_logits.shape[-2:], mask_logits.device
    rows, columns = pixels // frame.output[1], pixels % frame.output[1]
    cell_rows, cell_columns = (_interpolation_cells(frame, grid, i) for i in (0, 1))
    top, bottom, weight = (torch.from_numpy(x).to(device)[rows] for x in cell_rows)
    left, right, weight_x = (torch.from_numpy(x).to(device)[columns] for x in cell_columns)
    cells = mask_logits.float().flatten(1)

    def at_row(row: torch.Tensor) -> torch.Tensor:
        first = row * grid[1]
        return torch.lerp(cells[:, first + left], cells[:, first + right], weight_x)

    return torch.lerp(at_row(top), at_row(bottom), weight)


def argmax_at_output(
    mask_logits: torch.Tensor, frame: Frame, queries: list[int] | None = None
) -> torch.Tensor:
    """The query (int64) with the largest of the logits Q x h x w at every output pixel.

    Only ``queries`` (ascending indices) compete; None: all.
    """
    owner = torch.empty(frame.output, dtype=torch.int64, device=mask_logits.device)
    chosen = None
    if queries is not None and len(queries) < len(mask_logits):
        chosen = torch.as_tensor(queries, device=mask_logits.device)
        mask_logits = mask_logits[chosen]
    for part, strip in resize_strips(mask_logits, frame):
        # On a CPU ``argmax`` over the first dimension is several times slower than ``max``.
        owner[part] = strip.max(0).indices
    return owner if chosen is None else chosen[owner]


def masks_at_output(mask_logits: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Binary masks Q x H x W (probability above one half) of Q x h x w logits."""
    size = len(mask_logits), *frame.output
    masks = torch.empty(size, dtype=torch.bool, device=mask_logits.device)
    for part, strip in resize_strips(mask_logits, frame):
        masks[:, part] = strip > 0
    return masks


def semantic_scores(
    mask_logits: torch.Tensor, probabilities: torch.Tensor, frame: Frame
) -> torch.Tensor:
    """Class scores K x H x W: the sum over queries of class probability (Q x K, without no-object)
    times mask probability (Cheng et al. 2021, MaskFormer, section 3.4)."""
    classes = probabilities.float().T
    semantic = mask_logits.new_empty((len(classes), *frame.output), dtype=torch.float32)
    with torch.autocast(mask_logits.device.type, enabled=False):
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
    """Make Detectron2's instances at the output size, best score first.

    ``boxes`` are Q x 4, (cx, cy, w, h) relative to the image.
    """
    order = scores.argsort(descending=True)
    height, width = frame.output
    scale = torch.tensor([width, height, width, height], dtype=torch.float32).to(boxes.device)
    corners = box_convert(boxes[order].float(), "cxcywh", "xyxy") * scale
    result = Instances(frame.output)
    # Boxes.clip would wait for a GPU.
    result.pred_boxes = Boxes(corners.clamp(min=0).minimum(scale))
    result.scores = scores[order]
    result.pred_classes = labels[order]
    if mask_logits is not None:
        result.pred_masks = masks_at_output(mask_logits[order], frame)
    return result


def target_masks(instances: Instances) -> torch.Tensor:
    """The annotated masks T x H x W (bool) of one image: ``gt_masks`` as ``BitMasks``,
    ``PolygonMasks``, or a tensor (Mask2Former's mapper)."""
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks.polygons, *instances.image_size)
    if isinstance(masks, BitMasks):
        masks = masks.tensor
    return masks.to(instances.gt_classes.device, torch.bool)


def select_rows(values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Select rows of a tensor on any device by a bool vector on the host, without a sync."""
    if bool(keep.all()):
        return values
    return values[keep.nonzero()[:, 0].to(values.device, non_blocking=True)]
