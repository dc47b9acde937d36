"""Panoptic segmentation of image files, folders and videos."""

import glob
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.engine import DefaultPredictor
from PIL import Image
from tqdm import tqdm

from ..checkpoint import atomic_file
from ..data.dataset_mapper import read_image
from ..data.metadata import class_names, dataset_ids, thing_class_ids
from ..data.panoptic_json import complete_segments, write_panoptic_json
from ..data.panoptic_png import write_panoptic_png
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
            what = f"Folder '{item}' has no images ({', '.join(IMAGE_SUFFIXES)})."
        elif path.is_file():
            files, what = [path], ""
        else:
            matches = map(Path, sorted(glob.glob(item, recursive=True)))
            files = [p for p in matches if p.is_file()]
            what = f"--input '{item}': no such file or folder, and no file matches it as a pattern."
        if not files:
            raise FileNotFoundError(what)
        found.extend(files)
    return list(dict.fromkeys(found))


def predict_images(
    predictor: DefaultPredictor, paths: list[Path], output_dir: Path, *, coco_json: bool = False
) -> list[tuple[Path, str]]:
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
    images, annotations = [], []
    broken: list[tuple[Path, str]] = []
    for path, stem in tqdm(list(zip(paths, _unique_stems(paths), strict=True)), unit="image"):
        try:
            image = read_image(path, "RGB")
        except (OSError, ValueError) as e:
            logger.error("Skipped: %s", e)
            broken.append((path, str(e)))
            continue
        ids, segments = predictor(image[:, :, ::-1])["panoptic_seg"]
        suffix = path.suffix.lower() if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
        overlay = draw_panoptic(image, ids, segments, metadata)
        with atomic_file(output_dir / (stem + suffix), "wb") as f:
            kind = "PNG" if suffix == ".png" else "JPEG"
            Image.fromarray(overlay).save(f, format=kind, quality=95)
        if coco_json:
            ids = ids.cpu().numpy()
            write_panoptic_png(output_dir / "panoptic" / f"{stem}.png", ids)
            size = {"height": ids.shape[0], "width": ids.shape[1]}
            images.append({"id": len(images) + 1, "file_name": path.name, **size})
            annotations.append(
                {
                    "image_id": len(images),
                    "file_name": f"{stem}.png",
                    "segments_info": _coco_segments(ids, segments, metadata),
                }
            )
    if coco_json:
        target = output_dir / "predictions.json"
        write_panoptic_json(target, images, annotations, _categories(metadata))
        logger.info("COCO results: %s", target)
    return broken


def _coco_segments(
    ids: np.ndarray, segments: list[dict[str, Any]], metadata: Metadata
) -> list[dict[str, Any]]:
    category_ids = dataset_ids(metadata)
    infos = [
        {
            "id": int(s["id"]),
            "category_id": category_ids[s["category_id"]],
            "score": round(float(s["score"]), 4),
        }
        for s in segments
    ]
    return complete_segments(ids, infos)


def _categories(metadata: Metadata) -> list[dict[str, Any]]:
    things = set(thing_class_ids(metadata))
    ids = dataset_ids(metadata)
    names = class_names(metadata) or [f"class {i}" for i in ids]
    return [{"id": i, "name": names[c], "isthing": int(c in things)} for c, i in enumerate(ids)]


def predict_video(predictor: DefaultPredictor, path: Path, output_dir: Path) -> Path:
    """Write a video with overlays, ``<name>.mp4``, and return its path.

    Raises:
        OSError: the video cannot be read, or not written.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    target = output_dir / f"{path.stem}.mp4"
    temporary = output_dir / f".{path.stem}.tmp.mp4"
    source = cv2.VideoCapture(str(path))
    total = int(source.get(cv2.CAP_PROP_FRAME_COUNT))
    rate = source.get(cv2.CAP_PROP_FPS) or 25.0
    writer = None
    try:
        for frame in tqdm(_frames(source), total=total if total > 0 else None, unit="frame"):
            ids, segments = predictor(frame)["panoptic_seg"]
            image = np.ascontiguousarray(frame[:, :, ::-1])
            overlay = draw_panoptic(image, ids, segments, predictor.metadata)
            if writer is None:
                size = overlay.shape[1], overlay.shape[0]
                codec = cv2.VideoWriter_fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(temporary), codec, rate, size)
                if not writer.isOpened():
                    raise OSError(f"OpenCV cannot write {temporary} (mp4v).")
            writer.write(np.ascontiguousarray(overlay[:, :, ::-1]))
        if writer is None:
            raise OSError(f"{path} cannot be read as a video: OpenCV finds no frame in it.")
        writer.release()
        temporary.replace(target)
    finally:
        source.release()
        temporary.unlink(missing_ok=True)
    return target


def _frames(source: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        ok, frame = source.read()
        if not ok:
            return
        yield frame


def predict(
    predictor: DefaultPredictor, paths: list[Path], output_dir: Path, *, coco_json: bool = False
) -> int:
    """Predict on images and videos; those that cannot be read are named at the end.

    Args:
        predictor: the model.
        paths: from :func:`find_inputs`.
        output_dir: folder for the results.
        coco_json: see :func:`predict_images`.

    Returns:
        int: the exit status of a program: 1 if an input was left out.
    """
    videos = [p for p in paths if p.suffix.lower() in VIDEO_SUFFIXES]
    images = [p for p in paths if p not in videos]
    failed = []
    if images:
        failed += predict_images(predictor, images, output_dir, coco_json=coco_json)
    for video in videos:
        try:
            logger.info("Written: %s", predict_video(predictor, video, output_dir))
        except OSError as e:
            logger.error("Skipped %s: %s", video, e)
            failed.append((video, str(e)))
    logger.info("%d of %d inputs done: %s", len(paths) - len(failed), len(paths), output_dir)
    for path, reason in failed:
        logger.error("Not done: %s (%s)", path, reason)
    return 1 if failed else 0


def _unique_stems(paths: list[Path]) -> list[str]:
    """File names without suffix; where one comes again, with a number."""
    taken: set[str] = set()
    stems = []
    for path in paths:
        stem, number = path.stem, 1
        while stem in taken:
            number += 1
            stem = f"{path.stem}_{number}"
        taken.add(stem)
        stems.append(stem)
    return stems
