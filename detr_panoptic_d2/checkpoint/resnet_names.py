"""Names of a ResNet's tensors in torchvision (official DETR, timm), Detectron2 and Hugging Face.

They are translated by way of torchvision's: ``conv1.weight``, ``bn1.*``,
``layer1.0.conv1.weight``, ``layer1.0.bn1.*``, ``layer1.0.downsample.0.weight``,
``layer1.0.downsample.1.*``.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

_Replacements = list[tuple[str, str | Callable[[re.Match[str]], str]]]

# Two names of every ResNet of each style: the stem's convolution and the first of the first stage.
_SIGNATURES = {
    "torchvision": ("conv1.weight", "layer1.0.conv1.weight"),
    "detectron2": ("stem.conv1.weight", "res2.0.conv1.weight"),
    "huggingface": (
        "embedder.embedder.convolution.weight",
        "encoder.stages.0.layers.0.layer.0.convolution.weight",
    ),
}
# Torchvision's names.
_STEM = re.compile(r"(?:conv1|bn1)\.\w+")
_BLOCK = re.compile(r"layer\d\.\d+\.(?:(?:conv|bn)\d|downsample\.[01])\.\w+")
# Pattern and replacement, one after the other, that make a name torchvision's.
_TO_TORCHVISION: dict[str, _Replacements] = {
    "torchvision": [],
    "detectron2": [
        (r"^stem\.", ""),
        (r"^res(\d)\.", lambda match: f"layer{int(match[1]) - 1}."),
        (r"\bconv(\d)\.norm\.", r"bn\1."),
        (r"\.shortcut\.norm\.", ".downsample.1."),
        (r"\.shortcut\.", ".downsample.0."),
    ],
    "huggingface": [
        (r"^embedder\.embedder\.convolution\.", "conv1."),
        (r"^embedder\.embedder\.normalization\.", "bn1."),
        (r"^encoder\.stages\.(\d)\.layers\.", lambda match: f"layer{int(match[1]) + 1}."),
        (r"\.layer\.(\d)\.convolution\.", lambda match: f".conv{int(match[1]) + 1}."),
        (r"\.layer\.(\d)\.normalization\.", lambda match: f".bn{int(match[1]) + 1}."),
        (r"\.shortcut\.convolution\.", ".downsample.0."),
        (r"\.shortcut\.normalization\.", ".downsample.1."),
    ],
}
# Of the styles that models here have.
_FROM_TORCHVISION: dict[str, _Replacements] = {
    "torchvision": [],
    "detectron2": [
        (r"^(conv1|bn1)\.", r"stem.\1."),
        (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
        (r"\bbn(\d)\.", r"conv\1.norm."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
    ],
}


class ResNetNames(NamedTuple):
    """Where a ResNet is among the names of a state dict.

    Attributes:
        prefix: what its names start with, such as ``backbone.body.``.
        style: "torchvision", "detectron2" or "huggingface".
    """

    prefix: str
    style: str

    def to_torchvision(self, name: str) -> str | None:
        """Torchvision's name of a tensor, without prefix; None if it is none of the ResNet's."""
        if not name.startswith(self.prefix):
            return None
        name = _replace(name[len(self.prefix) :], _TO_TORCHVISION[self.style])
        return name if _BLOCK.fullmatch(name) or _STEM.fullmatch(name) else None

    def from_torchvision(self, name: str) -> str:
        """The name here of the tensor that torchvision calls ``name``; not for "huggingface"."""
        return self.prefix + _replace(name, _FROM_TORCHVISION[self.style])


def find_resnet(names: Iterable[str], within: str = "") -> ResNetNames | None:
    """Find the ResNet in a state dict.

    Args:
        names: all names of the state dict.
        within: look at those only that start with this.
    """
    names = {name for name in names if name.startswith(within)}
    for style, (stem, first) in _SIGNATURES.items():
        for name in sorted(names, key=len):
            prefix = name.removesuffix(stem)
            if prefix != name and prefix[-1:] in ("", ".") and prefix + first in names:
                return ResNetNames(prefix, style)
    return None


def _replace(name: str, replacements: Iterable[tuple[str, str | Callable]]) -> str:
    for pattern, replacement in replacements:
        name = re.sub(pattern, replacement, name)
    return name
