"""Instance-id masks (Penn-Fudan's form: a pixel has the number of its object) -> panoptic."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .categories import Category
from .class_masks import match_masks
from .source import (
    Item,
    Labels,
    LeftOut,
    Segment,
    Source,
    check_size,
    find_images,
    mask_values,
    read_mask,
    require_folder,
)


def instance_masks(
    images: Path,
    masks: Path,
    *,
    category: str = "object",
    mask_suffix: str = "_mask.png",
    void_value: int | None = None,
) -> Source:
    """Images of one class of things, and a mask for each: 0 background, n the n-th object.

    Numbers may have gaps. The masks of the published Penn-Fudan set are so.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        category: name of the class.
        mask_suffix: what follows the image's name without suffix in the name of its mask.
        void_value: a value that means void, and neither object nor background; None: there is none.

    Raises:
        FileNotFoundError: a folder is missing, or no image has a mask.
    """
    names = find_images(images)
    left_out: LeftOut = defaultdict(list)
    matched = match_masks(require_folder(masks, "--masks"), names, mask_suffix, left_out)
    items = [Item(name, mask) for name, mask in matched.items()]
    draw = _Draw(masks, category, void_value)
    return Source(images, [Category(category)], items, draw, left_out=left_out)


@dataclass(frozen=True)
class _Draw:
    """Numbers the objects of an image without gaps."""

    masks: Path
    category: str
    void_value: int | None

    def __call__(self, item: Item, size: tuple[int, int], things: Collection[str]) -> Labels:
        path = self.masks / item.annotation
        values = mask_values(read_mask(path), path)
        check_size(values.shape, size, f"Mask '{path}'", item.file_name)
        numbers, labels = np.unique(values, return_inverse=True)
        labels = labels.reshape(size).astype(np.int32)
        if numbers[0] == 0:
            numbers = numbers[1:]
        else:
            labels += 1
        names = [None if n == self.void_value else self.category for n in numbers.tolist()]
        return Labels(labels, [Segment(name) for name in names])
