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
    """Return the entries that make a checkpoint self-describing.

    Returns:
        ``config``, the config as yaml, with the thresholds of inference; ``categories``, id, name,
        thing-ness and color of each class, as in a COCO panoptic json. Plain data only.
    """
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    return {"config": cfg.dump(), "categories": categories_of(MetadataCatalog.get(names[0]))}


def cfg_from_checkpoint(path: str, opts: Sequence[str] = ()) -> CfgNode:
    """Build the config of inference from a self-describing checkpoint.

    Registers the classes under a name of their own: the data sets of the training need not exist.

    Args:
        path: a checkpoint of this project, see :meth:`PanopticCheckpointer.load`.
        opts: flat list of keys and values that change the config.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file does not describe itself, or a key is not known.
    """
    file, _ = split_weights_key(path)
    entries = read_checkpoint(local_file(file))
    text, categories = entries.get("config"), entries.get("categories")
    if not isinstance(text, str):
        raise UserError(
            f"{path} does not hold its config. Give a config file, and the checkpoint as "
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
        cfg.merge_from_list(list(opts))
    except (KeyError, AssertionError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"Config of {path}, KEY VALUE pairs: {error}") from error
    cfg.MODEL.WEIGHTS = path
    # The file has the weights of the backbone.
    cfg.MODEL.DETR.BACKBONE.PRETRAINED = False
    cfg.DATASETS.REGISTER, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = [], (), (name,)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg
