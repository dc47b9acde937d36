"""kill -9 at any time: what is trained afterwards is what would have been trained without it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from detr_panoptic_d2.data.shapes import make_shapes

REPO = Path(__file__).parents[2]
KILLED = -signal.SIGKILL


class Jobs:
    """The script that forks, and the folders of its jobs."""

    def __init__(self, folder):
        self.folder = folder
        script = Path(__file__).with_name("forked_jobs.py")
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
            cwd=folder,
        )
        paths = make_shapes(folder / "shapes", "few", 6, size=32, seed=0)
        self._item = {"name": "few_shapes", **paths}

    def run(self, **job):
        """Return the exit status of a job, negative where a signal ended it."""
        self._process.stdin.write(json.dumps({"log": str(self.folder / "log"), **job}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def train(self, name, **more):
        """Start or go on with the training called ``name``."""
        opts = ["DATASETS.REGISTER", [self._item], "DATASETS.TRAIN", ("few_shapes",)]
        opts += ["DATASETS.TEST", ("few_shapes",), "OUTPUT_DIR", self.folder / name]
        opts += ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", (24, 32, 40)]
        opts += ["INPUT.MIN_SIZE_TEST", 32, "SOLVER.MAX_ITER", 8, "SOLVER.CHECKPOINT_PERIOD", 2]
        opts += ["TEST.EVAL_PERIOD", 4, "SEED", 3]
        opts += ["MODEL.DETR.TEST.SCORE_THRESH", 0.0, "MODEL.DETR.TEST.BATCH_SIZE", 1]
        os.makedirs(self.folder / name, exist_ok=True)
        record = str(self.folder / name / "losses.jsonl")
        return self.run(opts=[str(value) for value in opts], record=record, **more)

    def losses(self, name):
        """Every loss of every iteration; some were computed again after a kill."""
        found = {}
        for line in (self.folder / name / "losses.jsonl").read_text().splitlines():
            iteration, loss = json.loads(line)
            found.setdefault(iteration, set()).add(loss)
        return found

    def weights(self, name):
        return torch.load(self.folder / name / "model_final.pth", weights_only=True)["model"]

    def results(self, name):
        path = self.folder / name / "inference" / "few_shapes" / "predictions.json"
        return json.loads(path.read_text())["annotations"]

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=600)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp("kill"))
    yield jobs
    jobs.close()


@pytest.fixture(scope="module")
def unbroken(jobs):
    assert jobs.train("unbroken") == 0, (jobs.folder / "log").read_text()
    assert sorted(jobs.losses("unbroken")) == list(range(8))
    return "unbroken"


def check_equal(jobs, name, other):
    losses = jobs.losses(name)
    assert losses == jobs.losses(other)
    assert all(len(values) == 1 for values in losses.values())
    first, second = jobs.weights(name), jobs.weights(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    assert jobs.results(name) == jobs.results(other)


PLACES = {
    "half a checkpoint": ("save", 2),
    "checkpoint before it has its name": ("replace", 3),
    "checkpoint before it is on the disk": ("fsync", 4),
    "middle of a step": ("backward", 6),
    "evaluation during training": ("compare", 3),
    "end of the training": ("save", 5),
    "last evaluation": ("compare", 9),
}


QUICK = ("half a checkpoint", "last evaluation")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in PLACES]
)
def test_killed_in(jobs, unbroken, case):
    name = case.replace(" ", "_")
    assert jobs.train(name, die_at=PLACES[case]) == KILLED
    assert not (jobs.folder / name / "model_final.pth").exists() or case == "last evaluation"
    for path in (jobs.folder / name).glob("*.pth"):
        torch.load(path, weights_only=True)
    assert jobs.train(name) == 0, (jobs.folder / "log").read_text()
    check_equal(jobs, name, unbroken)
    assert not list((jobs.folder / name).glob(".*"))


def test_killed_while_the_shapes_are_made(jobs, tmp_path):
    assert jobs.run(shapes=str(tmp_path), die_at=("render", 5)) == KILLED
    assert not (tmp_path / "train").exists()
    assert jobs.run(shapes=str(tmp_path)) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"train", ".train.lock"}
    again = make_shapes(tmp_path, "train", 12, size=32, seed=0)
    assert len(list(Path(again["image_root"]).iterdir())) == 12


@pytest.mark.slow
def test_twenty_random_kills(jobs, unbroken):
    """Trainings one after the other until 20 kills have hit; each one ends as the unbroken."""
    start = time.monotonic()
    assert jobs.train("timed") == 0
    duration = time.monotonic() - start
    rng, kills, trainings = random.Random(0), 0, 0
    while kills < 20:
        name = f"random_{trainings}"
        while (status := jobs.train(name, kill_after=rng.uniform(0, 0.8 * duration))) == KILLED:
            kills += 1
        assert status == 0, (jobs.folder / "log").read_text()
        check_equal(jobs, name, unbroken)
        trainings += 1
