import json
import os
import time

import pytest

from detr_panoptic_d2.apps.report.log_file import read_log
from detr_panoptic_d2.apps.report.run_folder import read_metrics, read_run

BEGIN = """\
[11/21 07:02:00] detr.engine.setup INFO: Environment:
----------------  ---------------------------
Python            3.11.7 (main) [GCC 12.2.0]
PyTorch           2.6.0+cu124 @/somewhere
----------------  ---------------------------
PyTorch built with:
  - GCC 13.3

[11/21 07:02:01] d2.engine.train_loop INFO: Starting training from iteration 0
[11/21 07:02:09] d2.utils.events INFO:  eta: 0:00:10  iter: 19  total_loss: 5.1  max_mem: 1812M
"""
CRASH = """\
[11/21 07:02:11] d2.engine.train_loop ERROR: Exception during training:
Traceback (most recent call last):
  File "train_loop.py", line 155, in train
    self.run_step()
FloatingPointError: Loss is nan at iteration 25
[11/21 07:02:11] d2.engine.hooks INFO: Total training time: 0:00:09 (0:00:01 on hooks)
"""
END = """\
[11/21 07:02:11] d2.engine.hooks INFO: Overall training speed: 38 iterations in 0:00:08
[11/21 07:02:11] d2.engine.hooks INFO: Total training time: 0:00:09 (0:00:01 on hooks)
"""


def metric_lines(*iterations):
    return "".join(
        json.dumps({"iteration": i, "total_loss": 9.0 - i / 10, "eta_seconds": 65.0}) + "\n"
        for i in iterations
    )


@pytest.fixture
def make_run(tmp_path):
    def make(log=None, metrics=None, config=None, age=0.0):
        contents = {"log.txt": log, "metrics.json": metrics, "config.yaml": config}
        for name, text in contents.items():
            if text is not None:
                path = tmp_path / name
                path.write_text(text)
                os.utime(path, (time.time() - age,) * 2)
        return read_run(tmp_path)

    return make


def test_half_a_line(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(metric_lines(19, 39) + '{"iteration": 59, "total_lo')
    metrics, skipped = read_metrics(path)
    assert [m["iteration"] for m in metrics] == [19, 39]
    assert skipped == 0


def test_broken_lines_are_counted(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_bytes(b'\xff\xfe\n[1, 2]\n3\n{"no": "iteration"}\n' + metric_lines(19).encode())
    metrics, skipped = read_metrics(path)
    assert [m["iteration"] for m in metrics] == [19]
    assert skipped == 4
    assert read_metrics(tmp_path / "none.json") == ([], 0)


@pytest.mark.parametrize(
    ("second", "expected"),
    [((20, 39, 59), [0, 19, 20, 39, 59]), ((0, 19), [0, 19])],
    ids=["resumed", "anew"],
)
def test_iterations_that_come_again(tmp_path, second, expected):
    path = tmp_path / "metrics.json"
    path.write_text(metric_lines(0, 19, 39, 59) + metric_lines(*second))
    assert [m["iteration"] for m in read_metrics(path)[0]] == expected


def test_lines_out_of_order(tmp_path):
    """What Detectron2 wrote at the end of a run of four iterations, evaluated every second."""
    path = tmp_path / "metrics.json"
    lines = [{"class_error": 50.0, "iteration": 0}, {"total_loss": 19.0, "iteration": 3}]
    lines += [{"PQ": 1.0, "iteration": 1}, {"PQ": 2.0, "iteration": 4}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics, skipped = read_metrics(path)
    assert [m["iteration"] for m in metrics] == [0, 1, 3, 4]
    assert skipped == 0


def test_numbers_that_are_not_finite(make_run):
    run = make_run(metrics='{"iteration": 19, "total_loss": NaN, "time": 2.0}\n')
    assert run.done == 20
    assert run.median("total_loss") is None
    assert run.median("time") == 2.0
    assert run.latest("lr") is None


CONFIG = "SOLVER:\n  MAX_ITER: 40\n"


@pytest.mark.parametrize(
    ("parts", "state"),
    [
        ({"log": BEGIN + END, "metrics": metric_lines(19, 39), "config": CONFIG}, "finished"),
        ({"metrics": metric_lines(19, 39), "config": CONFIG}, "finished"),
        ({"log": BEGIN, "metrics": metric_lines(19), "config": CONFIG}, "running"),
        ({"log": BEGIN, "metrics": metric_lines(19)}, "running"),
        ({"log": BEGIN, "metrics": metric_lines(19), "config": CONFIG, "age": 4000}, "stopped"),
        ({"log": BEGIN + END, "metrics": metric_lines(19), "config": CONFIG}, "stopped"),
        ({"log": BEGIN + CRASH, "metrics": metric_lines(19), "config": CONFIG}, "failed"),
        ({"log": BEGIN + CRASH}, "failed"),
        # Started again after the crash; the metrics are still those of the time before.
        ({"log": BEGIN + CRASH + BEGIN, "metrics": metric_lines(19), "config": CONFIG}, "running"),
        (
            {"log": BEGIN + END + BEGIN, "metrics": metric_lines(19, 39), "config": CONFIG},
            "running",
        ),
        ({"config": CONFIG}, "no training step yet"),
        ({"config": "SOLVER: [half"}, "no training step yet"),
    ],
)
def test_state(make_run, parts, state):
    assert make_run(**parts).state == state


def test_evaluation_only(make_run, tmp_path):
    (tmp_path / "inference").mkdir()
    assert make_run(config=CONFIG).state == "evaluation only"


def test_error_before_the_training(make_run):
    log = BEGIN[: BEGIN.index("[11/21 07:02:01]")]
    log += "[11/21 07:02:01] detr.tool_errors DEBUG: No file 'x.pth'.\nTraceback ...\n"
    log += "FileNotFoundError: No file 'x.pth'.\n"
    run = make_run(log=BEGIN + END + log, config=CONFIG)
    assert run.state == "failed"
    assert run.log.traceback.endswith("FileNotFoundError: No file 'x.pth'.")


def test_log(tmp_path):
    path = tmp_path / "log.txt"
    scaled = "Auto-scaling the config to batch_size=8, learning_rate=0.1, max_iter=77, warmup=1.\n"
    path.write_text(BEGIN.replace("[GCC", "\x1b[38;5;81m[GCC") + scaled + CRASH)
    log = read_log(path)
    assert log.environment == [
        ("Python", "3.11.7 (main) [GCC 12.2.0]"),
        ("PyTorch", "2.6.0+cu124 @/somewhere"),
    ]
    assert log.max_memory_mib == 1812
    assert log.scaled_max_iter == 77
    assert (log.total_time.strip(), log.hooks_time) == ("0:00:09", "0:00:01")
    assert log.traceback.splitlines()[-1] == "FloatingPointError: Loss is nan at iteration 25"
    assert read_log(tmp_path / "none.txt") is None


def test_log_that_breaks_off(tmp_path):
    path = tmp_path / "log.txt"
    for end in range(0, len(BEGIN + CRASH), 7):
        path.write_text((BEGIN + CRASH)[:end])
        read_log(path)


def test_not_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds nothing of a run"):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        read_run(tmp_path / "nothing")
