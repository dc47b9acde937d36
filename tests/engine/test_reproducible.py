import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetFromList
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from detr_panoptic_d2.engine.reproducible import (
    PositionBatchSampler,
    SeededDataset,
    seed_everything,
    seeded,
)
from detr_panoptic_d2.engine.train_loader import build_train_loader
from detr_panoptic_d2.errors import UserError


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_seeded_puts_the_states_back():
    seed_everything(1)
    expected = [draw(), draw()]
    seed_everything(1)
    first = draw()
    with seeded(1, 2):
        inside = draw()
    assert [first, draw()] == expected
    with seeded(1, 2):
        assert draw() == inside
    with seeded(2, 1):
        assert draw() != inside


def batches(count, *, start=0, wide=None, size=7, batch_size=3):
    sampler = PositionBatchSampler(
        lambda seed: TrainingSampler(size, seed=seed), batch_size, 5, wide
    )
    sampler.start = start
    return list(itertools.islice(sampler, count))


@pytest.mark.parametrize("wide", [None, [True, False, True, False, True, True, False]])
def test_starts_anywhere(wide):
    whole = batches(20, wide=wide)
    for start in (1, 7, 13):
        assert batches(20 - start, start=start, wide=wide) == whole[start:]


def test_every_image_once_per_epoch():
    indices = [index for batch in batches(7) for _, _, index in batch]
    for epoch in range(3):
        assert sorted(indices[7 * epoch : 7 * epoch + 7]) == list(range(7))


def test_shapes_are_kept_apart():
    wide = [True, False, True, False, True, True, False]
    for batch in batches(20, wide=wide):
        assert len({wide[index] for _, _, index in batch}) == 1


def test_processes_share_the_batch(monkeypatch):
    whole = batches(4, batch_size=4)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(batches(4, batch_size=2))
    for batch, first, second in zip(whole, *parts, strict=True):
        assert sorted(first + second) == sorted(batch)


class NoisyMapper:
    def __call__(self, d):
        return {**d, "noise": draw()} if d["index"] != 3 else None


def items(workers, start, count):
    dicts = [{"index": i} for i in range(7)]
    sampler = PositionBatchSampler(lambda seed: TrainingSampler(7, seed=seed), 2, 5)
    sampler.start = start
    loader = torch.utils.data.DataLoader(
        SeededDataset(DatasetFromList(dicts), NoisyMapper()),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),
    )
    return list(itertools.islice(loader, count))


def test_augmentation_depends_on_the_position_only():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    whole = items(0, 0, 8)
    assert torch.equal(state, torch.get_rng_state())
    assert items(2, 0, 8) == whole
    assert items(2, 3, 5) == whole[3:]
    # The image that the mapper turns down is replaced.
    assert all(d["index"] != 3 for batch in whole for d in batch)
    assert len({d["noise"] for batch in whole for d in batch}) == 16


def test_mapper_that_takes_nothing():
    dataset = SeededDataset(DatasetFromList([{"index": 3}]), NoisyMapper())
    with pytest.raises(UserError, match="turned down"):
        dataset[1, 0, 0]


@pytest.mark.parametrize("name", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_detectron2_samplers(make_cfg, name):
    cfg = make_cfg("out", DATALOADER__SAMPLER_TRAIN=name, DATALOADER__REPEAT_THRESHOLD=1.0)
    first, second = (list(itertools.islice(build_train_loader(cfg, dict), 3)) for _ in range(2))
    assert first == second
    assert all(set(d) >= {"file_name", "segments_info"} for batch in first for d in batch)


def test_sampler_of_the_users_own(make_cfg):
    loader = build_train_loader(make_cfg("out"), dict, lambda seed: itertools.repeat(2))
    (batch,) = itertools.islice(loader, 1)
    assert {d["image_id"] for d in batch} == {2}


def test_batch_that_the_processes_cannot_share(make_cfg, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    with pytest.raises(UserError, match="IMS_PER_BATCH is 2, .* multiple of 4"):
        build_train_loader(make_cfg("out"), dict)
