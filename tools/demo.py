#!/usr/bin/env python
"""Make the built-in data set, train a small panoptic DETR on it on the CPU, measure PQ, draw.

tools/demo.py --output output/demo [KEY VALUE ...]
"""

import argparse
from pathlib import Path

import detr_panoptic_d2  # noqa: F401  registers model and data sets
from detr_panoptic_d2.apps.demo import run_demo
from detr_panoptic_d2.errors import one_line_errors


def main() -> None:
    """Run the demo and print its table and where its pictures are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--config-file", default="shapes/detr_panoptic_shapes.yaml")
    parser.add_argument("opts", metavar="KEY VALUE", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    with one_line_errors():
        table, picture, report = run_demo(args.config_file, args.output, args.opts)
    print(f"\n{table}\n\nHeld-out images, truth and prediction: {picture}")
    print(f"The training, PQ of every class, best and worst images: {report}")


if __name__ == "__main__":
    main()
