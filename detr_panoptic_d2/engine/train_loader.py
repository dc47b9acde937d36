"""The loader of the training data, and what can be seen of the data before a training starts."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Sampler

from ..data.panoptic_png import read_panoptic_png
from ..errors import UserError, check_value
from .reproducible import PositionBatchSampler, SeededDataset

logger = logging.getLogger(__name__)

# Panoptic PNGs that are read before a training starts.
_LOOKED_AT = 8


def build_train_loader(
    cfg: CfgNode,
    mapper: Callable[[dict], dict | None],
    make_sampler: Callable[[int], Sampler] | None = None,
) -> DataLoader:
    """Build the endless loader of ``DATASETS.TRAIN``: lists of what the mapper returns.

    Args:
        cfg: the config.
        mapper: dataset dict -> model input, or None to take another image instead.
        make_sampler: seed -> endless sampler of indices; None: ``DATALOADER.SAMPLER_TRAIN``.

    Raises:
        UserError: ``SOLVER.IMS_PER_BATCH`` cannot be shared among the processes,
            ``DATALOADER.SAMPLER_TRAIN`` is not known, or almost nothing is labelled.
    """
    dicts = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    world, batch = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
    check_value(
        "SOLVER.IMS_PER_BATCH",
        batch,
        batch > 0 and batch % world == 0,
        f"a multiple of {world}, the number of processes, because it is for all of them together"
        if world > 1
        else "1 or more",
    )
    workers = cfg.DATALOADER.NUM_WORKERS
    check_value("DATALOADER.NUM_WORKERS", workers, workers >= 0, "0 or more")
    check_labels(cfg, dicts)
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    sampler = PositionBatchSampler(
        make_sampler or _sampler_factory(cfg, dicts), batch // world, seed, _wide(cfg, dicts)
    )
    logger.info("Training on %d images, %d per batch and process", len(dicts), batch // world)
    return DataLoader(
        SeededDataset(DatasetFromList(dicts, copy=False), mapper),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=trivial_batch_collator,
        # Its own generator: the loader must not draw from the one that the model uses.
        generator=torch.Generator(),
    )


def check_labels(cfg: CfgNode, dicts: Sequence[dict]) -> None:
    """Look at the annotations of all images and at the panoptic PNGs of a few.

    A warning where images have more segments than there are queries: each query finds one segment
    at most, so what is left over is not learnt.

    Raises:
        UserError: there are no segments, or the PNGs hold almost none of those that are listed.
    """
    names = ", ".join(cfg.DATASETS.TRAIN)
    segments = [
        [s for s in d.get("segments_info", d.get("annotations", ())) if not s.get("iscrowd", 0)]
        for d in dicts
    ]
    counts = [len(s) for s in segments]
    if not any(counts):
        raise UserError(f"DATASETS.TRAIN ({names}): none of {len(dicts)} images has a segment.")
    queries = cfg.MODEL.DETR.NUM_OBJECT_QUERIES
    most = int(np.argmax(counts))
    if counts[most] > queries:
        logger.warning(
            "MODEL.DETR.NUM_OBJECT_QUERIES is %d, but %d of %d images have more segments (%s has "
            "%d): in each of them, the segments that fit the queries least are not trained on. Set "
            "it to %d or more to train on all.",
            queries,
            sum(count > queries for count in counts),
            len(dicts),
            dicts[most]["file_name"],
            counts[most],
            counts[most],
        )
    labelled = [i for i, d in enumerate(dicts) if counts[i] and "pan_seg_file_name" in d]
    if not labelled or not comm.is_main_process():
        return
    chosen = np.linspace(0, len(labelled) - 1, min(_LOOKED_AT, len(labelled))).round().astype(int)
    shares = [_found(dicts[labelled[i]], segments[labelled[i]]) for i in chosen]
    found, pixels = np.mean(shares, axis=0)
    # Small segments alone are no fault, and dark pixels of a photograph look like small ids.
    if found < 0.5 and pixels < 0.01:
        raise UserError(
            f"DATASETS.TRAIN ({names}) has almost nothing labelled: the PNGs of {len(chosen)} "
            f"images hold {found:.0%} of the segments that the json lists, on "
            f"{pixels:.1%} of the pixels. Is panoptic_root the folder of the panoptic "
            f"PNGs? It has, for one, {dicts[labelled[chosen[0]]]['pan_seg_file_name']}."
        )


def _found(dataset_dict: dict, segments: Sequence[dict]) -> tuple[float, float]:
    """Share of the segments that have a pixel, and share of the pixels that are in one."""
    ids, counts = np.unique(
        read_panoptic_png(dataset_dict["pan_seg_file_name"]), return_counts=True
    )
    there = np.isin(ids, [s["id"] for s in segments])
    return there.sum() / len(segments), counts[there].sum() / counts.sum()


def _wide(cfg: CfgNode, dicts: Sequence[dict]) -> list[bool] | None:
    if not cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        return None
    if not all("width" in d and "height" in d for d in dicts):
        logger.warning(
            "DATALOADER.ASPECT_RATIO_GROUPING is without effect: %s has images whose width and "
            "height are not in its annotations.",
            ", ".join(cfg.DATASETS.TRAIN),
        )
        return None
    return [d["width"] > d["height"] for d in dicts]


def _sampler_factory(cfg: CfgNode, dicts: Sequence[dict]) -> Callable[[int], Sampler]:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return lambda seed: TrainingSampler(len(dicts), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        # Detectron2 looks at "annotations" only.
        labelled = [{"annotations": d.get("segments_info", d.get("annotations"))} for d in dicts]
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            labelled, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN is '{name}'; known are TrainingSampler and "
        "RepeatFactorTrainingSampler. One of your own goes to build_train_loader as make_sampler."
    )
