"""Write the report of a training, OUTPUT_DIR/report.html: one self-contained HTML page.

The training may be finished, still running or failed.

Examples:
  detr-panoptic report output/demo
"""

import argparse
from pathlib import Path

from ._options import set_up_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "folder of the training"
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help=text)


def run(args: argparse.Namespace) -> int:
    from ..apps.report import write_report

    set_up_console(args)
    print(f"Report: {write_report(args.output_dir)}")
    return 0
