"""Train a small model on the built-in dataset on the CPU, evaluate it and draw its results.

Examples:
  detr-panoptic demo
  detr-panoptic demo --output output/short SOLVER.MAX_ITER 300
"""

import argparse
from pathlib import Path

from ._options import add_opts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", type=Path, default=Path("output/demo"), help="folder (%(default)s)")
    default, text = "shapes/detr_panoptic_shapes.yaml", "path, or name of a config (%(default)s)"
    add("--config-file", default=default, metavar="CONFIG", help=text)
    add_opts(parser)


def run(args: argparse.Namespace) -> int:
    from ..apps.demo.run import run_demo

    table, picture, report = run_demo(args.config_file, args.output, args.opts)
    print(f"\n{table}\n\nGround truth and prediction of held-out images: {picture}")
    print(f"Report of the training: {report}")
    return 0
