import json
import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def test_paired_runs_and_their_table(tmp_path):
    """Both variants train on the same batches, and a second call repeats nothing."""
    split = "('shapes_panoptic_tune',)"
    command = [sys.executable, str(REPO / "tools" / "experiments" / "from_scratch.py")]
    command += ["--config-file", "shapes/tiny.yaml", "--seeds", "3", "4", "--levels", "0", "99"]
    command += ["--stop", "1", "--output", str(tmp_path), "--opts", "MODEL.DEVICE", "cpu"]
    command += ["TEST.EVAL_PERIOD", "2", "DATASETS.TRAIN", split, "DATASETS.TEST", split]

    def call():
        env = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "datasets")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = call()
    results = sorted(tmp_path.glob("*/result.json"))
    assert [r.parent.name for r in results] == ["equal_3", "equal_4", "kaiming_3", "kaiming_4"]
    runs = {r.parent.name: json.loads(r.read_text()) for r in results}
    assert [i for i, _ in runs["equal_3"]["curve"]] == [1] and runs["equal_3"]["iterations"] == 1
    entries = {
        name: map(json.loads, (tmp_path / name / "metrics.json").read_text().splitlines())
        for name in runs
    }
    boxes = {k: next(e["loss_bbox"] for e in v if "loss_bbox" in e) for k, v in entries.items()}
    # The boxes of the first step know nothing of the mask head.
    assert boxes["equal_3"] == boxes["kaiming_3"] != boxes["equal_4"] == boxes["kaiming_4"]
    table = first[first.rindex("\nPQ  ") :]
    assert "to 99" in table and "never" in table and "equal - kaiming:" in table
    before = {r: r.stat().st_mtime_ns for r in results}
    again = call()
    assert again[again.rindex("\nPQ  ") :] == table
    assert before == {r: r.stat().st_mtime_ns for r in results}
