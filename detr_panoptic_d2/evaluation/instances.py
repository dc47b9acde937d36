"""Box and mask AP on panoptic datasets."""

import os
import zlib
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode, Instances
from pycocotools import mask as mask_api

from ..data.metadata import categories_of, thing_class_ids
from ..data.panoptic_png import read_panoptic_png
from .ground_truth import temporary_dataset


class PanopticInstanceEvaluator(COCOEvaluator):
    """``COCOEvaluator`` on the things of a panoptic dataset.

    The ground truth is the ``json_file`` of the dataset. If there is none, Detectron2 makes it
    from the panoptic PNGs, and again if the annotations change. Only images of the dataset count.
    """

    def __init__(self, dataset_name: str, output_dir: str):
        metadata = MetadataCatalog.get(dataset_name)
        items = DatasetCatalog.get(dataset_name)
        self._image_ids = [item["image_id"] for item in items]
        # COCOEvaluator needs classes 0 .. T - 1, all of them things.
        things = thing_class_ids(metadata)
        self._thing_index = {c: i for i, c in enumerate(things)}
        categories = [categories_of(metadata)[c] for c in things]
        with temporary_dataset(
            lambda: [with_annotations(item, self._thing_index) for item in items],
            thing_classes=[c["name"] for c in categories],
            thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
        ) as name:
            json_file = metadata.get("json_file")
            if not (json_file and Path(json_file).is_file()):
                stat = os.stat(metadata.panoptic_json)
                state = f"{os.path.abspath(metadata.panoptic_json)} {stat.st_size} {stat.st_mtime}"
                stem = f"{dataset_name}_instances_{zlib.crc32(state.encode()):08x}"
                json_file = os.path.join(output_dir, f"{stem}.json")
                convert_to_coco_json(name, json_file)
            MetadataCatalog.get(name).json_file = json_file
            super().__init__(name, output_dir=output_dir)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        things = [{"instances": self._things(output["instances"])} for output in outputs]
        super().process(inputs, things)

    def evaluate(self, img_ids: list | None = None) -> dict[str, dict[str, float]]:
        return super().evaluate(img_ids or self._image_ids)

    def _things(self, instances: Instances) -> Instances:
        classes = instances.pred_classes.tolist()
        things = instances[[i for i, c in enumerate(classes) if c in self._thing_index]]
        things.pred_classes = things.pred_classes.new_tensor(
            [self._thing_index[c] for c in things.pred_classes.tolist()]
        )
        return things


def with_annotations(item: dict, thing_index: dict[int, int]) -> dict:
    """Add ``annotations`` to a panoptic dataset dict: RLE masks of the things that have pixels.

    ``thing_index`` maps contiguous ids of things and stuff to those of the things alone.
    """
    ids = read_panoptic_png(item["pan_seg_file_name"])
    annotations = []
    for segment in item["segments_info"]:
        mask = np.asfortranarray(ids == segment["id"], dtype=np.uint8)
        if segment["category_id"] in thing_index and mask.any():
            rle = mask_api.encode(mask)
            annotations.append(
                {
                    "category_id": thing_index[segment["category_id"]],
                    "iscrowd": int(segment.get("iscrowd", 0)),
                    "bbox": mask_api.toBbox(rle).tolist(),
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "segmentation": rle,
                }
            )
    height, width = ids.shape
    return {**item, "height": height, "width": width, "annotations": annotations}
