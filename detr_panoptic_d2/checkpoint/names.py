"""Make any known checkpoint of a DETR, or of a ResNet, a state dict of a ``PanopticDETR``.

Known are facebookresearch/detr (panoptic, boxes, its Detectron2 wrapper), Hugging Face's Detr and
the ResNets of torchvision, timm, Detectron2 and Hugging Face. ``PanopticDETR`` calls
:func:`adapt_state_dict` on what it is to load, so that every checkpointer can load these files.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from . import huggingface_names
from .class_rows import COCO_THING_IDS, ClassHead, choose_rows, coco_things_head, raw_id_head
from .resnet_names import ResNetNames, find_resnet

logger = logging.getLogger(__name__)

State = Mapping[str, torch.Tensor]

CLASS_HEAD = ("class_embed.weight", "class_embed.bias")
_QUERIES = "query_embed.weight"
MASK_PARTS = ("mask_head", "bbox_attention")
# Tensors of other code bases that are no weights of the network.
_NO_WEIGHTS = ("criterion.", "pixel_mean", "pixel_std")
# ImageNet classifiers: torchvision's and timm's, Detectron2's, Hugging Face's.
_CLASSIFIERS = ("fc.", "stem.fc.", "classifier.")


@dataclass
class Adapted:
    """A checkpoint under the names of a model.

    Attributes:
        format: whose it is, in words.
        state: name in the model to tensor; names and shapes that the model does not have stay.
        own: whether the file is one of this project.
        backbone_only: whether the file holds a backbone and nothing else of DETR.
        notes: name in the model to what was done to the tensor.
        kept: name in the model to why the model keeps its own values.
        left_out: name in the file to why the tensor is not in ``state``.
        warnings: what is loaded in part or not at all although the file has it.
    """

    format: str
    state: dict[str, torch.Tensor]
    own: bool = False
    backbone_only: bool = False
    notes: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def adapt_state_dict(model: Any, state_dict: dict[str, torch.Tensor], prefix: str) -> None:
    """Translate, in place, what a ``PanopticDETR`` is to load.

    A state dict with nothing but the model's own names is left to torch, and so is what is of no
    known kind.

    Args:
        model: a ``PanopticDETR``: its ``dataset_ids`` and ``class_names`` are read.
        state_dict: what ``load_state_dict`` was given.
        prefix: of the model's names in it.
    """
    weights = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
    own = model.state_dict()
    if weights.keys() <= own.keys():
        return
    adapted = adapt(weights, own, model.dataset_ids, model.class_names)
    if adapted is None:
        return
    for name in weights:
        del state_dict[prefix + name]
    state_dict.update({prefix + name: tensor for name, tensor in adapted.state.items()})
    left_out = [f"{part} ({count}): {why}" for part, count, why in summary(adapted.left_out)]
    logger.info("Names of %s are translated. %s", adapted.format, "; ".join(left_out))
    for warning in adapted.warnings:
        logger.warning("%s", warning)


def adapt(
    weights: State,
    model_state: State,
    dataset_ids: list[int] | None = None,
    class_names: list[str] | None = None,
    file_names: Mapping[int, str] | None = None,
) -> Adapted | None:
    """Give a checkpoint the names of a model, and choose its queries and class rows.

    Args:
        weights: the checkpoint's state dict.
        model_state: the model's own; the model keeps its values where the file has no class or
            query for it.
        dataset_ids, class_names: of the model's classes in contiguous order; None: not known.
        file_names: class names of the file's rows, where it has them.

    Returns:
        The state dict and what was done; None if it is a checkpoint of no known kind.
    """
    found = recognise(weights, model_state, file_names)
    if found is None:
        return None
    adapted, head = found
    _rename_resnet(adapted, model_state)
    _choose_mask_head(adapted, model_state)
    _choose_queries(adapted, model_state)
    _choose_classes(adapted, model_state, head, dataset_ids, class_names)
    return adapted


def recognise(
    weights: State, model_names: Iterable[str] = (), file_names: Mapping[int, str] | None = None
) -> tuple[Adapted, ClassHead | None] | None:
    """Tell whose checkpoint it is.

    Args:
        weights: its state dict.
        model_names: the names of the model that it is for.
        file_names: class names of the file's rows, where it has them.

    Returns:
        The state dict under ``PanopticDETR``'s names, except that a ResNet has its own behind
        ``backbone.``; the class head if its rows go by category id, otherwise they are contiguous
        classes. None if it is of no known kind.
    """
    names, known = set(weights), set(model_names)
    if names != known:
        if huggingface_names.recognise(names):
            return _from_huggingface(weights, file_names)
        plain = {_without_wrappers(name) for name in names}
        if _QUERIES in plain and any(name.startswith("backbone.0.") for name in plain):
            return _from_official(weights, file_names)
        if not names & known and _QUERIES not in names:
            resnet = find_resnet(names)
            return _from_resnet(weights, resnet) if resnet else None
    return Adapted("PanopticDETR", dict(weights), own=True), None


def _from_official(weights: State, file_names) -> tuple[Adapted, ClassHead | None]:
    """facebookresearch/detr, and its wrapper for Detectron2 (``detr.`` before everything)."""
    state, left_out = {}, {}
    for name, tensor in weights.items():
        short = _without_wrappers(name)
        if short.startswith(_NO_WEIGHTS):
            left_out[name] = "no weight of the network"
        else:
            state[short] = tensor
    wrapper = any(name.startswith("backbone.0.backbone.") for name in state)
    kind = "facebookresearch/detr"
    kind += ", Detectron2 wrapper" if wrapper else ""
    kind += "" if any(name.startswith("mask_head.") for name in state) else ", boxes only"
    head = None
    if all(name in state for name in CLASS_HEAD):
        weight, bias = (state[name] for name in CLASS_HEAD)
        if not wrapper:
            head = raw_id_head(weight, bias, file_names)
        elif len(weight) == len(COCO_THING_IDS) + 1:
            head = coco_things_head(weight, bias)
    return Adapted(kind, state, left_out=left_out), head


def _from_huggingface(weights: State, file_names) -> tuple[Adapted, ClassHead | None]:
    state = huggingface_names.to_own(weights)
    masks = any(name.startswith("mask_head.") for name in state)
    kind = f"Hugging Face {'DetrForSegmentation' if masks else 'DetrForObjectDetection'}"
    head = None
    if all(name in state for name in CLASS_HEAD):
        weight, bias = (state[name] for name in CLASS_HEAD)
        head = raw_id_head(weight, bias, file_names)
    return Adapted(kind, state), head


def _from_resnet(weights: State, resnet: ResNetNames) -> tuple[Adapted, None] | None:
    """A ResNet alone; None if there is anything beside it but its classifier."""
    state, left_out = {}, {}
    for name, tensor in weights.items():
        if resnet.to_torchvision(name) is not None:
            state[f"backbone.{name}"] = tensor
        elif name.removeprefix(resnet.prefix).startswith(_CLASSIFIERS) or name.startswith(
            _CLASSIFIERS
        ):
            left_out[name] = "the file's own image classifier"
        else:
            return None
    kind = f"ResNet, {resnet.style} names"
    return Adapted(kind, state, backbone_only=True, left_out=left_out), None


def rename_resnet(state: State, target: ResNetNames) -> dict[str, torch.Tensor]:
    """Move the ResNet of a state dict to the names that ``target`` has for it."""
    source = find_resnet(state)
    renamed = {}
    for name, tensor in state.items():
        common = source.to_torchvision(name) if source else None
        renamed[name if common is None else target.from_torchvision(common)] = tensor
    return renamed


def _rename_resnet(adapted: Adapted, model_state: State) -> None:
    source, target = find_resnet(adapted.state), find_resnet(model_state, "backbone.")
    if source is None or target in (None, source):
        return
    adapted.state = rename_resnet(adapted.state, target)
    note = f"renamed: {source.style} names to {target.style}'s"
    adapted.notes.update({n: note for n in adapted.state if n.startswith("backbone.")})


def _choose_mask_head(adapted: Adapted, model_state: State) -> None:
    """Leave the mask head out where the model has none, or one of other tensors."""
    for part in MASK_PARTS:
        theirs, ours = (
            {name for name in state if name.startswith(f"{part}.")}
            for state in (adapted.state, model_state)
        )
        if theirs & ours:
            continue
        whose = "the model" if theirs else "the file"
        why = f"{whose} has no masks (MODEL.MASK_ON)"
        if theirs and ours:
            why = "another mask head (MODEL.DETR.MASK_HEAD.NAME)"
        adapted.kept.update(dict.fromkeys(ours, why))
        _leave_out(adapted, theirs, why)


def _choose_queries(adapted: Adapted, model_state: State) -> None:
    theirs, ours = adapted.state.get(_QUERIES), model_state.get(_QUERIES)
    if theirs is None or ours is None or theirs.shape[1:] != ours.shape[1:]:
        return
    if len(theirs) != len(ours):
        count = min(len(theirs), len(ours))
        note = (
            f"the first {count} queries: the file has {len(theirs)}, "
            f"MODEL.DETR.NUM_OBJECT_QUERIES is {len(ours)}"
        )
        adapted.state[_QUERIES] = torch.cat([theirs[:count].to(ours), ours[count:]])
        adapted.notes[_QUERIES] = note
        adapted.warnings.append(f"{_QUERIES} is loaded in part, {note}")


def _choose_classes(
    adapted: Adapted, model_state: State, head: ClassHead | None, dataset_ids, class_names
) -> None:
    state = adapted.state
    if not all(name in state for name in CLASS_HEAD):
        return
    if not all(name in model_state for name in CLASS_HEAD):
        _leave_out(adapted, CLASS_HEAD, "the model has no class head")
        return
    weight, bias = (model_state[name] for name in CLASS_HEAD)
    if head is None:
        # Its rows are contiguous classes.
        theirs = state[CLASS_HEAD[0]]
        if len(theirs) == len(weight) or theirs.shape[1:] != weight.shape[1:]:
            return
        note = (
            f"the file has {len(theirs) - 1} classes, the model {len(weight) - 1} "
            "(DATASETS.TRAIN, MODEL.DETR.NUM_CLASSES)"
        )
        rows = None
    else:
        rows = choose_rows(head, weight, bias, dataset_ids, class_names)
        note = rows.note
    if rows is None or rows.weight is None or rows.bias is None:
        adapted.warnings.append(f"The class head keeps its initial values: {note}")
        adapted.kept.update({name: note for name in CLASS_HEAD})
        _leave_out(adapted, CLASS_HEAD, note)
        return
    state.update(zip(CLASS_HEAD, (rows.weight, rows.bias), strict=True))
    adapted.notes.update({name: note for name in CLASS_HEAD})
    if rows.taken < len(weight):
        adapted.warnings.append(f"The class head is loaded in part, {note}")


def _leave_out(adapted: Adapted, names: Iterable[str], why: str) -> None:
    for name in names:
        del adapted.state[name]
        adapted.left_out[name] = why


def summary(notes: Mapping[str, str]) -> list[tuple[str, int, str]]:
    """One row per part of the network and note: part, number of tensors, note.

    Args:
        notes: name of a tensor to what there is to say about it.
    """

    def part(name: str) -> str:
        words = name.split(".")
        return ".".join(words[:2]) if words[0] == "transformer" else words[0]

    counts = Counter((part(name), note) for name, note in notes.items())
    return [(name, count, note) for (name, note), count in sorted(counts.items())]


def _without_wrappers(name: str) -> str:
    """Official's ``DETRsegm`` and ``d2/`` wrapper each put a ``detr.`` before the detector."""
    while name.startswith("detr."):
        name = name[len("detr.") :]
    return name
