"""A model's weights as official DETR and Hugging Face have them."""

from typing import Any

import torch
from torch import nn

from ..checkpoint.class_rows import BOX_ROWS, COCO_NAMES, COCO_THING_IDS, PANOPTIC_ROWS
from ..checkpoint.huggingface_names import BACKBONE, from_own
from ..checkpoint.names import CLASS_HEAD, MASK_PARTS, rename_resnet
from ..checkpoint.network_config import network_config, resnet_depth
from ..checkpoint.resnet_names import ResNetNames, find_resnet
from ..errors import UserError

# Rows of ids without a class have zero weights and this bias: their probability is exactly 0 in
# float32 and float16 alike.
UNUSED_BIAS = -1e4


def official_checkpoint(model: nn.Module) -> dict[str, Any]:
    """Make what ``torch.save`` should write for facebookresearch/detr.

    Args:
        model: a ``PanopticDETR`` with a ResNet.

    Returns:
        ``model``: the state dict, class rows at raw category ids; ``class_names``: id to name, so
        that the file can be read here again for any data set (official code ignores it).

    Raises:
        UserError: see :func:`_exportable`.
    """
    weights, names = _exportable(model, "backbone.0.body.")
    if any(name.startswith(MASK_PARTS) for name in weights):
        weights = {
            name if name.startswith(MASK_PARTS) else f"detr.{name}": tensor
            for name, tensor in weights.items()
        }
    return {"model": weights, "class_names": names}


def huggingface_checkpoint(
    model: nn.Module, min_size: int = 800, max_size: int = 1333
) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Make the three files of a Hugging Face folder; the backbone is timm's.

    Args:
        model: a ``PanopticDETR`` with a standard ResNet, its images in RGB.
        min_size, max_size: lengths that images are resized to, for their image processor.

    Returns:
        state dict, ``config.json`` and ``preprocessor_config.json``.

    Raises:
        UserError: see :func:`_exportable`; or the model is one that Hugging Face does not have.
    """
    weights, names = _exportable(model, BACKBONE)
    shape, depth = network_config(weights), resnet_depth(weights)
    if depth is None:
        raise UserError("Hugging Face's Detr gets ResNet-18, -34, -50, -101 and -152 from here")
    if shape["MODEL.DETR.PRE_NORM"]:
        raise UserError("MODEL.DETR.PRE_NORM is True: Hugging Face's Detr has norms behind only")
    masks = shape["MODEL.MASK_ON"]
    labels = {i: names.get(i, "N/A") for i in range(len(weights[CLASS_HEAD[1]]) - 1)}
    config = {
        "model_type": "detr",
        "architectures": ["DetrForSegmentation" if masks else "DetrForObjectDetection"],
        "use_timm_backbone": True,
        "backbone": f"resnet{depth}",
        "use_pretrained_backbone": False,
        "dilation": model.backbone.output_shape()["res5"].stride == 16,
        "num_channels": 3,
        "num_queries": shape["MODEL.DETR.NUM_OBJECT_QUERIES"],
        "d_model": shape["MODEL.DETR.HIDDEN_DIM"],
        "num_hidden_layers": shape["MODEL.DETR.ENC_LAYERS"],
        "activation_function": "relu",
        "position_embedding_type": "sine",
        "id2label": {str(i): label for i, label in labels.items()},
        "label2id": {label: i for i, label in labels.items()},
    }
    heads = model.transformer.decoder.layers[0].self_attn.num_heads
    for stack, layers in (("encoder", "ENC_LAYERS"), ("decoder", "DEC_LAYERS")):
        config[f"{stack}_layers"] = shape[f"MODEL.DETR.{layers}"]
        config[f"{stack}_attention_heads"] = heads
        config[f"{stack}_ffn_dim"] = shape["MODEL.DETR.DIM_FEEDFORWARD"]
    processor = {
        "image_processor_type": "DetrImageProcessor",
        "format": "coco_panoptic" if masks else "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": min_size, "longest_edge": max_size},
        "do_normalize": True,
        "image_mean": [x / 255 for x in model.pixel_mean.flatten().tolist()],
        "image_std": [x / 255 for x in model.pixel_std.flatten().tolist()],
    }
    weights = {name: tensor.contiguous() for name, tensor in from_own(weights).items()}
    return weights, config, processor


def spread_rows(
    weight: torch.Tensor,
    bias: torch.Tensor,
    dataset_ids: list[int],
    class_names: list[str] | None,
) -> tuple[torch.Tensor, torch.Tensor, dict[int, str]]:
    """Put a model's class head at raw category ids, as official DETR has it.

    COCO's classes give 251 or 92 rows, others as many as their greatest id needs. Rows of unused
    ids have zero weights and :data:`UNUSED_BIAS`.

    Args:
        weight, bias: (K + 1) x C and K + 1.
        dataset_ids, class_names: of the K classes.

    Returns:
        weight, bias, and the name of each raw id.

    Raises:
        UserError: an id is negative.
    """
    if min(dataset_ids) < 0:
        raise UserError(f"category id {min(dataset_ids)} is negative: official heads have no row")
    class_names = class_names or [f"class {i}" for i in dataset_ids]
    names = dict(zip(dataset_ids, class_names, strict=True))
    count = max(dataset_ids) + 2
    if all(COCO_NAMES.get(i) == name for i, name in names.items()):
        count = BOX_ROWS if set(names) <= set(COCO_THING_IDS) else PANOPTIC_ROWS
    spread = weight.new_zeros((count, weight.shape[1]))
    spread_bias = bias.new_full((count,), UNUSED_BIAS)
    rows = torch.tensor([*dataset_ids, count - 1])
    spread[rows], spread_bias[rows] = weight, bias
    return spread, spread_bias, names


def _exportable(
    model: nn.Module, resnet_prefix: str
) -> tuple[dict[str, torch.Tensor], dict[int, str]]:
    """The weights, the ResNet under torchvision's names, class rows at raw ids; the ids' names.

    Raises:
        UserError: the backbone is no ResNet with batch norms, the class ids are not known, or the
            mask head is another one.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if find_resnet(state, "backbone."):
        state = rename_resnet(state, ResNetNames(resnet_prefix, "torchvision"))
    strange = [n for n in state if n.startswith("backbone.") and not n.startswith(resnet_prefix)]
    if strange or f"{resnet_prefix}bn1.running_mean" not in state:
        raise UserError(
            "Only models with a ResNet with batch norms have a place in other DETR code bases; "
            f"this one's backbone is {type(model.backbone).__name__} (for example "
            f"{(strange or list(state))[0]})"
        )
    if model.mask_head is not None and "mask_head.lay1.weight" not in state:
        raise UserError(f"{type(model.mask_head).__name__} is a mask head of this project only")
    if model.dataset_ids is None:
        raise UserError(
            "The category ids of the model's data set are not known: give the config that it was "
            "trained with (DATASETS.TRAIN and MODEL.DETR.NUM_CLASSES)"
        )
    weight, bias, names = spread_rows(
        *(state[name] for name in CLASS_HEAD), model.dataset_ids, model.class_names
    )
    state.update(zip(CLASS_HEAD, (weight, bias), strict=True))
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, names
