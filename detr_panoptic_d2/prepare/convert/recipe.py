"""What to do with a converted data set."""

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from tabulate import tabulate

from ...checkpoint.atomic import atomic_file
from .writer import Converted

logger = logging.getLogger(__name__)


def dataset_yaml(splits: Sequence[Converted], name: str, base: str) -> str:
    """Return a config that registers the splits and names them for training and evaluation.

    The last split is for evaluation; if it is the only one, for both.

    Args:
        splits: as :func:`convert` returns them.
        name: what data set names begin with.
        base: path of the config that it builds on.
    """
    entries = [
        {
            "name": dataset_name(name, split),
            "image_root": os.path.abspath(split.image_root),
            "panoptic_root": os.path.abspath(split.panoptic_root),
            "panoptic_json": os.path.abspath(split.panoptic_json),
        }
        for split in splits
    ]
    names = [entry["name"] for entry in entries]
    config = {
        "MODEL": {"DETR": {"NUM_CLASSES": splits[0].num_classes}},
        "DATASETS": {
            "REGISTER": entries,
            "TRAIN": names[:-1] or names,
            "TEST": names[-1:],
        },
    }
    body = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000)
    return f"_BASE_: {json.dumps(os.path.abspath(base))}\n{body}"


def write_dataset_yaml(splits: Sequence[Converted], name: str, base: str) -> Path:
    """Write :func:`dataset_yaml` beside the jsons, unless the file exists: it may have been edited.

    Returns:
        Its path.
    """
    path = splits[0].panoptic_json.parent / f"{plain_name(name)}.yaml"
    text = dataset_yaml(splits, name, base)
    if not path.exists():
        with atomic_file(path) as f:
            f.write(text)
    elif path.read_text(encoding="utf-8") != text:
        logger.warning("'%s' is there already and is left as it is.", path)
    return path


def plain_name(name: str) -> str:
    """Reduce a name to letters, digits and ``_``."""
    return re.sub(r"\W+", "_", name).strip("_") or "mine"


def dataset_name(name: str, split: Converted) -> str:
    """Return the name under which a split is registered."""
    return f"{plain_name(name)}_{split.name}"


def describe(splits: Sequence[Converted]) -> str:
    """Return a table: images, segments per class and void of each split."""
    names = list(splits[0].segments)
    rows = [["images", *(s.num_images for s in splits)]]
    rows += [[f"'{n}' segments", *(s.segments[n] for s in splits)] for n in names]
    rows.append(["void pixels", *(f"{100 * s.void:.1f} %" for s in splits)])
    rows.append(["objects hidden by others", *(s.hidden for s in splits)])
    return tabulate(rows, headers=["", *(s.name for s in splits)])
