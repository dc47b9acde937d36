"""What each reader returns: the images and classes of a dataset, and how to draw the labels."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags

from ...data.panoptic_png import open_image
from ...errors import UserError
from ...export.runtime.files import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

_NUM_EXAMPLES = 5
Size = tuple[int, int]  # height, width


class Segment(NamedTuple):
    """A segment of a label map. It is void if its class ``name`` is None or ignored."""

    name: str | None
    iscrowd: int = 0


@dataclass
class Labels:
    """The labels of one image. Segments may have no pixels."""

    # int32 (H, W); s + 1 for segment s, 0 for unlabelled pixels, which may become background.
    map: np.ndarray
    segments: list[Segment]
    lost: list[str] = field(default_factory=list)  # annotations that have no pixel in the image


class Box(NamedTuple):
    """An annotation that is a box alone: x, y, width, height in pixels; ``where`` names it."""

    where: str
    name: str
    xywh: tuple[float, float, float, float]
    iscrowd: bool = False


@dataclass(frozen=True)
class Item:
    """One image of a dataset.

    ``draw((height, width), things)`` returns the labels of the upright image, given the names of
    the thing classes. It is called in other processes, so it is a ``functools.partial``.
    """

    file_name: str  # relative to the source's ``image_root``, with ``/``
    draw: Callable[[Size, Collection[str]], Labels]
    image_id: int | str | None = None  # from the annotation file, as the size
    size: Size | None = None
    boxes: Sequence[Box] = ()  # annotations without a mask


@dataclass
class Source:
    """A dataset in another format. Its masks are drawn later."""

    image_root: Path
    classes: list[dict]  # see classes.py
    items: list[Item]
    has_masks: bool = True  # False: its annotations are boxes alone


def log_left_out(what: str, places: Sequence[object]) -> None:
    """Log a warning with the number of things that are left out, and with the first few."""
    if places:
        examples = "; ".join(map(str, places[:_NUM_EXAMPLES]))
        more = "; ..." if len(places) > _NUM_EXAMPLES else ""
        logger.warning("Left out: %d %s: %s%s", len(places), what, examples, more)


def find_images(root: Path) -> list[str]:
    """List the image files below a folder, sorted, relative to it, with ``/``. Skip hidden ones."""
    names = [name for name in find_files(root) if name.lower().endswith(IMAGE_SUFFIXES)]
    if not names:
        raise FileNotFoundError(f"'{root}' has no images ({', '.join(IMAGE_SUFFIXES)}).")
    return names


def find_files(root: Path, suffix: str = "") -> list[str]:
    """List the files below a folder in the same way."""
    if not root.is_dir():
        raise FileNotFoundError(f"The folder '{root}' does not exist.")
    paths = (p.relative_to(root) for p in root.rglob(f"*{suffix}") if p.is_file())
    return sorted(p.as_posix() for p in paths if not any(s.startswith(".") for s in p.parts))


def upright_size(path: Path) -> Size:
    """Return (height, width) of an image after its EXIF orientation is applied."""
    with open_image(path) as image:
        width, height = image.size
        is_turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (width, height) if is_turned else (height, width)


def check_size(annotated: Size, size: Size) -> None:
    """Raise ``UserError`` if an annotation has not the (height, width) of its upright image."""
    if annotated != size:
        raise UserError(
            f"it is {annotated[1]} wide and {annotated[0]} high, but its image {size[1]} wide and "
            f"{size[0]} high (upright, if it has an EXIF orientation)"
        )
