"""Look inside: how an image becomes a panoptic map, as seven figures and one HTML page.

Two images go through as one padded batch. --points 40,20 70,60 asks the encoder where these pixels
look.

Examples:
  detr-panoptic explain --config-file output/demo/config.yaml --input a.png --output explained \\
      MODEL.WEIGHTS output/demo/model_final.pth
"""

import argparse
from pathlib import Path

from ._options import add_config_options, set_up_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add images, points and output."""
    add = parser.add_argument
    add("--input", nargs="+", type=Path, required=True, help="one image or two")
    add("--output", type=Path, required=True, help="folder for page and figures")
    add(
        "--points",
        nargs="+",
        type=_point,
        default=[],
        metavar="X,Y",
        help="pixels whose encoder attention is shown; default: on the best segments",
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from ..apps.explain import explain
    from ..data.dataset_mapper import read_image
    from ..engine import setup_cfg

    set_up_console(args)
    page = explain(
        setup_cfg(args.config_file, args.opts),
        [read_image(path, "RGB") for path in args.input],
        args.output,
        names=[path.name for path in args.input],
        points=args.points,
    )
    print(f"Written: {page}")
    return 0


def _point(text: str) -> tuple[int, int]:
    x, _, y = text.partition(",")
    if not (x.isdecimal() and y.isdecimal()):
        raise argparse.ArgumentTypeError(f"'{text}' is not X,Y in pixels, such as 120,80")
    return int(x), int(y)
