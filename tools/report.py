#!/usr/bin/env python
"""Write the report of a run: OUTPUT_DIR/report.html, one page with everything in it.

tools/report.py output/detr_panoptic_shapes

Works on a run that is going on and on one that failed as well.
"""

import argparse
from pathlib import Path

from detectron2.utils.logger import setup_logger

import detr_panoptic_d2  # noqa: F401  registers the data sets
from detr_panoptic_d2.apps.report import write_report
from detr_panoptic_d2.errors import one_line_errors, quiet_console


def main() -> None:
    """Write the report and say where it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="folder of the run")
    args = parser.parse_args()
    setup_logger(name="detr_panoptic_d2", abbrev_name="detr")
    quiet_console("detr_panoptic_d2")
    with one_line_errors():
        print(f"Report: {write_report(args.output_dir)}")


if __name__ == "__main__":
    main()
