"""LabelMe: a json beside each image, with polygons and other shapes -> panoptic."""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from .shapes import Shape, draw_shapes, from_ellipse, from_mask, from_polygons, from_rectangle
from .source import (
    Item,
    Labels,
    Size,
    Source,
    errors_of,
    log_left_out,
    numbers,
    read_json,
    resolve_inside,
)

_DRAWN = ("polygon", "rectangle", "circle", "mask")


def labelme(annotations: Path, images: Path | None = None) -> Source:
    """A folder of LabelMe's jsons.

    Polygons, rectangles, circles and masks are drawn; points and lines have no area and are left
    out with a warning. Shapes of one label and one ``group_id`` are one object. Classes are sorted
    by name.

    Args:
        annotations: folder of the jsons, searched with its subfolders.
        images: folder that holds all images; default ``annotations``. Each json names its image
            relative to itself.

    Raises:
        FileNotFoundError: there is no json.
        UserError: a json is not in the format, or names a path outside of ``images``.
    """
    files = sorted(p for p in annotations.rglob("*.json") if not p.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"'{annotations}' has no *.json of LabelMe.")
    root = images or annotations
    items: dict[str, Item] = {}
    labels: set[str] = set()
    left_out = defaultdict(list)
    for path in files:
        content = read_json(path, "shapes")
        shapes = []
        with errors_of(f"'{path}'"):
            name = resolve_inside(root, content.get("imagePath"), base=path.parent)
            if name in items:
                raise UserError(f"another json has the image '{name}' too")
            for index, shape in enumerate(content["shapes"]):
                if not isinstance(shape.get("label"), str):
                    raise UserError(f"shape {index} has no 'label'")
                labels.add(shape["label"])
                kind, where = shape.get("shape_type") or "polygon", f"'{path}': shape {index}"
                if kind in _DRAWN:
                    shapes.append((where, kind, shape))
                else:
                    left_out[f"shapes are a {kind}, which is not drawn"].append(where)
        size = content.get("imageHeight"), content.get("imageWidth")
        items[name] = Item(name, partial(_draw, shapes), size=None if None in size else size)
    log_left_out(left_out)
    classes = [{"name": label} for label in sorted(labels)]
    return Source(root, classes, [items[name] for name in sorted(items)])


def _draw(shapes: list[tuple[str, str, dict]], size: Size, things: Collection[str]) -> Labels:
    """Draw (place, kind, entry of the json) of each shape."""
    drawn = []
    for where, kind, shape in shapes:
        with errors_of(where):
            rle = _encode(kind, shape.get("points"), shape.get("mask"), size)
        drawn.append(Shape(shape["label"], rle, shape.get("group_id")))
    return draw_shapes(drawn, size, things)


def _encode(kind: str, points: Any, mask: Any, size: Size) -> dict:
    if kind == "polygon":
        return from_polygons([points], size)
    corners = numbers(points, "'points'", 4)
    if kind == "rectangle":
        return from_rectangle(corners, size)
    if kind == "circle":
        radius = math.hypot(*(corners[2:] - corners[:2]))
        return from_ellipse([*corners[:2], radius, radius], size)
    try:
        with Image.open(io.BytesIO(base64.b64decode(mask, validate=True))) as image:
            pixels = np.asarray(image.convert("L")) > 0
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"'mask' is no base64 PNG ({error})") from error
    return from_mask(pixels, round(corners[0]), round(corners[1]), size)
