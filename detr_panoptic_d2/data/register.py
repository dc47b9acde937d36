"""Register a user's panoptic data in Detectron2's standard COCO panoptic form."""

import functools
import os
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

from ..errors import UserError
from .panoptic_json import load_panoptic_json, panoptic_metadata, read_valid_content


def register_panoptic(
    name: str,
    image_root: str | os.PathLike,
    panoptic_root: str | os.PathLike,
    panoptic_json: str | os.PathLike,
) -> None:
    """Register a data set in COCO panoptic format under ``name``.

    The json is read and checked immediately. The list of images is built on first use. Relative
    paths are relative to the current directory. A second registration with the same arguments does
    nothing.

    Args:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        image_root: folder of the images. The names in the json's ``images`` are relative to it.
        panoptic_root: folder of the panoptic PNGs.
        panoptic_json: annotation file. Its ``categories`` need ``id``, ``name`` and ``isthing``;
            ``color`` is optional.

    Raises:
        FileNotFoundError: a file or folder is missing.
        UserError: the json is not in the format, or another set has the name.
    """
    keys = ("image_root", "panoptic_root", "panoptic_json")
    values = (image_root, panoptic_root, panoptic_json)
    paths = dict(zip(keys, (os.path.expanduser(os.fspath(v)) for v in values), strict=True))

    def read_metadata() -> dict[str, Any]:
        for key in keys[:2]:
            if not PathManager.isdir(paths[key]):
                raise FileNotFoundError(f"Data set '{name}': {key} '{paths[key]}' is not a folder.")
        categories = read_valid_content(**paths).categories
        return panoptic_metadata(list(categories.values()), paths["panoptic_json"])

    register_once(name, functools.partial(load_panoptic_json, **paths), paths, read_metadata)


def register_from_config(cfg: CfgNode) -> None:
    """Register every item of ``cfg.DATASETS.REGISTER``.

    An item is a mapping with the arguments of :func:`register_panoptic`, or for boxes alone with
    name, image_root and instances_json (a COCO instances json). Relative paths in a config
    file are relative to its folder::

        DATASETS:
          REGISTER:
            - {name: mine_train, image_root: mine/train, panoptic_root: mine/panoptic_train,
               panoptic_json: mine/panoptic_train.json}
          TRAIN: ("mine_train",)

    Raises as :func:`registered_items` and :func:`register_panoptic`.
    """
    for item in registered_items(cfg):
        if "instances_json" in item:
            _register_instances(**item)
        else:
            register_panoptic(**item)


def _register_instances(name: str, image_root: str, instances_json: str) -> None:
    """Register a COCO instances json, whose boxes train a model without masks.

    Raises:
        FileNotFoundError: the json is missing.
        UserError: another set has this name.
    """
    if not PathManager.isfile(instances_json):
        raise FileNotFoundError(f"'{instances_json}' does not exist.")
    if name not in DatasetCatalog.list():
        register_coco_instances(name, {}, instances_json, image_root)
    elif MetadataCatalog.get(name).get("json_file") != instances_json:
        raise UserError(f"Data set name '{name}' is already registered. Choose another name.")


def registered_items(cfg: CfgNode) -> list[dict[str, str]]:
    """Return the items of ``cfg.DATASETS.REGISTER``; see :func:`register_from_config`.

    Raises:
        UserError: an item is not such a mapping.
    """
    forms = (
        {"name", "image_root", "panoptic_root", "panoptic_json"},
        {"name", "image_root", "instances_json"},
    )
    for index, item in enumerate(cfg.DATASETS.REGISTER):
        valid = isinstance(item, dict) and item.keys() in forms
        if not valid or not all(isinstance(v, str) and v for v in item.values()):
            raise UserError(
                f"DATASETS.REGISTER[{index}] is {item!r}, but must be a mapping from name, "
                "image_root, panoptic_root and panoptic_json, or from name, image_root and "
                "instances_json, to text."
            )
    return [dict(item) for item in cfg.DATASETS.REGISTER]


def register_once(
    name: str,
    loader: Callable[[], list[dict]],
    paths: dict[str, str],
    metadata: Callable[[], dict[str, Any]],
) -> None:
    """Add a panoptic set to Detectron2's two catalogs, unless it is there with the same paths.

    Args:
        name: of the set.
        loader: returns the dataset dicts.
        paths: entries of the metadata.
        metadata: returns the other entries. It is called for a new set only.

    Raises:
        UserError: another set has this name.
    """
    if name in DatasetCatalog.list():
        other = {key: MetadataCatalog.get(name).get(key) for key in paths}
        if other == paths:
            return
        raise UserError(
            f"Data set name '{name}' is already registered with {other}. Choose another name, or "
            f"call DatasetCatalog.remove('{name}') and MetadataCatalog.remove('{name}') first."
        )
    entries = metadata()
    DatasetCatalog.register(name, loader)
    MetadataCatalog.get(name).set(
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
        **paths,
        **entries,
    )
