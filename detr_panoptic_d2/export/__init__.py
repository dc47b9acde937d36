"""Export of a trained model as two graphs: ONNX, OpenVINO, or torch.export.

:mod:`.graphs` makes the graphs and :mod:`.write` the folder. :mod:`.runtime` is written into the
folder and runs the graphs without this package.
"""

from .exported_predictor import ExportedPredictor, evaluate_exported
from .write import export_model, export_weights

__all__ = ["ExportedPredictor", "evaluate_exported", "export_model", "export_weights"]
