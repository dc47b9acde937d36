"""Panoptic segmentation with an exported model: NumPy, Pillow and ONNX Runtime or OpenVINO.

The modules need nothing else of this package. ``detr-panoptic export`` joins them to one file,
``panoptic_runtime.py``, in the folder of the exported model.
"""

from pathlib import Path

from .files import find_images, main, name_results, png_bytes, predict_files, read_rgb
from .model import DESCRIPTION, PanopticModel
from .tiles import Tile, segment_tiled, tile_starts

__all__ = [
    "DESCRIPTION",
    "PanopticModel",
    "Tile",
    "find_images",
    "main",
    "name_results",
    "png_bytes",
    "predict_files",
    "read_rgb",
    "runtime_source",
    "segment_tiled",
    "tile_starts",
]

_HEADER = '''"""Panoptic segmentation with a model that detr-panoptic exported.

    from panoptic_runtime import PanopticModel
    model = PanopticModel("exported")
    ids, segments = model(image)          # H x W x 3 uint8, RGB

From the shell, with COCO panoptic json and PNGs as the result:

    python panoptic_runtime.py exported photos more/a.jpg --output out

Images much larger than the training images, in tiles: model(image, tile=1024), or --tile 1024.
"""

'''


def runtime_source() -> str:
    """Return the source of ``panoptic_runtime.py``."""
    lines = [_HEADER]
    for name in ("rule", "tiles", "model", "files"):
        path = Path(__file__).with_name(f"{name}.py")
        lines += path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("from ."))
