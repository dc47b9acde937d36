"""Check a whole data set, and put right what is sure."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...checkpoint.atomic import atomic_file
from ...data.panoptic_check import Finding, PanopticContent, check_panoptic_json
from ...data.panoptic_json import read_panoptic_json
from ..parallel import map_images
from .findings import apply_fixes, capped, is_error, only_sure_fixes
from .images import ImageResult, check_image


@dataclass(frozen=True)
class DatasetPaths:
    """A data set in COCO panoptic format, as ``register_panoptic`` takes it."""

    name: str
    image_root: str
    panoptic_root: str
    panoptic_json: str


@dataclass
class ClassCount:
    """A class in numbers.

    Attributes:
        name: of the class.
        isthing: whether its objects are counted.
        images: number of images that have it.
        areas: pixels of each segment that is no crowd.
        crowds: number of crowd segments.
    """

    name: str
    isthing: bool
    images: int = 0
    areas: list[int] = field(default_factory=list)
    crowds: int = 0


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
        unsure: findings whose fix is known, but not sure.
    """

    paths: DatasetPaths
    findings: list[Finding]
    classes: list[ClassCount] = field(default_factory=list)
    num_images: int = 0
    most_segments: int = 0
    void: float = 0.0
    digests: dict[str, list[str]] = field(default_factory=dict)
    unsure: int = 0

    @property
    def has_errors(self) -> bool:
        """Whether training or evaluation would go wrong."""
        return any(is_error(finding) for finding in self.findings)


def check_dataset(paths: DatasetPaths, *, workers: int = 1) -> Report:
    """Look at every entry, image and PNG of a data set.

    Args:
        paths: of the data set.
        workers: number of processes.

    Raises:
        FileNotFoundError: the json or a folder is missing.
        UserError: it is no json, or no mapping.
    """
    for key in ("image_root", "panoptic_root"):
        if not os.path.isdir(getattr(paths, key)):
            raise FileNotFoundError(
                f"Data set '{paths.name}': {key} '{getattr(paths, key)}' is no folder."
            )
    content = read_panoptic_json(paths.panoptic_json)
    findings: list[Finding] = []
    usable = check_panoptic_json(content, paths.image_root, paths.panoptic_root, findings.append)
    findings += _in_the_json_as_a_whole(usable)
    results = map_images(
        check_image, usable.annotated, workers=workers, description=f"Checking {paths.name}"
    )
    return _report(paths, usable, capped(findings), results)


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


def _in_the_json_as_a_whole(usable: PanopticContent) -> list[Finding]:
    """Names and PNGs that are there twice, and images without annotation."""
    names = Counter(category["name"] for category in usable.categories.values())
    pngs = Counter(one.png_path for one in usable.annotated)
    annotated = {one.image["id"] for one in usable.annotated}
    return [
        *(Finding("category-name", "categories", name) for name, n in names.items() if n > 1),
        *(Finding("shared-png", "annotations", png) for png, n in pngs.items() if n > 1),
        *(
            Finding("no-annotation", image["file_name"], f"image {image_id!r}")
            for image_id, image in usable.images.items()
            if image_id not in annotated
        ),
    ]


def _report(
    paths: DatasetPaths,
    usable: PanopticContent,
    findings: list[Finding],
    results: list[ImageResult],
) -> Report:
    digests: dict[str, list[str]] = defaultdict(list)
    for task, result in zip(usable.annotated, results, strict=True):
        findings += result.findings
        name = task.image["file_name"]
        if result.digest:
            digests[result.digest].append(name)
        stuff = [c for c, _, _ in result.segments if not usable.categories[c]["isthing"]]
        for category_id, number in Counter(stuff).items():
            if number > 1:
                detail = f"'{usable.categories[category_id]['name']}' has {number} segments"
                findings.append(Finding("split-stuff", name, detail))
    for names in digests.values():
        for name in names[1:]:
            findings.append(Finding("duplicate-image", name, f"the same file as '{names[0]}'"))
    classes = _count_classes(usable.categories, results)
    for count in classes:
        if not count.areas and not count.crowds:
            findings.append(Finding("unused-class", f"category '{count.name}'", "no segment"))
    pixels = sum(r.size[0] * r.size[1] for r in results if r.size)
    labelled = sum(r.labelled or 0 for r in results if r.size)
    if any(r.labelled is not None for r in results) and not any(r.labelled for r in results):
        findings.append(Finding("no-labels", paths.name, "there is nothing to learn from"))
    most = max((sum(not crowd for _, crowd, _ in r.segments) for r in results), default=0)
    void = 1 - labelled / pixels if pixels else 1.0
    sure = only_sure_fixes(findings, sum(len(one.segments) for one in usable.annotated))
    unsure = sum(f.fix is not None for f in findings) - sum(f.fix is not None for f in sure)
    return Report(paths, sure, classes, len(results), most, void, dict(digests), unsure)


def _count_classes(categories: dict[int, dict], results: list[ImageResult]) -> list[ClassCount]:
    counts = {
        category_id: ClassCount(category["name"], bool(category["isthing"]))
        for category_id, category in categories.items()
    }
    for result in results:
        seen = set()
        for category_id, crowd, area in result.segments:
            count = counts[category_id]
            if crowd:
                count.crowds += 1
            else:
                count.areas.append(area)
            count.images += category_id not in seen
            seen.add(category_id)
    return list(counts.values())
