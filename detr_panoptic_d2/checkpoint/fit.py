"""Find the place of every tensor of a checkpoint in a model, before any of them is loaded.

What may differ between file and model is written down here: the class head, the number of queries,
a mask head on one side only, a file with nothing but a backbone, and batch norms' counters.
Anything else that does not fit is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts

from ..errors import UserError
from .canonical import CLASS_HEAD, RESNET, Canonical
from .class_rows import FittedRows, fit_rows
from .network_config import explain_differences
from .resnet_names import find_resnet

_MASK_PARTS = ("mask_head", "bbox_attention")
# The parts of DETR whose tensors must all be there. Other modules of a model (somebody's additional
# head) keep their values if the file has nothing for them.
_DETR_PARTS = ("input_proj", "query_embed", "transformer", "bbox_embed", *_MASK_PARTS)
_COUNTER = "num_batches_tracked"


@dataclass
class Plan:
    """What to load and what became of the rest.

    Attributes:
        format: whose the file is.
        state: name in the model to tensor, of the model's shapes.
        loaded, kept, left_out: tensor names to a note, or the reason: loaded; in the model but not
            loaded; in the file but not loaded.
        warnings: what a user must not overlook.
    """

    format: str
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    loaded: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def plan_load(
    file: Canonical,
    model_state: Mapping[str, torch.Tensor],
    path: str,
    dataset_ids: list[int] | None = None,
    class_names: list[str] | None = None,
) -> Plan:
    """Fit a checkpoint to a model.

    Args:
        file: the checkpoint.
        model_state: the model's own state dict.
        path: of the file, for messages.
        dataset_ids, class_names: of the model's classes in contiguous order, if known.

    Raises:
        UserError: the file does not fit; the message says what differs and which key to set.
    """
    plan = Plan(file.format, left_out=dict(file.left_out))
    tensors, note = _model_names(file, model_state)
    tensors = _without_other_masks(tensors, model_state, plan)
    _fit_queries(tensors, model_state, plan)
    if file.head is not None:
        _fit_head(file, model_state, plan, dataset_ids, class_names)
    problems = []
    for name, tensor in tensors.items():
        if name not in model_state:
            if name.endswith(_COUNTER):
                plan.left_out[name] = "batch norms count no batches when they are frozen"
            elif file.heuristics:
                plan.left_out[name] = "no place for it in the model"
            else:
                problems.append(f"{name} has no place in the model")
        elif tensor.shape != model_state[name].shape:
            problems.append(
                f"{name} is {tuple(tensor.shape)}, the model's {tuple(model_state[name].shape)}"
            )
        else:
            plan.state[name] = tensor
            plan.loaded.setdefault(name, note if name.startswith("backbone.") else "")
    problems += _keep_missing(file, model_state, plan)
    if problems or not plan.state:
        raise UserError(_does_not_fit(file, tensors, model_state, path, problems))
    return plan


def _model_names(file: Canonical, model_state) -> tuple[dict[str, torch.Tensor], str]:
    """The file's tensors under the model's names, and a note on how they were renamed."""
    if file.heuristics:
        # Their first argument is only read for names and shapes.
        tensors = align_and_update_state_dicts(
            dict(model_state), dict(file.tensors), c2_conversion=file.heuristics == "Caffe2"
        )
        return tensors, "names matched by Detectron2's heuristics"
    resnet = find_resnet(model_state, "backbone.")
    tensors, example = {}, ""
    for name, tensor in file.tensors.items():
        if name.startswith(RESNET) and resnet:
            own_name = resnet.from_common(name[len(RESNET) :])
            example = example or f"{name[len(RESNET) :]} is {own_name}"
            tensors[own_name] = tensor
        else:
            tensors[name] = tensor
    return tensors, f"renamed: {example}" if file.renamed and example else ""


def _without_other_masks(tensors, model_state, plan: Plan) -> dict[str, torch.Tensor]:
    """Leave the mask head out where the model has none, or one of other tensors."""

    def names_of(part, names):
        return {name for name in names if name.startswith(f"{part}.")}

    for part in _MASK_PARTS:
        theirs, ours = names_of(part, tensors), names_of(part, model_state)
        if not theirs and ours:
            plan.kept.update(dict.fromkeys(ours, "not in the file"))
        elif theirs and not ours:
            plan.left_out.update(dict.fromkeys(theirs, "the model has no masks (MODEL.MASK_ON)"))
        elif not theirs & ours:
            plan.left_out.update(dict.fromkeys(theirs, "the model has another mask head"))
            plan.kept.update(dict.fromkeys(ours, "the file has another mask head"))
    return {name: tensor for name, tensor in tensors.items() if name not in plan.left_out}


def _fit_queries(tensors, model_state, plan: Plan) -> None:
    name = "query_embed.weight"
    theirs, ours = tensors.get(name), model_state.get(name)
    if theirs is None or ours is None or theirs.shape[1:] != ours.shape[1:]:
        return
    if len(theirs) != len(ours):
        count = min(len(theirs), len(ours))
        tensors[name] = torch.cat([theirs[:count].to(ours), ours[count:]])
        plan.loaded[name] = (
            f"the first {count} queries: the file has {len(theirs)}, "
            f"MODEL.DETR.NUM_OBJECT_QUERIES is {len(ours)}"
        )
        plan.warnings.append(f"{name} is loaded in part, {plan.loaded[name]}")


def _fit_head(file: Canonical, model_state, plan: Plan, dataset_ids, class_names) -> None:
    if not all(name in model_state for name in CLASS_HEAD):
        plan.left_out.update(dict.fromkeys(CLASS_HEAD, "the model has no class head"))
        return
    ours = [model_state[name] for name in CLASS_HEAD]
    if file.head.weight.shape[1:] != ours[0].shape[1:]:
        fitted = FittedRows(None, None, 0, "it has another MODEL.DETR.HIDDEN_DIM")
    else:
        fitted = fit_rows(file.head, *ours, dataset_ids, class_names)
    if fitted.weight is None:
        plan.left_out.update(dict.fromkeys(CLASS_HEAD, fitted.note))
        plan.kept.update(dict.fromkeys(CLASS_HEAD, fitted.note))
        plan.warnings.append(f"The class head keeps its initial values: {fitted.note}")
        return
    plan.state.update(zip(CLASS_HEAD, fitted[:2], strict=True))
    note = f"{fitted.taken} of {len(ours[0])} rows: {fitted.note}"
    if file.head.rows is None:
        note = ""
    plan.loaded.update(dict.fromkeys(CLASS_HEAD, note))
    if fitted.taken < len(ours[0]):
        plan.warnings.append(f"The class head is loaded in part, {note}")


def _keep_missing(file: Canonical, model_state, plan: Plan) -> list[str]:
    """Account for the model's tensors that the file lacks; return those that it must not lack."""
    resnet = find_resnet(model_state, "backbone.")
    has_other_backbone = any(name.startswith("backbone.") for name in file.tensors)
    problems = []
    for name in model_state:
        if name in plan.state or name in plan.kept:
            continue
        in_resnet = resnet is not None and resnet.to_common(name) is not None
        if name.endswith(_COUNTER):
            plan.kept[name] = "the file has no counters of batches"
        elif file.heuristics:
            plan.kept[name] = "no such tensor in the file"
        elif in_resnet or (name.startswith("backbone.") and has_other_backbone):
            problems.append(f"{name} is not in the file")
        elif name.startswith("backbone."):
            plan.kept[name] = "not part of the file's ResNet"
        elif file.backbone_only:
            plan.kept[name] = "the file holds a backbone only"
        elif name.startswith(_DETR_PARTS) or name in CLASS_HEAD:
            problems.append(f"{name} is not in the file")
        else:
            plan.kept[name] = "not in the file"
    return problems


def _does_not_fit(file: Canonical, tensors, model_state, path, problems) -> str:
    lines = [f"{path} ({file.format}) does not fit the model; nothing was loaded."]
    if explained := explain_differences(file, model_state):
        lines += [f"  {line}" for line in explained]
    lines += [f"  {line}" for line in problems[:8]]
    if len(problems) > 8:
        lines.append(f"  ... and {len(problems) - 8} more")
    if not problems:
        lines.append("  none of its tensors is in the model")
    return "\n".join(lines)
