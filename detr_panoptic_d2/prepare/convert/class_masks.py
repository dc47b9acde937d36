"""Class masks (CamVid's form: a class index or colour per pixel) -> panoptic."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from scipy import ndimage

from ...errors import UserError
from .categories import Category, read_class_file
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

# Why an image may be left out.
NO_MASK = "images without a mask"


def class_masks(
    images: Path,
    masks: Path,
    labels: Path,
    *,
    mask_suffix: str = ".png",
    void_value: int = 255,
    connectivity: int = 8,
) -> Source:
    """Images and a class mask for each.

    Stuff classes become one segment per image, things one per connected component. Classes are
    stuff unless the list or the user make them things.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        labels: list of the classes; see ``categories.read_class_file``.
        mask_suffix: what follows the image's name without suffix in the name of its mask.
        void_value: value of unlabelled pixels in grey masks.
        connectivity: 8, or 4 to keep apart what touches at corners only.

    Raises:
        FileNotFoundError: a file or folder is missing, or no image has a mask.
        UserError: the list of classes does not fit.
    """
    if connectivity not in (4, 8):
        raise UserError(f"--connectivity is {connectivity}, but can be 4 or 8 only.")
    names = find_images(images)
    left_out: LeftOut = defaultdict(list)
    reader = MaskReader.open(masks, labels, mask_suffix, void_value)
    matched = match_masks(masks, names, mask_suffix, left_out)
    items = [Item(name, mask) for name, mask in matched.items()]
    draw = _Draw(reader, connectivity)
    found = reader.categories()
    return Source(images, found, items, draw, thing_by_default=False, left_out=left_out)


@dataclass(frozen=True)
class _Draw:
    """Labels the components of things, and each stuff class as a whole."""

    reader: "MaskReader"
    connectivity: int

    def __call__(self, item: Item, size: tuple[int, int], things: Collection[str]) -> Labels:
        structure = ndimage.generate_binary_structure(2, 1 if self.connectivity == 4 else 2)
        result = np.zeros(size, np.int32)
        segments: list[Segment] = []
        for name, where in self.reader.class_regions(item.annotation, size, item.file_name):
            count = 1
            if name in things:
                components, count = ndimage.label(where, structure)
                result[where] = components[where] + len(segments)
            else:
                result[where] = len(segments) + 1
            segments += [Segment(name)] * count
        return Labels(result, segments)


@dataclass(frozen=True)
class MaskReader:
    """Reads class masks.

    A list of classes with colours is for masks in colour (RGB or palette); grey masks hold ids,
    which are positions in the list unless it has ids of its own.

    Attributes:
        root: folder of the masks.
        classes: with ids, and colours if masks are in colour.
        void: value that means "not labelled" although the list does not have it.
    """

    root: Path
    classes: tuple[Category, ...]
    void: int = 255

    @classmethod
    def open(cls, root: Path, labels: Path | None, suffix: str, void: int = 255) -> "MaskReader":
        """Read the list of classes.

        Raises:
            FileNotFoundError: the folder or the list is missing.
            UserError: the list cannot be read, or has an id or colour twice.
        """
        require_folder(root, f"Folder of class masks (*{suffix})")
        if labels is None:
            raise UserError(f"Class masks ('{root}') need the list of their classes: --labels.")
        classes = tuple(read_class_file(labels))
        for key in ("id", "color"):
            values = [getattr(c, key) for c in classes if getattr(c, key) is not None]
            if twice := {v for v in values if values.count(v) > 1}:
                raise UserError(f"'{labels}' has the {key} {sorted(twice)[0]} twice.")
            if values and len(values) < len(classes):
                raise UserError(f"'{labels}' gives only some of its classes a value for {key}.")
        return cls(root, classes, void)

    def categories(self) -> list[Category]:
        """Return the classes for ``choose_categories``: 0 is an id in masks only."""
        return [replace(c, id=c.id or None) for c in self.classes]

    def class_regions(
        self, mask: str, size: tuple[int, int], image: str
    ) -> list[tuple[str, np.ndarray]]:
        """Return the name and the pixels, bool (H, W), of each class of a mask.

        Raises:
            OSError: it is no whole image.
            UserError: it has another size than its image, or a value or colour of no class.
        """
        values = self._values(mask, size, image)
        names = {c.id: c.name for c in self.classes}
        regions = []
        for value in np.unique(values).tolist():
            if value in names:
                regions.append((names[value], values == value))
            elif value != self.void:
                raise UserError(
                    f"Mask '{self.root / mask}' has the value {value}, which is no class of the "
                    f"list ({sorted(names)}). Add it there, or give it as --void-value."
                )
        return regions

    def _values(self, mask: str, size: tuple[int, int], image: str) -> np.ndarray:
        """Read a mask as class ids, int32 (H, W)."""
        path = self.root / mask
        picture = read_mask(path)
        check_size(picture.size[::-1], size, f"Mask '{path}'", image)
        if self.classes[0].color is None or picture.mode not in ("P", "RGB", "RGBA"):
            return mask_values(picture, path)
        rgb = np.asarray(picture.convert("RGB")).astype(np.int32) @ [1, 256, 65536]
        known = np.array([int(np.dot(c.color, [1, 256, 65536])) for c in self.classes])
        order = np.argsort(known)
        place = np.minimum(np.searchsorted(known[order], rgb), len(known) - 1)
        wrong = known[order][place] != rgb
        if wrong.any():
            y, x = np.argwhere(wrong)[0].tolist()
            color = picture.convert("RGB").getpixel((x, y))
            raise UserError(
                f"Mask '{path}' has the colour {color} at x={x}, y={y}, which is in no class of "
                "the list. (A mask that was stored as JPEG or resized smoothly cannot be used.)"
            )
        return np.array([c.id for c in self.classes], np.int32)[order][place]


def match_masks(root: Path, images: list[str], suffix: str, left_out: LeftOut) -> dict[str, str]:
    """Find the mask of each image: ``a/b.jpg`` has ``a/b<suffix>`` in the folder of masks.

    Args:
        root: folder of the masks.
        images: names of the images.
        suffix: of the masks.
        left_out: is told of images without a mask, and of masks without an image.

    Returns:
        dict: image name to mask name.

    Raises:
        FileNotFoundError: no image has a mask.
    """
    there = {
        p.relative_to(root).as_posix()
        for p in root.rglob("*")
        if p.name.endswith(suffix) and not p.name.startswith(".")
    }
    wanted = {name: str(PurePosixPath(name).with_suffix("")) + suffix for name in images}
    found = {name: mask for name, mask in wanted.items() if mask in there}
    if not found:
        example = next((p.name for p in sorted(root.iterdir()) if p.is_file()), None)
        hint = f" The folder has '{example}': is --mask-suffix right?" if example else ""
        raise FileNotFoundError(
            f"None of {len(images)} images has a mask; '{images[0]}' needs "
            f"'{root / wanted[images[0]]}'.{hint}"
        )
    for name, mask in wanted.items():
        if name not in found:
            left_out[NO_MASK].append(f"'{name}' (it needs '{root / mask}')")
    for mask in sorted(there - set(wanted.values())):
        left_out["masks without an image"].append(f"'{root / mask}'")
    return found
