"""Images that come from a browser: read, or refused with a reason that a visitor understands."""

import logging
import os
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...data.dataset_mapper import read_image
from ...errors import UserError

logger = logging.getLogger(__name__)


class UploadError(ValueError):
    """An upload cannot be used; the message is for the visitor."""


@dataclass(frozen=True)
class Limits:
    """What may be uploaded.

    Attributes:
        megabytes: size of the file.
        megapixels: width times height of the picture.
    """

    megabytes: float = 20.0
    megapixels: float = 16.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise UserError(f"The limit in {name} must be above 0, got {value:g}.")


def read_upload(path: str | os.PathLike, limits: Limits) -> np.ndarray:
    """Read an uploaded image. Its pixels are decoded only if it is small enough.

    Args:
        path: the file on this machine.
        limits: of its size.

    Returns:
        H x W x 3 uint8 RGB.

    Raises:
        UploadError: it is too large or not an image. The message holds no paths of this machine.
    """
    size = os.path.getsize(path)
    if size > limits.megabytes * 1e6:
        raise UploadError(
            f"The file has {size / 1e6:.1f} MB; at most {limits.megabytes:g} MB are taken."
        )
    try:
        with warnings.catch_warnings():
            # The limit below is ours, and lower.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        logger.info("Refused an upload of %d bytes: %s", size, error)
        raise UploadError(
            "This file cannot be read as an image. JPEG, PNG, WebP, BMP and TIFF work."
        ) from error
    if width * height > limits.megapixels * 1e6:
        raise UploadError(
            f"The image has {width} x {height} pixels; at most {limits.megapixels:g} million are "
            "taken. Make it smaller first."
        )
    try:
        return read_image(path, "RGB")
    except (OSError, ValueError) as error:
        logger.info("Refused an upload of %d bytes: %s", size, error)
        raise UploadError(
            "This image is damaged or cut off, or of a kind that is not supported."
        ) from error
