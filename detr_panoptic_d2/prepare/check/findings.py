"""What can be wrong with a panoptic data set, and how it is said."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

ERROR, WARNING = "error", "warning"


class Kind(NamedTuple):
    """A kind of finding. An error stops training, or makes it or its evaluation wrong."""

    severity: str
    text: str


KINDS = {
    "bad-category": Kind(ERROR, "categories that are incomplete or there twice"),
    "bad-image-entry": Kind(ERROR, "entries of 'images' that are incomplete or wrong"),
    "bad-annotation": Kind(ERROR, "entries of 'annotations' that are incomplete or wrong"),
    "bad-segment": Kind(ERROR, "segments with a wrong id, crowd flag or form"),
    "unknown-category": Kind(ERROR, "segments of a category that 'categories' lacks"),
    "repeated-entry": Kind(ERROR, "entries that repeat another one exactly"),
    "missing-image": Kind(ERROR, "images that are not there"),
    "unreadable-image": Kind(ERROR, "images that cannot be read to their end"),
    "wrong-size": Kind(ERROR, "images of another size than the json says"),
    "missing-png": Kind(ERROR, "panoptic PNGs that are not there"),
    "unreadable-png": Kind(ERROR, "panoptic PNGs that cannot be read, or have no RGB"),
    "png-size": Kind(ERROR, "panoptic PNGs of another size than their image"),
    "id-without-entry": Kind(ERROR, "ids in a PNG that segments_info does not name (void)"),
    "segment-without-pixels": Kind(ERROR, "segments without a pixel in their PNG"),
    "wrong-area": Kind(ERROR, "segments whose area is missing or not that of the PNG"),
    "wrong-crowd": Kind(ERROR, "segments without 'iscrowd', which the evaluation needs"),
    "wrong-box": Kind(WARNING, "segments whose box is not that of the PNG"),
    "one-pixel": Kind(WARNING, "segments of a single pixel"),
    "split-stuff": Kind(WARNING, "stuff classes with several segments in one image"),
    "nothing-labelled": Kind(WARNING, "images without a labelled pixel"),
    "no-annotation": Kind(WARNING, "images without annotation (left out of training)"),
    "exif-rotated": Kind(WARNING, "images that are turned by their EXIF orientation"),
    "duplicate-image": Kind(WARNING, "images that are there more than once"),
    "unused-class": Kind(WARNING, "classes without a segment"),
}


class Fix(NamedTuple):
    """A change of the json that loses nothing.

    Attributes:
        place: keys and indices that lead to a mapping in the json.
        change: entries to set; None removes the mapping.
    """

    place: tuple[str | int, ...]
    change: dict[str, Any] | None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: key of ``KINDS``.
        where: image, PNG or entry.
        detail: what is wrong there.
        fix: how to put it right, if that is sure.
    """

    kind: str
    where: str
    detail: str
    fix: Fix | None = None

    @property
    def is_error(self) -> bool:
        """Whether training or evaluation would go wrong."""
        return KINDS[self.kind].severity == ERROR


def apply_fixes(content: dict, findings: Sequence[Finding]) -> int:
    """Change the content of a json in place.

    Args:
        content: of the json that was checked.
        findings: of the check.

    Returns:
        int: number of fixes.
    """
    fixes = [finding.fix for finding in findings if finding.fix is not None]
    for place, change in fixes:
        if change is not None:
            _follow(content, place).update(change)
    removed = {place for place, change in fixes if change is None}
    # From the end of each list, so that the other indices stay right; what is deeper first.
    for place in sorted(removed, key=lambda p: (len(p), p[-1]), reverse=True):
        del _follow(content, place[:-1])[place[-1]]
    return len(fixes)


def _follow(content: Any, place: tuple[str | int, ...]) -> Any:
    for key in place:
        content = content[key]
    return content
