"""Runs jobs in forked processes, and kills them: a script, started by test_kill.py.

Each line of stdin is a job (json), each line of stdout the status of its process. Everything is
imported once, before the forks, so that a job costs no start of Python. A job dies by itself at a
certain call ("die_at": [name, call]), or is killed after some seconds ("kill_after").
"""

import importlib
import json
import os
import signal
import sys
import time
import traceback

import torch
from detectron2.engine import HookBase
from detectron2.utils.logger import setup_logger

from detr_panoptic_d2.data.shapes import make_shapes
from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg

# What a job may die in: module, object or function.
PLACES = {
    "save": ("torch", "save"),
    "fsync": ("os", "fsync"),
    "replace": ("os", "replace"),
    "compare": ("detr_panoptic_d2.evaluation.panoptic", "pq_compute_single_core"),
    "backward": ("torch.Tensor", "backward"),
    "render": ("detr_panoptic_d2.data.shapes", "render"),
}


class Record(HookBase):
    """Appends iteration and loss to a file, in one write."""

    def __init__(self, path):
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def after_step(self):
        loss = self.trainer.storage.latest()["total_loss"][0]
        os.write(self._file, (json.dumps([self.trainer.iter, loss]) + "\n").encode())


def train(opts, record):
    cfg = setup_cfg("shapes/tiny.yaml", opts)
    setup_logger(cfg.OUTPUT_DIR, name="detr_panoptic_d2")
    torch.manual_seed(cfg.SEED)
    trainer = PanopticTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.register_hooks([Record(record)])
    # Before what may die after the checkpoint of an iteration.
    trainer._hooks.insert(0, trainer._hooks.pop())
    trainer.train()


def die_at(name, call):
    """Make a process kill itself within the given call of a function, counted from 1."""
    module, attribute = PLACES[name]
    owner = torch.Tensor if module == "torch.Tensor" else importlib.import_module(module)
    function = getattr(owner, attribute)
    calls = 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            if name == "save":
                # Half of the file is there, and on the disk.
                args[1].write(b"PK\x03\x04" + bytes(5000))
                args[1].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, attribute, counted)


def run(job):
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if "die_at" in job:
        die_at(*job["die_at"])
    if "shapes" in job:
        make_shapes(job["shapes"], "train", 12, size=32, seed=0)
    else:
        train(job["opts"], job["record"])


def wait(pid, kill_after):
    """Return the status; the process is not reaped before it was killed, so its id is its own."""
    if kill_after is not None:
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
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                run(job)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        sys.stdout.write(f"{wait(pid, job.get('kill_after'))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
