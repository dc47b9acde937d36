"""Check a whole data set, and put right what is sure."""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...checkpoint.atomic import atomic_file
from ...data.panoptic_json import read_panoptic_json
from ...data.parallel import run_parallel
from ...errors import UserError
from .entries import Entries, check_entries
from .findings import Finding, apply_fixes
from .pixels import ImageResult, check_image


@dataclass(frozen=True)
class DatasetPaths:
    """A data set in COCO panoptic format, as ``register_panoptic`` takes it."""

    name: str
    image_root: str
    panoptic_root: str
    panoptic_json: str


@dataclass(frozen=True)
class ClassCount:
    """A class in numbers.

    Attributes:
        name: of the class.
        isthing: whether its objects are counted.
        images: number of images that have it.
        areas: pixels of each segment that is no crowd, ascending.
        crowds: number of crowd segments.
    """

    name: str
    isthing: bool
    images: int
    areas: np.ndarray
    crowds: int


@dataclass
class Report:
    """The result of a check.

    Attributes:
        paths: of the data set.
        findings: errors and warnings.
        classes: in the order of the json.
        num_images: images that were looked at.
        most_segments: the largest number of segments in an image, crowd left out.
        void: share of the pixels that are void.
        digests: image names by hash of the file.
    """

    paths: DatasetPaths
    findings: list[Finding]
    classes: list[ClassCount] = field(default_factory=list)
    num_images: int = 0
    most_segments: int = 0
    void: float = 0.0
    digests: dict[str, list[str]] = field(default_factory=dict)

    @property
    def has_errors(self) -> bool:
        """Whether training or evaluation would go wrong."""
        return any(finding.is_error for finding in self.findings)


def check_dataset(paths: DatasetPaths, *, workers: int = 1) -> Report:
    """Look at every entry, image and PNG of a data set.

    Args:
        paths: of the data set.
        workers: number of processes.

    Raises:
        FileNotFoundError: the json or a folder is missing.
        UserError: the json is no COCO panoptic json at all.
    """
    for key in ("image_root", "panoptic_root"):
        if not os.path.isdir(getattr(paths, key)):
            raise FileNotFoundError(
                f"Data set '{paths.name}': {key} '{getattr(paths, key)}' is no folder."
            )
    content = read_panoptic_json(paths.panoptic_json)
    try:
        entries = check_entries(content, paths.image_root, paths.panoptic_root)
    except ValueError as error:
        raise UserError(f"'{paths.panoptic_json}': {error}") from error
    del content
    indices = range(len(entries.tasks))
    calls = run_parallel(
        check_image, entries.tasks, indices, workers=workers, description=f"Checking {paths.name}"
    )
    by_index = dict(calls)
    return _report(paths, entries, [by_index[i] for i in indices])


def fix_dataset(report: Report) -> tuple[int, Path | None]:
    """Apply the fixes of a report to the json, after a copy of it beside it.

    Args:
        report: of a check after which the json has not changed.

    Returns:
        (int, Path | None): number of fixes, and the copy (``*.bak``, ``*.bak1``, ...); no copy
        if there is nothing to fix.
    """
    if not any(finding.fix for finding in report.findings):
        return 0, None
    path = Path(report.paths.panoptic_json)
    old = path.read_bytes()
    content = json.loads(old)
    count = apply_fixes(content, report.findings)
    backup, number = path.with_name(f"{path.name}.bak"), 0
    while backup.exists():
        number += 1
        backup = path.with_name(f"{path.name}.bak{number}")
    with atomic_file(backup, "wb") as f:
        f.write(old)
    with atomic_file(path) as f:
        json.dump(content, f)
    return count, backup


def duplicates_between(reports: Sequence[Report]) -> list[tuple[str, str]]:
    """Find image files that are in two data sets, such as training and validation.

    Returns:
        list[tuple[str, str]]: ``set: image`` of both.
    """
    seen: dict[str, tuple[int, str]] = {}
    result = []
    for index, report in enumerate(reports):
        for digest, names in report.digests.items():
            here = f"{report.paths.name}: {names[0]}"
            other, there = seen.setdefault(digest, (index, here))
            if other != index:
                result.append((there, here))
    return result


def _report(paths: DatasetPaths, entries: Entries, results: list[ImageResult]) -> Report:
    findings = list(entries.findings)
    digests: dict[str, list[str]] = defaultdict(list)
    for task, result in zip(entries.tasks, results, strict=True):
        findings += result.findings
        if result.digest and task.name not in digests[result.digest]:
            digests[result.digest].append(task.name)
    for names in digests.values():
        for name in names[1:]:
            findings.append(Finding("duplicate-image", name, f"the same file as '{names[0]}'"))
    classes = _count_classes(entries, results)
    for count in classes:
        if not len(count.areas) and not count.crowds:
            findings.append(Finding("unused-class", f"category '{count.name}'", "no segment"))
    pixels = sum(r.size[0] * r.size[1] for r in results if r.size)
    labelled = sum(r.labelled for r in results if r.size)
    most = max((sum(not crowd for _, crowd, _ in r.segments) for r in results), default=0)
    void = 1 - labelled / pixels if pixels else 0.0
    return Report(paths, findings, classes, len(results), most, void, dict(digests))


def _count_classes(entries: Entries, results: list[ImageResult]) -> list[ClassCount]:
    areas: dict[object, list[int]] = {category_id: [] for category_id in entries.categories}
    crowds = dict.fromkeys(entries.categories, 0)
    images = dict.fromkeys(entries.categories, 0)
    for result in results:
        known = [s for s in result.segments if type(s[0]) is int and s[0] in areas]
        for category_id, crowd, area in known:
            if crowd:
                crowds[category_id] += 1
            else:
                areas[category_id].append(area)
        for category_id in {s[0] for s in known}:
            images[category_id] += 1
    return [
        ClassCount(
            category["name"],
            bool(category["isthing"]),
            images[category_id],
            np.sort(np.array(areas[category_id], np.int64)),
            crowds[category_id],
        )
        for category_id, category in entries.categories.items()
    ]
