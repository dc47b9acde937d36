"""Batch norms folded into convolutions, for inference.

A convolution :math:`y = Wx + b` followed by a batch norm with fixed statistics is the convolution
:math:`sWx + s(b - \\mu) + \\beta` with :math:`s = \\gamma / \\sqrt{\\sigma^2 + \\epsilon}`
(Jacob et al., "Quantization and Training of Neural Networks", arXiv 1712.05877, section 3.2).
"""

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

_FROZEN_NORMS = (FrozenBatchNorm2d, TorchvisionFrozenBatchNorm2d)
_TRAINED_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm)


def fold_frozen_batch_norm(backbone: nn.Module) -> nn.Module:
    """An inference-only copy of a module, its fixed batch norms folded into the convolutions.

    Folded are Detectron2's ``Conv2d`` with a ``norm``, the residual blocks of torchvision, and a
    convolution directly followed by a norm in an ``nn.Sequential``. A norm is fixed if it is frozen
    or in eval mode. Everything else is copied as it is. The convolutions of the copy are in
    ``channels_last`` memory format. Outputs agree up to rounding.

    Args:
        backbone: any module; it is left unchanged.

    Returns:
        the copy; none of its parameters requires a gradient.
    """
    # Outside inference mode, so that the copy can be used in and out of it.
    with torch.inference_mode(False), torch.no_grad():
        folded = copy.deepcopy(backbone).requires_grad_(False)
        # A module at two places must not be folded twice, or with the norm of one place only.
        uses = Counter(id(m) for _, m in folded.named_modules(remove_duplicate=False))
        for module in list(folded.modules()):
            if type(module) is Conv2d and _is_fixed(module.norm):
                _fold(module, module.norm)
                module.norm = None
        for parent in list(folded.modules()):
            for conv_name, norm_name in list(_conv_norm_pairs(parent)):
                conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
                if uses[id(conv)] == 1 and _is_plain(conv) and _is_fixed(norm):
                    _fold(conv, norm)
                    setattr(parent, norm_name, nn.Identity())
        for module in folded.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
    return folded


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


def _is_fixed(norm: nn.Module | None) -> bool:
    """Whether this is a batch norm whose statistics do not depend on the batch."""
    if type(norm) in _FROZEN_NORMS:
        return True
    return type(norm) in _TRAINED_NORMS and not norm.training and norm.running_mean is not None


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
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


class _OptimizerSteps:
    """Counts the steps of all optimizers: fused ones write without raising a tensor's version."""

    def __init__(self) -> None:
        self.count = 0
        self._handle = None

    def start(self) -> None:
        """Begin to count; once is enough."""
        if self._handle is None:
            self._handle = register_optimizer_step_post_hook(self._step)

    def _step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        self.count += 1


_OPTIMIZER_STEPS = _OptimizerSteps()


class FoldedCache:
    """Keeps the folded copy of a module for as long as the module does not change.

    The copy is rebuilt when a tensor of the module was written to in place (``load_state_dict``)
    or replaced (``.to()``), when a submodule changed between train and eval mode, and after a step
    of any optimizer. Other writes that go around PyTorch's version counter (``tensor.data.add_()``)
    are not seen: call :meth:`clear` after them. Tensors made in inference mode have no version
    counter, so a module that has such is folded anew at every call.

    This is a plain object: as an attribute of a module it adds nothing to the ``state_dict``.
    Copies and pickles of it are empty.
    """

    def __init__(self) -> None:
        # Keyword arguments of ``torch.compile`` for the copy; None: it is not compiled.
        self.compile_options: dict | None = None
        self._key: tuple | None = None
        self._folded: nn.Module | None = None
        # Aliases of the tensors behind the key: their memory is not reused while they are held, so
        # that equal addresses mean equal tensors.
        self._sources: list[torch.Tensor] = []
        _OPTIMIZER_STEPS.start()

    def __reduce__(self) -> tuple:
        return (type(self), ())

    def clear(self) -> None:
        """Forget the copy and free its memory, for instance before training."""
        self._key, self._folded, self._sources = None, None, []

    def get(self, module: nn.Module) -> nn.Module:
        """The folded copy of ``module``, see :func:`fold_frozen_batch_norm`."""
        tensors = [*module.parameters(), *module.buffers()]
        if any(tensor.is_inference() for tensor in tensors):
            self.clear()
            return self._fold(module)
        key = (
            id(module),
            _OPTIMIZER_STEPS.count,
            tuple((t.data_ptr(), t._version, t.dtype, t.device) for t in tensors),
            tuple(m.training for m in module.modules()),
        )
        if key != self._key:
            self.clear()
            self._folded = self._fold(module)
            self._sources = [tensor.detach() for tensor in tensors]
            self._key = key
        return self._folded

    def _fold(self, module: nn.Module) -> nn.Module:
        folded = fold_frozen_batch_norm(module)
        if self.compile_options is not None:
            folded.compile(**self.compile_options)
        return folded
