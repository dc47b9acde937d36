"""What happens to a run: a full disk, a folder that cannot be written to, NaN, Ctrl-C."""

import contextlib
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

from detr_panoptic_d2.apps.predict import predict_images
from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.engine.hooks import NonFiniteLossError
from detr_panoptic_d2.errors import UserError, one_line, one_line_errors

REPO = Path(__file__).parents[2]
# So that a hanging test ends.
LONG = 600


def start(command, *args, limit=None, **popen):
    """Start a command of ``detr-panoptic`` as a user does."""

    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "detr_panoptic_cli", command, "--config-file", "shapes/tiny.yaml"]
        + list(args),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit_files if limit else None,
        **popen,
    )


def finished(process):
    out, err = process.communicate(timeout=LONG)
    assert "Traceback" not in out, out
    assert "Traceback" not in err, err
    return process.returncode, out, err.strip().splitlines()


def whole_checkpoints(folder):
    files = sorted(folder.glob("*.pth"))
    for path in files:
        torch.load(path, weights_only=True)
    return [path.name for path in files]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB, or skip."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_in_training(spoilt, train, small_disk, error_line, no_leftovers):
    opts = spoilt.opts("OUTPUT_DIR", small_disk, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 60)
    opts += ["SOLVER.CHECKPOINT_PERIOD", "1"]
    line = error_line(train, opts)
    assert str(small_disk) in line and "No space left on device" in line
    assert "The last good checkpoint is" in line and "--resume" in line
    names = whole_checkpoints(small_disk)
    assert names and (small_disk / "last_checkpoint").read_text() == names[-1]
    no_leftovers(small_disk)


def test_full_disk_in_prediction(spoilt, small_disk, error_line, random_predictor):
    predictor = random_predictor(spoilt.opts())
    out = small_disk / "out"
    out.mkdir()
    with open(small_disk / "filler", "wb", buffering=0) as f, contextlib.suppress(OSError):
        while f.write(bytes(4096)):
            pass
    line = error_line(lambda: predict_images(predictor, [spoilt.image(1)], out, coco_json=True))
    assert "No space left on device" in line
    assert not list(out.rglob("*.*"))


def test_file_size_limit(spoilt):
    """Works for every user, where a disk cannot be filled: writing fails in the middle."""
    opts = spoilt.opts("DATASETS.TEST", "()")
    status, _, err = finished(start("train", *opts, limit=150_000))
    assert status == 1
    assert err[-1].startswith("error: The checkpoint") and "File too large" in err[-1]
    assert "No checkpoint was written yet" in err[-1]
    output = spoilt.root / "output"
    assert not list(output.glob("*.pth")) and not list(output.glob("*.tmp"))
    assert not (output / "last_checkpoint").exists()
    # The traceback is where it does not disturb.
    assert "Traceback" in (output / "log.txt").read_text()


@pytest.mark.parametrize(("command", "place"), [("train", "a file"), ("predict", "no permission")])
def test_output_folder(spoilt, tmp_path, command, place):
    folder = tmp_path / "taken"
    if place == "a file":
        folder.write_text("x")
    else:
        # Where not even root can make files.
        folder = Path("/proc/detr_panoptic_d2")
    args = spoilt.opts("OUTPUT_DIR", folder)
    if command == "predict":
        args = ["--input", str(spoilt.images), "--output", str(folder), *spoilt.opts()]
    status, _, err = finished(start(command, *args))
    assert status == 1
    assert err[-1].startswith("error: ") and str(folder) in err[-1]
    assert "Choose another one" in err[-1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_no_number(spoilt, value):
    trainer = PanopticTrainer(setup_cfg("shapes/tiny.yaml", spoilt.opts("SOLVER.MAX_ITER", 10)))

    class Spoil(HookBase):
        def before_step(self):
            if self.trainer.iter == 3:
                with torch.no_grad():
                    self.trainer.model.class_embed.weight[0, 0] = value

    trainer.register_hooks([Spoil()])
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    line = one_line(caught.value)
    for word in ("iteration 3", "loss_ce", "img0.png", "img1.png", "img2.png", "SOLVER.BASE_LR"):
        assert word in line
    assert "The last good checkpoint is" in line and "model_0000001.pth" in line
    output = spoilt.root / "output"
    assert whole_checkpoints(output) == ["model_0000001.pth"]
    assert (output / "last_checkpoint").read_text() == "model_0000001.pth"


def test_broken_weights_are_not_saved_over_the_last_good_ones(spoilt, error_line):
    """Weights that became NaN in the step before a checkpoint: its loss was still a number."""
    cfg = setup_cfg("shapes/tiny.yaml", spoilt.opts("SOLVER.MAX_ITER", 10))
    trainer = PanopticTrainer(cfg)

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
    process = start("train", *opts, start_new_session=True)
    output = spoilt.root / "output"
    end = time.monotonic() + LONG
    while not (output / "last_checkpoint").exists() and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    status, _, err = finished(process)
    assert status == 130
    assert err[-1].startswith("Training was stopped by Ctrl-C at iteration ")
    assert "--resume" in err[-1]
    last = (output / "last_checkpoint").read_text()
    assert last in whole_checkpoints(output)
    assert not list(output.glob("*.tmp"))
    for row in (output / "metrics.json").read_text().splitlines():
        json.loads(row)


def test_a_second_run_does_not_write_over_the_first(spoilt):
    opts = spoilt.opts("DATASETS.TEST", "()", "SOLVER.MAX_ITER", 2)
    assert finished(start("train", *opts))[0] == 0
    output = spoilt.root / "output"
    before = (output / "metrics.json").read_text()
    status, _, err = finished(start("train", *opts))
    assert status == 1
    assert err[-1].startswith(f"error: OUTPUT_DIR '{output}' has last_checkpoint")
    assert "--resume" in err[-1] and "another OUTPUT_DIR" in err[-1]
    assert (output / "metrics.json").read_text() == before
    assert finished(start("train", "--resume", *opts, "SOLVER.MAX_ITER", "3"))[0] == 0


def test_evaluation_without_weights(spoilt):
    status, out, err = finished(start("train", "--eval-only", *spoilt.opts()))
    assert status == 1
    assert err[-1].startswith("error: MODEL.WEIGHTS is empty")
    assert "FutureWarning" not in out + "".join(err)


def test_error_in_a_worker_and_in_a_launched_process(spoilt):
    """The image is read by a worker of the loader, in a process that the launcher has started."""
    for number in range(3):
        spoilt.image(number).write_bytes(b"no image")
    opts = spoilt.opts(
        "DATALOADER.NUM_WORKERS", 1, "SOLVER.IMS_PER_BATCH", 2, "DATASETS.TEST", "()"
    )
    flags = ["--num-gpus", "2", "--dist-url", "auto"]
    status, out, err = finished(start("train", *flags, *opts))
    assert status == 1
    lines = [line for line in err if line.startswith("error: ")]
    assert lines and all("img" in line and "cannot be read" in line for line in lines)


BUGS = [AttributeError("'list' object has no attribute 'foo'"), AssertionError()]
BUGS += [torch.OutOfMemoryError("CUDA out of memory"), ValueError("shape"), KeyError("name")]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: type(bug).__name__)
def test_bugs_keep_their_traceback(capsys, bug):
    with pytest.raises(type(bug)), one_line_errors():
        raise bug
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [UserError("MODEL.X is 3"), FileNotFoundError("No a.png")])
def test_what_a_user_can_put_right_is_one_line(capsys, error):
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise error
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"error: {error}\n"
