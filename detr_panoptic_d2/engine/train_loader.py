"""The loader of the training data, exact over interruptions.

Images and random numbers depend only on a seed and on the position in the training, and a
checkpoint keeps nothing of them but the seed: an iteration draws the same images, the same
augmentation and the same dropout whether the training was interrupted or not, and (images and
augmentation) with any number of processes.
"""

import contextlib
import logging
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetFromList, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.dataset_mapper import is_target
from ..data.panoptic_png import read_panoptic_png
from ..errors import UserError, check_value

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
    allowed = f"1 or more, and a multiple of {world}, the number of processes"
    check_value("SOLVER.IMS_PER_BATCH", batch, batch > 0 and batch % world == 0, allowed)
    _check_labels(cfg, dicts)
    if comm.is_main_process():
        _warn_of_shared_images(cfg, dicts)
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    sampler = PositionBatchSampler(
        make_sampler or _sampler_factory(cfg, dicts),
        batch // world,
        cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        # A json may lack sizes.
        [grouped and d.get("width", 0) > d.get("height", 0) for d in dicts],
    )
    return DataLoader(
        SeededDataset(DatasetFromList(dicts, copy=False), mapper),
        batch_sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=_ignore_ctrl_c,
        # Its own generator: the loader must not draw from the one that the model uses.
        generator=torch.Generator(),
    )


def _ignore_ctrl_c(worker_id: int) -> None:
    """The main process ends its workers. Ended by the signal itself, they may print tracebacks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_labels(cfg: CfgNode, dicts: Sequence[dict]) -> None:
    """Look at the annotations of all images and at the panoptic PNGs of a few.

    Raises:
        UserError: there are no segments, or the PNGs hold almost none of those that are listed.
    """
    names = ", ".join(cfg.DATASETS.TRAIN)
    segments = [
        [s for s in d.get("segments_info", d.get("annotations", ())) if is_target(s)] for d in dicts
    ]
    most = max(map(len, segments))
    if most == 0:
        raise UserError(f"DATASETS.TRAIN ({names}): none of {len(dicts)} images has a segment.")
    if most > cfg.MODEL.DETR.NUM_OBJECT_QUERIES:
        logger.warning(
            "MODEL.DETR.NUM_OBJECT_QUERIES is %d, but images have up to %d segments. A query finds "
            "one segment at most: in such an image, those that fit the queries least are not "
            "trained on.",
            cfg.MODEL.DETR.NUM_OBJECT_QUERIES,
            most,
        )
    labelled = [
        ([s["id"] for s in found], d["pan_seg_file_name"])
        for d, found in zip(dicts, segments, strict=True)
        if found and "pan_seg_file_name" in d
    ]
    chosen = labelled[:: len(labelled) // _LOOKED_AT + 1]
    shares = [np.isin(ids, read_panoptic_png(file)).mean() for ids, file in chosen]
    if shares and np.mean(shares) < 0.1:
        raise UserError(
            f"DATASETS.TRAIN ({names}) has almost nothing labelled: the PNGs of {len(chosen)} "
            f"images hold {np.mean(shares):.0%} of the segments that the json lists. Is "
            f"panoptic_root the folder of its PNGs? It has, for one, {chosen[0][1]}."
        )


def _warn_of_shared_images(cfg: CfgNode, dicts: Sequence[dict]) -> None:
    test = {d["file_name"] for name in cfg.DATASETS.TEST for d in DatasetCatalog.get(name)}
    shared = test & {d["file_name"] for d in dicts}
    if shared:
        logger.warning(
            "%d of %d images of DATASETS.TEST are in DATASETS.TRAIN as well (%s, for one): results "
            "will say little about new images.",
            len(shared),
            len(test),
            min(shared),
        )


def _sampler_factory(cfg: CfgNode, dicts: Sequence[dict]) -> Callable[[int], Sampler]:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return lambda seed: TrainingSampler(len(dicts), seed=seed)
    check_value(
        "DATALOADER.SAMPLER_TRAIN",
        name,
        name == "RepeatFactorTrainingSampler",
        "TrainingSampler or RepeatFactorTrainingSampler; one of your own goes to "
        "build_train_loader as make_sampler",
    )
    # Detectron2 looks at "annotations" only.
    labelled = [{"annotations": d.get("segments_info", d.get("annotations"))} for d in dicts]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        labelled, cfg.DATALOADER.REPEAT_THRESHOLD
    )
    return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)


def seed_everything(*words: int) -> None:
    """Seed ``random``, numpy and torch (all devices) from any number of non-negative integers."""
    python, numpy, torch_low, torch_high = np.random.SeedSequence(words).generate_state(4).tolist()
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(torch_high << 32 | torch_low)


@contextlib.contextmanager
def seeded(*words: int) -> Iterator[None]:
    """:func:`seed_everything`, and the old states on the CPU at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed_everything(*words)
        yield
    random.setstate(python)
    np.random.set_state(numpy)


class SeededDataset(Dataset):
    """Dataset dicts after the mapper; random numbers in the mapper come from the position.

    Args:
        dicts: Detectron2's dataset dicts.
        mapper: dataset dict -> model input, or None to take another image instead.
    """

    def __init__(self, dicts: Sequence[dict], mapper: Callable[[dict], dict | None]):
        self._dicts = dicts
        self._mapper = mapper

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        """Args: key: seed, position in the stream of samples of all processes, index."""
        seed, position, index = key
        with seeded(seed, position):
            while (data := self._mapper(self._dicts[index])) is None:
                index = random.randrange(len(self._dicts))
            return data


class PositionBatchSampler(Sampler):
    """Endless batches of (seed, position, index) for this process.

    Args:
        make_sampler: seed -> an endless sampler of indices, such as Detectron2's.
        batch_size: images per batch of this process.
        seed: see ``make_sampler``.
        wide: per image whether it is wider than high; such images and the others are not mixed in
            a batch.

    Attributes:
        start: batches to leave out, the iteration that the training starts from.
    """

    def __init__(
        self,
        make_sampler: Callable[[int], Sampler],
        batch_size: int,
        seed: int,
        wide: Sequence[bool],
    ):
        self._make_sampler = make_sampler
        self._batch_size = batch_size
        self._wide = wide
        self.seed, self.start = seed, 0

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        buckets: dict[bool, list] = {False: [], True: []}
        rank, world, batches = comm.get_rank(), comm.get_world_size(), 0
        for count, index in enumerate(self._make_sampler(self.seed)):
            bucket = buckets[self._wide[index]]
            bucket.append((self.seed, count * world + rank, index))
            if len(bucket) == self._batch_size:
                if batches >= self.start:
                    yield bucket[:]
                batches += 1
                bucket.clear()


class ReproducibleSteps(HookBase):
    """Seed every iteration from (seed, iteration, rank), and start the data at the iteration.

    The seed is ``SEED`` of the config or, where that is negative, drawn once, and is kept in the
    checkpoints.

    Args:
        sampler: the sampler of the training data.
    """

    def __init__(self, sampler: PositionBatchSampler):
        self._sampler = sampler

    def before_train(self) -> None:
        self._sampler.start = self.trainer.start_iter

    def before_step(self) -> None:
        seed_everything(self._sampler.seed, self.trainer.iter, comm.get_rank())

    def state_dict(self) -> dict[str, int]:
        return {"seed": self._sampler.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._sampler.seed = state["seed"]
