"""Names of the tensors of a ``PanopticDETR`` in other code bases.

These are facebookresearch/detr and its Detectron2 wrapper, Hugging Face's Detr (with the backbone
of timm or of transformers), the ResNets of torchvision, timm, Detectron2 and Hugging Face, and
other backbones with the names of their own library.
"""

import re
from collections.abc import Iterator

# Prefixes of the ResNet's names: official DETR, its wrapper, Hugging Face, this project, none.
HUGGINGFACE_BACKBONE = "model.backbone.conv_encoder.model."
OFFICIAL_BACKBONE = "backbone.0.body."
_BACKBONES = (
    OFFICIAL_BACKBONE,
    "backbone.0.backbone.",
    HUGGINGFACE_BACKBONE,
    "backbone.",
    "backbone.body.",
    "resnet.",
    "",
)
# Pattern -> replacement for names outside of the backbone, applied in this order.
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


def _resnet_modules() -> dict[str, tuple[str, str, str]]:
    """Map a module's name in torchvision or Detectron2 to its names in torchvision, Detectron2 and
    transformers, for every ResNet up to ResNet-152."""
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
    """Return the names in torchvision, Detectron2 and transformers of a tensor of the ResNet.

    They have no prefix. There are none if the tensor does not belong to a ResNet.
    """
    module, _, tensor = name.removeprefix("backbone.").removeprefix("body.").rpartition(".")
    return tuple(f"{other}.{tensor}" for other in _RESNET_MODULES.get(module, ()))


def huggingface_name(name: str) -> str:
    """Return the name in a file of Hugging Face's Detr of a tensor outside of the backbone."""
    for pattern, replacement in _HUGGINGFACE:
        name = re.sub(pattern, replacement, name)
    return name


def projections(name: str) -> list[str]:
    """Return Hugging Face's three names for ``in_proj_weight`` or ``in_proj_bias``."""
    return [name.replace("in_proj_", f"{kind}_proj.") for kind in "qkv"]


def spellings(name: str) -> Iterator[str]:
    """Yield all names that a tensor of the model may have in a file, its own first."""
    yield name
    if not name.startswith("backbone."):
        yield huggingface_name(name)
        return
    own = name.removeprefix("backbone.").removeprefix("body.")
    for prefix in _BACKBONES:
        for other in (own, *resnet_names(name)):
            yield prefix + other
