"""The work of ``detr-panoptic convert``: open the inputs, convert, write the config, report."""

import argparse
import logging
import math
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ...config import get_config_file, list_config_files, merged_cfg
from ...files import atomic_file
from .classes import ClassOptions
from .inputs import open_splits
from .writer import Converted, Tiling, convert

logger = logging.getLogger(__name__)

# Names of splits for evaluation. The first one that exists is evaluated.
_EVALUATION_NAMES = ("val", "valid", "validation", "dev", "test")


def run_conversion(args: argparse.Namespace) -> int:
    """Convert a data set, print a summary and the next commands, and return the exit status.

    Args:
        args: the options of ``detr-panoptic convert FORMAT``.
    """
    get_config_file(args.base)
    name = re.sub(r"\W+", "_", args.name or args.output.resolve().name).strip("_") or "mine"
    config = args.output / f"{name}.yaml"
    if config.exists():
        raise FileExistsError(
            f"'{config}' exists already. Convert all splits in one command, into a new --output."
        )
    classes = ClassOptions(args.classes, args.things, args.stuff, args.ignore, args.background)
    tiling = None if args.tile is None else Tiling(args.tile, args.overlap)
    options = {"min_area": args.min_area, "workers": args.workers, "tiling": tiling}
    try:
        splits = convert(open_splits(args), args.output, classes, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Interrupted. Nothing was written.") from None
    _print_summary(splits, args.min_area)
    write_dataset_config(splits, config, args.base)
    path, output = shlex.quote(str(config)), shlex.quote(str(args.output))
    if splits[0].has_masks:
        print("\nCheck the result, then train:\n")
        print(f"detr-panoptic check --config-file {path} --output {output}/checked")
    else:
        print("\nBoxes alone: the config trains without masks (MODEL.MASK_ON False). Train:\n")
    print(f"detr-panoptic train --config-file {path} OUTPUT_DIR output/{name}")
    return 0


def _print_summary(splits: Sequence[Converted], min_area: int) -> None:
    what = "segments" if splits[0].has_masks else "boxes"
    for split in splits:
        counts = ", ".join(
            f"{number} {name}" for name, number in split.num_segments.items() if number
        )
        crowds = f", and {split.num_crowds} crowds" if split.num_crowds else ""
        print(f"\n{split.name}: {split.num_images} images with {what}: {counts or 'none'}{crowds}.")
        print(f"At most {split.max_segments} {what} in an image.")
        if split.num_covered:
            print(f"{split.num_covered} objects lie completely under others and are left out.")
        if split.num_small:
            print(
                f"{split.num_small} segments under {min_area} pixels are unlabelled (--min-area)."
            )
    names = splits[0].num_segments
    if unused := [name for name in names if not any(s.num_segments[name] for s in splits)]:
        print(f"\nClasses without {what}: {', '.join(unused)}.")


def write_dataset_config(splits: Sequence[Converted], path: Path, base: str) -> None:
    """Write a config that names the splits.

    Paths in the config are relative to its folder, so the folder can be moved. There are half more
    queries than the most segments of an image.

    Args:
        splits: as :func:`.writer.convert` returns them.
        path: of the config. Its stem is the prefix of the names of the data sets.
        base: path or name of the config that it builds on.
    """

    def relative(file: str | os.PathLike) -> str:
        return Path(os.path.relpath(file, path.parent)).as_posix()

    is_packaged = base in list_config_files() and not Path(base).is_file()
    default_queries = merged_cfg(base).MODEL.DETR.NUM_OBJECT_QUERIES
    num_queries = 10 * math.ceil(1.5 * max(split.max_segments for split in splits) / 10)
    detr: dict[str, Any] = {
        "NUM_CLASSES": len(splits[0].num_segments),
        "NUM_OBJECT_QUERIES": max(default_queries, num_queries),
    }
    model: dict[str, Any] = {"DETR": detr}
    if not splits[0].has_masks:
        # There are no masks to train on. Evaluation is box AP.
        model["MASK_ON"] = False
        detr["TEST"] = {"INSTANCE_ON": True, "PANOPTIC_ON": False}
    entries = [
        {"name": f"{path.stem}_{s.name}"} | {key: relative(file) for key, file in s.paths.items()}
        for s in splits
    ]
    train, test = choose_roles([split.name for split in splits])
    datasets = {
        "REGISTER": entries,
        "TRAIN": [f"{path.stem}_{split}" for split in train],
        "TEST": [f"{path.stem}_{split}" for split in test],
    }
    config = {"_BASE_": base if is_packaged else relative(base)}
    with atomic_file(path) as f:
        content = {**config, "MODEL": model, "DATASETS": datasets}
        yaml.safe_dump(content, f, sort_keys=False, allow_unicode=True)
    if train == test:
        logger.warning(
            "There is only one split: '%s' trains and evaluates on the same images, so its figures "
            "say little. Convert with --split 0.8 0.2.",
            path,
        )


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
