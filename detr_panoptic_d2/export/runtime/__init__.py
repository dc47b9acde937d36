"""Panoptic segmentation with a model that detr-panoptic exported.

    from panoptic_runtime import PanopticModel
    model = PanopticModel("exported")
    ids, segments = model(image)          # H x W x 3 uint8, RGB

From the shell, with COCO panoptic json and PNGs as the result:

    python panoptic_runtime.py exported photos more/a.jpg --output out

Images much larger than the training images, in tiles: model(image, tile=1024), or --tile 1024.
"""

from .files import find_images, name_results
from .model import PanopticModel
from .tiles import Tile, segment_tiled

# The exporter joins these modules, in this order, to the one file panoptic_runtime.py. They need
# NumPy, Pillow and ONNX Runtime or OpenVINO, and nothing else of this package.
MODULES = ("rule", "tiles", "model", "files")

__all__ = ["PanopticModel", "Tile", "find_images", "name_results", "segment_tiled"]
