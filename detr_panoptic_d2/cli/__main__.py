"""Runs the command line by ``python -m detr_panoptic_d2.cli``."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
