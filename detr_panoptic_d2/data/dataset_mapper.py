"""Dataset dict -> what the model is fed: DETR's augmentation, masks and boxes of all segments."""

import logging
import os

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.logger import log_first_n
from PIL import Image, ImageOps

from ..errors import UserError, check_value
from .label_maps import ids_to_labels, label_boxes_and_areas
from .panoptic_png import open_image, read_panoptic_png


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's, which gives long and thin images (12000 x 5, say) at least one pixel."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Choose a size for an image (H, W, ...)."""
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h = max(1, transform.new_h)
            transform.new_w = max(1, transform.new_w)
        return transform


class PanopticDatasetMapper:
    """Map a dict in Detectron2's dataset format to the model's input.

    Panoptic dicts (``pan_seg_file_name``, ``segments_info``) and instance dicts
    (``annotations`` with polygons, RLE or boxes alone) are understood; where a dict has both, the
    panoptic annotation is taken. Things and stuff become rows of one ``Instances`` alike; crowd and
    void do not. Random numbers come from NumPy's global generator, which Detectron2's loader seeds.

    Policies for panoptic annotations: ids of the PNG that no entry names are void, entries without
    pixels are left out; both are warned of once per process, with the file's name. Segments that
    vanish in the crop or by resizing are left out.
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
            with_targets: add ``instances``. From a config: in training only, but
                ``PanopticDatasetMapper(cfg, is_train=False, with_targets=True)`` gives the
                targets at test size.
            with_masks: give the instances ``gt_masks``; the box stage needs none.
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.with_targets = with_targets
        self.with_masks = with_masks
        logging.getLogger(__name__).info(f"Augmentations: {augmentations}")

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """Read the ``INPUT`` keys; masks are made if ``MODEL.MASK_ON``."""
        _check_input(cfg.INPUT)
        return {
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "with_targets": is_train,
            "with_masks": cfg.MODEL.MASK_ON,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: one image in Detectron2's dataset format; not changed.

        Returns:
            dict: ``image`` (C, H, W) of the transformed size; ``file_name``, ``image_id``,
            ``height``, ``width`` of the file; and with targets ``instances`` with ``gt_classes``
            (contiguous), ``gt_boxes`` (XYXY in pixels of ``image``) and ``gt_masks`` (BitMasks).
            Panoptic boxes are tight around the transformed masks with inclusive pixel indices,
            official DETR's convention; annotated boxes are moved along with the image, or are
            Detectron2's tight boxes of the masks where there are masks.

        Raises:
            OSError: the image or the PNG is missing or broken.
            UserError: sizes of image, annotation and PNG differ, or a segment id is listed twice.
        """
        file_name = dataset_dict["file_name"]
        image = read_image(file_name, self.image_format)
        height, width = image.shape[:2]
        annotated = dataset_dict.get("height") or height, dataset_dict.get("width") or width
        _check_same_size(f"Image '{file_name}'", (height, width), "its annotation", annotated)
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
            instances = self._annotated_instances(
                dataset_dict["annotations"], transforms, image.shape[:2]
            )
        else:
            raise UserError(
                f"No annotation of '{file_name}': its dict has neither pan_seg_file_name nor "
                "annotations, so this data set cannot be trained on."
            )
        return {**result, "instances": instances}

    def _panoptic_instances(
        self, dataset_dict: dict, transforms: T.TransformList, image_size: tuple[int, int]
    ) -> Instances:
        png = dataset_dict["pan_seg_file_name"]
        ids = read_panoptic_png(png)
        of_image = f"its image '{dataset_dict['file_name']}'"
        _check_same_size(f"Panoptic PNG '{png}'", ids.shape, of_image, image_size)
        infos = dataset_dict["segments_info"]
        targets = [s for s in infos if not s.get("iscrowd", 0)]
        crowd = [s for s in infos if s.get("iscrowd", 0)]
        try:
            labels, unnamed = ids_to_labels(ids, [s["id"] for s in targets + crowd])
        except UserError as error:
            raise UserError(f"Annotation of '{png}': {error}") from error
        if len(unnamed):
            log_first_n(
                logging.WARNING,
                f"Panoptic PNG '{png}' has ids that no entry of segments_info names, such as "
                f"{unnamed[0]}; their pixels are void. Further such files are not reported.",
                name=__name__,
            )
        transformed = _transform_labels(labels, transforms)
        boxes, areas = label_boxes_and_areas(transformed, len(infos))
        present = np.flatnonzero(areas[: len(targets)])
        if len(present) < len(targets):
            pixels = np.bincount(labels.reshape(-1), minlength=len(targets) + 1)[1:]
            if empty := [s["id"] for s, area in zip(targets, pixels, strict=False) if area == 0]:
                log_first_n(
                    logging.WARNING,
                    f"Panoptic PNG '{png}' has no pixel of segment {empty[0]}, which its "
                    "segments_info lists; the entry is left out. Further such entries are not "
                    "reported.",
                    name=__name__,
                )
        instances = Instances(transformed.shape)
        classes = np.array([s["category_id"] for s in targets], dtype=np.int64)
        instances.gt_classes = torch.from_numpy(classes[present])
        instances.gt_boxes = Boxes(torch.from_numpy(boxes[present]))
        if self.with_masks:
            wanted = (present + 1).astype(transformed.dtype)
            instances.gt_masks = BitMasks(torch.from_numpy(transformed == wanted[:, None, None]))
        return instances

    def _annotated_instances(
        self, annotations: list[dict], transforms: T.TransformList, size: tuple[int, int]
    ) -> Instances:
        unused = {"keypoints"} if self.with_masks else {"keypoints", "segmentation"}
        kept = [
            utils.transform_instance_annotations(
                {k: v for k, v in annotation.items() if k not in unused}, transforms, size
            )
            for annotation in annotations
            if not annotation.get("iscrowd", 0)
        ]
        instances = utils.annotations_to_instances(kept, size, mask_format="bitmask")
        if self.with_masks and not kept:
            instances.gt_masks = BitMasks(torch.zeros((0, *size), dtype=torch.bool))
        elif instances.has("gt_masks"):
            # After a crop the moved box is no longer tight.
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return utils.filter_empty_instances(instances)


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """DETR's augmentation: flip, then multi-scale resize, sometimes after a resize and a crop.

    Args:
        cfg: ``INPUT.{MIN,MAX}_SIZE_{TRAIN,TEST}``, ``INPUT.MIN_SIZE_TRAIN_SAMPLING``,
            ``INPUT.RANDOM_FLIP`` and ``INPUT.CROP`` are read.
        is_train: False gives the test resize alone.
    """
    if not is_train:
        return [ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    augmentations: list[T.Augmentation] = []
    if cfg.INPUT.RANDOM_FLIP != "none":
        vertical = cfg.INPUT.RANDOM_FLIP == "vertical"
        augmentations.append(T.RandomFlip(horizontal=not vertical, vertical=vertical))
    if cfg.INPUT.CROP.ENABLED:
        crop = T.AugmentationList(
            [
                ResizeShortestEdge(cfg.INPUT.CROP.RESIZE_MIN_SIZES, sample_style="choice"),
                T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE),
            ]
        )
        augmentations.append(T.RandomApply(crop, prob=cfg.INPUT.CROP.PROB))
    augmentations.append(
        ResizeShortestEdge(
            cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        )
    )
    return augmentations


def _check_input(inputs: CfgNode) -> None:
    choices = {
        "FORMAT": ("RGB", "BGR"),
        "RANDOM_FLIP": ("horizontal", "vertical", "none"),
        "MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    }
    for key, allowed in choices.items():
        check_value(f"INPUT.{key}", inputs[key], inputs[key] in allowed, " or ".join(allowed))
    kinds = "absolute", "absolute_range", "relative", "relative_range"
    crop = inputs.CROP
    check_value("INPUT.CROP.TYPE", crop.TYPE, crop.TYPE in kinds, " or ".join(kinds))
    check_value("INPUT.CROP.PROB", crop.PROB, 0 <= crop.PROB <= 1, "a number from 0 to 1")
    sizes = {key: inputs[key] for key in ("MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN", "MAX_SIZE_TEST")}
    for key, value in {**sizes, "CROP.RESIZE_MIN_SIZES": crop.RESIZE_MIN_SIZES}.items():
        values = value if isinstance(value, list | tuple) else [value]
        valid = bool(values) and all(isinstance(v, int) and v > 0 for v in values)
        check_value(f"INPUT.{key}", value, valid, "one or more sizes in pixels, from 1 on")
    # 0 is Detectron2's way to say: not resized.
    check_value("INPUT.MIN_SIZE_TEST", inputs.MIN_SIZE_TEST, inputs.MIN_SIZE_TEST >= 0, "0 or more")


def read_image(file_name: str | os.PathLike, image_format: str) -> np.ndarray:
    """Detectron2's ``read_image`` with errors that name the file, and 16-bit images scaled.

    Pillow clips integers above 255, so that 16-bit images come out white; here their upper byte
    is taken. Grey, CMYK, palette and alpha images are converted, EXIF orientation is applied.

    Args:
        file_name: an image in any format that Pillow reads.
        image_format: "BGR", "RGB", or another one of Detectron2.

    Returns:
        ndarray: (H, W, C).

    Raises:
        FileNotFoundError, OSError: see :func:`.panoptic_png.open_image`.
        UserError: pixel values that are no 8- or 16-bit integers.
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
    """Transform a label map (H, W) by nearest neighbour, bytewise: that is what Pillow resizes."""
    if labels.dtype == np.uint8:
        return np.ascontiguousarray(transforms.apply_segmentation(labels))
    low = transforms.apply_segmentation((labels & 0xFF).astype(np.uint8))
    high = transforms.apply_segmentation((labels >> 8).astype(np.uint8))
    return (high.astype(labels.dtype) << 8) | low


def _check_same_size(
    name: str, size: tuple[int, ...], other_name: str, other: tuple[int, ...]
) -> None:
    if size != other:
        raise UserError(
            f"{name} is {size[1]} wide and {size[0]} high, but {other_name} is {other[1]} wide and "
            f"{other[0]} high. Images are turned upright by their EXIF orientation; annotations "
            "must be in the upright frame."
        )
