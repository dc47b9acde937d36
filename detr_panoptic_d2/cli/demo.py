"""Train a small model on the built-in dataset on the CPU, evaluate it and draw its results.

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
    """Run the demo and print its results."""
    from ..apps.demo.run import run_demo

    table, picture, report = run_demo(args.config_file, args.output, args.opts)
    print(f"\n{table}\n\nGround truth and prediction of held-out images: {picture}")
    print(f"Report of the training: {report}")
    return 0
