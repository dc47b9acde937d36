"""From paths to sources: one per split."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .coco import coco_instances
from .cvat import cvat
from .labelme import labelme
from .mask_folders import class_masks, instance_masks
from .source import Source, find_images, log_left_out

FORMATS = {
    "coco": coco_instances,
    "instance-masks": instance_masks,
    "class-masks": class_masks,
    "labelme": labelme,
    "cvat": cvat,
}
_NAMES = ("train", "val", "test")


def open_splits(
    format_name: str,
    inputs: Mapping[str, Sequence[Path]],
    options: Mapping[str, Any],
    *,
    names: Sequence[str] | None = None,
    shares: Sequence[float] | None = None,
    seed: int = 0,
) -> dict[str, Source]:
    """Read data that come in splits, or divide data that do not, and warn of what is left out.

    Args:
        format_name: key of ``FORMATS``.
        inputs: paths for the format's function: one for each split, or one for all.
        options: further arguments of the format's function.
        names: of the splits; default train, val, test, as many as needed.
        shares: divide the images of a single input by chance.
        seed: of the chance.

    Raises:
        UserError: inputs, names and shares do not fit; else as the format's function.
        OSError: an input is missing or cannot be read.
    """
    count = max(len(paths) for paths in inputs.values())
    if any(len(paths) not in (1, count) for paths in inputs.values()):
        given = ", ".join(f"--{key} {len(paths)}" for key, paths in inputs.items())
        raise UserError(f"Each input needs one path, or one for each split ({given}).")
    if shares and count > 1:
        raise UserError("--split divides one input by chance; here each split has its own.")
    wanted = len(shares) if shares else count
    names = names or [*_NAMES, *(f"split{n}" for n in range(4, wanted + 1))][:wanted]
    if len(names) != wanted:
        what = "shares after --split" if shares else "inputs, or --split with a share for each"
        raise UserError(f"{len(names)} --split-names need as many {what}; there is {wanted}.")
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name) or names.count(name) > 1:
            raise UserError(
                f"Split name {name!r} must be there once, and of letters, digits, '_' and '-', "
                "since it becomes part of file names."
            )
    sources = [
        FORMATS[format_name](**{key: p[n % len(p)] for key, p in inputs.items()}, **options)
        for n in range(count)
    ]
    roots = sorted({source.image_root for source in sources})
    used = {source.image_root / item.file_name for source in sources for item in source.items}
    unused = [
        root / name for root in roots for name in find_images(root) if root / name not in used
    ]
    log_left_out("images without an annotation", unused)
    if shares:
        return split_by_chance(sources[0], dict(zip(names, shares, strict=True)), seed)
    return dict(zip(names, sources, strict=True))


def split_by_chance(source: Source, shares: Mapping[str, float], seed: int) -> dict[str, Source]:
    """Divide the images of a source by chance, whatever their order; shares are by split name.

    Raises:
        UserError: shares are not positive or do not add up to 1, or a split would be empty.
    """
    values = np.array(list(shares.values()))
    if (values <= 0).any() or abs(values.sum() - 1) > 1e-6:
        raise UserError(f"Split shares {values.tolist()} must be positive and add up to 1.")
    # Sorted first, so that the split does not depend on the order of a file.
    items = sorted(source.items, key=lambda item: item.file_name)
    ends = np.rint(np.cumsum(values) * len(items)).astype(int)
    if (np.diff(ends, prepend=0) == 0).any():
        raise UserError(f"A split of {len(items)} images by {values.tolist()} leaves one empty.")
    parts = np.split(np.random.default_rng(seed).permutation(len(items)), ends[:-1])
    return {
        name: replace(source, items=[items[i] for i in np.sort(part)])
        for name, part in zip(shares, parts, strict=True)
    }
