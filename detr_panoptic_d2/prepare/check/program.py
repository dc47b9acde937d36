"""The work of ``detr-panoptic check``."""

import csv
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from ...config import merged_cfg
from ...data.register import register_from_config, registered_items
from ...errors import UserError
from ...files import atomic_file, check_not_overwritten
from .dataset import DatasetPaths, Report, check_dataset, fix_json, why_not_fixed
from .findings import FIXABLE, find_shared_images
from .pictures import draw_augmented, draw_examples, plot_classes

logger = logging.getLogger(__name__)

PATH_KEYS = ("image_root", "panoptic_root", "panoptic_json")
_SHARED = {
    "image-in-two-sets": "the same file",
    "similar-image": "nearly the same picture",
    "same-photograph": "cut from, or a copy of, the same photograph by its name",
}


def check_config(config_file: str, opts: list[str], *, augmented: int, **options) -> int:
    """Check the datasets of a config, and draw ``augmented`` images; see :func:`check_sets`."""
    cfg = merged_cfg(config_file, opts)
    # Registration would stop at the first error.
    sets = {}
    for item in registered_items(cfg):
        if "instances_json" in item:
            raise UserError(f"'{item['name']}' has only boxes. check needs a panoptic dataset.")
        paths = (os.path.expanduser(item[key]) for key in PATH_KEYS)
        sets[item["name"]] = DatasetPaths(item["name"], *paths)
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        if name not in sets:
            metadata = MetadataCatalog.get(name)
            if not all(metadata.get(key) for key in PATH_KEYS):
                raise UserError(f"'{name}' is not a registered panoptic dataset.")
            sets[name] = DatasetPaths(name, *(str(metadata.get(key)) for key in PATH_KEYS))
    if not sets:
        raise UserError(f"'{config_file}' names no dataset.")
    if augmented and not cfg.DATASETS.TRAIN:
        raise UserError("--augmented draws the first set of DATASETS.TRAIN, which is empty.")
    status = check_sets(list(sets.values()), cfg=cfg, **options)
    if augmented and status:
        logger.warning("augmented.png is not drawn, because the datasets have errors.")
    elif augmented:
        register_from_config(cfg)
        draw_augmented(cfg, augmented, options["output"] / "augmented.png")
    return status


def check_sets(
    sets: Sequence[DatasetPaths],
    *,
    output: Path | None,
    fix: bool,
    workers: int,
    cfg: CfgNode | None = None,
) -> int:
    """Check datasets, print the results, and return the exit status: 1 if there are errors.

    Args:
        sets: paths of the datasets.
        output: folder for findings and pictures.
        fix: correct the jsons.
        workers: number of processes.
        cfg: its number of queries is compared with the data.
    """
    reports = [_check_set(paths, fix, workers) for paths in sets]
    shared = find_shared_images(reports)
    for kind, explanation in _SHARED.items():
        examples = [finding for finding in shared if finding.kind == kind]
        if examples:
            logger.warning(
                "%d images are in two sets (%s), for example '%s' and %s. The PQ on one set of a "
                "model that was trained on the other set is too high. Make splits by photograph or "
                "scene.",
                len(examples),
                explanation,
                examples[0].where,
                examples[0].detail,
            )
    max_segments = max(report.max_segments for report in reports)
    if cfg is not None and max_segments > cfg.MODEL.DETR.NUM_OBJECT_QUERIES:
        logger.warning(
            "MODEL.DETR.NUM_OBJECT_QUERIES is %d, but an image has %d segments. A query predicts "
            "one segment, so the others are not learned. Set it to %d or more.",
            cfg.MODEL.DETR.NUM_OBJECT_QUERIES,
            max_segments,
            max_segments,
        )
    if output is not None:
        _write_output(reports, output)
    return int(any(report.has_errors for report in reports))


def _check_set(paths: DatasetPaths, fix: bool, workers: int) -> Report:
    report = check_dataset(paths, workers=workers)
    print(f"\n{describe(report)}\n")
    if fix:
        if reason := why_not_fixed(report):
            logger.info("'%s' is not changed: %s.", paths.panoptic_json, reason)
        else:
            logger.info("'%s' was fixed. Old file: '%s'", paths.panoptic_json, fix_json(report))
            report = check_dataset(paths, workers=workers)
            print(f"\n{describe(report)}\n")
    return report


def describe(report: Report) -> str:
    """Return tables of the classes and of the findings, and a summary of the images."""
    rows = []
    for category, areas, crowds, images in report.classes():
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


def _write_findings(reports: Sequence[Report], path: Path) -> None:
    """Write every finding as a line of a csv file."""
    with atomic_file(path) as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["dataset", "severity", "kind", "where", "detail", "fixable"])
        for report in reports:
            for finding in report.findings:
                fixable = finding.kind in FIXABLE
                writer.writerow([report.paths.name, finding.severity, *finding, fixable])


def _write_output(reports: Sequence[Report], output: Path) -> None:
    names = ("findings.csv", "examples.png", "augmented.png")
    table, examples, augmented = (output / name for name in names)
    plots = [output / f"{Path(report.paths.name).name}.png" for report in reports]
    inputs = [report.paths.panoptic_json for report in reports]
    inputs += [p for r in reports for image in r.images for p in (image.path, image.png_path)]
    check_not_overwritten(inputs, [table, examples, augmented, *plots])
    output.mkdir(parents=True, exist_ok=True)
    _write_findings(reports, table)
    draw_examples(reports, examples)
    for report, path in zip(reports, plots, strict=True):
        plot_classes(report, path)
    logger.info("Written: %s", output)
