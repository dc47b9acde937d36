"""What every converter gives to the writer: images, classes, and a label map per image."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from ...apps.predict import IMAGE_SUFFIXES
from ...errors import UserError

# EXIF tag of the orientation, and its values that exchange width and height.
EXIF_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)
# Category of a segment that is void because the data or the user says so. Pixels without label
# may still become background, or stuff that a model sees; these may not.
VOID = 0


class Segment(NamedTuple):
    """A segment of a label map. ``category_id`` is that of the json, or ``VOID``."""

    category_id: int
    iscrowd: int = 0


@dataclass
class Labels:
    """The truth of one image before it is written.

    Attributes:
        map: int32 (H, W); 0 where nothing is labelled, s + 1 for segment s.
        segments: (S,) in any order. Segments may be without pixels; parts of one stuff class, and
            crowds of one class, become one segment when written; void is not written.
    """

    map: np.ndarray
    segments: list[Segment]


@dataclass(frozen=True)
class Item:
    """One image of a data set.

    Attributes:
        file_name: relative to the source's ``image_root``, with ``/``.
        truth: what the source needs to label the image; plain values that json can write.
        image_id: from the annotation file, if it has ids.
        split: of the image, if the data set comes in splits.
    """

    file_name: str
    truth: Any
    image_id: int | str | None = None
    split: str | None = None


class Source(Protocol):
    """A data set in some other format, listed and checked, its masks not yet drawn.

    Attributes:
        image_root: folder of the images.
        categories: as in a COCO panoptic json.
        items: one per image.
        options: what else decides about the result.
    """

    image_root: Path
    categories: list[dict]
    items: list[Item]
    options: dict[str, Any]

    def label(self, item: Item, size: tuple[int, int]) -> Labels:
        """Draw the truth of an image of ``size`` (height, width)."""


@dataclass
class Skipped:
    """Counts what a converter leaves out, by reason, for one warning at the end."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        """Count one case of ``reason``."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, example)

    def lines(self) -> list[str]:
        """One line per reason."""
        return [
            f"{n} {reason}, such as {self.examples[reason]}" for reason, n in self.counts.items()
        ]


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


def require_files(root: Path, names: Iterable[str], what: str) -> None:
    """Check that files are there.

    Raises:
        FileNotFoundError: names the first that is missing, and how many are.
    """
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} {what} are missing in '{root}', the first is '{missing[0]}'."
        )


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
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION) in _TRANSPOSED
    except FileNotFoundError:
        raise FileNotFoundError(f"Image '{path}' does not exist.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"Image '{path}' cannot be read: {error}") from error
    return (width, height) if turned else (height, width)


def read_mask(path: Path) -> Image.Image:
    """Read a mask image whole.

    Raises:
        OSError: it is no whole image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except FileNotFoundError:
        raise FileNotFoundError(f"Mask '{path}' does not exist.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"Mask '{path}' cannot be read: {error}") from error


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
    """Check that a truth is as large as its image.

    Args:
        found: (height, width) of the truth.
        size: (height, width) of the upright image.
        what: the truth's name for the error.
        image: the image's name.

    Raises:
        UserError: sizes differ.
    """
    if tuple(found) != tuple(size):
        hint = ""
        if tuple(found) == tuple(size)[::-1]:
            hint = (
                " If the image is turned by its EXIF orientation: truth must be in the upright "
                "frame. Turn the image itself (for example 'mogrify -auto-orient') and label anew."
            )
        raise UserError(
            f"{what} is {found[1]} wide and {found[0]} high, but its image '{image}' is {size[1]} "
            f"wide and {size[0]} high.{hint}"
        )
