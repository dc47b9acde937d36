"""Writes what a source gives as COCO panoptic: PNGs in several processes, and last the json."""

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ...data.panoptic_json import read_panoptic_json, write_panoptic_json
from ...data.panoptic_png import write_panoptic_png
from ...errors import UserError
from ..parallel import map_images
from .categories import ClassOptions, choose_categories
from .segments import to_panoptic
from .source import Item, Size, Source, check_size, log_left_out, upright_size
from .values import errors_in


@dataclass(frozen=True)
class Converted:
    """A split that has been written; the paths are as ``register_panoptic`` takes them."""

    name: str
    image_root: Path
    panoptic_root: Path
    panoptic_json: Path
    num_images: int
    num_segments: dict[str, int]  # by class name, of all classes
    num_covered: int  # objects that lie completely under others
    num_small: int  # segments of fewer pixels than --min-area


class _WrittenImage(NamedTuple):
    size: Size
    segments_info: list[dict]
    num_covered: int
    num_small: int
    lost: list[str]


def convert(
    splits: Mapping[str, Source],
    output: Path,
    classes: ClassOptions = ClassOptions(),  # noqa: B008  immutable
    *,
    min_area: int = 1,
    workers: int = 1,
) -> list[Converted]:
    """Write ``panoptic_<split>/*.png`` and ``panoptic_<split>.json`` of each split.

    All is made in a hidden folder and moved into its place at the end, so that a conversion that
    fails or is stopped leaves nothing behind. All splits have the same categories, and the files do
    not depend on the number of processes.

    Args:
        splits: name and source of each.
        output: folder; made if need be.
        classes: what the user says about classes.
        min_area: segments of fewer pixels are left unlabelled.
        workers: number of processes.

    Raises:
        FileExistsError: ``output`` has files of these names.
        FileNotFoundError: an image is missing.
        UserError: the data does not fit together.
    """
    for name, source in splits.items():
        if not source.items:
            raise UserError(f"There are no images to convert for the split '{name}'.")
        paths = [source.image_root / item.file_name for item in source.items]
        if missing := [path for path in paths if not path.is_file()]:
            raise FileNotFoundError(
                f"{len(missing)} images are missing, the first is '{missing[0]}'."
            )
    found = [c for source in splits.values() for c in source.classes]
    categories = choose_categories(found, classes)
    # The jsons last: what has one is whole.
    parts = [f"panoptic_{name}{end}" for end in ("", ".json") for name in splits]
    for part in parts:
        if (output / part).exists():
            raise FileExistsError(
                f"'{output / part}' is there already. Choose another --output or --split-names, or "
                "remove it (and what belongs to it)."
            )
    _compare_with_other_splits(categories, output)
    convert_image = partial(
        _convert_image, categories=categories, background=classes.background, min_area=min_area
    )
    with _hidden_folder(output / f".convert-{'-'.join(splits)}") as work:
        converted = []
        for name, source in splits.items():
            pngs = png_names([item.file_name for item in source.items])
            tasks = [
                (source.image_root / item.file_name, item, work / f"panoptic_{name}" / png)
                for item, png in zip(source.items, pngs, strict=True)
            ]
            written = map_images(
                convert_image, tasks, workers=workers, description=f"Converting {name}"
            )
            _write_json(source, pngs, written, categories, work / f"panoptic_{name}.json")
            lost = [place for image in written for place in image.lost]
            log_left_out("annotations without a single pixel in their image", lost)
            converted.append(_summarize(name, source, written, categories, output))
        for part in parts:
            os.replace(work / part, output / part)
    return converted


@contextlib.contextmanager
def _hidden_folder(folder: Path) -> Iterator[Path]:
    """An empty folder for the time of a conversion; what a killed one has left is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _compare_with_other_splits(categories: list[dict], output: Path) -> None:
    """Splits of one folder are trained and evaluated together: their classes must be the same."""
    new = [(c["id"], c["name"], c["isthing"]) for c in categories]
    for path in sorted(output.glob("panoptic_*.json")):
        listed = read_panoptic_json(path).get("categories") or []
        old = [(c.get("id"), c.get("name"), c.get("isthing")) for c in listed]
        if old != new:
            raise UserError(
                f"'{path}' has other classes (id, name, isthing), {old}, than this split: {new}. "
                f"Give --classes {path} to use those, or another --output."
            )


def _convert_image(
    task: tuple[Path, Item, Path], *, categories: list[dict], background: str | None, min_area: int
) -> _WrittenImage:
    """Write the PNG of one image."""
    path, item, png = task
    size = upright_size(path)
    if item.size is not None:
        with errors_in(f"The annotation of '{path}'"):
            check_size(item.size, size)
    labels = item.draw(size, {c["name"] for c in categories if c["isthing"]})
    panoptic = to_panoptic(labels, categories, background=background, min_area=min_area)
    write_panoptic_png(png, panoptic.ids)
    return _WrittenImage(size, *panoptic[1:], labels.lost)


def _write_json(
    source: Source,
    pngs: Sequence[str],
    written: Sequence[_WrittenImage],
    categories: list[dict],
    path: Path,
) -> None:
    """Write the json of a split."""
    images, annotations = [], []
    for number, (item, png, result) in enumerate(zip(source.items, pngs, written, strict=True), 1):
        image_id = number if item.image_id is None else item.image_id
        height, width = result.size
        image = {"id": image_id, "file_name": item.file_name, "height": height, "width": width}
        images.append(image)
        annotations.append(
            {"image_id": image_id, "file_name": png, "segments_info": result.segments_info}
        )
    info = {"description": "converted by detr_panoptic_d2"}
    write_panoptic_json(path, images, annotations, categories, info=info)


def _summarize(
    name: str,
    source: Source,
    written: Sequence[_WrittenImage],
    categories: list[dict],
    output: Path,
) -> Converted:
    counts = Counter(s["category_id"] for image in written for s in image.segments_info)
    return Converted(
        name=name,
        image_root=source.image_root,
        panoptic_root=output / f"panoptic_{name}",
        panoptic_json=output / f"panoptic_{name}.json",
        num_images=len(written),
        num_segments={c["name"]: counts[c["id"]] for c in categories},
        num_covered=sum(image.num_covered for image in written),
        num_small=sum(image.num_small for image in written),
    )


def png_names(file_names: list[str]) -> list[str]:
    """Return the name of each image's PNG: that of the image, with its suffix if need be."""
    names = [str(PurePosixPath(name).with_suffix(".png")) for name in file_names]
    # Upper and lower case are one on some file systems.
    if len({name.lower() for name in names}) == len(names):
        return names
    return [f"{name}.png" for name in file_names]
