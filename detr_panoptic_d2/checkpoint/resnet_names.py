"""Names of a ResNet's tensors in torchvision (official DETR, timm), Detectron2 and Hugging Face.

Torchvision's are the common ones: ``conv1.weight``, ``bn1.*``, ``layer1.0.conv1.weight``,
``layer1.0.bn1.*``, ``layer1.0.downsample.0.weight``, ``layer1.0.downsample.1.*``.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from ..errors import UserError

# Two names of every ResNet of each style: the stem's convolution and the first of the first stage.
_SIGNATURES = {
    "torchvision": ("conv1.weight", "layer1.0.conv1.weight"),
    "detectron2": ("stem.conv1.weight", "res2.0.conv1.weight"),
    "huggingface": (
        "embedder.embedder.convolution.weight",
        "encoder.stages.0.layers.0.layer.0.convolution.weight",
    ),
}
_PARTS = {"convolution": "conv", "normalization": "bn"}
_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)")
_DETECTRON2_BLOCK = re.compile(r"res(\d)\.(\d+)\.(?:conv(\d)|shortcut)(\.norm)?\.(\w+)")
_HUGGINGFACE_BLOCK = re.compile(
    r"encoder\.stages\.(\d)\.layers\.(\d+)\.(?:layer\.(\d)|shortcut)"
    r"\.(convolution|normalization)\.(\w+)"
)


class ResNetNames(NamedTuple):
    """Where a ResNet is among the names of a state dict.

    Attributes:
        prefix: what its names start with, such as ``backbone.body.``.
        style: "torchvision", "detectron2" or "huggingface".
    """

    prefix: str
    style: str

    def to_common(self, name: str) -> str | None:
        """Torchvision's name of a tensor, without prefix; None if it is none of the ResNet's."""
        if not name.startswith(self.prefix):
            return None
        name = name[len(self.prefix) :]
        if self.style == "detectron2":
            name = _from_detectron2(name)
        elif self.style == "huggingface":
            name = _from_huggingface(name)
        if name is None or not (_BLOCK.fullmatch(name) or re.fullmatch(r"(conv1|bn1)\.\w+", name)):
            return None
        return name

    def from_common(self, name: str) -> str:
        """The full name here of the tensor that torchvision calls ``name``."""
        if self.style == "detectron2":
            name = _to_detectron2(name)
        elif self.style == "huggingface":
            raise UserError("names of Hugging Face's own ResNet are only read, not written")
        return self.prefix + name


def find_resnet(names: Iterable[str], within: str = "") -> ResNetNames | None:
    """Find the ResNet in a state dict.

    Args:
        names: all names of the state dict.
        within: look at those only that start with this.
    """
    names = {name for name in names if name.startswith(within)}
    for style, (stem, first) in _SIGNATURES.items():
        for name in sorted(names, key=len):
            prefix = name[: -len(stem)]
            if (
                name.endswith(stem)
                and (not prefix or prefix[-1] == ".")
                and prefix + first in names
            ):
                return ResNetNames(prefix, style)
    return None


def _from_detectron2(name: str) -> str | None:
    if match := re.fullmatch(r"stem\.conv1(\.norm)?\.(\w+)", name):
        return f"{'bn1' if match[1] else 'conv1'}.{match[2]}"
    match = _DETECTRON2_BLOCK.fullmatch(name)
    if not match:
        return None
    stage, block, conv, norm, what = match.groups()
    kind, number = ("bn" if norm else "conv", conv) if conv else ("downsample.", int(bool(norm)))
    return f"layer{int(stage) - 1}.{block}.{kind}{number}.{what}"


def _to_detectron2(name: str) -> str:
    match = _BLOCK.fullmatch(name)
    if not match:
        return "stem." + name.replace("bn1.", "conv1.norm.")
    stage, block, part, number, what = match.groups()
    if part == "downsample.":
        place = "shortcut.norm" if number == "1" else "shortcut"
    else:
        place = f"conv{number}.norm" if part == "bn" else f"conv{number}"
    return f"res{int(stage) + 1}.{block}.{place}.{what}"


def _from_huggingface(name: str) -> str | None:
    stem = r"embedder\.embedder\.(convolution|normalization)\.(\w+)"
    if match := re.fullmatch(stem, name):
        return f"{_PARTS[match[1]]}1.{match[2]}"
    match = _HUGGINGFACE_BLOCK.fullmatch(name)
    if not match:
        return None
    stage, block, conv, part, what = match.groups()
    if conv is None:
        place = f"downsample.{0 if part == 'convolution' else 1}"
    else:
        place = f"{_PARTS[part]}{int(conv) + 1}"
    return f"layer{int(stage) + 1}.{block}.{place}.{what}"
