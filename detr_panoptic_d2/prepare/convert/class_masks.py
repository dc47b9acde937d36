"""Class masks (CamVid's form: a class index or colour per pixel) -> panoptic."""

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from scipy import ndimage

from ...errors import UserError
from .categories import ClassOptions, Found, choose_categories, read_class_file
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


@dataclass(frozen=True)
class MaskClasses:
    """What the pixels of class masks mean.

    A list of classes with colours is for masks in colour (RGB or palette); grey masks hold ids,
    which are positions in the list unless it has ids of its own.

    Attributes:
        root: folder of the masks.
        classes: with ids, and colours if masks are in colour.
        void: value that means "not labelled" although the list does not have it.
    """

    root: Path
    classes: tuple[Found, ...]
    void: int = 255

    @classmethod
    def read(cls, root: Path, labels: Path | None, suffix: str, void: int = 255) -> "MaskClasses":
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

    def found(self) -> list[Found]:
        """Return the classes for ``choose_categories``: 0 is an id in masks only."""
        return [replace(c, id=c.id or None) for c in self.classes]

    def as_options(self, ids: dict[str, int]) -> dict[str, Any]:
        """Return what decides about the result, for the fingerprint."""
        return {
            "classes": [[c.name, c.id, c.color] for c in self.classes],
            "void": self.void,
            **ids,
        }

    def name_of(self, value: int, mask: str) -> str | None:
        """Return the class of a value of :meth:`values`; None where nothing is labelled.

        Raises:
            UserError: the list does not have the value.
        """
        for c in self.classes:
            if c.id == value:
                return c.name
        if value == self.void:
            return None
        raise UserError(
            f"Mask '{self.root / mask}' has the value {value}, which is no class of the list "
            f"({sorted(c.id for c in self.classes)}). Add it there, or give it as --void-value."
        )

    def values(self, mask: str, size: tuple[int, int], image: str) -> np.ndarray:
        """Read a mask as class ids, int32 (H, W).

        Raises:
            OSError: it is no whole image.
            UserError: it has another size than its image, or a colour that is in no class.
        """
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


def match_masks(root: Path, images: list[str], suffix: str) -> dict[str, dict]:
    """Find the mask of each image: ``a/b.jpg`` has ``a/b<suffix>`` in the folder of masks.

    Returns:
        dict: image name to ``{"mask": name, "bytes": size of its file}``.

    Raises:
        FileNotFoundError: names the first image without mask.
    """
    result, missing = {}, []
    for name in images:
        mask = str(PurePosixPath(name).with_suffix("")) + suffix
        if (root / mask).is_file():
            result[name] = {"mask": mask, "bytes": (root / mask).stat().st_size}
        else:
            missing.append((name, mask))
    if missing:
        there = next((p.name for p in sorted(root.iterdir()) if p.is_file()), None)
        hint = f" The folder has '{there}': is --mask-suffix right?" if there else ""
        raise FileNotFoundError(
            f"{len(missing)} of {len(images)} images have no mask; '{missing[0][0]}' needs "
            f"'{root / missing[0][1]}'.{hint}"
        )
    return result


class ClassMasks:
    """Images and a class mask for each.

    Stuff classes become one segment per image, things one per connected component; ignored
    classes are void.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        labels: list of the classes; see ``categories.read_class_file``.
        mask_suffix: what follows the image's name without suffix in the name of its mask.
        void_value: value of unlabelled pixels in grey masks.
        connectivity: 8, or 4 to keep apart what touches at corners only.
        classes: options; classes are stuff unless the list or ``things`` make them things.

    Raises:
        FileNotFoundError: a file or folder is missing.
        UserError: the list of classes does not fit.
    """

    def __init__(
        self,
        images: Path,
        masks: Path,
        labels: Path,
        *,
        mask_suffix: str = ".png",
        void_value: int = 255,
        connectivity: int = 8,
        classes: ClassOptions = ClassOptions(),  # noqa: B008  immutable
    ):
        names = find_images(images)
        self.image_root = images
        self._masks = MaskClasses.read(masks, labels, mask_suffix, void_value)
        found = self._masks.found()
        self.categories = choose_categories(found, classes, thing_by_default=False)
        self._ids = {c["name"]: c["id"] for c in self.categories}
        self._things = {c["id"] for c in self.categories if c["isthing"]}
        self.items = [Item(n, truth) for n, truth in match_masks(masks, names, mask_suffix).items()]
        if connectivity not in (4, 8):
            raise UserError(f"Connectivity is {connectivity}, but can be 4 or 8 only.")
        self._structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
        self.options: dict[str, Any] = {
            "format": "class masks",
            "connectivity": connectivity,
            **self._masks.as_options(self._ids),
        }

    def label(self, item: Item, size: tuple[int, int]) -> Labels:
        """Label the components of things, and each stuff class as a whole."""
        mask = item.truth["mask"]
        values = self._masks.values(mask, size, item.file_name)
        result = np.zeros(size, np.int32)
        segments: list[Segment] = []
        for value in np.unique(values).tolist():
            name = self._masks.name_of(value, mask)
            if name is None:
                continue
            category_id = self._ids.get(name, VOID)
            where = values == value
            if category_id in self._things:
                components, count = ndimage.label(where, self._structure)
                result[where] = components[where] + len(segments)
            else:
                count = 1
                result[where] = len(segments) + 1
            segments += [Segment(category_id)] * count
        return Labels(result, segments)
