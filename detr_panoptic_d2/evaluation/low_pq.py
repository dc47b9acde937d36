"""Advice for a PQ near 0, from the files of an evaluation."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from panopticapi.evaluation import PQStat

from .panoptic import PER_IMAGE_FILE
from .pq import add_rows, average

# Percent. Below, a training has hardly learned anything.
LOW_PQ = 5.0


def read_counts(folder: Path) -> tuple[dict[int, dict[str, Any]], list[dict[str, Any]]]:
    """Read the files of :class:`.PanopticEvaluator` from its output folder.

    Returns:
        the categories by id; and for each image ``image_id`` and ``counts``.
    """
    predictions = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    per_image = json.loads((folder / PER_IMAGE_FILE).read_text(encoding="utf-8"))
    return {c["id"]: c for c in predictions["categories"]}, per_image


def explain_low_pq(cfg: CfgNode, folders: Iterable[Path]) -> list[str]:
    """Say what was not learned, and what to check first, for datasets with a PQ near 0.

    ``folders`` are those of :class:`.PanopticEvaluator`, with the names of the datasets.
    """
    lines: list[str] = []
    for folder in folders:
        if not (folder / PER_IMAGE_FILE).is_file():
            continue
        categories, per_image = read_counts(folder)
        stat = PQStat()
        for image in per_image:
            add_rows(stat, image["counts"])
        pq = 100 * average(stat, categories)["pq"]
        if pq < LOW_PQ:
            failed = [c["name"] for i, c in categories.items() if stat[i].fn and not stat[i].tp]
            num_matched = sum(s.tp for s in stat.pq_per_cat.values())
            num_annotated = num_matched + sum(s.fn for s in stat.pq_per_cat.values())
            lines += [
                f"PQ on '{folder.name}' is {pq:.1f}: {num_matched} of {num_annotated} annotated "
                f"segments were matched. Classes without a match: {', '.join(failed) or 'none'}.",
                "Check these three first:",
                *_advice(cfg, [image["counts"] for image in per_image]),
            ]
    return lines


def _advice(cfg: CfgNode, counts: list[list[list[float]]]) -> list[str]:
    """Return a line each on queries, score threshold and schedule, from the counts per image."""
    detr, num_images = cfg.MODEL.DETR, len(counts)
    max_segments = max(int(sum(tp + fn for *_, tp, _, fn in rows)) for rows in counts)
    num_predicted = sum(tp + fp for rows in counts for *_, tp, fp, _ in rows) / num_images
    num_annotated = sum(tp + fn for rows in counts for *_, tp, _, fn in rows) / num_images
    queries = f"Queries: NUM_OBJECT_QUERIES is {detr.NUM_OBJECT_QUERIES}, and an image has up to "
    queries += f"{max_segments} segments. "
    enough = max_segments < detr.NUM_OBJECT_QUERIES
    queries += "That is enough." if enough else f"Set it to {2 * max_segments} and train again."
    threshold = (
        f"Threshold: {num_predicted:.1f} segments per image are predicted, {num_annotated:.1f} are "
        f"annotated, with MODEL.DETR.TEST.SCORE_THRESH {detr.TEST.SCORE_THRESH:g}. "
    )
    if num_predicted < num_annotated / 2:
        threshold += "Lower it: 'detr-panoptic tune' finds the best value without training."
    else:
        threshold += "That is no reason for a low PQ."
    names = [name for name in cfg.DATASETS.TRAIN if name in DatasetCatalog.list()]
    num_seen = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    schedule = f"Schedule: {cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images"
    if num_train := sum(len(DatasetCatalog.get(name)) for name in names):
        schedule += f" are {num_seen / num_train:.1f} epochs of {num_train} images"
    schedule += (
        ". Official DETR trains 300 epochs or more from an ImageNet backbone. Start from "
        "checkpoint weights (MODEL.WEIGHTS), or raise SOLVER.MAX_ITER and SOLVER.STEPS."
    )
    return [queries, threshold, schedule]
