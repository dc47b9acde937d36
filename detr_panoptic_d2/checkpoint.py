"""The project's checkpointer."""

from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from .atomic_checkpoint import AtomicCheckpointerMixin


class PanopticCheckpointer(AtomicCheckpointerMixin, DetectionCheckpointer):
    """Detectron2's checkpointer with crash-safe files, which reads tensors and never code."""

    def _torch_load(self, f: str) -> dict[str, Any]:
        return torch.load(f, map_location="cpu", weights_only=True)
