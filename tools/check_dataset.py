#!/usr/bin/env python
"""Find what is wrong with data sets in COCO panoptic format.

    tools/check_dataset.py --config-file mine.yaml
    tools/check_dataset.py --image-root images --panoptic-root panoptic_train \\
        --panoptic-json panoptic_train.json --output checked

With a config, all its data sets are checked: those of DATASETS.REGISTER, TRAIN and TEST. Every
image and PNG is read whole. Exit code: 0 nothing or warnings only, 1 errors, 2 no check was
possible.

--fix changes the json where the right value is sure: areas and boxes are taken from the PNG, sizes
from the image; a missing crowd flag becomes 0; segments without pixels and exact repetitions are
removed. The old json stays beside it as *.bak. Images and PNGs are never changed.
"""

import argparse
import logging
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger

import detr_panoptic_d2  # noqa: F401  registers data sets
from detr_panoptic_d2.engine.setup import merged_cfg
from detr_panoptic_d2.prepare.check import (
    DatasetPaths,
    Report,
    check_dataset,
    class_table,
    duplicates_between,
    findings_table,
    fix_dataset,
    plot_classes,
    write_findings,
)

logger = logging.getLogger("detr_panoptic_d2.tools.check_dataset")

PATHS = ("image_root", "panoptic_root", "panoptic_json")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", help="path, or name of a shipped config")
    parser.add_argument("--image-root", help="folder of the images")
    parser.add_argument("--panoptic-root", help="folder of the panoptic PNGs")
    parser.add_argument("--panoptic-json", help="annotation file")
    parser.add_argument("--output", type=Path, help="folder for findings.csv and a plot per set")
    parser.add_argument("--fix", action="store_true", help="put right what is sure; see above")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)"
    )
    parser.add_argument(
        "opts", metavar="KEY VALUE", nargs=argparse.REMAINDER, help="change the config"
    )
    args = parser.parse_args()
    given = [getattr(args, key) for key in PATHS]
    if bool(args.config_file) == any(given) or (any(given) and not all(given)):
        parser.error("give --config-file, or --image-root, --panoptic-root and --panoptic-json")
    if args.opts and not args.config_file:
        parser.error("KEY VALUE pairs change a config: give --config-file as well")
    return args


def find_sets(args: argparse.Namespace) -> list[DatasetPaths]:
    """Return the data sets to check.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: the config names no panoptic data set.
    """
    if not args.config_file:
        return [DatasetPaths(Path(args.panoptic_json).stem, *(getattr(args, k) for k in PATHS))]
    cfg = merged_cfg(args.config_file, args.opts)
    # Not registered: that would stop at the first thing that is wrong.
    found = {}
    for index, item in enumerate(cfg.DATASETS.REGISTER):
        if not isinstance(item, dict) or not all(item.get(key) for key in ("name", *PATHS)):
            raise ValueError(f"DATASETS.REGISTER[{index}] lacks one of name, {', '.join(PATHS)}.")
        paths = [os.path.expanduser(item[key]) for key in PATHS]
        found[item["name"]] = DatasetPaths(item["name"], *paths)
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        if name not in found:
            metadata = MetadataCatalog.get(name)
            if not all(metadata.get(key) for key in PATHS):
                raise ValueError(f"'{name}' is no panoptic data set, or is not registered.")
            found[name] = DatasetPaths(name, *(str(metadata.get(key)) for key in PATHS))
    if not found:
        raise ValueError(f"'{args.config_file}' names no data set.")
    return list(found.values())


def show(report: Report) -> None:
    """Print what was found."""
    print(f"\n{report.paths.name} ({report.paths.panoptic_json})\n")
    print(class_table(report))
    print(
        f"\n{report.num_images} images, {100 * report.void:.1f} % of the pixels void. At most "
        f"{report.most_segments} segments in an image; MODEL.DETR.NUM_OBJECT_QUERIES must be more "
        "than that."
        f"\n\n{findings_table(report.findings)}\n"
    )


def check(paths: DatasetPaths, args: argparse.Namespace) -> Report:
    """Check a data set, fix it if that is wanted, and print the result."""
    report = check_dataset(paths, workers=args.workers)
    if args.fix:
        count, backup = fix_dataset(report)
        if backup is None:
            logger.info("'%s': nothing that can be fixed.", paths.panoptic_json)
        else:
            show(report)
            logger.info("%d fixed in '%s'; as it was: '%s'", count, paths.panoptic_json, backup)
            report = check_dataset(paths, workers=args.workers)
    show(report)
    return report


def main() -> int:
    """Return the exit code."""
    args = parse_args()
    setup_logger(name="detr_panoptic_d2", abbrev_name="detr")
    try:
        reports = [check(paths, args) for paths in find_sets(args)]
        for there, here in duplicates_between(reports)[:20]:
            logger.warning("The same image is in two sets: %s and %s", there, here)
        if args.output is not None:
            args.output.mkdir(parents=True, exist_ok=True)
            write_findings(reports, args.output / "findings.csv")
            for report in reports:
                plot_classes(report, args.output / f"{Path(report.paths.name).name}.png")
            logger.info("Written: %s", args.output)
    except (OSError, ValueError, BrokenProcessPool) as error:
        logger.error("%s", error)
        return 2
    except KeyboardInterrupt:
        logger.error("Interrupted.")
        return 130
    return int(any(report.has_errors for report in reports))


if __name__ == "__main__":
    sys.exit(main())
