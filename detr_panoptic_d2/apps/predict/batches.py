"""Images read ahead in a thread and segmented in batches of equal size."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ...data.dataset_mapper import read_image

# Segment ids (a tensor H x W) and Detectron2's segments_info.
Panoptic = tuple[Any, list[dict]]
# Images that wait for others of their size, in batches.
_MAX_WAITING_BATCHES = 4


def segment_images(
    predictor: Any, paths: list[Path], batch_size: int
) -> Iterator[tuple[Path, np.ndarray, Panoptic] | tuple[Path, Exception]]:
    """Segment image files; images of one size go through the network together.

    Args:
        predictor: :class:`.engine.Predictor`, or another class with its ``prepare`` and
            ``predict_batch``.

    Yields:
        for each file, not always in their order, its path with the H x W x 3 uint8 RGB image and
        the result, or with the error that it could not be read.
    """

    def read(path: Path) -> tuple[np.ndarray, Any]:
        image = read_image(path, "RGB")
        return image, predictor.prepare(image[:, :, ::-1])

    waiting: dict[Any, list[tuple[Path, np.ndarray, Any]]] = {}

    def run(key: Any) -> Iterator[tuple[Path, np.ndarray, Panoptic]]:
        batch = waiting.pop(key)
        results = predictor.predict_batch([inputs for _, _, inputs in batch])
        for (path, image, _), result in zip(batch, results, strict=True):
            yield path, image, result["panoptic_seg"]

    for path, future in _read_ahead(read, paths, 2 * batch_size):
        try:
            image, inputs = future.result()
        except (OSError, ValueError) as error:
            yield path, error
            continue
        key = tuple(inputs["image"].shape) if isinstance(inputs, dict) else None
        waiting.setdefault(key, []).append((path, image, inputs))
        if len(waiting[key]) == batch_size:
            yield from run(key)
        elif sum(map(len, waiting.values())) >= _MAX_WAITING_BATCHES * batch_size:
            yield from run(max(waiting, key=lambda k: len(waiting[k])))
    for key in list(waiting):
        yield from run(key)


def _read_ahead(read: Callable, paths: list[Path], num_ahead: int) -> Iterator[tuple[Path, Future]]:
    futures: deque[tuple[Path, Future]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for path in paths:
            futures.append((path, pool.submit(read, path)))
            if len(futures) > num_ahead:
                yield futures.popleft()
        while futures:
            yield futures.popleft()
