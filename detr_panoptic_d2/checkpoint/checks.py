"""Does a checkpoint hold what a model needs, and which config keys does it need?"""

from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .names import CLASS_HEAD, MASK_PARTS, Adapted, State, summary
from .network_config import explain_differences
from .resnet_names import find_resnet

_COUNTER = "num_batches_tracked"
# The parts of DETR whose tensors must all be there. Other modules of a model, somebody's additional
# head, may be new.
_DETR_PARTS = ("input_proj", "query_embed", "transformer", "class_embed", "bbox_embed", *MASK_PARTS)


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
        part = name.partition(".")[0]
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


def refuse_incomplete(adapted: Adapted, path: str) -> None:
    """Raise a ``UserError`` if tensors of the model would keep their initial values."""
    problems = list(adapted.warnings)
    # The class head has a warning already.
    kept = {
        name: why
        for name, why in adapted.kept.items()
        if not (name.endswith(_COUNTER) or name in CLASS_HEAD)
    }
    problems += [f"{part} ({count} tensors): {why}" for part, count, why in summary(kept)]
    if adapted.backbone_only:
        problems = ["it holds a backbone only, no DETR"]
    if problems:
        raise UserError(
            f"{path} ({adapted.format}) does not hold all of the model, the rest would be random: "
            f"{'; '.join(problems[:4])}. Use the config that the weights were trained with, "
            "config.yaml in the OUTPUT_DIR of their training"
        )


def differences(model: Any, model_state: State, about: Mapping[str, Any]) -> list[str]:
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
        if about["heads"] not in (None, model.transformer.decoder.layers[0].self_attn.num_heads):
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
