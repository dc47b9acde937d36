#!/usr/bin/env python
"""``detr-panoptic explain``, for a checkout that is not installed."""

import sys

from detr_panoptic_cli import main

if __name__ == "__main__":
    sys.exit(main(["explain", *sys.argv[1:]]))
