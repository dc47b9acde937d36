"""One step of training: any precision, and a clear stop when the loss is no number."""

import logging
import time
from collections.abc import Callable, Iterable

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import nn

from ..errors import UserError

logger = logging.getLogger(__name__)

_AMP_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class NonFiniteLossError(UserError):
    """The loss is infinite or NaN."""


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Autocast type of ``SOLVER.AMP``, None when it is off.

    Raises:
        UserError: ``SOLVER.AMP.DTYPE`` is not known.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if cfg.SOLVER.AMP.DTYPE not in _AMP_TYPES:
        raise UserError(
            f"SOLVER.AMP.DTYPE is '{cfg.SOLVER.AMP.DTYPE}'; known are {', '.join(_AMP_TYPES)}."
        )
    return _AMP_TYPES[cfg.SOLVER.AMP.DTYPE]


class TrainStep(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` in one, on any device.

    Args:
        model: returns a dict of weighted losses.
        data_loader: endless batches.
        optimizer: clips gradients itself, if they are clipped.
        dtype: autocast type, None for full precision. float16 scales the loss.
        way_out: called for the error message, says what training can go on from.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        *,
        dtype: torch.dtype | None = None,
        way_out: Callable[[], str] = lambda: "",
    ):
        super().__init__(model, data_loader, optimizer)
        self._dtype = dtype
        self._device_type = next(model.parameters()).device.type
        self._way_out = way_out
        self.grad_scaler = torch.amp.GradScaler(self._device_type, enabled=dtype == torch.float16)

    def run_step(self) -> None:
        """Train on one batch.

        Raises:
            NonFiniteLossError: on every process, when the loss of any is infinite or NaN. The
                weights are those from before the step.
        """
        if not self.model.training:
            raise RuntimeError("The model was put into evaluation mode during training.")
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with torch.autocast(self._device_type, dtype=self._dtype, enabled=self._dtype is not None):
            losses = self.model(data)
            total = sum(losses.values())
        self._stop_if_not_finite(losses, total, data)

        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict:
        state = super().state_dict()
        state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        # Empty without loss scaling; the precision may be another than before the break.
        if state.get("grad_scaler") and self.grad_scaler.is_enabled():
            self.grad_scaler.load_state_dict(state["grad_scaler"])

    def _stop_if_not_finite(
        self, losses: dict[str, torch.Tensor], total: torch.Tensor, data: list[dict]
    ) -> None:
        finite = torch.isfinite(total.detach()).to(torch.float32)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(finite, op=torch.distributed.ReduceOp.MIN)
        if finite.item() == 1:
            return
        report = None
        if not torch.isfinite(total):
            report = {
                "losses": {k: v.item() for k, v in losses.items() if not torch.isfinite(v)},
                "images": [d.get("file_name", "?") for d in data],
            }
        reports = [r for r in comm.all_gather(report) if r is not None]
        names = sorted({name for r in reports for name in r["losses"]})
        images = ", ".join(image for r in reports for image in r["images"])
        raise NonFiniteLossError(
            f"The loss became infinite or NaN at iteration {self.iter} ({', '.join(names)}), on "
            f"the images {images}. {self._way_out()} Look at these images' annotations; else lower "
            "SOLVER.BASE_LR, or use SOLVER.AMP.DTYPE bfloat16 in place of float16."
        )
