"""Convert a checkpoint of any known code base to a state dict of a ``PanopticDETR``.

The model calls :func:`translate_state_dict` on each state dict that it loads, so every checkpointer
can load these files. Official class heads have one row per raw category id, including unused ids,
and no-object last: 251 rows for COCO panoptic, 92 for COCO boxes. A model of this project has one
row per class of its dataset, and no-object last.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import nn

from ..errors import UserError
from .names import OFFICIAL_BACKBONE, projections, spellings

logger = logging.getLogger(__name__)

COCO_NAMES = {category["id"]: category["name"] for category in COCO_CATEGORIES}
COCO_THING_IDS = sorted(c["id"] for c in COCO_CATEGORIES if c["isthing"])
# Rows of the official heads, no-object included. Official DETR chose 250 for the panoptic ids.
PANOPTIC_ROWS, BOX_ROWS = 251, 92
CLASS_HEAD = ("class_embed.weight", "class_embed.bias")
MASK_PARTS = ("bbox_attention", "mask_head")
# Frozen batch norms do not have it, and inference does not need it.
COUNTER = "num_batches_tracked"
# A buffer of the mask head. Other code bases do not have it; the mask head then sets it to 1.
ATTENTION_SCALE = "mask_head.attention_scale"
_QUERIES = "query_embed.weight"
# Parts that every DETR has. Other parts (masks, parts of a user) may be new.
_DETR = ("backbone", "input_proj", "query_embed", "transformer", "class_embed", "bbox_embed")
# Tensors of other code bases that are not needed: buffers, counters, ImageNet classifiers.
_BUFFERS = ("criterion.", "pixel_mean", "pixel_std", "n_averaged")
_NOT_NEEDED = (*_BUFFERS, "fc.", "stem.fc.", "classifier.", "conv5.", "head.")
# Prefixes of wrappers around a network without queries.
_WRAPPERS = ("module.model.", "model.module.", "module.", "model.")


@dataclass
class Translation:
    """A checkpoint under the names of a model."""

    # Name in the model to tensor, which may have another shape than the model's.
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    # Whether any name differs from the model's.
    foreign: bool = False
    # Names in the file that have no place in the model, and those that it does not need.
    unknown: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    # Parts of the model that keep their initial values; also partly, with the reason.
    kept: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)

    def log(self, source: str) -> None:
        left_out = f"; left out: {', '.join(self.left_out[:3])}" if self.left_out else ""
        more = f" and {len(self.left_out) - 3} more" if len(self.left_out) > 3 else ""
        logger.info("Loaded %d tensors from %s%s%s", len(self.state), source, left_out, more)
        for warning in self.warnings:
            logger.warning("%s", warning)


def translate_state_dict(model: nn.Module, state_dict: dict, prefix: str) -> None:
    """Translate a state dict for a ``PanopticDETR`` whose names have a prefix in it, in place.

    Raises:
        UserError: a tensor has infinite or NaN values.
    """
    weights = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
    if name := first_nonfinite(weights):
        raise UserError(
            f"tensor {prefix}{name} has infinite or NaN values. Use an earlier checkpoint of that "
            "training, or get the file again"
        )
    if weights.keys() <= model.state_dict().keys():
        return
    translation = translate(model, weights)
    for name in weights.keys() - set(translation.unknown):
        del state_dict[prefix + name]
    state_dict.update({prefix + name: x for name, x in translation.state.items()})
    translation.log("a state dict")


def first_nonfinite(weights: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of the first tensor that has infinite or NaN values, if there is one."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None


def translate(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    file_classes: Mapping[int, str] | None = None,
) -> Translation:
    """Rename the tensors of a state dict to those of a ``PanopticDETR``, choose queries and class
    rows. ``file_classes`` are the class names by category id, if the file has them."""
    own, result = model.state_dict(), Translation()
    file_names = _strip_wrappers(weights)
    used: set[str] = set()
    for name in own:
        if parts := _find(name, file_names):
            tensors = [weights[file_names[part]] for part in parts]
            result.state[name] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            result.foreign |= parts != [name]
            used.update(parts)
    loaded_parts = {name.partition(".")[0] for name in result.state}
    _keep_new_parts(result, loaded_parts, {name.partition(".")[0] for name in own})
    for name in file_names:
        if name in used or name.endswith(COUNTER):
            continue
        part = name.partition(".")[0]
        unneeded = name.startswith(_NOT_NEEDED) or (part in MASK_PARTS and part not in loaded_parts)
        (result.left_out if unneeded else result.unknown).append(file_names[name])
    _choose_queries(result, own)
    raw_ids = any(n.startswith((OFFICIAL_BACKBONE, "model.query_position_emb")) for n in used)
    _choose_classes(result, own, model, file_classes or {}, raw_ids)
    return result


def _strip_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Map the names of a file without the prefixes of wrappers to those in the file.

    ``torch.compile`` adds "_orig_mod." at any level. ``DataParallel``, ``AveragedModel`` and
    Lightning put one prefix before all names of the model. Official DETR's ``DETRsegm`` and its
    ``d2/`` wrapper each put "detr." before the names of the detector.
    """
    plain = {name.replace("_orig_mod.", ""): name for name in names}
    queries = set(spellings(_QUERIES))
    owner = next((n.removesuffix(q) for n in plain for q in queries if n.endswith(q)), None)
    if owner is None:
        # A backbone alone.
        owner = next((p for p in _WRAPPERS if all(n.startswith(p) for n in plain)), "")
    while owner.endswith("detr."):
        owner = owner.removesuffix("detr.")
    result = {}
    for plain_name, name in plain.items():
        plain_name = plain_name.removeprefix(owner)
        while plain_name.startswith("detr."):
            plain_name = plain_name.removeprefix("detr.")
        result[plain_name] = name
    return result


def _find(name: str, file_names: Iterable[str]) -> list[str]:
    """Return the name in the file of a tensor of the model, or the three names of its query, key
    and value projections, or none."""
    for spelling in spellings(name):
        if spelling in file_names:
            return [spelling]
        if "in_proj_" in spelling and all(part in file_names for part in projections(spelling)):
            return projections(spelling)
    return []


def _keep_new_parts(result: Translation, loaded_parts: set[str], own_parts: set[str]) -> None:
    if loaded_parts == {"backbone"} and "query_embed" in own_parts:
        result.kept = own_parts - loaded_parts
        result.warnings.append(
            "The file holds a backbone only: all other parts keep their initial values"
        )
        return
    result.kept = own_parts - loaded_parts - set(_DETR)
    if result.kept:
        parts = ", ".join(sorted(result.kept))
        result.warnings.append(f"The file has nothing for {parts}: initial values are kept")


def _choose_queries(result: Translation, own: Mapping[str, torch.Tensor]) -> None:
    queries, own_queries = result.state.get(_QUERIES), own.get(_QUERIES)
    if queries is None or own_queries is None or queries.shape[1:] != own_queries.shape[1:]:
        return
    count = min(len(queries), len(own_queries))
    if len(queries) != len(own_queries):
        result.state[_QUERIES] = torch.cat([queries[:count].to(own_queries), own_queries[count:]])
        result.warnings.append(
            f"Only the first {count} queries are loaded: the file has {len(queries)}, "
            f"MODEL.DETR.NUM_OBJECT_QUERIES is {len(own_queries)}"
        )


def _choose_classes(
    result: Translation, own: Mapping, model: Any, file_classes: Mapping[int, str], raw_ids: bool
) -> None:
    """Choose the rows of the class head, or keep the model's head if the classes differ."""
    if not all(name in result.state and name in own for name in CLASS_HEAD):
        return
    weight, own_weight = result.state[CLASS_HEAD[0]], own[CLASS_HEAD[0]]
    num_classes = len(own_weight) - 1
    same_rows = len(weight) == len(own_weight) and not raw_ids
    if weight.shape[1:] != own_weight.shape[1:] or same_rows:
        return
    names_in_file = class_names_of_rows(len(weight), file_classes) if raw_ids else {}
    classes = enumerate(zip(model.dataset_ids, model.class_names or (), strict=False))
    shared = [(row, i, name) for row, (i, name) in classes if i in names_in_file]
    conflicts = [
        f"; id {i} is {names_in_file[i]!r}, not {name!r}"
        for _, i, name in shared
        if names_in_file[i] != name
    ]
    if conflicts or not shared:
        result.warnings.append(
            f"The class head keeps its initial values: the file's {len(weight) - 1} classes are "
            f"not for the model's {num_classes} classes (DATASETS.TRAIN){''.join(conflicts[:1])}"
        )
        result.kept.add("class_embed")
        for name in CLASS_HEAD:
            del result.state[name]
        return
    rows = [*(row for row, _, _ in shared), -1]
    rows_in_file = [*(i for _, i, _ in shared), -1]
    for name in CLASS_HEAD:
        chosen = own[name].clone()
        chosen[rows] = result.state[name][rows_in_file].to(chosen)
        result.state[name] = chosen
    if len(shared) < num_classes:
        result.warnings.append(
            f"The class head is loaded in part: the file has {len(shared)} of the model's "
            f"{num_classes} classes"
        )


def class_names_of_rows(rows: int, file_classes: Mapping[int, str]) -> Mapping[int, str]:
    """Return the class names by raw category id of an official class head with this many rows.

    ``file_classes`` has the names in the file, if any. The published panoptic files of Hugging Face
    name the things only.
    """
    things = {i: name for i, name in file_classes.items() if i <= COCO_THING_IDS[-1]}
    if rows in (PANOPTIC_ROWS, BOX_ROWS) and things.items() <= COCO_NAMES.items():
        file_classes = COCO_NAMES
    return {i: name for i, name in file_classes.items() if i < rows - 1}
