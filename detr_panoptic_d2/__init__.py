"""DETR's panoptic segmentation as a Detectron2 plugin. Importing it registers everything."""

import importlib.util

from ._version import __version__

# Neither can be named in the package's metadata: Detectron2 is not on PyPI, and panopticapi-lite's
# metadata would hold NumPy below 2. So pip cannot say that one is missing.
for _module, _name in (("detectron2", "Detectron2"), ("panopticapi", "panopticapi")):
    if importlib.util.find_spec(_module) is None:
        raise ImportError(
            f"detr_panoptic_d2 needs {_name}, which is not installed; run "
            "`python tools/install_detectron2.py` in a checkout, `install_detectron2.py` else.",
            name=_module,
        )

from . import data, modeling  # noqa: E402
from .apps import demo as _demo  # noqa: E402, F401
from .config import add_detr_panoptic_config, get_config_file  # noqa: E402
from .modeling.meta_arch import PanopticDETR  # noqa: E402

__all__ = [
    "PanopticDETR",
    "__version__",
    "add_detr_panoptic_config",
    "data",
    "get_config_file",
    "modeling",
]
