"""Training data and random numbers that depend only on a seed and on the position in the training.

Nothing about them needs to be kept in a checkpoint but the seed: an iteration draws the same
images, the same augmentation and the same dropout whether the training was interrupted or not,
with any number of loader workers, and (data and augmentation) with any number of processes.
"""

import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

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

    def __init__(self, dicts: Sequence[dict], mapper: Callable[[dict], dict | None]):
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
            f"The mapper turned down {_MOST_SKIPPED} images in a row: has the data set targets?"
        )


class PositionBatchSampler(Sampler):
    """Endless batches of (seed, position, index) for this process, from any batch on.

    Args:
        make_sampler: seed -> an endless sampler of indices, such as Detectron2's.
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
            bucket = buckets[self._wide is not None and self._wide[index]]
            bucket.append((self.seed, count * world + rank, index))
            if len(bucket) == self._batch_size:
                yield bucket[:]
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
        if state["seed"] != self._sampler.seed:
            logger.info("Random seed %d, from the checkpoint", state["seed"])
        self._sampler.seed = state["seed"]
