"""Panoptic quality."""

import contextlib
import io
import itertools
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.evaluation.panoptic_evaluation import _print_panoptic_results
from detectron2.utils import comm
from panopticapi.evaluation import PQStat, PQStatCat, pq_compute_single_core
from tabulate import tabulate

from ..data.metadata import dataset_ids
from ..data.panoptic_json import complete_segments, write_panoptic_json
from ..data.panoptic_png import read_panoptic_png
from ..errors import UserError
from ..files import atomic_file, inside_root
from .ground_truth import categories_of, check_prediction_size

logger = logging.getLogger(__name__)

_QUALITIES = ("pq", "sq", "rq")
# Endings of the names of results, and which classes they are about: all, things, stuff.
GROUPS = {"": None, "_th": True, "_st": False}
# In the output folder: per image what its PQ is made of.
PER_IMAGE_FILE = "per_image.json"


class PanopticEvaluator(COCOPanopticEvaluator):
    """``COCOPanopticEvaluator`` with PQ per class and per image; the same numbers otherwise.

    - Ground truth comes from the dataset dicts: PNGs keep their real names, ``area`` and
      ``iscrowd`` may be missing.
    - A set without things, without stuff or with nothing but void gives NaN for what cannot be
      computed, where panopticapi divides by zero.
    - Each prediction is compared when it is made, by the process that made it, and its PNG is
      written to the disk. An image that came up twice counts once.

    Args:
        dataset_name: a registered panoptic data set.
        output_dir: where ``panoptic/*.png`` and ``predictions.json`` (COCO's result format) go,
            and ``per_image.json``: for each image rows of category id, sum of IoU, TP, FP, FN.
            None: nothing is kept. Without a common file system each machine has its own PNGs.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        super().__init__(dataset_name, output_dir)
        # Removed with the evaluator.
        self._temporary = tempfile.TemporaryDirectory()
        self._folder = output_dir or self._temporary.name
        self._dataset_ids = dataset_ids(self._metadata)
        self._categories = {c["id"]: c for c in categories_of(self._metadata)}
        self._images = {d["image_id"]: d for d in DatasetCatalog.get(dataset_name)}

    def _convert_category_id(self, segment_info: dict) -> dict:
        # A copy, and of whatever is true: Detectron2 takes all but ``True`` itself for stuff.
        category_id = segment_info["category_id"]
        if "isthing" in segment_info:
            category_id = self._dataset_ids[category_id]
        return {"id": int(segment_info["id"]), "category_id": int(category_id)}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Compare predictions with the ground truth.

        Args:
            inputs: with ``image_id`` and ``file_name``.
            outputs: with ``panoptic_seg``: int map H x W and list of segments with contiguous
                ``category_id``.

        Raises:
            UserError: the image is not in the data set, or of another size than its PNG.
        """
        for image, output in zip(inputs, outputs, strict=True):
            item, size = self._images.get(image["image_id"]), output["panoptic_seg"][0].shape
            if item is None:
                raise UserError(
                    f"The data set '{self._metadata.name}' has no annotation for the image id "
                    f"{image['image_id']!r} ('{image['file_name']}')."
                )
            png = item["pan_seg_file_name"]
            check_prediction_size(image, size, png)
            super().process([image], [output])
            prediction = self._predictions[-1]
            name = os.path.relpath(png, self._metadata.panoptic_root)
            path = Path(inside_root(os.path.join(self._folder, "panoptic"), name))
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path, "wb") as file:
                file.write(prediction.pop("png_string"))
            counts = self._compare(prediction, item, path)
            prediction.update(file_name=name, size=tuple(size), counts=counts)

    def _compare(self, prediction: dict, item: dict, path: Path) -> list[list[float]]:
        """Return rows of category id, sum of IoU, TP, FP, FN."""
        png, annotated = os.path.abspath(item["pan_seg_file_name"]), item["segments_info"]
        if any("area" not in s for s in annotated):
            annotated = complete_segments(read_panoptic_png(png), annotated)
        annotated = [
            {"iscrowd": 0, **s, "category_id": self._dataset_ids[s["category_id"]]}
            for s in annotated
        ]
        # panopticapi writes areas into the segments of the prediction.
        predicted = [dict(s) for s in prediction["segments_info"]]
        pair = (
            {**prediction, "segments_info": annotated, "file_name": png},
            {**prediction, "segments_info": predicted, "file_name": os.path.abspath(path)},
        )
        with contextlib.redirect_stdout(io.StringIO()):
            stat = pq_compute_single_core(0, [pair], "", "", self._categories)
        return [[c, float(s.iou), s.tp, s.fp, s.fn] for c, s in stat.pq_per_cat.items()]

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return ``{"panoptic_seg": {"PQ": ..., "PQ-<class>": ...}}``, percent, on rank 0."""
        comm.synchronize()
        gathered = comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        found: dict[int | str, dict] = {}
        for prediction in itertools.chain(*gathered):
            found.setdefault(prediction["image_id"], prediction)
        if missing := len(self._images) - len(found):
            logger.warning("PQ is over %d images; %d were not predicted.", len(found), missing)
        self._write(list(found.values()))
        stat = PQStat()
        for prediction in found.values():
            add_counts(stat, prediction["counts"])
        return {"panoptic_seg": summarize(stat, self._categories)}

    def _write(self, predictions: list[dict]) -> None:
        images, annotations, per_image = [], [], []
        for p in predictions:
            (height, width), image_id = p["size"], p["image_id"]
            name = os.path.basename(self._images[image_id]["file_name"])
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            annotations.append({k: p[k] for k in ("image_id", "file_name", "segments_info")})
            per_image.append({"image_id": image_id, "counts": p["counts"]})
        path = os.path.join(self._folder, "predictions.json")
        write_panoptic_json(path, images, annotations, list(self._categories.values()))
        with atomic_file(os.path.join(self._folder, PER_IMAGE_FILE)) as file:
            json.dump(per_image, file)


def summarize(stat: PQStat, categories: dict[int, dict]) -> dict[str, float]:
    """Log the tables, and return PQ, SQ and RQ of all, things and stuff, and PQ of each class."""
    results, means = {}, {}
    for (suffix, isthing), title in zip(GROUPS.items(), ("All", "Things", "Stuff"), strict=True):
        means[title] = average(stat, categories, isthing)
        results.update({f"{key.upper()}{suffix}": 100 * means[title][key] for key in _QUALITIES})
    _print_panoptic_results(means)
    rows = []
    for category_id, category in categories.items():
        mean, s = average(stat, {category_id: category}), stat[category_id]
        results[f"PQ-{category['name']}"] = 100 * mean["pq"]
        rows.append([category["name"], *(100 * mean[key] for key in _QUALITIES), s.tp, s.fp, s.fn])
    headers = ["class", "PQ", "SQ", "RQ", "TP", "FP", "FN"]
    table = tabulate(rows, headers, tablefmt="pipe", floatfmt=".3f", disable_numparse=[0])
    logger.info("Panoptic Evaluation Results per class (NaN: in no image):\n%s", table)
    return results


def add_counts(stat: PQStat, counts: Iterable[list[float]]) -> None:
    """Add rows of category id, sum of IoU, TP, FP, FN."""
    for category, iou, tp, fp, fn in counts:
        one = PQStatCat()
        one.iou, one.tp, one.fp, one.fn = iou, tp, fp, fn
        stat.pq_per_cat[category] += one


def average(
    stat: PQStat, categories: dict[int, dict], isthing: bool | None = None
) -> dict[str, float]:
    """panopticapi's mean over the classes that occur (Kirillov et al. 2019, section 4.2).

    Args:
        stat: sums per category id.
        categories: of the annotation file, by id.
        isthing: things or stuff only; None: all.

    Returns:
        ``pq``, ``sq`` and ``rq`` from 0 to 1, NaN if no class occurs; and ``n``, how many do.
    """
    try:
        return stat.pq_average(categories, isthing)[0]
    except ZeroDivisionError:
        return {**dict.fromkeys(_QUALITIES, math.nan), "n": 0}
