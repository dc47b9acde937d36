"""Forward and backward pass of one iteration, with gradient accumulation."""

import contextlib
import time

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ..errors import check_value
from ..modeling.matcher import Targets
from .distributed import unwrap

_AMP_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class TrainingStep(AMPTrainer):
    """Detectron2's ``AMPTrainer`` on any device, in mixed precision or not, with accumulation.

    The loss is scaled only if the precision is float16. The state of Detectron2's
    ``SimpleTrainer``, which has no loss scale, can be loaded too.
    """

    def __init__(
        self, cfg: CfgNode, model: nn.Module, data_loader: DataLoader, optimizer: Optimizer
    ):
        amp, self._num_parts = cfg.SOLVER.AMP, cfg.SOLVER.ACCUMULATE
        check_value("SOLVER.AMP.DTYPE", amp.DTYPE, amp.DTYPE in _AMP_TYPES, " or ".join(_AMP_TYPES))
        images = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        is_divisor = self._num_parts >= 1 and images % self._num_parts == 0
        allowed = f"a divisor of {images}, the images of a process in each iteration"
        check_value("SOLVER.ACCUMULATE", self._num_parts, is_divisor, allowed)
        self._device = next(model.parameters()).device
        self._amp_enabled = amp.ENABLED
        scale = amp.ENABLED and amp.DTYPE == "float16"
        scaler = torch.amp.GradScaler(self._device.type, enabled=scale)
        precision = _AMP_TYPES[amp.DTYPE]
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler, precision=precision)

    def run_step(self) -> None:
        """Train on one batch, in ``SOLVER.ACCUMULATE`` parts."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses: dict[str, torch.Tensor] = {}
        if self._num_parts > 1:
            # The losses of the parts are normalized over the whole batch.
            targets = Targets.from_instances([x["instances"] for x in data], self._device)
            unwrap(self.model).criterion.step_targets = targets
        size = len(data) // self._num_parts
        for first in range(0, len(data), size):
            is_last = first + size == len(data)
            for name, loss in self._backward(data[first : first + size], is_last).items():
                losses[name] = losses.get(name, 0) + loss
        if self._num_parts > 1:
            unwrap(self.model).criterion.step_targets = None
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _backward(self, data: list[dict], is_last: bool) -> dict[str, torch.Tensor]:
        """Add the gradients of a part of the batch; processes are synchronized in the last one."""
        wait = isinstance(self.model, DistributedDataParallel) and not is_last
        with self.model.no_sync() if wait else contextlib.nullcontext():
            with torch.autocast(self._device.type, self.precision, enabled=self._amp_enabled):
                losses = self.model(data)
                total = sum(losses.values())
            self.grad_scaler.scale(total).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def load_state_dict(self, state_dict: dict) -> None:
        if not state_dict.get("grad_scaler"):
            state_dict = {**state_dict, "grad_scaler": self.grad_scaler.state_dict()}
        super().load_state_dict(state_dict)
