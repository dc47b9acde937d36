"""A trained model as two graphs that run without torch: ONNX, OpenVINO, or torch.export.

:mod:`.graphs` makes the graphs, :mod:`.write` the folder; :mod:`.runtime` is copied into it and
runs them with NumPy and a runtime alone.
"""

from .graphs import DetectorGraph, MaskGraph, check_exportable, export_programs
from .predictor import ExportedPredictor, evaluate_exported
from .write import FORMATS, export_model

__all__ = [
    "FORMATS",
    "DetectorGraph",
    "ExportedPredictor",
    "MaskGraph",
    "check_exportable",
    "evaluate_exported",
    "export_model",
    "export_programs",
]
