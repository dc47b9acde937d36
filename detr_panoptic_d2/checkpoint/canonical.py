"""Tell whose checkpoint it is, and give its tensors this project's names.

The result has the names of ``PanopticDETR``'s state dict, with one difference:
a ResNet, wherever it is in the file, is at ``resnet.`` under torchvision's names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import UserError
from . import huggingface_names
from .class_rows import COCO_THING_IDS, ClassHead, coco_things_head, raw_id_head
from .resnet_names import ResNetNames, find_resnet

CLASS_HEAD = ("class_embed.weight", "class_embed.bias")
RESNET = "resnet."
# Tensors of other code bases that are no weights of the network.
_NO_WEIGHTS = ("criterion.", "pixel_mean", "pixel_std")
# ImageNet classifiers: torchvision's and timm's, Detectron2's, Hugging Face's.
_CLASSIFIERS = ("fc.", "stem.fc.", "classifier.")


@dataclass
class Canonical:
    """A checkpoint under this project's names.

    Attributes:
        format: whose it is, in words.
        tensors: name to tensor, without the class head.
        head: the class head; None if the file has none.
        left_out: name in the file to the reason why it is not among ``tensors``.
        renamed: whether names changed.
        backbone_only: the file holds a backbone and nothing else of DETR.
        heuristics: the file's author, if the names are to be matched by Detectron2's heuristics.
    """

    format: str
    tensors: dict[str, torch.Tensor]
    head: ClassHead | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    renamed: bool = True
    backbone_only: bool = False
    heuristics: str | None = None


def to_canonical(data: Mapping[str, Any], known_names: set[str], path: str) -> Canonical:
    """Recognise a checkpoint and rename its tensors.

    Args:
        data: from :func:`.read.read_checkpoint`.
        known_names: names of the state dict of the model that it is for.
        path: of the file, for messages.

    Raises:
        UserError: it is of no known kind.
    """
    weights = _strip_common_prefix(dict(data["model"]), "module.")
    if data.get("matching_heuristics") and data.get("__author__") != "torchvision":
        author = str(data.get("__author__", "unknown author"))
        return Canonical(
            f"{author}, names matched by Detectron2's heuristics",
            weights,
            backbone_only=True,
            heuristics=author,
        )
    names = set(weights)
    class_names = data.get("class_names")
    if names == known_names:
        return own(weights)
    if huggingface_names.recognise(names):
        return _from_huggingface(weights, class_names, path)
    plain = {_without_wrappers(name) for name in names}
    if "query_embed.weight" in plain and any(n.startswith("backbone.0.") for n in plain):
        return _from_official(weights, class_names)
    if names & known_names or "query_embed.weight" in plain:
        return own(weights)
    if resnet := find_resnet(names):
        return _from_resnet(weights, resnet, path)
    example = ", ".join(sorted(names)[:3])
    raise UserError(
        f"{path} is a checkpoint of another model: none of its {len(names)} tensors is known here "
        f"(for example {example}). Known are PanopticDETR, facebookresearch/detr, Hugging Face "
        "Detr, and ResNets of torchvision, timm, Detectron2 and Hugging Face"
    )


def own(weights: dict[str, torch.Tensor]) -> Canonical:
    """A state dict of this project; its class rows are contiguous classes."""
    resnet = find_resnet(weights, "backbone.")
    tensors = _with_common_resnet(weights, resnet)
    return Canonical("PanopticDETR", tensors, _pop_head(tensors), renamed=False)


def _from_official(weights, class_names) -> Canonical:
    """facebookresearch/detr, and its wrapper for Detectron2 (``detr.`` before everything)."""
    plain, left_out = {}, {}
    for name, tensor in weights.items():
        short = _without_wrappers(name)
        if short.startswith(_NO_WEIGHTS):
            left_out[name] = "no weight of the network"
        else:
            plain[short] = tensor
    wrapper = any(name.startswith("backbone.0.backbone.") for name in plain)
    tensors = _with_common_resnet(plain, find_resnet(plain, "backbone.0."))
    head = _pop_head(tensors)
    if head is not None and not wrapper:
        head = raw_id_head(head.weight, head.bias, class_names)
    elif head is not None and len(head.weight) == len(COCO_THING_IDS) + 1:
        head = coco_things_head(head.weight, head.bias)
    name = "facebookresearch/detr"
    name += ", Detectron2 wrapper" if wrapper else ""
    name += "" if any(n.startswith("mask_head.") for n in tensors) else ", boxes only"
    return Canonical(name, tensors, head, left_out)


def _from_huggingface(weights, class_names, path) -> Canonical:
    tensors = huggingface_names.to_own(weights, path)
    tensors = _with_common_resnet(tensors, find_resnet(tensors, "backbone."))
    head = _pop_head(tensors)
    if head is not None:
        head = raw_id_head(head.weight, head.bias, class_names)
    masks = any(name.startswith("mask_head.") for name in tensors)
    kind = "DetrForSegmentation" if masks else "DetrForObjectDetection"
    return Canonical(f"Hugging Face {kind}", tensors, head)


def _from_resnet(weights, resnet: ResNetNames, path) -> Canonical:
    tensors, left_out, strange = {}, {}, []
    for name, tensor in weights.items():
        common = resnet.to_common(name)
        if common is not None:
            tensors[RESNET + common] = tensor
        elif name.removeprefix(resnet.prefix).startswith(_CLASSIFIERS) or name.startswith(
            _CLASSIFIERS
        ):
            left_out[name] = "the file's own image classifier"
        else:
            strange.append(name)
    if strange:
        raise UserError(
            f"{path} is a checkpoint of another model: it has a ResNet and {len(strange)} tensors "
            f"that are unknown here (for example {', '.join(sorted(strange)[:3])})"
        )
    return Canonical(
        f"ResNet, {resnet.style} names", tensors, left_out=left_out, backbone_only=True
    )


def _with_common_resnet(weights, resnet: ResNetNames | None) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, tensor in weights.items():
        common = resnet.to_common(name) if resnet else None
        tensors[name if common is None else RESNET + common] = tensor
    return tensors


def _pop_head(tensors: dict[str, torch.Tensor]) -> ClassHead | None:
    if not all(name in tensors for name in CLASS_HEAD):
        return None
    return ClassHead(*(tensors.pop(name) for name in CLASS_HEAD))


def _without_wrappers(name: str) -> str:
    """Official's ``DETRsegm`` and ``d2/`` wrapper each put a ``detr.`` before the detector."""
    while name.startswith("detr."):
        name = name[len("detr.") :]
    return name


def _strip_common_prefix(weights, prefix: str) -> dict[str, torch.Tensor]:
    """Data-parallel training puts ``module.`` before all names."""
    if not all(name.startswith(prefix) for name in weights):
        return weights
    return {name[len(prefix) :]: tensor for name, tensor in weights.items()}
