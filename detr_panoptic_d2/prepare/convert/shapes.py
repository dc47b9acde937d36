"""Shapes that people draw around objects -> label map.

A *shape* is a mapping ``{"name", "iscrowd", "z", "parts"}`` with the name of its class; the object
is the union of its parts. A *part* has one of

- ``polygons``: flat lists ``x, y, x, y, ...`` in pixels, as in COCO;
- ``rle``: COCO run lengths, ``{"size": [H, W], "counts": list or str}``;
- ``png``: a base64 PNG with its ``left`` and ``top``, as in LabelMe;
- ``runs``: row-wise run lengths in a box (``left``, ``top``, ``width``, ``height``), from a run of
  zeros on, as in CVAT.
"""

import base64
import binascii
import io
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

from ...errors import UserError
from .source import Item, Labels, Segment, check_size

OVERLAP_RULES = ("smaller-on-top", "later-on-top")


def draw_shapes(
    shapes: list[dict], size: tuple[int, int], things: Collection[str], overlap: str, where: str
) -> Labels:
    """Draw shapes over each other.

    From bottom to top: by ``z``; within it stuff, then crowds, then things; within these by the
    rule, ties in the order of the file.

    Args:
        shapes: S shapes.
        size: (H, W).
        things: names of the classes that are things.
        overlap: "smaller-on-top" (by area before overlaps are resolved: what is smaller is most
            likely in front, or held) or "later-on-top" (in the file).
        where: what to name in errors.

    Raises:
        UserError: a shape is not in the form, or the rule is not known.
    """
    if overlap not in OVERLAP_RULES:
        raise UserError(f"Overlap rule '{overlap}' is not one of {', '.join(OVERLAP_RULES)}.")
    masks = [_encode(shape, size, where) for shape in shapes]
    areas = mask_util.area(masks) if masks else []

    def height(index: int) -> tuple:
        shape = shapes[index]
        is_thing = shape["name"] in things
        layer = 0 if not is_thing else 1 if shape["iscrowd"] else 2
        by_area = -int(areas[index]) if overlap == "smaller-on-top" else 0
        return shape["z"], layer, by_area, index

    labels = np.zeros(size, np.int32)
    for index in sorted(range(len(shapes)), key=height):
        labels[mask_util.decode(masks[index]) != 0] = index + 1
    crowds = [int(s["iscrowd"] and s["name"] in things) for s in shapes]
    return Labels(labels, [Segment(s["name"], c) for s, c in zip(shapes, crowds, strict=True)])


def shape(name: str, *parts: dict, iscrowd: int = 0, z: int = 0) -> dict:
    """Make a shape."""
    return {"name": name, "iscrowd": iscrowd, "z": z, "parts": list(parts)}


@dataclass(frozen=True)
class DrawShapes:
    """Draws the shapes of an item whose annotation has ``shapes`` and ``size``.

    Attributes:
        overlap: see :func:`draw_shapes`.
        what: the annotation's name for errors.
    """

    overlap: str
    what: str

    def __call__(self, item: Item, size: tuple[int, int], things: Collection[str]) -> Labels:
        where, listed = f"image '{item.file_name}'", item.annotation["size"]
        if listed and None not in listed:
            check_size(listed, size, f"{self.what} of {where}", item.file_name)
        return draw_shapes(item.annotation["shapes"], size, things, self.overlap, where)


def polygon(points: Any, where: str) -> list[float] | None:
    """Check a polygon.

    Args:
        points: flat list, or list of pairs.
        where: what to name in errors.

    Returns:
        The flat list; None for fewer than three points, which have no area.

    Raises:
        UserError: it is no list of numbers.
    """
    try:
        flat = np.asarray(points, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        flat = np.full(1, np.nan)
    if flat.size % 2 or not np.isfinite(flat).all():
        raise UserError(f"{where}: the polygon {_short(points)} is no list of x, y pairs.")
    return flat.tolist() if flat.size >= 6 else None


def ellipse(cx: float, cy: float, rx: float, ry: float, degrees: float = 0.0) -> list[float]:
    """An ellipse as a polygon whose edges are about two pixels long, in 12 to 720 corners."""
    corners = int(min(max(math.pi * max(abs(rx), abs(ry)), 12), 720))
    angles = 2 * math.pi * np.arange(corners) / corners
    return _turned(np.stack([rx * np.cos(angles), ry * np.sin(angles)], 1), cx, cy, degrees)


def rectangle(x0: float, y0: float, x1: float, y1: float, degrees: float = 0.0) -> list[float]:
    """A rectangle, turned clockwise about its middle, as a polygon."""
    cx, cy, rx, ry = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
    corners = np.array([[-rx, -ry], [rx, -ry], [rx, ry], [-rx, ry]])
    return _turned(corners, cx, cy, degrees)


def _turned(offsets: np.ndarray, cx: float, cy: float, degrees: float) -> list[float]:
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    # y points down, so that this turns clockwise for those who look at the image.
    x = cx + offsets[:, 0] * cos - offsets[:, 1] * sin
    y = cy + offsets[:, 0] * sin + offsets[:, 1] * cos
    return np.stack([x, y], 1).reshape(-1).tolist()


def _encode(shape: dict, size: tuple[int, int], where: str) -> dict:
    """Return the compressed run lengths of a shape."""
    parts = [rle for part in shape["parts"] for rle in _encode_part(part, size, where)]
    return mask_util.merge(parts)


def _encode_part(part: dict, size: tuple[int, int], where: str) -> list[dict]:
    height, width = size
    if "polygons" in part:
        for flat in part["polygons"]:
            # pycocotools walks along each edge: far corners cost memory without bound.
            if np.abs(flat).max() > 10 * max(size):
                raise UserError(f"{where}: the polygon {_short(flat)} is far outside the image.")
        return mask_util.frPyObjects(part["polygons"], height, width)
    if "rle" in part:
        return [_check_rle(part["rle"], size, where)]
    if "png" in part:
        return [_paste(_decode_png(part["png"], where), part, size, where)]
    return [_paste(_decode_runs(part, where), part, size, where)]


def _check_rle(rle: dict, size: tuple[int, int], where: str) -> dict:
    if list(rle["size"]) != list(size):
        raise UserError(
            f"{where}: an RLE is for {rle['size'][1]} x {rle['size'][0]} pixels (width x height), "
            f"but the image has {size[1]} x {size[0]}."
        )
    counts = _decode_counts(rle["counts"]) if isinstance(rle["counts"], str) else rle["counts"]
    # pycocotools does not check this itself, and would leave pixels as they are in memory.
    if not all(type(c) is int and c >= 0 for c in counts) or sum(counts) != size[0] * size[1]:
        raise UserError(f"{where}: the counts of an RLE do not add up to height x width.")
    return mask_util.frPyObjects({"size": list(size), "counts": counts}, *size)


def _decode_counts(text: str) -> list[int]:
    """Decode COCO's compressed run lengths.

    Each run is stored in characters of 6 bits, 48 added: 5 bits of the number, the lowest first,
    and a bit that says whether more follow. The highest of the last 5 bits is the sign. From the
    fourth run on, the number is the difference to the run before the last (``rleToString`` of
    pycocotools' ``maskApi.c``).
    """
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(codes & 32 == 0)
    if not len(last) or last[-1] != len(codes) - 1 or codes.min() < 0 or codes.max() > 63:
        return []
    first = np.concatenate(([0], last[:-1] + 1))
    length = last - first + 1
    if length.max() > 7:
        return []
    shift = 5 * (np.arange(len(codes)) - np.repeat(first, length))
    values = np.add.reduceat((codes & 31) << shift, first)
    values -= np.where(codes[last] & 16, 1 << 5 * length, 0)
    for start in (1, 2):
        values[start::2] = np.cumsum(values[start::2])
    return values.tolist()


def _decode_png(data: str, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            return np.asarray(image.convert("L")) > 0
    except (OSError, SyntaxError, ValueError, binascii.Error) as error:
        raise UserError(f"{where}: a mask is no base64 PNG ({error}).") from error


def _decode_runs(part: dict, where: str) -> np.ndarray:
    counts = np.asarray(part["runs"], dtype=np.int64)
    if part["width"] < 1 or part["height"] < 1 or counts.sum() != part["width"] * part["height"]:
        raise UserError(f"{where}: the runs of a mask do not add up to its width x height.")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(part["height"], part["width"])


def _paste(mask: np.ndarray, part: dict, size: tuple[int, int], where: str) -> dict:
    """Encode a mask that stands in a box of the image."""
    top, left = part["top"], part["left"]
    bottom, right = top + mask.shape[0], left + mask.shape[1]
    if top < 0 or left < 0 or bottom > size[0] or right > size[1]:
        raise UserError(
            f"{where}: a mask covers columns {left} to {right} and rows {top} to {bottom}, which "
            f"is not within the image of {size[1]} x {size[0]}."
        )
    whole = np.zeros(size, np.uint8, order="F")
    whole[top:bottom, left:right] = mask
    return mask_util.encode(whole)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
