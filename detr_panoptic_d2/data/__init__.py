"""Data sets: registration, the mapper, and the built-in set of shapes."""

from .dataset_mapper import PanopticDatasetMapper
from .metadata import dataset_ids, thing_class_ids
from .register import register_from_config, register_panoptic
from .shapes import make_shapes, register_shapes

__all__ = [
    "PanopticDatasetMapper",
    "dataset_ids",
    "make_shapes",
    "register_from_config",
    "register_panoptic",
    "register_shapes",
    "thing_class_ids",
]

register_shapes()
