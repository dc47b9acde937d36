"""Panoptic segmentation of videos."""

from pathlib import Path

import cv2
import numpy as np
from detectron2.engine import DefaultPredictor
from tqdm import tqdm

from ...visualization.draw import draw_panoptic

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


def is_video(path: Path) -> bool:
    """Return whether a file is a video, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def predict_video(
    predictor: DefaultPredictor, path: Path, target: Path, labels: bool = True
) -> None:
    """Write a video with overlays as MPEG-4.

    The labels are those of :func:`.run.predict`. MPEG-4 needs even sizes. If a side is odd, the
    last column or row is repeated.

    Raises:
        OSError: the video cannot be read, or not written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.tmp.mp4")
    source = cv2.VideoCapture(str(path))
    rate = source.get(cv2.CAP_PROP_FPS) or 25.0
    total = max(0, int(source.get(cv2.CAP_PROP_FRAME_COUNT))) or None
    ok, frame = source.read()
    if not ok:
        raise OSError(f"{path} cannot be read as a video: OpenCV finds no frame in it.")
    height, width = frame.shape[:2]
    padding = ((0, height % 2), (0, width % 2), (0, 0))
    size = (width + width % 2, height + height % 2)
    writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
    try:
        if not writer.isOpened():
            raise OSError(f"OpenCV cannot write {temporary} (mp4v).")
        with tqdm(total=total, unit="frame", disable=None) as progress:
            while ok:
                panoptic = predictor(frame)["panoptic_seg"]
                overlay = draw_panoptic(
                    frame[:, :, ::-1], *panoptic, predictor.metadata, labels=labels
                )
                overlay = np.pad(overlay[:, :, ::-1], padding, mode="edge")
                writer.write(np.ascontiguousarray(overlay))
                progress.update()
                ok, frame = source.read()
        writer.release()
        temporary.replace(target)
    finally:
        source.release()
        temporary.unlink(missing_ok=True)
