"""Read LabelMe's jsons, one per image, with polygons and other shapes."""

import base64
import glob
import io
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from .shapes import AnnotatedImage, Shape, ellipse, fill_polygons, place_mask, rectangle, to_source
from .source import IMAGE_SUFFIXES, Size, Source, find_files
from .values import errors_in, polygon, read_json, read_size, resolve_inside, to_id, to_text

# Corners in order around the shape. "rotation" and "quadrilateral" are of X-AnyLabeling.
_CORNERS = ("polygon", "rotation", "oriented_rectangle", "quadrilateral")


def labelme(annotations: Path, images: Path | None = None) -> Source:
    """Read a folder of LabelMe's jsons.

    Points, lines and unknown kinds are left out with a warning. Shapes of one label and one
    ``group_id`` are one object. Each json names its image relative to itself; all images lie below
    ``images``, by default ``annotations``.
    """
    files = [annotations / name for name in find_files(annotations, ".json")]
    if not files:
        raise FileNotFoundError(f"'{annotations}' has no *.json of LabelMe.")
    root = images or annotations
    return to_source(root, _read_images(files, root))


def _read_images(files: list[Path], root: Path) -> Iterator[AnnotatedImage]:
    for path in files:
        content = read_json(path, "shapes")
        with errors_in(f"'{path}'"):
            name = _image_name(content.get("imagePath"), path, root)
            size = read_size(content, "imageHeight", "imageWidth")
        shapes = []
        for index, entry in enumerate(content["shapes"]):
            where = f"'{path}': shape {index}"
            with errors_in(where):
                kind = to_text(entry.get("shape_type") or "polygon", "'shape_type'")
                group = entry.get("group_id")
                group = None if group is None else to_id(group, "'group_id'")
                encode, label = _encoder(kind, entry), to_text(entry.get("label"), "'label'")
            shapes.append(Shape(f"{where} ({kind})", label, encode, group))
        yield AnnotatedImage(f"'{path}'", name, size, shapes)


def _image_name(image_path: Any, path: Path, root: Path) -> str:
    """Return the image of a json, relative to ``root``.

    Where ``imagePath`` is missing, names a json, or names a file that does not exist but is called
    as the json is, the image is the file beside the json with the same name.
    """
    beside = [
        p.name
        for p in path.parent.glob(f"{glob.escape(path.stem)}.*")
        if p.suffix.lower() in IMAGE_SUFFIXES
    ]
    named = Path(str(image_path or "").replace("\\", "/"))
    is_usable = named.name and named.suffix != ".json"
    is_usable = is_usable and (named.stem != path.stem or (path.parent / named).is_file())
    name = image_path if is_usable or len(beside) != 1 else beside[0]
    return resolve_inside(root, name, base=path.parent)


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
