"""Training data and random numbers that depend only on a seed and on the position in the training.

Nothing about them needs to be kept in a checkpoint but the seed: an iteration draws the same
images, the same augmentation and the same dropout whether the training was interrupted or not,
with any number of loader workers, and (data and augmentation) with any number of processes.
"""

import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import UserError

logger = logging.getLogger(__name__)

_MOST_SKIPPED = 100


def seed_everything(*words: int) -> None:
    """Seed ``random``, numpy and torch (all devices) from any number of non-negative integers."""
    python, numpy, torch_low, torch_high = np.random.SeedSequence(words).generate_state(4).tolist()
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(torch_high << 32 | torch_low)


@contextlib.contextmanager
def seeded(*words: int) -> Iterator[None]:
    """Seed as :func:`seed_everything` does, on the CPU, and put the old states back at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    python, numpy, torch_seed = np.random.SeedSequence(words).generate_state(3).tolist()
    random.seed(python)
    np.random.seed(numpy)
    torch.default_generator.manual_seed(torch_seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededDataset(Dataset):
    """Dataset dicts after the mapper; random numbers in the mapper come from the position.

    Args:
        dicts: Detectron2's dataset dicts.
        mapper: dataset dict -> model input, or None to take another image instead.
    """

    def __init__(self, dicts: Dataset, mapper: Callable[[dict], dict | None]):
        self._dicts = dicts
        self._mapper = mapper

    def __len__(self) -> int:
        return len(self._dicts)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        """Args: key: seed, position in the stream of samples of all processes, index."""
        seed, position, index = key
        with seeded(seed, position):
            for _ in range(_MOST_SKIPPED):
                data = self._mapper(self._dicts[index])
                if data is not None:
                    return data
                index = random.randrange(len(self._dicts))
        raise UserError(
            f"The mapper turned down {_MOST_SKIPPED} images in a row. Has the data set targets?"
        )


class PositionBatchSampler(Sampler):
    """Endless batches of (seed, position, index) for this process, from any batch on.

    Args:
        make_sampler: seed -> one of Detectron2's endless samplers.
        batch_size: images per batch of this process.
        seed: see ``make_sampler``.
        wide: per image whether it is wider than high, to keep such images apart from the others
            (``DATALOADER.ASPECT_RATIO_GROUPING``); None: no grouping.
    """

    def __init__(
        self,
        make_sampler: Callable[[int], Sampler],
        batch_size: int,
        seed: int,
        wide: list[bool] | None = None,
    ):
        self._make_sampler = make_sampler
        self._batch_size = batch_size
        self._wide = wide
        self.seed = seed
        # Batches to leave out: the iteration that the training starts from.
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        return itertools.islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[tuple[int, int, int]]]:
        buckets: dict[bool, list] = {False: [], True: []}
        rank, world = comm.get_rank(), comm.get_world_size()
        for count, index in enumerate(self._make_sampler(self.seed)):
            wide = self._wide is not None and self._wide[index]
            buckets[wide].append((self.seed, count * world + rank, index))
            if len(buckets[wide]) == self._batch_size:
                yield buckets[wide]
                buckets[wide] = []


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
        if state["seed"] != self._sampler.seed:
            logger.info("Random seed %d, from the checkpoint", state["seed"])
        self._sampler.seed = state["seed"]


def build_train_loader(cfg: CfgNode, mapper: Callable[[dict], dict | None]) -> DataLoader:
    """Build the endless loader of ``DATASETS.TRAIN``: lists of what the mapper returns.

    Raises:
        UserError: ``SOLVER.IMS_PER_BATCH`` cannot be shared among the processes, or
            ``DATALOADER.SAMPLER_TRAIN`` is not known.
    """
    dicts = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    _warn_of_too_few_queries(cfg, dicts)
    world = comm.get_world_size()
    batch_size, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, world)
    if rest or not batch_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is for all processes together and "
            f"must be a multiple of their number, {world}."
        )
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    sampler = PositionBatchSampler(
        _sampler_factory(cfg, dicts), batch_size, seed, _wide_images(cfg, dicts)
    )
    logger.info("Training on %d images, %d per batch and process", len(dicts), batch_size)
    return DataLoader(
        SeededDataset(DatasetFromList(dicts, copy=False), mapper),
        batch_sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        # Its own generator: the loader must not draw from the one that the model uses.
        generator=torch.Generator(),
    )


def _warn_of_too_few_queries(cfg: CfgNode, dicts: list[dict]) -> None:
    """A query per segment at most: what has none is not learnt (official DETR says nothing)."""
    queries = cfg.MODEL.DETR.NUM_OBJECT_QUERIES
    counts = [
        sum(not s.get("iscrowd", 0) for s in d.get("segments_info", d.get("annotations", ())))
        for d in dicts
    ]
    over = [i for i, count in enumerate(counts) if count > queries]
    if over:
        worst = max(over, key=counts.__getitem__)
        logger.warning(
            "MODEL.DETR.NUM_OBJECT_QUERIES is %d, but %d of %d images have more segments (%s has "
            "%d): in each of them, the segments that fit the queries least are not trained on. Set "
            "it to %d or more to train on all.",
            queries,
            len(over),
            len(dicts),
            dicts[worst]["file_name"],
            counts[worst],
            counts[worst],
        )


def _wide_images(cfg: CfgNode, dicts: list[dict]) -> list[bool] | None:
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


def _sampler_factory(cfg: CfgNode, dicts: list[dict]) -> Callable[[int], Sampler]:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    size = len(dicts)
    if name == "TrainingSampler":
        return lambda seed: TrainingSampler(size, seed=seed)
    if name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
        return lambda seed: RandomSubsetTrainingSampler(
            size, ratio, seed_shuffle=seed, seed_subset=seed
        )
    if name == "RepeatFactorTrainingSampler":
        labelled = [{"annotations": d.get("segments_info", d.get("annotations"))} for d in dicts]
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            labelled, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN is '{name}'; known are TrainingSampler, "
        "RepeatFactorTrainingSampler and RandomSubsetTrainingSampler."
    )
