"""Writes what a source gives as COCO panoptic: PNGs in several processes, and last the json."""

import contextlib
import functools
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from ...data.panoptic_json import read_panoptic_json, write_panoptic_json
from ...data.panoptic_png import write_panoptic_png
from ...errors import UserError
from ..parallel import map_images
from .categories import ClassOptions, choose_categories, with_stuff
from .segments import to_panoptic
from .source import Item, Labels, Source, image_size

_SAME = ("id", "name", "isthing")
# Segments of fewer pixels are counted for a hint.
TINY = 10


class Filler(Protocol):
    """Labels pixels that the data leaves unlabelled; see ``model_stuff.ModelStuff``."""

    categories: list[dict]

    def fill(self, path: Path, labels: Labels, categories: list[dict]) -> Labels:
        """Return the label map with more of it labelled."""


@dataclass(frozen=True)
class WriteOptions:
    """How a conversion is written.

    Attributes:
        copy_images: copy images into the output, else the json names those of the source.
        background: name of the stuff class that gets what is not labelled; None: void.
        min_area: segments of fewer pixels are left unlabelled.
        workers: number of processes.
    """

    copy_images: bool = False
    background: str | None = None
    min_area: int = 1
    workers: int = 1


@dataclass(frozen=True)
class Converted:
    """A split that has been written.

    Attributes:
        name: of the split.
        image_root, panoptic_root, panoptic_json: as ``register_panoptic`` takes them.
        num_images: how many.
        segments: number of segments by class name, of all classes.
        void: share of the pixels that are void.
        hidden: labelled objects that have no pixels left.
        tiny: segments of fewer than ``TINY`` pixels.
    """

    name: str
    image_root: Path
    panoptic_root: Path
    panoptic_json: Path
    num_images: int
    segments: dict[str, int]
    void: float
    hidden: int
    tiny: int


def convert(
    splits: Mapping[str, Source],
    output: Path,
    options: WriteOptions = WriteOptions(),  # noqa: B008  immutable
    classes: ClassOptions = ClassOptions(),  # noqa: B008  immutable
    filler: Filler | None = None,
) -> list[Converted]:
    """Write the splits of a data set as COCO panoptic.

    Per split there are ``panoptic_<split>/*.png`` and ``panoptic_<split>.json``, and ``<split>/``
    with the images if they are copied. All is made in a hidden folder and moved into its place at
    the end, so that a conversion that fails or is stopped leaves nothing behind. All splits have
    the same categories, and the files do not depend on the number of processes.

    Args:
        splits: name and source of each.
        output: folder; made if need be.
        options: how to write.
        classes: what the user says about classes.
        filler: labels more pixels, in this process alone.

    Raises:
        FileExistsError: ``output`` has files of these names.
        FileNotFoundError: an image is missing.
        UserError: the data does not fit together.
    """
    for name, source in splits.items():
        if not source.items:
            raise UserError(f"There are no images to convert for the split '{name}'.")
        _require_images(source)
    categories = _categories(list(splits.values()), classes, options, filler)
    targets = {p: output / p for name in splits for p in _paths(name, options.copy_images)}
    for target in targets.values():
        if target.exists():
            raise FileExistsError(
                f"'{target}' is there already. Choose another --output or --split-names, or remove "
                "it (and what belongs to it)."
            )
    _compare_with_other_splits(categories, output)
    with _hidden_folder(output / f".convert-{'-'.join(splits)}") as work:
        converted, first_id = [], 1
        for name, source in splits.items():
            converted.append(
                _write_split(name, source, categories, work, output, options, filler, first_id)
            )
            first_id += len(source.items)
        # The jsons last: what has one is whole.
        for path in sorted(targets, key=lambda path: path.endswith(".json")):
            os.replace(work / path, targets[path])
    return converted


def _paths(name: str, with_images: bool) -> list[str]:
    return [f"panoptic_{name}", f"panoptic_{name}.json", *([name] if with_images else [])]


@contextlib.contextmanager
def _hidden_folder(folder: Path) -> Iterator[Path]:
    """An empty folder for the time of a conversion; what a killed one has left is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _categories(
    sources: list[Source], classes: ClassOptions, options: WriteOptions, filler: Filler | None
) -> list[dict]:
    found = [c for source in sources for c in source.classes]
    thing_by_default = sources[0].thing_by_default
    categories = choose_categories(found, classes, thing_by_default=thing_by_default)
    if filler is not None:
        # What is a thing here is labelled: the model's stuff of that name is not needed.
        things = {c["name"] for c in categories if c["isthing"]}
        categories = with_stuff(
            categories, [c for c in filler.categories if c["name"] not in things]
        )
    if options.background is not None:
        categories = with_stuff(categories, [{"name": options.background}])
    return categories


def _compare_with_other_splits(categories: list[dict], output: Path) -> None:
    """Splits of one folder are trained and evaluated together: their classes must be the same."""
    for path in sorted(output.glob("panoptic_*.json")):
        there = read_panoptic_json(path).get("categories") or []
        old, new = ([[c.get(k) for k in _SAME] for c in some] for some in (there, categories))
        if old != new:
            raise UserError(
                f"'{path}' has other classes, {old} ({', '.join(_SAME)}), than this split: {new}. "
                f"Give --classes {path} to use those, or another --output."
            )


def _require_images(source: Source) -> None:
    missing = [i.file_name for i in source.items if not (source.image_root / i.file_name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} images are missing in '{source.image_root}', the first is "
            f"'{missing[0]}'."
        )


def _write_split(
    name: str,
    source: Source,
    categories: list[dict],
    work: Path,
    output: Path,
    options: WriteOptions,
    filler: Filler | None,
    first_id: int,
) -> Converted:
    """Write PNGs, json and perhaps images of a split into the folder ``work``."""
    names = png_names([item.file_name for item in source.items])
    function = functools.partial(
        _convert_one,
        source=Source(source.image_root, [], [], source.draw),
        categories=categories,
        png_root=work / f"panoptic_{name}",
        copy_root=work / name if options.copy_images else None,
        options=options,
        filler=filler,
    )
    results = map_images(
        function,
        list(zip(source.items, names, strict=True)),
        workers=options.workers if filler is None else 1,
        description=f"Converting {name}",
    )
    images, annotations = [], []
    for number, (item, png, (size, infos, _)) in enumerate(
        zip(source.items, names, results, strict=True), first_id
    ):
        image_id = number if item.image_id is None else item.image_id
        images.append(
            {"id": image_id, "file_name": item.file_name, "height": size[0], "width": size[1]}
        )
        annotations.append({"image_id": image_id, "file_name": png, "segments_info": infos})
    write_panoptic_json(
        work / f"panoptic_{name}.json",
        images,
        annotations,
        categories,
        info={"description": "converted by detr_panoptic_d2"},
    )
    counts = Counter(s["category_id"] for a in annotations for s in a["segments_info"])
    areas = [s["area"] for a in annotations for s in a["segments_info"]]
    return Converted(
        name=name,
        image_root=output / name if options.copy_images else source.image_root,
        panoptic_root=output / f"panoptic_{name}",
        panoptic_json=output / f"panoptic_{name}.json",
        num_images=len(images),
        segments={c["name"]: counts[c["id"]] for c in categories},
        void=1 - sum(areas) / sum(i["height"] * i["width"] for i in images),
        hidden=sum(hidden for _, _, hidden in results),
        tiny=sum(area < TINY for area in areas),
    )


def _convert_one(
    task: tuple[Item, str],
    *,
    source: Source,
    categories: list[dict],
    png_root: Path,
    copy_root: Path | None,
    options: WriteOptions,
    filler: Filler | None,
) -> tuple[tuple[int, int], list[dict], int]:
    """Write the files of one image; return its (height, width), segments and hidden objects."""
    item, png_name = task
    path = source.image_root / item.file_name
    size = image_size(path)
    labels = source.draw(item, size, {c["name"] for c in categories if c["isthing"]})
    if filler is not None:
        labels = filler.fill(path, labels, categories)
    ids, infos, hidden = to_panoptic(
        labels, categories, background=options.background, min_area=options.min_area
    )
    write_panoptic_png(png_root / png_name, ids)
    if copy_root is not None:
        target = copy_root / item.file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return size, infos, hidden


def png_names(file_names: list[str]) -> list[str]:
    """Return the name of each image's PNG, all different.

    ``a/b.jpg`` has ``a/b.png``, or ``a/b.jpg.png`` where another image would have the same.
    """
    names = [str(PurePosixPath(name).with_suffix(".png")) for name in file_names]
    while True:
        # Upper and lower case are one on some file systems.
        count = Counter(name.lower() for name in names)
        longer = [
            f"{file_name}.png" if count[name.lower()] > 1 else name
            for file_name, name in zip(file_names, names, strict=True)
        ]
        if longer == names:
            return names
        names = longer
