"""Find out which formats a folder has, and the ``detr-panoptic convert`` command for each."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...errors import UserError
from .source import IMAGE_SUFFIXES, existing_folder
from .values import read_json
from .yolo import labels_folder, read_yaml

_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
_MAX_DEPTH = 4
# Images of more colors than this are photographs.
_MAX_MASK_COLORS = 256


class Candidate(NamedTuple):
    """A format that a folder may have: in words, and as arguments of ``detr-panoptic convert``."""

    description: str
    arguments: list[str]


def detect(folder: Path) -> list[Candidate]:
    """Return the formats that a folder may have. More than one: the choice is the user's.

    Raises:
        FileNotFoundError: the folder does not exist.
        UserError: it has none of the formats, or is COCO panoptic already.
    """
    existing_folder(folder)
    jsons, errors = _read_jsons(folder)
    if panoptic := [path for path, content in jsons if _is_panoptic(content)]:
        raise UserError(
            f"'{panoptic[0]}' is in COCO panoptic format already. Name it in DATASETS.REGISTER of "
            "a config; see docs/own_data.md."
        )
    candidates = [
        *_coco(folder, jsons),
        *_yolo(folder),
        *_voc(folder),
        *_cityscapes(folder),
        *_labelme(folder, jsons),
        *_cvat(folder),
        *_label_studio(folder, jsons),
    ]
    candidates = candidates or _masks(folder)
    if not candidates and errors:
        raise errors[0]
    if not candidates:
        raise UserError(
            f"'{folder}' has no format that is known: COCO, YOLO, Pascal VOC, Cityscapes, LabelMe, "
            "CVAT for images, Label Studio, or masks beside images."
        )
    return candidates


def _files(folder: Path, suffix: str) -> list[Path]:
    paths = (
        p for p in folder.rglob(f"*{suffix}") if len(p.relative_to(folder).parts) <= _MAX_DEPTH
    )
    return sorted(
        p for p in paths if not any(s.startswith(".") for s in p.relative_to(folder).parts)
    )


def _read_jsons(folder: Path) -> tuple[list[tuple[Path, Any]], list[UserError]]:
    """Return the contents of the jsons of a folder, and the errors of the others."""
    contents, errors = [], []
    for path in _files(folder, ".json"):
        try:
            contents.append((path, read_json(path)))
        except UserError as error:
            errors.append(error)
    return contents, errors


def _has_lists(content: Any, *keys: str) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in keys)


def _is_panoptic(content: Any) -> bool:
    if not _has_lists(content, "images", "annotations", "categories"):
        return False
    return any(isinstance(a, dict) and "segments_info" in a for a in content["annotations"][:1])


def _split_of(path: Path, folder: Path) -> str:
    """Return the name of the split in a path, "" if there is none."""
    for part in reversed(path.relative_to(folder).parts):
        for word in PurePosixPath(part).stem.replace("-", "_").split("_"):
            # "train2017", "trainannot"
            name = word.lower().rstrip("0123456789").removesuffix("annot")
            if name in _SPLITS:
                return name
    return ""


def _candidate(
    description: str, format_name: str, splits: list[tuple[str, dict]], *options: str
) -> Candidate:
    """Make a candidate from (name, inputs) of each split."""
    arguments = [format_name]
    keys = dict.fromkeys(key for _, inputs in splits for key in inputs)
    for key in keys:
        paths = [str(inputs[key]) for _, inputs in splits]
        arguments += [f"--{key}", *(paths[:1] if len(set(paths)) == 1 else paths)]
    names = [name for name, _ in splits]
    if all(names) and len(set(names)) == len(names):
        arguments += ["--split-names", *names]
        description += f", splits {', '.join(names)}"
    return Candidate(description, [*arguments, *options])


def _coco(folder: Path, jsons: list[tuple[Path, Any]]) -> Iterator[Candidate]:
    splits = []
    has_segmentation = has_boxes = False
    for path, content in jsons:
        is_other = path.stem.startswith(("person_keypoints", "captions", "stuff"))
        if is_other or not _has_lists(content, "images", "annotations", "categories"):
            continue
        root = _image_root(folder, path, content["images"])
        if root is None:
            continue
        splits.append((_split_of(path, folder), {"instances": path, "images": root}))
        annotations = [a for a in content["annotations"] if isinstance(a, dict)]
        has_segmentation |= any(a.get("segmentation") for a in annotations)
        has_boxes |= any(a.get("bbox") for a in annotations)
    options = ["--boxes-only"] if has_boxes and not has_segmentation else []
    description = "COCO with boxes alone (no masks)" if options else "COCO"
    if splits:
        yield _candidate(description, "coco", splits, *options)


def _image_root(folder: Path, json_path: Path, images: list) -> Path | None:
    """Return the folder that the file names of a json are relative to."""
    names = [i["file_name"] for i in images if isinstance(i, dict) and i.get("file_name")]
    if not names or not isinstance(names[0], str):
        return None
    name = PurePosixPath(names[0].replace("\\", "/"))
    if (json_path.parent / name).is_file():
        return json_path.parent
    split = _split_of(json_path, folder)
    roots = [
        Path(*path.parts[: -len(name.parts)])
        for path in _files(folder, name.name)
        if path.parts[-len(name.parts) :] == name.parts
    ]
    # The folder of the same split first.
    return min(roots, key=lambda root: _split_of(root, folder) != split, default=None)


def _yolo(folder: Path) -> Iterator[Candidate]:
    for path in (*_files(folder, ".yaml"), *_files(folder, ".yml")):
        try:
            content = read_yaml(path)
        except UserError:
            continue
        if "names" not in content or not content.keys() & {"train", "val"}:
            continue
        splits, num_values = [], set()
        for split in ("train", "val", "test"):
            images = _yolo_images(path, content, split)
            if images is not None:
                splits.append((split, {"images": images}))
                for text in list(labels_folder(images).glob("*.txt"))[:200]:
                    lines = text.read_text(encoding="utf-8-sig").splitlines()
                    num_values |= {len(line.split()) for line in lines if line.strip()}
        if not splits:
            continue
        boxes_only = num_values == {5}
        options = ["--labels", str(path), *(["--boxes-only"] if boxes_only else [])]
        description = "YOLO with boxes alone (no masks)" if boxes_only else "YOLO segmentation"
        yield _candidate(description, "yolo", splits, *options)


def _yolo_images(path: Path, content: dict, split: str) -> Path | None:
    """Return the folder of the images of a split of a ``data.yaml``, if it exists."""
    entry = content.get(split)
    if not isinstance(entry, str):
        return None
    base = content.get("path")
    # Roboflow writes ../train/images for train/images. Paths may be of another computer.
    entry_parts = [part for part in PurePosixPath(entry).parts if part not in ("..", "/")]
    bases = [path.parent / str(base)] if isinstance(base, str) else []
    for root in (*bases, path.parent):
        for start in range(len(entry_parts)):
            images = root.joinpath(*entry_parts[start:])
            if images.is_dir():
                return images
    return None


def _voc(folder: Path) -> Iterator[Candidate]:
    for classes in (p for p in folder.rglob("SegmentationClass*") if p.is_dir()):
        root = classes.parent
        images = root / "JPEGImages"
        if not images.is_dir() or not any(classes.glob("*.png")):
            continue
        lists = [
            (name, root / f"ImageSets/Segmentation/{name}.txt") for name in ("train", "val", "test")
        ]
        lists = [(name, path) for name, path in lists if path.is_file()]
        inputs = {"images": images, "masks": classes}
        objects = root / classes.name.replace("Class", "Object")
        if objects.is_dir():
            inputs["objects"] = objects
        files = [*root.glob("labelmap.txt"), *root.glob("class_names.txt")]
        labels = str(files[0]) if files else "voc"
        splits = [(name, {**inputs, "image-lists": path}) for name, path in lists]
        yield _candidate("Pascal VOC", "class-masks", splits or [("", inputs)], "--labels", labels)


def _cityscapes(folder: Path) -> Iterator[Candidate]:
    for images in (p for p in folder.rglob("leftImg8bit") if p.is_dir()):
        splits = []
        for name in ("train", "val"):
            masks = images.parent / "gtFine" / name
            if any(masks.rglob("*_gtFine_instanceIds.png")):
                splits.append((name, {"images": images / name, "masks": masks}))
        if splits:
            yield _candidate("Cityscapes", "cityscapes", splits)


def _labelme(folder: Path, jsons: list[tuple[Path, Any]]) -> Iterator[Candidate]:
    paths = [path for path, content in jsons if _has_lists(content, "shapes")]
    if not paths:
        return
    splits = {_split_of(path, folder): path.relative_to(folder).parts[0] for path in paths}
    roots = {folder / part for part in splits.values()}
    if len(splits) > 1 and all(splits) and len(roots) == len(splits):
        inputs = [(name, {"annotations": folder / part}) for name, part in splits.items()]
        yield _candidate("LabelMe", "labelme", inputs)
    else:
        yield _candidate("LabelMe", "labelme", [("", {"annotations": folder})])


def _cvat(folder: Path) -> Iterator[Candidate]:
    for path in _files(folder, ".xml"):
        try:
            subsets = [e.get("subset") for _, e in ElementTree.iterparse(path) if e.tag == "image"]
        except ElementTree.ParseError:
            continue
        if subsets:
            images = path.parent / "images"
            inputs = {"annotations": path, "images": images if images.is_dir() else path.parent}
            names = sorted({name for name in subsets if name})
            splits = [(name, {**inputs, "subset": name}) for name in names if len(names) > 1]
            yield _candidate("CVAT for images", "cvat", splits or [("", inputs)])


def _label_studio(folder: Path, jsons: list[tuple[Path, Any]]) -> Iterator[Candidate]:
    for path, content in jsons:
        tasks = content if isinstance(content, list) else []
        if tasks and all(_has_lists(task, "annotations") and "data" in task for task in tasks):
            inputs = {"annotations": path, "images": folder}
            yield _candidate(f"Label Studio ('{path.name}')", "label-studio", [("", inputs)])


def _masks(folder: Path) -> list[Candidate]:
    """Return the formats of masks beside images, which only the user can tell apart."""
    files: dict[Path, list[Path]] = {}
    for suffix in IMAGE_SUFFIXES:
        for path in _files(folder, suffix):
            files.setdefault(path.parent, []).append(path)
    are_masks = {parent: _is_mask(paths[0]) for parent, paths in files.items()}
    splits = []
    for images in (parent for parent, is_mask in are_masks.items() if not is_mask):
        stems = [path.stem for path in files[images]]
        for masks in (parent for parent, is_mask in are_masks.items() if is_mask):
            names = [path.stem for path in files[masks]]
            num_matched = sum(any(name.startswith(stem) for name in names) for stem in stems[:50])
            same_split = _split_of(images, folder) == _split_of(masks, folder)
            if same_split and 2 * num_matched >= len(stems[:50]):
                splits.append((_split_of(images, folder), {"images": images, "masks": masks}))
                break
    if not splits:
        return []
    lists = [p for p in (*_files(folder, ".txt"), *_files(folder, ".csv")) if _is_class_list(p)]
    labels = str(lists[0]) if lists else "CLASSES.txt"
    candidates = [
        _candidate("masks with a class per pixel", "class-masks", splits, "--labels", labels),
        _candidate("masks with the number of an object per pixel", "instance-masks", splits),
    ]
    return candidates[:1] if lists else candidates


def _is_mask(path: Path) -> bool:
    with Image.open(path) as image:
        if image.format == "JPEG":
            return False
        if image.mode in ("1", "P") or image.mode.startswith("I"):
            return True
        colors = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return len(np.unique(colors, axis=0)) <= _MAX_MASK_COLORS and image.mode != "RGBA"


def _is_class_list(path: Path) -> bool:
    return any(word in path.stem.lower() for word in ("class", "label", "color", "categor"))
