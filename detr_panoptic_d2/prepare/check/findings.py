"""What can be wrong, how many findings of a kind are kept, and which fixes are sure."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...checkpoint.atomic import atomic_file
from ...data.panoptic_check import Finding

# Error: training or evaluation would stop or go wrong.
ERROR, WARNING = "error", "warning"
KINDS = {
    "bad-entry": (ERROR, "entries that are incomplete or wrong: the json is refused"),
    "repeated-entry": (ERROR, "entries that repeat another one exactly: the json is refused"),
    "category-name": (ERROR, "categories of the same name"),
    "shared-png": (ERROR, "images that share a panoptic PNG"),
    "wrong-crowd": (ERROR, "segments without 'iscrowd', which the evaluation needs"),
    "missing-image": (ERROR, "images that are not there"),
    "unreadable-image": (ERROR, "images that cannot be read to their end"),
    "wrong-size": (ERROR, "images of another size than the json says"),
    "missing-png": (ERROR, "panoptic PNGs that are not there"),
    "unreadable-png": (ERROR, "panoptic PNGs that cannot be read, or are none"),
    "png-size": (ERROR, "panoptic PNGs of another size than their image"),
    "id-without-entry": (ERROR, "ids in a PNG that segments_info does not name (void)"),
    "segment-without-pixels": (ERROR, "segments without a pixel in their PNG"),
    "no-area": (ERROR, "segments without 'area', which the evaluation needs"),
    "wrong-area": (ERROR, "segments whose area is not that of the PNG"),
    "no-labels": (ERROR, "data sets in which no pixel is labelled"),
    "wrong-box": (WARNING, "segments whose box is not that of the PNG"),
    "one-pixel": (WARNING, "segments of a single pixel"),
    "nothing-labelled": (WARNING, "images without a labelled pixel"),
    "exif-rotated": (WARNING, "images that are turned by their EXIF orientation"),
    "unused-class": (WARNING, "classes without a segment"),
    "split-stuff": (WARNING, "stuff classes with several segments in one image"),
    "no-annotation": (WARNING, "images without annotation (left out of training)"),
    "duplicate-image": (WARNING, "images that are there more than once"),
}
# Of one kind in one image; the rest is a number. Findings with a fix are all kept.
MOST_PER_IMAGE = 20
# Fixes that take the PNG for right, and those of them that contradict the json.
_FROM_PNG = ("segment-without-pixels", "wrong-area", "no-area", "wrong-box", "wrong-size")
_CONTRADICTING = ("segment-without-pixels", "wrong-area")


def is_error(finding: Finding) -> bool:
    """Whether training or evaluation would stop or go wrong."""
    return KINDS[finding.kind][0] == ERROR


def capped(findings: Iterable[Finding]) -> list[Finding]:
    """Keep ``MOST_PER_IMAGE`` findings of a kind and place; one more says how many there were."""
    kept = []
    counts: Counter[tuple[str, str]] = Counter()
    for finding in findings:
        counts[finding.kind, finding.where] += 1
        if counts[finding.kind, finding.where] <= MOST_PER_IMAGE or finding.fix is not None:
            kept.append(finding)
    for (kind, where), count in counts.items():
        if count > MOST_PER_IMAGE:
            kept.append(Finding(kind, where, f"{count} of these in all"))
    return kept


def only_sure_fixes(findings: Sequence[Finding], num_segments: int) -> list[Finding]:
    """Take away the fixes that are not sure.

    - Where an error has no fix, nothing is taken from the PNG: areas of a PNG of the wrong size are
      wrong.
    - If more than a tenth of the segments would be removed or get another area than they have,
      nothing is taken from any PNG: they are not those of the json.
    """
    contradictions = sum(f.fix is not None and f.kind in _CONTRADICTING for f in findings)
    doubt = contradictions > max(1, num_segments // 10)
    broken = {f.where for f in findings if f.fix is None and is_error(f)}
    return [
        replace(f, fix=None) if f.kind in _FROM_PNG and (doubt or f.where in broken) else f
        for f in findings
    ]


def fix_json(path: str | os.PathLike, findings: Sequence[Finding]) -> tuple[int, Path | None]:
    """Apply fixes to a json, after a copy of it beside it.

    Args:
        path: of a json that has not changed since the check.
        findings: of the check.

    Returns:
        (int, Path | None): number of fixes, and the copy (``*.bak``, ``*.bak1``, ...); no copy
        if there is nothing to fix.
    """
    fixes = [finding.fix for finding in findings if finding.fix is not None]
    if not fixes:
        return 0, None
    path = Path(path)
    old = path.read_bytes()
    content = json.loads(old)
    for place, change in fixes:
        if change is not None:
            _follow(content, place).update(change)
    # From the end of each list, so that the other indices stay right; what is deeper first.
    removed = {place for place, change in fixes if change is None}
    for place in sorted(removed, key=lambda p: (len(p), p[-1]), reverse=True):
        del _follow(content, place[:-1])[place[-1]]
    backup, number = path.with_name(f"{path.name}.bak"), 0
    while backup.exists():
        number += 1
        backup = path.with_name(f"{path.name}.bak{number}")
    with atomic_file(backup, "wb") as f:
        f.write(old)
    with atomic_file(path) as f:
        json.dump(content, f)
    return len(fixes), backup


def _follow(content: Any, place: tuple[str | int, ...]) -> Any:
    for key in place:
        content = content[key]
    return content
