"""Findings of a check, and those that compare the images of two datasets."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from .dataset import ImageResult, Report

# Kinds of findings that are no errors: training and evaluation run and are right.
WARNINGS = (
    "wrong-box",
    "one-pixel",
    "nothing-labelled",
    "exif-rotated",
    "unused-class",
    "split-stuff",
    "no-annotation",
    "duplicate-image",
    "image-in-two-sets",
    "similar-image",
    "same-photograph",
)
# Kinds for which the correct entry of the json follows from the PNG, the image or the json.
FIXABLE = (
    "segment-without-pixels",
    "wrong-area",
    "no-area",
    "wrong-box",
    "wrong-size",
    "wrong-crowd",
    "repeated-entry",
)
# Findings of one kind in one image that are kept.
MAX_PER_IMAGE = 20
_HASH_SIZE = 16
# Of the cells, so that a uniform background alone does not make images similar.
_MIN_EDGES = 32
# Agreement of the edges of two hashes, from -1 to 1. It is about 0 for unrelated photographs.
_MIN_AGREEMENT = 0.85
# Roboflow appends this to the name of a photograph.
_ROBOFLOW = re.compile(r"(_jpe?g|_png)?\.rf\.[0-9a-zA-Z]{16,}$")
_TILE = re.compile(r"([_-]\d+){2}$")


class Finding(NamedTuple):
    """One fault of a dataset."""

    kind: str
    where: str  # file name of the image as in the json, or the list that holds the entry
    detail: str

    @property
    def is_error(self) -> bool:
        """Whether training or evaluation would stop or go wrong."""
        return self.kind not in WARNINGS

    @property
    def severity(self) -> str:
        """ "error" or "warning"."""
        return "error" if self.is_error else "warning"


def limit_per_image(findings: Iterable[Finding]) -> list[Finding]:
    """Keep ``MAX_PER_IMAGE`` findings of a kind and place, and add their total number."""
    kept = []
    counts: Counter[tuple[str, str]] = Counter()
    for finding in findings:
        counts[finding.kind, finding.where] += 1
        if counts[finding.kind, finding.where] <= MAX_PER_IMAGE:
            kept.append(finding)
    for (kind, where), count in counts.items():
        if count > MAX_PER_IMAGE:
            kept.append(Finding(kind, where, f"{count} of these in total"))
    return kept


def picture_hash(image: np.ndarray) -> np.ndarray | None:
    """Return the difference hash of an RGB image: where the brightness changes along a row.

    It is int8 (256,): 1 rises, -1 falls, 0 neither. None: the image is too uniform.
    """
    grey = Image.fromarray(image).convert("L")
    small = grey.resize((_HASH_SIZE + 1, _HASH_SIZE), Image.Resampling.BOX)
    steps = np.diff(np.asarray(small).astype(np.int16)).ravel()
    signs = (np.sign(steps) * (abs(steps) > 2)).astype(np.int8)
    return signs if np.count_nonzero(signs) >= _MIN_EDGES else None


def find_shared_images(reports: Sequence["Report"]) -> list[Finding]:
    """Compare all pairs of datasets, and add their findings to the report of the second set."""
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
