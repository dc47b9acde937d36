"""Look inside: how an image becomes a panoptic map, as figures and one HTML page."""

from .record import ImageRecord, Recording, record
from .run import explain

__all__ = ["ImageRecord", "Recording", "explain", "record"]
