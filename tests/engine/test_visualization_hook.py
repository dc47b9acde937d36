import json
import logging

import pytest
from detectron2.engine import HookBase
from detectron2.utils import comm
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detr_panoptic_d2.engine import PanopticTrainer
from detr_panoptic_d2.engine.visualization_hook import PanopticVisualizationHook


class Watch(HookBase):
    """Training modes after every step, and the iterations in which the model predicted."""

    def __init__(self):
        self.modes, self.looks = [], []

    def before_train(self):
        self.trainer.model.register_forward_pre_hook(self._look)

    def _look(self, model, _):
        if not model.training:
            self.looks.append(self.trainer.iter)

    def after_step(self):
        self.modes.append([m.training for m in self.trainer.model.modules()])


@pytest.fixture
def watched(train):
    def run(cfg):
        watch = Watch()
        losses, _ = train(cfg, hooks=[watch])
        return losses, watch

    return run


def test_pictures_come_and_nothing_else_changes(make_cfg, watched, tmp_path):
    plain, plain_watch = watched(make_cfg("plain"))
    assert not (tmp_path / "plain" / "pictures").exists()
    losses, watch = watched(make_cfg("drawn", VIS_PERIOD=4, TEST__VIS_IMAGES=2))
    assert losses == plain
    assert watch.modes == plain_watch.modes and all(mode[0] for mode in watch.modes)
    # Between two times it does nothing; at the end there is an evaluation as well.
    assert set(watch.looks) == {3, 5, 6}

    folder = tmp_path / "drawn"
    pictures = sorted(p.relative_to(folder).as_posix() for p in folder.glob("pictures/*/*"))
    names = ["00_000", "01_004"]
    assert pictures == [f"pictures/{n}/iter_{i:07d}.jpg" for n in names for i in (3, 5)]
    with Image.open(folder / pictures[0]) as picture:
        # Three pictures beside each other, enlarged to be legible.
        assert picture.width > 3 * 320
    events = EventAccumulator(str(folder))
    events.Reload()
    assert set(events.Tags()["images"]) == {f"predictions/{n}" for n in names}
    assert [e.step for e in events.Images("predictions/00_000")] == [3, 5]
    rows = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    keys = {key for row in rows for key in row}
    assert {"panoptic_seg/PQ-sky", "panoptic_seg/PQ-ball", "max_memory_mib"} <= keys


def test_failure_is_logged_and_the_training_goes_on(make_cfg, train, tmp_path, caplog):
    plain, _ = train(make_cfg("plain"))
    (tmp_path / "failing").mkdir()
    (tmp_path / "failing" / "pictures").write_text("no folder")
    with caplog.at_level(logging.ERROR, logger="detr_panoptic_d2"):
        failing, _ = train(make_cfg("failing", VIS_PERIOD=3))
    assert failing == plain
    assert caplog.text.count("the training goes on") == 2 and "Traceback" in caplog.text


def test_main_process_only(make_cfg, monkeypatch):
    cfg = make_cfg("second", VIS_PERIOD=2)

    def hooks():
        return [type(h) for h in PanopticTrainer(cfg)._hooks]

    assert hooks().count(PanopticVisualizationHook) == 1
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    assert PanopticVisualizationHook not in hooks()


@pytest.mark.parametrize(
    "entries", [{"DATASETS__TEST": "()"}, {"MODEL__DETR__TEST__PANOPTIC_ON": False}]
)
def test_says_why_there_are_no_pictures(make_cfg, caplog, entries):
    trainer = PanopticTrainer(make_cfg("none", VIS_PERIOD=2, **entries))
    assert PanopticVisualizationHook not in [type(h) for h in trainer._hooks]
    assert "VIS_PERIOD is without effect" in caplog.text
