"""Read Label Studio's json export: polygons, brushes, rectangles and ellipses."""

import re
from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from ...errors import UserError
from .drawn_shapes import Shape, draw_shapes, from_ellipse, from_mask, from_polygons, rotate
from .source import IMAGE_SUFFIXES, Item, Size, Source, find_images, log_left_out
from .values import errors_in, numbers, polygon, read_json, read_size, to_int

# Label Studio puts this in front of the name of an uploaded file.
_UPLOAD_PREFIX = re.compile("^[0-9a-f]{8}-")


def label_studio(annotations: Path, images: Path) -> Source:
    """Read an export of Label Studio in the format "JSON".

    Images are matched by name, also without the prefix of uploaded files. If a task has several
    annotations, the first one counts. Classes are sorted by name.

    Args:
        annotations: the json.
        images: folder of the images.

    Raises:
        FileNotFoundError: a file is missing.
        UserError: the json is not in the format, or its images are not below ``images``.
    """
    tasks = read_json(annotations)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise UserError(f"'{annotations}' has another format. Export as 'JSON', not 'JSON-MIN'.")
    paths_by_name = defaultdict(list)
    for name in find_images(images):
        paths_by_name[PurePosixPath(name).name].append(name)
    items: dict[str, Item] = {}
    labels: set[str] = set()
    not_drawn: list[str] = []
    several: list[str] = []
    for task in tasks:
        where = f"'{annotations}': task {task.get('id')!r}"
        with errors_in(where):
            results, count = _results(task)
            if results is None:
                continue
            name = _image_name(task, paths_by_name, images)
            if name in items:
                raise UserError(f"another task has the image '{name}' too")
            if count > 1:
                several.append(where)
            shapes, size, unknown = _read_results(results, where)
        not_drawn += unknown
        labels |= {shape.name for shape in shapes}
        items[name] = Item(name, partial(draw_shapes, _encode, shapes), size=size)
    log_left_out("shapes of a kind that is not drawn", not_drawn)
    log_left_out("further annotations of tasks that have several", several)
    classes = [{"name": label} for label in sorted(labels)]
    return Source(images, classes, [items[name] for name in sorted(items)])


def _results(task: dict) -> tuple[list[dict] | None, int]:
    """Return the results of the first annotation that counts, and the number of these."""
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list):
        raise UserError("no list 'annotations'. Export as 'JSON', not 'JSON-MIN'")
    valid = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")]
    if not valid:
        return None, 0
    results = valid[0].get("result")
    if not isinstance(results, list) or not all(isinstance(r, dict) for r in results):
        raise UserError("'result' must be a list of mappings")
    return results, len(valid)


def _image_name(task: dict, paths_by_name: dict[str, list[str]], root: Path) -> str:
    """Return the image of a task, relative to the folder of the images."""
    data = task.get("data")
    values = [v for v in data.values() if isinstance(v, str)] if isinstance(data, dict) else []
    if isinstance(task.get("file_upload"), str):
        values.append(task["file_upload"])
    for value in values:
        url = urlsplit(value.replace("\\", "/"))
        path = PurePosixPath(unquote(parse_qs(url.query).get("d", [url.path])[0]))
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        for name in (path.name, _UPLOAD_PREFIX.sub("", path.name)):
            paths = paths_by_name.get(name, [])
            # The same name in several folders: the folder of the task decides.
            exact = [p for p in paths if str(path).endswith(f"/{p}")]
            if len(paths) == 1 or len(exact) == 1:
                return (exact or paths)[0]
            if paths:
                raise UserError(f"'{value}' may be any of {', '.join(paths)}")
    raise UserError(f"its image {values} is not below '{root}'")


def _read_results(results: list[dict], where: str) -> tuple[list[Shape], Size | None, list[str]]:
    """Return the shapes of an annotation, the size of its image, and what is not drawn."""
    merged: dict[Any, dict] = {}
    size = None
    for index, result in enumerate(results):
        value = result.get("value")
        if not isinstance(value, dict):
            continue
        # A shape and its label may be two results with one id.
        key = str(result.get("id", f"result {index}"))
        merged.setdefault(key, {}).update(value)
        size = size or read_size(result, "original_height", "original_width")
        if result.get("image_rotation"):
            raise UserError("its image was rotated in Label Studio, which is not supported")
    shapes, not_drawn = [], []
    for key, value in merged.items():
        lists = [v for k, v in value.items() if k.endswith("labels") and isinstance(v, list) and v]
        is_drawn = bool(value.keys() & {"points", "rle", "radiusX", "width"})
        if is_drawn and lists and isinstance(lists[0][0], str):
            shapes.append(Shape(f"{where}, result {key}", lists[0][0], value))
        elif is_drawn or lists:
            not_drawn.append(f"{where}, result {key}")
    return shapes, size, not_drawn


def _encode(value: dict, size: Size) -> dict:
    """Encode a shape. Lengths are percentages of the image."""
    scale = np.array(size[::-1]) / 100
    (degrees,) = numbers([value.get("rotation") or 0], "'rotation'")
    if "rle" in value:
        return from_mask(_decode_brush(value["rle"], size), 0, 0, size)
    if "points" in value:
        return from_polygons([polygon(value["points"], "'points'") * scale], size)
    x, y = numbers([value.get("x"), value.get("y")], "'x' and 'y'") * scale
    if "radiusX" in value:
        radii = numbers([value["radiusX"], value.get("radiusY")], "the radii") * scale
        return from_ellipse([float(v) for v in (x, y, *radii)], size, degrees)
    width, height = numbers([value["width"], value.get("height")], "width and height") * scale
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    # The rectangle turns around its first corner.
    return from_polygons([rotate(corners, x, y, degrees)], size)


def _decode_brush(rle: Any, size: Size) -> np.ndarray:
    """Decode a brush (the format of ``@thi.ng/rle-pack``) to a mask, bool (H, W).

    The bits are: 32 for the number of values, 5 for the bits of a value less one, 4 times 4 for
    the bits of a length less one. Then runs follow: 1 bit that says whether all values are equal, 2
    for the size of the length, the length less one, and one value or all values. The values are
    R, G, B, A of each pixel. Alpha is the mask.
    """
    if not isinstance(rle, list) or not rle:
        raise UserError("'rle' must be a list of bytes")
    data = [to_int(byte, "a byte of 'rle'") for byte in rle]
    if min(data) < 0 or max(data) > 255:
        raise UserError("'rle' must be a list of bytes")
    bits = "".join(f"{byte:08b}" for byte in data)
    position = 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        if position > len(bits):
            raise UserError("'rle' ends too early")
        return int(bits[position - count : position], 2)

    num_values = read(32)
    if num_values != 4 * size[0] * size[1]:
        raise UserError(f"'rle' has {num_values} values, not 4 x {size[0]} x {size[1]}")
    value_bits = read(5) + 1
    length_bits = [read(4) + 1 for _ in range(4)]
    values = np.zeros(num_values, np.uint32)
    start = 0
    while start < num_values:
        is_run = read(1)
        stop = start + 1 + read(length_bits[read(2)])
        if is_run:
            values[start:stop] = read(value_bits)
        else:
            for index in range(start, min(stop, num_values)):
                values[index] = read(value_bits)
        start = stop
    return values.reshape(*size, 4)[..., 3] > 0
