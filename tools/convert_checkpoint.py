#!/usr/bin/env python
"""Convert a checkpoint to this project's, official DETR's or Hugging Face's format.

    tools/convert_checkpoint.py --input detr-r50-panoptic-00ce5173.pth --output model.pth \\
        --format ours
    tools/convert_checkpoint.py --input output/model_final.pth --output my-detr \\
        --format huggingface --config-file my.yaml

The format of the input is found out. Training needs no conversion: MODEL.WEIGHTS takes all of them.
Without a config file the model is read off the file, which works for COCO's classes. In official
DETR's and Hugging Face's formats classes are at their raw category ids; rows of unused ids are
zero, with a bias that makes their probability 0.
"""

import argparse
import sys

from detectron2.utils.logger import setup_logger

import detr_panoptic_d2  # noqa: F401  registers model and data sets
from detr_panoptic_d2.apps.convert_checkpoint import FORMATS, convert_checkpoint
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.errors import one_line_errors, quiet_console


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, help="file, Hugging Face folder or URL")
    parser.add_argument("--output", required=True, help="file; a folder for huggingface")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--config-file", help="of the model: path, or name of a shipped config")
    parser.add_argument(
        "opts", metavar="KEY VALUE", nargs=argparse.REMAINDER, help="change the config"
    )
    args = parser.parse_args()
    if args.opts and not args.config_file:
        parser.error("KEY VALUE pairs change a config: give --config-file as well")
    return args


def main() -> int:
    """Return the exit code."""
    args = parse_args()
    with one_line_errors():
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Convert and return the exit code."""
    setup_logger(name="fvcore")
    setup_logger(name="detr_panoptic_d2", abbrev_name="detr")
    quiet_console("detr_panoptic_d2")
    cfg = None
    if args.config_file:
        cfg = setup_cfg(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    convert_checkpoint(args.input, args.output, args.format, cfg)
    return 0


if __name__ == "__main__":
    sys.exit(main())
