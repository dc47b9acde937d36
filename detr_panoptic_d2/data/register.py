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

_FORMS = (
    {"name", "image_root", "panoptic_root", "panoptic_json"},
    {"name", "image_root", "instances_json"},
)


def register_panoptic(
    name: str,
    image_root: str | os.PathLike,
    panoptic_root: str | os.PathLike,
    panoptic_json: str | os.PathLike,
) -> None:
    """Register a dataset in COCO panoptic format for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    The json is read and checked immediately. The list of images is built on first use. A second
    registration with the same arguments does nothing.

    Args:
        name: of the dataset.
        image_root: folder of the images. The names in the json's ``images`` are relative to it.
        panoptic_root: folder of the panoptic PNGs.
        panoptic_json: annotation file. Its ``categories`` need ``id``, ``name`` and ``isthing``;
            ``color`` is optional.

    Raises:
        FileNotFoundError: a file or folder is missing.
        UserError: the json is not in the format, or another dataset has the name.
    """
    roots = {"image_root": image_root, "panoptic_root": panoptic_root}
    items = {**roots, "panoptic_json": panoptic_json}.items()
    paths = {key: os.path.expanduser(os.fspath(path)) for key, path in items}

    def read_metadata() -> dict[str, Any]:
        for key in roots:
            if not PathManager.isdir(paths[key]):
                raise FileNotFoundError(f"Dataset '{name}': {key} '{paths[key]}' is not a folder.")
        categories = read_valid_content(**paths).categories
        return panoptic_metadata(list(categories.values()), paths["panoptic_json"])

    register_once(name, functools.partial(load_panoptic_json, **paths), paths, read_metadata)


def register_from_config(cfg: CfgNode) -> None:
    """Register every item of ``cfg.DATASETS.REGISTER``.

    An item is a mapping with the arguments of :func:`register_panoptic`, or for boxes alone with
    name, image_root and instances_json (a COCO instances json)::

        DATASETS:
          REGISTER:
            - {name: mine_train, image_root: mine/train, panoptic_root: mine/panoptic_train,
               panoptic_json: mine/panoptic_train.json}
          TRAIN: ("mine_train",)
    """
    for item in registered_items(cfg):
        if "panoptic_json" in item:
            register_panoptic(**item)
            continue
        name, path = item["name"], item["instances_json"]
        if not PathManager.isfile(path):
            raise FileNotFoundError(f"'{path}' does not exist.")
        if not _is_registered(name, {"json_file": path}):
            register_coco_instances(name, {}, path, item["image_root"])


def registered_items(cfg: CfgNode) -> list[dict[str, str]]:
    """Return the items of ``cfg.DATASETS.REGISTER``; a ``UserError`` if one has another form."""
    for index, item in enumerate(cfg.DATASETS.REGISTER):
        valid = isinstance(item, dict) and item.keys() in _FORMS
        if not valid or not all(isinstance(v, str) and v for v in item.values()):
            raise UserError(
                f"DATASETS.REGISTER[{index}] is {item!r}, but must be a mapping with the keys "
                "name, image_root, panoptic_root and panoptic_json, or name, image_root and "
                "instances_json. All values must be text."
            )
    return [dict(item) for item in cfg.DATASETS.REGISTER]


def register_once(
    name: str,
    loader: Callable[[], list[dict]],
    paths: dict[str, str],
    read_metadata: Callable[[], dict[str, Any]],
) -> None:
    """Add a panoptic dataset to Detectron2's two catalogs; nothing is done if it is there already.

    Its metadata are ``paths`` and what ``read_metadata`` returns. ``read_metadata`` is called only
    for a new dataset.
    """
    if _is_registered(name, paths):
        return
    entries = {**paths, **read_metadata(), "evaluator_type": "coco_panoptic_seg"}
    DatasetCatalog.register(name, loader)
    MetadataCatalog.get(name).set(ignore_label=255, label_divisor=1000, **entries)


def _is_registered(name: str, entries: dict[str, str]) -> bool:
    """Return whether a dataset has this name; a ``UserError`` if its metadata have other
    entries."""
    if name not in DatasetCatalog.list():
        return False
    other = {key: MetadataCatalog.get(name).get(key) for key in entries}
    if other != entries:
        raise UserError(
            f"Dataset name '{name}' is already registered with {other}. Choose another name, or "
            f"call DatasetCatalog.remove('{name}') and MetadataCatalog.remove('{name}') first."
        )
    return True
