"""Make a checkpoint of any known code base a state dict of a ``PanopticDETR``.

``PanopticDETR`` calls :func:`translate_state_dict` on what it is to load, so that every
checkpointer can load these files. Official class heads have one row per raw category id of the
annotation file, unused ids included, and no-object last: 251 rows for COCO panoptic, 92 for COCO
boxes. A model here has one row per class of its data set, and no-object last.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import nn

from .names import OFFICIAL_BACKBONE, projections, spellings

logger = logging.getLogger(__name__)

COCO_NAMES = {category["id"]: category["name"] for category in COCO_CATEGORIES}
COCO_THING_IDS = sorted(c["id"] for c in COCO_CATEGORIES if c["isthing"])
# Rows of the official heads: max. id + 1 (250 is official's own round number) and no-object.
PANOPTIC_ROWS, BOX_ROWS = 251, 92
CLASS_HEAD = ("class_embed.weight", "class_embed.bias")
MASK_PARTS = ("bbox_attention", "mask_head")
# Not in batch norms that are frozen, and of no use at inference.
COUNTER = "num_batches_tracked"
# A buffer of the mask head. Other code bases do not have it; the mask head then sets it to 1.
ATTENTION_SCALE = "mask_head.attention_scale"
_QUERIES = "query_embed.weight"
# What a DETR cannot do without; other parts (masks, somebody's own) may be new.
_DETR = ("backbone", "input_proj", "query_embed", "transformer", "class_embed", "bbox_embed")
# Of other code bases: no weights of the network, and ImageNet classifiers.
_NO_WEIGHTS = ("criterion.", "pixel_mean", "pixel_std", "fc.", "stem.fc.", "classifier.")


@dataclass
class Translation:
    """A checkpoint under the names of a model.

    Attributes:
        state: name in the model to tensor, which may have another shape than the model's.
        foreign: whether any name was another one.
        unknown: names in the file that mean nothing to the model.
        left_out: names in the file of what the model does not have or does not need.
        kept: parts of the model that keep their initial values.
        warnings: what keeps its initial values, wholly or in part, and why.
    """

    state: dict[str, torch.Tensor] = field(default_factory=dict)
    foreign: bool = False
    unknown: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)

    def log(self, source: str) -> None:
        """Log in a few lines what is loaded and what is not."""
        left_out = ", ".join(self.left_out[:3]) + ", ..." * (len(self.left_out) > 3)
        logger.info(
            "Loaded %d tensors from %s%s%s",
            len(self.state),
            source,
            ", translated from other names" if self.foreign else "",
            f"; left out: {len(self.left_out)} ({left_out})" if self.left_out else "",
        )
        for warning in self.warnings:
            logger.warning("%s", warning)


def translate_state_dict(model: nn.Module, state_dict: dict, prefix: str) -> None:
    """Translate, in place, what a ``PanopticDETR`` is to load.

    Args:
        model: a ``PanopticDETR``.
        state_dict: what ``load_state_dict`` was given.
        prefix: of the model's names in it.
    """
    weights = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
    if weights.keys() <= model.state_dict().keys():
        return
    translation = translate(model, weights)
    for name in weights.keys() - set(translation.unknown):
        del state_dict[prefix + name]
    state_dict.update({prefix + name: x for name, x in translation.state.items()})
    translation.log("a state dict")


def translate(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    file_classes: Mapping[int, str] | None = None,
) -> Translation:
    """Give a checkpoint the names of a model, and choose its queries and class rows.

    Args:
        model: a ``PanopticDETR``: its ``dataset_ids`` and ``class_names`` choose the rows.
        weights: the checkpoint's state dict.
        file_classes: class names by category id, where the file has them.
    """
    own, result = model.state_dict(), Translation()
    plain = {_without_wrappers(name): name for name in weights}
    used: set[str] = set()
    for name in own:
        if parts := _find(name, plain):
            tensors = [weights[plain[part]] for part in parts]
            result.state[name] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            result.foreign |= parts != [name]
            used.update(parts)
    found = {name.partition(".")[0] for name in result.state}
    _keep_new_parts(result, found, {name.partition(".")[0] for name in own})
    for name in plain:
        if name in used or name.endswith(COUNTER):
            continue
        part = name.partition(".")[0]
        no_place = name.startswith(_NO_WEIGHTS) or (part in MASK_PARTS and part not in found)
        (result.left_out if no_place else result.unknown).append(plain[name])
    _choose_queries(result, own)
    raw_ids = any(n.startswith((OFFICIAL_BACKBONE, "model.query_position_emb")) for n in used)
    _choose_classes(result, own, model, file_classes or {}, raw_ids)
    return result


def _without_wrappers(name: str) -> str:
    """Official's ``DETRsegm`` and ``d2/`` wrapper each put a ``detr.`` before the detector."""
    while name.startswith("detr."):
        name = name.removeprefix("detr.")
    return name


def _find(name: str, file_names: Iterable[str]) -> list[str]:
    """The names in the file of a tensor of the model; three for projections that are to be stacked,
    none if it is not there."""
    for spelling in spellings(name):
        if spelling in file_names:
            return [spelling]
        if "in_proj_" in spelling and all(part in file_names for part in projections(spelling)):
            return projections(spelling)
    return []


def _keep_new_parts(result: Translation, found: set[str], own: set[str]) -> None:
    if found == {"backbone"} and "query_embed" in own:
        result.kept = own - found
        result.warnings.append("The file holds a backbone only: all else keeps its initial values")
        return
    result.kept = own - found - set(_DETR)
    if result.kept:
        parts = ", ".join(sorted(result.kept))
        result.warnings.append(f"The file has nothing for {parts}: initial values are kept")


def _choose_queries(result: Translation, own: Mapping[str, torch.Tensor]) -> None:
    theirs, ours = result.state.get(_QUERIES), own.get(_QUERIES)
    if theirs is None or ours is None or theirs.shape[1:] != ours.shape[1:]:
        return
    count = min(len(theirs), len(ours))
    if len(theirs) != len(ours):
        result.state[_QUERIES] = torch.cat([theirs[:count].to(ours), ours[count:]])
        result.warnings.append(
            f"Only the first {count} queries are loaded: the file has {len(theirs)}, "
            f"MODEL.DETR.NUM_OBJECT_QUERIES is {len(ours)}"
        )


def _choose_classes(
    result: Translation,
    own: Mapping[str, torch.Tensor],
    model: nn.Module,
    file_classes: Mapping[int, str],
    raw_ids: bool,
) -> None:
    """Choose the rows of the class head, or keep the model's where the classes are others."""
    if not all(name in result.state and name in own for name in CLASS_HEAD):
        return
    rows, wanted = len(result.state[CLASS_HEAD[0]]), len(own[CLASS_HEAD[0]])
    same_width = result.state[CLASS_HEAD[0]].shape[1:] == own[CLASS_HEAD[0]].shape[1:]
    if not same_width or (rows == wanted and not raw_ids):
        return
    ids, names = getattr(model, "dataset_ids", None), getattr(model, "class_names", None)
    theirs = class_names_of_rows(rows, file_classes) if raw_ids else {}
    classes = enumerate(zip(ids or (), names or (), strict=False))
    shared = [(row, i, name) for row, (i, name) in classes if i in theirs]
    other = [f"; id {i} is {theirs[i]!r}, not {n!r}" for _, i, n in shared if theirs[i] != n]
    if other or not shared:
        result.warnings.append(
            f"The class head keeps its initial values: the file's {rows} class rows are not for "
            f"the model's {wanted - 1} classes (DATASETS.TRAIN){''.join(other[:1])}"
        )
        result.kept.add("class_embed")
        for name in CLASS_HEAD:
            del result.state[name]
        return
    for name in CLASS_HEAD:
        chosen = own[name].clone()
        source = [*(i for _, i, _ in shared), -1]
        chosen[[*(row for row, _, _ in shared), -1]] = result.state[name][source].to(chosen)
        result.state[name] = chosen
    if len(shared) < wanted - 1:
        result.warnings.append(
            f"The class head is loaded in part: the file has {len(shared)} of the model's "
            f"{wanted - 1} classes"
        )


def class_names_of_rows(rows: int, file_classes: Mapping[int, str]) -> Mapping[int, str]:
    """Class name of each raw category id that has a row in an official class head.

    Args:
        rows: number of rows, no-object's included.
        file_classes: the names in the file, if any. The published panoptic files name the things
            only, and have other words for the rest.
    """
    things = {i: name for i, name in file_classes.items() if i <= COCO_THING_IDS[-1]}
    if rows in (PANOPTIC_ROWS, BOX_ROWS) and things.items() <= COCO_NAMES.items():
        file_classes = COCO_NAMES
    return {i: name for i, name in file_classes.items() if i < rows - 1}
