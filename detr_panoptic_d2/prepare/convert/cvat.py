"""CVAT's export "CVAT for images 1.1": one XML file -> panoptic."""

import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

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
    resolve_inside,
)

_COLOR = re.compile("#[0-9a-fA-F]{6}")
_DRAWN = ("polygon", "box", "ellipse", "mask")


def cvat(annotations: Path, images: Path) -> Source:
    """An ``annotations.xml`` of CVAT.

    Polygons, boxes, ellipses and masks are drawn, by their ``z_order`` first; polylines, points,
    cuboids and skeletons are left out with a warning. Shapes of one label and one ``group_id`` are
    one object. Attributes are not read. Classes are in the order of the task.

    Args:
        annotations: the XML file.
        images: folder of the images.

    Raises:
        FileNotFoundError: the file is missing.
        UserError: the file is not in the format, declares a document type (entities), or names a
            path outside of ``images``.
    """
    root = _read_xml(annotations)
    items: dict[str, Item] = {}
    left_out = defaultdict(list)
    for image in root.iter("image"):
        place = f"'{annotations}': image {image.get('id')}"
        shapes = []
        with errors_of(place):
            name = resolve_inside(images, image.get("name"))
            if name in items:
                raise UserError(f"the image '{name}' is listed twice")
            for index, element in enumerate(image):
                where = f"{place}, {element.tag} {index}"
                if element.tag in _DRAWN:
                    shapes.append((where, element.tag, dict(element.attrib)))
                elif element.tag != "tag":
                    left_out[f"shapes are a {element.tag}, which is not drawn"].append(where)
            size = [image.get(side) for side in ("height", "width")]
            height, width = numbers(size, "height and width", 2).astype(int).tolist()
        items[name] = Item(name, partial(_draw, shapes), size=(height, width))
    log_left_out(left_out)
    return Source(images, _classes(root), [items[name] for name in sorted(items)])


class _NoDoctype(ElementTree.TreeBuilder):
    """Such a declaration can hold entities that grow without bound, or that name other files."""

    def doctype(self, *_: Any) -> None:
        raise UserError("it has a DOCTYPE, which is not read for safety; remove it")


def _read_xml(path: Path) -> ElementTree.Element:
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_NoDoctype())).getroot()
        if root.tag != "annotations" or root.find("track") is not None:
            raise UserError("export the task in that format (not 'for video')")
    except FileNotFoundError:
        raise FileNotFoundError(f"'{path}' does not exist.") from None
    except (ElementTree.ParseError, UserError, ValueError, LookupError) as error:
        raise UserError(f"'{path}' is no XML of 'CVAT for images 1.1': {error}") from error
    return root


def _classes(root: ElementTree.Element) -> list[dict]:
    """Return the labels of the task, and those in use."""
    colors: dict[str, str] = {}
    # Of a project, all tasks may list the same labels.
    for label in root.iterfind("./meta//labels/label"):
        if label.findtext("name") and label.findtext("parent") is None:
            colors.setdefault(label.findtext("name"), label.findtext("color") or "")
    used = {e.get("label") for image in root.iter("image") for e in image if e.tag in _DRAWN}
    for name in sorted(used - {None}):
        colors.setdefault(name, "")
    return [
        {"name": name, "color": list(bytes.fromhex(c[1:])) if _COLOR.fullmatch(c) else None}
        for name, c in colors.items()
    ]


def _draw(
    shapes: list[tuple[str, str, dict[str, str]]], size: Size, things: Collection[str]
) -> Labels:
    """Draw (place, kind, attributes) of each shape."""
    drawn = []
    for where, kind, attributes in shapes:
        with errors_of(where):
            if not attributes.get("label"):
                raise UserError("it has no 'label'")
            (z,) = numbers(attributes.get("z_order", 0), "'z_order'", 1)
            rle = _encode(kind, attributes, size)
        group = attributes.get("group_id", "0")
        drawn.append(Shape(attributes["label"], rle, None if group == "0" else group, z=int(z)))
    return draw_shapes(drawn, size, things)


def _encode(kind: str, attributes: dict[str, str], size: Size) -> dict:
    if kind == "polygon":
        points = attributes.get("points", "").replace(";", ",").split(",")
        return from_polygons([points], size)
    (degrees,) = numbers(attributes.get("rotation", 0), "'rotation'", 1)
    if kind == "box":
        return from_rectangle(
            [attributes.get(k) for k in ("xtl", "ytl", "xbr", "ybr")], size, degrees
        )
    if kind == "ellipse":
        return from_ellipse([attributes.get(k) for k in ("cx", "cy", "rx", "ry")], size, degrees)
    box = [attributes.get(side) for side in ("left", "top", "width", "height")]
    left, top, width, height = numbers(box, "the box of a mask", 4).astype(int).tolist()
    # Along the rows of the box, from a run of zeros on.
    runs = numbers(attributes.get("rle", "").split(","), "'rle'").astype(int)
    if runs.min() < 0 or runs.sum() != width * height or width > size[1] or height > size[0]:
        raise UserError(f"the runs of a mask do not add up to {width} x {height} within the image")
    pixels = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    return from_mask(pixels, left, top, size)
