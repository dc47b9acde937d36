"""Panoptic segmentation of image files, folders and videos."""

import glob
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.engine import DefaultPredictor
from PIL import Image
from tqdm import tqdm

from ..data.dataset_mapper import read_image
from ..data.metadata import dataset_ids
from ..data.panoptic_json import complete_segments, write_panoptic_json
from ..data.panoptic_png import write_panoptic_png
from ..evaluation.ground_truth import categories_of
from ..files import atomic_file
from ..visualization.draw import draw_panoptic

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


def find_inputs(items: Iterable[str]) -> list[Path]:
    """Expand files, folders and glob patterns, in order, each file once.

    Args:
        items: of folders the image files directly inside are taken.

    Raises:
        FileNotFoundError: an item matches nothing.
    """
    found: list[Path] = []
    for item in items:
        path = Path(item)
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        else:
            matches = [path] if path.is_file() else map(Path, glob.glob(item, recursive=True))
            files = sorted(p for p in matches if p.is_file())
        if not files:
            raise FileNotFoundError(
                f"--input '{item}' is no file, no pattern that a file matches, and no folder with "
                f"images ({', '.join(IMAGE_SUFFIXES)})."
            )
        found.extend(files)
    return list(dict.fromkeys(found))


def predict(
    predictor: DefaultPredictor, paths: list[Path], output_dir: Path, *, coco_json: bool = False
) -> list[Path]:
    """Predict on images and videos; those that cannot be read are named at the end.

    Args:
        predictor: the model.
        paths: from :func:`find_inputs`.
        output_dir: folder for the results; is made if it does not exist.
        coco_json: see :func:`predict_images`.

    Returns:
        the files that could not be read; all others are done.
    """
    videos = [p for p in paths if p.suffix.lower() in VIDEO_SUFFIXES]
    images = [p for p in paths if p not in videos]
    failed = predict_images(predictor, images, output_dir, coco_json=coco_json) if images else {}
    for video in videos:
        try:
            logger.info("Written: %s", predict_video(predictor, video, output_dir))
        except OSError as error:
            failed[video] = error
    logger.info("%d of %d inputs done: %s", len(paths) - len(failed), len(paths), output_dir)
    for path, error in failed.items():
        logger.error("Not done: %s (%s)", path, error)
    return list(failed)


def predict_images(
    predictor: DefaultPredictor, paths: list[Path], output_dir: Path, *, coco_json: bool = False
) -> dict[Path, Exception]:
    """Write an overlay per image, under the image's name, and COCO results on request.

    Args:
        predictor: the model.
        paths: image files.
        output_dir: is made if it does not exist.
        coco_json: write ``predictions.json`` and ``panoptic/*.png`` in COCO's panoptic format.

    Returns:
        the files that could not be read, each with the reason; all others are done.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    metadata = predictor.metadata
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    broken: dict[Path, Exception] = {}
    taken: set[str] = set()
    for path in tqdm(paths, unit="image"):
        try:
            image = read_image(path, "RGB")
        except (OSError, ValueError) as error:
            broken[path] = error
            continue
        ids, segments = predictor(image[:, :, ::-1])["panoptic_seg"]
        # A name that comes again, from another folder, gets a number.
        stem, number = path.stem, 1
        while stem in taken:
            number += 1
            stem = f"{path.stem}_{number}"
        taken.add(stem)
        jpeg = path.suffix.lower() in (".jpg", ".jpeg")
        overlay = draw_panoptic(image, ids, segments, metadata)
        with atomic_file(output_dir / (stem + (path.suffix if jpeg else ".png")), "wb") as f:
            Image.fromarray(overlay).save(f, format="JPEG" if jpeg else "PNG", quality=95)
        if not coco_json:
            continue
        ids = ids.cpu().numpy()
        write_panoptic_png(output_dir / "panoptic" / f"{stem}.png", ids)
        size = {"height": ids.shape[0], "width": ids.shape[1]}
        images.append({"id": len(images) + 1, "file_name": path.name, **size})
        infos = [
            {
                "id": int(s["id"]),
                "category_id": dataset_ids(metadata)[s["category_id"]],
                "score": round(float(s["score"]), 4),
            }
            for s in segments
        ]
        entry = {"image_id": len(images), "file_name": f"{stem}.png"}
        annotations.append({**entry, "segments_info": complete_segments(ids, infos)})
    if coco_json:
        target = output_dir / "predictions.json"
        write_panoptic_json(target, images, annotations, categories_of(metadata))
        logger.info("COCO results: %s", target)
    return broken


def predict_video(predictor: DefaultPredictor, path: Path, output_dir: Path) -> Path:
    """Write a video with overlays, ``<name>.mp4``, and return its path.

    Raises:
        OSError: the video cannot be read, or not written.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    target = output_dir / f"{path.stem}.mp4"
    temporary = output_dir / f".{path.stem}.tmp.mp4"
    source = cv2.VideoCapture(str(path))
    rate = source.get(cv2.CAP_PROP_FPS) or 25.0
    total = max(0, int(source.get(cv2.CAP_PROP_FRAME_COUNT))) or None
    ok, frame = source.read()
    if not ok:
        raise OSError(f"{path} cannot be read as a video: OpenCV finds no frame in it.")
    writer = cv2.VideoWriter(
        str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), rate, frame.shape[1::-1]
    )
    try:
        if not writer.isOpened():
            raise OSError(f"OpenCV cannot write {temporary} (mp4v).")
        with tqdm(total=total, unit="frame") as progress:
            while ok:
                panoptic = predictor(frame)["panoptic_seg"]
                overlay = draw_panoptic(frame[:, :, ::-1], *panoptic, predictor.metadata)
                writer.write(np.ascontiguousarray(overlay[:, :, ::-1]))
                progress.update()
                ok, frame = source.read()
        writer.release()
        temporary.replace(target)
    finally:
        source.release()
        temporary.unlink(missing_ok=True)
    return target
