"""A trained model as two graphs that run without torch: ONNX, OpenVINO, or torch.export.

:mod:`.graphs` makes the graphs, :mod:`.write` the folder; :mod:`.runtime` is copied into it and
runs them with NumPy and a runtime alone.
"""

from .exported_predictor import ExportedPredictor, evaluate_exported
from .write import export_model, export_weights

__all__ = ["ExportedPredictor", "evaluate_exported", "export_model", "export_weights"]
