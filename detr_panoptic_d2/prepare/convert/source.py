"""What the reader of each format gives to the writer: images, classes, and how to draw labels."""

import contextlib
import json
import logging
import os
import reprlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags

from ...data.panoptic_png import open_image
from ...errors import UserError
from ...files import inside_root

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
Size = tuple[int, int]  # height, width


class Segment(NamedTuple):
    """A segment of a label map.

    ``name`` is that of its class. None, or a class that is ignored, is void: unlike pixels without
    a label it becomes neither background nor stuff that a model sees.
    """

    name: str | None
    iscrowd: int = 0


@dataclass
class Labels:
    """The labels of one image before they are written.

    Segments may be without pixels; parts of one stuff class, and crowds of one class, become one
    segment when written.
    """

    map: np.ndarray  # int32 (H, W); 0 where nothing is labelled, s + 1 for segment s
    segments: list[Segment]


@dataclass(frozen=True)
class Item:
    """One image of a data set.

    Attributes:
        file_name: relative to the source's ``image_root``, with ``/``.
        draw: ``draw((height, width), things)`` returns the :class:`Labels` of the upright image;
            ``things`` are the names of the classes that are things. It is called in other
            processes, so it is a ``functools.partial`` of plain values.
        image_id: from the annotation file, if it has ids.
        size: (height, width) that the annotation file says, if it does.
    """

    file_name: str
    draw: Callable[[Size, Collection[str]], Labels]
    image_id: int | str | None = None
    size: Size | None = None


@dataclass
class Source:
    """A data set in some other format: listed, its masks not yet drawn."""

    image_root: Path
    classes: list[dict]  # see categories.py
    items: list[Item]


@contextlib.contextmanager
def errors_of(where: str) -> Iterator[None]:
    """Name the place in errors that do not."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def log_left_out(what: str, places: Sequence[object]) -> None:
    """Warn of what is left out: its number, and one place."""
    if places:
        logger.warning("Left out: %d %s, such as %s.", len(places), what, places[0])


def read_json(path: Path, *keys: str) -> Any:
    """Read a json; with ``keys``, a mapping that has a list of mappings under each of them.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no json, or has not these lists.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"'{path}' does not exist.") from None
    except ValueError as error:
        raise UserError(f"'{path}' is not a json file: {error}") from error
    for key in keys:
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise UserError(f"'{path}' is not in the format: it has no list '{key}' of mappings.")
    return content


def numbers(values: Any, what: str, count: int | None = None) -> np.ndarray:
    """Return numbers, also those that are text, as float64 (N,).

    Raises:
        UserError: they are not finite numbers, or not ``count`` of them.
    """
    try:
        found = np.asarray(values, np.float64).reshape(-1)
    except (TypeError, ValueError):
        found = np.full(1, np.nan)
    if not np.isfinite(found).all() or (count is not None and len(found) != count):
        needed = "numbers" if count is None else f"{count} numbers"
        raise UserError(f"{what} must be {needed}, not {reprlib.repr(values)}")
    return found


def resolve_inside(root: Path, name: Any, base: Path | None = None) -> str:
    """Turn a path of an annotation file into a normalised one relative to ``root``, with ``/``.

    Args:
        root: folder of the images.
        name: as it stands in the file; ``\\`` counts as ``/``.
        base: folder that relative names start from; default ``root``.

    Raises:
        UserError: the name is none, or leads out of ``root``.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"{name!r} is no file name")
    full = os.path.join(base or root, name.replace("\\", "/"))
    relative = Path(os.path.relpath(full, root)).as_posix()
    inside_root(str(root), relative)
    return relative


def find_images(root: Path) -> list[str]:
    """List the image files below a folder, sorted, relative, with ``/``; hidden ones left out.

    Raises:
        FileNotFoundError: there are none.
    """
    found = (p.relative_to(root) for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    names = sorted(p.as_posix() for p in found if not any(s.startswith(".") for s in p.parts))
    if not names:
        raise FileNotFoundError(f"'{root}' has no images ({', '.join(IMAGE_SUFFIXES)}).")
    return names


def upright_size(path: Path) -> Size:
    """Return (height, width) of an image as it is looked at, EXIF orientation applied."""
    with open_image(path) as image:
        width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def check_size(found: Size, size: Size) -> None:
    """Check that an annotation is as large as its upright image; both are (height, width).

    Raises:
        UserError: it is not.
    """
    if found != size:
        raise UserError(
            f"it is {found[1]} wide and {found[0]} high, but its image {size[1]} wide and "
            f"{size[0]} high (upright, if it has an EXIF orientation)"
        )
