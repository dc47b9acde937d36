"""How much memory a training needs, as a number among its metrics."""

import sys

import torch
from detectron2.engine import HookBase

try:
    import resource
except ImportError:
    # Windows.
    resource = None

# As often as metrics are written.
_PERIOD = 20


class MemoryUse(HookBase):
    """Record ``max_memory_mib``: the highest use so far, in MiB, of the main process.

    On a GPU what PyTorch has allocated there, else the memory of the process (not on Windows). A
    look every 20 iterations and at the end, which waits for nothing.
    """

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % _PERIOD == 0 or done == self.trainer.max_iter:
            used = max_memory_mib()
            if used is not None:
                self.trainer.storage.put_scalar("max_memory_mib", used, smoothing_hint=False)


def max_memory_mib() -> float | None:
    """Return the highest use of memory so far in MiB, None where the system does not say."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    if resource is None:
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB elsewhere.
    return used / 2**20 if sys.platform == "darwin" else used / 2**10
