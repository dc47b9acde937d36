"""A tiny training that is over in a second."""

from collections.abc import Callable

import pytest
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.engine.train_loader import seed_everything


class Record(HookBase):
    """Losses by iteration; stops the training before iteration ``stop``, as a crash would."""

    def __init__(self, stop: int | None = None):
        self.stop = stop
        self.losses: dict[int, float] = {}

    def before_step(self) -> None:
        if self.trainer.iter == self.stop:
            raise ConnectionAbortedError

    def after_step(self) -> None:
        self.losses[self.trainer.iter] = self.trainer.storage.latest()["total_loss"][0]


@pytest.fixture
def make_cfg(panoptic_set, scene, tmp_path) -> Callable[..., CfgNode]:
    """Return ``make(folder, **entries)``: 6 iterations of ``shapes/tiny.yaml`` on five images.

    Entries are keys with ``__`` for each dot.
    """
    flipped = scene[0][:, ::-1].copy(), scene[1]
    panoptic_set("engine_set", [scene, flipped, scene, flipped, scene])

    def make(folder: str, **entries: object) -> CfgNode:
        options = {
            "DATASETS__TRAIN": "('engine_set',)",
            "DATASETS__TEST": "('engine_set',)",
            "OUTPUT_DIR": tmp_path / folder,
            "SOLVER__MAX_ITER": 6,
            "INPUT__MIN_SIZE_TRAIN": "(32, 40, 48)",
            "INPUT__MIN_SIZE_TEST": 32,
            "MODEL__DEVICE": "cpu",
            "MODEL__DETR__TEST__SCORE_THRESH": 0.0,
            **entries,
        }
        opts = [str(x) for k, v in options.items() for x in (k.replace("__", "."), v)]
        return setup_cfg("shapes/tiny.yaml", opts)

    return make


@pytest.fixture
def train() -> Callable[..., tuple[dict[int, float], PanopticTrainer]]:
    """Return ``run(cfg, resume=False, stop=None, hooks=())``: losses by iteration, and trainer."""

    def run(cfg, *, resume=False, stop=None, hooks=()):
        # What default_setup does in the programs. A resumed training may start otherwise.
        seed_everything(cfg.SEED + 1 if not resume else 99)
        trainer = PanopticTrainer(cfg)
        trainer.resume_or_load(resume)
        record = Record(stop)
        trainer.register_hooks([record, *hooks])
        if stop is None:
            trainer.train()
        else:
            with pytest.raises(ConnectionAbortedError):
                trainer.train()
        return record.losses, trainer

    return run
