"""Where to write the names of segments: inside them, near their middle, and apart.

Shapes: S segments in an image of H x W pixels; boxes are (x0, y0, x1, y1) in pixels.
"""

import numpy as np
from scipy import ndimage

# Masks are looked at with at most this many cells along the longer side.
_CELLS = 128
# Candidate positions per axis of the box around a segment.
_GRID = 15
# Cells are deep inside a segment from this share of the largest distance to its edge.
_DEEP = 0.85
# Cost of a label that hides another one whole, that lies outside its segment, and that is as far
# from the segment's middle as the image is long.
_HIDING, _OUTSIDE, _DISTANCE = 6.0, 1.0, 1.5
# A label that would share more than this part of its own area, or of another's, is left out.
_MOST_SHARED = 0.25


def place_labels(
    masks: list[np.ndarray], sizes: list[tuple[float, float]]
) -> list[tuple[float, float] | None]:
    """Choose a position per label; larger segments choose first.

    Args:
        masks: S bool arrays H x W, none of them empty.
        sizes: S pairs (width, height) of the labels in pixels.

    Returns:
        S top left corners (x, y) inside the image, None for a label that would hide another.
    """
    corners: list[tuple[float, float] | None] = [None] * len(masks)
    placed = np.zeros((0, 4))
    for i in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        boxes, cost = _candidates(masks[i], sizes[i])
        shared = _shared(boxes, placed)
        best = int(np.argmin(cost + _HIDING * shared.sum(axis=1)))
        if shared.size and shared[best].max() > _MOST_SHARED:
            continue
        placed = np.concatenate([placed, boxes[best : best + 1]])
        corners[i] = float(boxes[best, 0]), float(boxes[best, 1])
    return corners


def _candidates(mask: np.ndarray, size: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes P x 4 inside the image and their costs P without the other labels."""
    height, width = mask.shape
    step = max(1, -(-max(mask.shape) // _CELLS))
    cells = mask[step // 2 :: step, step // 2 :: step]
    if not cells.any():
        cells = mask[::step, ::step]
    if not cells.any():
        step, cells = 1, mask
    # The image's border counts as an edge, so that a middle is a middle.
    inner = ndimage.distance_transform_edt(np.pad(cells, 1))[1:-1, 1:-1]
    # Of the cells that are deep inside, the one closest to the centre of gravity.
    deep = np.argwhere(inner >= _DEEP * inner.max())
    centre = np.argwhere(cells).mean(axis=0)
    row, column = deep[np.argmin(np.square(deep - centre).sum(axis=1))]
    middle = np.array([column, row]) * step + step / 2

    rows, columns = np.nonzero(cells.any(axis=1))[0], np.nonzero(cells.any(axis=0))[0]
    w, h = min(size[0], width), min(size[1], height)
    x = np.linspace(columns[0] * step - w / 2, (columns[-1] + 1) * step + w / 2, _GRID)
    y = np.linspace(rows[0] * step - h / 2, (rows[-1] + 1) * step + h / 2, _GRID)
    centres = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    centres = np.concatenate([middle[None], centres])
    corner = np.clip(centres - [w / 2, h / 2], 0, [width - w, height - h])
    boxes = np.concatenate([corner, corner + [w, h]], axis=1)

    covered = _covered(cells, boxes / step)
    centre = corner + [w / 2, h / 2]
    distance = np.linalg.norm(centre - middle, axis=1) / max(height, width)
    return boxes, _OUTSIDE * (1 - covered) + _DISTANCE * distance


def _covered(cells: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the share of each box, P x 4 in cells, that lies on the mask."""
    table = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1))
    table[1:, 1:] = cells.cumsum(axis=0).cumsum(axis=1)
    low = np.floor(boxes[:, :2]).astype(int)
    high = np.minimum(np.ceil(boxes[:, 2:]).astype(int), [cells.shape[1], cells.shape[0]])
    low = np.minimum(low, high - 1)
    (x0, y0), (x1, y1) = low.T, high.T
    inside = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
    return inside / ((x1 - x0) * (y1 - y0))


def _shared(boxes: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Return P x Q: common area as a part of the smaller of the two boxes."""
    low = np.maximum(boxes[:, None, :2], placed[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], placed[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, placed)]
    return common / np.maximum(np.minimum(areas[0][:, None], areas[1][None]), 1e-9)
