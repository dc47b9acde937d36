"""Checkpoints of this project and of other DETR code bases.

:mod:`.names` says what tensors are called elsewhere, :mod:`.translate` makes any known checkpoint
one of a model; ``PanopticDETR`` calls it on every state dict that it loads.
:class:`PanopticCheckpointer` adds reading without running code (:mod:`.read`), checks, and atomic
files.
"""

from .checkpointer import PanopticCheckpointer

__all__ = ["PanopticCheckpointer"]
