"""Masks beside images -> panoptic: a class per pixel (CamVid), or an object (Penn-Fudan)."""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from scipy import ndimage

from ...errors import UserError
from .categories import read_class_file
from .source import (
    Item,
    Labels,
    Segment,
    Size,
    Source,
    check_size,
    find_images,
    log_left_out,
    open_image,
)
from .values import errors_in

_PACK = np.array([1, 256, 65536])
# From the size of the image to the name and the pixels of each class.
Regions = Callable[[Size], Iterator[tuple[str, np.ndarray]]]


def class_masks(
    images: Path,
    masks: Path,
    labels: Path,
    *,
    mask_suffix: str = ".png",
    void_value: int = 255,
    connectivity: int = 8,
) -> Source:
    """Images and a class mask for each: of stuff one segment, of things one per component.

    Classes are stuff unless the list or the user make them things.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        labels: list of the classes; see :func:`read_mask_classes`.
        mask_suffix: what follows the image's name without suffix in the name of its mask.
        void_value: value of unlabelled pixels in grey masks.
        connectivity: 8, or 4 to keep apart what touches at corners only.

    Raises:
        FileNotFoundError: a file is missing, or no image has a mask.
        UserError: the list of classes does not fit.
    """
    classes = read_mask_classes(labels)
    matched = match_masks(masks, find_images(images), mask_suffix)
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    items = [
        Item(
            name, partial(_draw_classes, partial(class_regions, classes, void_value, m), structure)
        )
        for name, m in matched.items()
    ]
    return Source(images, [{**c, "isthing": c["isthing"] or 0} for c in classes], items)


def _draw_classes(
    regions: Regions, structure: np.ndarray, size: Size, things: Collection[str]
) -> Labels:
    """Label the components of things, and each stuff class as a whole."""
    labels = Labels(np.zeros(size, np.int32), [])
    for name, where in regions(size):
        parts, count = ndimage.label(where, structure) if name in things else (where, 1)
        labels.map[where] = parts[where] + len(labels.segments)
        labels.segments += [Segment(name)] * count
    return labels


def instance_masks(
    images: Path,
    masks: Path,
    *,
    category: str = "object",
    mask_suffix: str = "_mask.png",
    void_value: int | None = None,
) -> Source:
    """Images of one class of things, and a mask for each: 0 background, n the n-th object.

    Numbers may have gaps.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        category: name of the class.
        mask_suffix: what follows the image's name without suffix in the name of its mask.
        void_value: a value that means void, and neither object nor background; None: there is none.

    Raises:
        FileNotFoundError: a folder is missing, or no image has a mask.
    """
    items = [
        Item(name, partial(_draw_objects, category, void_value, mask))
        for name, mask in match_masks(masks, find_images(images), mask_suffix).items()
    ]
    return Source(images, [{"name": category}], items)


def _draw_objects(
    category: str, void_value: int | None, mask: Path, size: Size, things: Collection[str]
) -> Labels:
    values = _numbers(_read(mask, size), mask)
    # The background first, which may be missing.
    found, labels = np.unique(np.append(values.ravel(), 0), return_inverse=True)
    names = [None if value == void_value else category for value in found[1:].tolist()]
    return Labels(labels[:-1].reshape(size).astype(np.int32), [Segment(name) for name in names])


def read_mask_classes(labels: Path) -> list[dict]:
    """Read the list of the classes of masks; see ``categories.read_class_file``.

    A list with colours is for masks in colour (RGB or palette); grey masks hold ids, which are
    positions in the list unless it has ids of its own.

    Raises:
        FileNotFoundError: the list is missing.
        UserError: it cannot be read, or has an id or colour twice.
    """
    classes = read_class_file(labels)
    if len({tuple(c["color"]) for c in classes if c["color"]}) not in (0, len(classes)):
        raise UserError(f"'{labels}': each class, or none, must have a colour of its own.")
    return classes


def class_regions(
    classes: list[dict], void_value: int, mask: Path, size: Size
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the pixels, bool (H, W), of each class of a mask.

    Raises:
        OSError: it is no whole image.
        UserError: it has another size than its image, or a value or colour of no class.
    """
    image = _read(mask, size)
    names = {c["id"]: c["name"] for c in classes}
    in_color = image.mode in ("P", "RGB", "RGBA") and classes[0]["color"]
    if in_color:
        names = {int(np.dot(c["color"], _PACK)): c["name"] for c in classes}
        values = np.asarray(image.convert("RGB")).astype(np.int32) @ _PACK
    else:
        values = _numbers(image, mask)
    for value in np.unique(values).tolist():
        if value in names:
            yield names[value], values == value
        elif in_color:
            rgb = value & 255, value >> 8 & 255, value >> 16
            raise UserError(
                f"Mask '{mask}' has the colour {rgb}, which is in no class of the list. (A mask "
                "that was stored as JPEG or resized smoothly cannot be used.)"
            )
        elif value != void_value:
            raise UserError(
                f"Mask '{mask}' has the value {value}, which is no class of the list "
                f"({sorted(names)}). Add it there, or give it as --void-value."
            )


def _read(mask: Path, size: Size) -> Image.Image:
    with open_image(mask) as image, errors_in(f"Mask '{mask}'"):
        check_size(image.size[::-1], size)
        return image.copy()


def _numbers(image: Image.Image, mask: Path) -> np.ndarray:
    """Return the numbers of a one-channel mask as int32 (H, W); of palette images the indices."""
    values = np.asarray(image)
    if values.ndim != 2 or values.dtype.kind not in "uib" or values.min(initial=0) < 0:
        raise UserError(
            f"Mask '{mask}' has mode {image.mode}; a mask of numbers (8 or 16 bit grey, or a "
            "palette) is needed."
        )
    return values.astype(np.int32)


def match_masks(root: Path, images: list[str], suffix: str) -> dict[str, Path]:
    """Find the mask of each image, and warn of masks without an image.

    Args:
        root: folder of the masks.
        images: names of the images; ``a/b.jpg`` has the mask ``a/b<suffix>``.
        suffix: of the masks.

    Returns:
        dict: the path of the mask of each image that has one.

    Raises:
        FileNotFoundError: no image has a mask.
    """
    there = {p for p in root.rglob(f"*{suffix}") if not p.name.startswith(".")}
    wanted = {name: root / f"{PurePosixPath(name).with_suffix('')}{suffix}" for name in images}
    found = {name: mask for name, mask in wanted.items() if mask in there}
    if not found:
        raise FileNotFoundError(
            f"None of {len(images)} images has a mask; '{images[0]}' needs '{wanted[images[0]]}'. "
            "Are the folder and --mask-suffix right?"
        )
    log_left_out("masks without an image", sorted(there - set(found.values())))
    return found
