"""Panoptic quality of a dataset."""

import itertools
import json
import logging
import os
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.evaluation.panoptic_evaluation import _print_panoptic_results
from detectron2.utils import comm
from panopticapi.evaluation import PQStat
from tabulate import tabulate

from ..data.metadata import categories_of, dataset_ids
from ..data.panoptic_json import write_panoptic_json
from ..data.panoptic_png import read_panoptic_png, write_panoptic_png
from ..errors import UserError
from ..files import atomic_file, inside_root
from .ground_truth import check_prediction_size
from .pq import QUALITIES, add_rows, average, count_matches, to_rows

logger = logging.getLogger(__name__)

# Suffixes of the result names, and the classes that they cover: all, things, stuff.
GROUPS = {"": None, "_th": True, "_st": False}
# In the output folder: for each image the counts behind its PQ.
PER_IMAGE_FILE = "per_image.json"


class PanopticEvaluator(COCOPanopticEvaluator):
    """``COCOPanopticEvaluator`` with PQ per class and per image; all other numbers are equal.

    - The ground truth comes from the dataset dicts. PNGs keep their real names, and ``area`` and
      ``iscrowd`` may be missing.
    - What cannot be computed (without things, stuff or any segment) is NaN.
    - ``process`` compares each prediction at once, without a PNG. An image that is processed twice
      counts once.

    ``output_dir`` gets ``panoptic/*.png``, ``predictions.json`` (COCO's result format) and
    ``per_image.json`` (rows of category id, sum of IoU, TP, FP, FN for each image); None: nothing.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        super().__init__(dataset_name, output_dir)
        self._dataset_ids = dataset_ids(self._metadata)
        self._categories = {c["id"]: c for c in categories_of(self._metadata)}
        self._images = {d["image_id"]: d for d in DatasetCatalog.get(dataset_name)}

    def _convert_category_id(self, segment_info: dict) -> dict:
        # As in Detectron2, a segment without "isthing" has a category id of the dataset.
        category_id = segment_info["category_id"]
        if "isthing" in segment_info:
            category_id = self._dataset_ids[category_id]
        return {"id": int(segment_info["id"]), "category_id": int(category_id)}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            item = self._images.get(image["image_id"])
            if item is None:
                raise UserError(
                    f"Dataset '{self._metadata.name}' has no annotation for the image id "
                    f"{image['image_id']!r} ('{image['file_name']}')."
                )
            ids, segments = output["panoptic_seg"][0].cpu().numpy(), output["panoptic_seg"][1]
            png = item["pan_seg_file_name"]
            check_prediction_size(image, ids.shape, png)
            annotated = [
                {**s, "category_id": self._dataset_ids[s["category_id"]]}
                for s in item["segments_info"]
            ]
            predicted = list(map(self._convert_category_id, segments))
            prediction: dict[str, Any] = {"image_id": image["image_id"]}
            if self._output_dir:
                name = os.path.relpath(png, self._metadata.panoptic_root)
                path = inside_root(os.path.join(self._output_dir, "panoptic"), name)
                write_panoptic_png(path, ids)
                prediction.update(file_name=name, segments_info=predicted, size=ids.shape)
            stat = count_matches(read_panoptic_png(png), annotated, ids, predicted)
            self._predictions.append({**prediction, "counts": to_rows(stat)})

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return ``{"panoptic_seg": {"PQ": ..., "PQ-<class>": ...}}``, percent, on rank 0."""
        comm.synchronize()
        gathered = comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        by_image: dict[int | str, dict] = {}
        for prediction in itertools.chain(*gathered):
            by_image.setdefault(prediction["image_id"], prediction)
        if missing := len(self._images) - len(by_image):
            logger.warning(
                "PQ is that of %d images; %d were not predicted.", len(by_image), missing
            )
        # In the order of the dataset: sums do not depend on the number of processes.
        predictions = [by_image[i] for i in self._images if i in by_image]
        if self._output_dir:
            self._write(predictions)
        stat = PQStat()
        for prediction in predictions:
            add_rows(stat, prediction["counts"])
        return {"panoptic_seg": summarize(stat, self._categories)}

    def _write(self, predictions: list[dict]) -> None:
        images, annotations, per_image = [], [], []
        for p in predictions:
            (height, width), image_id = p["size"], p["image_id"]
            name = os.path.basename(self._images[image_id]["file_name"])
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            annotations.append({k: p[k] for k in ("image_id", "file_name", "segments_info")})
            per_image.append({"image_id": image_id, "counts": p["counts"]})
        path = os.path.join(self._output_dir, "predictions.json")
        write_panoptic_json(path, images, annotations, list(self._categories.values()))
        with atomic_file(os.path.join(self._output_dir, PER_IMAGE_FILE)) as file:
            json.dump(per_image, file)


def summarize(stat: PQStat, categories: dict[int, dict]) -> dict[str, float]:
    """Log the tables; return PQ, SQ and RQ of all, things and stuff, and PQ of each class."""
    results, means = {}, {}
    for (suffix, isthing), title in zip(GROUPS.items(), ("All", "Things", "Stuff"), strict=True):
        means[title] = average(stat, categories, isthing)
        results.update({f"{key.upper()}{suffix}": 100 * means[title][key] for key in QUALITIES})
    _print_panoptic_results(means)
    rows = []
    for category_id, category in categories.items():
        mean, s = average(stat, {category_id: category}), stat[category_id]
        results[f"PQ-{category['name']}"] = 100 * mean["pq"]
        rows.append([category["name"], *(100 * mean[key] for key in QUALITIES), s.tp, s.fp, s.fn])
    headers = ["class", "PQ", "SQ", "RQ", "TP", "FP", "FN"]
    table = tabulate(rows, headers, tablefmt="pipe", floatfmt=".3f", disable_numparse=[0])
    logger.info("Panoptic Evaluation Results per class (NaN: in no image):\n%s", table)
    return results
