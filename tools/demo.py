#!/usr/bin/env python
"""``detr-panoptic demo``, for a checkout that is not installed."""

import sys

from detr_panoptic_cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
