"""Read masks beside images: a class per pixel (CamVid, VOC), or an object (Penn-Fudan, VOC)."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from PIL import Image
from scipy import ndimage

from ...errors import UserError
from .classes import read_class_file
from .source import (
    Item,
    Labels,
    Segment,
    Size,
    Source,
    check_size,
    find_files,
    find_images,
    log_left_out,
    logger,
    open_image,
)
from .values import errors_in

_PACK = np.array([1, 256, 65536])


def class_masks(
    images: Path,
    masks: Path,
    labels: Path,
    *,
    objects: Path | None = None,
    mask_suffix: str | None = None,
    void_value: int = 255,
) -> Source:
    """Read images with a class mask for each, and optionally an object mask.

    A stuff class is one segment. The objects of a thing class are those of the object mask (0: no
    object), or the connected regions if there is none. Unless the list ``labels`` or the user say
    otherwise, classes are stuff. With object masks they are things, apart from "background".
    """
    classes = read_mask_classes(labels)
    mask_of_image = match_masks(masks, find_images(images), mask_suffix, images)
    object_masks: dict[str, Path] = {}
    if objects is not None:
        object_masks = match_masks(objects, list(mask_of_image), mask_suffix, images)
        if missing := [name for name in mask_of_image if name not in object_masks]:
            raise UserError(
                f"{len(missing)} images have no mask in '{objects}', such as {missing[0]}."
            )
    items = [
        Item(name, partial(_draw_classes, classes, void_value, mask, object_masks.get(name)))
        for name, mask in mask_of_image.items()
    ]
    for category in classes:
        if category["isthing"] is None:
            category["isthing"] = int(objects is not None and category["name"] != "background")
    return Source(images, classes, items)


def _draw_classes(
    classes: list[dict],
    void_value: int,
    mask: Path,
    object_mask: Path | None,
    size: Size,
    things: Collection[str],
) -> Labels:
    """Label the objects of thing classes, and each stuff class as a whole."""
    labels = Labels(np.zeros(size, np.int32), [])
    if object_mask is not None:
        image = _read(object_mask, size)
        if image.mode in ("RGB", "RGBA"):
            object_numbers = _pack_colors(image)
        else:
            object_numbers = _numbers(image, object_mask)
            object_numbers[object_numbers == void_value] = 0
    for name, region in class_regions(classes, void_value, mask, size):
        if name not in things:
            numbers = region
        elif object_mask is None:
            numbers = ndimage.label(region, np.ones((3, 3)))[0]
        else:
            numbers = object_numbers
        unique, indices = np.unique(numbers[region], return_inverse=True)
        labels.map[region] = len(labels.segments) + 1 + indices
        labels.segments += [Segment(name if number else None) for number in unique.tolist()]
    return labels


def instance_masks(
    images: Path,
    masks: Path,
    *,
    category: str = "object",
    mask_suffix: str | None = None,
    void_value: int | None = None,
) -> Source:
    """Read images with one class of things, and a mask for each: 0 background, n the n-th object.

    Pixels of ``void_value`` are neither; by default 255 in images with a palette (VOC's borders).
    """
    mask_of_image = match_masks(masks, find_images(images), mask_suffix, images, "_mask.png")
    items = [
        Item(name, partial(_draw_objects, category, void_value, mask))
        for name, mask in mask_of_image.items()
    ]
    return Source(images, [{"name": category}], items)


def _draw_objects(
    category: str, void_value: int | None, mask: Path, size: Size, things: Collection[str]
) -> Labels:
    image = _read(mask, size)
    void_value = 255 if void_value is None and image.mode == "P" else void_value
    # Put 0 first, which the mask may not have.
    values = np.append(_numbers(image, mask).ravel(), 0)
    unique, labels = np.unique(values, return_inverse=True)
    names = [None if value == void_value else category for value in unique[1:].tolist()]
    return Labels(labels[:-1].reshape(size).astype(np.int32), [Segment(name) for name in names])


def cityscapes(images: Path, masks: Path) -> Source:
    """Read ``leftImg8bit/<split>`` and ``gtFine/<split>`` of Cityscapes.

    Classes are the 19 that are evaluated. All others are void. A group of objects is a crowd.
    """
    stems = {name: name.removesuffix("_leftImg8bit.png") for name in find_images(images)}
    mask_of_stem = match_masks(masks, list(stems.values()), "_gtFine_instanceIds.png", images)
    keys = "id", "name", "isthing", "color"
    classes = [{key: category[key] for key in keys} for category in CITYSCAPES_CATEGORIES]
    items = [
        Item(name, partial(_draw_cityscapes, mask_of_stem[stem]))
        for name, stem in stems.items()
        if stem in mask_of_stem
    ]
    return Source(images, classes, items)


def _draw_cityscapes(mask: Path, size: Size, things: Collection[str]) -> Labels:
    """A value below 1000 is a class, a larger one 1000 times the class and a number."""
    names = {c["id"]: c["name"] for c in CITYSCAPES_CATEGORIES}
    unique, inverse = np.unique(_numbers(_read(mask, size), mask), return_inverse=True)
    segments = [
        Segment(names.get(value if value < 1000 else value // 1000), int(value < 1000))
        for value in unique.tolist()
    ]
    return Labels(inverse.reshape(size).astype(np.int32) + 1, segments)


def read_mask_classes(labels: Path) -> list[dict]:
    """Read the list of the classes of masks; see :func:`.classes.read_class_file`.

    A list with colors is for masks in color (RGB or palette). Other masks hold ids.
    """
    classes = read_class_file(labels)
    if len({tuple(c["color"]) for c in classes if c["color"]}) not in (0, len(classes)):
        raise UserError(f"'{labels}': either no class has a color, or each has a different one.")
    return classes


def class_regions(
    classes: list[dict], void_value: int, mask: Path, size: Size
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the pixels, bool (H, W), of each class of a mask."""
    image = _read(mask, size)
    in_color = image.mode in ("P", "RGB", "RGBA") and classes[0]["color"]
    if in_color:
        names = {int(np.dot(c["color"], _PACK)): c["name"] for c in classes}
        values = _pack_colors(image)
    else:
        names = {c["id"]: c["name"] for c in classes}
        values = _numbers(image, mask)
    for value in np.unique(values).tolist():
        if value in names:
            yield names[value], values == value
        elif in_color:
            rgb = value & 255, value >> 8 & 255, value >> 16
            raise UserError(
                f"Mask '{mask}' has the color {rgb}, which no class of the list has. (A mask that "
                "was stored as JPEG or resized smoothly cannot be used.)"
            )
        elif value != void_value:
            raise UserError(
                f"Mask '{mask}' has the value {value}, which no class of the list has "
                f"({sorted(names)}). Add it there, or give it as --void-value."
            )


def _read(mask: Path, size: Size) -> Image.Image:
    with open_image(mask) as image, errors_in(f"Mask '{mask}'"):
        check_size(image.size[::-1], size)
        return image.copy()


def _pack_colors(image: Image.Image) -> np.ndarray:
    """Return the colors of an image as int32 (H, W), R + 256 G + 65536 B."""
    return (np.asarray(image.convert("RGB")).astype(np.int32) @ _PACK).astype(np.int32)


def _numbers(image: Image.Image, mask: Path) -> np.ndarray:
    """Return the numbers of a one-channel mask as int32 (H, W); of palette images the indices."""
    values = np.asarray(image)
    if values.ndim != 2 or values.dtype.kind not in "uib" or values.min(initial=0) < 0:
        raise UserError(
            f"Mask '{mask}' has mode {image.mode}, but must hold numbers (8 or 16 bit grey, or a "
            "palette)."
        )
    return values.astype(np.int32)


def match_masks(
    root: Path,
    images: Sequence[str],
    suffix: str | None,
    image_root: Path,
    default: str = ".png",
) -> dict[str, Path]:
    """Return the path of the mask of each image that has one; warn of masks without an image.

    ``a/b.jpg`` has the mask ``a/b<suffix>``. Without a suffix it is the one that most images have a
    mask with. ``default`` is taken if several fit equally well.
    """
    files = set(find_files(root))
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in images}
    if suffix is None:
        named = files if root != image_root else set()
        suffix = _find_suffix(root, named, set(stems.values()), default)
    matched = {
        n: root / f"{stem}{suffix}" for n, stem in stems.items() if f"{stem}{suffix}" in files
    }
    if not matched:
        raise FileNotFoundError(
            f"None of {len(images)} images has a mask. The mask of '{images[0]}' would be "
            f"'{root / stems[images[0]]}{suffix}'. Check the folders and --mask-suffix."
        )
    masks = {root / name for name in files if name.endswith(suffix)}
    log_left_out("masks without an image", sorted(masks - set(matched.values())))
    return matched


def _find_suffix(root: Path, files: set[str], stems: set[str], default: str) -> str:
    counts: Counter[str] = Counter()
    for name in sorted(files):
        ends = (end for end in range(len(name) - 1, 0, -1) if name[:end] in stems)
        if (end := next(ends, None)) is not None:
            counts[name[end:]] += 1
    best = [suffix for suffix, count in counts.items() if count == max(counts.values())]
    if default in best or not best:
        return default
    if len(best) > 1:
        raise UserError(
            f"'{root}' has several files for each image: {', '.join(sorted(best))}. Choose one of "
            "these with --mask-suffix."
        )
    logger.info("Masks in '%s' have the suffix '%s'.", root, best[0])
    return best[0]
