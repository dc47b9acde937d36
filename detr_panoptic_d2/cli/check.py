"""Find what is wrong with data sets in COCO panoptic format, before a training does.

All data sets of a config are checked, those of DATASETS.REGISTER, TRAIN and TEST, or one that is
given by its paths. Every image and PNG is read whole. Exit status: 0 if there are warnings at most,
1 if there are errors.

--fix changes the json where the right value is sure: areas and boxes are taken from the PNG, sizes
from the image; a missing crowd flag becomes 0; segments without pixels and exact repetitions are
removed. What depends on an error that cannot be fixed is left, and so are segments if more than a
tenth of all would be removed or get another area. The old json stays beside it as *.bak.

Examples:
  detr-panoptic check --config-file mine/mine.yaml --output checked
  detr-panoptic check --image-root images --panoptic-root panoptic_train \\
      --panoptic-json panoptic_train.json --fix
"""

import argparse
import os
from pathlib import Path

from ._options import add_config_options, set_up_console

_PATHS = ("image_root", "panoptic_root", "panoptic_json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the check."""
    add = parser.add_argument
    add("--image-root", metavar="FOLDER", help="folder of the images")
    add("--panoptic-root", metavar="FOLDER", help="folder of the panoptic PNGs")
    add("--panoptic-json", metavar="FILE", help="annotation file")
    add("--output", type=Path, metavar="FOLDER", help="for findings.csv and a plot per set")
    add("--fix", action="store_true", help="put right what is sure; see above")
    add(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes (%(default)s)",
    )
    add_config_options(parser, required=False)


def run(args: argparse.Namespace) -> int:
    """Check, fix if wanted, and print what was found."""
    given = [getattr(args, key) for key in _PATHS]
    if bool(args.config_file) == any(given) or (any(given) and not all(given)):
        args.parser.error(
            "give --config-file, or --image-root, --panoptic-root and --panoptic-json"
        )
    if args.opts and not args.config_file:
        args.parser.error("KEY VALUE pairs change a config: give --config-file as well")

    import logging

    from ..files import check_not_overwritten
    from ..prepare.check.dataset import DatasetPaths
    from ..prepare.check.report import (
        duplicates_between,
        plot_classes,
        write_findings,
    )

    set_up_console()
    logger = logging.getLogger("detr_panoptic_d2.check")
    if args.config_file:
        sets = _sets_of_config(args.config_file, args.opts)
    else:
        sets = [DatasetPaths(Path(args.panoptic_json).stem, *given)]
    reports = [_check(paths, args, logger) for paths in sets]
    for there, here in duplicates_between(reports)[:20]:
        logger.warning("The same image is in two sets: %s and %s", there, here)
    if args.output is not None:
        table = args.output / "findings.csv"
        plots = [args.output / f"{Path(report.paths.name).name}.png" for report in reports]
        check_not_overwritten([f for report in reports for f in report.files], [table, *plots])
        args.output.mkdir(parents=True, exist_ok=True)
        write_findings(reports, table)
        for report, path in zip(reports, plots, strict=True):
            plot_classes(report, path)
        logger.info("Written: %s", args.output)
    return int(any(report.has_errors for report in reports))


def _sets_of_config(config_file: str, opts: list[str]) -> list:
    """Return the paths of the data sets of a config."""
    from detectron2.data import MetadataCatalog

    from ..config import merged_cfg
    from ..data.register import registered_items
    from ..errors import UserError
    from ..prepare.check.dataset import DatasetPaths

    cfg = merged_cfg(config_file, opts)
    # Not registered: that would stop at the first thing that is wrong.
    found = {
        item["name"]: DatasetPaths(item["name"], *(os.path.expanduser(item[k]) for k in _PATHS))
        for item in registered_items(cfg)
    }
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        if name not in found:
            metadata = MetadataCatalog.get(name)
            if not all(metadata.get(key) for key in _PATHS):
                raise UserError(f"'{name}' is no panoptic data set, or is not registered.")
            found[name] = DatasetPaths(name, *(str(metadata.get(key)) for key in _PATHS))
    if not found:
        raise UserError(f"'{config_file}' names no data set.")
    return list(found.values())


def _check(paths, args: argparse.Namespace, logger):
    """Check a data set, fix it if that is wanted, and print the result."""
    from ..prepare.check.dataset import check_dataset, fix_json
    from ..prepare.check.report import describe

    report = check_dataset(paths, workers=args.workers)
    if args.fix:
        count, backup = fix_json(paths.panoptic_json, report.findings)
        if backup is None:
            logger.info("'%s': nothing that can be fixed.", paths.panoptic_json)
        else:
            print(f"\n{describe(report)}\n")
            logger.info("%d fixed in '%s'; as it was: '%s'", count, paths.panoptic_json, backup)
            report = check_dataset(paths, workers=args.workers)
    print(f"\n{describe(report)}\n")
    if report.unsure:
        logger.warning(
            "%d findings have no sure fix: their image has an error that cannot be fixed, or more "
            "than a tenth of all segments would be removed or get another area. Are these the "
            "PNGs of this json?",
            report.unsure,
        )
    return report
