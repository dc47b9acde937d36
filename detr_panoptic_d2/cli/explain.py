"""Show how an image becomes a panoptic map, with seven figures and one HTML page.

Two images are processed as one padded batch. --points 40,20 70,60 selects pixels whose encoder
attention is shown.

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
    add("--input", nargs="+", type=Path, required=True, help="one or two images")
    add("--output", type=Path, required=True, help="folder of the page and the figures")
    add(
        "--points",
        nargs="+",
        type=_point,
        default=[],
        metavar="X,Y",
        help="pixels whose encoder attention is shown (default: centers of the best boxes)",
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path."""
    from ..apps.explain import explain, output_files
    from ..data.dataset_mapper import read_image
    from ..engine import setup_cfg
    from ..files import check_not_overwritten

    set_up_console(args)
    check_not_overwritten(args.input, output_files(args.output, len(args.input)))
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
