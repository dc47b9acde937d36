"""Read Label Studio's json export: polygons, brushes, rectangles and ellipses."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from ...errors import UserError
from .shapes import AnnotatedImage, Shape, ellipse, fill_polygons, place_mask, rotate, to_source
from .source import IMAGE_SUFFIXES, Size, Source, find_images, log_left_out
from .values import errors_in, numbers, polygon, read_json, read_size

# Label Studio puts this in front of the name of an uploaded file.
_UPLOAD_PREFIX = re.compile("^[0-9a-f]{8}-")


def label_studio(annotations: Path, images: Path) -> Source:
    """Read an export of Label Studio in the format "JSON".

    Images are matched by name, also without the prefix of uploaded files. If a task has several
    annotations, the first one counts.
    """
    tasks = read_json(annotations)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise UserError(f"'{annotations}' has another format. Export as 'JSON', not 'JSON-MIN'.")
    return to_source(images, _read_tasks(tasks, annotations, images))


def _read_tasks(tasks: list[dict], path: Path, root: Path) -> Iterator[AnnotatedImage]:
    paths_by_name = defaultdict(list)
    for name in find_images(root):
        paths_by_name[PurePosixPath(name).name].append(name)
    several = []
    for task in tasks:
        where = f"'{path}': task {task.get('id')!r}"
        with errors_in(where):
            annotations = task.get("annotations")
            if not isinstance(annotations, list) or not all(map(_is_valid, annotations)):
                raise UserError("no 'annotations' with results. Export as 'JSON', not 'JSON-MIN'")
            results = [a["result"] for a in annotations if not a.get("was_cancelled")]
            if results:
                several += [where] if len(results) > 1 else []
                name = _image_name(task, paths_by_name, root)
                yield AnnotatedImage(where, name, *_read_results(results[0], where))
    log_left_out("further annotations of tasks that have several", several)


def _is_valid(annotation: Any) -> bool:
    results = annotation.get("result") if isinstance(annotation, dict) else None
    return isinstance(results, list) and all(isinstance(result, dict) for result in results)


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


def _read_results(results: list[dict], where: str) -> tuple[Size | None, list[Shape]]:
    """Return the size of the image of an annotation, and the shapes."""
    merged: dict[str, dict] = defaultdict(dict)
    size = None
    for index, result in enumerate(results):
        if isinstance(result.get("value"), dict):
            # A shape and its label may be two results with one id.
            merged[f"result {result.get('id', index)}"] |= result["value"]
            size = size or read_size(result, "original_height", "original_width")
            if result.get("image_rotation"):
                raise UserError("its image was rotated in Label Studio, which is not supported")
    shapes = []
    for key, value in merged.items():
        lists = [v for k, v in value.items() if k.endswith("labels") and isinstance(v, list) and v]
        is_labelled = bool(lists) and isinstance(lists[0][0], str)
        with errors_in(key):
            encode = _encoder(value) if is_labelled else None
        shapes.append(Shape(f"{where}, {key}", lists[0][0] if is_labelled else "", encode))
    return size, shapes


def _encoder(value: dict) -> Callable[[Size], dict] | None:
    """Return the function that encodes a shape. Lengths are percentages of the image."""
    if "rle" in value:
        return partial(_place_brush, value["rle"])
    if "points" in value:
        return partial(_fill, polygon(value["points"], "'points'"), (0, 0), 0)
    if not value.keys() & {"radiusX", "width"}:
        return None
    keys = ("x", "y", "radiusX", "radiusY") if "radiusX" in value else ("x", "y", "width", "height")
    x, y, a, b = numbers([value.get(key) for key in keys], ", ".join(keys), 4).tolist()
    (degrees,) = numbers([value.get("rotation") or 0], "'rotation'")
    if "radiusX" in value:
        return partial(_fill_ellipse, np.array([[x, y], [a, b]]), degrees)
    # A rectangle turns around its first corner.
    return partial(_fill, np.array([[0, 0], [a, 0], [a, b], [0, b]]), (x, y), degrees)


def _fill(offsets: np.ndarray, center: tuple[float, float], degrees: float, size: Size) -> dict:
    scale = np.array(size[::-1]) / 100
    return fill_polygons([rotate(offsets * scale, *(center * scale), degrees)], size)


def _fill_ellipse(center_and_radii: np.ndarray, degrees: float, size: Size) -> dict:
    scaled = center_and_radii * (np.array(size[::-1]) / 100)
    return fill_polygons([ellipse(scaled.ravel().tolist(), degrees)], size)


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
