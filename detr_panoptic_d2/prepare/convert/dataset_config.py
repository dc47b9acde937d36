"""Write the config that names the splits of a converted data set."""

import logging
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ...config import list_config_files, merged_cfg
from ...files import atomic_file
from .writer import Converted

logger = logging.getLogger(__name__)

# Names of splits for evaluation. The first one that exists is evaluated.
_EVALUATION_NAMES = ("val", "valid", "validation", "dev", "test")
_NUM_QUERIES = "NUM_OBJECT_QUERIES"


def write_dataset_config(
    splits: Sequence[Converted], output: Path, name: str, base: str
) -> Path | None:
    """Write a config into the folder of the jsons, or add the splits to an existing one.

    Paths in the config are relative to its folder, so the folder can be moved.

    An existing config keeps everything but ``DATASETS``, ``MODEL.DETR.NUM_CLASSES`` and a number
    of queries that is too small. It is not changed if its ``DATASETS`` differ from what this
    function writes, or if it has comments, which would be lost. Then a warning shows what to add.

    Args:
        splits: as :func:`.writer.convert` or :func:`.boxes.convert_boxes` return them.
        output: folder of their jsons.
        name: prefix of the names of the data sets.
        base: path or name of the config that a new one builds on.

    Returns:
        Path | None: the config; None if it was not changed.
    """
    name = re.sub(r"\W+", "_", name).strip("_") or "mine"
    path = output / f"{name}.yaml"
    entries = [
        {"name": f"{name}_{s.name}"} | {key: _relative(p, output) for key, p in s.paths.items()}
        for s in splits
    ]
    is_packaged = base in list_config_files() and not Path(base).is_file()
    config: dict[str, Any] = {"_BASE_": base if is_packaged else _relative(base, output)}
    if path.exists():
        old = _read_if_unchanged(path, name)
        if old is None:
            datasets = yaml.safe_dump({"DATASETS": _datasets(entries, name)}, sort_keys=False)
            logger.warning(
                "'%s' was edited by hand and is not changed. Add the new splits there:\n%s",
                path,
                datasets,
            )
            return None
        config = old
        names = {entry["name"] for entry in entries}
        # The json of an old entry may have been deleted.
        kept = [
            entry
            for entry in config["DATASETS"]["REGISTER"]
            if entry["name"] not in names and (output / _json_of(entry)).is_file()
        ]
        entries = kept + entries
    detr = config.setdefault("MODEL", {}).setdefault("DETR", {})
    detr["NUM_CLASSES"] = len(splits[0].num_segments)
    default = merged_cfg(base).MODEL.DETR[_NUM_QUERIES]
    detr[_NUM_QUERIES] = max(detr.get(_NUM_QUERIES, default), num_queries(splits))
    if "instances_json" in splits[0].paths:
        # There are no masks to train on. Evaluation is box AP.
        config["MODEL"]["MASK_ON"] = False
        detr["TEST"] = {"INSTANCE_ON": True, "PANOPTIC_ON": False}
    config["DATASETS"] = _datasets(entries, name)
    with atomic_file(path) as f:
        yaml.safe_dump(config, f, sort_keys=False, allow_unicode=True)
    if config["DATASETS"]["TRAIN"] == config["DATASETS"]["TEST"]:
        _warn_of_single_split(path)
    return path


def _warn_of_single_split(path: Path) -> None:
    logger.warning(
        "There is only one split: '%s' trains and evaluates on the same images, so its figures say "
        "little. Convert with --split 0.8 0.2, or add a split by another call with --split-names "
        "val.",
        path,
    )


def num_queries(splits: Sequence[Converted]) -> int:
    """Return a number of queries for the data: half more than the most segments of an image."""
    return 10 * math.ceil(1.5 * max(split.max_segments for split in splits) / 10)


def _json_of(entry: dict[str, str]) -> str:
    return entry.get("panoptic_json") or entry["instances_json"]


def _relative(path: str | os.PathLike, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _datasets(entries: list[dict[str, str]], name: str) -> dict[str, list]:
    train, test = choose_roles([entry["name"].removeprefix(f"{name}_") for entry in entries])
    return {
        "REGISTER": entries,
        "TRAIN": [f"{name}_{split}" for split in train],
        "TEST": [f"{name}_{split}" for split in test],
    }


def choose_roles(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Choose the splits for training and the splits for evaluation.

    ``val`` (or ``valid``, ``validation``, ``dev``, else ``test``) is evaluated; splits without such
    a name are trained on. If no split, or every split, has such a name, the last one is evaluated
    and the others are trained on. A single split has both roles.
    """
    for_evaluation = [n for known in _EVALUATION_NAMES for n in names if n.lower() == known]
    for_training = [n for n in names if n not in for_evaluation]
    if for_evaluation and for_training:
        return for_training, for_evaluation[:1]
    return list(names[:-1]) or list(names), list(names[-1:])


def _read_if_unchanged(path: Path, name: str) -> dict[str, Any] | None:
    """Return the config if it can be written again; None if it was edited by hand."""
    text = path.read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text)
        is_ours = config["DATASETS"] == _datasets(config["DATASETS"]["REGISTER"], name)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None
    has_comments = any(line.lstrip().startswith("#") for line in text.splitlines())
    return config if is_ours and not has_comments else None
