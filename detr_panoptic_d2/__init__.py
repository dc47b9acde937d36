"""DETR's panoptic segmentation as a Detectron2 plugin. Importing it registers everything."""

import importlib.util
import warnings

from ._version import __version__

# Neither can be named in the package's metadata: Detectron2 is not on PyPI, and panopticapi-lite's
# metadata would hold NumPy below 2. So pip cannot say that one is missing.
for _module, _name in (("detectron2", "Detectron2"), ("panopticapi", "panopticapi")):
    if importlib.util.find_spec(_module) is None:
        raise ImportError(
            f"detr_panoptic_d2 needs {_name}, which is not installed; run "
            "`install_detectron2.py` (in a checkout: `python tools/install_detectron2.py`).",
            name=_module,
        )

with warnings.catch_warnings():
    # fvcore calls torch.jit.script when it is imported, which recent versions of torch deprecate.
    warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated")
    from . import data, modeling
    from .apps import demo as _demo  # noqa: F401
    from .config import add_detr_panoptic_config, get_config_file
    from .modeling.meta_arch import PanopticDETR


def load(path: str, *opts: object):
    """Build a predictor from a checkpoint alone, see :func:`.engine.predictor.load`."""
    from .engine import load as load_predictor

    return load_predictor(path, *opts)


__all__ = [
    "PanopticDETR",
    "__version__",
    "add_detr_panoptic_config",
    "data",
    "get_config_file",
    "load",
    "modeling",
]
