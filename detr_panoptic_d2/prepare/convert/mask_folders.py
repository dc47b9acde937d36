"""Read masks beside images: a class per pixel (CamVid, VOC), or an object (Penn-Fudan, VOC)."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from scipy import ndimage

from ...errors import UserError
from .class_files import read_class_file
from .source import (
    Item,
    Labels,
    Segment,
    Size,
    Source,
    check_size,
    existing_folder,
    find_images,
    log_left_out,
    logger,
    open_image,
)
from .values import errors_in

_PACK = np.array([1, 256, 65536])
# From the size of the image to the name and the pixels of each class.
Regions = Callable[[Size], Iterator[tuple[str, np.ndarray]]]
# From the pixels of a thing class to the number of the object of each pixel, 0 for void.
Objects = Callable[[np.ndarray], np.ndarray]


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

    A stuff class is one segment. The objects of a thing class are those of the object mask, or the
    connected regions if there is none. Unless the list or the user say otherwise, classes are
    stuff. With object masks they are things, apart from "background".

    Args:
        images: folder of the images.
        masks: folder of the class masks.
        labels: list of the classes; see :func:`read_mask_classes`.
        objects: folder of the object masks: pixel = number of the object, 0 = no object.
        mask_suffix: ``a.jpg`` has the masks ``a<mask_suffix>``; None: see :func:`match_masks`.
        void_value: value of unlabelled pixels in masks of one channel.

    Raises:
        FileNotFoundError: a file is missing, or no image has a mask.
        UserError: the list of classes does not fit.
    """
    classes = read_mask_classes(labels)
    mask_of_image = match_masks(masks, find_images(images), mask_suffix, images)
    split: dict[str, Objects] = {name: _connected_regions for name in mask_of_image}
    if objects is not None:
        object_masks = match_masks(objects, list(mask_of_image), mask_suffix, images)
        if missing := [name for name in mask_of_image if name not in object_masks]:
            raise UserError(f"{len(missing)} images have no mask in '{objects}', as {missing[0]}.")
        split = {
            name: partial(_objects_of_mask, mask, void_value) for name, mask in object_masks.items()
        }
    items = [
        Item(
            name,
            partial(_draw_classes, partial(class_regions, classes, void_value, m), split[name]),
        )
        for name, m in mask_of_image.items()
    ]
    for category in classes:
        if category["isthing"] is None:
            category["isthing"] = int(objects is not None and category["name"] != "background")
    return Source(images, classes, items)


def _draw_classes(regions: Regions, split: Objects, size: Size, things: Collection[str]) -> Labels:
    """Label the objects of thing classes, and each stuff class as a whole."""
    labels = Labels(np.zeros(size, np.int32), [])
    for name, region in regions(size):
        if name not in things:
            labels.segments.append(Segment(name))
            labels.map[region] = len(labels.segments)
            continue
        numbers = split(region)
        for number in np.unique(numbers[region]).tolist():
            labels.segments.append(Segment(name if number else None))
            labels.map[region & (numbers == number)] = len(labels.segments)
    return labels


def _connected_regions(region: np.ndarray) -> np.ndarray:
    return ndimage.label(region, np.ones((3, 3)))[0]


def _objects_of_mask(mask: Path, void_value: int, region: np.ndarray) -> np.ndarray:
    image = _read(mask, region.shape)
    if image.mode in ("RGB", "RGBA"):
        return _pack_colors(image)
    numbers = _numbers(image, mask)
    return np.where(numbers == void_value, 0, numbers)


def instance_masks(
    images: Path,
    masks: Path,
    *,
    category: str = "object",
    mask_suffix: str | None = None,
    void_value: int | None = None,
) -> Source:
    """Read images with one class of things, and a mask for each: 0 background, n the n-th object.

    Numbers may have gaps.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        category: name of the class.
        mask_suffix: ``a.jpg`` has the mask ``a<mask_suffix>``; None: see :func:`match_masks`.
        void_value: value of void pixels, which are neither object nor background; None: 255 in
            images with a palette (the borders of VOC).

    Raises:
        FileNotFoundError: a folder is missing, or no image has a mask.
    """
    names = find_images(images)
    mask_of_image = match_masks(masks, names, mask_suffix, images, default="_mask.png")
    items = [
        Item(name, partial(_draw_objects, category, void_value, mask))
        for name, mask in mask_of_image.items()
    ]
    return Source(images, [{"name": category}], items)


def _draw_objects(
    category: str, void_value: int | None, mask: Path, size: Size, things: Collection[str]
) -> Labels:
    image = _read(mask, size)
    values = _numbers(image, mask)
    if void_value is None and image.mode == "P":
        void_value = 255
    # Put 0 first, which the mask may not have.
    unique, labels = np.unique(np.append(values.ravel(), 0), return_inverse=True)
    names = [None if value == void_value else category for value in unique[1:].tolist()]
    return Labels(labels[:-1].reshape(size).astype(np.int32), [Segment(name) for name in names])


def read_mask_classes(labels: Path) -> list[dict]:
    """Read the list of the classes of masks; see :func:`.class_files.read_class_file`.

    A list with colors is for masks in color (RGB or palette). Other masks hold ids: positions in
    the list, unless it has ids.

    Raises:
        FileNotFoundError: the list is missing.
        UserError: the list is invalid, or has an id or color twice.
    """
    classes = read_class_file(labels)
    if len({tuple(c["color"]) for c in classes if c["color"]}) not in (0, len(classes)):
        raise UserError(f"'{labels}': each class, or none, must have a color of its own.")
    return classes


def class_regions(
    classes: list[dict], void_value: int, mask: Path, size: Size
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the pixels, bool (H, W), of each class of a mask.

    Raises:
        OSError: the mask is missing or broken.
        UserError: it has another size than its image, or a value or color of no class.
    """
    image = _read(mask, size)
    names = {c["id"]: c["name"] for c in classes}
    in_color = image.mode in ("P", "RGB", "RGBA") and classes[0]["color"]
    if in_color:
        names = {int(np.dot(c["color"], _PACK)): c["name"] for c in classes}
        values = _pack_colors(image)
        if image.mode == "P":
            # Borders of VOC have an index and a color of no class.
            is_void = (np.asarray(image) == void_value) & ~np.isin(values, list(names))
            values[is_void] = -1
    else:
        values = _numbers(image, mask)
    for value in np.unique(values).tolist():
        if value in names:
            yield names[value], values == value
        elif value == -1:
            continue
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


def read_mask_numbers(mask: Path, size: Size) -> np.ndarray:
    """Return the numbers of a mask as int32 (H, W).

    Raises:
        OSError: the mask is missing or broken.
        UserError: it has another size than its image, or no numbers.
    """
    return _numbers(_read(mask, size), mask)


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
    """Find the mask of each image, and warn of masks without an image.

    Args:
        root: folder of the masks.
        images: names of the images; ``a/b.jpg`` has the mask ``a/b<suffix>``.
        suffix: of the masks. None: the one that most images have a mask with.
        image_root: folder of the images.
        default: the suffix if several fit equally well.

    Returns:
        dict: the path of the mask of each image that has one.

    Raises:
        FileNotFoundError: the folder does not exist, or no image has a mask.
        UserError: two suffixes fit equally well.
    """
    existing_folder(root)
    stem_of_image = {name: str(PurePosixPath(name).with_suffix("")) for name in images}
    if suffix is None:
        suffix = _find_suffix(root, set(stem_of_image.values()), image_root, default)
    existing = {p for p in root.rglob(f"*{suffix}") if not p.name.startswith(".")}
    candidates = {name: root / f"{stem}{suffix}" for name, stem in stem_of_image.items()}
    matched = {name: path for name, path in candidates.items() if path in existing}
    if not matched:
        raise FileNotFoundError(
            f"None of {len(images)} images has a mask. The mask of '{images[0]}' would be "
            f"'{candidates[images[0]]}'. Check the folders and --mask-suffix."
        )
    log_left_out("masks without an image", sorted(existing - set(matched.values())))
    return matched


def _find_suffix(root: Path, stems: Collection[str], image_root: Path, default: str) -> str:
    counts: Counter[str] = Counter()
    for path in root.rglob("*.*"):
        name = path.relative_to(root).as_posix()
        if not path.name.startswith(".") and path != image_root / name:
            ends = (end for end in range(len(name) - 1, 0, -1) if name[:end] in stems)
            if (end := next(ends, None)) is not None:
                counts[name[end:]] += 1
    best = [suffix for suffix, count in counts.items() if count == max(counts.values())]
    if default in best:
        return default
    if len(best) > 1:
        raise UserError(
            f"'{root}' has several files for each image: {', '.join(sorted(best))}. Choose one of "
            "these with --mask-suffix."
        )
    if not best:
        return default
    logger.info("Masks in '%s' have the suffix '%s'.", root, best[0])
    return best[0]
