"""kill -9 at any time: what is trained afterwards is what would have been trained without it.

Run as a script, this file forks a process for each job that it reads (a line of json) and writes
its status: everything is imported once, so that a job costs no start of Python.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils.logger import setup_logger

from detr_panoptic_d2.apps.demo import make_shapes
from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.evaluation import panoptic

REPO = Path(__file__).parents[2]
KILLED = -signal.SIGKILL


class Record(HookBase):
    """Appends iteration and loss to a file, in one write."""

    def __init__(self, path):
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def after_step(self):
        loss = self.trainer.storage.latest()["total_loss"][0]
        os.write(self._file, (json.dumps([self.trainer.iter, loss]) + "\n").encode())


def train(job):
    """Train; the process kills itself within call ``die_at`` of what writes or compares."""
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    owner, name, call = torch, "save", 0
    if "die_at" in job:
        name, call = job["die_at"]
        owner = {"save": torch, "count_matches": panoptic}[name]
    function, calls = getattr(owner, name), iter(range(1, 1000))

    def counted(*args, **kwargs):
        if next(calls) == call:
            if name == "save":
                # Half of the file is there, and on the disk.
                args[1].write(b"PK\x03\x04" + bytes(5000))
                args[1].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, counted)
    cfg = setup_cfg("shapes/tiny.yaml", job["opts"])
    setup_logger(cfg.OUTPUT_DIR, name="detr_panoptic_d2")
    torch.manual_seed(cfg.SEED)
    trainer = PanopticTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.register_hooks([Record(job["record"])])
    # Before what may die after the checkpoint of an iteration.
    trainer._hooks.insert(0, trainer._hooks.pop())
    trainer.train()


def wait(pid, kill_after):
    """Return the status; the process is not reaped before it was killed, so its id is its own."""
    end = time.monotonic() + kill_after
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main():
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                train(job)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        sys.stdout.write(f"{wait(pid, job['kill_after'])}\n")
        sys.stdout.flush()


class Jobs:
    """The script, and the folders of its jobs."""

    def __init__(self, folder):
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
            cwd=folder,
        )
        paths = make_shapes(folder / "shapes", "few", 6, size=32, seed=0)
        item = {"name": "few_shapes", **paths}
        opts = ["DATASETS.REGISTER", [item], "DATASETS.TRAIN", ("few_shapes",)]
        opts += ["DATASETS.TEST", ("few_shapes",), "MODEL.DEVICE", "cpu", "TEST.EVAL_PERIOD", 4]
        opts += ["INPUT.MIN_SIZE_TRAIN", (24, 32, 40), "INPUT.MIN_SIZE_TEST", 32, "SEED", 3]
        opts += ["SOLVER.MAX_ITER", 8, "SOLVER.CHECKPOINT_PERIOD", 2]
        opts += ["MODEL.DETR.TEST.SCORE_THRESH", 0.0]
        self._opts = [str(value) for value in opts]

    def train(self, name, kill_after=600.0, **more):
        """Start or go on with the training called ``name``; return the status, negative where a
        signal ended it."""
        (self.folder / name).mkdir(exist_ok=True)
        job = {"log": str(self.folder / "log"), "kill_after": kill_after, **more}
        job["opts"] = [*self._opts, "OUTPUT_DIR", str(self.folder / name)]
        job["record"] = str(self.folder / name / "losses.jsonl")
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def outcome(self, name):
        """Every loss of every iteration (some were computed again after a kill), weights and
        predictions."""
        losses = {}
        for line in (self.folder / name / "losses.jsonl").read_text().splitlines():
            iteration, loss = json.loads(line)
            losses.setdefault(iteration, set()).add(loss)
        weights = torch.load(self.folder / name / "model_final.pth", weights_only=True)["model"]
        path = self.folder / name / "inference" / "few_shapes" / "predictions.json"
        weights = {key: value.tolist() for key, value in weights.items()}
        return losses, weights, json.loads(path.read_text())["annotations"]

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
    outcome = jobs.outcome("unbroken")
    assert sorted(outcome[0]) == list(range(8))
    return outcome


@pytest.mark.parametrize(
    ("case", "die_at"),
    [("half a checkpoint", ("save", 2)), ("last evaluation", ("count_matches", 9))],
)
def test_killed_in(jobs, unbroken, case, die_at):
    folder = jobs.folder / case
    assert jobs.train(case, die_at=die_at) == KILLED
    assert (folder / "model_final.pth").exists() == (case == "last evaluation")
    for path in folder.glob("*.pth"):
        torch.load(path, weights_only=True)
    assert jobs.train(case) == 0, (jobs.folder / "log").read_text()
    assert jobs.outcome(case) == unbroken
    assert not list(folder.glob(".*"))


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
        assert jobs.outcome(name) == unbroken
        trainings += 1


if __name__ == "__main__":
    main()
