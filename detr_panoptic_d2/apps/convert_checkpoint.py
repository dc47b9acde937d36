"""Convert checkpoints between this project, official DETR and Hugging Face."""

import json
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from safetensors.torch import save
from torch import nn

from ..checkpoint import PanopticCheckpointer, names, translate
from ..checkpoint.description import describe
from ..errors import UserError
from ..files import atomic_file, check_not_overwritten

logger = logging.getLogger(__name__)

# Rows of ids without a class have zero weights and this bias. Their probability is exactly 0, in
# float32 and in float16.
UNUSED_BIAS = -1e4
_HUGGINGFACE_FILES = ("model.safetensors", "config.json", "preprocessor_config.json")


def convert_checkpoint(source: str, target: str, target_format: str, cfg: CfgNode) -> None:
    """Convert a checkpoint of any known format to another format.

    Args:
        source: file, Hugging Face folder or URL, with the complete network.
        target: file to write, or folder for "huggingface".
        target_format: "ours", "official" or "huggingface".
        cfg: of the model.

    Raises:
        UserError: the file is incomplete, broken or does not fit ``cfg``, the other format cannot
            hold the network, or the target is the source.
    """
    if cfg.INPUT.FORMAT != "RGB" and target_format != "ours":
        raise UserError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}: other DETR code bases use RGB only")
    inputs = Path(source).iterdir() if Path(source).is_dir() else [source]
    check_not_overwritten(inputs, [target, *(Path(target, name) for name in _HUGGINGFACE_FILES)])
    model = build_model(cfg)
    PanopticCheckpointer(model).load(source, complete=True)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    if target_format == "huggingface":
        sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        weights, config, processor = huggingface_checkpoint(model, *sizes)
        Path(target).mkdir(exist_ok=True)
        weights_name, *json_names = _HUGGINGFACE_FILES
        with atomic_file(Path(target, weights_name), "wb") as f:
            f.write(save(weights, metadata={"format": "pt"}))
        for name, content in zip(json_names, (config, processor), strict=True):
            with atomic_file(Path(target, name)) as f:
                json.dump(content, f, indent=2)
    else:
        content = {"model": model.state_dict(), **describe(cfg)}
        if target_format == "official":
            content = official_checkpoint(model)
        with atomic_file(target, "wb") as f:
            torch.save(content, f)
    logger.info("Written: %s (%s)", target, target_format)


def official_checkpoint(model: nn.Module) -> dict[str, Any]:
    """Build the content of a checkpoint for facebookresearch/detr, see :func:`_exportable`.

    Official code ignores ``class_names`` (id to name). This project needs them to load the file for
    any dataset.
    """
    weights, class_names = _exportable(model, names.OFFICIAL_BACKBONE, lambda name: name)
    return {"model": weights, "class_names": class_names}


def huggingface_checkpoint(
    model: nn.Module, min_size: int = 800, max_size: int = 1333
) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Build the three files of a Hugging Face folder. The backbone is timm's.

    Args:
        model: a ``PanopticDETR`` with a standard ResNet and RGB images, see :func:`_exportable`.
        min_size, max_size: lengths that the image processor resizes images to.

    Returns:
        state dict (names of transformers 4), ``config.json`` and ``preprocessor_config.json``.
    """
    tensors, class_names = _exportable(model, names.HUGGINGFACE_BACKBONE, names.huggingface_name)
    stages = {n.partition(".layer")[2]: x for n, x in tensors.items() if ".layer" in n}
    depth = 2 + sum(bool(re.fullmatch(r"\d\.\d+\.conv\d\.weight", name)) for name in stages)
    standard = depth in (18, 34, 50, 101, 152) and stages["1.0.conv1.weight"].shape[:2] == (64, 64)
    encoder, decoder = model.transformer.encoder, model.transformer.decoder
    if not standard or any(name.endswith("encoder.layernorm.weight") for name in tensors):
        raise UserError(
            "Hugging Face's DETR supports ResNet-18, -34, -50, -101 and -152, and no "
            "MODEL.DETR.PRE_NORM"
        )
    weights = {}
    for name, tensor in tensors.items():
        parts = names.projections(name) if "in_proj_" in name else [name]
        weights.update(zip(parts, tensor.chunk(len(parts)), strict=True))
    masks = model.mask_head is not None
    rows = next(len(x) for name, x in tensors.items() if name.endswith("labels_classifier.bias"))
    labels = {i: class_names.get(i, "N/A") for i in range(rows - 1)}
    first = decoder.layers[0]
    config = {
        "model_type": "detr",
        "architectures": ["DetrForSegmentation" if masks else "DetrForObjectDetection"],
        "use_timm_backbone": True,
        "backbone": f"resnet{depth}",
        "use_pretrained_backbone": False,
        "dilation": model.backbone.output_shape()["res5"].stride == 16,
        "num_channels": 3,
        "num_queries": model.query_embed.num_embeddings,
        "d_model": model.query_embed.embedding_dim,
        "num_hidden_layers": len(encoder.layers),
        "activation_function": "relu",
        "position_embedding_type": "sine",
        "id2label": {str(i): label for i, label in labels.items()},
        "label2id": {label: i for i, label in labels.items()},
    }
    for name, stack in (("encoder", encoder), ("decoder", decoder)):
        config[f"{name}_layers"] = len(stack.layers)
        config[f"{name}_attention_heads"] = first.self_attn.num_heads
        config[f"{name}_ffn_dim"] = first.linear1.out_features
    processor = {
        "image_processor_type": "DetrImageProcessor",
        "format": "coco_panoptic" if masks else "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": min_size, "longest_edge": max_size},
        "do_normalize": True,
        "image_mean": [x / 255 for x in model.pixel_mean.flatten().tolist()],
        "image_std": [x / 255 for x in model.pixel_std.flatten().tolist()],
    }
    return {name: x.clone().contiguous() for name, x in weights.items()}, config, processor


def spread_rows(
    weight: torch.Tensor, bias: torch.Tensor, dataset_ids: list[int], class_names: Iterable[str]
) -> tuple[torch.Tensor, torch.Tensor, dict[int, str]]:
    """Move the rows of a class head, (K + 1) x C and K + 1, to raw category ids.

    COCO's classes give 251 or 92 rows, as in official DETR. Other classes give as many rows as the
    largest id needs. Rows of unused ids have zero weights and :data:`UNUSED_BIAS`.

    Returns:
        weight, bias, and the name of each raw id.
    """
    if min(dataset_ids) < 0:
        raise UserError(f"category id {min(dataset_ids)} is negative: official heads have no row")
    by_id = dict(zip(dataset_ids, class_names, strict=True))
    count = max(dataset_ids) + 2
    if by_id.items() <= translate.COCO_NAMES.items():
        count = (
            translate.BOX_ROWS
            if set(by_id) <= set(translate.COCO_THING_IDS)
            else translate.PANOPTIC_ROWS
        )
    spread = weight.new_zeros((count, weight.shape[1]))
    spread_bias = bias.new_full((count,), UNUSED_BIAS)
    rows = torch.tensor([*dataset_ids, count - 1])
    spread[rows], spread_bias[rows] = weight, bias
    return spread, spread_bias, by_id


def _exportable(
    model: nn.Module, backbone: str, rename: Callable[[str], str]
) -> tuple[dict[str, torch.Tensor], dict[int, str]]:
    """Return the weights under other names, with class rows at raw ids, and the ids' names.

    Args:
        model: a ``PanopticDETR``.
        backbone: prefix of torchvision's names of the ResNet.
        rename: maps our name to theirs, for tensors outside of backbone and mask head.

    Raises:
        UserError: the other code bases cannot hold backbone or mask head.
    """
    state = {
        n: x.detach().cpu()
        for n, x in model.state_dict().items()
        if not n.endswith(translate.COUNTER)
    }
    resnet = {name: names.resnet_names(name) for name in state if name.startswith("backbone.")}
    has_means = any(x[:1] == ("bn1.running_mean",) for x in resnet.values())
    known_masks = model.mask_head is None or "mask_head.lay1.weight" in state
    if not (known_masks and has_means and all(resnet.values())):
        raise UserError(
            "Other DETR code bases can hold only a ResNet with batch norms and MaskHeadSmallConv, "
            f"not {type(model.backbone).__name__} and {type(model.mask_head).__name__}"
        )
    if translate.ATTENTION_SCALE in state:
        # Other code bases have no scale: it becomes a part of the weights.
        weight = state["mask_head.lay1.weight"] = state["mask_head.lay1.weight"].clone()
        weight[:, model.mask_head.hidden_dim :] *= state.pop(translate.ATTENTION_SCALE)
    head = [state[name] for name in translate.CLASS_HEAD]
    weight, bias, class_names = spread_rows(*head, model.dataset_ids, model.class_names)
    state.update(zip(translate.CLASS_HEAD, (weight, bias), strict=True))
    prefix = "" if model.mask_head is None else "detr."
    renamed = {}
    for name, tensor in state.items():
        if not name.startswith(translate.MASK_PARTS):
            name = prefix + (backbone + resnet[name][0] if name in resnet else rename(name))
        renamed[name] = tensor
    return renamed, class_names
