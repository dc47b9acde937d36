"""Panoptic quality, streamed: memory does not grow with the data set."""

import contextlib
import io
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm
from panopticapi.evaluation import PQStat, PQStatCat, pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image
from tabulate import tabulate

from ..checkpoint.atomic import atomic_file
from ..errors import UserError
from .records import ImageRecords
from .truth import PanopticTruth

logger = logging.getLogger(__name__)

# Endings of the names of results, and which classes they are about: all, things, stuff.
GROUPS = {"": None, "_th": True, "_st": False}
# In the output folder: per image what its PQ is made of.
PER_IMAGE_FILE = "per_image.json"


class PanopticEvaluator(COCOPanopticEvaluator):
    """``COCOPanopticEvaluator`` for large, partial and unusual sets; the same numbers.

    - Each prediction is written to ``output_dir/panoptic`` (same relative name as the truth's
      PNG) and compared with panopticapi at once. What the processes exchange at the end are lines
      of json; an image that came up twice counts once.
    - A set without things, without stuff or with nothing but void gives NaN for what cannot be
      computed, where panopticapi divides by zero.
    - Per-class results are returned as ``PQ-<class>``.

    Args:
        dataset_name: a registered panoptic data set.
        output_dir: where ``panoptic/*.png`` and ``predictions.json`` (COCO's result format) go,
            and ``per_image.json``: for each image rows of category id, sum of IoU, TP, FP, FN.
            None: nothing is kept. Without a common file system each machine has its own PNGs.
        truth: the annotations, if they are loaded already.
        key: of what is predicted, see :class:`ImageRecords`; needs ``output_dir``.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        truth: PanopticTruth | None = None,
        key: str | None = None,
    ):
        super().__init__(dataset_name, output_dir)
        self._truth = truth or PanopticTruth(dataset_name)
        self._temporary = tempfile.mkdtemp(prefix="panoptic_eval") if output_dir is None else None
        self._folder = Path(output_dir or self._temporary)
        self.records = ImageRecords(self._folder, "predictions", key)

    def reset(self) -> None:
        self.records.open(
            lambda r: (self._folder / "panoptic" / r["annotation"]["file_name"]).is_file()
        )

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Write and compare predictions.

        Args:
            inputs: with ``image_id`` and ``file_name``.
            outputs: with ``panoptic_seg``: int map H x W and list of segments with contiguous
                ``category_id``.
        """
        for image, output in zip(inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            ids = ids.cpu().numpy()
            image_id = image["image_id"]
            name = self._truth.png_name(image_id)
            if ids.shape != self._truth.png_size(image_id):
                raise UserError(
                    f"{image['file_name']} is {ids.shape[0]} x {ids.shape[1]} (height x width), "
                    f"but its annotation {name} is "
                    "{} x {}.".format(*self._truth.png_size(image_id))
                )
            path = self._folder / "panoptic" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path, "wb") as f:
                Image.fromarray(id2rgb(ids)).save(f, format="PNG")
            annotation = {
                "image_id": image_id,
                "file_name": name,
                "segments_info": [
                    {
                        "id": s["id"],
                        "category_id": self._truth.dataset_ids[s["category_id"]],
                    }
                    for s in segments
                ],
            }
            counts = self._compare(annotation)
            self.records.write(image_id, {"annotation": annotation, "counts": counts})

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return ``{"panoptic_seg": {"PQ": ..., "PQ-<class>": ...}}``, percent, on rank 0."""
        records = self.records.gather()
        results = self._summarize(records) if comm.is_main_process() else None
        self.records.remove()
        if self._temporary:
            shutil.rmtree(self._temporary)
        return results

    def _compare(self, annotation: dict[str, Any]) -> list[list[float]]:
        """Return rows of category id, sum of IoU, TP, FP, FN of one prediction on the disk."""
        # panopticapi writes areas into the segments of the prediction.
        predicted = [dict(s) for s in annotation["segments_info"]]
        pair = (
            self._truth.scored_annotation(annotation["image_id"]),
            {**annotation, "segments_info": predicted},
        )
        with contextlib.redirect_stdout(io.StringIO()):
            stat = pq_compute_single_core(
                0,
                [pair],
                self._truth.folder,
                self._folder / "panoptic",
                self._truth.categories,
            )
        return [
            [category, float(s.iou), s.tp, s.fp, s.fn] for category, s in stat.pq_per_cat.items()
        ]

    def _summarize(self, records: Iterable[tuple[Any, dict]]) -> dict[str, dict[str, float]]:
        stat, annotations, per_image = PQStat(), {}, []
        for image_id, record in records:
            annotations[image_id] = record["annotation"]
            per_image.append({"image_id": image_id, "counts": record["counts"]})
            add_counts(stat, record["counts"])
        missing = len(self._truth.annotations.keys() - annotations.keys())
        if missing:
            logger.warning(
                "PQ is over %d images: %d of %s were not predicted.",
                len(annotations),
                missing,
                self._truth.json_file,
            )
        if self._output_dir:
            with atomic_file(self._folder / "predictions.json") as f:
                json.dump({**self._truth.json, "annotations": list(annotations.values())}, f)
            with atomic_file(self._folder / PER_IMAGE_FILE) as f:
                json.dump(per_image, f)
        return {"panoptic_seg": self._results(stat)}

    def _results(self, stat: PQStat) -> dict[str, float]:
        results, rows = {}, []
        for suffix, isthing in GROUPS.items():
            mean, count = mean_quality(stat, self._truth.categories, isthing)
            results.update({f"{key}{suffix}": value for key, value in mean.items()})
            rows.append(
                [
                    {"": "All", "_th": "Things", "_st": "Stuff"}[suffix],
                    *mean.values(),
                    count,
                ]
            )
        headers = ["", "PQ", "SQ", "RQ", "#categories"]
        table = tabulate(rows, headers, tablefmt="pipe", floatfmt=".3f", stralign="center")
        logger.info("Panoptic Evaluation Results:\n%s", table)
        if any(row[-1] == 0 for row in rows):
            logger.info(
                "NaN: the images have no segments of that kind, neither true nor predicted."
            )
        for name, dataset_id in zip(self._truth.class_names, self._truth.dataset_ids, strict=True):
            results[f"PQ-{name}"] = quality(stat[dataset_id])["PQ"]
        return results


def add_counts(stat: PQStat, counts: Iterable[list[float]]) -> None:
    """Add rows of category id, sum of IoU, TP, FP, FN."""
    for category, iou, tp, fp, fn in counts:
        one = PQStatCat()
        one.iou, one.tp, one.fp, one.fn = iou, tp, fp, fn
        stat.pq_per_cat[category] += one


def mean_quality(
    stat: PQStat, categories: dict[int, dict], isthing: bool | None
) -> tuple[dict[str, float], int]:
    """Mean over the classes that occur (Kirillov et al. 2019, section 4.2), and their number.

    Args:
        stat: sums per category id.
        categories: of the annotation file, by id.
        isthing: things or stuff only; None: all.
    """
    chosen = [c for c, info in categories.items() if isthing in (None, info["isthing"] == 1)]
    occurring = [s for s in (quality(stat[c]) for c in chosen) if not math.isnan(s["PQ"])]
    if not occurring:
        return dict.fromkeys(("PQ", "SQ", "RQ"), math.nan), 0
    mean = {key: float(np.mean([s[key] for s in occurring])) for key in ("PQ", "SQ", "RQ")}
    return mean, len(occurring)


def quality(s: PQStatCat) -> dict[str, float]:
    """PQ, SQ and RQ in percent; NaN for what does not occur."""
    total = s.tp + 0.5 * s.fp + 0.5 * s.fn
    if total == 0:
        return dict.fromkeys(("PQ", "SQ", "RQ"), math.nan)
    sq = 100 * s.iou / s.tp if s.tp else 0.0
    return {"PQ": 100 * s.iou / total, "SQ": sq, "RQ": 100 * s.tp / total}
