"""Show how an image becomes a panoptic map, with figures and one HTML page."""

from .record import ImageRecord, Recording, record
from .run import explain, output_files

__all__ = ["ImageRecord", "Recording", "explain", "output_files", "record"]
