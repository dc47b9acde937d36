"""What the reader of each format gives to the writer: images, classes, and how to draw labels."""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...errors import UserError
from .categories import Category

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
# EXIF tag of the orientation, and its values that exchange width and height.
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)
# What a reader leaves out: reasons, and for each of them where (a defaultdict of lists).
LeftOut = dict[str, list[str]]


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

    Attributes:
        map: int32 (H, W); 0 where nothing is labelled, s + 1 for segment s.
        segments: (S,) in any order. Segments may be without pixels; parts of one stuff class, and
            crowds of one class, become one segment when written.
    """

    map: np.ndarray
    segments: list[Segment]


@dataclass(frozen=True)
class Item:
    """One image of a data set.

    Attributes:
        file_name: relative to the source's ``image_root``, with ``/``.
        annotation: what the source's ``draw`` needs to label the image; plain values.
        image_id: from the annotation file, if it has ids.
    """

    file_name: str
    annotation: Any
    image_id: int | str | None = None


@dataclass
class Source:
    """A data set in some other format: listed and checked, its masks not yet drawn.

    Attributes:
        image_root: folder of the images.
        classes: those that the data has, in its order.
        items: one per image.
        draw: ``draw(item, (height, width), things)`` returns the :class:`Labels` of an image of
            that upright size; ``things`` are the names of the classes that are things. Goes to
            other processes, so it can be pickled and does not hold the items.
        thing_by_default: what a class is of which neither data nor user say it.
        left_out: of the data, for a warning.
    """

    image_root: Path
    classes: list[Category]
    items: list[Item]
    draw: Callable[[Item, tuple[int, int], Collection[str]], Labels]
    thing_by_default: bool = True
    left_out: LeftOut = field(default_factory=dict)


def resolve_inside(root: Path, name: Any, where: str, *, base: Path | None = None) -> str:
    """Turn a path of an annotation file into one relative to ``root``, which it must not leave.

    Args:
        root: folder of the images.
        name: as it stands in the file; ``\\`` counts as ``/``.
        where: what to name in errors.
        base: folder that relative names start from; default ``root``.

    Returns:
        The normalised relative path, with ``/``.

    Raises:
        UserError: the name is none, or leads out of ``root``.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise UserError(f"{where}: {name!r} is no file name.")
    plain = name.replace("\\", "/")
    top = os.path.abspath(root)
    full = os.path.normpath(os.path.join(os.path.abspath(base or root), plain))
    if PureWindowsPath(name).drive or not full.startswith(os.path.join(top, "")):
        raise UserError(
            f"{where}: the path {name!r} leads out of '{root}'. Paths of an annotation file must "
            "stay within the image folder: correct the file, or give the folder that holds all "
            "images with --images."
        )
    return Path(os.path.relpath(full, top)).as_posix()


def require_folder(path: Path, option: str) -> Path:
    """Return the folder.

    Raises:
        FileNotFoundError: it is none.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{option} '{path}' is no folder.")
    return path


def find_images(root: Path) -> list[str]:
    """List the image files below a folder, sorted, relative, with ``/``; hidden ones left out.

    Raises:
        FileNotFoundError: it is no folder, or has no images.
    """
    require_folder(root, "--images")
    found = (p.relative_to(root) for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    names = sorted(p.as_posix() for p in found if not any(s.startswith(".") for s in p.parts))
    if not names:
        raise FileNotFoundError(f"'{root}' has no images ({', '.join(IMAGE_SUFFIXES)}).")
    return names


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image as it is looked at: upright, EXIF orientation applied.

    Only the head of the file is read.

    Raises:
        OSError: the file is no image.
    """
    with _opened("Image", path) as image:
        width, height = image.size
        turned = image.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSED
    return (width, height) if turned else (height, width)


def read_mask(path: Path) -> Image.Image:
    """Read a mask image whole.

    Raises:
        OSError: it is no whole image.
    """
    with _opened("Mask", path) as image:
        return image.copy()


@contextlib.contextmanager
def _opened(what: str, path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"{what} '{path}' does not exist.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{what} '{path}' cannot be read: {error}") from error


def mask_values(image: Image.Image, path: Path) -> np.ndarray:
    """Return the numbers of a one-channel mask (H, W) as int32; of palette images the indices.

    Raises:
        UserError: the mask is in colour, or its numbers are no integers from 0 up.
    """
    values = np.asarray(image)
    if values.ndim != 2 or values.dtype.kind not in "uib" or (values.size and values.min() < 0):
        raise UserError(
            f"Mask '{path}' has mode {image.mode}; a mask of numbers (8 or 16 bit grey, or a "
            "palette) is needed."
        )
    return values.astype(np.int32)


def check_size(found: tuple[int, ...], size: tuple[int, int], what: str, image: str) -> None:
    """Check that an annotation is as large as its image.

    Args:
        found: (height, width) of the annotation.
        size: (height, width) of the upright image.
        what: the annotation's name for the error.
        image: the image's name.

    Raises:
        UserError: sizes differ.
    """
    if tuple(found) != tuple(size):
        hint = ""
        if tuple(found) == tuple(size)[::-1]:
            hint = (
                " If the image is turned by its EXIF orientation: annotations must fit the upright "
                "image. Turn the image itself (for example 'mogrify -auto-orient') and label anew."
            )
        raise UserError(
            f"{what} is {found[1]} wide and {found[0]} high, but its image '{image}' is {size[1]} "
            f"wide and {size[0]} high.{hint}"
        )
