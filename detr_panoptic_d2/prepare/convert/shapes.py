"""Points of polygons -> run lengths of pycocotools -> label map -> ids and ``segments_info``."""

import math
import reprlib
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_util

from ...data.panoptic_check import as_int
from ...data.panoptic_json import complete_segments
from ...data.panoptic_png import MAX_SEGMENT_ID
from ...errors import UserError
from .source import Item, Labels, Segment, Size, Source, log_left_out
from .values import errors_in, numbers

# Step between the ids of objects of one class, in each channel; odd, so that it reaches every id.
_STEP = 37 * 0x010101


class Shape(NamedTuple):
    """A shape of an image. ``encode((height, width))`` returns pycocotools' compressed RLE."""

    where: str  # names the shape in errors
    name: str  # of its class
    encode: Callable[[Size], dict] | None  # None: a kind without an area, such as a line
    group: Any = None  # shapes of one class and group are one object; None: of no group
    is_crowd: bool = False
    is_semantic: bool = False  # marks a region, not an object; void if its class is a thing
    z: int = 0  # shapes with larger values lie above


class AnnotatedImage(NamedTuple):
    """The shapes of an image. ``where`` names its annotation in errors."""

    where: str
    name: str
    size: Size | None
    shapes: Sequence[Shape]


def to_source(root: Path, images: Iterable[AnnotatedImage], classes: Iterable[str] = ()) -> Source:
    """Return a source of shapes. Labels that ``classes`` do not list follow in their order."""
    items: dict[str, Item] = {}
    labels: set[str] = set()
    not_drawn = []
    for where, name, size, shapes in images:
        if name in items:
            raise UserError(f"{where}: the image '{name}' is annotated twice")
        drawn = [shape for shape in shapes if shape.encode is not None]
        not_drawn += [shape.where for shape in shapes if shape.encode is None]
        labels |= {shape.name for shape in drawn}
        items[name] = Item(name, partial(draw_shapes, drawn), size=size)
    log_left_out("shapes that are not drawn", not_drawn)
    names = dict.fromkeys([*classes, *sorted(labels)])
    return Source(root, [{"name": n} for n in names], [items[name] for name in sorted(items)])


def draw_shapes(shapes: Sequence[Shape], size: Size, things: Collection[str]) -> Labels:
    """Draw shapes over each other.

    Order from bottom to top: by ``z``; for equal ``z`` regions and stuff, then crowds, then
    things; for equal kinds the larger shape first. A smaller shape is more likely in front.
    """
    groups: dict[Any, list[tuple[Shape, dict]]] = {}
    lost = []
    for index, shape in enumerate(shapes):
        with errors_in(shape.where):
            rle = shape.encode(size)
        if not mask_util.area(rle):
            lost.append(f"{shape.where} ({reprlib.repr(getattr(shape.encode, 'args', ''))})")
            continue
        key = index if shape.group is None else (shape.name, shape.group)
        groups.setdefault(key, []).append((shape, rle))
    objects = []
    for (shape, rle), *others in groups.values():
        rle = mask_util.merge([rle, *(other for _, other in others)])
        is_region = shape.is_semantic or shape.name not in things
        layer = 0 if is_region else 1 if shape.is_crowd else 2
        objects.append(((shape.z, layer, -int(mask_util.area(rle))), shape, rle))
    result = Labels(np.zeros(size, np.int32), [], lost)
    for label, (_, shape, rle) in enumerate(sorted(objects, key=lambda o: o[0]), 1):
        result.map[mask_util.decode(rle) != 0] = label
        is_thing = shape.name in things
        name = None if shape.is_semantic and is_thing else shape.name
        result.segments.append(Segment(name, int(shape.is_crowd and is_thing)))
    return result


def fill_polygons(polygons: Sequence[np.ndarray], size: Size) -> dict:
    """Encode polygons (N, 2) of x and y in pixels. Polygons of less than three points are empty."""
    width_height = np.array(size[::-1])
    for points in polygons:
        # pycocotools walks along each edge, so far points would cost memory without bound.
        is_far = ((points < -width_height) | (points > 2 * width_height)).any(axis=1)
        if is_far.any():
            x, y = points[is_far][0].tolist()
            raise UserError(
                f"a polygon has the point ({x:g}, {y:g}), far outside of the image of {size[1]} x "
                f"{size[0]}. Was the image resized, or are these run lengths?"
            )
    flat = [points.reshape(-1).tolist() for points in polygons if len(points) >= 3]
    if not flat:
        return decode_runs([size[0] * size[1]], size)
    return mask_util.merge(mask_util.frPyObjects(flat, *size))


def rectangle(corners: Any, degrees: float = 0.0) -> np.ndarray:
    """Return the points of a rectangle (x, y, x, y of opposite corners), turned clockwise."""
    x0, y0, x1, y1 = numbers(corners, "the corners", 4)
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    return rotate(signs * [(x1 - x0) / 2, (y1 - y0) / 2], (x0 + x1) / 2, (y0 + y1) / 2, degrees)


def ellipse(center_and_radii: Any, degrees: float = 0.0) -> np.ndarray:
    """Return the points of an ellipse (x, y of its center, radii along x and y), turned."""
    cx, cy, rx, ry = numbers(center_and_radii, "center and radii", 4)
    # Edges of about two pixels.
    num_corners = int(np.clip(math.pi * max(abs(rx), abs(ry)), 12, 720))
    angles = 2 * math.pi * np.arange(num_corners) / num_corners
    return rotate(np.stack([rx * np.cos(angles), ry * np.sin(angles)], 1), cx, cy, degrees)


def rotate(offsets: np.ndarray, cx: float, cy: float, degrees: float) -> np.ndarray:
    """Return points at offsets (N, 2) from a center, turned clockwise around it."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # y points down, so this turns clockwise on the screen.
    return offsets @ [[cos, sin], [-sin, cos]] + [cx, cy]


def place_mask(mask: np.ndarray, left: int, top: int, size: Size) -> dict:
    """Encode a mask (h, w) of a box that must lie inside the image."""
    bottom, right = top + mask.shape[0], left + mask.shape[1]
    if top < 0 or left < 0 or bottom > size[0] or right > size[1]:
        raise UserError(
            f"a mask covers columns {left} to {right} and rows {top} to {bottom}, which is not "
            f"inside the image of {size[1]} x {size[0]}"
        )
    whole = np.zeros(size, np.uint8, order="F")
    whole[top:bottom, left:right] = mask
    return mask_util.encode(whole)


def decode_runs(counts: Any, size: Size) -> dict:
    """Check and encode the run lengths of a COCO json, a list or compressed text."""
    values = _decompress(counts) if isinstance(counts, str) else counts
    runs = [as_int(value) for value in values] if isinstance(values, list) else [None]
    if any(run is None or run < 0 for run in runs):
        raise UserError(f"run lengths must be integers from 0, not {reprlib.repr(counts)}")
    # pycocotools does not check this, and would leave pixels uninitialised.
    if sum(runs) != size[0] * size[1]:
        raise UserError(
            f"the run lengths {reprlib.repr(counts)} add up to {sum(runs)} pixels, not to "
            f"{size[0]} x {size[1]}"
        )
    return mask_util.frPyObjects({"size": list(size), "counts": runs}, *size)


def _decompress(text: str) -> list[int]:
    """Decode compressed run lengths (``rleFrString`` of pycocotools' ``maskApi.c``).

    A character less 48 holds 5 bits of a signed number, the lowest first, and a bit that says
    whether more follow. From the fourth run on, it is the difference to the run before the last.
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


class Panoptic(NamedTuple):
    """What COCO panoptic stores about an image, and how much is not in it."""

    ids: np.ndarray  # uint32 (H, W), 0 is void
    segments_info: list[dict]  # id, category_id, iscrowd, area, bbox (tight x, y, width, height)
    num_dropped: int  # segments that lie completely under others, or have too few pixels


def to_panoptic(
    labels: Labels, categories: list[dict], *, background: str | None = None, min_area: int = 1
) -> Panoptic:
    """Convert the labels of an image.

    The segments of one stuff class, and the crowds of one thing class, become one segment each:
    the format and its evaluation know only one. Segments of classes that ``categories`` do not
    list are void. Segments of fewer pixels than ``min_area`` become unlabelled. The stuff class
    ``background`` takes all unlabelled pixels; if it is None, they are void.
    """
    by_name = {c["name"]: c for c in categories}
    # Segments with equal keys are merged: (class, crowd), and a number if it is an object.
    label_of_key: dict[tuple, int] = {}
    table = [0]
    for index, (name, crowd) in enumerate(labels.segments):
        if name not in by_name:
            key: tuple = (None, 0)
        elif not by_name[name]["isthing"]:
            key = (name, 0)
        else:
            key = (name, 1) if crowd else (name, 0, index)
        table.append(label_of_key.setdefault(key, len(label_of_key) + 1))
    if background is not None:
        label_of_key.setdefault((background, 0), len(label_of_key) + 1)
    merged = np.array(table, np.int32)[labels.map]
    areas = np.bincount(merged.ravel(), minlength=len(label_of_key) + 1)
    segment_ids = np.zeros(len(label_of_key) + 1, np.uint32)
    unlabelled, infos, used_ids = [0], [], {0}
    for (name, crowd, *_), label in label_of_key.items():
        if name is None:
            continue
        if areas[label] < max(min_area, 1) and name != background:
            unlabelled.append(label)
            continue
        # The color of the class, or the next free id.
        red, green, blue = by_name[name]["color"]
        segment_id = red + 256 * green + 65536 * blue
        while segment_id in used_ids:
            segment_id = (segment_id + _STEP) & MAX_SEGMENT_ID
        used_ids.add(segment_id)
        segment_ids[label] = segment_id
        infos.append({"id": segment_id, "category_id": by_name[name]["id"], "iscrowd": crowd})
    if background is not None:
        segment_ids[unlabelled] = segment_ids[label_of_key[background, 0]]
    ids = segment_ids[merged]
    return Panoptic(ids, complete_segments(ids, infos), len(unlabelled) - 1)
