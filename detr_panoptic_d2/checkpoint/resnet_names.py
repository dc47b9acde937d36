"""Names of a ResNet's tensors in torchvision (official DETR, timm), Detectron2 and Hugging Face.

They are translated by way of torchvision's: ``conv1.weight``, ``bn1.*``,
``layer1.0.conv1.weight``, ``layer1.0.bn1.*``, ``layer1.0.downsample.0.weight``,
``layer1.0.downsample.1.*``.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

# Two names of every ResNet of each style: the stem's convolution and the first of the first stage.
_SIGNATURES = {
    "torchvision": ("conv1.weight", "layer1.0.conv1.weight"),
    "detectron2": ("stem.conv1.weight", "res2.0.conv1.weight"),
    "huggingface": (
        "embedder.embedder.convolution.weight",
        "encoder.stages.0.layers.0.layer.0.convolution.weight",
    ),
}
_STEM = re.compile(r"(?:conv1|bn1)\.\w+")
_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)")
_DETECTRON2_STEM = re.compile(r"stem\.conv1(\.norm)?\.(\w+)")
_DETECTRON2_BLOCK = re.compile(r"res(\d)\.(\d+)\.(?:conv(\d)|shortcut)(\.norm)?\.(\w+)")
_HUGGINGFACE_STEM = re.compile(r"embedder\.embedder\.(convolution|normalization)\.(\w+)")
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

    def to_torchvision(self, name: str) -> str | None:
        """Torchvision's name of a tensor, without prefix; None if it is none of the ResNet's."""
        if not name.startswith(self.prefix):
            return None
        name = name[len(self.prefix) :]
        if self.style == "detectron2":
            name = _from_detectron2(name)
        elif self.style == "huggingface":
            name = _from_huggingface(name)
        return name if _BLOCK.fullmatch(name) or _STEM.fullmatch(name) else None

    def from_torchvision(self, name: str) -> str:
        """The name here of the tensor that torchvision calls ``name``; not for "huggingface"."""
        return self.prefix + (_to_detectron2(name) if self.style == "detectron2" else name)


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


def _from_detectron2(name: str) -> str:
    if match := _DETECTRON2_STEM.fullmatch(name):
        return f"{'bn1' if match[1] else 'conv1'}.{match[2]}"
    if not (match := _DETECTRON2_BLOCK.fullmatch(name)):
        return ""
    stage, block, conv, norm, what = match.groups()
    place = f"{'bn' if norm else 'conv'}{conv}" if conv else f"downsample.{int(bool(norm))}"
    return f"layer{int(stage) - 1}.{block}.{place}.{what}"


def _to_detectron2(name: str) -> str:
    if not (match := _BLOCK.fullmatch(name)):
        return "stem." + name.replace("bn1.", "conv1.norm.")
    stage, block, part, number, what = match.groups()
    if part == "downsample.":
        place = "shortcut.norm" if number == "1" else "shortcut"
    else:
        place = f"conv{number}.norm" if part == "bn" else f"conv{number}"
    return f"res{int(stage) + 1}.{block}.{place}.{what}"


def _from_huggingface(name: str) -> str:
    if match := _HUGGINGFACE_STEM.fullmatch(name):
        return f"{'conv1' if match[1] == 'convolution' else 'bn1'}.{match[2]}"
    if not (match := _HUGGINGFACE_BLOCK.fullmatch(name)):
        return ""
    stage, block, conv, part, what = match.groups()
    norm = part == "normalization"
    place = f"{'bn' if norm else 'conv'}{int(conv) + 1}" if conv else f"downsample.{int(norm)}"
    return f"layer{int(stage) + 1}.{block}.{place}.{what}"
