"""Names of Hugging Face's ``DetrForSegmentation`` and ``DetrForObjectDetection``.

Files have the names of transformers 4, from transformers 5 as well (``save_pretrained`` renames);
a state dict of a transformers 5 model, saved as it is, has newer ones. Both are read, the older
ones are written. Query, key and value projections are apart there and one matrix here.
"""

import re
from collections.abc import Iterable, Mapping

import torch

BACKBONE = "model.backbone.conv_encoder.model."
# Names of transformers 5 -> those of 4; the first that is found in a name counts.
_NEWER = (
    (r"^model\.backbone\.model\.", BACKBONE),
    (r"_attn\.o_proj\.", "_attn.out_proj."),
    (r"\.mlp\.(fc[12])\.", r".\1."),
    (r"^bbox_attention\.([qk])_proj\.", r"bbox_attention.\1_linear."),
    (r"^mask_head\.conv([12])\.conv\.", r"mask_head.lay\1."),
    (r"^mask_head\.conv([12])\.norm\.", r"mask_head.gn\1."),
    (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
)
_NEWER_STAGE = re.compile(r"^mask_head\.fpn_stages\.(\d)\.(fpn_adapter|refine\.conv|refine\.norm)")
_STAGE_PARTS = {"fpn_adapter": ("adapter", 1), "refine.conv": ("lay", 3), "refine.norm": ("gn", 3)}
# Theirs -> ours, outside of the layers.
_OUTER = {
    "model.input_projection": "input_proj",
    "model.query_position_embeddings": "query_embed",
    "model.encoder.layernorm": "transformer.encoder.norm",
    "model.decoder.layernorm": "transformer.decoder.norm",
    "class_labels_classifier": "class_embed",
    "bbox_predictor.layers.0": "bbox_embed.layers.0",
    "bbox_predictor.layers.1": "bbox_embed.layers.1",
    "bbox_predictor.layers.2": "bbox_embed.layers.2",
}
# Theirs -> ours, within a layer.
_SELF = {"self_attn": "self_attn", "self_attn_layer_norm": "norm1"}
_CROSS = {"encoder_attn": "multihead_attn", "encoder_attn_layer_norm": "norm2"}
_FFN = {"fc1": "linear1", "fc2": "linear2"}
_LAYER = {
    "encoder": {**_SELF, **_FFN, "final_layer_norm": "norm2"},
    "decoder": {**_SELF, **_CROSS, **_FFN, "final_layer_norm": "norm3"},
}
_OUTER_BACK = {ours: theirs for theirs, ours in _OUTER.items()}
_LAYER_BACK = {
    stack: {ours: theirs for theirs, ours in parts.items()} for stack, parts in _LAYER.items()
}
_IN_LAYER = re.compile(r"(?:model|transformer)\.(encoder|decoder)\.layers\.(\d+)\.(\w+)\.(.+)")
_PROJECTION = re.compile(r"(.+_attn)\.([qkv])_proj\.(weight|bias)")


def recognise(names: Iterable[str]) -> bool:
    """Whether these are the names of one of the two models."""
    return any(name.endswith("model.query_position_embeddings.weight") for name in names)


def to_own(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename to ``PanopticDETR``'s names, the ResNet's own ones behind ``backbone.``.

    The three projections of an attention are stacked. Names that are not known, and projections
    that are not three, stay as they are.
    """
    tensors = {_own_name(older_name(name)): tensor for name, tensor in weights.items()}
    for name in list(tensors):
        if (match := _PROJECTION.fullmatch(name)) and match[2] == "q":
            parts = [f"{match[1]}.{k}_proj.{match[3]}" for k in "qkv"]
            if all(part in tensors for part in parts):
                stacked = torch.cat([tensors.pop(part) for part in parts])
                tensors[f"{match[1]}.in_proj_{match[3]}"] = stacked
    return tensors


def from_own(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back, to the names of transformers 4.

    Args:
        tensors: a state dict of ``PanopticDETR``, its ResNet with timm's names behind
            :data:`BACKBONE`.
    """
    masks = any(name.startswith("mask_head.") for name in tensors)
    weights = {}
    for name, tensor in tensors.items():
        stem, _, what = name.rpartition(".")
        named = {name: tensor}
        if what.startswith("in_proj_"):
            parts = zip("qkv", tensor.chunk(3), strict=True)
            named = {f"{stem}.{k}_proj.{what[8:]}": part.clone() for k, part in parts}
        for own_name, part in named.items():
            weights[_their_name(own_name, masks)] = part
    return weights


def older_name(name: str) -> str:
    """The name under transformers 4, without the ``detr.`` that the segmentation model adds."""
    name = name.removeprefix("detr.")
    for pattern, replacement in _NEWER:
        name, count = re.subn(pattern, replacement, name)
        if count:
            return name
    if match := _NEWER_STAGE.match(name):
        part, first = _STAGE_PARTS[match[2]]
        return f"mask_head.{part}{first + int(match[1])}{name[match.end() :]}"
    return name


def _own_name(name: str) -> str:
    if name.startswith(BACKBONE):
        return "backbone." + name[len(BACKBONE) :]
    if match := _IN_LAYER.fullmatch(name):
        stack, layer, part, rest = match.groups()
        return f"transformer.{stack}.layers.{layer}.{_LAYER[stack].get(part, part)}.{rest}"
    stem, _, what = name.rpartition(".")
    return f"{_OUTER.get(stem, stem)}.{what}"


def _their_name(name: str, masks: bool) -> str:
    if name.startswith(("mask_head.", "bbox_attention.")):
        return name
    stem, _, what = name.rpartition(".")
    if match := _IN_LAYER.fullmatch(name):
        stack, layer, part, rest = match.groups()
        name = f"model.{stack}.layers.{layer}.{_LAYER_BACK[stack][part]}.{rest}"
    elif not name.startswith(BACKBONE):
        name = f"{_OUTER_BACK[stem]}.{what}"
    return f"detr.{name}" if masks else name
