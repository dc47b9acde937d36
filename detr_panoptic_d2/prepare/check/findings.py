"""Kinds of findings of a check."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

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


class Finding(NamedTuple):
    """One fault of a data set.

    ``where`` is the file name of the image as in the json, or the list that holds the entry.
    """

    kind: str
    where: str
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
