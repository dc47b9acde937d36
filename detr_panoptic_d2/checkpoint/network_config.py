"""Read a network's shape off its tensors: the config keys that a checkpoint needs."""

import re
from collections.abc import Mapping

import torch

from .canonical import RESNET, Canonical, own

# Blocks per stage, and whether they are bottlenecks -> depth.
_DEPTHS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


def network_config(file: Canonical) -> dict[str, int | bool]:
    """Config keys and their values, as far as the tensors tell.

    Args:
        file: a checkpoint, or a model's state dict by :func:`.canonical.own`.
    """
    tensors, config = file.tensors, {}
    depth = resnet_depth(tensors)
    if depth:
        config["MODEL.RESNETS.DEPTH"] = depth
    if "query_embed.weight" not in tensors:
        return config
    queries, hidden_dim = tensors["query_embed.weight"].shape
    config["MODEL.DETR.HIDDEN_DIM"] = hidden_dim
    config["MODEL.DETR.NUM_OBJECT_QUERIES"] = queries
    config["MODEL.DETR.ENC_LAYERS"] = _count(tensors, r"transformer\.encoder\.layers\.(\d+)\.")
    config["MODEL.DETR.DEC_LAYERS"] = _count(tensors, r"transformer\.decoder\.layers\.(\d+)\.")
    linear = tensors.get("transformer.decoder.layers.0.linear1.weight")
    if linear is not None:
        config["MODEL.DETR.DIM_FEEDFORWARD"] = len(linear)
    config["MODEL.DETR.PRE_NORM"] = "transformer.encoder.norm.weight" in tensors
    config["MODEL.MASK_ON"] = any(name.startswith("mask_head.") for name in tensors)
    mixed = tensors.get("mask_head.lay1.weight")
    if mixed is not None:
        config["MODEL.DETR.NHEADS"] = mixed.shape[1] - hidden_dim
    return config


def resnet_depth(tensors: Mapping[str, torch.Tensor]) -> int | None:
    """Depth of the ResNet under ``resnet.``; None if there is none of the standard ones."""
    blocks = tuple(_count(tensors, rf"resnet\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
    bottleneck = f"{RESNET}layer1.0.conv3.weight" in tensors
    conv = tensors.get(f"{RESNET}layer1.0.conv2.weight")
    if conv is None or tuple(conv.shape) != (64, 64, 3, 3):
        return None
    return _DEPTHS.get((blocks, bottleneck))


def explain_differences(file: Canonical, model_state: Mapping[str, torch.Tensor]) -> list[str]:
    """Lines on the config keys under which the model would be the file's network."""
    theirs, ours = network_config(file), network_config(own(dict(model_state)))
    ignored = {"MODEL.MASK_ON", "MODEL.DETR.NUM_OBJECT_QUERIES"}
    lines = [
        f"{key} is {ours[key]} in the model, {theirs[key]} in the file"
        for key in theirs
        if key in ours and ours[key] != theirs[key] and key not in ignored
    ]
    has, wants = (
        any(name.startswith(RESNET) for name in state.tensors)
        for state in (file, own(dict(model_state)))
    )
    if has and not wants:
        lines.append(
            "the file's backbone is a ResNet, the model's is not: MODEL.BACKBONE.NAME must be "
            "build_detr_resnet_backbone (or one of torchvision's or timm's ResNets)"
        )
    return lines


def _count(tensors: Mapping[str, torch.Tensor], pattern: str) -> int:
    """1 + the greatest number that the pattern finds in a name; 0 if none."""
    found = (re.match(pattern, name) for name in tensors)
    return max((int(match[1]) + 1 for match in found if match), default=0)
