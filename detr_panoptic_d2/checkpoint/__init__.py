"""Checkpoints of this project and of other DETR code bases: :mod:`.translate` converts their state
dicts, :mod:`.read` reads files without running code, :mod:`.description` adds config and classes.
"""

from .checkpointer import PanopticCheckpointer

__all__ = ["PanopticCheckpointer"]
