"""LabelMe: a json beside each image, with polygons and other shapes -> panoptic."""

import base64
import io
import math
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import UserError
from .drawn_shapes import Shape, draw_shapes, from_ellipse, from_mask, from_polygons, from_rectangle
from .source import (
    Item,
    Size,
    Source,
    errors_of,
    log_left_out,
    numbers,
    read_json,
    resolve_inside,
)


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
    not_drawn: list[str] = []
    for path in files:
        content = read_json(path, "shapes")
        shapes = []
        with errors_of(f"'{path}'"):
            name = resolve_inside(root, content.get("imagePath"), base=path.parent)
            if name in items:
                raise UserError(f"another json has the image '{name}' too")
            for index, drawn in enumerate(content["shapes"]):
                label, where = drawn.get("label"), f"'{path}': shape {index}"
                if not isinstance(label, str):
                    raise UserError(f"shape {index} has no 'label'")
                labels.add(label)
                if drawn.get("shape_type") in ("polygon", "rectangle", "circle", "mask", None):
                    shapes.append(Shape(where, label, drawn, drawn.get("group_id")))
                else:
                    not_drawn.append(f"{where} ({drawn['shape_type']})")
        size = content.get("imageHeight"), content.get("imageWidth")
        draw = partial(draw_shapes, _encode, shapes)
        items[name] = Item(name, draw, size=None if None in size else size)
    log_left_out("shapes of a kind without area", not_drawn)
    classes = [{"name": label} for label in sorted(labels)]
    return Source(root, classes, [items[name] for name in sorted(items)])


def _encode(drawn: dict, size: Size) -> dict:
    kind = drawn.get("shape_type") or "polygon"
    if kind == "polygon":
        return from_polygons([drawn.get("points")], size)
    corners = numbers(drawn.get("points"), "'points'", 4)
    if kind == "rectangle":
        return from_rectangle(corners, size)
    if kind == "circle":
        radius = math.hypot(*(corners[2:] - corners[:2]))
        return from_ellipse([*corners[:2], radius, radius], size)
    try:
        png = base64.b64decode(drawn.get("mask", ""), validate=True)
        with Image.open(io.BytesIO(png)) as image:
            pixels = np.asarray(image.convert("L")) > 0
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"'mask' is no base64 PNG ({error})") from error
    return from_mask(pixels, round(corners[0]), round(corners[1]), size)
