"""Tables of the findings of a check."""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from ...files import atomic_file
from .dataset import Report
from .findings import Finding


def describe(report: Report) -> str:
    """Return tables of the classes and of the findings, and a summary of the images."""
    rows = []
    for category, areas, crowds, images in classes_of(report):
        sizes = [min(areas), int(np.median(areas)), max(areas)] if areas else ["-"] * 3
        kind = "thing" if category["isthing"] else "stuff"
        rows.append([category["name"], kind, images, len(areas), crowds, *sizes])
    headers = ["class", "", "images", "segments", "crowds", "smallest", "median", "largest (px)"]
    pixels = sum(np.prod(image.size) for image in report.images if image.size)
    labelled = sum(s.area for image in report.images if image.size for s in image.segments)
    return (
        f"{report.paths.name} ({report.paths.panoptic_json})\n\n"
        f"{tabulate(rows, headers=headers)}\n\n"
        f"{len(report.images)} images, {100 * (1 - labelled / max(pixels, 1)):.1f} % of the pixels "
        f"void. At most {report.max_segments} segments in an image.\n\n"
        f"{_findings_table(report.findings)}"
    )


def _findings_table(findings: Sequence[Finding]) -> str:
    """Return a table with a line per kind: number, an example, and how many can be fixed."""
    if not findings:
        return "No errors and no warnings."
    by_kind = defaultdict(list)
    for finding in findings:
        by_kind[_severity(finding), finding.kind].append(finding)
    rows = []
    for (severity, kind), group in sorted(by_kind.items()):
        num_fixable = sum(f.fix is not None for f in group)
        example = f"{group[0].where}: {group[0].detail}"
        rows.append([severity, kind, len(group), num_fixable or "", example])
    headers = ["", "kind", "number", "fixable", "example"]
    return tabulate(rows, headers=headers, maxcolwidths=[None, None, None, None, 70])


def _severity(finding: Finding) -> str:
    return "error" if finding.is_error else "warning"


def classes_of(report: Report) -> list[tuple[dict, list[int], int, int]]:
    """Return (category, areas of its segments, number of crowds, of images) of each class."""
    areas, crowds, images = defaultdict(list), Counter(), Counter()
    for image in report.images:
        images.update({segment.category_id for segment in image.segments})
        for segment in image.segments:
            if segment.is_target:
                areas[segment.category_id].append(segment.area)
            else:
                crowds[segment.category_id] += 1
    return [(c, areas[i], crowds[i], images[i]) for i, c in report.categories.items()]


def write_findings(reports: Sequence[Report], path: str | os.PathLike) -> None:
    """Write every finding as a line of a csv file."""
    with atomic_file(path) as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["data set", "severity", "kind", "where", "detail", "fixable"])
        for report in reports:
            for finding in report.findings:
                row = [finding.kind, finding.where, finding.detail, finding.fix is not None]
                writer.writerow([report.paths.name, _severity(finding), *row])
