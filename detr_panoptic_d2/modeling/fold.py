"""Batch norms folded into convolutions, for inference (Jacob et al. 2017, section 3.2)."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

_FROZEN_NORMS = (FrozenBatchNorm2d, TorchvisionFrozenBatchNorm2d)
_TRAINED_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm)


@torch.no_grad()
def fold_batch_norms(module: nn.Module) -> None:
    """Fold the fixed batch norms of a module into its convolutions, in place.

    A norm is fixed if it is frozen or in eval mode. It is folded in Detectron2's ``Conv2d`` with a
    ``norm``, in torchvision's residual blocks, and in an ``nn.Sequential`` behind a convolution.
    Outputs agree up to rounding. Afterwards no parameter requires a gradient, the names of the
    state dict are other ones, and on a CPU the convolutions are in ``channels_last`` format.
    """
    module.requires_grad_(False)
    # A convolution that is used twice must not be folded.
    uses = Counter(id(m) for _, m in module.named_modules(remove_duplicate=False))
    for parent in list(module.modules()):
        for conv, owner, name in list(_conv_norm_pairs(parent)):
            norm: Any = getattr(owner, name)
            if uses[id(conv)] == 1 and _is_fixed(norm):
                _fold(conv, norm)
                setattr(owner, name, None if owner is conv else nn.Identity())
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and child.weight.device.type == "cpu":
            child.to(memory_format=torch.channels_last)


def _conv_norm_pairs(parent: nn.Module) -> Iterator[tuple[Any, nn.Module, str]]:
    """Convolutions whose output goes directly into a norm, with the norm's owner and name."""
    names = list(parent._modules)
    pairs: list[tuple[str, str]] = []
    if type(parent) in (nn.Sequential, IntermediateLayerGetter):
        pairs = list(zip(names, names[1:], strict=False))
    elif type(parent) in (BasicBlock, Bottleneck):
        pairs = [(name, f"bn{name[4:]}") for name in names if name.startswith("conv")]
    elif type(parent) is Conv2d:
        yield parent, parent, "norm"
    for conv_name, norm_name in pairs:
        if type(conv := parent._modules[conv_name]) is nn.Conv2d:
            yield conv, parent, norm_name


def _is_fixed(norm: Any) -> bool:
    """Whether this is a batch norm whose statistics do not depend on the batch."""
    if type(norm) in _FROZEN_NORMS:
        return True
    return type(norm) in _TRAINED_NORMS and not norm.training and norm.running_mean is not None


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    """Multiply the norm into the convolution in place, in float64 on the host."""
    like = conv.weight
    tensors = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    w, b, mean, variance, gamma, beta = (None if t is None else t.cpu().double() for t in tensors)
    weight, bias = fuse_conv_bn_weights(w, b, mean, variance, norm.eps, gamma, beta)  # type: ignore[arg-type]
    conv.weight = nn.Parameter(weight.to(like), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(like), requires_grad=False)
