"""Registration of datasets, and the dataset mapper."""

from .dataset_mapper import PanopticDatasetMapper
from .metadata import dataset_ids, thing_class_ids
from .register import register_from_config, register_panoptic

__all__ = [
    "PanopticDatasetMapper",
    "dataset_ids",
    "register_from_config",
    "register_panoptic",
    "thing_class_ids",
]
