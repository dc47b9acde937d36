#!/usr/bin/env python
"""Draw panoptic segmentation over images or videos.

    tools/predict.py --config-file detr_panoptic_R50.yaml --input a.jpg folder 'more/*.png' \\
        --output out --json MODEL.WEIGHTS model.pth

The exit code is 1 when an input could not be read; the others are done all the same.
"""

import argparse
import logging
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

import detr_panoptic_d2  # noqa: F401  registers model and data sets
from detr_panoptic_d2.apps.predict import (
    VIDEO_SUFFIXES,
    Predictor,
    find_inputs,
    predict_images,
    predict_video,
)
from detr_panoptic_d2.engine import check_writable, setup_cfg
from detr_panoptic_d2.errors import one_line_errors, quiet_console

logger = logging.getLogger("detr_panoptic_d2.tools.predict")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="path, or name of a shipped config")
    parser.add_argument(
        "--input", nargs="+", required=True, help="images, folders, quoted patterns or videos"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--json", action="store_true", help="write COCO panoptic json and PNGs as well (images)"
    )
    parser.add_argument(
        "opts",
        metavar="KEY VALUE",
        nargs=argparse.REMAINDER,
        help="change the config; at the end of the command, and not right after --input",
    )
    return parser.parse_args()


def main() -> int:
    """Return the exit code."""
    args = parse_args()
    with one_line_errors():
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Predict on all inputs and return the exit code."""
    setup_logger(name="fvcore")
    setup_logger(name="detr_panoptic_d2", abbrev_name="detr")
    quiet_console("detr_panoptic_d2")
    try:
        paths = find_inputs(args.input)
    except FileNotFoundError as e:
        logger.error("%s", e)
        return 2
    check_writable(args.output)
    predictor = Predictor(setup_cfg(args.config_file, args.opts))
    videos = [p for p in paths if p.suffix.lower() in VIDEO_SUFFIXES]
    images = [p for p in paths if p not in videos]
    failed = []
    if images:
        failed += predict_images(predictor, images, args.output, coco_json=args.json)
    for video in videos:
        try:
            logger.info("Written: %s", predict_video(predictor, video, args.output))
        except (OSError, ImportError) as e:
            logger.error("Skipped %s: %s", video, e)
            failed.append((video, str(e)))
    logger.info("%d of %d inputs done: %s", len(paths) - len(failed), len(paths), args.output)
    for path, reason in failed:
        logger.error("Not done: %s (%s)", path, reason)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
