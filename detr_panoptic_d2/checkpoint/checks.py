"""Does a checkpoint hold what a model needs? What is wrong, and which config keys it depends on."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from torch import nn

from ..errors import UserError
from .names import Adapted, State
from .network_config import explain_differences
from .resnet_names import find_resnet

_COUNTER = "num_batches_tracked"
# The parts of DETR whose tensors must all be there, and the config keys that they depend on.
# Other modules of a model, somebody's additional head, may be new.
_DETR_PARTS = {
    "input_proj": "MODEL.DETR.HIDDEN_DIM",
    "query_embed": "MODEL.DETR.NUM_OBJECT_QUERIES",
    "transformer": "MODEL.DETR.ENC_LAYERS and MODEL.DETR.DEC_LAYERS",
    "bbox_embed": "MODEL.DETR.HIDDEN_DIM",
    "class_embed": "DATASETS.TRAIN and MODEL.DETR.NUM_CLASSES",
    "mask_head": "MODEL.MASK_ON and MODEL.DETR.MASK_HEAD.NAME",
    "bbox_attention": "MODEL.MASK_ON",
}


def refuse_misfit(adapted: Adapted, model_state: State, path: str) -> None:
    """Check that what the file has and what the model needs are the same tensors.

    Counters of batches are dropped from ``adapted.state`` where the model has none, and what the
    model may lack without harm gets a reason in ``adapted.kept``.

    Raises:
        UserError: the message says what differs and which key to set.
    """
    state, problems = adapted.state, []
    for name in [n for n in state if n not in model_state and n.endswith(_COUNTER)]:
        del state[name]
        adapted.left_out[name] = "batch norms count no batches when they are frozen"
    for name, tensor in state.items():
        if name not in model_state:
            problems.append(f"{name} has no place in the model")
        elif tensor.shape != model_state[name].shape:
            shape = tuple(model_state[name].shape)
            problems.append(f"{name} is {tuple(tensor.shape)}, the model's {shape}")
    resnet = find_resnet(model_state, "backbone.")
    for name in model_state:
        if name in state or name in adapted.kept:
            continue
        part = name.split(".")[0]
        in_resnet = resnet is not None and resnet.to_torchvision(name) is not None
        if name.endswith(_COUNTER):
            adapted.kept[name] = "the file has no counters of batches"
        elif in_resnet or (part == "backbone" and adapted.own):
            problems.append(f"{name} is not in the file")
        elif adapted.backbone_only or part not in _DETR_PARTS:
            why = "holds a backbone only" if adapted.backbone_only else "has nothing for it"
            adapted.kept[name] = f"the file {why}"
        else:
            problems.append(f"{name} is not in the file")
    if problems:
        lines = [f"{path} ({adapted.format}) does not fit the model; nothing was loaded."]
        lines += [*explain_differences(state, model_state), *problems[:8]]
        if len(problems) > 8:
            lines.append(f"... and {len(problems) - 8} more")
        raise UserError("\n  ".join(lines))


def refuse_incomplete(adapted: Adapted, model_state: State, path: str) -> None:
    """Raise a ``UserError`` if tensors of the model would keep their initial values."""
    problems, parts = list(adapted.warnings), set()
    kept = {n: why for n, why in adapted.kept.items() if not n.endswith(_COUNTER)}
    if not (problems or kept or adapted.backbone_only):
        return
    for part, count, why in summary(kept):
        parts.add(part.split(".")[0])
        if part != "class_embed":
            problems.append(f"{part} ({count} tensors): {why}")
    if adapted.backbone_only:
        problems = ["it holds a backbone only, no DETR"]
    parts.update(part for part in _DETR_PARTS if any(part in text for text in adapted.warnings))
    keys = "; ".join(key for part, key in _DETR_PARTS.items() if part in parts)
    raise UserError(
        f"{path} ({adapted.format}) does not hold all of the model, the rest would be random: "
        f"{'; '.join(problems[:4])}. Use the config that the weights were trained with "
        f"(config.yaml in the OUTPUT_DIR of their training){f', or set {keys}' if keys else ''}"
    )


def differences(model: nn.Module, model_state: State, about: Mapping[str, Any]) -> list[str]:
    """What the model does otherwise than the file's network although all tensors fit.

    Args:
        model: any model.
        model_state: its state dict.
        about: ``dilation`` and ``heads`` of the file's network, see :func:`.read.read_checkpoint`.
    """
    found = []
    if "query_embed.weight" in model_state:
        dilated = model.backbone.output_shape()["res5"].stride == 16
        if about["dilation"] not in (None, dilated):
            what = "without dilation" if dilated else "with dilated res5 (DC5)"
            found.append(
                f"The weights are those of a model {what}: set MODEL.RESNETS.RES5_DILATION to "
                f"{1 if dilated else 2}"
            )
        if about["heads"] not in (None, model.transformer.decoder.layers[0].self_attn.nheads):
            found.append(
                f"The weights are those of a model with {about['heads']} attention heads: set "
                "MODEL.DETR.NHEADS to it"
            )
    resnet = find_resnet(model_state, "backbone.")
    if resnet is None or resnet.style != "detectron2":
        return found
    bottleneck = f"{resnet.prefix}res3.0.conv3.weight" in model_state
    if bottleneck and model.get_submodule(f"{resnet.prefix}res3.0.conv1").stride != (1, 1):
        found.append(
            "The weights are those of a ResNet with its strides in the 3x3 convolutions: set "
            "MODEL.RESNETS.STRIDE_IN_1X1 to False"
        )
    if model.get_submodule(f"{resnet.prefix}res5.0.conv2").dilation != (1, 1):
        found.append(
            "The first 3x3 convolution of res5 is dilated, which is not DETR's DC5: set "
            "MODEL.BACKBONE.NAME to build_detr_resnet_backbone"
        )
    return found


def summary(notes: Mapping[str, str]) -> list[tuple[str, int, str]]:
    """One row per part of the network and note: part, number of tensors, note."""
    keys = sorted((_part(name), note) for name, note in notes.items())
    return [(part, len(list(same)), note) for (part, note), same in groupby(keys)]


def _part(name: str) -> str:
    words = name.split(".")
    return ".".join(words[:2]) if words[0] == "transformer" else words[0]
