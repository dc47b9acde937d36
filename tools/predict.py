#!/usr/bin/env python
"""``detr-panoptic predict``, for a checkout that is not installed."""

import sys

from detr_panoptic_cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
