"""Write sources as COCO panoptic: the PNGs in several processes, and last the json."""

import contextlib
import glob
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from ...data.dataset_mapper import is_target, read_image
from ...data.panoptic_json import complete_segments, write_panoptic_json
from ...data.panoptic_png import write_panoptic_png
from ...errors import UserError
from ...export.runtime.tiles import tile_corners
from ..parallel import map_images
from .classes import ClassOptions, choose_categories
from .shapes import to_panoptic
from .source import Item, Source, check_size, log_left_out, logger, upright_size
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
    num_dropped: int  # segments that lie completely under others, or are under --min-area

    @property
    def has_masks(self) -> bool:
        """Whether the split is COCO panoptic, and not boxes alone."""
        return "panoptic_json" in self.paths


class _WrittenImage(NamedTuple):
    """The entries of the json: one for the image, or one for each of its tiles."""

    images: list[dict]  # id (None: not yet known), file_name, height, width
    annotations: list[dict]  # file_name, segments_info
    num_dropped: int
    lost: list[str]


def convert(
    splits: Mapping[str, Source],
    output: Path,
    classes: ClassOptions = ClassOptions(),  # noqa: B008  immutable
    *,
    min_area: int = 1,
    workers: int = 1,
    tiling: tuple[int, float] | None = None,
) -> list[Converted]:
    """Write ``panoptic_<split>/*.png`` and ``panoptic_<split>.json`` of each split.

    If all annotations are boxes, write ``instances_<split>.json`` instead. The files do not depend
    on the number of processes.

    Args:
        splits: name and source of each.
        output: folder; created if it does not exist.
        classes: options of the user about classes. All splits have the same categories.
        min_area: segments of fewer pixels become unlabelled.
        workers: number of processes.
        tiling: cut the images into tiles of this side and overlap (see ``tile_starts``), and write
            those that have a segment to ``images_<split>``.
    """
    for name, source in splits.items():
        _check_images(name, source)
    has_masks = any(source.has_masks for source in splits.values())
    if tiling is not None and not has_masks:
        raise UserError("--tile cuts masks, but all annotations are boxes.")
    categories = choose_categories([c for s in splits.values() for c in s.classes], classes)
    converted = []
    with _hidden_folder(output) as work:
        for name, source in splits.items():
            folders = f"images_{name}", f"panoptic_{name}"
            paths = {"image_root": output / folders[0] if tiling else source.image_root}
            if has_masks:
                convert_image = partial(
                    _convert_image,
                    roots=(source.image_root, *(work / folder for folder in folders)),
                    categories=categories,
                    background=classes.background,
                    min_area=min_area,
                    tiling=tiling,
                )
                entries = _convert_masks(name, source, convert_image, workers)
                paths["panoptic_root"] = output / folders[1]
            else:
                entries = *_convert_boxes(source, categories), 0
            kind = "panoptic" if has_masks else "instances"
            write_panoptic_json(work / f"{kind}_{name}.json", *entries[:2], categories)
            paths[f"{kind}_json"] = output / f"{kind}_{name}.json"
            converted.append(_summarize(name, paths, categories, *entries))
        _check_segments(converted, classes.background)
    return converted


@contextlib.contextmanager
def _hidden_folder(output: Path) -> Iterator[Path]:
    """Make a folder whose files move to ``output`` at the end. An exception leaves nothing."""
    output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".convert-", dir=output) as work:
            yield Path(work)
            # The jsons are last: a split that has one is complete.
            parts = sorted(Path(work).iterdir(), key=lambda path: path.suffix == ".json")
            if existing := [p.name for p in parts if (output / p.name).exists()]:
                raise FileExistsError(
                    f"'{output / existing[0]}' exists already. Choose another --output."
                )
            for part in parts:
                part.rename(output / part.name)
    except BaseException:
        # Only an empty folder is removed.
        with contextlib.suppress(OSError):
            output.rmdir()
        raise


def _check_images(split: str, source: Source) -> None:
    """Check that a split has images, and that they exist."""
    if not source.items:
        raise UserError(f"There are no images to convert for the split '{split}'.")
    root = source.image_root
    if not root.is_dir():
        raise FileNotFoundError(f"The folder '{root}' does not exist.")
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


def _check_segments(converted: Sequence[Converted], background: str | None) -> None:
    """Check that there are segments beside the background. Warn if a split has none to learn."""
    num_segments = 0
    for split in converted:
        if not split.num_images:
            raise UserError(f"The split '{split.name}' has no tile with a segment.")
        num_targets = sum(n for name, n in split.num_segments.items() if name != background)
        num_segments += num_targets + split.num_crowds
        if not num_targets:
            reason = "only crowds" if split.num_crowds else "not a single segment"
            logger.warning("The split '%s' has %s: nothing can be learned.", split.name, reason)
    if not num_segments:
        raise UserError(
            f"Not a single segment in {sum(s.num_images for s in converted)} images. Check the "
            "annotations, and the list of classes of masks."
        )


def _convert_masks(
    split: str, source: Source, task: Callable[[tuple[Item, str]], _WrittenImage], workers: int
) -> tuple[list[dict], list[dict], int]:
    """Write the PNGs of a split; return images and annotations of its json, and what is dropped."""
    pngs = png_names([item.file_name for item in source.items])
    items = list(zip(source.items, pngs, strict=True))
    written = map_images(task, items, workers=workers, description=f"Converting {split}")
    boxes = [box.where for item in source.items for box in item.boxes]
    log_left_out("boxes without a segmentation", boxes)
    lost = [place for result in written for place in result.lost]
    log_left_out("annotations without a single pixel in their image", lost)
    images = [image for result in written for image in result.images]
    annotations = [annotation for result in written for annotation in result.annotations]
    for number, (image, annotation) in enumerate(zip(images, annotations, strict=True), 1):
        image["id"] = annotation["image_id"] = number if image["id"] is None else image["id"]
    return images, annotations, sum(result.num_dropped for result in written)


def _convert_image(
    item_and_png: tuple[Item, str],
    *,
    roots: tuple[Path, Path, Path],
    categories: list[dict],
    background: str | None,
    min_area: int,
    tiling: tuple[int, float] | None,
) -> _WrittenImage:
    """Write the PNG of one image, or the tiles of the image and their PNGs.

    ``roots`` are the folders of the images, of the tiles, and of the PNGs.
    """
    (item, png), (image_root, tile_root, png_root) = item_and_png, roots
    path = image_root / item.file_name
    height, width = upright_size(path)
    if item.size is not None:
        with errors_in(f"The annotation of '{path}'"):
            check_size(item.size, (height, width))
    labels = item.draw((height, width), {c["name"] for c in categories if c["isthing"]})
    ids, infos, num_dropped = to_panoptic(
        labels, categories, background=background, min_area=min_area
    )
    if tiling is None:
        write_panoptic_png(png_root / png, ids)
        image = {"id": item.image_id, "file_name": item.file_name, "height": height, "width": width}
        annotation = {"file_name": png, "segments_info": infos}
        return _WrittenImage([image], [annotation], num_dropped, labels.lost)
    # The pixels that ``predict --tile`` segments. A PNG keeps them.
    pixels = read_image(path, "RGB")
    images, annotations = [], []
    for top, left in tile_corners(height, width, *tiling):
        zone = slice(top, top + tiling[0]), slice(left, left + tiling[0])
        if tile_infos := complete_segments(ids[zone], infos):
            name = f"{png.removesuffix('.png')}_{top}_{left}.png"
            write_panoptic_png(png_root / name, ids[zone])
            (tile_root / name).parent.mkdir(parents=True, exist_ok=True)
            tile = Image.fromarray(pixels[zone])
            tile.save(tile_root / name)
            image = {"id": None, "file_name": name, "height": tile.height, "width": tile.width}
            images.append(image)
            annotations.append({"file_name": name, "segments_info": tile_infos})
    return _WrittenImage(images, annotations, num_dropped, labels.lost)


def _convert_boxes(source: Source, categories: list[dict]) -> tuple[list[dict], list[dict]]:
    """Return images and annotations of a COCO instances json. Boxes end at the image's border."""
    ids = {c["name"]: c["id"] for c in categories}
    images: list[dict] = []
    annotations: list[dict] = []
    lost = []
    for number, item in enumerate(source.items, 1):
        path = source.image_root / item.file_name
        height, width = upright_size(path)
        if item.size is not None:
            with errors_in(f"The annotation of '{path}'"):
                check_size(item.size, (height, width))
        image_id = number if item.image_id is None else item.image_id
        image = {"id": image_id, "file_name": item.file_name, "height": height, "width": width}
        images.append(image)
        for box in item.boxes:
            x, y, w, h = box.xywh
            left, top = max(x, 0), max(y, 0)
            w, h = min(x + w, width) - left, min(y + h, height) - top
            if w <= 0 or h <= 0:
                lost.append(box.where)
            elif box.name in ids:
                annotation = {"id": len(annotations) + 1, "image_id": image_id, "area": w * h}
                annotation |= {"category_id": ids[box.name], "bbox": [left, top, w, h]}
                annotations.append({**annotation, "iscrowd": int(box.iscrowd)})
    log_left_out("boxes without area inside their image", lost)
    return images, annotations


def _summarize(
    name: str,
    paths: dict[str, Path],
    categories: list[dict],
    images: list[dict],
    annotations: list[dict],
    num_dropped: int,
) -> Converted:
    # A COCO instances json has an annotation for each segment.
    segments = [
        {**segment, "image_id": annotation["image_id"]}
        for annotation in annotations
        for segment in annotation.get("segments_info", [annotation])
    ]
    targets = [segment for segment in segments if is_target(segment)]
    counts = Counter(segment["category_id"] for segment in targets)
    per_image = Counter(segment["image_id"] for segment in targets)
    return Converted(
        name=name,
        paths=paths,
        num_images=len(images),
        num_segments={c["name"]: counts[c["id"]] for c in categories},
        num_crowds=len(segments) - len(targets),
        max_segments=max(per_image.values(), default=0),
        num_dropped=num_dropped,
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
