"""Read Label Studio's json export: polygons, brushes, rectangles and ellipses."""

import re
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from ...errors import UserError
from .shapes import Shape, draw_shapes, ellipse, fill_polygons, place_mask, rotate
from .source import IMAGE_SUFFIXES, Item, Size, Source, find_images, log_left_out
from .values import errors_in, numbers, polygon, read_json, read_size

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
            versions = _annotations(task)
            if not versions:
                continue
            name = _image_name(task, paths_by_name, images)
            if name in items:
                raise UserError(f"another task has the image '{name}' too")
            several += [where] * (len(versions) > 1)
            shapes, size = _read_results(versions[0], where, not_drawn)
        labels |= {shape.name for shape in shapes}
        items[name] = Item(name, partial(draw_shapes, shapes), size=size)
    log_left_out("shapes of a kind that is not drawn", not_drawn)
    log_left_out("further annotations of tasks that have several", several)
    classes = [{"name": label} for label in sorted(labels)]
    return Source(images, classes, [items[name] for name in sorted(items)])


def _annotations(task: dict) -> list[list[dict]]:
    """Return the results of each annotation that was not cancelled."""
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
        raise UserError("no list 'annotations'. Export as 'JSON', not 'JSON-MIN'")
    results = [a.get("result") for a in annotations if not a.get("was_cancelled")]
    for result in results:
        if not isinstance(result, list) or not all(isinstance(r, dict) for r in result):
            raise UserError("'result' must be a list of mappings")
    return results


def _image_name(task: dict, paths_by_name: dict[str, list[str]], root: Path) -> str:
    """Return the image of a task, relative to the folder of the images."""
    data = task["data"] if isinstance(task.get("data"), dict) else {}
    values = [v for v in (*data.values(), task.get("file_upload")) if isinstance(v, str)]
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


def _read_results(
    results: list[dict], where: str, not_drawn: list[str]
) -> tuple[list[Shape], Size | None]:
    """Return the shapes of an annotation, and the size of its image."""
    merged: dict[str, dict] = {}
    size = None
    for index, result in enumerate(results):
        if isinstance(result.get("value"), dict):
            # A shape and its label may be two results with one id.
            key = f"{where}, result {result.get('id', index)}"
            merged.setdefault(key, {}).update(result["value"])
            size = size or read_size(result, "original_height", "original_width")
            if result.get("image_rotation"):
                raise UserError("its image was rotated in Label Studio, which is not supported")
    shapes = []
    for key, value in merged.items():
        lists = [v for k, v in value.items() if k.endswith("labels") and isinstance(v, list) and v]
        with errors_in(f"result {key.rpartition(' ')[2]}"):
            encode = _encoder(value)
        if encode is not None and lists and isinstance(lists[0][0], str):
            shapes.append(Shape(key, lists[0][0], encode))
        elif encode is not None or lists:
            not_drawn.append(key)
    return shapes, size


def _encoder(value: dict) -> Callable[[Size], dict] | None:
    """Return the function that encodes a shape. Lengths are percentages of the image."""
    if "rle" in value:
        return partial(_place_brush, value["rle"])
    if "points" in value:
        return partial(_fill, polygon(value["points"], "'points'"), (0, 0), 0)
    if not value.keys() & {"radiusX", "width"}:
        return None
    keys = ("x", "y", "radiusX", "radiusY") if "radiusX" in value else ("x", "y", "width", "height")
    x, y, a, b = numbers([value.get(key) for key in keys], f"{', '.join(keys)}", 4).tolist()
    (degrees,) = numbers([value.get("rotation") or 0], "'rotation'")
    if "radiusX" in value:
        return partial(_fill, ellipse([0, 0, a, b]), (x, y), degrees)
    # The rectangle turns around its first corner.
    return partial(_fill, np.array([[0, 0], [a, 0], [a, b], [0, b]]), (x, y), degrees)


def _fill(offsets: np.ndarray, center: tuple[float, float], degrees: float, size: Size) -> dict:
    scale = np.array(size[::-1]) / 100
    return fill_polygons([rotate(offsets * scale, *(center * scale), degrees)], size)


def _place_brush(rle: Any, size: Size) -> dict:
    """Decode a brush (the format of ``@thi.ng/rle-pack``) and encode its mask.

    The bits are: 32 for the number of values, 5 for the bits of a value less one, 4 times 4 for
    the bits of a length less one. Then runs follow: 1 bit that says whether all values are equal, 2
    for the size of the length, the length less one, and one value or all values. The values are
    R, G, B, A of each pixel. Alpha is the mask.
    """
    try:
        bits = "".join(f"{byte:08b}" for byte in bytes(rle if isinstance(rle, list) else [-1]))
    except (TypeError, ValueError):
        raise UserError("'rle' must be a list of bytes") from None
    position = 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        if position > len(bits):
            raise UserError("'rle' ends too early")
        return int(bits[position - count : position], 2)

    num_values, value_bits = read(32), read(5) + 1
    if num_values != 4 * size[0] * size[1]:
        raise UserError(f"'rle' has {num_values} values, not 4 x {size[0]} x {size[1]}")
    length_bits = [read(4) + 1 for _ in range(4)]
    values = np.zeros(num_values, np.uint32)
    start = 0
    while start < num_values:
        is_run = read(1)
        stop = min(start + 1 + read(length_bits[read(2)]), num_values)
        # NumPy repeats the value of a run.
        values[start:stop] = [read(value_bits) for _ in range(1 if is_run else stop - start)]
        start = stop
    return place_mask(values.reshape(*size, 4)[..., 3] > 0, 0, 0, size)
