"""What happens to a run: no space, a folder that cannot be written to, NaN, Ctrl-C."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase

from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.errors import one_line_errors

REPO = Path(__file__).parents[2]
# So that a hanging test ends.
LONG = 600
TRAIN = ("train", "--config-file", "shapes/tiny.yaml")


def whole_checkpoints(folder):
    files = sorted(folder.glob("*.pth"))
    for path in files:
        torch.load(path, weights_only=True)
    return [path.name for path in files]


def test_no_space(spoilt, command):
    """A limit of the size of files works for every user, where a disk cannot be filled."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
    try:
        status, out, err = command(*TRAIN, *spoilt.opts("DATASETS.TEST", "()"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    assert err[-1].startswith("error: The checkpoint") and "File too large" in err[-1]
    assert "No checkpoint was written yet" in err[-1]
    output = spoilt.root / "output"
    assert not list(output.glob("*.pth")) and not list(output.glob(".*"))
    assert not (output / "last_checkpoint").exists()
    # The traceback is where it does not disturb.
    assert "Traceback" not in out and "Traceback" not in "\n".join(err)
    assert "Traceback" in (output / "log.txt").read_text()


def test_output_folder(spoilt, tmp_path, command):
    """A folder where not even root can make files."""
    status, _, err = command(*TRAIN, *spoilt.opts("OUTPUT_DIR", "/proc/detr_panoptic_d2"))
    assert status == 1
    assert err[-1].startswith("error: ") and "/proc/detr_panoptic_d2" in err[-1]


def test_a_second_run_does_not_write_over_the_first(spoilt, command):
    output = spoilt.root / "output"
    output.mkdir()
    (output / "metrics.json").write_text("{}")
    status, _, err = command(*TRAIN, *spoilt.opts())
    assert status == 1
    assert err[-1].startswith(f"error: OUTPUT_DIR '{output}' has metrics.json")
    assert "--resume" in err[-1] and "another OUTPUT_DIR" in err[-1]
    assert [p.name for p in output.iterdir()] == ["metrics.json"]


def test_loss_that_is_no_number(spoilt, error_line):
    trainer = PanopticTrainer(setup_cfg("shapes/tiny.yaml", spoilt.opts("SOLVER.MAX_ITER", 10)))

    class Spoil(HookBase):
        def before_step(self):
            if self.trainer.iter == 3:
                with torch.no_grad():
                    self.trainer.model.class_embed.weight[0, 0] = float("inf")

    trainer.register_hooks([Spoil()])
    line = error_line(trainer.train)
    for word in ("iteration 3", "loss_ce", "000.png", "001.png", "002.png", "SOLVER.BASE_LR"):
        assert word in line
    assert "The last good checkpoint is" in line and "model_0000001.pth" in line
    output = spoilt.root / "output"
    assert whole_checkpoints(output) == ["model_0000001.pth"]
    assert (output / "last_checkpoint").read_text() == "model_0000001.pth"


def test_broken_weights_are_not_saved_over_the_last_good_ones(spoilt, error_line):
    """Weights that became NaN in the step before a checkpoint: its loss was still a number."""
    trainer = PanopticTrainer(setup_cfg("shapes/tiny.yaml", spoilt.opts("SOLVER.MAX_ITER", 10)))

    class InStep(HookBase):
        def after_backward(self):
            if self.trainer.iter == 3:
                next(self.trainer.model.mask_head.parameters()).grad.fill_(float("nan"))

    hook = InStep()
    trainer._trainer.register_hooks([hook])
    hook.trainer = trainer
    line = error_line(trainer.train)
    assert "infinite or NaN" in line and "model_0000003.pth was not written" in line
    assert "model_0000001.pth (--resume" in line
    assert whole_checkpoints(spoilt.root / "output") == ["model_0000001.pth"]


def test_ctrl_c(spoilt):
    """As a terminal does it: the signal goes to the tool and to its loader's workers."""
    opts = spoilt.opts("SOLVER.MAX_ITER", 100000, "DATALOADER.NUM_WORKERS", 2)
    process = subprocess.Popen(
        [sys.executable, "-m", "detr_panoptic_d2.cli", *TRAIN, *opts],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    output = spoilt.root / "output"
    end = time.monotonic() + LONG
    while not (output / "last_checkpoint").exists() and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=LONG)
    assert process.returncode == 130
    assert "Traceback" not in out + err and "FutureWarning" not in out + err
    line = err.strip().splitlines()[-1]
    assert line.startswith("Training was stopped by Ctrl-C at iteration ") and "--resume" in line
    assert (output / "last_checkpoint").read_text() in whole_checkpoints(output)
    assert not list(output.glob(".*"))
    for row in (output / "metrics.json").read_text().splitlines():
        json.loads(row)


@pytest.mark.parametrize("bug", [torch.OutOfMemoryError("CUDA"), ValueError("shape")])
def test_bugs_keep_their_traceback(capsys, bug):
    with pytest.raises(type(bug)), one_line_errors():
        raise bug
    assert capsys.readouterr().err == ""
