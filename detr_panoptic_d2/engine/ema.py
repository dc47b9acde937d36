"""Exponential moving average (EMA) of the weights."""

import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ..errors import check_value
from .distributed import unwrap


def build_ema(cfg: CfgNode, model: nn.Module) -> AveragedModel | None:
    """Build PyTorch's ``AveragedModel`` as ``MODEL_EMA`` says; None if it is not enabled.

    After n updates, the decay is ``DECAY * (1 - exp(-n / WARMUP))``, so that the first weights of a
    training are soon forgotten. Buffers are those of the model.
    """
    options = cfg.MODEL_EMA
    if not options.ENABLED:
        return None
    key, decay, warmup = "MODEL_EMA.DECAY", options.DECAY, options.WARMUP
    check_value(key, decay, 0 < decay < 1, "a number between 0 and 1")
    check_value("MODEL_EMA.WARMUP", warmup, warmup >= 0, "0 or more")

    def update(averages: Any, weights: Any, num_averaged: Any) -> None:
        # The argument may be on a GPU, which would have to finish first.
        updates = int(ema.n_averaged)
        current = decay * (1 - math.exp(-updates / warmup)) if warmup else decay
        torch._foreach_lerp_(averages, weights, 1 - current)

    ema = AveragedModel(unwrap(model), multi_avg_fn=update)
    return ema


class UpdateEMA(HookBase):
    """Update the average after each step. It comes before checkpoints and evaluations."""

    def after_step(self) -> None:
        self.trainer.ema.update_parameters(unwrap(self.trainer.model))
