"""Box and mask AP on panoptic data sets."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools import mask as mask_api

from ..checkpoint.atomic import atomic_file
from .records import ImageRecords
from .truth import PanopticTruth

logger = logging.getLogger(__name__)


class PanopticInstanceEvaluator(COCOEvaluator):
    """``COCOEvaluator`` on the things of a panoptic data set.

    The truth is the data set's own ``json_file`` where that exists, else it is made from the
    panoptic PNGs. Only the images of the panoptic json count.

    Args:
        truth: the annotations.
        output_dir: where the results go, and the truth if it is made.
        key: of what is predicted, see :class:`ImageRecords`.
    """

    def __init__(self, truth: PanopticTruth, output_dir: str, key: str | None = None):
        self._truth = truth
        self.records = ImageRecords(Path(output_dir), "instances", key)
        # COCOEvaluator reads everything from metadata and wants classes 0 .. T - 1, all things.
        self._thing_index = {c: i for i, c in enumerate(truth.thing_ids)}
        name = f"{truth.name}_things"
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)
        MetadataCatalog.get(name).set(
            json_file=_instances_json(truth, output_dir),
            thing_classes=[truth.class_names[c] for c in truth.thing_ids],
            thing_dataset_id_to_contiguous_id={
                truth.dataset_ids[c]: i for c, i in self._thing_index.items()
            },
        )
        super().__init__(name, output_dir=output_dir)

    def reset(self) -> None:
        super().reset()
        self.records.open()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Write ``instances``, whose ``pred_classes`` are contiguous over things and stuff."""
        for image, output in zip(inputs, outputs, strict=True):
            things = self._things(output["instances"]).to("cpu")
            image_id = image["image_id"]
            self.records.write(image_id, instances_to_coco_json(things, image_id))

    def evaluate(self, img_ids: list | None = None) -> dict[str, dict[str, float]]:
        """Return AP, on rank 0. COCO's own code needs all predictions in memory then."""
        # What is on rank 0 here, Detectron2's evaluator gathers from all.
        self._predictions = [
            {"image_id": image_id, "instances": found} for image_id, found in self.records.gather()
        ]
        results = super().evaluate(img_ids or list(self._truth.annotations))
        self.records.remove()
        self._predictions = []
        return results

    def _things(self, instances: Instances) -> Instances:
        classes = instances.pred_classes.tolist()
        things = instances[[i for i, c in enumerate(classes) if c in self._thing_index]]
        things.pred_classes = things.pred_classes.new_tensor(
            [self._thing_index[c] for c in things.pred_classes.tolist()]
        )
        return things


def _instances_json(truth: PanopticTruth, output_dir: str) -> str:
    """Return the path of a COCO instances json, made if need be (once per machine)."""
    existing = truth.metadata.get("json_file")
    if existing and Path(existing).is_file():
        return existing
    path = Path(output_dir, f"{truth.name}_instances.json")
    if comm.get_local_rank() == 0:
        source = _fingerprint(truth)
        if not (path.is_file() and _source_of(path) == source):
            logger.info("Making %s from the panoptic annotations ...", path)
            os.makedirs(output_dir, exist_ok=True)
            content = {"info": source, **instances_from_panoptic(truth)}
            with atomic_file(path) as f:
                json.dump(content, f)
    comm.synchronize()
    return str(path)


def instances_from_panoptic(truth: PanopticTruth) -> dict[str, Any]:
    """Make COCO instances, RLE masks, of the thing segments; crowd stays crowd.

    Segments without a pixel are left out.
    """
    things = {truth.dataset_ids[c] for c in truth.thing_ids}
    annotations: list[dict[str, Any]] = []
    for image_id, annotation in truth.annotations.items():
        segments = [s for s in annotation["segments_info"] if s["category_id"] in things]
        ids = truth.segment_ids(image_id) if segments else None
        for segment in segments:
            mask = ids == segment["id"]
            if not mask.any():
                continue
            rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": segment["category_id"],
                    "iscrowd": int(segment.get("iscrowd", 0)),
                    "area": int(mask.sum()),
                    "bbox": mask_api.toBbox(rle).tolist(),
                    "segmentation": {
                        "size": rle["size"],
                        "counts": rle["counts"].decode(),
                    },
                }
            )
    return {
        "images": truth.json["images"],
        "categories": [c for c in truth.json["categories"] if c["id"] in things],
        "annotations": annotations,
    }


def _fingerprint(truth: PanopticTruth) -> dict[str, Any]:
    stat = os.stat(truth.json_file)
    return {
        "source": truth.json_file,
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
    }


def _source_of(path: Path) -> dict[str, Any] | None:
    with open(path, encoding="utf-8") as f:
        return json.load(f).get("info")
