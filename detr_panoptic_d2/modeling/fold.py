"""Batch norms folded into convolutions, for inference.

A convolution :math:`y = Wx + b` followed by a batch norm with fixed statistics is the convolution
:math:`sWx + s(b - \\mu) + \\beta` with :math:`s = \\gamma / \\sqrt{\\sigma^2 + \\epsilon}`
(Jacob et al., "Quantization and Training of Neural Networks", arXiv 1712.05877, section 3.2).
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

_FROZEN_NORMS = (FrozenBatchNorm2d, TorchvisionFrozenBatchNorm2d)
_TRAINED_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm)


@torch.no_grad()
def fold_batch_norms(module: nn.Module) -> None:
    """Fold the fixed batch norms of a module into its convolutions, in place.

    Folded are Detectron2's ``Conv2d`` with a ``norm``, the residual blocks of torchvision, and a
    convolution directly followed by a norm in an ``nn.Sequential``. A norm is fixed if it is frozen
    or in eval mode. Everything else stays as it is. Outputs agree up to rounding; the names of the
    state dict change, so checkpoints are loaded before.

    Args:
        module: any module. None of its parameters requires a gradient afterwards, and its
            convolutions are in ``channels_last`` memory format.
    """
    module.requires_grad_(False)
    # A module at two places must not be folded twice, or with the norm of one place only.
    uses = Counter(id(m) for _, m in module.named_modules(remove_duplicate=False))
    children: list[Any] = list(module.modules())
    for child in children:
        if type(child) is Conv2d and _is_fixed(child.norm):
            _fold(child, child.norm)
            child.norm = None
    for parent in list(module.modules()):
        for conv_name, norm_name in list(_conv_norm_pairs(parent)):
            conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
            if uses[id(conv)] == 1 and _is_plain(conv) and _is_fixed(norm):
                _fold(conv, norm)
                setattr(parent, norm_name, nn.Identity())
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            child.to(memory_format=torch.channels_last)


def _conv_norm_pairs(parent: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of children of which the first is applied directly before the second."""
    names = list(parent._modules)
    if type(parent) is nn.Sequential:
        yield from zip(names, names[1:], strict=False)
    elif type(parent) in (BasicBlock, Bottleneck):
        yield from ((name, f"bn{name[4:]}") for name in names if name.startswith("conv"))


def _is_plain(conv: nn.Module) -> bool:
    """Whether nothing but the convolution itself happens in this module."""
    if type(conv) is Conv2d:
        return conv.norm is None and conv.activation is None
    return type(conv) is nn.Conv2d


def _is_fixed(norm: Any) -> bool:
    """Whether this is a batch norm whose statistics do not depend on the batch."""
    if type(norm) in _FROZEN_NORMS:
        return True
    return type(norm) in _TRAINED_NORMS and not norm.training and norm.running_mean is not None


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    """Multiply the norm into the convolution, in float64, in place."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = (variance + norm.eps).rsqrt()
    shift = -mean * scale
    if norm.weight is not None:
        scale = scale * norm.weight.double()
        shift = norm.bias.double() - mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    weight = conv.weight.double() * scale.reshape(-1, 1, 1, 1)
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(dtype), requires_grad=False)
