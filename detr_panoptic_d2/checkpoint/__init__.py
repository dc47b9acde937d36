"""Checkpoints of this project and of other DETR code bases.

:mod:`.names` gives any known checkpoint the names of a model, with :mod:`.class_rows` choosing the
rows of the class head; ``PanopticDETR`` calls it on every state dict that it loads.
:class:`PanopticCheckpointer` adds reading without running code (:mod:`.read`), checks and a log of
what was loaded, and files that survive a crash. :mod:`.export` goes back to the other formats.
"""

from .atomic import atomic_file
from .checkpointer import PanopticCheckpointer
from .names import adapt
from .read import local_file, read_checkpoint

__all__ = ["PanopticCheckpointer", "adapt", "atomic_file", "local_file", "read_checkpoint"]
