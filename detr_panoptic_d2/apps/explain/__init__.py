"""Look inside: every stage from image to panoptic result, as pictures and one HTML page."""

from .recorder import ImageRecord, Recording, captured_inputs, record
from .run import explain, load_images, parse_point

__all__ = [
    "ImageRecord",
    "Recording",
    "captured_inputs",
    "explain",
    "load_images",
    "parse_point",
    "record",
]
