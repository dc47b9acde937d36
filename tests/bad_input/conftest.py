"""A dataset that can be spoilt, a training on it, and the one line that an error comes down to."""

import traceback
from collections.abc import Callable

import numpy as np
import pytest

from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.errors import UserError, one_line
from tests.panoptic_set import PanopticSet


@pytest.fixture
def spoilt(tmp_path, clean_catalogs) -> PanopticSet:
    """Three images, 40 wide and 32 high, each with a ground (stuff) and a box (thing)."""
    maps = []
    for number in range(3):
        ids = np.full((32, 40), 1)
        ids[6:20, 5 + number : 18 + number] = 2
        maps.append((ids, {1: 5, 2: 9}))
    ground, box = {"id": 5, "name": "ground"}, {"id": 9, "name": "box"}
    categories = [{**ground, "isthing": 0}, {**box, "isthing": 1}]
    return PanopticSet(tmp_path / "spoilt", maps, categories)


@pytest.fixture
def train() -> Callable[[list[str]], PanopticTrainer]:
    """Return ``run(options, resume=False)``: a training of ``shapes/tiny.yaml``."""

    def run(opts, resume=False) -> PanopticTrainer:
        trainer = PanopticTrainer(setup_cfg("shapes/tiny.yaml", opts))
        trainer.resume_or_load(resume)
        trainer.train()
        return trainer

    return run


@pytest.fixture
def error_line() -> Callable[..., str]:
    """Return ``run(action, *args)``: the line in which a tool tells the error of the action."""

    def run(action, *args) -> str:
        with pytest.raises((UserError, OSError)) as caught:
            action(*args)
        line = one_line(caught.value)
        assert line, "".join(traceback.format_exception(caught.value))
        assert "\n" not in line and "Traceback" not in line
        return line

    return run
