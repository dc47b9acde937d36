"""Findings of a check, and the fixes of a json."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ...data.panoptic_check import EntryError, Place
from ...files import atomic_file

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
# Findings of one kind in one image that are kept. Findings with a fix are all kept.
MAX_PER_IMAGE = 20
# Kinds whose fix takes the PNG as correct, and those of them where the json contradicts it.
_FROM_PNG = ("segment-without-pixels", "wrong-area", "no-area", "wrong-box", "wrong-size")
_CONTRADICTIONS = ("segment-without-pixels", "wrong-area")


class Fix(NamedTuple):
    """A change of the json that loses nothing: values to set at a place; None removes the entry."""

    place: Place
    change: dict[str, Any] | None


@dataclass(frozen=True)
class Finding:
    """One fault of a data set.

    Attributes:
        kind: such as "bad-entry" or "wrong-area".
        where: file name of the image as in the json, or the list that holds the entry.
        detail: what the fault is.
        fix: how to correct it, if that is certain.
    """

    kind: str
    where: str
    detail: str
    fix: Fix | None = None

    @property
    def is_error(self) -> bool:
        """Whether training or evaluation would stop or go wrong."""
        return self.kind not in WARNINGS


def finding_of_error(error: EntryError) -> Finding:
    """Convert an error of the validator."""
    if error.repeated:
        return Finding("repeated-entry", error.where, error.detail, Fix(error.place, None))
    return Finding("bad-entry", error.where, error.detail)


def limit_per_image(findings: Iterable[Finding]) -> list[Finding]:
    """Keep ``MAX_PER_IMAGE`` findings of a kind and place, and add their total number."""
    kept = []
    counts: Counter[tuple[str, str]] = Counter()
    for finding in findings:
        counts[finding.kind, finding.where] += 1
        if counts[finding.kind, finding.where] <= MAX_PER_IMAGE or finding.fix is not None:
            kept.append(finding)
    for (kind, where), count in counts.items():
        if count > MAX_PER_IMAGE:
            kept.append(Finding(kind, where, f"{count} of these in total"))
    return kept


def keep_certain_fixes(findings: Sequence[Finding], num_segments: int) -> list[Finding]:
    """Remove the fixes that are not certain.

    - If an image has an error without a fix, nothing is taken from its PNG. For example, the areas
      of a PNG of the wrong size are wrong.
    - If more than a tenth of the segments would be removed or get another area, nothing is taken
      from any PNG. Then these are not the PNGs of the json.
    """
    num_contradictions = sum(f.fix is not None and f.kind in _CONTRADICTIONS for f in findings)
    are_other_pngs = num_contradictions > max(1, num_segments // 10)
    broken = {f.where for f in findings if f.fix is None and f.is_error}
    return [
        replace(f, fix=None) if f.kind in _FROM_PNG and (are_other_pngs or f.where in broken) else f
        for f in findings
    ]


def fix_json(path: str | os.PathLike, findings: Sequence[Finding]) -> tuple[int, Path | None]:
    """Apply the fixes to a json, after a copy of it beside it.

    Args:
        path: of a json that has not changed since the check.
        findings: of the check.

    Returns:
        (int, Path | None): number of fixes, and the copy (``*.bak``, ``*.bak1``, ...). None: there
        was nothing to fix.
    """
    fixes = [finding.fix for finding in findings if finding.fix is not None]
    if not fixes:
        return 0, None
    path = Path(path)
    old = path.read_bytes()
    content = json.loads(old)
    for place, change in fixes:
        if change is not None:
            _entry_at(content, place).update(change)
    # Remove from the end of each list, deeper entries first, so that other indices stay valid.
    removed = {place for place, change in fixes if change is None}
    for place in sorted(removed, key=lambda p: (len(p), p[-1]), reverse=True):
        del _entry_at(content, place[:-1])[place[-1]]
    backup, number = path.with_name(f"{path.name}.bak"), 0
    while backup.exists():
        number += 1
        backup = path.with_name(f"{path.name}.bak{number}")
    with atomic_file(backup, "wb") as f:
        f.write(old)
    with atomic_file(path) as f:
        json.dump(content, f)
    return len(fixes), backup


def _entry_at(content: Any, place: Place) -> Any:
    for key in place:
        content = content[key]
    return content
