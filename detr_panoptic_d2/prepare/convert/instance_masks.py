"""Instance-id masks (Penn-Fudan's form: a pixel has the number of its object) -> panoptic."""

from pathlib import Path

import numpy as np

from .categories import ClassOptions, Found, choose_categories
from .class_masks import match_masks
from .source import (
    VOID,
    Item,
    Labels,
    Segment,
    check_size,
    find_images,
    mask_values,
    read_mask,
    require_folder,
)


class InstanceMasks:
    """Images of one class of things, and a mask for each: 0 background, n the n-th object.

    Numbers may have gaps. The masks of the published Penn-Fudan set are so.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        category: name of the class.
        mask_suffix: what follows the image's name without suffix in the name of its mask.
        void_value: a value that means void, and neither object nor background; None: there is none.
        classes: options.

    Raises:
        FileNotFoundError: a folder or a mask is missing.
        ValueError: the options do not fit.
    """

    def __init__(
        self,
        images: Path,
        masks: Path,
        *,
        category: str = "object",
        mask_suffix: str = "_mask.png",
        void_value: int | None = None,
        classes: ClassOptions = ClassOptions(),  # noqa: B008  immutable
    ):
        names = find_images(images)
        self.image_root = images
        self._masks = require_folder(masks, "--masks")
        self.categories = choose_categories([Found(category)], classes)
        self._category_id = next(c["id"] for c in self.categories if c["name"] == category)
        self.items = [Item(n, truth) for n, truth in match_masks(masks, names, mask_suffix).items()]
        self._void = void_value
        self.options = {"format": "instance masks", "category": category, "void": void_value}

    def label(self, item: Item, size: tuple[int, int]) -> Labels:
        """Number the objects of an image without gaps."""
        path = self._masks / item.truth["mask"]
        values = mask_values(read_mask(path), path)
        check_size(values.shape, size, f"Mask '{path}'", item.file_name)
        numbers, labels = np.unique(values, return_inverse=True)
        labels = labels.reshape(size).astype(np.int32)
        if numbers[0] == 0:
            numbers = numbers[1:]
        else:
            labels += 1
        ids = [VOID if n == self._void else self._category_id for n in numbers.tolist()]
        return Labels(labels, [Segment(category_id) for category_id in ids])
