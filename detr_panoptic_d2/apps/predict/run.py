"""Panoptic segmentation of image files, folders and videos."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.engine import DefaultPredictor
from PIL import Image
from tqdm import tqdm

from ...data.dataset_mapper import read_image
from ...data.metadata import dataset_ids
from ...data.panoptic_json import complete_segments, write_panoptic_json
from ...data.panoptic_png import write_panoptic_png
from ...evaluation.ground_truth import categories_of
from ...export.runtime import name_results
from ...files import atomic_file, check_not_overwritten
from ...visualization.draw import draw_panoptic
from .video import is_video, predict_video

logger = logging.getLogger(__name__)


def predict(
    predictor: DefaultPredictor, paths: list[Path], output_dir: Path, *, coco_json: bool = False
) -> dict[Path, Exception]:
    """Predict on images and videos. Write an overlay for each, and COCO results on request.

    Overlays have the names of the inputs, relative to the folder that all inputs have in common.
    JPEG images give a JPEG, other images a PNG, videos an MP4.

    Args:
        predictor: the model.
        paths: from :func:`find_inputs`.
        output_dir: folder of the results; it is made if it does not exist.
        coco_json: write ``predictions.json`` and ``panoptic/*.png`` in COCO's panoptic format for
            the images.

    Returns:
        the inputs that could not be read, each with its error. All others are done.

    Raises:
        UserError: a result would overwrite an input. Nothing is written.
    """
    names = name_results(paths)
    overlays = {
        path: output_dir / _overlay_name(path, result) for path, (_, result) in names.items()
    }
    pngs = {path: output_dir / "panoptic" / f"{result}.png" for path, (_, result) in names.items()}
    check_not_overwritten(paths, [*overlays.values(), *(pngs.values() if coco_json else ())])
    output_dir.mkdir(parents=True, exist_ok=True)
    failed: dict[Path, Exception] = {}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for path in tqdm([path for path in paths if not is_video(path)], unit="image", disable=None):
        try:
            image = read_image(path, "RGB")
        except (OSError, ValueError) as error:
            failed[path] = error
            continue
        ids, segments = predictor(image[:, :, ::-1])["panoptic_seg"]
        write_overlay(draw_panoptic(image, ids, segments, predictor.metadata), overlays[path])
        if coco_json:
            ids = ids.cpu().numpy()
            write_panoptic_png(pngs[path], ids)
            size = {"height": ids.shape[0], "width": ids.shape[1]}
            images.append({"id": len(images) + 1, "file_name": names[path][0], **size})
            annotations.append(
                {
                    "image_id": len(images),
                    "file_name": f"{names[path][1]}.png",
                    "segments_info": _segments_info(ids, segments, dataset_ids(predictor.metadata)),
                }
            )
    if coco_json:
        target = output_dir / "predictions.json"
        write_panoptic_json(target, images, annotations, categories_of(predictor.metadata))
        logger.info("COCO results: %s", target)
    for path in filter(is_video, paths):
        try:
            predict_video(predictor, path, overlays[path])
            logger.info("Written: %s", overlays[path])
        except OSError as error:
            failed[path] = error
    logger.info("%d of %d inputs done: %s", len(paths) - len(failed), len(paths), output_dir)
    for path, error in failed.items():
        logger.error("Not done: %s (%s)", path, error)
    return failed


def _overlay_name(path: Path, result: str) -> str:
    if is_video(path):
        return f"{result}.mp4"
    return f"{result}{path.suffix if path.suffix.lower() in ('.jpg', '.jpeg') else '.png'}"


def write_overlay(overlay: np.ndarray, target: Path) -> None:
    """Write an image in the format that the suffix of the file name says."""
    target.parent.mkdir(parents=True, exist_ok=True)
    image_format = "PNG" if target.suffix == ".png" else "JPEG"
    with atomic_file(target, "wb") as file:
        Image.fromarray(overlay).save(file, format=image_format, quality=95)


def _segments_info(ids: np.ndarray, segments: list[dict], category_ids: list[int]) -> list[dict]:
    """Return the ``segments_info`` of a COCO panoptic json."""
    infos = [
        {
            "id": int(s["id"]),
            "category_id": category_ids[s["category_id"]],
            "score": round(float(s["score"]), 4),
        }
        for s in segments
    ]
    return complete_segments(ids, infos)
