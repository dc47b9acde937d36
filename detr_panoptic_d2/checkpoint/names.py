"""What the tensors of a ``PanopticDETR`` are called in other code bases.

Known are facebookresearch/detr and its Detectron2 wrapper, Hugging Face's Detr (names of
transformers 4 and 5, backbone of timm or of transformers) and the ResNets of torchvision, timm,
Detectron2 and Hugging Face. All tables lead from the model's names to the others: reading looks
for a tensor of the model under each of them, writing renames.
"""

import re
from collections.abc import Iterable, Iterator

# What precedes the ResNet's own names: official, its wrapper, transformers 4 and 5, here, alone.
HUGGINGFACE_BACKBONE = "model.backbone.conv_encoder.model."
OFFICIAL_BACKBONE = "backbone.0.body."
_BACKBONES = (
    OFFICIAL_BACKBONE,
    "backbone.0.backbone.",
    HUGGINGFACE_BACKBONE,
    "model.backbone.model.",
    "backbone.",
    "backbone.body.",
    "resnet.",
    "",
)
# Pattern -> replacement, one after the other, for what is not in the backbone.
_HUGGINGFACE = (
    (r"^input_proj\.", "model.input_projection."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"^class_embed\.", "class_labels_classifier."),
    (r"^bbox_embed\.", "bbox_predictor."),
    (r"^transformer\.(encoder|decoder)\.norm\.", r"model.\1.layernorm."),
    (r"^transformer\.", "model."),
    (r"\.linear([12])\.", r".fc\1."),
    (r"\.norm1\.", ".self_attn_layer_norm."),
    (r"(\.encoder\..*)\.norm2\.", r"\1.final_layer_norm."),
    (r"\.norm3\.", ".final_layer_norm."),
    (r"\.norm2\.", ".encoder_attn_layer_norm."),
    (r"\.multihead_attn\.", ".encoder_attn."),
)
# The same from transformers 4 to 5, whose models in memory have other names than their files.
_TRANSFORMERS_5 = (
    (r"_attn\.out_proj\.", "_attn.o_proj."),
    (r"\.(fc[12])\.", r".mlp.\1."),
    (r"^bbox_attention\.([qk])_linear\.", r"bbox_attention.\1_proj."),
    (r"^mask_head\.lay([12])\.", r"mask_head.conv\1.conv."),
    (r"^mask_head\.gn([12])\.", r"mask_head.conv\1.norm."),
    (r"^mask_head\.out_lay\.", "mask_head.output_conv."),
    *(
        (rf"^mask_head\.adapter{i + 1}\.", f"mask_head.fpn_stages.{i}.fpn_adapter.")
        for i in range(3)
    ),
    *((rf"^mask_head\.lay{i + 3}\.", f"mask_head.fpn_stages.{i}.refine.conv.") for i in range(3)),
    *((rf"^mask_head\.gn{i + 3}\.", f"mask_head.fpn_stages.{i}.refine.norm.") for i in range(3)),
)


def _resnet_modules() -> dict[str, tuple[str, str, str]]:
    """Torchvision's or Detectron2's name of a module -> torchvision's, Detectron2's, transformers'
    name, for every ResNet up to ResNet-152."""
    rows = [
        ("conv1", "stem.conv1", "embedder.embedder.convolution"),
        ("bn1", "stem.conv1.norm", "embedder.embedder.normalization"),
    ]
    for stage in range(4):
        for block in range(36):
            tv, d2 = f"layer{stage + 1}.{block}", f"res{stage + 2}.{block}"
            hf = f"encoder.stages.{stage}.layers.{block}"
            for i in range(3):
                inner = f"{hf}.layer.{i}"
                rows += [
                    (f"{tv}.conv{i + 1}", f"{d2}.conv{i + 1}", f"{inner}.convolution"),
                    (f"{tv}.bn{i + 1}", f"{d2}.conv{i + 1}.norm", f"{inner}.normalization"),
                ]
            rows += [
                (f"{tv}.downsample.0", f"{d2}.shortcut", f"{hf}.shortcut.convolution"),
                (f"{tv}.downsample.1", f"{d2}.shortcut.norm", f"{hf}.shortcut.normalization"),
            ]
    return {name: row for row in rows for name in row[:2]}


_RESNET_MODULES = _resnet_modules()


def resnet_names(name: str) -> tuple[str, ...]:
    """Torchvision's, Detectron2's and transformers' name of a tensor of the model's ResNet.

    Args:
        name: of a tensor of the model, such as ``backbone.res2.0.conv1.weight``.

    Returns:
        three names without prefix; none for a tensor that is in no ResNet.
    """
    if not name.startswith("backbone."):
        return ()
    module, _, tensor = name.removeprefix("backbone.").removeprefix("body.").rpartition(".")
    return tuple(f"{other}.{tensor}" for other in _RESNET_MODULES.get(module, ()))


def huggingface_name(name: str) -> str:
    """The name in a file of Hugging Face's Detr of a tensor outside of the backbone.

    Query, key and value projections are three tensors there: see :func:`projections`.
    """
    return _replace(name, _HUGGINGFACE)


def transformers_5_name(name: str) -> str:
    """The name in a model of transformers 5 in memory of what is ``name`` in its files."""
    return _replace(name.replace(HUGGINGFACE_BACKBONE, "model.backbone.model."), _TRANSFORMERS_5)


def projections(name: str) -> list[str]:
    """Hugging Face's three names for an attention's ``in_proj_weight`` or ``in_proj_bias``."""
    return [name.replace("in_proj_", f"{kind}_proj.") for kind in "qkv"]


def spellings(name: str) -> Iterator[str]:
    """All names that a tensor of the model may have in a file, its own first."""
    yield name
    for prefix in _BACKBONES:
        for other in resnet_names(name):
            yield prefix + other
    if not name.startswith("backbone."):
        yield huggingface_name(name)
        yield transformers_5_name(huggingface_name(name))


def _replace(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
