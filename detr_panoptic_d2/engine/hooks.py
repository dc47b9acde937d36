"""Hooks of :class:`PanopticTrainer`. See also :class:`.reproducible.ReproducibleSteps`."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import BestCheckpointer
from detectron2.utils import comm
from torch import nn

from ..checkpoint import PanopticCheckpointer, atomic_file
from ..errors import UserError

# As often as metrics are written.
_PERIOD = 20


class NonFiniteLossError(UserError):
    """The loss is infinite or NaN."""


class StopAtNonFiniteLoss(HookBase):
    """End the training, on all processes, when the loss of any is infinite or NaN.

    It looks after the forward pass, so the weights are those from before the step. Detectron2's own
    check comes after the backward pass, on the main process alone, and does not know the images.

    Args:
        checkpointer: to say what the training can go on from.
    """

    def __init__(self, checkpointer: PanopticCheckpointer):
        self._checkpointer = checkpointer

    def before_train(self) -> None:
        self._handle = self.trainer.model.register_forward_hook(self._check)

    def after_train(self) -> None:
        self._handle.remove()

    def _check(self, model: nn.Module, args: tuple, losses: dict[str, torch.Tensor]) -> None:
        if not model.training:
            return
        broken = [name for name, value in losses.items() if not torch.isfinite(value)]
        any_broken = torch.tensor(bool(broken), device=next(iter(losses.values())).device).float()
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(any_broken)
        if not any_broken:
            return
        images = [d.get("file_name", "?") for d in args[0]] if broken else []
        reports = comm.all_gather((broken, images))
        raise NonFiniteLossError(
            f"The loss became infinite or NaN at iteration {self.trainer.iter} "
            f"({', '.join(sorted({name for names, _ in reports for name in names}))}), on the "
            f"images {', '.join(name for _, names in reports for name in names)}. "
            f"{self._checkpointer.resume_hint()} Look at these images' annotations; else lower "
            "SOLVER.BASE_LR, or use SOLVER.AMP.DTYPE bfloat16 in place of float16."
        )


class BestCheckpoint(BestCheckpointer):
    """Detectron2's ``BestCheckpointer`` over interruptions.

    It remembers the best value when training is resumed, and resuming never starts from the best
    checkpoint in place of the last. Beside ``model_best.pth`` it writes ``model_best.json`` with
    metric, value and iteration.

    Args:
        eval_period: the evaluation hook's period.
        checkpointer: what writes the checkpoint.
        metric: name in the event storage; larger is better.
    """

    def __init__(self, eval_period: int, checkpointer: PanopticCheckpointer, metric: str):
        super().__init__(eval_period, SimpleNamespace(save=self._save), metric)
        self._save_untagged = checkpointer.save_untagged
        self._file = Path(checkpointer.save_dir, "model_best.json")

    def before_train(self) -> None:
        if self.trainer.start_iter == 0 or not self._file.is_file():
            return
        best = json.loads(self._file.read_text(encoding="utf-8"))
        # A later one will come again: the training goes on from a checkpoint before it.
        if best["metric"] == self._val_metric and best["iteration"] < self.trainer.start_iter:
            self._update_best(best["value"], best["iteration"])

    def _save(self, name: str, iteration: int) -> None:
        value, _ = self.trainer.storage.latest()[self._val_metric]
        # After the training, metrics have the number of the iteration that would come next.
        iteration = min(iteration, self.trainer.max_iter - 1)
        self._save_untagged(name, iteration=iteration)
        best = {"metric": self._val_metric, "value": float(value), "iteration": iteration}
        with atomic_file(self._file) as f:
            json.dump(best, f)


class MemoryUse(HookBase):
    """Record ``max_memory_mib``: the highest use so far, in MiB, of the main process.

    On a GPU what PyTorch has allocated there, else the memory of the process (not on Windows).
    """

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % _PERIOD == 0 or done == self.trainer.max_iter:
            used = _max_memory_mib()
            if used is not None:
                self.trainer.storage.put_scalar("max_memory_mib", used, smoothing_hint=False)


def _max_memory_mib() -> float | None:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:
        # Windows.
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB elsewhere.
    return used / 2**20 if sys.platform == "darwin" else used / 2**10
