import json
import logging

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg, visualization_hook
from detr_panoptic_d2.engine.reproducible import seed_everything
from detr_panoptic_d2.engine.visualization_hook import PanopticVisualizationHook

ITERATIONS = 4


class Record(HookBase):
    """Losses and training modes after every step, and when the model did more than train."""

    def __init__(self):
        self.losses, self.modes, self.looks = [], [], []

    def before_train(self):
        self.trainer.model.register_forward_pre_hook(self._look)

    def _look(self, model, _):
        if not model.training:
            self.looks.append(self.trainer.iter)

    def after_step(self):
        self.losses.append(self.trainer.storage.latest()["total_loss"][0])
        self.modes.append([m.training for m in self.trainer.model.modules()])


@pytest.fixture
def make_cfg(panoptic_set, scene, tmp_path):
    flipped = scene[0][:, ::-1].copy(), scene[1]
    panoptic_set("pictures_set", [scene, flipped, scene, flipped, scene])

    def make(folder, *opts):
        common = ["DATASETS.TRAIN", "('pictures_set',)", "DATASETS.TEST", "('pictures_set',)"]
        common += ["OUTPUT_DIR", str(tmp_path / folder), "SOLVER.MAX_ITER", str(ITERATIONS)]
        common += ["INPUT.MIN_SIZE_TRAIN", "(32, 40)", "INPUT.MIN_SIZE_TEST", "32"]
        common += ["MODEL.DEVICE", "cpu", "MODEL.DETR.TEST.SCORE_THRESH", "0.0"]
        return setup_cfg("shapes/tiny.yaml", [*common, *opts])

    return make


def train(cfg):
    seed_everything(1)
    trainer = PanopticTrainer(cfg)
    trainer.resume_or_load(resume=False)
    record = Record()
    trainer.register_hooks([record])
    trainer.train()
    return record, trainer


def hooks_of(trainer):
    return [h for h in trainer._hooks if isinstance(h, PanopticVisualizationHook)]


def test_pictures_come_and_nothing_else_changes(make_cfg, tmp_path):
    # An evaluation draws random numbers of its own, so both have the same ones.
    opts = ["TEST.EVAL_PERIOD", "2"]
    plain, trainer = train(make_cfg("plain", *opts))
    assert not hooks_of(trainer)
    assert not (tmp_path / "plain" / "pictures").exists()
    opts += ["VIS_PERIOD", "3", "TEST.VIS_IMAGES", "2"]
    watched, _ = train(make_cfg("watched", *opts))
    assert watched.losses == plain.losses
    assert watched.modes == plain.modes
    assert all(mode[0] for mode in watched.modes)

    folder = tmp_path / "watched"
    pictures = sorted(p.relative_to(folder).as_posix() for p in folder.glob("pictures/*/*"))
    names = ["00_000", "01_004"]
    expected = [f"pictures/{n}/iter_{i:07d}.jpg" for n in names for i in (2, 3)]
    assert pictures == expected
    with Image.open(folder / pictures[0]) as picture:
        # Three pictures beside each other, enlarged to be legible.
        assert picture.width > 3 * 320
    events = EventAccumulator(str(folder))
    events.Reload()
    assert set(events.Tags()["images"]) == {f"predictions/{n}" for n in names}
    assert [e.step for e in events.Images("predictions/00_000")] == [2, 3]
    assert "panoptic_seg/PQ-ball" in events.Tags()["scalars"]
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    for name in ("sky", "ball", "ground", "box"):
        assert any(f"panoptic_seg/PQ-{name}" in line for line in lines)


def test_no_work_between_two_times(make_cfg, tmp_path):
    """And as many images as there are, where more are asked for."""
    record, _ = train(make_cfg("all", "VIS_PERIOD", "100", "TEST.VIS_IMAGES", "100"))
    assert len(list((tmp_path / "all" / "pictures").iterdir())) == 5
    last = ITERATIONS - 1
    assert record.looks.count(last) >= 5
    assert min(record.looks) == last


def test_main_process_only(make_cfg, monkeypatch):
    cfg = make_cfg("second", "VIS_PERIOD", "2")
    assert len(hooks_of(PanopticTrainer(cfg))) == 1
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    assert not hooks_of(PanopticTrainer(cfg))


def test_failure_is_logged_and_the_training_goes_on(make_cfg, tmp_path, monkeypatch, caplog):
    plain, _ = train(make_cfg("plain"))

    def fail(*args, **kwargs):
        np.random.rand()
        torch.rand(1)
        raise OSError("no space left on device")

    monkeypatch.setattr(visualization_hook, "draw_beside_ground_truth", fail)
    caplog.set_level(logging.ERROR, logger="detr_panoptic_d2")
    monkeypatch.setattr(logging.getLogger("detr_panoptic_d2"), "propagate", True)
    failing, _ = train(make_cfg("failing", "VIS_PERIOD", "2"))
    assert failing.losses == plain.losses
    assert failing.modes == plain.modes
    reports = [r for r in caplog.records if "the training goes on" in r.getMessage()]
    assert len(reports) == 2
    assert "no space left on device" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("opts", "reason"),
    [
        (["DATASETS.TEST", "()"], "a data set in DATASETS.TEST"),
        (["MODEL.DETR.TEST.PANOPTIC_ON", "False"], "PANOPTIC_ON"),
    ],
)
def test_says_why_there_are_no_pictures(make_cfg, monkeypatch, caplog, opts, reason):
    monkeypatch.setattr(logging.getLogger("detr_panoptic_d2"), "propagate", True)
    cfg = make_cfg("none", "VIS_PERIOD", "2", *opts)
    assert visualization_hook.build_visualization_hook(cfg, torch.nn.Identity()) is None
    assert reason in caplog.text
