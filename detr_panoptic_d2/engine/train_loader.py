"""The training loader. A resumed training gets the same batches as an uninterrupted one.

Images and random numbers depend only on a seed and on the position in the training. A checkpoint
keeps only the seed. If ``DATALOADER.ASPECT_RATIO_GROUPING`` is False, images and augmentation are
the same with any number of processes too. With grouping, each process groups its own share.
"""

import contextlib
import logging
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.dataset_mapper import is_target
from ..errors import UserError, check_value

logger = logging.getLogger(__name__)


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
    """
    dicts = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    world, batch = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
    allowed = f"1 or more, and a multiple of {world}, the number of processes"
    check_value("SOLVER.IMS_PER_BATCH", batch, batch > 0 and batch % world == 0, allowed)
    dataset = SeededDataset(dicts, mapper)
    if dataset.max_segments == 0:
        names = ", ".join(cfg.DATASETS.TRAIN)
        raise UserError(f"DATASETS.TRAIN ({names}): none of {len(dicts)} images has a segment.")
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    sampler = PositionBatchSampler(
        make_sampler or _sampler_factory(cfg, dicts),
        batch // world,
        cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        # Dataset dicts may have no sizes.
        [grouped and d.get("width", 0) > d.get("height", 0) for d in dicts],
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=_leave_ctrl_c_to_main,
        pin_memory=torch.cuda.is_available(),
        # The loader must not draw from the generator that the model uses.
        generator=torch.Generator(),
    )


def _leave_ctrl_c_to_main(worker_id: int) -> None:
    """Leave Ctrl-C to the main process, which ends its workers: they would print tracebacks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # When the main process ends, the worker's thread that shares tensors would print an error.
    sys.excepthook = lambda *error: None


def _sampler_factory(cfg: CfgNode, dicts: list[dict]) -> Callable[[int], Sampler]:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    valid = name in ("TrainingSampler", "RepeatFactorTrainingSampler")
    allowed = "TrainingSampler or RepeatFactorTrainingSampler; pass others as make_sampler"
    check_value("DATALOADER.SAMPLER_TRAIN", name, valid, allowed)
    if name == "TrainingSampler":
        return lambda seed: TrainingSampler(len(dicts), seed=seed)
    # Detectron2 counts "annotations" only.
    labelled = [{"annotations": d.get("segments_info", d.get("annotations"))} for d in dicts]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        labelled, cfg.DATALOADER.REPEAT_THRESHOLD
    )
    return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)


def seed_everything(*words: int) -> None:
    """Seed ``random``, NumPy and PyTorch (all devices) from non-negative integers."""
    python, numpy, torch_low, torch_high = np.random.SeedSequence(words).generate_state(4).tolist()
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(torch_high << 32 | torch_low)


@contextlib.contextmanager
def seeded(*words: int) -> Iterator[None]:
    """Call :func:`seed_everything`, and restore the states of the CPU's generators at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed_everything(*words)
        yield
    random.setstate(python)
    np.random.set_state(numpy)


class SeededDataset(Dataset):
    """Apply a mapper to dataset dicts, with random numbers that depend on the position alone.

    ``max_segments`` is the largest number of segments to learn in one image.
    """

    def __init__(self, dicts: list[dict], mapper: Callable[[dict], dict | None]):
        self._dicts = DatasetFromList(dicts, copy=False)
        self._mapper = mapper
        self.max_segments = max(
            sum(map(is_target, d.get("segments_info", d.get("annotations", ())))) for d in dicts
        )

    def __len__(self) -> int:
        return len(self._dicts)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        # The position counts the samples of all processes.
        seed, position, index = key
        with seeded(seed, position):
            while (data := self._mapper(self._dicts[index])) is None:
                index = random.randrange(len(self._dicts))
            return data


class PositionBatchSampler(Sampler):
    """Yield endless batches of (seed, position, index) for this process.

    Args:
        make_sampler: seed -> an endless sampler of indices, such as Detectron2's.
        batch_size: images per batch of this process.
        seed: see ``make_sampler``.
        wide: per image whether it is wider than high. A batch has images of one kind.

    The first ``start`` batches are skipped.
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
    """Seed every iteration from (seed, iteration, rank), and skip the data of earlier iterations.

    The seed is ``SEED`` of the config or, if that is negative, a random number. Checkpoints have
    it.
    """

    def __init__(self, sampler: PositionBatchSampler, cfg_seed: int):
        self._sampler = sampler
        self._cfg_seed = cfg_seed

    def before_train(self) -> None:
        self._sampler.start = self.trainer.start_iter

    def before_step(self) -> None:
        seed_everything(self._sampler.seed, self.trainer.iter, comm.get_rank())

    def state_dict(self) -> dict[str, int]:
        return {"seed": self._sampler.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self._cfg_seed not in (state["seed"], -1):
            message = "SEED %d is not used: the training continues with its own seed, %d."
            logger.warning(message, self._cfg_seed, state["seed"])
        self._sampler.seed = state["seed"]
