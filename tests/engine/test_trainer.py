import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detr_panoptic_d2.engine import PanopticTrainer
from detr_panoptic_d2.errors import UserError

ITERATIONS = 6
# Options that must not change the training itself.
EVERYTHING = {
    "MODEL_EMA__ENABLED": True,
    "TEST__LOSS": True,
    "TEST__EVAL_PERIOD": 2,
    "VIS_PERIOD": 4,
    "DATALOADER__NUM_WORKERS": 2,
}


class Watch(HookBase):
    """Training modes after every step, and the iterations in which the model predicted."""

    def __init__(self):
        self.modes, self.predicted = [], []

    def before_train(self):
        self.trainer.model.register_forward_pre_hook(self._look)

    def _look(self, model, _):
        if not model.training:
            self.predicted.append(self.trainer.iter)

    def after_step(self):
        self.modes.append([m.training for m in self.trainer.model.modules()])


def test_neither_options_nor_a_break_change_the_losses(make_cfg, train, tmp_path):
    """An average of the weights, evaluation, validation losses, pictures and workers."""
    plain_watch, watch = Watch(), Watch()
    plain, _ = train(make_cfg("plain"), hooks=[plain_watch])
    assert list(plain) == list(range(ITERATIONS)) and len(set(plain.values())) == ITERATIONS
    assert not (tmp_path / "plain" / "pictures").exists()
    losses, _ = train(make_cfg("unbroken", **EVERYTHING), hooks=[watch])
    assert losses == plain
    assert watch.modes == plain_watch.modes and all(mode[0] for mode in watch.modes)
    cfg = make_cfg("broken", **EVERYTHING)
    before, _ = train(cfg, stop=3)
    after, trainer = train(cfg, resume=True)
    assert trainer.start_iter == 2 and {**before, **after} == plain
    unbroken, resumed = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)
        for name in ("unbroken", "broken")
    )
    for key in ("model", "ema"):
        for name, value in unbroken[key].items():
            assert torch.equal(resumed[key][name], value), name


def test_drawn_seed_is_kept(make_cfg, train):
    cfg = make_cfg("drawn", SEED=-1)
    train(cfg, stop=2)
    first, trainer = train(cfg, resume=True)
    trainer.checkpointer.tag_last_checkpoint("model_0000001.pth")
    second, _ = train(cfg, resume=True)
    assert first == second
    assert list(first) == [2, 3, 4, 5]


def test_best_checkpoint_and_resume_of_it(make_cfg, train, panoptic_set, scene, tmp_path):
    panoptic_set("other_set", [scene])
    names = "('other_set', 'engine_set')"
    cfg = make_cfg("best", TEST__EVAL_PERIOD=2, DATASETS__TEST=names)
    _, trainer = train(cfg)
    file = tmp_path / "best" / "model_best.json"
    best = json.loads(file.read_text())
    # Of the first of several datasets.
    assert best["metric"] == "other_set/panoptic_seg/PQ"
    assert best["value"] >= trainer._last_eval_results["other_set"]["panoptic_seg"]["PQ"]
    weights = file.with_suffix(".pth")
    assert torch.load(weights, weights_only=True)["iteration"] == best["iteration"]
    assert trainer.checkpointer.get_checkpoint_file().endswith("model_final.pth")
    # A better value from before the break is not overwritten.
    best.update(value=200.0, iteration=1)
    file.write_text(json.dumps(best))
    stamp = weights.stat().st_mtime_ns
    trainer.checkpointer.tag_last_checkpoint("model_0000003.pth")
    train(cfg, resume=True)
    assert weights.stat().st_mtime_ns == stamp


def test_resuming_with_another_config(make_cfg, train, caplog):
    """What can be changed is changed, for the rate at once; the rest is one line."""
    train(make_cfg("out", SOLVER__MAX_ITER=2))
    caplog.clear()
    entries = {"SOLVER__BASE_LR": 0.01, "SOLVER__WEIGHT_DECAY": 0.3, "SEED": 5}
    cfg = make_cfg("out", SOLVER__MAX_ITER=4, **entries, SOLVER__AMP__ENABLED=True)
    _, trainer = train(cfg, resume=True)
    assert "rate before the schedule changes from 0.001 to 0.01" in caplog.text
    assert "SEED 5 is not used" in caplog.text
    rows = Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()
    rates = [row["lr"] for row in map(json.loads, rows) if "lr" in row]
    # Cosine, from 0.01 to 0.00001 in four iterations.
    assert rates[-1] == pytest.approx(0.01 * math.cos(3 / 8 * math.pi) ** 2, rel=0.01)
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.3}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"NUM_OBJECT_QUERIES": 12}, r"query_embed.weight is \(8, 32\) .*_QUERIES 12, .* --resume"),
        ({"FREEZE_DETECTOR": True}, r"its optimizer has groups of .*MODEL.DETR.FREEZE_DETECTOR"),
    ],
)
def test_optimizer_state_that_does_not_fit(make_cfg, train, entries, message):
    train(make_cfg("out", SOLVER__MAX_ITER=2))
    entries = {f"MODEL__DETR__{key}": value for key, value in entries.items()}
    trainer = PanopticTrainer(make_cfg("out", **entries))
    with pytest.raises(UserError, match=f"cannot be resumed: .*does not fit: .*{message}"):
        trainer.resume_or_load(resume=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_trains_and_resumes(make_cfg, train, dtype):
    entries = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": dtype}
    dtypes = set()

    def look(module, args, output):
        # The evaluation at the end is in full precision.
        if module.training:
            dtypes.add(output.dtype)

    trainer = PanopticTrainer(make_cfg("amp", SOLVER__MAX_ITER=2, **entries))
    trainer.model.transformer.encoder.layers[0].linear1.register_forward_hook(look)
    trainer.train()
    assert dtypes == {getattr(torch, dtype)}
    assert trainer._trainer.grad_scaler.is_enabled() == (dtype == "float16")
    losses, _ = train(make_cfg("amp", SOLVER__MAX_ITER=4, **entries), resume=True)
    assert list(losses) == [2, 3] and np.isfinite(list(losses.values())).all()


def test_best_checkpoint_of_boxes_has_the_best_ap(make_cfg, train, tmp_path):
    options = {"MASK_ON": False, "DETR__TEST__PANOPTIC_ON": False, "DETR__TEST__INSTANCE_ON": True}
    options = {f"MODEL__{key}": value for key, value in options.items()}
    _, trainer = train(make_cfg("boxes", SOLVER__MAX_ITER=2, **options))
    best = json.loads((tmp_path / "boxes" / "model_best.json").read_text())
    assert best["metric"] == "bbox/AP"
    assert best["value"] == trainer._last_eval_results["bbox"]["AP"]


def test_pictures(make_cfg, train, tmp_path):
    watch = Watch()
    train(make_cfg("drawn", VIS_PERIOD=4, TEST__VIS_IMAGES=2), hooks=[watch])
    # Between two times it does nothing; at the end there is an evaluation as well.
    assert set(watch.predicted) == {3, 5, 6}

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
    rows = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    keys = {key for row in rows for key in row}
    assert {"panoptic_seg/PQ-sky", "panoptic_seg/PQ-ball"} <= keys
