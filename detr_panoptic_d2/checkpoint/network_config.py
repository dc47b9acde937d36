"""Read a network's shape off its tensors: the config keys that a checkpoint needs."""

import re
from collections.abc import Mapping

import torch

from .resnet_names import find_resnet

# Blocks per stage, and whether they are bottlenecks -> depth.
_DEPTHS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


def network_config(state: Mapping[str, torch.Tensor]) -> dict[str, int | bool]:
    """Config keys and their values, as far as the tensors tell.

    Args:
        state: a state dict under ``PanopticDETR``'s names, see :func:`.names.adapt`.
    """
    config: dict[str, int | bool] = {}
    if depth := resnet_depth(state):
        config["MODEL.RESNETS.DEPTH"] = depth
    if "query_embed.weight" not in state:
        return config
    queries, hidden_dim = state["query_embed.weight"].shape
    config["MODEL.DETR.HIDDEN_DIM"] = hidden_dim
    config["MODEL.DETR.NUM_OBJECT_QUERIES"] = queries
    config["MODEL.DETR.ENC_LAYERS"] = _count(state, r"transformer\.encoder\.layers\.(\d+)\.")
    config["MODEL.DETR.DEC_LAYERS"] = _count(state, r"transformer\.decoder\.layers\.(\d+)\.")
    if (linear := state.get("transformer.decoder.layers.0.linear1.weight")) is not None:
        config["MODEL.DETR.DIM_FEEDFORWARD"] = len(linear)
    config["MODEL.DETR.PRE_NORM"] = "transformer.encoder.norm.weight" in state
    config["MODEL.MASK_ON"] = any(name.startswith("mask_head.") for name in state)
    if (mixed := state.get("mask_head.lay1.weight")) is not None:
        config["MODEL.DETR.NHEADS"] = mixed.shape[1] - hidden_dim
    return config


def resnet_depth(state: Mapping[str, torch.Tensor]) -> int | None:
    """Depth of the ResNet in a state dict; None if there is none of the standard ones."""
    resnet = find_resnet(state)
    if resnet is None:
        return None
    named = ((resnet.to_torchvision(name), tensor) for name, tensor in state.items())
    shapes = {name: tuple(tensor.shape) for name, tensor in named if name is not None}
    if shapes.get("layer1.0.conv2.weight") != (64, 64, 3, 3):
        return None
    blocks = tuple(_count(shapes, rf"layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
    return _DEPTHS.get((blocks, "layer1.0.conv3.weight" in shapes))


def explain_differences(
    state: Mapping[str, torch.Tensor], model_state: Mapping[str, torch.Tensor]
) -> list[str]:
    """Lines on the config keys under which the model would be the file's network."""
    theirs, ours = network_config(state), network_config(model_state)
    ignored = {"MODEL.MASK_ON", "MODEL.DETR.NUM_OBJECT_QUERIES"}
    lines = [
        f"{key} is {ours[key]} in the model, {theirs[key]} in the file"
        for key in theirs
        if key in ours and ours[key] != theirs[key] and key not in ignored
    ]
    if find_resnet(state) and not find_resnet(model_state, "backbone."):
        lines.append(
            "the file's backbone is a ResNet, the model's is not: MODEL.BACKBONE.NAME must be "
            "build_detr_resnet_backbone (or one of torchvision's or timm's ResNets)"
        )
    return lines


def _count(names: Mapping[str, object], pattern: str) -> int:
    """1 + the greatest number that the pattern finds in a name; 0 if none."""
    found = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)
