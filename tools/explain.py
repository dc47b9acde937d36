#!/usr/bin/env python
"""Look inside: write a picture of every stage from image to panoptic result, and one HTML page.

    tools/explain.py --config-file shapes/detr_panoptic_shapes.yaml --input a.png --output out \\
        MODEL.WEIGHTS model.pth

Two images go through as one padded batch. --points 40,20 70,60 asks the encoder where these pixels
look.
"""

import argparse
import logging
from itertools import takewhile
from pathlib import Path

from detectron2.utils.logger import setup_logger

import detr_panoptic_d2  # noqa: F401  registers model and data sets
from detr_panoptic_d2.apps.explain import explain, load_images, parse_point
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.errors import one_line_errors, quiet_console

logger = logging.getLogger("detr_panoptic_d2.tools.explain")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="path, or name of a shipped config")
    parser.add_argument("--input", nargs="+", type=Path, required=True, help="one image or two")
    parser.add_argument("--output", type=Path, required=True, help="folder for page and pictures")
    parser.add_argument(
        "--points",
        action="extend",
        nargs="+",
        default=[],
        metavar="X,Y",
        help="pixel of the image whose encoder attention is shown; default: on the best segments",
    )
    parser.add_argument(
        "--max-width", type=int, default=1000, help="width of the pictures in pixels (%(default)s)"
    )
    parser.add_argument(
        "opts",
        metavar="KEY VALUE",
        nargs=argparse.REMAINDER,
        help="change the config; at the end of the command, not right after --input",
    )
    return parser.parse_args()


def main() -> None:
    """Explain, and say where the page is."""
    args = parse_args()
    setup_logger(name="fvcore")
    setup_logger(name="detr_panoptic_d2", abbrev_name="detr")
    quiet_console("detr_panoptic_d2")
    # "--points 40,20 KEY VALUE": what does not begin with a digit belongs to the config.
    points = list(takewhile(lambda text: text[:1].isdecimal(), args.points))
    opts = [*args.points[len(points) :], *args.opts]
    with one_line_errors():
        images = load_images(args.input)
        page = explain(
            setup_cfg(args.config_file, opts),
            images,
            args.output,
            names=[path.name for path in args.input],
            points=[parse_point(text) for text in points],
            width=args.max_width,
        )
    logger.info("Written: %s", page)


if __name__ == "__main__":
    main()
