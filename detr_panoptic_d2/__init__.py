"""DETR's panoptic segmentation as a Detectron2 plugin. Importing it registers everything."""

from ._requirements import check_requirements
from ._version import __version__

check_requirements()

from . import data  # noqa: E402
from .config import add_detr_panoptic_config  # noqa: E402
from .config_files import get_config_file  # noqa: E402

__all__ = ["__version__", "add_detr_panoptic_config", "data", "get_config_file"]
