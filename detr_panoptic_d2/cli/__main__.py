"""``python -m detr_panoptic_d2.cli``: the command where it is not on the PATH."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
