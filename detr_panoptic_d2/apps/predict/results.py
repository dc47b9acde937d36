"""The results of ``predict`` in their folder: overlays, and COCO json with PNGs."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.utils import comm
from PIL import Image
from pycocotools import mask as mask_util

from ...data.metadata import categories_of, dataset_ids
from ...data.panoptic_json import complete_segments, write_panoptic_json
from ...data.panoptic_png import write_panoptic_png
from ...errors import UserError
from ...export.runtime import name_results
from ...files import atomic_file, check_not_overwritten
from ...visualization.draw import draw_panoptic
from .batches import Panoptic
from .video import is_video

# Pictures of larger images are reduced by a whole factor, because drawing takes 200 bytes a pixel.
_MAX_OVERLAY_PIXELS = 2**24


class ResultFolder:
    """A folder of results, which several processes may fill together.

    Overlays have the names of the inputs, relative to the folder that all inputs have in common.
    JPEG images give a JPEG, other images a PNG, videos an MP4. ``.predictions`` has a json per
    image, from which ``predictions.json`` and ``instances.json`` are made at the end.

    Args:
        folder: where the results go.
        paths: the inputs.
        model: name of the model and its options. Results of another model are not continued.
        coco_json: write the json files and ``panoptic/*.png`` for the images as well.
        resume: keep the results that are there, and leave out their inputs.
        labels: see :func:`.predict`.

    Attributes:
        overlays: file of the overlay of each input.
        todo: the inputs without a result.

    Raises:
        UserError: a result would overwrite an input, or the folder has results that are not to be
            continued.
    """

    def __init__(
        self,
        folder: Path,
        paths: Sequence[Path],
        model: str,
        *,
        coco_json: bool,
        resume: bool,
        labels: bool,
    ):
        self._folder, self._coco_json, self._labels = folder, coco_json, labels
        self._json, self._parts = folder / "predictions.json", folder / ".predictions"
        self._names = name_results(list(paths))
        self.overlays = {path: folder / _overlay_name(path, self._names[path][1]) for path in paths}
        pngs = [self._png(path) for path in paths] if coco_json else []
        check_not_overwritten(paths, [*self.overlays.values(), *pngs])
        root = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
        self._info = {"images": os.path.relpath(root, folder), "model": model}
        if coco_json and not resume and (self._json.exists() or self._parts.exists()):
            raise UserError(
                f"'{folder}' has results of an earlier run. Add --resume to keep them and to "
                "predict on the other inputs, or choose another --output."
            )
        entries = self._read_entries() if coco_json else {}
        done = {
            path
            for path in (paths if resume else ())
            if (self._names[path][0] in entries or is_video(path) or not coco_json)
            and self.overlays[path].is_file()
        }
        self.todo = [path for path in paths if path not in done]
        # No process writes before all have read.
        comm.synchronize()
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, image: np.ndarray, panoptic: Panoptic, metadata: Metadata) -> None:
        """Write the results of an image: H x W x 3 uint8 RGB, its ids and segments."""
        ids, segments = panoptic[0].cpu().numpy(), panoptic[1]
        step = math.ceil(math.sqrt(ids.size / _MAX_OVERLAY_PIXELS))
        small_ids, small_image = (np.ascontiguousarray(x[::step, ::step]) for x in (ids, image))
        visible = set(np.unique(small_ids).tolist())
        shown = [segment for segment in segments if segment["id"] in visible]
        options = {"labels": self._labels, "legend": self._labels}
        overlay = Image.fromarray(draw_panoptic(small_image, small_ids, shown, metadata, **options))
        target = self.overlays[path]
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target, "wb") as file:
            overlay.save(file, format="PNG" if target.suffix == ".png" else "JPEG", quality=95)
        if not self._coco_json:
            return
        file_name, result = self._names[path]
        write_panoptic_png(self._png(path), ids)
        infos = _coco_segments(ids, segments, metadata)
        part = self._parts / f"{result}.json"
        part.parent.mkdir(parents=True, exist_ok=True)
        entry = {
            "info": self._info,
            "image": {"file_name": file_name, "height": ids.shape[0], "width": ids.shape[1]},
            "annotation": {"file_name": f"{result}.png", "segments_info": infos},
            "instances": _coco_instances(ids, segments, infos),
        }
        with atomic_file(part, sync=False) as file:
            json.dump(entry, file)

    def write_json(self, metadata: Metadata) -> Path | None:
        """Write the json files, in the main process, after all processes have written images."""
        if not self._coco_json or not comm.is_main_process():
            return None
        order = {name: i for i, (name, _) in enumerate(self._names.values())}
        entries = self._read_entries()
        names = sorted(entries, key=lambda name: (order.get(name, -1), name))
        images, annotations, instances = [], [], []
        for number, entry in enumerate(map(entries.__getitem__, names), start=1):
            images.append({**entry["image"], "id": number})
            annotations.append({**entry["annotation"], "image_id": number})
            instances += [{**instance, "image_id": number} for instance in entry["instances"]]
        with atomic_file(self._folder / "instances.json") as file:
            json.dump(instances, file)
        categories = categories_of(metadata)
        write_panoptic_json(self._json, images, annotations, categories, info=self._info)
        return self._json

    def _png(self, path: Path) -> Path:
        return self._folder / "panoptic" / f"{self._names[path][1]}.png"

    def _read_entries(self) -> dict[str, dict[str, Any]]:
        """Return the entries of this and of earlier runs by the name of the image."""
        entries = [
            json.loads(part.read_text(encoding="utf-8")) for part in self._parts.rglob("*.json")
        ]
        for entry in entries:
            if entry["info"] != self._info:
                raise UserError(
                    f"'{self._folder}' has results of {entry['info']}, not of {self._info}. "
                    "Choose another --output."
                )
        return {entry["image"]["file_name"]: entry for entry in entries}


def _overlay_name(path: Path, result: str) -> str:
    if is_video(path):
        return f"{result}.mp4"
    return f"{result}{path.suffix if path.suffix.lower() in ('.jpg', '.jpeg') else '.png'}"


def _coco_segments(ids: np.ndarray, segments: list[dict], metadata: Metadata) -> list[dict]:
    """Return the ``segments_info`` of COCO's panoptic format."""
    category_ids = dataset_ids(metadata)
    infos = []
    for segment in segments:
        info = {"id": int(segment["id"]), "category_id": category_ids[segment["category_id"]]}
        infos.append({**info, "score": round(float(segment["score"]), 4)})
    return complete_segments(ids, infos)


def _coco_instances(ids: np.ndarray, segments: list[dict], infos: list[dict]) -> list[dict]:
    """Return the things of an image in COCO's results format, with compressed RLE."""
    things = {segment["id"] for segment in segments if segment["isthing"]}
    # RLE goes along columns.
    ids = np.asfortranarray(ids)
    instances = []
    for info in infos:
        if info["id"] in things:
            rle = mask_util.encode((ids == info["id"]).view(np.uint8))
            instance = {key: info[key] for key in ("category_id", "bbox", "score")}
            rle["counts"] = rle["counts"].decode("ascii")
            instances.append({**instance, "segmentation": rle})
    return instances
