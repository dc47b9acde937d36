"""Read LabelMe's jsons, one per image, with polygons and other shapes."""

import base64
import glob
import io
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from .shapes import Shape, draw_shapes, ellipse, fill_polygons, place_mask, rectangle
from .source import IMAGE_SUFFIXES, Item, Size, Source, find_files, log_left_out
from .values import errors_in, polygon, read_json, read_size, resolve_inside, to_id, to_text

# Corners in order around the shape. "rotation" and "quadrilateral" are of X-AnyLabeling.
_CORNERS = ("polygon", "rotation", "oriented_rectangle", "quadrilateral")


def labelme(annotations: Path, images: Path | None = None) -> Source:
    """Read a folder of LabelMe's jsons.

    Shapes with an area are drawn. Points, lines and unknown kinds are left out with a warning.
    Shapes of one label and one ``group_id`` are one object. Classes are sorted by name.

    Args:
        annotations: folder of the jsons, searched with its subfolders.
        images: folder that holds all images; default ``annotations``. Each json names its image
            relative to itself.

    Raises:
        FileNotFoundError: there is no json.
        UserError: a json is invalid, or names a path outside of ``images``.
    """
    files = [annotations / name for name in find_files(annotations, ".json")]
    if not files:
        raise FileNotFoundError(f"'{annotations}' has no *.json of LabelMe.")
    root = images or annotations
    items: dict[str, Item] = {}
    labels: set[str] = set()
    not_drawn: list[str] = []
    for path in files:
        content = read_json(path, "shapes")
        shapes = []
        with errors_in(f"'{path}'"):
            name = _image_name(content.get("imagePath"), path, root)
            if name in items:
                raise UserError(f"another json has the image '{name}' too")
            size = read_size(content, "imageHeight", "imageWidth")
        for index, entry in enumerate(content["shapes"]):
            where = f"'{path}': shape {index}"
            with errors_in(where):
                label = to_text(entry.get("label"), "'label'")
                kind = to_text(entry.get("shape_type") or "polygon", "'shape_type'")
                group = entry.get("group_id")
                group = None if group is None else to_id(group, "'group_id'")
                encode = _encoder(kind, entry)
            if encode is None:
                not_drawn.append(f"{where} ({kind})")
            else:
                labels.add(label)
                shapes.append(Shape(where, label, encode, group))
        items[name] = Item(name, partial(draw_shapes, shapes), size=size)
    log_left_out("shapes of a kind that is not drawn", not_drawn)
    classes = [{"name": label} for label in sorted(labels)]
    return Source(root, classes, [items[name] for name in sorted(items)])


def _image_name(image_path: Any, path: Path, root: Path) -> str:
    """Return the image of a json, relative to ``root``.

    Where ``imagePath`` is missing, names a json, or names a file that does not exist but is called
    as the json is, the image is the file beside the json with the same name.
    """
    beside = [
        p.name
        for p in sorted(path.parent.glob(f"{glob.escape(path.stem)}.*"))
        if p.suffix.lower() in IMAGE_SUFFIXES
    ]
    named = Path(str(image_path or "").replace("\\", "/"))
    is_usable = (
        named.name
        and named.suffix != ".json"
        and (named.stem != path.stem or (path.parent / named).is_file())
    )
    if not is_usable and len(beside) == 1:
        return resolve_inside(root, beside[0], base=path.parent)
    return resolve_inside(root, image_path, base=path.parent)


def _encoder(kind: str, entry: dict) -> Callable[[Size], dict] | None:
    """Return the function that encodes a shape; None for a kind without an area."""
    if kind not in (*_CORNERS, "rectangle", "circle", "mask"):
        return None
    points = polygon(entry.get("points"), "'points'")
    # X-AnyLabeling writes the four corners of a rectangle.
    if kind in _CORNERS or (kind == "rectangle" and len(points) == 4):
        return partial(fill_polygons, [points])
    if len(points) != 2:
        raise UserError(f"a {kind} must have 2 points, not {len(points)}")
    x0, y0, x1, y1 = points.reshape(-1).tolist()
    if kind == "rectangle":
        return partial(fill_polygons, [rectangle([x0, y0, x1, y1])])
    if kind == "circle":
        radius = math.dist(*points)
        return partial(fill_polygons, [ellipse([x0, y0, radius, radius])])
    return partial(_place_png, entry.get("mask", ""), round(x0), round(y0))


def _place_png(text: Any, left: int, top: int, size: Size) -> dict:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            mask = np.asarray(image.convert("L")) > 0
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"'mask' is not a base64 PNG ({error})") from error
    return place_mask(mask, left, top, size)
