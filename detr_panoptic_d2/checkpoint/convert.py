"""Convert checkpoints between this project, official DETR and Hugging Face."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..engine.setup import setup_cfg
from ..errors import UserError
from .atomic import atomic_file
from .canonical import Canonical, to_canonical
from .checkpointer import log_plan
from .class_rows import BOX_ROWS, COCO_NAMES, COCO_THING_IDS, PANOPTIC_ROWS
from .export import huggingface_checkpoint, official_checkpoint
from .fit import plan_load
from .network_config import network_config
from .read import local_file, read_checkpoint

logger = logging.getLogger(__name__)

FORMATS = ("ours", "official", "huggingface")
_BASE_CONFIG = "detr_panoptic_R50.yaml"
_WITHOUT_MASKS = (
    "MODEL.DETR.TEST.PANOPTIC_ON",
    "MODEL.DETR.TEST.SEMANTIC_ON",
    "MODEL.DETR.FREEZE_DETECTOR",
)


def convert_checkpoint(source: str, target: str, target_format: str, cfg: CfgNode | None) -> None:
    """Write a checkpoint of any format that can be loaded in one of :data:`FORMATS`.

    All of the network must be in the file, the class head included.

    Args:
        source: file, Hugging Face folder or URL.
        target: file to write; a folder for "huggingface".
        target_format: one of :data:`FORMATS`.
        cfg: of the model; None: read off the file, which works for COCO's classes.

    Raises:
        UserError: the file lacks something, or has no form in the other format.
        UserError: the file is broken or does not fit ``cfg``.
    """
    if target_format not in FORMATS:
        raise UserError(f"format {target_format!r} is none of {', '.join(FORMATS)}")
    path = local_file(source)
    data = read_checkpoint(path)
    if cfg is None:
        cfg = config_of(to_canonical(data, set(), path), data, source)
    if cfg.INPUT.FORMAT != "RGB" and target_format != "ours":
        raise UserError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}: other DETR code bases take RGB only")
    model = build_model(cfg)
    _load_everything(model, data, path)
    if target_format == "huggingface":
        _write_folder(model, Path(target), cfg)
    else:
        content = {"model": model.state_dict()}
        if target_format == "official":
            content = official_checkpoint(model)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target, "wb") as f:
            torch.save(content, f)
    logger.info("Written: %s (%s)", target, target_format)


def config_of(file: Canonical, data: dict[str, Any], source: str) -> CfgNode:
    """The config of a checkpoint with COCO's classes, read off its tensors.

    Args:
        file: the checkpoint.
        data: all of :func:`.read.read_checkpoint`; it may tell of dilation and attention heads.
        source: name for messages.

    Raises:
        UserError: it has other classes than COCO, or is no DETR.
    """
    keys: dict[str, Any] = network_config(file)
    if "MODEL.DETR.ENC_LAYERS" not in keys or file.head is None:
        raise UserError(f"{source} ({file.format}) holds no DETR: there is nothing to convert")
    if "MODEL.RESNETS.DEPTH" not in keys:
        raise UserError(
            f"{source}: its backbone is none of ResNet-18 to -152. Give --config-file, the config "
            "of the model"
        )
    if keys["MODEL.RESNETS.DEPTH"] < 50:
        keys["MODEL.RESNETS.RES2_OUT_CHANNELS"] = 64
    keys["DATASETS.TRAIN"], keys["MODEL.DETR.NUM_CLASSES"] = _coco_set(file, source)
    if not keys["MODEL.MASK_ON"]:
        keys.update(dict.fromkeys(_WITHOUT_MASKS, False), **{"MODEL.DETR.TEST.INSTANCE_ON": True})
    if "heads" in data:
        keys["MODEL.DETR.NHEADS"] = data["heads"]
    dilated = data.get("dilation")
    if dilated is None:
        logger.info(
            "%s does not tell whether it is a DC5 model (res5 dilated): taken as none. If it is "
            "one, give a --config-file with MODEL.RESNETS.RES5_DILATION 2",
            source,
        )
    elif dilated and keys["MODEL.RESNETS.DEPTH"] < 50:
        raise UserError(
            f"{source} is a DC5 model of a ResNet-{keys['MODEL.RESNETS.DEPTH']}, which neither "
            "torchvision nor Detectron2 has: only ResNet-50 and deeper ones can be dilated"
        )
    elif dilated:
        keys["MODEL.RESNETS.RES5_DILATION"] = 2
    keys.update({"DATASETS.TEST": (), "MODEL.WEIGHTS": "", "MODEL.DEVICE": "cpu"})
    return setup_cfg(_BASE_CONFIG, [x for item in keys.items() for x in item])


def _coco_set(file: Canonical, source: str) -> tuple[tuple[str], int]:
    """The COCO data set with the head's classes, and their number."""
    rows = len(file.head.bias)
    panoptic, boxes = len(COCO_NAMES), len(COCO_THING_IDS)
    if file.head.rows is not None:
        known = set(file.head.names.items()) <= set(COCO_NAMES.items())
        rows = {PANOPTIC_ROWS: panoptic + 1, BOX_ROWS: boxes + 1}.get(rows) if known else None
        if rows is None and known and len(file.head.names) == boxes:
            rows = boxes + 1
    if rows == panoptic + 1:
        return ("coco_2017_train_panoptic",), panoptic
    if rows == boxes + 1:
        return ("coco_2017_train",), boxes
    raise UserError(
        f"{source} has {len(file.head.bias)} class rows, which are not COCO's. Give --config-file, "
        "the config of a model whose DATASETS.TRAIN has the file's classes"
    )


def _load_everything(model: nn.Module, data: dict[str, Any], path: str) -> None:
    state = model.state_dict()
    file = to_canonical(data, set(state), path)
    plan = plan_load(file, state, path, model.dataset_ids, model.class_names)
    log_plan(plan, path)
    lacking = {n: why for n, why in plan.kept.items() if not n.endswith("num_batches_tracked")}
    if plan.warnings or lacking:
        problems = plan.warnings or [f"{name}: {why}" for name, why in lacking.items()]
        raise UserError(
            f"{path} does not hold all of the model, the rest would be random. "
            f"{'; '.join(problems[:3])}. Give --config-file, the config of the file's own model"
        )
    model.load_state_dict(plan.state, strict=False)


def _write_folder(model: nn.Module, folder: Path, cfg: CfgNode) -> None:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError(
            "the Hugging Face format needs safetensors: pip install 'detr_panoptic_d2[huggingface]'"
        ) from error
    weights, config, processor = huggingface_checkpoint(
        model, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "model.safetensors", "wb") as f:
        f.write(save(weights, metadata={"format": "pt"}))
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        with atomic_file(folder / name) as f:
            json.dump(content, f, indent=2)
