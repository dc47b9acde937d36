"""Checkpoints of this project and of other DETR code bases.

:mod:`.names` has the names of tensors in other code bases. :mod:`.translate` converts any known
checkpoint to the names of a model; ``PanopticDETR`` calls it on every state dict that it loads.
:class:`PanopticCheckpointer` adds reading without running code (:mod:`.read`), checks, atomic
files, and config and classes in each checkpoint (:mod:`.description`).
"""

from .checkpointer import PanopticCheckpointer

__all__ = ["PanopticCheckpointer"]
