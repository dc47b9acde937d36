"""Tables and a plot of what a check found."""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from ...files import atomic_file
from .dataset import Finding, Report, is_error


def describe(report: Report) -> str:
    """Return tables of the classes and of the findings, and what the images have in common."""
    rows = []
    for category, areas, crowds, images in _by_class(report):
        sizes = [min(areas), int(np.median(areas)), max(areas)] if areas else ["-"] * 3
        kind = "thing" if category["isthing"] else "stuff"
        rows.append([category["name"], kind, images, len(areas), crowds, *sizes])
    headers = ["class", "", "images", "segments", "crowds", "smallest", "median", "largest (px)"]
    most = max((sum(s.is_target for s in i.segments) for i in report.images), default=0)
    pixels = sum(np.prod(image.size) for image in report.images if image.size)
    labelled = sum(s.area for image in report.images if image.size for s in image.segments)
    return (
        f"{report.paths.name} ({report.paths.panoptic_json})\n\n"
        f"{tabulate(rows, headers=headers)}\n\n"
        f"{len(report.images)} images, {100 * (1 - labelled / max(pixels, 1)):.1f} % of the pixels "
        f"void. At most {most} segments in an image; MODEL.DETR.NUM_OBJECT_QUERIES must be at "
        f"least that.\n\n{_findings_table(report.findings)}"
    )


def _findings_table(findings: Sequence[Finding]) -> str:
    """Return a table with a line per kind: number, an example, and how many can be fixed."""
    if not findings:
        return "Nothing is wrong."
    by_kind = defaultdict(list)
    for finding in findings:
        by_kind[_severity(finding), finding.kind].append(finding)
    rows = []
    for (severity, kind), those in sorted(by_kind.items()):
        fixable = sum(f.fix is not None for f in those)
        example = f"{those[0].where}: {those[0].detail}"
        rows.append([severity, kind, len(those), fixable or "", example])
    headers = ["", "kind", "number", "fixable", "such as"]
    return tabulate(rows, headers=headers, maxcolwidths=[None, None, None, None, 70])


def _severity(finding: Finding) -> str:
    return "error" if is_error(finding) else "warning"


def _by_class(report: Report) -> list[tuple[dict, list[int], int, int]]:
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


def duplicates_between(reports: Sequence[Report]) -> list[tuple[str, str]]:
    """Find image files that are in two data sets: ``set: image`` of both."""
    seen: dict[str, str] = {}
    result = []
    for report in reports:
        here = {i.digest: f"{report.paths.name}: {i.name}" for i in report.images if i.digest}
        result += [(seen[digest], place) for digest, place in here.items() if digest in seen]
        seen = here | seen
    return result


def write_findings(reports: Sequence[Report], path: str | os.PathLike) -> None:
    """Write every finding as a line of a csv file."""
    with atomic_file(path) as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["data set", "severity", "kind", "where", "detail", "fixable"])
        for report in reports:
            for finding in report.findings:
                row = [finding.kind, finding.where, finding.detail, finding.fix is not None]
                writer.writerow([report.paths.name, _severity(finding), *row])


def plot_classes(report: Report, path: str | os.PathLike) -> None:
    """Draw the number of segments per class and their sizes (square root of the area) as a PNG."""
    classes = _by_class(report)
    figure = Figure(figsize=(3 + 0.4 * len(classes), 7), layout="constrained")
    numbers, sizes = figure.subplots(2, 1, sharex=True)
    places = range(len(classes))
    colors = ["C0" if category["isthing"] else "C1" for category, *_ in classes]
    bars = numbers.bar(places, [len(areas) for _, areas, *_ in classes], color=colors)
    numbers.bar_label(bars)
    numbers.set_ylabel("segments (blue: things,\norange: stuff)")
    sizes.boxplot([np.sqrt(areas) for _, areas, *_ in classes], positions=places, whis=(0, 100))
    sizes.set_yscale("log", base=2)
    sizes.yaxis.set_major_formatter("{x:g}")
    sizes.set_ylabel("square root of the area (pixels)")
    sizes.set_xticks(places, [category["name"] for category, *_ in classes], rotation=90)
    figure.suptitle(f"{report.paths.name}: {len(report.images)} images")
    with atomic_file(path, "wb") as f:
        figure.savefig(f, format="png", dpi=100)
