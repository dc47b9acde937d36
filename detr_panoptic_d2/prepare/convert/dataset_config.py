"""The config that names the splits of a converted data set."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ...files import atomic_file
from .writer import Converted

logger = logging.getLogger(__name__)

_PATHS = ("image_root", "panoptic_root", "panoptic_json")
# Names of splits that are for evaluation, the first that is there.
_HELD_OUT = ("val", "valid", "validation", "dev", "test")


def write_dataset_config(splits: Sequence[Converted], name: str, base: str) -> Path | None:
    """Write a config beside the jsons, or add the splits to the one that is there.

    A config that is there keeps everything but ``DATASETS`` and ``MODEL.DETR.NUM_CLASSES``. It is
    left alone if its ``DATASETS`` is not what this function would have written, or if it has
    comments, which would be lost: then a warning has what to put in, and None is returned.

    Args:
        splits: as :func:`convert` returns them.
        name: what the names of the data sets begin with.
        base: path of the config that a new one builds on.
    """
    name = re.sub(r"\W+", "_", name).strip("_") or "mine"
    path = splits[0].panoptic_json.parent / f"{name}.yaml"
    entries = [
        {"name": f"{name}_{s.name}", **{k: os.path.abspath(getattr(s, k)) for k in _PATHS}}
        for s in splits
    ]
    config: dict[str, Any] = {"_BASE_": os.path.abspath(base)}
    if path.exists():
        old = _unchanged(path, name)
        if old is None:
            logger.warning(
                "'%s' was changed by hand and is left as it is. To use the new splits, name them "
                "there:\n%s",
                path,
                yaml.safe_dump({"DATASETS": _datasets(entries, name)}, sort_keys=False),
            )
            return None
        config = old
        names = {entry["name"] for entry in entries}
        # Entries whose json was removed by hand are of the past.
        kept = [e for e in config["DATASETS"]["REGISTER"] if os.path.isfile(e["panoptic_json"])]
        entries = [entry for entry in kept if entry["name"] not in names] + entries
    config.setdefault("MODEL", {}).setdefault("DETR", {})["NUM_CLASSES"] = len(
        splits[0].num_segments
    )
    config["DATASETS"] = _datasets(entries, name)
    with atomic_file(path) as f:
        yaml.safe_dump(config, f, sort_keys=False, allow_unicode=True)
    if config["DATASETS"]["TRAIN"] == config["DATASETS"]["TEST"]:
        logger.warning(
            "There is one split only: '%s' trains and evaluates on the same images, which says "
            "little. Convert with --split 0.8 0.2, or add a split by another call with "
            "--split-names val.",
            path,
        )
    return path


def _datasets(entries: list[dict[str, str]], name: str) -> dict[str, list]:
    train, test = roles([entry["name"].removeprefix(f"{name}_") for entry in entries])
    return {
        "REGISTER": entries,
        "TRAIN": [f"{name}_{split}" for split in train],
        "TEST": [f"{name}_{split}" for split in test],
    }


def roles(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Choose the splits for training and for evaluation.

    ``val`` (or ``valid``, ``validation``, ``dev``, else ``test``) is for evaluation, what has no
    such name for training. Where names do not tell, the last one is for evaluation; if there is
    only one, it is for both.
    """
    held_out = [n for h in _HELD_OUT for n in names if n.lower() == h]
    rest = [n for n in names if n not in held_out]
    if held_out and rest:
        return rest, held_out[:1]
    return list(names[:-1]) or list(names), list(names[-1:])


def _unchanged(path: Path, name: str) -> dict[str, Any] | None:
    """Return the config if it can be written anew; None if a hand was at it."""
    text = path.read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text)
        untouched = config["DATASETS"] == _datasets(config["DATASETS"]["REGISTER"], name)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None
    has_comments = any(line.lstrip().startswith("#") for line in text.splitlines())
    return config if untouched and not has_comments else None
