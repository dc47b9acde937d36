"""Splits of a data set: their names, and which image is in which."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...errors import UserError
from .source import Source

_HELD_OUT = ("val", "valid", "validation", "dev", "test")


def check_split_names(names: Sequence[str]) -> None:
    """Check names that become part of file names.

    Raises:
        UserError: one cannot, or is there twice.
    """
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(
                f"Split name {name!r} becomes part of file names: letters, digits, '_', '-' only."
            )
    if len(set(names)) < len(names):
        raise UserError(f"--split-names has a name twice: {', '.join(names)}.")


def split_by_chance(source: Source, shares: Mapping[str, float], seed: int) -> dict[str, Source]:
    """Divide the images of a source.

    Args:
        source: of N images.
        shares: names of splits and the shares of the images that they get, by chance.
        seed: of the chance. The order of the items does not matter.

    Raises:
        UserError: shares are not positive or do not add up to 1, or a split would be empty.
    """
    values = np.array(list(shares.values()))
    if (values <= 0).any() or abs(values.sum() - 1) > 1e-6:
        raise UserError(f"Split shares {values.tolist()} must be positive and add up to 1.")
    count = len(source.items)
    ends = np.rint(np.cumsum(values) * count).astype(int)
    if (np.diff(ends, prepend=0) == 0).any():
        raise UserError(f"A split of {count} images by {values.tolist()} leaves one empty.")
    # Sorted first, so that the split does not depend on the order of a file.
    by_name = sorted(range(count), key=lambda i: source.items[i].file_name)
    order = np.random.default_rng(seed).permutation(count)
    place = np.empty(count, int)
    place[[by_name[i] for i in order]] = np.arange(count)
    number = np.searchsorted(ends, place, side="right")
    return {
        name: replace(source, items=[source.items[i] for i in np.flatnonzero(number == n)])
        for n, name in enumerate(shares)
    }


def roles(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Choose the splits for training and for evaluation.

    ``val`` (or ``valid``, ``validation``, ``dev``, else ``test``) is for evaluation, what has no
    such name for training. Where names do not tell, the last one is for evaluation; if there is
    only one, it is for both.

    Returns:
        (list, list): names for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
    """
    held_out = [n for h in _HELD_OUT for n in names if n.lower() == h]
    rest = [n for n in names if n not in held_out]
    if held_out and rest:
        return rest, held_out[:1]
    return list(names[:-1]) or list(names), list(names[-1:])
