import logging
import multiprocessing
import time

import pytest
import torch
from torch import nn

from detr_panoptic_d2.checkpoint import PanopticCheckpointer, atomic_file
from detr_panoptic_d2.errors import UserError


class Counter:
    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@pytest.fixture
def job(tmp_path):
    counter = Counter()
    return PanopticCheckpointer(nn.Linear(2, 2), str(tmp_path), counter=counter), counter


def save(job, *values):
    checkpointer, counter = job
    for value in values:
        counter.value = value
        with torch.no_grad():
            checkpointer.model.weight.fill_(value)
        checkpointer.save(f"model_{value:07d}")


def test_resumes_from_the_last(job):
    checkpointer, counter = job
    save(job, 1, 2)
    counter.value = 0
    checkpointer.resume_or_load("", resume=True)
    assert counter.value == 2
    assert checkpointer.model.weight.unique().tolist() == [2]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "gone"])
def test_broken_last_checkpoint_falls_back(job, tmp_path, caplog, damage):
    checkpointer, counter = job
    save(job, 1, 2, 3)
    last = tmp_path / "model_0000003.pth"
    content = bytearray(last.read_bytes())
    if damage == "gone":
        last.unlink()
    elif damage == "flipped":
        offset = content.index(torch.full((4,), 3.0).numpy().tobytes())
        content[offset] ^= 1
        last.write_bytes(content)
    else:
        last.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with caplog.at_level(logging.WARNING):
        checkpointer.resume_or_load("", resume=True)
    assert counter.value == 2
    assert "model_0000003.pth cannot be used" in caplog.text


def test_no_whole_checkpoint_is_an_error(job, tmp_path):
    save(job, 1)
    (tmp_path / "model_0000001.pth").write_bytes(b"<html>")
    with pytest.raises(UserError, match="without --resume"):
        job[0].resume_or_load("", resume=True)


def test_untagged_checkpoint_is_not_resumed_from(job):
    checkpointer, counter = job
    save(job, 1)
    counter.value = 9
    checkpointer.save_untagged("model_best")
    checkpointer.resume_or_load("", resume=True)
    assert counter.value == 1


def test_failed_save_leaves_the_old_file(job, tmp_path, monkeypatch):
    save(job, 1)
    job[0].model.register_buffer("broken", torch.zeros(1))

    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        job[0].save("model_0000001")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    monkeypatch.undo()
    assert "broken" not in torch.load(tmp_path / "model_0000001.pth", weights_only=True)["model"]


def test_what_a_killed_process_left_is_removed(job, tmp_path):
    save(job, 1)
    left = tmp_path / f".model_0000002.pth.{'0' * 32}.tmp"
    left.write_bytes(b"half")
    job[0].resume_or_load("", resume=True)
    assert not left.exists()


def write_often(target, letter):
    for _ in range(40):
        with atomic_file(target) as f:
            f.write(letter * 50_000)


def test_two_processes_write_one_file(tmp_path):
    target = tmp_path / "a.txt"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(target, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        time.sleep(0.002)
        if target.exists():
            seen.add(target.read_text())
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {"a" * 50_000, "b" * 50_000}
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_file(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_file(target) as f:
        f.write("ä")
        f.flush()
        assert not target.exists()
    assert target.read_text(encoding="utf-8") == "ä"
    with pytest.raises(KeyboardInterrupt), atomic_file(target, "wb") as f:
        f.write(b"half")
        raise KeyboardInterrupt
    assert target.read_text(encoding="utf-8") == "ä"
    assert list(tmp_path.iterdir()) == [target]
