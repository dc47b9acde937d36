"""Config and classes in a checkpoint, so that a model can be built from the file alone."""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config import merged_cfg
from ..data.metadata import categories_of
from ..data.panoptic_json import panoptic_metadata
from ..errors import UserError
from .read import local_file, read_checkpoint, split_weights_key


def describe(cfg: CfgNode) -> dict[str, Any]:
    """Return the entries that make a checkpoint self-describing, plain data only.

    ``config`` is the config as yaml, with rule and thresholds of the panoptic inference;
    ``categories`` are those of a COCO panoptic json: id, name, thing-ness and color.
    """
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    return {"config": cfg.dump(), "categories": categories_of(MetadataCatalog.get(names[0]))}


def cfg_from_checkpoint(path: str, opts: Sequence[str] = ()) -> CfgNode:
    """Build the config of inference from a self-describing checkpoint, changed by keys and values.

    Registers the classes under a name of their own: the datasets of the training need not exist.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file does not describe itself, or a key is not known.
    """
    file, _ = split_weights_key(path)
    entries = read_checkpoint(local_file(file))
    text, categories = entries.get("config"), entries.get("categories")
    if not isinstance(text, str):
        raise UserError(
            f"{path} does not contain its config. Give a config file, and the checkpoint as "
            "MODEL.WEIGHTS"
        )
    metadata = panoptic_metadata(categories, path)
    name = f"classes_{zlib.crc32(repr(metadata).encode()):08x}"
    MetadataCatalog.get(name).set(**metadata)
    cfg = merged_cfg("")
    try:
        cfg.set_new_allowed(True)
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(text)))
        cfg.set_new_allowed(False)
        # The device of this machine, not that of the training.
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
        cfg.merge_from_list(list(opts))
    except (KeyError, AssertionError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"Config of {path}, KEY VALUE pairs: {error}") from error
    cfg.MODEL.WEIGHTS = path
    # The file has the weights of the backbone.
    cfg.MODEL.DETR.BACKBONE.PRETRAINED = False
    cfg.DATASETS.REGISTER, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = [], (), (name,)
    cfg.freeze()
    return cfg
