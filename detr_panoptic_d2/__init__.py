"""DETR's panoptic segmentation as a Detectron2 plugin. Importing it registers everything."""

from ._requirements import check_requirements
from ._version import __version__

check_requirements()

from . import data, modeling  # noqa: E402
from .config import add_detr_panoptic_config  # noqa: E402
from .config_files import get_config_file  # noqa: E402
from .modeling.meta_arch import PanopticDETR  # noqa: E402

__all__ = [
    "PanopticDETR",
    "__version__",
    "add_detr_panoptic_config",
    "data",
    "get_config_file",
    "modeling",
]
