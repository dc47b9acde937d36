"""Box and mask AP on panoptic data sets."""

import json
import logging
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools import mask as mask_api

from ..checkpoint.atomic import atomic_file
from ..data.metadata import thing_class_ids
from ..data.panoptic_png import read_panoptic_png
from .ground_truth import categories_of, temporary_dataset

logger = logging.getLogger(__name__)


class PanopticInstanceEvaluator(COCOEvaluator):
    """``COCOEvaluator`` on the things of a panoptic data set.

    Ground truth is the data set's own ``json_file`` where that exists, else it is made from the
    panoptic PNGs. Only the images of the data set count.

    Args:
        dataset_name: a registered panoptic data set with things.
        output_dir: where the results go, and the ground truth if it is made.
    """

    def __init__(self, dataset_name: str, output_dir: str):
        metadata = MetadataCatalog.get(dataset_name)
        items = DatasetCatalog.get(dataset_name)
        self._image_ids = [item["image_id"] for item in items]
        json_file = metadata.get("json_file")
        categories = categories_of(metadata)
        if not (json_file and Path(json_file).is_file()):
            json_file = _make_instances_json(output_dir, items, categories, metadata)
        # COCOEvaluator wants classes 0 .. T - 1, all of them things.
        things = thing_class_ids(metadata)
        self._thing_index = {c: i for i, c in enumerate(things)}
        with temporary_dataset(
            items,
            json_file=json_file,
            thing_classes=[categories[c]["name"] for c in things],
            thing_dataset_id_to_contiguous_id={
                categories[c]["id"]: i for i, c in enumerate(things)
            },
        ) as name:
            super().__init__(name, output_dir=output_dir)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep ``instances``, whose ``pred_classes`` are contiguous over things and stuff."""
        things = [{"instances": self._things(output["instances"])} for output in outputs]
        super().process(inputs, things)

    def evaluate(self, img_ids: list | None = None) -> dict[str, dict[str, float]]:
        """Return AP, on rank 0."""
        return super().evaluate(img_ids or self._image_ids)

    def _things(self, instances: Instances) -> Instances:
        classes = instances.pred_classes.tolist()
        things = instances[[i for i, c in enumerate(classes) if c in self._thing_index]]
        things.pred_classes = things.pred_classes.new_tensor(
            [self._thing_index[c] for c in things.pred_classes.tolist()]
        )
        return things


def _make_instances_json(
    output_dir: str, items: list[dict], categories: list[dict], metadata: Metadata
) -> str:
    """Return the path of the json, which an earlier evaluation may have made.

    Rank 0 of the job writes it, and then each machine that does not see that file. Its name has
    the path, size and time of the annotations in it.
    """
    stat = os.stat(metadata.panoptic_json)
    source = f"{os.path.abspath(metadata.panoptic_json)} {stat.st_size} {stat.st_mtime_ns}"
    stamp = f"{zlib.crc32(source.encode()):08x}"
    path = Path(output_dir, f"{metadata.name}_instances_{stamp}.json")
    for writes in (comm.is_main_process(), comm.get_local_rank() == 0):
        if writes and not path.is_file():
            logger.info("Making %s from the panoptic annotations ...", path)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                json.dump(instances_from_panoptic(items, categories), file)
        comm.synchronize()
    return str(path)


def instances_from_panoptic(items: list[dict], categories: list[dict]) -> dict[str, Any]:
    """Make COCO instances, RLE masks, of the thing segments; crowd stays crowd.

    Segments without a pixel are left out.

    Args:
        items: dataset dicts with contiguous category ids.
        categories: of the set, in order of the contiguous ids.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    for item in items:
        ids = read_panoptic_png(item["pan_seg_file_name"])
        height, width = ids.shape
        name = os.path.basename(item["file_name"])
        images.append({"id": item["image_id"], "file_name": name, "height": height, "width": width})
        for segment in item["segments_info"]:
            category, mask = categories[segment["category_id"]], ids == segment["id"]
            if not category["isthing"] or not mask.any():
                continue
            rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": item["image_id"],
                    "category_id": category["id"],
                    "iscrowd": int(segment.get("iscrowd", 0)),
                    "area": int(mask.sum()),
                    "bbox": mask_api.toBbox(rle).tolist(),
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                }
            )
    things = [category for category in categories if category["isthing"]]
    return {"images": images, "categories": things, "annotations": annotations}
