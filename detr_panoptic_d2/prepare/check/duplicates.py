"""Find images of two data sets that are the same, or show nearly the same."""

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .findings import Finding

if TYPE_CHECKING:
    from .dataset import ImageResult, Report

_HASH_SIZE = 16
# Of the cells, so that a uniform background alone does not make images similar.
_MIN_EDGES = 32
# Agreement of the edges of two hashes, from -1 to 1. It is about 0 for unrelated photographs.
_MIN_AGREEMENT = 0.85
# Roboflow appends this to the name of a photograph.
_ROBOFLOW = re.compile(r"(_jpe?g|_png)?\.rf\.[0-9a-zA-Z]{16,}$")
_TILE = re.compile(r"([_-]\d+){2}$")


def picture_hash(image: np.ndarray) -> np.ndarray | None:
    """Return the difference hash of an image: where the brightness rises or falls along a row.

    Args:
        image: H x W x 3 uint8 RGB.

    Returns:
        ndarray: int8 (256,), 1 rises, -1 falls, 0 neither. None: the image is too uniform.
    """
    grey = Image.fromarray(image).convert("L")
    small = grey.resize((_HASH_SIZE + 1, _HASH_SIZE), Image.Resampling.BOX)
    steps = np.diff(np.asarray(small).astype(np.int16)).ravel()
    signs = (np.sign(steps) * (abs(steps) > 2)).astype(np.int8)
    return signs if np.count_nonzero(signs) >= _MIN_EDGES else None


def find_shared_images(reports: Sequence["Report"]) -> list[Finding]:
    """Compare all pairs of data sets, and add their findings to the report of the second set."""
    findings = []
    for first, second in combinations(reports, 2):
        of_digest = {image.digest: image for image in first.images if image.digest}
        of_photograph = {_photograph(image.name): image for image in first.images}
        of_photograph.pop(None, None)
        nearest = _nearest(first.images, second.images)
        for image in second.images:
            others = {
                "image-in-two-sets": of_digest.get(image.digest),
                "similar-image": nearest.get(image.name),
                "same-photograph": of_photograph.get(_photograph(image.name)),
            }
            for kind, other in others.items():
                if other is not None:
                    detail = f"'{other.name}' of {first.paths.name}"
                    findings.append(Finding(kind, image.name, detail))
                    second.findings.append(findings[-1])
                    break
    return findings


def _photograph(file_name: str) -> str | None:
    """Return the name of the photograph of a file of Roboflow or of a tile; None: another file."""
    stem = PurePosixPath(file_name).stem
    name = _ROBOFLOW.sub("", stem)
    tile = _TILE.sub("", name)
    # "frame_0_12" says nothing, "street7_0_12" does.
    name = tile if re.search(r"\d", tile) and re.search("[a-zA-Z]", tile) else name
    return None if name == stem else name


def _nearest(
    first: Sequence["ImageResult"], second: Sequence["ImageResult"]
) -> dict[str, "ImageResult"]:
    """Return the most similar image of the first set for images of the second that have one."""
    known = [image for image in first if image.picture_hash is not None]
    hashes = np.array([image.picture_hash for image in known], np.float32)
    nearest = {}
    for image in second if known else ():
        if image.picture_hash is not None:
            own = image.picture_hash.astype(np.float32)
            agreement = 2 * (hashes @ own) / (abs(hashes).sum(axis=1) + abs(own).sum())
            if agreement.max() >= _MIN_AGREEMENT:
                nearest[image.name] = known[int(agreement.argmax())]
    return nearest
