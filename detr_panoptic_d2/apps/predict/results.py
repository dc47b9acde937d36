"""The results of ``predict`` in their folder: overlays, and COCO panoptic json with PNGs."""

import json
import math
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.utils import comm
from PIL import Image

from ...data.metadata import categories_of, dataset_ids
from ...data.panoptic_json import complete_segments, read_panoptic_json, write_panoptic_json
from ...data.panoptic_png import write_panoptic_png
from ...errors import UserError
from ...export.runtime import name_results
from ...files import atomic_file, check_not_overwritten
from ...visualization.draw import draw_panoptic
from .batches import Panoptic
from .video import is_video

# Pictures of larger images are reduced by a whole factor, because drawing takes 200 bytes a pixel.
_MAX_OVERLAY_PIXELS = 2**24
# An image and its annotation in predictions.json.
Entry = tuple[dict[str, Any], dict[str, Any]]


class ResultFolder:
    """A folder of results, which several processes may fill together.

    Overlays have the names of the inputs, relative to the folder that all inputs have in common.
    JPEG images give a JPEG, other images a PNG, videos an MP4. ``predictions.json`` is written at
    the end. Until then each process keeps a file of its entries in ``.predictions``.

    Args:
        folder: where the results go.
        paths: the inputs.
        model: name of the model and its options. Results of another model are not continued.
        coco_json: write ``predictions.json`` and ``panoptic/*.png`` for the images as well.
        resume: keep the results that are there, and leave out their inputs.
        labels: see :func:`.predict`.

    Attributes:
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
        labels: str,
    ):
        self.folder, self._coco_json, self._labels = folder, coco_json, labels
        self._json, self._parts = folder / "predictions.json", folder / ".predictions"
        self._names = name_results(list(paths))
        self._overlays = {
            path: folder / _overlay_name(path, result) for path, (_, result) in self._names.items()
        }
        pngs = [self._png(path) for path in paths] if coco_json else []
        check_not_overwritten(paths, [*self._overlays.values(), *pngs])
        root = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
        self._info = {"images": os.path.relpath(root, folder), "model": model}
        self._part: Path | None = None
        self._entries = self._read_entries(resume) if coco_json else {}
        self.todo = [path for path in paths if not (resume and self._is_done(path))]
        # No process writes before all have read.
        comm.synchronize()
        folder.mkdir(parents=True, exist_ok=True)

    def overlay(self, path: Path) -> Path:
        """Return the file of an input's overlay."""
        return self._overlays[path]

    def write(self, path: Path, image: np.ndarray, panoptic: Panoptic, metadata: Metadata) -> None:
        """Write the results of an image.

        Args:
            path: the input.
            image: H x W x 3 uint8 RGB.
            panoptic: ids and segments.
            metadata: names, colors and dataset ids of the classes.
        """
        target = self._overlays[path]
        target.parent.mkdir(parents=True, exist_ok=True)
        options = {"labels": self._labels, "legend": self._labels == "auto"}
        ids, segments = panoptic[0].cpu().numpy(), panoptic[1]
        step = math.ceil(math.sqrt(ids.size / _MAX_OVERLAY_PIXELS))
        small_ids = np.ascontiguousarray(ids[::step, ::step])
        visible = set(np.unique(small_ids).tolist())
        shown = [segment for segment in segments if segment["id"] in visible]
        small_image = np.ascontiguousarray(image[::step, ::step])
        overlay = Image.fromarray(draw_panoptic(small_image, small_ids, shown, metadata, **options))
        with atomic_file(target, "wb") as file:
            overlay.save(file, format="PNG" if target.suffix == ".png" else "JPEG", quality=95)
        if not self._coco_json:
            return
        category_ids = dataset_ids(metadata)
        write_panoptic_png(self._png(path), ids)
        infos = [
            {
                "id": int(segment["id"]),
                "category_id": category_ids[segment["category_id"]],
                "score": round(float(segment["score"]), 4),
            }
            for segment in segments
        ]
        image_entry = {"file_name": self._names[path][0]}
        image_entry |= {"height": ids.shape[0], "width": ids.shape[1]}
        segments_info = complete_segments(ids, infos)
        annotation = {"file_name": f"{self._names[path][1]}.png", "segments_info": segments_info}
        self._add_entry((image_entry, annotation))

    def write_json(self, metadata: Metadata) -> Path | None:
        """Write ``predictions.json`` with the entries of all processes; call it in each."""
        if not self._coco_json:
            return None
        for entries in comm.all_gather(self._entries):
            self._entries.update(entries)
        if not comm.is_main_process():
            return None
        order = {name: i for i, (name, _) in enumerate(self._names.values())}
        entries = sorted(self._entries.values(), key=lambda e: order.get(e[0]["file_name"], -1))
        images = [{**image, "id": i} for i, (image, _) in enumerate(entries, start=1)]
        annotations = [{**a, "image_id": i} for i, (_, a) in enumerate(entries, start=1)]
        categories = categories_of(metadata)
        write_panoptic_json(self._json, images, annotations, categories, info=self._info)
        shutil.rmtree(self._parts, ignore_errors=True)
        return self._json

    def _png(self, path: Path) -> Path:
        return self.folder / "panoptic" / f"{self._names[path][1]}.png"

    def _is_done(self, path: Path) -> bool:
        in_json = self._names[path][0] in self._entries or is_video(path) or not self._coco_json
        return in_json and self._overlays[path].is_file()

    def _add_entry(self, entry: Entry) -> None:
        if self._part is None:
            self._parts.mkdir(parents=True, exist_ok=True)
            self._part = self._parts / f"{uuid.uuid4().hex}.jsonl"
            self._part.write_text(json.dumps(self._info) + "\n", encoding="utf-8")
        self._entries[entry[0]["file_name"]] = entry
        with open(self._part, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _read_entries(self, resume: bool) -> dict[str, Entry]:
        """Return the entries of earlier runs by the name of the image."""
        if not resume and (self._json.exists() or self._parts.exists()):
            raise UserError(
                f"'{self.folder}' has results of an earlier run. Add --resume to keep them and to "
                "predict on the other inputs, or choose another --output."
            )
        runs: list[tuple[dict, list[Entry]]] = []
        if self._json.exists():
            content = read_panoptic_json(self._json)
            annotations = {a["image_id"]: a for a in content["annotations"]}
            entries = [(image, annotations[image["id"]]) for image in content["images"]]
            runs.append((content.get("info", {}), entries))
        for part in sorted(self._parts.glob("*.jsonl")):
            # The last line is incomplete if the process was killed.
            text = part.read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
            if lines:
                runs.append((lines[0], lines[1:]))
        for info, _ in runs:
            if info != self._info:
                raise UserError(
                    f"'{self.folder}' has results of {info}, not of {self._info}. Choose another "
                    "--output."
                )
        return {image["file_name"]: (image, a) for _, entries in runs for image, a in entries}


def _overlay_name(path: Path, result: str) -> str:
    if is_video(path):
        return f"{result}.mp4"
    return f"{result}{path.suffix if path.suffix.lower() in ('.jpg', '.jpeg') else '.png'}"
