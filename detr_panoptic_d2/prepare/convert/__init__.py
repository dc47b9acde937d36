"""Other formats -> COCO panoptic: one module per format, one writer."""

from .categories import ClassOptions
from .cityscapes import Cityscapes
from .class_masks import ClassMasks
from .coco import CocoInstances
from .cvat import Cvat
from .instance_masks import InstanceMasks
from .labelme import LabelMe
from .model_stuff import ModelStuff
from .recipe import dataset_yaml, describe, write_dataset_yaml
from .writer import Converted, WriteOptions, convert

__all__ = [
    "Cityscapes",
    "ClassMasks",
    "ClassOptions",
    "CocoInstances",
    "Converted",
    "Cvat",
    "InstanceMasks",
    "LabelMe",
    "ModelStuff",
    "WriteOptions",
    "convert",
    "dataset_yaml",
    "describe",
    "write_dataset_yaml",
]
