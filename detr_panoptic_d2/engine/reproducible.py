"""Training data and random numbers that depend only on a seed and on the position in the training.

A checkpoint keeps the seed and nothing else of them: an iteration draws the same images, the same
augmentation and the same dropout whether the training was interrupted or not, and (images and
augmentation) with any number of processes.
"""

import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

logger = logging.getLogger(__name__)


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

    def __len__(self) -> int:
        return len(self._dicts)

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
