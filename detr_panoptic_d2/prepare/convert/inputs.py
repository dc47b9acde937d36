"""Open the inputs of a conversion: one source per split."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from ...errors import UserError
from .coco import coco_instances
from .cvat import cvat
from .label_studio import label_studio
from .labelme import labelme
from .mask_folders import cityscapes, class_masks, instance_masks
from .source import Source, find_images, log_left_out
from .yolo import yolo

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


def open_splits(args: argparse.Namespace) -> dict[str, Source]:
    """Open data that come in splits, or divide data that do not. Warn of what is left out.

    Args:
        args: the options of ``detr-panoptic convert FORMAT``.

    Raises:
        UserError: inputs, names and fractions do not fit; or see the function of the format.
        OSError: an input is missing or cannot be read.
    """
    values = vars(args)
    inputs = {key: values[key] for key in _INPUTS if values.get(key)}
    options = {key: values[key] for key in _OPTIONS if key in values}
    fractions, lists = args.split, args.image_lists
    count = max(len(paths) for paths in (*inputs.values(), lists))
    if any(len(paths) not in (1, count) for paths in inputs.values()):
        counts = ", ".join(f"--{key} {len(paths)}" for key, paths in inputs.items())
        raise UserError(f"Each input needs one path, or one for each split ({counts}).")
    if fractions and count > 1:
        raise UserError("--split divides one input, but each split has an input of its own.")
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
            f"{len(names)} --split-names need as many inputs, or fractions after --split; there is "
            f"{count}."
        )
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name) or names.count(name) > 1:
            raise UserError(
                f"Split name {name!r} must be unique and have letters, digits, '_' and '-' alone, "
                "because it becomes part of file names."
            )
    return names


def _select(source: Source, image_list: Path) -> Source:
    """Keep the images of a list: paths or names, with or without the suffix of the image."""

    def tails(path: PurePosixPath) -> set[str]:
        return {"/".join(path.parts[start:]) for start in range(len(path.parts))}

    text = image_list.read_text(encoding="utf-8-sig").replace("\\", "/")
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
