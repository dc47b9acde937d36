"""CVAT's export "CVAT for images 1.1": one XML file -> panoptic."""

import math
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.parsers import expat

from ...errors import UserError
from .categories import Category
from .shapes import DrawShapes, ellipse, polygon, rectangle, shape
from .source import Item, LeftOut, Source, require_folder, resolve_inside

_DRAWN = ("polygon", "box", "ellipse", "mask")


def cvat(annotations: Path, images: Path, *, overlap: str = "smaller-on-top") -> Source:
    """An ``annotations.xml`` of CVAT.

    Polygons, boxes, ellipses and masks are drawn, by their ``z_order`` first; polylines, points,
    cuboids and skeletons are left out with a warning. Shapes of one label and one ``group_id`` are
    one object. Attributes are not read. Classes are in the order of the task.

    Args:
        annotations: the XML file.
        images: folder of the images.
        overlap: rule within one ``z_order``; see :func:`shapes.draw_shapes`.

    Raises:
        FileNotFoundError: the file or the folder is missing.
        UserError: the file is not in the format, declares a document type (entities), or names a
            path outside of ``images``.
    """
    require_folder(images, "--images")
    root = parse_xml(annotations)
    if root.tag != "annotations" or root.find("track") is not None:
        raise UserError(
            f"'{annotations}' is not in the format 'CVAT for images 1.1'. Export the task in that "
            "format (not 'for video')."
        )
    items: dict[str, Item] = {}
    left_out: LeftOut = defaultdict(list)
    for image in root.iter("image"):
        where = f"'{annotations}': image {image.get('id')}"
        name = resolve_inside(images, image.get("name"), where)
        if name in items:
            raise UserError(f"{where}: the image '{name}' is listed twice.")
        items[name] = _item(image, name, where, left_out)
    return Source(
        images,
        _classes(root),
        [items[name] for name in sorted(items)],
        DrawShapes(overlap, "The XML's entry"),
        left_out=left_out,
    )


def _item(image: ElementTree.Element, name: str, where: str, left_out: LeftOut) -> Item:
    shapes: dict[Any, dict] = {}
    for index, element in enumerate(image):
        at = f"{where}, {element.tag} {index}"
        if element.tag not in _DRAWN:
            if element.tag != "tag":
                left_out[f"shapes are a {element.tag}, which is not drawn"].append(at)
            continue
        label = element.get("label")
        if not label:
            raise UserError(f"{at} has no 'label'.")
        part = _part(element, at, left_out)
        if part is None:
            continue
        group, z = element.get("group_id", "0"), int(_number(element, "z_order", at, "0"))
        key = ("alone", index) if group == "0" else (label, group)
        if key in shapes:
            shapes[key]["parts"].append(part)
        else:
            shapes[key] = shape(label, part, z=z)
    size = [int(_number(image, side, where)) for side in ("height", "width")]
    return Item(name, {"shapes": list(shapes.values()), "size": size})


def _part(element: ElementTree.Element, where: str, left_out: LeftOut) -> dict | None:
    if element.tag == "polygon":
        pairs = (element.get("points") or "").split(";")
        checked = polygon([p.split(",") for p in pairs if p], where)
        if checked is None:
            left_out["polygons have fewer than three points"].append(where)
        return {"polygons": [checked]} if checked else None
    if element.tag == "mask":
        return _mask(element, where)
    names = ("xtl", "ytl", "xbr", "ybr") if element.tag == "box" else ("cx", "cy", "rx", "ry")
    numbers = [_number(element, name, where) for name in names]
    degrees = _number(element, "rotation", where, "0")
    make = rectangle if element.tag == "box" else ellipse
    return {"polygons": [make(*numbers, degrees)]}


def parse_xml(path: Path) -> ElementTree.Element:
    """Parse an XML file that has no document type declaration.

    Such a declaration can hold entities that grow without bound, or that name other files; no
    annotation tool writes one.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no XML, or has a document type declaration.
    """

    def refuse(*_: Any) -> None:
        raise UserError(
            f"'{path}' has a document type declaration (DOCTYPE), through which XML can define "
            "entities. For safety such files are not read; remove the declaration."
        )

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        with open(path, "rb") as file:
            parser.ParseFile(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"XML file '{path}' does not exist.") from None
    except expat.ExpatError as error:
        raise UserError(f"'{path}' is not an XML file: {error}") from error
    return builder.close()


def _classes(root: ElementTree.Element) -> list[Category]:
    """Return the labels of the task, or else those in use, sorted."""
    classes = []
    # Of a project, all tasks may list the same labels.
    for label in root.iterfind("./meta//labels/label"):
        name, color = label.findtext("name"), (label.findtext("color") or "").lstrip("#")
        rgb = tuple(bytes.fromhex(color)) if len(color) == 6 else None
        if name and label.findtext("parent") is None and all(c.name != name for c in classes):
            classes.append(Category(name, color=rgb))
    used = {e.get("label") for image in root.iter("image") for e in image if e.tag in _DRAWN}
    known = {c.name for c in classes}
    return classes + [Category(name) for name in sorted(n for n in used if n and n not in known)]


def _mask(element: ElementTree.Element, where: str) -> dict:
    box = {side: int(_number(element, side, where)) for side in ("left", "top", "width", "height")}
    runs = (element.get("rle") or "").replace(" ", "").split(",")
    if not all(run.isdigit() for run in runs):
        raise UserError(f"{where}: the 'rle' of a mask must be numbers with commas.")
    return {"runs": [int(run) for run in runs], **box}


def _number(
    element: ElementTree.Element, name: str, where: str, default: str | None = None
) -> float:
    text = element.get(name, default)
    try:
        value = float(text if text is not None else "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: '{name}' is {text!r}, not a number.")
    return value
