"""Read the layout of Cityscapes: ``leftImg8bit`` and ``gtFine``."""

from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from .mask_folders import match_masks, read_mask_numbers
from .source import Item, Labels, Segment, Size, Source, find_images

_IMAGE_END, _MASK_END = "_leftImg8bit", "_gtFine_instanceIds.png"


def cityscapes(images: Path, masks: Path) -> Source:
    """Read images and masks of a split of Cityscapes.

    Classes are the 19 that are evaluated. All others are void. A group of objects is a crowd.

    Args:
        images: ``leftImg8bit/<split>``.
        masks: ``gtFine/<split>``, with ``*_gtFine_instanceIds.png``.

    Raises:
        FileNotFoundError: a folder is missing, or no image has a mask.
    """
    image_of_stem = {
        str(Path(n).with_suffix("")).removesuffix(_IMAGE_END): n for n in find_images(images)
    }
    mask_of_stem = match_masks(masks, list(image_of_stem), _MASK_END, images)
    keys = "id", "name", "isthing", "color"
    classes = [{key: category[key] for key in keys} for category in CITYSCAPES_CATEGORIES]
    items = [Item(image_of_stem[stem], partial(_draw, mask)) for stem, mask in mask_of_stem.items()]
    return Source(images, classes, items)


def _draw(mask: Path, size: Size, things: Collection[str]) -> Labels:
    """A value below 1000 is a class, a larger one 1000 times the class and a number."""
    values = read_mask_numbers(mask, size)
    names = {c["id"]: c["name"] for c in CITYSCAPES_CATEGORIES}
    unique, inverse = np.unique(values, return_inverse=True)
    segments = [
        Segment(names.get(value if value < 1000 else value // 1000), int(value < 1000))
        for value in unique.tolist()
    ]
    return Labels(inverse.reshape(size).astype(np.int32) + 1, segments)
