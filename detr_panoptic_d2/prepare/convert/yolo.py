"""Read YOLO labels: a text file per image, each line a class and a polygon or a box."""

from functools import partial
from pathlib import Path

import numpy as np
import yaml

from ...errors import UserError
from .classes import parse_classes, read_class_file
from .shapes import Shape, draw_shapes, fill_polygons
from .source import Box, Item, Size, Source, find_images, upright_size
from .values import errors_in, numbers, read_text, to_int


def yolo(images: Path, labels: Path, annotations: Path | None = None) -> Source:
    """Read images with YOLO labels.

    A line is the number of a class and a polygon (x y x y ..., relative to the size of the image),
    or a box (center x, center y, width, height). An image with an empty text file has no objects;
    an image without a text file is not annotated. ``labels`` is a ``data.yaml`` with ``names``, or
    a list of classes. The text files are in ``annotations``. By default they have ``labels`` in
    the place of the last folder ``images``, or are beside the images.
    """
    classes = _read_classes(labels)
    names = {c["id"]: c["name"] for c in classes}
    items: list[Item] = []
    has_masks = False
    for name in find_images(images):
        path = _text_file(images, name, annotations)
        if not path.is_file():
            continue
        shapes: list[Shape] = []
        boxes: list[Box] = []
        size: Size | None = None
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            where = f"'{path}': line {number}"
            with errors_in(where):
                class_name, points = _parse_line(line, names)
            if len(points) == 2:
                size = size or upright_size(images / name)
                x, y, w, h = (points * size[::-1]).ravel().tolist()
                boxes.append(Box(where, class_name, (x - w / 2, y - h / 2, w, h)))
            else:
                shapes.append(Shape(where, class_name, partial(_fill, points)))
        has_masks |= bool(shapes)
        items.append(Item(name, partial(draw_shapes, shapes), boxes=boxes))
    if not items:
        raise FileNotFoundError(f"No image of '{images}' has a text file, such as '{path}'.")
    return Source(images, classes, items, has_masks)


def _text_file(images: Path, name: str, annotations: Path | None) -> Path:
    beside = (images / name).with_suffix(".txt").absolute()
    if annotations is not None:
        return (annotations / name).with_suffix(".txt")
    before, _, after = beside.as_posix().rpartition("/images/")
    in_labels = Path(f"{before}/labels/{after}")
    return in_labels if in_labels.is_file() else beside


def _read_classes(path: Path) -> list[dict]:
    """Return the classes of a ``data.yaml``, or of another list of classes."""
    if path.suffix.lower() not in (".yaml", ".yml"):
        return read_class_file(path)
    content = read_yaml(path)
    if "kpt_shape" in content:
        raise UserError(f"'{path}' is of a set with keypoints (kpt_shape). These are no polygons.")
    names = content.get("names")
    entries = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"'{path}' has no 'names' of classes.")
    return parse_classes([{"id": key, "name": name} for key, name in entries.items()], path)


def read_yaml(path: Path) -> dict:
    """Read a yaml file without Python tags whose top level is a mapping."""
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"'{path}' is not a yaml file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is not a mapping.")
    return content


def _parse_line(line: str, names: dict[int, str]) -> tuple[str, np.ndarray]:
    """Return the class name and points (N, 2); of a box these are its center and size."""
    number, *values = line.split()
    class_id = to_int(number, "the class")
    if class_id not in names:
        raise UserError(f"the class is {class_id}, but the classes are {sorted(names)}")
    points = numbers(values, "the coordinates")
    if len(points) % 2 or len(points) < 4:
        raise UserError(f"{len(points)} coordinates are neither a polygon nor a box")
    if np.abs(points - 0.5).max() > 1:
        raise UserError("coordinates must be relative to the image, from 0 to 1")
    return names[class_id], points.reshape(-1, 2)


def _fill(points: np.ndarray, size: Size) -> dict:
    return fill_polygons([points * size[::-1]], size)
