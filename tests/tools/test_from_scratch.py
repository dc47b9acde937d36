import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[2]


def call(tmp_path, program, *words):
    command = [sys.executable, str(REPO / "tools" / "experiments" / program), *map(str, words)]
    env = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "datasets")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_paired_runs_and_their_table(tmp_path):
    """Both variants train on the same batches, and a second call repeats nothing."""
    split = "('shapes_panoptic_tune',)"
    words = ["--config-file", "shapes/tiny.yaml", "--seeds", "3", "4", "--levels", "0", "99"]
    words += ["--stop", "1", "--output", tmp_path, "--opts", "MODEL.DEVICE", "cpu"]
    words += ["TEST.EVAL_PERIOD", "2", "DATASETS.TRAIN", split, "DATASETS.TEST", split]
    first = call(tmp_path, "from_scratch.py", *words)
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
    again = call(tmp_path, "from_scratch.py", *words)
    assert again[again.rindex("\nPQ  ") :] == table
    assert before == {r: r.stat().st_mtime_ns for r in results}
    printed = call(tmp_path, "thresholds.py", "--runs", tmp_path / "equal_3", tmp_path / "equal_4")
    assert re.search(r"equal_3 +2 .*\+-", printed)
    assert re.search(r"Mean gain of mask NMS with \(0.2, 0.8, 20\): ", printed)


LOSS_VARIANTS = ["semantic", "thing_boxes", "mask_cost", "points", "groups", "denoising"]


@pytest.mark.parametrize("name", LOSS_VARIANTS)
def test_variants_of_the_losses(name, tiny_model, make_input, monkeypatch):
    """Their losses are finite and train the added parameters; inference stays the same."""
    monkeypatch.syspath_prepend(str(REPO / "tools" / "experiments"))
    model, plain = tiny_model().train(), tiny_model().train()
    importlib.import_module("variants").VARIANTS[name].start(model)
    batch = [make_input(64, 64, classes=[0, 1, 2]), make_input(96, 64, classes=[3])]
    losses = model.losses(batch)
    expected = plain.losses(batch)
    added = {"semantic": {"loss_semantic"}, "denoising": {"loss_noisy_0", "loss_noisy_1"}}
    assert set(losses) - set(expected) == added.get(name, set())
    sum(losses.values()).backward()
    own = dict(plain.named_parameters())
    new = [p for key, p in model.named_parameters() if key not in own]
    assert bool(new) == (name in ("semantic", "groups", "denoising"))
    assert all(p.grad.abs().sum() > 0 for p in new)
    model.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        pairs = zip(model.eval().inference(batch), plain.eval().inference(batch), strict=True)
    for changed, unchanged in pairs:
        assert torch.equal(changed["panoptic_seg"][0], unchanged["panoptic_seg"][0])


def test_gradient_norms(tmp_path):
    """Without the scale, the box attention gets hardly any gradient; the detector gets the same."""
    words = ["--config-file", "shapes/tiny.yaml", "--iterations", 1]
    words += ["--variants", "kaiming", "equal", "--opts", "MODEL.DEVICE", "cpu"]
    printed = call(tmp_path, "gradient_norms.py", *words)
    rows = [line.split() for line in printed.splitlines()]
    norms = {r[0]: list(map(float, r[2:])) for r in rows if r[:1] and r[0] in ("kaiming", "equal")}
    _, unscaled, detector, _, half = norms["kaiming"]
    assert norms["equal"][1] > 10 * unscaled > 0
    assert norms["equal"][4] > 10 * half > 0
    # Deep supervision of boxes and classes is most of it.
    assert norms["equal"][2] == pytest.approx(detector, rel=0.1)
