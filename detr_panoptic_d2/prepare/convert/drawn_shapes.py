"""Shapes that people draw around objects -> run lengths of pycocotools -> label map."""

import math
import reprlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_util

from ...errors import UserError
from .source import Labels, Segment, Size, errors_of, numbers


class Shape(NamedTuple):
    """A shape of an image.

    Attributes:
        where: to name it in errors.
        name: of its class.
        drawn: how it is drawn, in the form of its format.
        group: shapes of one class and group are one object; None: of no group.
        z: what is higher lies above.
    """

    where: str
    name: str
    drawn: Any
    group: Any = None
    iscrowd: int = 0
    z: int = 0


def draw_shapes(
    encode: Callable[[Any, Size], dict],
    shapes: Sequence[Shape],
    size: Size,
    things: Collection[str],
) -> Labels:
    """Draw shapes over each other.

    From bottom to top: by ``z``; within it stuff, then crowds, then things; within these the
    smaller above the larger (by area before overlaps are resolved: what is smaller is most likely
    in front, or held).

    Args:
        encode: ``encode(drawn, size)`` returns compressed run lengths of pycocotools.
        shapes: S shapes.
        size: (H, W).
        things: names of the classes that are things.
    """
    groups: dict[Any, list[Shape]] = {}
    for index, shape in enumerate(shapes):
        with errors_of(shape.where):
            encoded = shape._replace(drawn=encode(shape.drawn, size))
        key = index if shape.group is None else (shape.name, shape.group)
        groups.setdefault(key, []).append(encoded)
    objects = [
        group[0]._replace(drawn=mask_util.merge([shape.drawn for shape in group]))
        for group in groups.values()
    ]

    def height(shape: Shape) -> tuple:
        layer = 0 if shape.name not in things else 1 if shape.iscrowd else 2
        return shape.z, layer, -int(mask_util.area(shape.drawn))

    labels = np.zeros(size, np.int32)
    objects.sort(key=height)
    for label, shape in enumerate(objects, 1):
        labels[mask_util.decode(shape.drawn) != 0] = label
    return Labels(labels, [Segment(s.name, int(s.iscrowd and s.name in things)) for s in objects])


def from_polygons(polygons: Sequence[Any], size: Size) -> dict:
    """Encode polygons, lists of x and y in pixels; those of less than three points have no area.

    Raises:
        UserError: a polygon has an odd number of values, no numbers, or is far outside the image.
    """
    flat = [numbers(polygon, "a polygon") for polygon in polygons]
    for values in flat:
        # pycocotools walks along each edge: far corners cost memory without bound.
        if len(values) % 2 or np.abs(values).max(initial=0) > 10 * max(size):
            raise UserError(f"the polygon {reprlib.repr(values.tolist())} is odd, or far outside")
    drawn = [values.tolist() for values in flat if len(values) >= 6]
    if not drawn:
        return from_runs([size[0] * size[1]], size)
    return mask_util.merge(mask_util.frPyObjects(drawn, *size))


def from_rectangle(corners: Any, size: Size, degrees: float = 0.0) -> dict:
    """Encode a rectangle (x, y, x, y of two opposite corners), turned clockwise by degrees."""
    x0, y0, x1, y1 = numbers(corners, "the corners", 4)
    half = np.array([x1 - x0, y1 - y0]) / 2
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    return from_polygons([_turned(signs * half, (x0 + x1) / 2, (y0 + y1) / 2, degrees)], size)


def from_ellipse(center_and_radii: Any, size: Size, degrees: float = 0.0) -> dict:
    """Encode an ellipse (x, y of its middle, radii along x and y), turned clockwise by degrees."""
    cx, cy, rx, ry = numbers(center_and_radii, "middle and radii", 4)
    # Edges of about two pixels.
    corners = int(np.clip(math.pi * max(abs(rx), abs(ry)), 12, 720))
    angles = 2 * math.pi * np.arange(corners) / corners
    offsets = np.stack([rx * np.cos(angles), ry * np.sin(angles)], 1)
    return from_polygons([_turned(offsets, cx, cy, degrees)], size)


def _turned(offsets: np.ndarray, cx: float, cy: float, degrees: float) -> np.ndarray:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # y points down, so that this turns clockwise for those who look at the image.
    return offsets @ [[cos, sin], [-sin, cos]] + [cx, cy]


def from_mask(mask: np.ndarray, left: int, top: int, size: Size) -> dict:
    """Encode a mask (h, w) that stands in a box of the image.

    Raises:
        UserError: the box is not within the image.
    """
    bottom, right = top + mask.shape[0], left + mask.shape[1]
    if top < 0 or left < 0 or bottom > size[0] or right > size[1]:
        raise UserError(
            f"a mask covers columns {left} to {right} and rows {top} to {bottom}, which is not "
            f"within the image of {size[1]} x {size[0]}"
        )
    whole = np.zeros(size, np.uint8, order="F")
    whole[top:bottom, left:right] = mask
    return mask_util.encode(whole)


def from_runs(counts: Any, size: Size) -> dict:
    """Encode the run lengths of a COCO json, a list or compressed to text.

    Raises:
        UserError: they do not add up to the pixels of the image.
    """
    runs = _decompressed(counts) if isinstance(counts, str) else counts
    # pycocotools does not check this itself, and would leave pixels as they are in memory.
    is_list = isinstance(runs, list) and all(type(c) is int and c >= 0 for c in runs)
    if not is_list or sum(runs) != size[0] * size[1]:
        raise UserError(
            f"the run lengths {reprlib.repr(counts)} do not add up to {size[0]} x {size[1]}"
        )
    return mask_util.frPyObjects({"size": list(size), "counts": runs}, *size)


def _decompressed(text: str) -> list[int]:
    """Decode compressed run lengths (``rleFrString`` of pycocotools' ``maskApi.c``).

    Each run is stored in characters of 6 bits, 48 added: 5 bits of the number, the lowest first,
    and a bit that says whether more follow. The highest of the last 5 bits is the sign. From the
    fourth run on, the number is the difference to the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in text.encode():
        code = byte - 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code >> 4 & 1) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
