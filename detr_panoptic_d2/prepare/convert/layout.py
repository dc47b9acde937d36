"""Where the files of a converted data set go: splits, and names of the PNGs."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from ...errors import UserError
from .source import Item


def json_path(output: Path, split: str) -> Path:
    """Return the path of a split's json."""
    return output / f"panoptic_{split}.json"


def panoptic_root(output: Path, split: str) -> Path:
    """Return the folder of a split's PNGs."""
    return output / f"panoptic_{split}"


def split_items(
    items: list[Item], split_name: str, fractions: Mapping[str, float] | None, seed: int
) -> list[str]:
    """Return the split of each item.

    Args:
        items: N images.
        split_name: of items that have none.
        fractions: names of splits and the shares of the images that they get, by chance; None
            leaves the items in their own splits.
        seed: of the chance. The order of the items does not matter.

    Raises:
        UserError: fractions are not positive or do not add up to 1, a split would be empty, or
            a name cannot be part of a file name.
    """
    if not items:
        raise UserError("There are no images to convert.")
    names = list(fractions) if fractions else [item.split or split_name for item in items]
    for name in dict.fromkeys(names):
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(
                f"Split name {name!r} becomes part of file names: letters, digits, '_', '-' only."
            )
    if not fractions:
        return names
    shares = np.array(list(fractions.values()))
    if (shares <= 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise UserError(f"Split shares {shares.tolist()} must be positive and add up to 1.")
    ends = np.rint(np.cumsum(shares) * len(items)).astype(int)
    if (np.diff(ends, prepend=0) == 0).any():
        raise UserError(f"A split of {len(items)} images by {shares.tolist()} leaves one empty.")
    # Sorted first, so that the split does not depend on the order of a file.
    by_name = sorted(range(len(items)), key=lambda i: items[i].file_name)
    order = np.random.default_rng(seed).permutation(len(items))
    place = np.empty(len(items), int)
    place[[by_name[i] for i in order]] = np.arange(len(items))
    return [names[i] for i in np.searchsorted(ends, place, side="right")]


def png_names(file_names: list[str], splits: list[str]) -> list[str]:
    """Return the name of each image's PNG, different ones within a split.

    ``a/b.jpg`` has ``a/b.png``, or ``a/b.jpg.png`` where another image would have the same.
    """
    names = [str(PurePosixPath(name).with_suffix(".png")) for name in file_names]
    while True:
        # Upper and lower case are one on some file systems.
        keys = [(split, name.lower()) for split, name in zip(splits, names, strict=True)]
        count = Counter(keys)
        longer = [
            f"{file_name}.png" if count[key] > 1 else name
            for file_name, name, key in zip(file_names, names, keys, strict=True)
        ]
        if longer == names:
            return names
        names = longer
