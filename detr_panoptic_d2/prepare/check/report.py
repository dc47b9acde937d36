"""Tables of the findings of a check."""

import csv
import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from ...data.dataset_mapper import is_target
from ...files import atomic_file
from .dataset import Report
from .findings import FIXABLE


def describe(report: Report) -> str:
    """Return tables of the classes and of the findings, and a summary of the images."""
    rows = []
    for category, areas, crowds, images in classes_of(report):
        sizes = [min(areas), int(np.median(areas)), max(areas)] if areas else ["-"] * 3
        kind = "thing" if category["isthing"] else "stuff"
        rows.append([category["name"], kind, images, len(areas), crowds, *sizes])
    headers = ["class", "", "images", "segments", "crowds", "smallest", "median", "largest (px)"]
    pixels = sum(np.prod(image.size) for image in report.images if image.size)
    labelled = sum(s["area"] for image in report.images if image.size for s in image.segments)
    return (
        f"{report.paths.name} ({report.paths.panoptic_json})\n\n"
        f"{tabulate(rows, headers=headers)}\n\n"
        f"{len(report.images)} images, {100 * (1 - labelled / max(pixels, 1)):.1f} % of the pixels "
        f"void. At most {report.max_segments} segments in an image.\n\n"
        f"{_findings_table(report)}"
    )


def _findings_table(report: Report) -> str:
    """Return a table with a line per kind: number, an example, and whether it can be fixed."""
    if not report.findings:
        return "No errors and no warnings."
    by_kind = defaultdict(list)
    for finding in report.findings:
        by_kind[finding.severity, finding.kind].append(finding)
    rows = []
    for (severity, kind), group in sorted(by_kind.items()):
        example = f"{group[0].where}: {group[0].detail}"
        rows.append([severity, kind, len(group), "--fix" if kind in FIXABLE else "", example])
    headers = ["", "kind", "number", "", "example"]
    return tabulate(rows, headers=headers, maxcolwidths=[None, None, None, None, 70])


def classes_of(report: Report) -> list[tuple[dict, list[int], int, int]]:
    """Return (category, areas of its segments, number of crowds, of images) of each class."""
    rows = []
    for category_id, category in report.valid.categories.items():
        own = [[s for s in i.segments if s["category_id"] == category_id] for i in report.images]
        areas = [s["area"] for segments in own for s in segments if is_target(s)]
        num_crowds = sum(map(len, own)) - len(areas)
        rows.append((category, areas, num_crowds, sum(map(bool, own))))
    return rows


def write_findings(reports: Sequence[Report], path: str | os.PathLike) -> None:
    """Write every finding as a line of a csv file."""
    with atomic_file(path) as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["data set", "severity", "kind", "where", "detail", "fixable"])
        for report in reports:
            for finding in report.findings:
                fixable = finding.kind in FIXABLE
                writer.writerow([report.paths.name, finding.severity, *finding, fixable])
