"""Tables and a plot of what a check found."""

import csv
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from ...checkpoint.atomic import atomic_file
from ...data.panoptic_check import Finding
from .dataset import ClassCount, Report
from .findings import KINDS, is_error

# COCO's limits of small and large objects, in pixels.
_SMALL, _LARGE = 32**2, 96**2


def findings_table(findings: Sequence[Finding]) -> str:
    """Return a table with a line per kind: number, an example, and how many can be fixed."""
    by_kind: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in findings:
        by_kind[finding.kind].append(finding)
    rows = []
    for kind, those in by_kind.items():
        if those:
            fixable = sum(f.fix is not None for f in those)
            example = f"{those[0].where}: {those[0].detail}"
            rows.append(
                [_severity(those[0]), kind, len(those), fixable or "", KINDS[kind][1], example]
            )
    if not rows:
        return "Nothing is wrong."
    rows.sort(key=lambda row: row[0])
    headers = ["", "kind", "number", "fixable", "what", "such as"]
    return tabulate(rows, headers=headers, maxcolwidths=[None, None, None, None, 30, 50])


def class_table(report: Report) -> str:
    """Return a table with a line per class."""
    rows = []
    for count in report.classes:
        areas = count.areas
        sizes = [min(areas), int(np.median(areas)), max(areas)] if areas else ["-"] * 3
        kind = "thing" if count.isthing else "stuff"
        rows.append([count.name, kind, count.images, len(areas), count.crowds, *sizes])
    headers = ["class", "", "images", "segments", "crowds", "smallest", "median", "largest (px)"]
    return tabulate(rows, headers=headers)


def write_findings(reports: Sequence[Report], path: str | os.PathLike) -> None:
    """Write every finding as a line of a csv file."""
    with atomic_file(path) as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["data set", "severity", "kind", "where", "detail", "fixable"])
        for report in reports:
            for finding in report.findings:
                row = [finding.kind, finding.where, finding.detail, finding.fix is not None]
                writer.writerow([report.paths.name, _severity(finding), *row])


def _severity(finding: Finding) -> str:
    return "error" if is_error(finding) else "warning"


def plot_classes(report: Report, path: str | os.PathLike) -> None:
    """Draw the number of segments per class, and their sizes, as a PNG.

    Sizes are the square roots of areas: the middle half as a box, smallest and largest at the ends
    of the line; dotted lines are COCO's limits of small and large.

    Args:
        report: of a check.
        path: file to write.
    """
    counts = report.classes[::-1]
    figure = Figure(figsize=(10, 1.5 + 0.28 * max(len(counts), 4)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colors = ["#0072B2" if c.isthing else "#E69F00" for c in counts]
    rows = range(len(counts))
    bars = left.barh(rows, [len(c.areas) for c in counts], color=colors)
    left.bar_label(bars, padding=2, fontsize=8)
    left.margins(x=0.12)
    left.set_yticks(rows, [c.name for c in counts])
    left.set_xlabel("segments (blue: things, orange: stuff)")
    _draw_sizes(right, counts, colors)
    figure.suptitle(f"{report.paths.name}: {report.num_images} images")
    with atomic_file(path, "wb") as f:
        figure.savefig(f, format="png", dpi=120)


def _draw_sizes(axes, counts: Sequence[ClassCount], colors: Sequence[str]) -> None:
    for row, (count, color) in enumerate(zip(counts, colors, strict=True)):
        if not count.areas:
            continue
        ends = np.sqrt(np.quantile(count.areas, [0, 0.25, 0.5, 0.75, 1]))
        axes.plot(ends[[0, -1]], [row, row], color=color, linewidth=1)
        axes.barh(row, ends[3] - ends[1], left=ends[1], height=0.6, color=color, alpha=0.5)
        axes.plot(ends[[2, 2]], [row - 0.3, row + 0.3], color=color, linewidth=2)
    for limit in (_SMALL, _LARGE):
        axes.axvline(limit**0.5, color="grey", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("size: square root of the area (pixels)")
