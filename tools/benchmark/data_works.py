"""The cost of mapper and panoptic evaluation, beside Detectron2 and panopticapi."""

import contextlib
import io
import os
import tempfile
import tracemalloc
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.structures import BitMasks, Instances
from measure import Clock, measure
from panopticapi.evaluation import pq_compute_single_core
from panopticapi.utils import rgb2id

from detr_panoptic_d2.data.dataset_mapper import PanopticDatasetMapper
from detr_panoptic_d2.data.panoptic_png import read_panoptic_png
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.errors import UserError
from detr_panoptic_d2.evaluation import PanopticEvaluator
from detr_panoptic_d2.evaluation.instances import with_annotations
from detr_panoptic_d2.evaluation.pq import to_rows

OURS, OURS_FILES = "ours", "ours, with PNGs"
# Detectron2's ``process`` encodes a PNG and compares nothing; panopticapi then reads both PNGs.
THEIRS, COMPARISON = "Detectron2's process", "panopticapi's comparison"
PAIRS = ((OURS, THEIRS), (OURS_FILES, THEIRS), (OURS, COMPARISON), (COMPARISON, THEIRS))
OUR_MAPPER, STOCK_MAPPER = "ours", "Detectron2's DatasetMapper, RLE masks"
MASK_PER_SEGMENT = "a mask per segment of the PNG, as in Mask2Former"
MAPPER_PAIRS = ((OUR_MAPPER, STOCK_MAPPER), (OUR_MAPPER, MASK_PER_SEGMENT))
_MAX_IMAGES = 16


class Evaluation:
    """``process`` of evaluators on images of the first test set of the config.

    The predictions are the annotations, moved by five pixels, on the device.
    """

    def __init__(self, options: Namespace):
        self.clock = Clock(torch.device(options.device), options.cpu_time)
        self.repeats = options.repeats
        cfg = setup_cfg(options.config_file, options.opts)
        (self.name, *_) = cfg.DATASETS.TEST
        self.items = DatasetCatalog.get(self.name)[:_MAX_IMAGES]
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self.ours = PanopticEvaluator(self.name)
        self.ours_files = PanopticEvaluator(self.name, str(self.folder))
        self.theirs = COCOPanopticEvaluator(self.name)
        self.outputs = [
            {"panoptic_seg": _shift(item, torch.device(options.device))} for item in self.items
        ]

    def check(self) -> dict[str, float]:
        """Compare the counts with those of panopticapi, which must be equal."""
        self.process(self.ours_files)
        for prediction, item in zip(self.ours_files._predictions, self.items, strict=True):
            # panopticapi's class sums, without those that it made by looking them up.
            expected = [r for r in to_rows(self._panopticapi([item])) if any(r[1:])]
            if sorted(expected) != sorted(r for r in prediction["counts"] if any(r[1:])):
                raise UserError(f"panopticapi counts otherwise in {item['file_name']}.")
        return {"counts of each class": 0.0}

    def rows(self) -> Iterator[dict]:
        """Times of all images, and what the evaluators keep in memory for each."""
        variants = {
            OURS: lambda: self.process(self.ours),
            OURS_FILES: lambda: self.process(self.ours_files),
            THEIRS: lambda: self.process(self.theirs),
            COMPARISON: lambda: self._panopticapi(self.items),
        }
        height, width = self.outputs[0]["panoptic_seg"][0].shape
        segments = [len(output["panoptic_seg"][1]) for output in self.outputs]
        case = {"images": len(self.items), "first": f"{height}x{width}"}
        case["segments"] = f"{min(segments)}-{max(segments)}"
        yield {"case": case, **measure(variants, PAIRS, self.clock, self.repeats)}
        for name, evaluator in ((OURS, self.ours), (THEIRS, self.theirs)):
            tracemalloc.start()
            self.process(evaluator)
            kept = tracemalloc.get_traced_memory()[0] / len(self.items) / 1024
            tracemalloc.stop()
            yield {"case": {"side": name}, "figures": {"KiB kept per image": kept}}

    def process(self, evaluator: COCOPanopticEvaluator) -> None:
        """One image after the other, as from ``inference_on_dataset``."""
        evaluator.reset()
        for item, output in zip(self.items, self.outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            # Detectron2 changes the segments.
            evaluator.process([item], [{"panoptic_seg": (ids, [dict(s) for s in segments])}])

    def _panopticapi(self, items: list[dict]):
        """Let panopticapi compare the PNGs that ``ours, with PNGs`` wrote."""
        by_image = {p["image_id"]: p for p in self.ours_files._predictions}
        pairs = []
        for item in items:
            png = os.path.abspath(item["pan_seg_file_name"])
            annotated = [
                {"iscrowd": 0, **s, "category_id": self.ours._dataset_ids[s["category_id"]]}
                for s in item["segments_info"]
            ]
            prediction = by_image[item["image_id"]]
            predicted = [dict(s) for s in prediction["segments_info"]]
            path = self.folder / "panoptic" / prediction["file_name"]
            pairs.append(
                (
                    {"image_id": 0, "file_name": png, "segments_info": annotated},
                    {"image_id": 0, "file_name": str(path), "segments_info": predicted},
                )
            )
        with contextlib.redirect_stdout(io.StringIO()):
            return pq_compute_single_core(0, pairs, "", "", self.ours._categories)


def _shift(item: dict, device: torch.device) -> tuple[torch.Tensor, list[dict]]:
    """Return the annotation, moved, with ids from 1 as the model gives them."""
    annotated_ids = np.roll(read_panoptic_png(item["pan_seg_file_name"]), 5, axis=1)
    ids, segments = np.zeros(annotated_ids.shape, np.int32), []
    for segment in item["segments_info"]:
        mask = annotated_ids == segment["id"]
        if mask.any():
            ids[mask] = number = len(segments) + 1
            category, isthing = segment["category_id"], bool(segment["isthing"])
            segments.append({"id": number, "category_id": category, "isthing": isthing})
    return torch.from_numpy(ids).to(device), segments


class Mapper:
    """Mappers on images of the first training set, with a resize to ``--size`` and a random flip.

    All of them return an image, boxes and masks of all segments.
    """

    def __init__(self, options: Namespace):
        self.clock = Clock(torch.device("cpu"), options.cpu_time)
        self.repeats = options.repeats
        self.size = options.size or (480, 640)
        cfg = setup_cfg(options.config_file, options.opts)
        (name, *_) = cfg.DATASETS.TRAIN
        self.items = DatasetCatalog.get(name)[:_MAX_IMAGES]
        classes = {s["category_id"] for item in self.items for s in item["segments_info"]}
        # Detectron2's mapper reads instance annotations: those of all segments.
        index = dict(zip(classes, classes, strict=True))
        self.annotated = [with_annotations(item, index) for item in self.items]
        self.augmentations = [T.Resize(self.size), T.RandomFlip()]
        self.ours = PanopticDatasetMapper(
            augmentations=self.augmentations,
            image_format="RGB",
            with_targets=True,
            with_masks=True,
        )
        self.stock = DatasetMapper(
            is_train=True,
            augmentations=self.augmentations,
            image_format="RGB",
            use_instance_mask=True,
            instance_mask_format="bitmask",
        )

    def check(self) -> dict[str, float]:
        """Nothing: the mappers make boxes of different conventions."""
        return {}

    def rows(self) -> Iterator[dict]:
        """Times of all images, and images per second of a worker."""
        variants = {
            OUR_MAPPER: lambda: [self.ours(item) for item in self.items],
            STOCK_MAPPER: lambda: [self.stock(item) for item in self.annotated],
            MASK_PER_SEGMENT: lambda: [self._mask_per_segment(item) for item in self.items],
        }
        case = {"images": len(self.items), "size": "x".join(map(str, self.size))}
        row = {"case": case, **measure(variants, MAPPER_PAIRS, self.clock, self.repeats)}
        yield row
        for side, times in row["times"].items():
            rate = len(self.items) / times["median"]
            yield {"case": {"side": side}, "figures": {"images per second and worker": rate}}

    def _mask_per_segment(self, item: dict) -> dict:
        image = utils.read_image(item["file_name"], "RGB")
        aug_input = T.AugInput(image)
        transforms = T.AugmentationList(self.augmentations)(aug_input)
        ids = utils.read_image(item["pan_seg_file_name"], "RGB")
        ids = rgb2id(transforms.apply_segmentation(ids))
        segments = [s for s in item["segments_info"] if not s.get("iscrowd", 0)]
        instances = Instances(aug_input.image.shape[:2])
        instances.gt_classes = torch.tensor([s["category_id"] for s in segments])
        masks = BitMasks(np.stack([ids == s["id"] for s in segments]))
        instances.gt_masks, instances.gt_boxes = masks.tensor, masks.get_bounding_boxes()
        image = torch.as_tensor(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        return {"image": image, "instances": instances}
