"""Names of Hugging Face's ``DetrForSegmentation`` and ``DetrForObjectDetection``.

Files have the names of transformers 4, from transformers 5 as well (``save_pretrained`` renames);
a state dict of a transformers 5 model, saved as it is, has newer ones. Both are read, the older
ones are written. Query, key and value projections are apart there and one matrix here.
"""

import re
from collections.abc import Iterable, Mapping

import torch

from ..errors import UserError

# Names of transformers 5 -> those of 4; the first that is found in a name counts.
_NEWER = (
    (r"^model\.backbone\.model\.", "model.backbone.conv_encoder.model."),
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
_LAYER = {
    "encoder": {
        "self_attn": "self_attn",
        "self_attn_layer_norm": "norm1",
        "fc1": "linear1",
        "fc2": "linear2",
        "final_layer_norm": "norm2",
    },
    "decoder": {
        "self_attn": "self_attn",
        "self_attn_layer_norm": "norm1",
        "encoder_attn": "multihead_attn",
        "encoder_attn_layer_norm": "norm2",
        "fc1": "linear1",
        "fc2": "linear2",
        "final_layer_norm": "norm3",
    },
}
_OUTER_BACK = {ours: theirs for theirs, ours in _OUTER.items()}
_LAYER_BACK = {
    stack: {ours: theirs for theirs, ours in parts.items()} for stack, parts in _LAYER.items()
}
_IN_LAYER = re.compile(r"model\.(encoder|decoder)\.layers\.(\d+)\.(\w+)\.(.+)")
_OWN_IN_LAYER = re.compile(r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(\w+)\.(.+)")
_PROJECTION = re.compile(r"(.+_attn)\.([qkv])_proj\.(weight|bias)")
_BACKBONE = "model.backbone.conv_encoder.model."


def recognise(names: Iterable[str]) -> bool:
    """Whether these are the names of one of the two models."""
    return any(name.endswith("model.query_position_embeddings.weight") for name in names)


def to_own(weights: Mapping[str, torch.Tensor], path: str) -> dict[str, torch.Tensor]:
    """Rename to this project's names, the ResNet under ``backbone.`` as it is; stack projections.

    Names that are not known stay as they are.

    Raises:
        UserError: one of the three projections of an attention is missing.
    """
    tensors: dict[str, torch.Tensor] = {}
    projections: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for name, tensor in weights.items():
        name = _own_name(older_name(name))
        if match := _PROJECTION.fullmatch(name):
            projections.setdefault((match[1], match[3]), {})[match[2]] = tensor
        else:
            tensors[name] = tensor
    for (attention, what), parts in projections.items():
        if len(parts) != 3:
            raise UserError(f"{path}: of {attention}'s projections there are only {list(parts)}")
        tensors[f"{attention}.in_proj_{what}"] = torch.cat([parts[k] for k in "qkv"])
    return tensors


def from_own(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back, to the names of transformers 4; ``resnet.`` is the ResNet (timm's names)."""
    masks = any(name.startswith("mask_head.") for name in tensors)
    weights = {}
    for name, tensor in tensors.items():
        stem, _, what = name.rpartition(".")
        if what in ("in_proj_weight", "in_proj_bias"):
            parts = zip("qkv", tensor.chunk(3), strict=True)
            named = {f"{stem}.{k}_proj.{what[8:]}": part.clone() for k, part in parts}
        else:
            named = {name: tensor}
        for own_name, part in named.items():
            weights[_their_name(own_name, masks)] = part
    return weights


def older_name(name: str) -> str:
    """The name under transformers 4, without the ``detr.`` that the segmentation model adds."""
    name = re.sub(r"^detr\.", "", name)
    for pattern, replacement in _NEWER:
        name, count = re.subn(pattern, replacement, name)
        if count:
            return name
    if match := _NEWER_STAGE.match(name):
        part, first = _STAGE_PARTS[match[2]]
        return f"mask_head.{part}{first + int(match[1])}{name[match.end() :]}"
    return name


def _own_name(name: str) -> str:
    if name.startswith(_BACKBONE):
        return "backbone." + name[len(_BACKBONE) :]
    if match := _IN_LAYER.fullmatch(name):
        stack, layer, part, rest = match.groups()
        part = _LAYER[stack].get(part, part)
        return f"transformer.{stack}.layers.{layer}.{part}.{rest}"
    stem, _, what = name.rpartition(".")
    return f"{_OUTER.get(stem, stem)}.{what}"


def _their_name(name: str, masks: bool) -> str:
    if name.startswith(("mask_head.", "bbox_attention.")):
        return name
    stem, _, what = name.rpartition(".")
    if name.startswith("resnet."):
        theirs = _BACKBONE + name[len("resnet.") :]
    elif match := _OWN_IN_LAYER.fullmatch(name):
        stack, layer, part, rest = match.groups()
        theirs = f"model.{stack}.layers.{layer}.{_LAYER_BACK[stack][part]}.{rest}"
    else:
        theirs = f"{_OUTER_BACK[stem]}.{what}"
    return f"detr.{theirs}" if masks else theirs
