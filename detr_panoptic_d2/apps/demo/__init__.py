"""The demo with its dataset and backbone. Importing this package registers both."""

from . import narrow_resnet
from .shapes import make_shapes, register_shapes

__all__ = ["make_shapes", "narrow_resnet", "register_shapes"]

register_shapes()
