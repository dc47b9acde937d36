"""What an iteration draws depends on its number alone."""

import itertools

import pytest
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from detr_panoptic_d2.engine import build_train_loader
from detr_panoptic_d2.engine.train_loader import PositionBatchSampler
from detr_panoptic_d2.errors import UserError

WIDE = [True, False, True, False, True, True, False]


def make_sampler(start=0, wide=(False,) * 7, batch_size=3):
    sampler = PositionBatchSampler(
        lambda seed: TrainingSampler(7, seed=seed), batch_size, seed=5, wide=wide
    )
    sampler.start = start
    return sampler


def batches(count, **options):
    return list(itertools.islice(make_sampler(**options), count))


@pytest.mark.parametrize("wide", [WIDE, [False] * 7])
def test_starts_anywhere(wide):
    whole = batches(20, wide=wide)
    for start in (1, 7, 13):
        assert batches(20 - start, start=start, wide=wide) == whole[start:]
    assert all(len({wide[index] for _, _, index in batch}) == 1 for batch in whole)


def test_every_image_once_per_epoch_and_processes_share_the_batch(monkeypatch):
    indices = [index for batch in batches(7) for _, _, index in batch]
    assert all(sorted(indices[7 * epoch :][:7]) == list(range(7)) for epoch in range(3))
    whole, parts = batches(4, batch_size=4), []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(batches(4, batch_size=2))
    for batch, first, second in zip(whole, *parts, strict=True):
        assert sorted(first + second) == sorted(batch)


@pytest.mark.parametrize("name", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_detectron2_samplers_and_one_of_the_users_own(make_cfg, name):
    cfg = make_cfg("out", DATALOADER__SAMPLER_TRAIN=name, DATALOADER__REPEAT_THRESHOLD=1.0)
    first, second = (list(itertools.islice(build_train_loader(cfg, dict), 3)) for _ in range(2))
    assert first == second
    assert all(set(d) >= {"file_name", "segments_info"} for batch in first for d in batch)
    (batch,) = itertools.islice(build_train_loader(cfg, dict, lambda seed: itertools.repeat(2)), 1)
    assert {d["image_id"] for d in batch} == {2}


def test_batch_that_the_processes_cannot_share(make_cfg, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    with pytest.raises(UserError, match="IMS_PER_BATCH is 2, .* multiple of 4"):
        build_train_loader(make_cfg("out"), dict)


def test_training_set_without_segments(panoptic_set, scene, make_cfg):
    panoptic_set("all_void", [(scene[0], {})] * 3)
    with pytest.raises(UserError, match="all_void.*none of 3 images has a segment"):
        build_train_loader(make_cfg("out", DATASETS__TRAIN="('all_void',)"), dict)
