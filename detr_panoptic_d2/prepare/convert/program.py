"""The work of ``detr-panoptic convert``: open the inputs, convert, write the config, report."""

import argparse
import logging
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from ...config import get_config_file, list_config_files, merged_cfg
from ...errors import UserError
from ...files import atomic_file
from .classes import ClassOptions
from .coco import coco_instances
from .cvat import cvat
from .label_studio import label_studio
from .labelme import labelme
from .mask_folders import cityscapes, class_masks, instance_masks
from .source import Source, find_images, log_left_out
from .values import read_text
from .writer import Converted, convert
from .yolo import yolo

logger = logging.getLogger(__name__)

# Readers raise FileNotFoundError for missing files, and UserError for invalid ones.
FORMATS = {
    "coco": coco_instances,
    "instance-masks": instance_masks,
    "class-masks": class_masks,
    "labelme": labelme,
    "cvat": cvat,
    "yolo": yolo,
    "label-studio": label_studio,
    "cityscapes": cityscapes,
}
# Options of the readers that may have a value per split, and those that have one value.
_INPUTS = ("images", "masks", "objects", "instances", "semantic", "annotations", "subset")
_OPTIONS = ("labels", "mask_suffix", "void_value", "category")
# Names of splits for evaluation. The first one that exists is evaluated.
_EVALUATION_NAMES = ("val", "valid", "validation", "dev", "test")


def run_conversion(args: argparse.Namespace) -> int:
    """Convert a dataset, print a summary and the next commands, and return the exit status."""
    get_config_file(args.base)
    name = re.sub(r"\W+", "_", args.name or args.output.resolve().name).strip("_") or "mine"
    config = args.output / f"{name}.yaml"
    if config.exists():
        raise FileExistsError(
            f"'{config}' exists already. Convert all splits in one command, into a new --output."
        )
    classes = ClassOptions(args.classes, args.things, args.stuff, args.ignore, args.background)
    tiling = None if args.tile is None else (args.tile, args.overlap)
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


def open_splits(args: argparse.Namespace) -> dict[str, Source]:
    """Open data that come in splits, or divide data that do not. Warn of what is left out."""
    values = vars(args)
    inputs = {key: values[key] for key in _INPUTS if values.get(key)}
    options = {key: values[key] for key in _OPTIONS if key in values}
    fractions, lists = args.split, args.image_lists
    count = max(len(paths) for paths in (*inputs.values(), lists))
    if any(len(paths) not in (1, count) for paths in inputs.values()):
        counts = ", ".join(f"--{key} {len(paths)}" for key, paths in inputs.items())
        raise UserError(f"Each input needs one path, or one path per split ({counts}).")
    if fractions and count > 1:
        raise UserError("--split divides a single input, but there is one input per split.")
    names = _split_names(args.split_names, len(fractions) if fractions else count)
    sources = [
        FORMATS[args.format](**{key: p[n % len(p)] for key, p in inputs.items()}, **options)
        for n in range(count)
    ]
    _log_unused_images(sources)
    if lists:
        sources = [_select(s, path) for s, path in zip(sources, lists, strict=True)]
    if fractions:
        return split_randomly(sources[0], dict(zip(names, fractions, strict=True)), args.seed)
    return dict(zip(names, sources, strict=True))


def _split_names(names: Sequence[str] | None, count: int) -> Sequence[str]:
    names = names or ["train", "val", "test", *(f"split{n}" for n in range(4, count + 1))][:count]
    if len(names) != count:
        raise UserError(
            f"--split-names has {len(names)} names, but the inputs or fractions of --split make "
            f"{count} splits."
        )
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name) or names.count(name) > 1:
            raise UserError(
                f"Split name {name!r} must be unique and have only letters, digits, '_' and '-', "
                "because it becomes part of file names."
            )
    return names


def _select(source: Source, image_list: Path) -> Source:
    """Keep the images of a list: paths or names, with or without the suffix of the image."""

    def tails(path: PurePosixPath) -> set[str]:
        return {"/".join(path.parts[start:]) for start in range(len(path.parts))}

    text = read_text(image_list).replace("\\", "/")
    paths = {PurePosixPath(line.strip()) for line in text.splitlines() if line.strip()}
    listed, listed_tails = set(map(str, paths)), set().union(*map(tails, paths))

    def is_listed(path: PurePosixPath) -> bool:
        return str(path) in listed_tails or bool(tails(path) & listed)

    names = [PurePosixPath(item.file_name) for item in source.items]
    items = [
        item
        for item, name in zip(source.items, names, strict=True)
        if is_listed(name) or is_listed(name.with_suffix(""))
    ]
    return replace(source, items=items)


def _log_unused_images(sources: Sequence[Source]) -> None:
    used = {source.image_root / item.file_name for source in sources for item in source.items}
    roots = sorted({source.image_root for source in sources})
    paths = [root / name for root in roots for name in find_images(root)]
    log_left_out("images without an annotation", [path for path in paths if path not in used])


def split_randomly(source: Source, fractions: Mapping[str, float], seed: int) -> dict[str, Source]:
    """Divide the images of a source randomly; ``fractions`` are by split name.

    The split depends on the names of the images and the seed alone.
    """
    values = np.array(list(fractions.values()))
    if (values <= 0).any() or abs(values.sum() - 1) > 1e-6:
        raise UserError(f"--split {values.tolist()}: fractions must be positive and add up to 1.")
    items = sorted(source.items, key=lambda item: item.file_name)
    ends = np.rint(np.cumsum(values) * len(items)).astype(int)
    if (np.diff(ends, prepend=0) == 0).any():
        raise UserError(f"--split {values.tolist()} of {len(items)} images leaves a split empty.")
    parts = np.split(np.random.default_rng(seed).permutation(len(items)), ends[:-1])
    return {
        name: replace(source, items=[items[i] for i in np.sort(part)])
        for name, part in zip(fractions, parts, strict=True)
    }


def _print_summary(splits: Sequence[Converted], min_area: int) -> None:
    what = "segments" if splits[0].has_masks else "boxes"
    for split in splits:
        counts = ", ".join(
            f"{number} {name}" for name, number in split.num_segments.items() if number
        )
        crowds = f", and {split.num_crowds} crowds" if split.num_crowds else ""
        print(f"\n{split.name}: {split.num_images} images with {what}: {counts or 'none'}{crowds}.")
        print(f"At most {split.max_segments} {what} in an image.")
        if split.num_dropped:
            reason = f"lie completely under others, or are under {min_area} pixels (--min-area)"
            print(f"{split.num_dropped} objects are left out: they {reason}.")
    names = splits[0].num_segments
    if unused := [name for name in names if not any(s.num_segments[name] for s in splits)]:
        print(f"\nClasses without {what}: {', '.join(unused)}.")


def write_dataset_config(splits: Sequence[Converted], path: Path, base: str) -> None:
    """Write a config that names the splits and builds on the config ``base``.

    Paths in the config are relative to its folder, so the folder can be moved. There are half more
    queries than the most segments of an image. The stem is the prefix of the datasets' names.
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
            "There is only one split: '%s' trains and evaluates on the same images, so its PQ "
            "does not tell how good the model is on other images. Convert with --split 0.8 0.2.",
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
