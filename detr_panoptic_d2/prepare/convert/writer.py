"""Writes what a source gives as COCO panoptic: PNGs in several processes, and last the json."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from panopticapi.utils import id2rgb
from PIL import Image

from ...checkpoint.atomic import atomic_file
from ...data.parallel import run_parallel
from .categories import with_stuff
from .layout import json_path, panoptic_root, png_names, split_items
from .progress import Progress, fingerprint_of
from .segments import FinishOptions, to_panoptic
from .source import Labels, Source, image_size, require_files

logger = logging.getLogger(__name__)


class Filler(Protocol):
    """Labels pixels that the data leaves unlabelled; see ``model_stuff.ModelStuff``."""

    categories: list[dict]
    options: dict[str, Any]

    def fill(self, path: Path, labels: Labels, categories: list[dict]) -> Labels:
        """Return the label map with more of it labelled."""


@dataclass(frozen=True)
class WriteOptions:
    """How a conversion is written.

    Attributes:
        split_name: of the only split, if the data is not split.
        fractions: names of splits and the shares of the images that they get.
        seed: of the split.
        copy_images: copy images into the output, else the json names those of the source.
        background: name of the stuff class that gets what is not labelled; None: void.
        min_area: see :class:`FinishOptions`.
        workers: number of processes.
    """

    split_name: str = "train"
    fractions: Mapping[str, float] | None = None
    seed: int = 0
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
        num_classes: things and stuff together.
        segments: number of segments by class name.
        void: share of the pixels that are void.
        hidden: labelled objects that have no pixels left.
    """

    name: str
    image_root: Path
    panoptic_root: Path
    panoptic_json: Path
    num_images: int
    num_classes: int
    segments: dict[str, int]
    void: float
    hidden: int


@dataclass(frozen=True)
class _Job:
    """What the processes need."""

    source: Source
    categories: list[dict]
    finish: FinishOptions
    filler: Filler | None
    output: Path
    splits: list[str]
    png_names: list[str]
    copy_images: bool


def convert(
    source: Source, output: Path, options: WriteOptions, filler: Filler | None = None
) -> list[Converted]:
    """Write a source as COCO panoptic.

    Per split there are ``panoptic_<split>/*.png`` and ``panoptic_<split>.json``, and ``<split>/``
    with the images if they are copied. Files appear whole or not at all, the jsons last. Called
    again after an interruption, it goes on; when all is done, it changes nothing. The files are
    the same whatever the number of processes.

    Args:
        source: the data set.
        output: folder; made if need be.
        options: of the user.
        filler: labels more pixels, in this process alone.

    Returns:
        list[Converted]: one per split.

    Raises:
        FileExistsError: ``output`` has other data of these names.
        FileNotFoundError: an image is missing.
        ValueError: the data does not fit together.
    """
    require_files(source.image_root, (item.file_name for item in source.items), "images")
    splits = split_items(source.items, options.split_name, options.fractions, options.seed)
    names = list(options.fractions or dict.fromkeys(splits))
    categories, finish = _categories(source, options, filler)
    job = _Job(
        source,
        categories,
        finish,
        filler,
        output,
        splits,
        png_names([item.file_name for item in source.items], splits),
        options.copy_images,
    )
    fingerprint = _fingerprint(job)
    work = output / f".convert-{'-'.join(names)}"
    if _is_complete(output, names, fingerprint):
        logger.info("'%s' has been converted before, with the same result.", output)
        shutil.rmtree(work, ignore_errors=True)
        return [_summary(job, name, _read(json_path(output, name))) for name in names]
    if not work.is_dir():
        _refuse_other_data(output, names)
    progress = Progress(work, fingerprint)
    records = _all_records(job, progress, 1 if filler else options.workers)
    contents = {name: _content(job, name, records, fingerprint) for name in names}
    for name in names:
        with atomic_file(json_path(output, name)) as f:
            json.dump(contents[name], f)
    progress.finish()
    return [_summary(job, name, contents[name]) for name in names]


def _categories(
    source: Source, options: WriteOptions, filler: Filler | None
) -> tuple[list[dict], FinishOptions]:
    categories = source.categories
    if filler is not None:
        # What is a thing here is labelled: the model's stuff of that name is not needed.
        things = {c["name"] for c in categories if c["isthing"]}
        extra = [c for c in filler.categories if c["name"] not in things]
        categories = with_stuff(categories, extra)
    background = None
    if options.background is not None:
        categories = with_stuff(categories, [{"name": options.background}])
        background = next(c["id"] for c in categories if c["name"] == options.background)
    return categories, FinishOptions(background, options.min_area)


def _fingerprint(job: _Job) -> str:
    content = {
        "categories": job.categories,
        "finish": asdict(job.finish),
        "source": job.source.options,
        "filler": job.filler.options if job.filler else None,
        "copy_images": job.copy_images,
    }
    items = zip(job.source.items, job.splits, strict=True)
    return fingerprint_of(
        content, ([i.file_name, i.image_id, split, i.truth] for i, split in items)
    )


def _is_complete(output: Path, names: list[str], fingerprint: str) -> bool:
    """Whether all jsons are there and of this conversion."""
    paths = [json_path(output, name) for name in names]
    if not all(path.is_file() for path in paths):
        return False
    contents = [_read(path) for path in paths]
    infos = [c.get("info") if isinstance(c, dict) else None for c in contents]
    return all(isinstance(i, dict) and i.get("fingerprint") == fingerprint for i in infos)


def _refuse_other_data(output: Path, names: list[str]) -> None:
    for name in names:
        for path in (json_path(output, name), panoptic_root(output, name)):
            if path.exists():
                raise FileExistsError(
                    f"'{path}' is there already, and not from this conversion (or its arguments "
                    "or input have changed). Choose another --output or --split-names, or remove "
                    "it."
                )


def _all_records(job: _Job, progress: Progress, workers: int) -> list[dict]:
    """Convert the images that are not done yet; return the records of all, in order."""
    done = progress.done()
    if done:
        logger.info("%d of %d images are done already.", len(done), len(job.splits))
    missing = [i for i in range(len(job.splits)) if i not in done]
    results = run_parallel(_convert_one, job, missing, workers=workers, description="Converting")
    new = progress.write(record for _, record in results)
    done.update((record["index"], record) for record in new)
    return [done[i] for i in range(len(job.splits))]


def _convert_one(job: _Job, index: int) -> dict:
    """Write the files of one image and return its entries of the json."""
    item, split = job.source.items[index], job.splits[index]
    path = job.source.image_root / item.file_name
    height, width = image_size(path)
    labels = job.source.label(item, (height, width))
    if job.filler is not None:
        labels = job.filler.fill(path, labels, job.categories)
    ids, infos, hidden = to_panoptic(labels, job.categories, job.finish)

    png = panoptic_root(job.output, split) / job.png_names[index]
    png.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(png, "wb") as f:
        Image.fromarray(id2rgb(ids)).save(f, format="PNG")
    if job.copy_images:
        _copy(path, job.output / split / item.file_name)
    image_id = index + 1 if item.image_id is None else item.image_id
    image = {"id": image_id, "file_name": item.file_name, "height": height, "width": width}
    annotation = {"image_id": image_id, "file_name": job.png_names[index], "segments_info": infos}
    return {"index": index, "image": image, "annotation": annotation, "hidden": hidden}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as from_file, atomic_file(target, "wb") as to_file:
        shutil.copyfileobj(from_file, to_file)


def _content(job: _Job, name: str, records: list[dict], fingerprint: str) -> dict:
    """Return the json of a split."""
    chosen = [r for r, split in zip(records, job.splits, strict=True) if split == name]
    info = {
        "description": f"converted by detr_panoptic_d2 from {job.source.options['format']}",
        "fingerprint": fingerprint,
        "hidden": sum(r["hidden"] for r in chosen),
    }
    return {
        "info": info,
        "licenses": [],
        "images": [r["image"] for r in chosen],
        "annotations": [r["annotation"] for r in chosen],
        "categories": job.categories,
    }


def _summary(job: _Job, name: str, content: dict) -> Converted:
    names = {c["id"]: c["name"] for c in content["categories"]}
    segments = [s for a in content["annotations"] for s in a["segments_info"]]
    pixels = sum(image["height"] * image["width"] for image in content["images"])
    counts = Counter(names[s["category_id"]] for s in segments)
    return Converted(
        name=name,
        image_root=job.output / name if job.copy_images else job.source.image_root,
        panoptic_root=panoptic_root(job.output, name),
        panoptic_json=json_path(job.output, name),
        num_images=len(content["images"]),
        num_classes=len(names),
        segments={class_name: counts[class_name] for class_name in names.values()},
        void=1 - sum(s["area"] for s in segments) / pixels,
        hidden=content["info"]["hidden"],
    )


def _read(path: Path) -> dict:
    with open(path, encoding="utf-8") as f:
        return json.load(f)
