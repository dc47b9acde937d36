"""Make the built-in data set, train a small panoptic DETR on it on the CPU, measure PQ, draw.

Examples:
  detr-panoptic demo
  detr-panoptic demo --output output/short SOLVER.MAX_ITER 300
"""

import argparse
from pathlib import Path

from ._options import add_opts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the demo."""
    parser.add_argument(
        "--output", type=Path, default=Path("output/demo"), help="folder (%(default)s)"
    )
    parser.add_argument(
        "--config-file",
        default="shapes/detr_panoptic_shapes.yaml",
        metavar="CONFIG",
        help="path, or name of a config (%(default)s)",
    )
    add_opts(parser)


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its table and where its pictures are."""
    from ..apps.demo.run import run_demo

    table, picture, report = run_demo(args.config_file, args.output, args.opts)
    print(f"\n{table}\n\nHeld-out images, ground truth and prediction: {picture}")
    print(f"The training, PQ of every class, best and worst images: {report}")
    return 0
