"""Convert checkpoints between this project, official DETR and Hugging Face."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from safetensors.torch import save

from ..checkpoint import PanopticCheckpointer, atomic_file, local_file, read_checkpoint
from ..checkpoint.class_rows import BOX_ROWS, COCO_NAMES, COCO_THING_IDS, PANOPTIC_ROWS
from ..checkpoint.names import recognise
from ..checkpoint.network_config import network_config
from ..engine import setup_cfg
from ..errors import UserError
from .export_checkpoint import huggingface_checkpoint, official_checkpoint

logger = logging.getLogger(__name__)

FORMATS = ("ours", "official", "huggingface")
_BASE_CONFIG = "detr_panoptic_R50.yaml"


def convert_checkpoint(source: str, target: str, target_format: str, cfg: CfgNode | None) -> None:
    """Write a checkpoint of any format that can be loaded in one of :data:`FORMATS`.

    All of the network must be in the file, the class head included.

    Args:
        source: file, Hugging Face folder or URL.
        target: file to write; a folder for "huggingface".
        target_format: one of :data:`FORMATS`.
        cfg: of the model; None: read off the file, which works for COCO's classes.

    Raises:
        UserError: the file lacks something, is broken, does not fit ``cfg``, or has no form in the
            other format.
    """
    if target_format not in FORMATS:
        raise UserError(f"format {target_format!r} is none of {', '.join(FORMATS)}")
    path = local_file(source)
    if cfg is None:
        cfg = config_of(read_checkpoint(path), path)
    if cfg.INPUT.FORMAT != "RGB" and target_format != "ours":
        raise UserError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}: other DETR code bases take RGB only")
    model = build_model(cfg)
    PanopticCheckpointer(model).load(path, complete=True)
    if target_format == "huggingface":
        _write_folder(model, Path(target), cfg)
    else:
        official = target_format == "official"
        content = official_checkpoint(model) if official else {"model": model.state_dict()}
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target, "wb") as f:
            torch.save(content, f)
    logger.info("Written: %s (%s)", target, target_format)


def config_of(data: dict[str, Any], path: str) -> CfgNode:
    """The config of a checkpoint with COCO's classes, read off its tensors.

    Args:
        data: from :func:`read_checkpoint`; it may say whether res5 is dilated, and how many
            attention heads there are.
        path: of the file, for messages.

    Raises:
        UserError: it has other classes than COCO, or is no DETR.
    """
    found = recognise(data["model"])
    state = found[0].state if found else {}
    keys: dict[str, Any] = network_config(state)
    if "MODEL.DETR.ENC_LAYERS" not in keys or "class_embed.bias" not in state:
        raise UserError(f"{path} holds no DETR: there is nothing to convert")
    depth = keys.get("MODEL.RESNETS.DEPTH")
    if depth is None:
        raise UserError(
            f"{path}: its backbone is none of ResNet-18 to -152. Give --config-file, the config "
            "of the model"
        )
    if depth < 50:
        keys["MODEL.RESNETS.RES2_OUT_CHANNELS"] = 64
    rows = len(state["class_embed.bias"])
    things_only = _things_only(rows, data.get("class_names"), path)
    keys["DATASETS.TRAIN"] = (f"coco_2017_train{'' if things_only else '_panoptic'}",)
    keys["MODEL.DETR.NUM_CLASSES"] = len(COCO_THING_IDS if things_only else COCO_NAMES)
    if not keys["MODEL.MASK_ON"]:
        off = ("TEST.PANOPTIC_ON", "TEST.SEMANTIC_ON", "FREEZE_DETECTOR")
        keys.update({f"MODEL.DETR.{key}": False for key in off})
        keys["MODEL.DETR.TEST.INSTANCE_ON"] = True
    if "heads" in data:
        keys["MODEL.DETR.NHEADS"] = data["heads"]
    if "dilation" not in data:
        logger.info(
            "%s does not say whether it is a DC5 model (res5 dilated): taken as none. If it is "
            "one, give a --config-file with MODEL.RESNETS.RES5_DILATION 2",
            path,
        )
    elif data["dilation"]:
        if depth < 50:
            raise UserError(
                f"{path} is a DC5 model of a ResNet-{depth}, which neither torchvision nor "
                "Detectron2 has: only ResNet-50 and deeper ones can be dilated"
            )
        keys["MODEL.RESNETS.RES5_DILATION"] = 2
    keys.update({"DATASETS.TEST": (), "MODEL.WEIGHTS": "", "MODEL.DEVICE": "cpu"})
    return setup_cfg(_BASE_CONFIG, [x for item in keys.items() for x in item])


def _things_only(rows: int, names: dict[int, str] | None, path: str) -> bool:
    """Whether a class head has COCO's 80 things, and not its 133 panoptic classes.

    Args:
        rows: of the class head, contiguous or by category id.
        names: class names of the rows, as far as the file has them.
    """
    names = names or {}
    if set(names.items()) <= set(COCO_NAMES.items()):
        if rows in (PANOPTIC_ROWS, len(COCO_NAMES) + 1):
            return False
        if rows in (BOX_ROWS, len(COCO_THING_IDS) + 1) or len(names) == len(COCO_THING_IDS):
            return True
    raise UserError(
        f"{path} has {rows} class rows, which are not COCO's. Give --config-file, the config of a "
        "model whose DATASETS.TRAIN has the file's classes"
    )


def _write_folder(model: torch.nn.Module, folder: Path, cfg: CfgNode) -> None:
    weights, config, processor = huggingface_checkpoint(
        model, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "model.safetensors", "wb") as f:
        f.write(save(weights, metadata={"format": "pt"}))
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        with atomic_file(folder / name) as f:
            json.dump(content, f, indent=2)
