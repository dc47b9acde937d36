"""Whether the loader keeps up with training: a data set of COCO's size on disk, and its rates."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from networks import add_segments, make_images
from PIL import Image

from detr_panoptic_d2.data import PanopticDatasetMapper
from detr_panoptic_d2.data.panoptic_png import write_panoptic_png
from detr_panoptic_d2.engine import setup_cfg


def write_images(folder: Path, count: int, size: tuple[int, int], segments: int) -> list[dict]:
    """JPEGs and panoptic PNGs of random segments, as Detectron2's dataset dicts."""
    images = make_images(count, size, torch.device("cpu"))
    dicts = []
    for i, x in enumerate(add_segments(images, segments, num_classes=2)):
        instances = x["instances"]
        ids = np.zeros(size, np.uint32)
        for index, mask in enumerate(instances.gt_masks.tensor.numpy(), start=1):
            ids[mask] = index
        picture, png = folder / f"{i}.jpg", folder / f"{i}.png"
        Image.fromarray(x["image"].permute(1, 2, 0).numpy()).save(picture)
        write_panoptic_png(png, ids)
        infos = [
            {"id": index, "category_id": int(label), "iscrowd": 0, "isthing": True}
            for index, label in enumerate(instances.gt_classes, start=1)
        ]
        dicts.append(
            {
                "file_name": str(picture),
                "pan_seg_file_name": str(png),
                "image_id": i,
                "height": size[0],
                "width": size[1],
                "segments_info": infos,
            }
        )
    return dicts


def loader_rates(run, batch: int, step: Callable[[list[dict]], object], folder: Path) -> list[dict]:
    """Rates for each number of worker processes.

    Args:
        run: the sizes of gpu.py's run.
        batch: images per step.
        step: a training step on what the mapper returned.
        folder: for the data set.

    Returns:
        for each number of workers images per second of the loader alone and in training, and the
        share of a training that waits for the next batch.
    """
    size = run.size if run.tiny else (480, 640)
    dicts = write_images(folder, run.images, size, run.segments)
    mapper = PanopticDatasetMapper(setup_cfg(run.config_file, []), True)
    rows = []
    for workers in run.workers:
        batches = iter(
            build_detection_train_loader(
                dataset=dicts,
                mapper=mapper,
                sampler=TrainingSampler(len(dicts), seed=0),
                total_batch_size=batch,
                num_workers=workers,
                aspect_ratio_grouping=False,
            )
        )
        alone = _seconds(batches, None, run)[0]
        total, waiting = _seconds(batches, step, run)
        images = batch * run.repeats
        rows.append(
            {
                "workers": workers,
                "batch": batch,
                "loader alone, images per second": images / alone,
                "training, images per second": images / total,
                "waiting for data": waiting / total,
            }
        )
    return rows


def _seconds(batches, step, run) -> tuple[float, float]:
    """Seconds of some steps after a first one, and those of them that waited for the loader."""
    waiting = start = 0.0
    for turn in range(1 + run.repeats):
        if turn == 1:
            start, waiting = time.perf_counter(), 0.0
        before = time.perf_counter()
        images = next(batches)
        waiting += time.perf_counter() - before
        if step is not None:
            step(images)
            if run.device.type == "cuda":
                torch.cuda.synchronize(run.device)
    return time.perf_counter() - start, waiting
