"""Checkpoints of other DETR code bases: read safely, renamed, fitted to a model, written back.

The way of a file: :mod:`.read` makes tensors of it (and runs nothing), :mod:`.canonical` tells
whose it is and gives its tensors this project's names, :mod:`.fit` finds the place of each tensor
in a model, with :mod:`.class_rows` choosing the rows of the class head. :mod:`.convert` goes back
to the other formats.
"""

from .canonical import Canonical, to_canonical
from .fit import Plan, plan_load
from .read import local_file, read_checkpoint

__all__ = [
    "Canonical",
    "Plan",
    "local_file",
    "plan_load",
    "read_checkpoint",
    "to_canonical",
]
