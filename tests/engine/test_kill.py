"""kill -9 at any time: the training that follows ends as if there had been no kill."""

import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from detectron2.engine import HookBase

from detr_panoptic_d2.apps.demo import make_shapes
from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.engine.train_loader import seed_everything
from detr_panoptic_d2.evaluation.panoptic import PanopticEvaluator

KILLED = -signal.SIGKILL


class Record(HookBase):
    """Appends iteration and loss to a file, in one write."""

    def __init__(self, path):
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def after_step(self):
        loss = self.trainer.storage.latest()["total_loss"][0]
        os.write(self._file, (json.dumps([self.trainer.iter, loss]) + "\n").encode())


def train(opts, record, die_in, call):
    """Train; the process kills itself within a call of what writes or compares."""
    torch.set_num_threads(1)
    owner = {"save": torch, "evaluate": PanopticEvaluator}.get(die_in)
    if owner is not None:
        function, calls = getattr(owner, die_in), iter(range(1, 1000))

        def counted(*args, **kwargs):
            if next(calls) == call:
                if die_in == "save":
                    # Half of the file is there, and on the disk.
                    args[1].write(b"PK\x03\x04" + bytes(5000))
                    args[1].flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        setattr(owner, die_in, counted)
    cfg = setup_cfg("shapes/tiny.yaml", opts)
    seed_everything(cfg.SEED)
    trainer = PanopticTrainer(cfg)
    trainer.resume_or_load(resume=True)
    # Before the hooks that may die after the checkpoint of an iteration.
    hook = Record(record)
    trainer.register_hooks([hook])
    trainer._hooks.insert(0, trainer._hooks.pop())
    trainer.train()


class Jobs:
    """Trainings in processes that are forked from one that has imported everything."""

    def __init__(self, folder):
        self.folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        item = {"name": "few_shapes", **make_shapes(folder / "shapes", "few", 6, size=32, seed=0)}
        opts = ["DATASETS.REGISTER", [item], "DATASETS.TRAIN", ("few_shapes",)]
        opts += ["DATASETS.TEST", ("few_shapes",), "MODEL.DEVICE", "cpu", "TEST.EVAL_PERIOD", 4]
        opts += ["INPUT.MIN_SIZE_TRAIN", (24, 32, 40), "INPUT.MIN_SIZE_TEST", 32, "SEED", 3]
        opts += ["SOLVER.MAX_ITER", 8, "SOLVER.CHECKPOINT_PERIOD", 2, "MODEL_EMA.ENABLED", True]
        opts += ["MODEL.DETR.TEST.SCORE_THRESH", 0.0]
        self._opts = [str(value) for value in opts]

    def train(self, name, kill_after=600.0, die_in=None, call=0):
        """Start or continue the training called ``name``; return the exit code, negative if a
        signal ended it."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        opts = [*self._opts, "OUTPUT_DIR", str(folder)]
        arguments = (opts, str(folder / "losses.jsonl"), die_in, call)
        process = self._context.Process(target=train, args=arguments)
        process.start()
        process.join(kill_after)
        process.kill()
        process.join()
        return process.exitcode

    def outcome(self, name):
        """Every loss of every iteration (some were computed again after a kill), weights and
        predictions."""
        losses = {}
        for line in (self.folder / name / "losses.jsonl").read_text().splitlines():
            iteration, loss = json.loads(line)
            losses.setdefault(iteration, set()).add(loss)
        content = torch.load(self.folder / name / "model_final.pth", weights_only=True)
        weights = {k: v.tolist() for key in ("model", "ema") for k, v in content[key].items()}
        path = self.folder / name / "inference" / "few_shapes" / "predictions.json"
        return losses, weights, json.loads(path.read_text())["annotations"]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    return Jobs(tmp_path_factory.mktemp("kill"))


@pytest.fixture(scope="module")
def unbroken(jobs):
    assert jobs.train("unbroken") == 0
    outcome = jobs.outcome("unbroken")
    assert sorted(outcome[0]) == list(range(8))
    return outcome


@pytest.mark.parametrize(("die_in", "call"), [("save", 2), ("evaluate", 2)])
def test_killed_in(jobs, unbroken, die_in, call):
    """In the second checkpoint, and in the last evaluation."""
    folder = jobs.folder / die_in
    assert jobs.train(die_in, die_in=die_in, call=call) == KILLED
    assert (folder / "model_final.pth").exists() == (die_in == "evaluate")
    for path in folder.glob("*.pth"):
        torch.load(path, weights_only=True)
    assert jobs.train(die_in) == 0
    assert jobs.outcome(die_in) == unbroken
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
        assert status == 0
        assert jobs.outcome(name) == unbroken
        trainings += 1
