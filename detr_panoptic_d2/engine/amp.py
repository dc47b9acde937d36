"""Mixed precision on any device."""

import time

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn
from torch.utils.data import DataLoader

from ..errors import check_value

_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class AnyDeviceAMPTrainer(AMPTrainer):
    """Detectron2's ``AMPTrainer``, which needs CUDA, on the CPU as well."""

    def run_step(self) -> None:
        """Train on one batch; the loss is scaled for float16 alone."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, dtype=self.precision):
            losses = self.model(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def load_state_dict(self, state: dict) -> None:
        """Load; the training may have had another precision before."""
        own = self.grad_scaler.state_dict()
        super().load_state_dict({**state, "grad_scaler": state.get("grad_scaler") or own})


def build_step(
    cfg: CfgNode, model: nn.Module, data_loader: DataLoader, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    """Build what runs one iteration: Detectron2's ``SimpleTrainer``, or mixed precision.

    Raises:
        UserError: ``SOLVER.AMP.DTYPE`` is not known.
    """
    amp = cfg.SOLVER.AMP
    check_value("SOLVER.AMP.DTYPE", amp.DTYPE, amp.DTYPE in _TYPES, " or ".join(_TYPES))
    if not amp.ENABLED:
        return SimpleTrainer(model, data_loader, optimizer)
    scaler = torch.amp.GradScaler(
        next(model.parameters()).device.type, enabled=amp.DTYPE == "float16"
    )
    return AnyDeviceAMPTrainer(
        model, data_loader, optimizer, grad_scaler=scaler, precision=_TYPES[amp.DTYPE]
    )
