"""Panoptic segmentation of image files, folders and videos."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from tqdm import tqdm

from .batches import segment_images
from .results import ResultFolder
from .video import is_video, predict_video

logger = logging.getLogger(__name__)


def predict(
    predictor: Any,
    paths: Sequence[Path],
    output_dir: Path,
    *,
    coco_json: bool = False,
    resume: bool = False,
    batch_size: int = 1,
    model: str = "",
    labels: bool = True,
) -> dict[Path, Exception]:
    """Predict on images and videos. The processes of a distributed job share the inputs.

    Args:
        predictor: see :func:`.batches.segment_images`.
        paths: image and video files.
        output_dir: folder of the results, see :class:`.results.ResultFolder`.
        coco_json: write the images' results in COCO's formats as well: ``predictions.json`` and
            ``panoptic/*.png`` (panoptic), ``instances.json`` (things, with RLE masks).
        resume: keep the results that are there, and leave out their inputs.
        batch_size: images of one size that go through the network together.
        model: name of the model and its options, to be compared by ``resume``.
        labels: write names and scores into overlays, where there is room. Images get a legend of
            the other classes below them.

    Returns:
        the inputs that could not be read, each with its error. All others are done.

    Raises:
        UserError: a result would overwrite an input or earlier results. Nothing is written.
    """
    results = ResultFolder(
        output_dir, paths, model, coco_json=coco_json, resume=resume, labels=labels
    )
    if len(results.todo) < len(paths):
        logger.info("%d inputs have results already.", len(paths) - len(results.todo))
    share = results.todo[comm.get_rank() :: comm.get_world_size()]
    images = [path for path in share if not is_video(path)]
    failed = _predict_images(predictor, images, results, batch_size)
    for path in filter(is_video, share):
        try:
            predict_video(predictor, path, results.overlays[path], labels)
            logger.info("Written: %s", results.overlays[path])
        except OSError as error:
            failed[path] = error
    for others in comm.all_gather(failed):
        failed.update(others)
    json_file = results.write_json(predictor.metadata)
    if comm.is_main_process():
        logger.info("%d of %d inputs done: %s", len(paths) - len(failed), len(paths), output_dir)
        if json_file:
            logger.info("COCO results: %s", json_file)
        for path, error in failed.items():
            logger.error("Not done: %s (%s)", path, error)
    return failed


def _predict_images(
    predictor: Any, paths: list[Path], results: ResultFolder, batch_size: int
) -> dict[Path, Exception]:
    """Predict on images, and draw and write each while the network segments the next one."""
    failed: dict[Path, Exception] = {}
    hide_bar = None if comm.is_main_process() else True
    progress = tqdm(total=len(paths), unit="image", disable=hide_bar)
    with ThreadPoolExecutor(1) as pool, progress:
        writing: Future | None = None
        for path, *result in segment_images(predictor, paths, batch_size):
            if writing is not None:
                writing.result()
                writing = None
            if isinstance(result[0], Exception):
                failed[path] = result[0]
            else:
                writing = pool.submit(results.write, path, *result, predictor.metadata)
            progress.update()
        if writing is not None:
            writing.result()
    return failed
