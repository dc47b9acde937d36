"""Freeze parts of a network: parameters, batch norm statistics and unused levels."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.modeling import Backbone
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def frozen_norms(module: nn.Module) -> Iterator[Any]:
    """Yield the norms whose running statistics are fixed: the frozen batch norms of any library,
    and batch norms in a part without trainable parameters."""
    for parent in module.modules():
        for norm in parent.children():
            if getattr(norm, "running_mean", None) is None:
                continue
            # A norm without parameters of its own belongs to the part around it.
            parameters = list(norm.parameters()) or list(parent.parameters())
            if not isinstance(norm, _NormBase) or not any(p.requires_grad for p in parameters):
                yield norm


def lacks_norm_statistics(module: nn.Module) -> bool:
    """Whether a frozen norm still has the statistics of a new one, with which features explode."""
    return any(not norm.running_mean.any() for norm in frozen_norms(module))


def freeze_unused_parameters(backbone: Backbone, channels: int, levels: Sequence[str]) -> None:
    """Freeze the parameters that none of the used ``levels`` depends on.

    Distributed training waits for a gradient of every trainable parameter. An FPN, for example, has
    convolutions for levels that a box model does not use. The backbone has input ``channels``.
    """
    trainable = [p for p in backbone.parameters() if p.requires_grad]
    if not trainable:
        return
    side = backbone.padding_constraints.get("square_size", 0) or max(64, backbone.size_divisibility)
    training = backbone.training
    backbone.eval()
    with torch.enable_grad():
        outputs = backbone(trainable[0].new_zeros(1, channels, side, side))
        total = sum(outputs[level].sum() for level in levels)
        gradients = torch.autograd.grad(total, trainable, allow_unused=True)
    backbone.train(training)
    for parameter, gradient in zip(trainable, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
