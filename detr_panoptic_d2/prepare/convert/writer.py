"""Write sources as COCO panoptic: the PNGs in several processes, and last the json."""

import contextlib
import glob
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ...data.dataset_mapper import is_target
from ...data.panoptic_json import read_panoptic_json, write_panoptic_json
from ...data.panoptic_png import write_panoptic_png
from ...errors import UserError
from ..parallel import map_images
from .categories import ClassOptions, choose_categories
from .segments import to_panoptic
from .source import (
    Item,
    Size,
    Source,
    check_size,
    existing_folder,
    log_left_out,
    logger,
    upright_size,
)
from .values import errors_in


@dataclass(frozen=True)
class Converted:
    """A split that was written. ``paths`` are those of an item of ``DATASETS.REGISTER``."""

    name: str
    paths: dict[str, Path]
    num_images: int
    num_segments: dict[str, int]  # by class name, of all classes, without crowds
    num_crowds: int
    max_segments: int  # of one image, without crowds
    num_covered: int = 0  # objects that lie completely under others
    num_small: int = 0  # segments of fewer pixels than --min-area


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

    All files are made in a hidden folder and moved into place at the end, so that a conversion
    that fails or is interrupted leaves nothing behind. All splits have the same categories. The
    files do not depend on the number of processes.

    Args:
        splits: name and source of each.
        output: folder; created if it does not exist.
        classes: options of the user about classes.
        min_area: segments of fewer pixels become unlabelled.
        workers: number of processes.

    Raises:
        FileExistsError: ``output`` has files of these names.
        FileNotFoundError: an image is missing.
        UserError: the data is inconsistent, or has not a single segment.
    """
    for name, source in splits.items():
        check_images(name, source)
    categories = choose_categories([c for s in splits.values() for c in s.classes], classes)
    # The jsons are last: a split that has one is complete.
    parts = [f"panoptic_{name}{end}" for end in ("", ".json") for name in splits]
    check_new(output, parts)
    compare_with_other_splits(categories, output, "panoptic_*.json")
    convert_image = partial(
        _convert_image, categories=categories, background=classes.background, min_area=min_area
    )
    with hidden_folder(output, "-".join(splits)) as work:
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
            boxes = [box.where for item in source.items for box in item.boxes]
            log_left_out("boxes without a segmentation", boxes)
            log_left_out("annotations without a single pixel in their image", lost)
            converted.append(_summarize(name, source, written, categories, output))
        _check_segments(splits, converted, classes.background)
        for part in parts:
            os.replace(work / part, output / part)
    return converted


def check_images(name: str, source: Source) -> None:
    """Check that a split has images, and that they exist.

    Raises:
        FileNotFoundError: an image is missing. The message names the subfolder that has it.
        UserError: there are no images.
    """
    if not source.items:
        raise UserError(f"There are no images to convert for the split '{name}'.")
    root = existing_folder(source.image_root)
    missing = [item.file_name for item in source.items if not (root / item.file_name).is_file()]
    if not missing:
        return
    name = PurePosixPath(missing[0])
    # The same path may exist below a subfolder.
    paths = (path.relative_to(root) for path in sorted(root.rglob(glob.escape(name.name))))
    folders = [root.joinpath(*p.parts[: -len(name.parts)]) for p in paths if p.match(str(name))]
    hint = f" It is in '{folders[0]}': give --images {folders[0]}." if folders else ""
    raise FileNotFoundError(
        f"{len(missing)} images are missing, the first is '{root / name}'.{hint}"
    )


def check_new(output: Path, parts: Sequence[str]) -> None:
    """Raise ``FileExistsError`` if a file or folder of these names exists in the output folder."""
    for part in parts:
        if (output / part).exists():
            raise FileExistsError(
                f"'{output / part}' exists already. Choose another --output or --split-names, or "
                "remove it with the other files of its split."
            )


@contextlib.contextmanager
def hidden_folder(output: Path, name: str) -> Iterator[Path]:
    """Make an empty folder in ``output`` for the time of a conversion.

    Left by an exception, it also removes ``output`` and its parents as far as it created them.
    """
    created = [folder for folder in (output, *output.parents) if not folder.exists()]
    folder = output / f".convert-{name}"
    # A conversion that was killed may have left one.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in created:
            # Another program may have written there.
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _check_segments(
    splits: Mapping[str, Source], converted: Sequence[Converted], background: str | None
) -> None:
    """Check that there are segments beside the background. Warn if a split has none to learn.

    Raises:
        UserError: there is not a single segment.
    """
    num_segments = 0
    for split in converted:
        num_targets = sum(n for name, n in split.num_segments.items() if name != background)
        num_segments += num_targets + split.num_crowds
        if not num_targets:
            reason = "crowds alone" if split.num_crowds else "not a single segment"
            logger.warning("The split '%s' has %s: nothing can be learnt.", split.name, reason)
    if num_segments:
        return
    num_images = sum(split.num_images for split in converted)
    num_boxes = sum(len(item.boxes) for source in splits.values() for item in source.items)
    if num_boxes:
        raise UserError(
            f"Not a single segment in {num_images} images: the {num_boxes} annotations are boxes "
            "without a segmentation. --boxes-only converts boxes, to train without masks."
        )
    raise UserError(
        f"Not a single segment in {num_images} images. Check the annotations, and the list of "
        "classes of masks."
    )


def compare_with_other_splits(categories: list[dict], output: Path, pattern: str) -> None:
    """Check that the splits of a folder, which are used together, have the same classes."""
    new = [(c["id"], c["name"], c.get("isthing")) for c in categories]
    for path in sorted(output.glob(pattern)):
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
    segments = [s for image in written for s in image.segments_info]
    counts = Counter(s["category_id"] for s in segments if is_target(s))
    return Converted(
        name=name,
        paths={
            "image_root": source.image_root,
            "panoptic_root": output / f"panoptic_{name}",
            "panoptic_json": output / f"panoptic_{name}.json",
        },
        num_images=len(written),
        num_segments={c["name"]: counts[c["id"]] for c in categories},
        num_crowds=len(segments) - counts.total(),
        max_segments=max(sum(map(is_target, image.segments_info)) for image in written),
        num_covered=sum(image.num_covered for image in written),
        num_small=sum(image.num_small for image in written),
    )


def png_names(file_names: Sequence[str]) -> list[str]:
    """Return the name of the PNG of each image: ``a.png`` for ``a.jpg``.

    If two images would get the same name, all names are ``a.jpg.png``.
    """
    names = [str(PurePosixPath(name).with_suffix(".png")) for name in file_names]
    # Some file systems ignore the case.
    if len({name.lower() for name in names}) == len(names):
        return names
    return [f"{name}.png" for name in file_names]
