"""Read CVAT's export "CVAT for images 1.1", one XML file."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .shapes import AnnotatedImage, Shape, ellipse, fill_polygons, place_mask, rectangle, to_source
from .source import Size, Source
from .values import errors_in, numbers, polygon, read_size, resolve_inside, to_int


def cvat(annotations: Path, images: Path, subset: str | None = None) -> Source:
    """Read an ``annotations.xml`` of CVAT, of a task, a job or a project with subsets.

    Polygons, boxes, ellipses and masks are drawn, in the order of their ``z_order``. Polylines,
    points, cuboids and skeletons are left out with a warning. Shapes of one label and one
    ``group_id`` are one object. ``subset`` is one of a project; None: all.
    """
    root = read_xml(annotations)
    labels = root.iterfind("./meta//labels/label")
    names = [label.findtext("name") for label in labels if label.findtext("parent") is None]
    return to_source(images, _read_images(root, annotations, images, subset), filter(None, names))


def _read_images(
    root: ElementTree.Element, path: Path, images: Path, subset: str | None
) -> Iterator[AnnotatedImage]:
    for image in root.iter("image"):
        if subset is not None and image.get("subset") != subset:
            continue
        where = f"'{path}': image {image.get('id')}"
        with errors_in(where):
            name = _image_name(image, images)
            size = read_size(image.attrib, "height", "width")
        shapes = []
        for index, element in enumerate(image):
            with errors_in(f"{where}, {element.tag} {index}"):
                label, group = element.get("label"), element.get("group_id", "0")
                if not label:
                    raise UserError("no 'label'")
                z, encode = to_int(element.get("z_order", 0), "'z_order'"), _encoder(element)
            group = None if group == "0" else group
            shape = Shape(f"{where}, {element.tag} {index}", label, encode, group, z=z)
            shapes += [] if element.tag == "tag" else [shape]
        yield AnnotatedImage(where, name, size, shapes)


def _image_name(image: ElementTree.Element, root: Path) -> str:
    """Return the path of an image relative to ``root``: the first that exists of CVAT's exports."""
    name, subset = image.get("name"), image.get("subset")
    names = [f"{subset}/{name}", f"images/{subset}/{name}", name] if name and subset else [name]
    resolved = [resolve_inside(root, candidate) for candidate in names]
    return next((n for n in resolved if (root / n).is_file()), resolved[-1])


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuse document types: their entities can grow without bound, or name other files."""

    def doctype(self, *_: Any) -> None:
        raise UserError("it has a DOCTYPE, which is not read for safety; remove it")


def read_xml(path: Path) -> ElementTree.Element:
    """Return the root of an XML of "CVAT for images"."""
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_NoDoctype())).getroot()
        if root.tag != "annotations" or root.find("track") is not None:
            raise UserError("export the task in that format (not 'for video')")
    except (ElementTree.ParseError, UserError, ValueError, LookupError) as error:
        raise UserError(f"'{path}' is not an XML file of 'CVAT for images 1.1': {error}") from error
    return root


def _encoder(element: ElementTree.Element) -> Callable[[Size], dict] | None:
    """Return the function that encodes a shape; None for a kind without an area."""

    def values(*names: str) -> list:
        return [element.get(name) for name in names]

    (degrees,) = numbers([element.get("rotation", 0)], "'rotation'")
    if element.tag == "polygon":
        points = polygon(element.get("points", "").replace(";", ",").split(","))
    elif element.tag == "box":
        points = rectangle(values("xtl", "ytl", "xbr", "ybr"), degrees)
    elif element.tag == "ellipse":
        points = ellipse(values("cx", "cy", "rx", "ry"), degrees)
    elif element.tag == "mask":
        # Runs along the rows of the box; the first run is of zeros.
        runs = [to_int(run.strip(), "a run of 'rle'") for run in element.get("rle", "").split(",")]
        sides = ("left", "top", "width", "height")
        return partial(_place_runs, runs, *(to_int(element.get(s), f"'{s}'") for s in sides))
    else:
        return None
    return partial(fill_polygons, [points])


def _place_runs(runs: list[int], left: int, top: int, width: int, height: int, size: Size) -> dict:
    if min(runs) < 0 or sum(runs) != width * height or width > size[1] or height > size[0]:
        raise UserError(f"the runs of a mask do not add up to {width} x {height} inside the image")
    mask = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    return place_mask(mask, left, top, size)
