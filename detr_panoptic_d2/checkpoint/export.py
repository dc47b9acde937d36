"""A model's weights as official DETR and Hugging Face have them."""

from typing import Any

import torch
from torch import nn

from ..errors import UserError
from .canonical import CLASS_HEAD, RESNET, Canonical, own
from .class_rows import spread_rows
from .huggingface_names import from_own
from .network_config import network_config, resnet_depth

_COUNTER = "num_batches_tracked"
_MASK_PARTS = ("mask_head.", "bbox_attention.")


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
    file, names = _exportable(model)
    masks = any(name.startswith(_MASK_PARTS) for name in file.tensors)
    weights = {}
    for name, tensor in file.tensors.items():
        if name.startswith(RESNET):
            name = "backbone.0.body." + name[len(RESNET) :]
        if masks and not name.startswith(_MASK_PARTS):
            name = f"detr.{name}"
        weights[name] = tensor
    return {"model": weights, "class_names": names}


def huggingface_checkpoint(
    model: nn.Module, min_size: int = 800, max_size: int = 1333
) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Make the three files of a Hugging Face folder; the backbone is timm's.

    Args:
        model: a ``PanopticDETR`` with a standard ResNet, its
            images in RGB.
        min_size, max_size: lengths that images are resized to, for their image processor.

    Returns:
        state dict, ``config.json`` and ``preprocessor_config.json``.

    Raises:
        UserError: see :func:`_exportable`; or the model is one that Hugging Face does not have.
    """
    file, names = _exportable(model)
    shape = network_config(file)
    depth = resnet_depth(file.tensors)
    if depth is None:
        raise UserError("Hugging Face's Detr gets ResNet-18, -34, -50, -101 and -152 from here")
    if shape["MODEL.DETR.PRE_NORM"]:
        raise UserError("MODEL.DETR.PRE_NORM is True: Hugging Face's Detr has norms behind only")
    masks = shape["MODEL.MASK_ON"]
    rows = len(file.tensors[CLASS_HEAD[1]])
    labels = {i: names.get(i, "N/A") for i in range(rows - 1)}
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
    heads = model.transformer.decoder.layers[0].self_attn.nheads
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
    weights = {name: tensor.contiguous() for name, tensor in from_own(file.tensors).items()}
    return weights, config, processor


def _exportable(model: nn.Module) -> tuple[Canonical, dict[int, str]]:
    """The weights under common names with the class head at raw ids, and the ids' names.

    Raises:
        UserError: the backbone is no ResNet with batch norms, the class ids are not known, or the
            mask head is another one.
    """
    file = own({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()})
    strange = [name for name in file.tensors if name.startswith("backbone.")]
    if strange or f"{RESNET}bn1.running_mean" not in file.tensors:
        raise UserError(
            "Only models with a ResNet with batch norms have a place in other DETR code bases; "
            f"this one's backbone is {type(model.backbone).__name__} (for example "
            f"{(strange or list(file.tensors))[0]})"
        )
    if model.mask_head is not None and "mask_head.lay1.weight" not in file.tensors:
        raise UserError(f"{type(model.mask_head).__name__} is a mask head of this project only")
    if model.dataset_ids is None:
        raise UserError(
            "The category ids of the model's data set are not known: give the config that it was "
            "trained with (DATASETS.TRAIN and MODEL.DETR.NUM_CLASSES)"
        )
    head = spread_rows(file.head.weight, file.head.bias, model.dataset_ids, model.class_names)
    file.tensors.update(zip(CLASS_HEAD, head[:2], strict=True))
    file.tensors = {k: v for k, v in file.tensors.items() if not k.endswith(_COUNTER)}
    return file, head[2]
