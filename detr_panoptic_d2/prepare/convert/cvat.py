"""Read CVAT's export "CVAT for images 1.1", one XML file."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .shapes import Shape, draw_shapes, ellipse, fill_polygons, place_mask, rectangle
from .source import Item, Size, Source, log_left_out
from .values import errors_in, numbers, polygon, read_size, resolve_inside, to_int

_DRAWN = ("polygon", "box", "ellipse", "mask")


def cvat(annotations: Path, images: Path, subset: str | None = None) -> Source:
    """Read an ``annotations.xml`` of CVAT, of a task, a job or a project with subsets.

    Polygons, boxes, ellipses and masks are drawn, in the order of their ``z_order``. Polylines,
    points, cuboids and skeletons are left out with a warning. Shapes of one label and one
    ``group_id`` are one object. Attributes are not read. Classes are in the order of the task.

    Args:
        annotations: the XML file.
        images: folder of the images. An image of a subset is ``<subset>/<name>`` in it or in its
            subfolder ``images``, as CVAT exports them, or ``<name>``.
        subset: of a project; None: all.

    Raises:
        FileNotFoundError: the file is missing.
        UserError: the file is not in the format, declares a document type (entities), or names a
            path outside of ``images``.
    """
    root = _read_xml(annotations)
    items: dict[str, Item] = {}
    not_drawn: list[str] = []
    for image in root.iter("image"):
        if subset is not None and image.get("subset") != subset:
            continue
        place = f"'{annotations}': image {image.get('id')}"
        shapes = []
        with errors_in(place):
            name = _image_name(image, images)
            if name in items:
                raise UserError(f"the image '{name}' is listed twice")
            size = read_size(image.attrib, "height", "width")
        for index, element in enumerate(image):
            where = f"{place}, {element.tag} {index}"
            if element.tag in _DRAWN:
                with errors_in(where):
                    shapes.append(_read_shape(element, where))
            elif element.tag != "tag":
                not_drawn.append(where)
        items[name] = Item(name, partial(draw_shapes, shapes), size=size)
    log_left_out("shapes of a kind that is not drawn", not_drawn)
    # All labels of the task, then others in use. All tasks of a project may list the same labels.
    listed = root.iterfind("./meta//labels/label")
    names = [label.findtext("name") for label in listed if label.findtext("parent") is None]
    used = {e.get("label") for image in root.iter("image") for e in image if e.tag in _DRAWN}
    classes = [{"name": name} for name in dict.fromkeys([*names, *sorted(used)]) if name]
    return Source(images, classes, [items[name] for name in sorted(items)])


def _image_name(image: ElementTree.Element, root: Path) -> str:
    """Return the path of an image relative to ``root``: the first one that exists."""
    name, subset = image.get("name"), image.get("subset")
    names = [f"{subset}/{name}", f"images/{subset}/{name}", name] if name and subset else [name]
    resolved = [resolve_inside(root, candidate) for candidate in names]
    return next((n for n in resolved if (root / n).is_file()), resolved[-1])


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuse document types: their entities can grow without bound, or name other files."""

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


def _read_shape(element: ElementTree.Element, where: str) -> Shape:
    label, group = element.get("label"), element.get("group_id", "0")
    if not label:
        raise UserError("no 'label'")
    z = to_int(element.get("z_order", 0), "'z_order'")
    return Shape(where, label, _encoder(element), None if group == "0" else group, z=z)


def _encoder(element: ElementTree.Element) -> Callable[[Size], dict]:
    def values(*names: str) -> list:
        return [element.get(name) for name in names]

    (degrees,) = numbers([element.get("rotation", 0)], "'rotation'")
    if element.tag == "polygon":
        points = polygon(element.get("points", "").replace(";", ",").split(","))
    elif element.tag == "box":
        points = rectangle(values("xtl", "ytl", "xbr", "ybr"), degrees)
    elif element.tag == "ellipse":
        points = ellipse(values("cx", "cy", "rx", "ry"), degrees)
    else:
        # Runs along the rows of the box; the first run is of zeros.
        sides = ("left", "top", "width", "height")
        box = [to_int(element.get(side), f"'{side}'") for side in sides]
        texts = element.get("rle", "").split(",")
        return partial(_place_runs, [to_int(t.strip(), "a number of 'rle'") for t in texts], *box)
    return partial(fill_polygons, [points])


def _place_runs(runs: list[int], left: int, top: int, width: int, height: int, size: Size) -> dict:
    if min(runs) < 0 or sum(runs) != width * height or width > size[1] or height > size[0]:
        raise UserError(f"the runs of a mask do not add up to {width} x {height} inside the image")
    mask = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    return place_mask(mask, left, top, size)
