"""LabelMe: a json beside each image, with polygons and other shapes -> panoptic."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from ...errors import UserError
from .categories import Category
from .shapes import DrawShapes, ellipse, polygon, rectangle, shape
from .source import Item, LeftOut, Source, require_folder, resolve_inside


def labelme(
    annotations: Path, images: Path | None = None, *, overlap: str = "smaller-on-top"
) -> Source:
    """A folder of LabelMe's jsons.

    Polygons, rectangles, circles and masks are drawn; points and lines have no area and are left
    out with a warning. Shapes of one label and one ``group_id`` are one object. Classes are sorted
    by name.

    Args:
        annotations: folder of the jsons, searched with its subfolders.
        images: folder that holds all images; default ``annotations``. Each json names its image
            relative to itself.
        overlap: rule; see :func:`shapes.draw_shapes`.

    Raises:
        FileNotFoundError: a folder is missing or has no json.
        UserError: a json is not in the format, or names a path outside of ``images``.
    """
    require_folder(annotations, "--annotations")
    image_root = require_folder(images or annotations, "--images")
    left_out: LeftOut = defaultdict(list)
    files = sorted(p for p in annotations.rglob("*.json") if not p.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"'{annotations}' has no *.json of LabelMe.")
    items: dict[str, Item] = {}
    labels: set[str] = set()
    for path in files:
        content = _read(path)
        labels |= {shape["label"] for shape in content["shapes"]}
        item = _item(path, content, image_root, left_out)
        if item.file_name in items:
            raise UserError(f"'{path}': another json has the image '{item.file_name}' too.")
        items[item.file_name] = item
    return Source(
        image_root,
        [Category(name) for name in sorted(labels)],
        [items[name] for name in sorted(items)],
        DrawShapes(overlap, "The json"),
        left_out=left_out,
    )


def _item(path: Path, content: dict, image_root: Path, left_out: LeftOut) -> Item:
    name = resolve_inside(image_root, content.get("imagePath"), f"'{path}'", base=path.parent)
    if not (image_root / name).is_file():
        hint = " The json holds a copy of it, which is not read." * bool(content["imageData"])
        raise FileNotFoundError(
            f"'{path}' names the image '{content['imagePath']}', which does not exist.{hint}"
        )
    shapes: dict[Any, dict] = {}
    for index, drawn in enumerate(content["shapes"]):
        where = f"'{path}': shape {index} ('{drawn['label']}')"
        part = _part(drawn, where, left_out)
        if part is None:
            continue
        group = drawn.get("group_id")
        key = ("alone", index) if group is None else (drawn["label"], group)
        if key in shapes:
            shapes[key]["parts"].append(part)
        else:
            shapes[key] = shape(drawn["label"], part)
    size = [content.get("imageHeight"), content.get("imageWidth")]
    return Item(name, {"shapes": list(shapes.values()), "size": size})


def _part(drawn: dict, where: str, left_out: LeftOut) -> dict | None:
    kind = drawn.get("shape_type") or "polygon"
    if kind not in ("polygon", "rectangle", "circle", "mask"):
        left_out[f"shapes are a {kind}, which is not drawn"].append(where)
        return None
    flat = _numbers(drawn.get("points"), where)
    if kind == "polygon":
        checked = polygon(flat, where)
        if checked is None:
            left_out["polygons have fewer than three points"].append(where)
        return {"polygons": [checked]} if checked else None
    if len(flat) != 4:
        raise UserError(f"{where}: a {kind} has two points, this one {len(flat) // 2}.")
    if kind == "circle":
        radius = math.hypot(flat[2] - flat[0], flat[3] - flat[1])
        return {"polygons": [ellipse(flat[0], flat[1], radius, radius)]}
    if kind == "rectangle":
        return {"polygons": [rectangle(*flat)]}
    if not isinstance(drawn.get("mask"), str):
        raise UserError(f"{where}: a mask has its PNG under 'mask'.")
    return {"png": drawn["mask"], "left": round(flat[0]), "top": round(flat[1])}


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is not a json file: {error}") from error
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(
        isinstance(s, dict) and isinstance(s.get("label"), str) for s in shapes
    ):
        raise UserError(
            f"'{path}' is no json of LabelMe: it has no list 'shapes' of mappings with a 'label'. "
            "Is another json in the folder?"
        )
    # The embedded image may be large, and only whether there is one matters.
    return {**content, "imageData": content.get("imageData") is not None}


def _numbers(points: Any, where: str) -> list[float]:
    pairs = isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)
    flat = [value for point in points for value in point] if pairs else [None]
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in flat):
        raise UserError(f"{where}: 'points' must be a list of [x, y].")
    return [float(v) for v in flat]
