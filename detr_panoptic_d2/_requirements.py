"""What pip could not install together with this package, and the one line that says so."""

import importlib.util

# Module -> what it is called in the message. Neither can be named in the package's metadata:
# Detectron2 is not on PyPI, and panopticapi-lite's metadata would hold NumPy below 2.
_INSTALLED_BY_TOOL = {"detectron2": "Detectron2", "panopticapi": "panopticapi"}


def check_requirements() -> None:
    """Check, without importing them, that the modules which the installer provides are there.

    Raises:
        ImportError: one is missing; the message is one line with the command that installs it.
    """
    for module, name in _INSTALLED_BY_TOOL.items():
        if importlib.util.find_spec(module) is None:
            raise ImportError(
                f"detr_panoptic_d2 needs {name}, which is not installed; run "
                "`python tools/install_detectron2.py` in a checkout, `install_detectron2.py` else.",
                name=module,
            )
