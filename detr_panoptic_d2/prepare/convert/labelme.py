"""Read LabelMe's jsons, one per image, with polygons and other shapes."""

import base64
import glob
import io
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from .drawn_shapes import Shape, draw_shapes, from_ellipse, from_mask, from_polygons, from_rectangle
from .source import IMAGE_SUFFIXES, Item, Size, Source, existing_folder, log_left_out
from .values import errors_in, polygon, read_json, read_size, resolve_inside, to_id, to_text

# Corners in order around the shape. "rotation" and "quadrilateral" are of X-AnyLabeling.
_CORNERS = ("polygon", "rotation", "oriented_rectangle", "quadrilateral")
_DRAWN = (*_CORNERS, "rectangle", "circle", "mask")


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
    paths = existing_folder(annotations).rglob("*.json")
    files = sorted(path for path in paths if not path.name.startswith("."))
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
        for index, drawn in enumerate(content["shapes"]):
            where = f"'{path}': shape {index}"
            with errors_in(where):
                label = to_text(drawn.get("label"), "'label'")
                kind = to_text(drawn.get("shape_type") or "polygon", "'shape_type'")
                group = drawn.get("group_id")
                if group is not None:
                    group = to_id(group, "'group_id'")
            if kind in _DRAWN:
                labels.add(label)
                shapes.append(Shape(where, label, {**drawn, "shape_type": kind}, group))
            else:
                not_drawn.append(f"{where} ({kind})")
        items[name] = Item(name, partial(draw_shapes, _encode, shapes), size=size)
    log_left_out("shapes of a kind that is not drawn", not_drawn)
    classes = [{"name": label} for label in sorted(labels)]
    return Source(root, classes, [items[name] for name in sorted(items)])


def _image_name(image_path: Any, path: Path, root: Path) -> str:
    """Return the image of a json, relative to ``root``.

    Where ``imagePath`` is missing, names a json, or names a file that does not exist but is called
    as the json is, the image is the file beside the json with the same name.
    """
    stem = path.stem
    named = "" if image_path is None else str(image_path).replace("\\", "/").rsplit("/", 1)[-1]
    if named and not named.lower().endswith(".json"):
        try:
            name = resolve_inside(root, image_path, base=path.parent)
        except UserError:
            if Path(named).stem != stem:
                raise
        else:
            if Path(named).stem != stem or (root / name).is_file():
                return name
    beside = [
        p
        for p in sorted(path.parent.glob(f"{glob.escape(stem)}.*"))
        if p.suffix.lower() in IMAGE_SUFFIXES
    ]
    if len(beside) == 1:
        return resolve_inside(root, beside[0].name, base=path.parent)
    return resolve_inside(root, image_path, base=path.parent)


def _encode(drawn: dict, size: Size) -> dict:
    kind = drawn["shape_type"]
    points = polygon(drawn.get("points"), "'points'")
    # X-AnyLabeling writes the four corners of a rectangle.
    if kind in _CORNERS or (kind == "rectangle" and len(points) == 4):
        return from_polygons([points], size)
    if len(points) != 2:
        raise UserError(f"a {kind} must have 2 points, not {len(points)}")
    corners = points.reshape(-1).tolist()
    if kind == "rectangle":
        return from_rectangle(corners, size)
    if kind == "circle":
        radius = math.dist(*points)
        return from_ellipse([*corners[:2], radius, radius], size)
    try:
        png = base64.b64decode(drawn.get("mask", ""), validate=True)
        with Image.open(io.BytesIO(png)) as image:
            pixels = np.asarray(image.convert("L")) > 0
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"'mask' is not a base64 PNG ({error})") from error
    return from_mask(pixels, round(corners[0]), round(corners[1]), size)
