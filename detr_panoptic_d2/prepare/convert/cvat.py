"""CVAT's export "CVAT for images 1.1": one XML file -> panoptic."""

import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .drawn_shapes import Shape, draw_shapes, from_ellipse, from_mask, from_polygons, from_rectangle
from .source import (
    Item,
    Size,
    Source,
    errors_of,
    log_left_out,
    numbers,
    resolve_inside,
)

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
    not_drawn: list[str] = []
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
                    shapes.append(_shape(element, where))
                elif element.tag != "tag":
                    not_drawn.append(where)
            size = [image.get(side) for side in ("height", "width")]
            height, width = numbers(size, "height and width", 2).astype(int).tolist()
        items[name] = Item(name, partial(draw_shapes, _encode, shapes), size=(height, width))
    log_left_out("shapes of a kind without area", not_drawn)
    return Source(images, _classes(root), [items[name] for name in sorted(items)])


def _shape(element: ElementTree.Element, where: str) -> Shape:
    label, group = element.get("label"), element.get("group_id", "0")
    if not label:
        raise UserError(f"{element.tag} has no 'label'")
    (z,) = numbers(element.get("z_order", 0), "'z_order'", 1)
    drawn = {"kind": element.tag, **element.attrib}
    return Shape(where, label, drawn, None if group == "0" else group, z=int(z))


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
    listed = root.iterfind("./meta//labels/label")
    names = [label.findtext("name") for label in listed if label.findtext("parent") is None]
    used = {e.get("label") for image in root.iter("image") for e in image if e.tag in _DRAWN}
    # Of a project, all tasks may list the same labels.
    return [{"name": name} for name in dict.fromkeys([*names, *sorted(used)]) if name]


def _encode(drawn: dict[str, str], size: Size) -> dict:
    def of(*names: str) -> list:
        return [drawn.get(name) for name in names]

    kind = drawn["kind"]
    if kind == "polygon":
        return from_polygons([drawn.get("points", "").replace(";", ",").split(",")], size)
    (degrees,) = numbers(drawn.get("rotation", 0), "'rotation'", 1)
    if kind == "box":
        return from_rectangle(of("xtl", "ytl", "xbr", "ybr"), size, degrees)
    if kind == "ellipse":
        return from_ellipse(of("cx", "cy", "rx", "ry"), size, degrees)
    box = numbers(of("left", "top", "width", "height"), "the box of a mask", 4)
    left, top, width, height = box.astype(int).tolist()
    # Along the rows of the box, from a run of zeros on.
    runs = numbers(drawn.get("rle", "").split(","), "'rle'").astype(int)
    if runs.min() < 0 or runs.sum() != width * height or width > size[1] or height > size[0]:
        raise UserError(f"the runs of a mask do not add up to {width} x {height} within the image")
    pixels = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    return from_mask(pixels, left, top, size)
