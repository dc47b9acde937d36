"""Read and write PNGs of the COCO panoptic format.

Each pixel holds a segment id, ``R + 256 G + 65536 B``, with 0 for void.
"""

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..errors import UserError
from ..files import atomic_file

MAX_SEGMENT_ID = (1 << 24) - 1
# A file with more different ids than this, in runs of less than four pixels, is a photograph.
_MANY_IDS = 1000


@contextlib.contextmanager
def open_image(
    path: str | os.PathLike, what: str = "Image", hint: str = ""
) -> Iterator[Image.Image]:
    """Open an image. ``OSError`` names the file, also for errors of decoding inside the block.

    ``what`` is the kind of file, and ``hint`` the way out if there is none.
    """
    try:
        with PathManager.open(os.fspath(path), "rb") as file, Image.open(file) as image:
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"{what} '{path}' does not exist. {hint}".strip()) from None
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{what} '{path}' cannot be read: {error}") from error


def read_panoptic_png(path: str | os.PathLike) -> np.ndarray:
    """Read the H x W uint32 ids of an RGB image. Alpha is ignored.

    Raises:
        OSError: see :func:`open_image`.
        UserError: it does not have three color channels (a class mask, for example), or nearly
            all pixels have different ids (a photograph, or a mask that was saved as JPEG).
    """
    hint = "Check panoptic_root and the file_name of the annotation."
    with open_image(path, "Panoptic PNG", hint) as image:
        image.load()
    if image.mode not in ("RGB", "RGBA"):
        raise UserError(
            f"Panoptic PNG '{path}' has mode {image.mode}, but ids are stored in RGB "
            "(R + 256 G + 65536 B). Convert class or instance masks to COCO panoptic format first."
        )
    packed = image.tobytes("raw", "RGBX" if image.mode == "RGB" else "RGBA")
    ids = np.frombuffer(packed, dtype="<u4").reshape(image.height, image.width)
    ids = ids & np.uint32(MAX_SEGMENT_ID)
    if 4 * np.count_nonzero(ids[:, 1:] != ids[:, :-1]) > ids.size:
        count = len(np.unique(ids))
        if count > _MANY_IDS:
            raise UserError(
                f"'{path}' is not a panoptic PNG: it has {count} different ids on {ids.size} "
                "pixels. Is it a photograph, or are panoptic_root and image_root swapped?"
            )
    return ids


def write_panoptic_png(path: str | os.PathLike, ids: np.ndarray) -> None:
    """Write H x W ids from 0 to 2^24 - 1. The folder is made if it does not exist."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    packed = np.ascontiguousarray(ids, dtype="<u4")
    image = Image.frombytes("RGB", ids.shape[::-1], packed, "raw", "RGBX")
    with atomic_file(path, "wb", sync=False) as file:
        # Maps have long runs of equal pixels. For them this strategy is faster than the default
        # one, and the files have about the same size.
        image.save(file, format="PNG", compress_type=zlib.Z_RLE)
