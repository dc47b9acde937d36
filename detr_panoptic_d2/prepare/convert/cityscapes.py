"""Cityscapes (``leftImg8bit`` and ``gtFine/*_instanceIds.png``) -> panoptic."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from .categories import ClassOptions, Found, choose_categories
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

# The classes that the benchmark judges: label id, name, thing, colour, as the data set's paper and
# its label files have them. All other labels are void.
_CLASSES = [
    (7, "road", False, (128, 64, 128)),
    (8, "sidewalk", False, (244, 35, 232)),
    (11, "building", False, (70, 70, 70)),
    (12, "wall", False, (102, 102, 156)),
    (13, "fence", False, (190, 153, 153)),
    (17, "pole", False, (153, 153, 153)),
    (19, "traffic light", False, (250, 170, 30)),
    (20, "traffic sign", False, (220, 220, 0)),
    (21, "vegetation", False, (107, 142, 35)),
    (22, "terrain", False, (152, 251, 152)),
    (23, "sky", False, (70, 130, 180)),
    (24, "person", True, (220, 20, 60)),
    (25, "rider", True, (255, 0, 0)),
    (26, "car", True, (0, 0, 142)),
    (27, "truck", True, (0, 0, 70)),
    (28, "bus", True, (0, 60, 100)),
    (31, "train", True, (0, 80, 100)),
    (32, "motorcycle", True, (0, 0, 230)),
    (33, "bicycle", True, (119, 11, 32)),
]
_IMAGE_END, _MASK_END = "_leftImg8bit", "_gtFine_instanceIds.png"
# Values of objects are label id * _OBJECTS + number; smaller values are label ids.
_OBJECTS = 1000


class Cityscapes:
    """The fine annotations, with the splits that the data set has.

    Pixels with the bare label id of a thing class are groups that cannot be told apart: crowd.

    Args:
        root: folder with ``leftImg8bit`` and ``gtFine``.
        splits: which ones; the masks of "test" are not published.
        classes: options.

    Raises:
        FileNotFoundError: a folder or a mask is missing.
        ValueError: the options do not fit.
    """

    def __init__(
        self,
        root: Path,
        *,
        splits: Sequence[str] = ("train", "val"),
        classes: ClassOptions = ClassOptions(),  # noqa: B008  immutable
    ):
        self.image_root = require_folder(root / "leftImg8bit", "Cityscapes' folder of images")
        self._masks = require_folder(root / "gtFine", "Cityscapes' folder of masks")
        self._names = {label: name for label, name, *_ in _CLASSES}
        found = [Found(name, label, thing, color) for label, name, thing, color in _CLASSES]
        self.categories = choose_categories(found, classes)
        self._ids = {c["name"]: c["id"] for c in self.categories}
        self._things = {c["id"] for c in self.categories if c["isthing"]}
        self.items = [item for split in splits for item in self._items(split)]
        self.options = {"format": "Cityscapes", "ids": self._ids}

    def label(self, item: Item, size: tuple[int, int]) -> Labels:
        """Turn the values of an instance-id mask into labels."""
        path = self._masks / item.truth["mask"]
        values = mask_values(read_mask(path), path)
        check_size(values.shape, size, f"Mask '{path}'", item.file_name)
        numbers, labels = np.unique(values, return_inverse=True)
        table = np.zeros(len(numbers), np.int32)
        segments: list[Segment] = []
        for place, number in enumerate(numbers.tolist()):
            is_object = number >= _OBJECTS
            label = number // _OBJECTS if is_object else number
            category_id = self._ids.get(self._names.get(label, ""), VOID)
            crowd = int(category_id in self._things and not is_object)
            segments.append(Segment(category_id, crowd))
            table[place] = len(segments)
        return Labels(table[labels].reshape(size), segments)

    def _items(self, split: str) -> list[Item]:
        items, missing = [], []
        folder = require_folder(self.image_root / split, f"Cityscapes' split '{split}'")
        for name in find_images(folder):
            stem = str(PurePosixPath(name).with_suffix(""))
            mask = f"{split}/{stem.removesuffix(_IMAGE_END)}{_MASK_END}"
            if (self._masks / mask).is_file():
                truth = {"mask": mask, "bytes": (self._masks / mask).stat().st_size}
                items.append(Item(f"{split}/{name}", truth, split=split))
            else:
                missing.append(mask)
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} masks of split '{split}' are missing in '{self._masks}', the "
                f"first is '{missing[0]}'. The package gtFine_trainvaltest.zip has them."
            )
        return items
