#!/usr/bin/env python
"""``detr-panoptic web``, for a checkout that is not installed."""

import sys

from detr_panoptic_cli import main

if __name__ == "__main__":
    sys.exit(main(["web", *sys.argv[1:]]))
