"""Look inside: a picture of every stage from image to panoptic result, and one HTML page.

Two images go through as one padded batch. --points 40,20 70,60 asks the encoder where these pixels
look.

Examples:
  detr-panoptic explain --config-file output/demo/config.yaml --input a.png --output explained \\
      MODEL.WEIGHTS output/demo/model_final.pth
"""

import argparse
from itertools import takewhile
from pathlib import Path

from ._options import add_config_options, set_up_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add images, points and output."""
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
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from detr_panoptic_d2.apps.explain import explain, load_images, parse_point
    from detr_panoptic_d2.engine import setup_cfg

    set_up_console()
    # "--points 40,20 KEY VALUE": what does not begin with a digit belongs to the config.
    points = list(takewhile(lambda text: text[:1].isdecimal(), args.points))
    page = explain(
        setup_cfg(args.config_file, [*args.points[len(points) :], *args.opts]),
        load_images(args.input),
        args.output,
        names=[path.name for path in args.input],
        points=[parse_point(text) for text in points],
        width=args.max_width,
    )
    print(f"Written: {page}")
    return 0
