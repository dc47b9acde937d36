"""Map dataset dicts to the model's input: DETR's augmentation, masks and boxes of all segments."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.logger import log_first_n
from PIL import Image, ImageOps

from ..errors import UserError, check_value
from .augmentation import build_augmentations
from .label_maps import LabelMasks, ids_to_labels, label_boxes_and_areas
from .panoptic_png import open_image, read_panoptic_png


def is_target(segment: Mapping[str, Any]) -> bool:
    """Return whether training learns from a segment or an instance annotation: not from a crowd."""
    return not segment.get("iscrowd", 0)


class PanopticDatasetMapper:
    """Map a dict in Detectron2's dataset format to the model's input.

    The mapper accepts panoptic dicts (``pan_seg_file_name``, ``segments_info``) and instance dicts
    (``annotations`` with polygons or RLE, or with boxes alone if no masks are needed). Things and
    stuff become rows of one ``Instances``. Crowd segments and void do not, nor do segments that
    have no pixel, also after cropping and resizing. Ids in a PNG without an entry are void.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation],
        image_format: str,
        with_targets: bool,
        with_masks: bool,
    ):
        """
        Args:
            augmentations: applied in this order to image and annotation.
            image_format: as in :func:`detectron2.data.detection_utils.read_image`.
            with_targets: add ``instances``. From a config: in training only.
            with_masks: give the instances ``gt_masks``. From a config: if ``MODEL.MASK_ON``.
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.with_targets = with_targets
        self.with_masks = with_masks
        logging.getLogger(__name__).info(f"Augmentations: {augmentations}")

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        image_format = cfg.INPUT.FORMAT
        check_value("INPUT.FORMAT", image_format, image_format in ("RGB", "BGR"), "RGB or BGR")
        return {
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": image_format,
            "with_targets": is_train,
            "with_masks": cfg.MODEL.MASK_ON,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Returns:
            dict: ``image`` (C, H, W) of the transformed size; ``file_name``, ``image_id``,
            ``height``, ``width`` of the file; and with targets ``instances`` with ``gt_classes``
            (contiguous), ``gt_boxes`` (XYXY in pixels of ``image``) and ``gt_masks``
            (``BitMasks``). Boxes of panoptic segments are tight around the transformed masks, with
            inclusive pixel indices as in official DETR; those of instances are Detectron2's.

        Raises:
            OSError: the image or the PNG is missing or broken.
            UserError: sizes of image, annotation and PNG differ, a segment id is listed twice, or
                an annotation has no mask although masks are needed.
        """
        file_name = dataset_dict["file_name"]
        image = read_image(file_name, self.image_format)
        height, width = image.shape[:2]
        annotated_size = dataset_dict.get("height") or height, dataset_dict.get("width") or width
        _check_same_size(f"Image '{file_name}'", (height, width), "its annotation", annotated_size)
        result = {"file_name": file_name, "height": height, "width": width}
        if "image_id" in dataset_dict:
            result["image_id"] = dataset_dict["image_id"]

        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        result["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if not self.with_targets:
            return result
        if "pan_seg_file_name" in dataset_dict:
            instances = self._panoptic_instances(dataset_dict, transforms, (height, width))
        elif "annotations" in dataset_dict:
            instances = self._annotated_instances(dataset_dict, transforms, image.shape[:2])
        else:
            raise UserError(
                f"No annotation of '{file_name}': its dict has neither pan_seg_file_name nor "
                "annotations, so this dataset cannot be used for training."
            )
        return {**result, "instances": instances}

    def _panoptic_instances(
        self, dataset_dict: dict, transforms: T.TransformList, image_size: tuple[int, int]
    ) -> Instances:
        png = dataset_dict["pan_seg_file_name"]
        ids = read_panoptic_png(png)
        image_name = f"its image '{dataset_dict['file_name']}'"
        _check_same_size(f"Panoptic PNG '{png}'", ids.shape, image_name, image_size)
        # Targets first, then crowds.
        infos = sorted(dataset_dict["segments_info"], key=is_target, reverse=True)
        try:
            labels, unnamed_ids = ids_to_labels(ids, [s["id"] for s in infos])
        except UserError as error:
            raise UserError(f"Annotation of '{png}': {error}") from error
        transformed = _transform_labels(labels, transforms)
        if len(unnamed_ids):
            log_first_n(
                logging.WARNING,
                f"Panoptic PNG '{png}' and its segments_info differ. Ids without entry are void: "
                f"{unnamed_ids[:3].tolist()}. Run detr-panoptic check for a list of such files.",
                name=__name__,
            )
        boxes, areas = label_boxes_and_areas(transformed, len(infos))
        present = np.flatnonzero(areas[: sum(map(is_target, infos))])
        instances = Instances(transformed.shape)
        classes = np.array([s["category_id"] for s in infos], dtype=np.int64)
        instances.gt_classes = torch.from_numpy(classes[present])
        instances.gt_boxes = Boxes(torch.from_numpy(boxes[present]))
        if self.with_masks:
            if transformed.dtype != np.uint8:
                # torch compares no uint16.
                transformed = transformed.astype(np.int32)
            instances.gt_masks = LabelMasks(
                torch.from_numpy(transformed), torch.from_numpy(present + 1)
            )
        return instances

    def _annotated_instances(
        self, dataset_dict: dict, transforms: T.TransformList, size: tuple[int, int]
    ) -> Instances:
        unused = {"keypoints"} if self.with_masks else {"keypoints", "segmentation"}
        needed = ("bbox", "bbox_mode", "segmentation")[: 3 if self.with_masks else 2]
        annotations = []
        for annotation in filter(is_target, dataset_dict["annotations"]):
            missing = next((key for key in needed if annotation.get(key) in (None, [])), None)
            if missing:
                raise UserError(
                    f"Image '{dataset_dict['file_name']}': an annotation of category_id "
                    f"{annotation.get('category_id')} has no '{missing}'. With "
                    "MODEL.MASK_ON False, boxes are enough."
                )
            annotation = {k: v for k, v in annotation.items() if k not in unused}
            annotations.append(utils.transform_instance_annotations(annotation, transforms, size))
        instances = utils.annotations_to_instances(annotations, size, mask_format="bitmask")
        if self.with_masks and not annotations:
            instances.gt_masks = BitMasks(torch.zeros((0, *size), dtype=torch.bool))
        elif self.with_masks:
            # A transformed box is not tight after a crop.
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return utils.filter_empty_instances(instances)


def read_image(file_name: str | os.PathLike, image_format: str) -> np.ndarray:
    """Read an image, H x W x C, with Detectron2's ``read_image``; errors name the file.

    16-bit images are scaled to 8 bits, where Pillow would clip all values above 255 to white.
    A ``UserError`` says that pixel values are neither.
    """
    hint = "Check the image root and DETECTRON2_DATASETS."
    with open_image(file_name, "Image", hint) as image:
        if not image.mode.startswith(("I", "F")):
            return utils.read_image(os.fspath(file_name), format=image_format)
        values = np.asarray(ImageOps.exif_transpose(image))
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise UserError(
            f"Image '{file_name}' has {values.dtype} pixels from {values.min()} to {values.max()}; "
            "8- and 16-bit integers are supported. Convert it first."
        )
    high_bytes = Image.fromarray((values.astype(np.int64) >> 8).astype(np.uint8))
    return utils.convert_PIL_to_numpy(high_bytes, image_format)


def _transform_labels(labels: np.ndarray, transforms: T.TransformList) -> np.ndarray:
    """Transform a label map (H, W) by nearest neighbor, byte by byte as Pillow needs it."""
    if labels.dtype == np.uint8:
        return np.array(transforms.apply_segmentation(labels), order="C")
    low = transforms.apply_segmentation((labels & 0xFF).astype(np.uint8))
    high = transforms.apply_segmentation((labels >> 8).astype(np.uint8))
    return (high.astype(labels.dtype) << 8) | low


def _check_same_size(
    name: str, size: tuple[int, ...], other_name: str, other: tuple[int, ...]
) -> None:
    if size != other:
        raise UserError(
            f"{name} is {size[1]} wide and {size[0]} high, but {other_name} is {other[1]} wide and "
            f"{other[0]} high. Images are rotated by their EXIF orientation; annotations must fit "
            "the rotated image."
        )
