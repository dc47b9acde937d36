"""Look inside: every stage from image to panoptic result, as pictures and one HTML page."""

from .recorder import ImageRecord, Recording, record
from .run import explain, load_images, parse_point

__all__ = [
    "ImageRecord",
    "Recording",
    "explain",
    "load_images",
    "parse_point",
    "record",
]
