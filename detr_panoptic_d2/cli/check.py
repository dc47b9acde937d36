"""Check datasets in COCO panoptic format before training.

The datasets are those of a config (DATASETS.REGISTER, TRAIN and TEST), or one that is given by its
paths. Every image and PNG is decoded. The exit status is 1 if there are errors, else 0.

--fix corrects a json where the correct value is certain: areas and boxes from the PNG, sizes from
the image, a missing crowd flag as 0; segments without pixels and exact repetitions are removed. It
changes nothing if there is an error that it cannot correct, or if more than a tenth of the segments
have another area. The old json is kept as *.bak.

Examples:
  detr-panoptic check --config-file mine/mine.yaml --output checked --augmented 16
  detr-panoptic check --image-root images --panoptic-root panoptic_train \\
      --panoptic-json panoptic_train.json --fix
"""

import argparse
import os
from pathlib import Path

from ._options import add_config_options, set_up_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the check."""
    add = parser.add_argument
    add("--image-root", metavar="FOLDER", help="folder of the images")
    add("--panoptic-root", metavar="FOLDER", help="folder of the panoptic PNGs")
    add("--panoptic-json", metavar="FILE", help="annotation file")
    text = "folder for findings.csv, examples.png and a plot of the classes of each dataset"
    add("--output", type=Path, metavar="FOLDER", help=text)
    add("--fix", action="store_true", help="correct the json, see above")
    text = "draw N training images after augmentation, into augmented.png of --output"
    add("--augmented", type=int, default=0, metavar="N", help=text)
    text = "number of processes (%(default)s)"
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help=text)
    add_config_options(parser, required=False)


def run(args: argparse.Namespace) -> int:
    """Check the datasets and print the results."""
    paths = [args.image_root, args.panoptic_root, args.panoptic_json]
    if bool(args.config_file) == any(paths) or (any(paths) and not all(paths)):
        args.parser.error(
            "give --config-file, or --image-root, --panoptic-root and --panoptic-json"
        )
    if args.opts and not args.config_file:
        args.parser.error("KEY VALUE pairs change a config: give --config-file as well")
    if args.augmented and not (args.config_file and args.output):
        args.parser.error("--augmented needs --config-file and --output")

    from ..prepare.check.dataset import DatasetPaths
    from ..prepare.check.program import check_config, check_sets

    set_up_console(args)
    options = {"output": args.output, "fix": args.fix, "workers": args.workers}
    if args.config_file:
        return check_config(args.config_file, args.opts, augmented=args.augmented, **options)
    return check_sets([DatasetPaths(Path(args.panoptic_json).stem, *paths)], **options)
