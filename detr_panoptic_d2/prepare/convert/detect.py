"""Find out which formats a folder has, and the ``detr-panoptic convert`` command for each."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...errors import UserError
from .cvat import read_xml
from .source import IMAGE_SUFFIXES, find_files, log_left_out
from .values import has_lists, read_json, read_text
from .yolo import read_yaml

_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
_MAX_DEPTH = 4
# Images of more colors than this are photographs.
_MAX_MASK_COLORS = 256
# The name of a split, "" if there is none, and its inputs: the values of options.
Splits = list[tuple[str, dict[str, Any]]]


class Candidate(NamedTuple):
    """A format that a folder may have: in words, and as arguments of ``detr-panoptic convert``."""

    description: str
    arguments: list[str]


def detect(folder: Path) -> list[Candidate]:
    """Return the formats that a folder may have. More than one: the choice is the user's."""
    files = [folder / name for name in find_files(folder) if name.count("/") < _MAX_DEPTH]
    jsons, errors = [], []
    for path in _with_suffix(files, ".json"):
        try:
            jsons.append((path, read_json(path)))
        except UserError as error:
            errors.append(error)
    for path, content in jsons:
        listed = content["annotations"] if has_lists(content, "images", "annotations") else []
        if listed and isinstance(listed[0], dict) and "segments_info" in listed[0]:
            raise UserError(
                f"'{path}' is in COCO panoptic format already. Name it in DATASETS.REGISTER of a "
                "config; see docs/own_data.md."
            )
    candidates = [
        *_coco(folder, files, jsons),
        *_yolo(files),
        *_voc(folder),
        *_cityscapes(folder),
        *_labelme(folder, jsons),
        *_cvat(files),
        *_label_studio(folder, jsons),
    ]
    candidates = candidates or _masks(folder, files)
    if not candidates:
        raise UserError(
            f"'{folder}' has no known format: COCO, YOLO, Pascal VOC, Cityscapes, LabelMe, "
            "CVAT for images, Label Studio, or masks beside images."
            + "".join(f" {error}" for error in errors[:1])
        )
    return candidates


def _candidate(description: str, format_name: str, splits: Splits, *options: str) -> Candidate:
    arguments = [format_name]
    for key in dict.fromkeys(key for _, inputs in splits for key in inputs):
        values = [str(inputs[key]) for _, inputs in splits]
        arguments += [f"--{key}", *(values[:1] if len(set(values)) == 1 else values)]
    names = [name for name, _ in splits]
    if all(names) and len(set(names)) == len(names):
        arguments += ["--split-names", *names]
        description += f", splits {', '.join(names)}"
    return Candidate(description, [*arguments, *options])


def _with_suffix(files: list[Path], *suffixes: str) -> list[Path]:
    return [path for path in files if path.suffix.lower() in suffixes]


def _split_of(path: Path, folder: Path) -> str:
    """Return the name of the split in a path, "" if there is none."""
    for part in reversed(path.relative_to(folder).parts):
        for word in PurePosixPath(part).stem.replace("-", "_").split("_"):
            # "train2017", "trainannot"
            name = word.lower().rstrip("0123456789").removesuffix("annot")
            if name in _SPLITS:
                return name
    return ""


def _coco(folder: Path, files: list[Path], jsons: list[tuple[Path, Any]]) -> Iterator[Candidate]:
    splits: Splits = []
    for path, content in jsons:
        instances = path.with_name(path.name.replace("person_keypoints", "instances"))
        is_other = path.stem.startswith(("captions", "stuff"))
        is_other |= instances != path and instances.is_file()
        if is_other or not has_lists(content, "images", "annotations", "categories"):
            continue
        names = [i.get("file_name") for i in content["images"] if isinstance(i, dict)]
        if names and isinstance(names[0], str):
            split = _split_of(path, folder)
            parts = PurePosixPath(names[0].replace("\\", "/")).parts
            # The folders that the file names may be relative to; the one of the json, and those of
            # the same split, first.
            roots = [path.parent] if path.parent.joinpath(*parts).is_file() else []
            found = [
                Path(*p.parts[: -len(parts)]) for p in files if p.parts[-len(parts) :] == parts
            ]
            roots += sorted(found, key=lambda root: _split_of(root, folder) != split)
            splits += [(split, {"instances": path, "images": root}) for root in roots[:1]]
    if splits:
        yield _candidate("COCO", "coco", splits)


def _yolo(files: list[Path]) -> Iterator[Candidate]:
    for path in _with_suffix(files, ".yaml", ".yml"):
        try:
            content = read_yaml(path)
        except UserError:
            continue
        if "names" in content:
            splits: Splits = [(split, _yolo_inputs(path, content, split)) for split in _SPLITS]
            missing = [split for split, inputs in splits if not inputs and content.get(split)]
            log_left_out("splits without images", [f"'{path}': '{split}'" for split in missing])
            splits = [(split, inputs) for split, inputs in splits if inputs]
            # Folders or lists, as the first split has.
            splits = [s for s in splits if s[1].keys() == splits[0][1].keys()]
            if splits:
                yield _candidate("YOLO", "yolo", splits, "--labels", str(path))


def _yolo_inputs(path: Path, content: dict, split: str) -> dict[str, Path]:
    """Return the folder of the images of a split of a ``data.yaml``, or a list of them."""
    entry, base = content.get(split), content.get("path")
    if isinstance(entry, list):
        raise UserError(
            f"'{path}': '{split}' is a list. Name one folder, or a text file with the images."
        )
    # Roboflow writes ../train/images for train/images. Paths may be of another computer.
    parts = [part for part in PurePosixPath(str(entry or "")).parts if part not in ("..", "/")]
    for root in ([path.parent / base] if isinstance(base, str) else []) + [path.parent]:
        for start in range(len(parts)):
            found = root.joinpath(*parts[start:])
            if found.is_dir():
                return {"images": found}
            if found.suffix == ".txt" and found.is_file():
                return {"images": found.parent, "image-lists": found}
    return {}


def _voc(folder: Path) -> Iterator[Candidate]:
    for classes in (p for p in folder.rglob("SegmentationClass*") if p.is_dir()):
        root = classes.parent
        inputs = {"images": root / "JPEGImages", "masks": classes}
        if inputs["images"].is_dir() and any(classes.glob("*.png")):
            objects = root / classes.name.replace("Class", "Object")
            inputs |= {"objects": objects} if objects.is_dir() else {}
            lists = [root / f"ImageSets/Segmentation/{name}.txt" for name in _SPLITS]
            # The list of a split may be there without its masks.
            masks = {mask.stem for mask in classes.glob("*.png")}
            lists = [p for p in lists if p.is_file() and masks & set(read_text(p).split())]
            splits: Splits = [(path.stem, {**inputs, "image-lists": path}) for path in lists]
            labels = [*root.glob("labelmap.txt"), *root.glob("class_names.txt"), "voc"][0]
            options = ["--labels", str(labels)]
            yield _candidate("Pascal VOC", "class-masks", splits or [("", inputs)], *options)


def _cityscapes(folder: Path) -> Iterator[Candidate]:
    for images in (p for p in folder.rglob("leftImg8bit") if p.is_dir()):
        folders = [(name, images.parent / "gtFine" / name) for name in ("train", "val")]
        splits: Splits = [
            (name, {"images": images / name, "masks": masks})
            for name, masks in folders
            if any(masks.rglob("*_gtFine_instanceIds.png"))
        ]
        if splits:
            yield _candidate("Cityscapes", "cityscapes", splits)


def _labelme(folder: Path, jsons: list[tuple[Path, Any]]) -> Iterator[Candidate]:
    paths = [path for path, content in jsons if has_lists(content, "shapes")]
    if not paths:
        return
    parts = {_split_of(path, folder): path.relative_to(folder).parts[0] for path in paths}
    splits: Splits = [(name, {"annotations": folder / part}) for name, part in parts.items()]
    are_folders = len(splits) > 1 and all(parts) and len(set(parts.values())) == len(parts)
    yield _candidate(
        "LabelMe", "labelme", splits if are_folders else [("", {"annotations": folder})]
    )


def _cvat(files: list[Path]) -> Iterator[Candidate]:
    for path in _with_suffix(files, ".xml"):
        try:
            subsets = [image.get("subset") for image in read_xml(path).iter("image")]
        except UserError:
            continue
        if subsets:
            images = path.parent / "images"
            inputs = {"annotations": path, "images": images if images.is_dir() else path.parent}
            names = sorted({name for name in subsets if name})
            splits: Splits = [
                (name, {**inputs, "subset": name}) for name in names if len(names) > 1
            ]
            yield _candidate("CVAT for images", "cvat", splits or [("", inputs)])


def _label_studio(folder: Path, jsons: list[tuple[Path, Any]]) -> Iterator[Candidate]:
    for path, content in jsons:
        tasks = content if isinstance(content, list) else []
        if tasks and all(has_lists(task, "annotations") and "data" in task for task in tasks):
            splits: Splits = [("", {"annotations": path, "images": folder})]
            yield _candidate(f"Label Studio ('{path.name}')", "label-studio", splits)


def _masks(folder: Path, files: list[Path]) -> list[Candidate]:
    """Return the formats of masks beside images, which only the user can tell apart."""
    pictures: dict[Path, list[Path]] = {}
    for path in _with_suffix(files, *IMAGE_SUFFIXES):
        pictures.setdefault(path.parent, []).append(path)
    are_masks = {parent: _is_mask(paths[0]) for parent, paths in pictures.items()}
    splits: Splits = []
    for images in (parent for parent, is_mask in are_masks.items() if not is_mask):
        split = _split_of(images, folder)
        stems = [path.stem for path in pictures[images][:50]]
        for masks in (parent for parent, is_mask in are_masks.items() if is_mask):
            names = [path.stem for path in pictures[masks]]
            num_matched = sum(any(name.startswith(stem) for name in names) for stem in stems)
            if _split_of(masks, folder) == split and 2 * num_matched >= len(stems):
                splits.append((split, {"images": images, "masks": masks}))
                break
    if not splits:
        return []
    words = ("class", "label", "color", "categor")
    lists = [
        p for p in _with_suffix(files, ".txt", ".csv") if any(w in p.stem.lower() for w in words)
    ]
    labels = str(lists[0]) if lists else "CLASSES.txt"
    candidates = [
        _candidate("masks with a class per pixel", "class-masks", splits, "--labels", labels),
        _candidate("masks with the number of an object per pixel", "instance-masks", splits),
    ]
    return candidates[:1] if lists else candidates


def _is_mask(path: Path) -> bool:
    with Image.open(path) as image:
        if image.format == "JPEG" or image.mode == "RGBA":
            return False
        if image.mode in ("1", "P") or image.mode.startswith("I"):
            return True
        colors = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return len(np.unique(colors, axis=0)) <= _MAX_MASK_COLORS
