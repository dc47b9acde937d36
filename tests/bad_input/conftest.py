"""A data set that can be spoilt, a training on it, and the one line that an error comes down to."""

import json
import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import id2rgb
from PIL import Image

from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.errors import UserError, one_line


class Spoilt:
    """Three images, 40 wide and 32 high, each with a ground (stuff) and a box (thing).

    ``content`` is what :meth:`save` writes into the json.
    """

    name = "spoilt"

    def __init__(self, root: Path):
        self.root = root
        self.images, self.pngs = root / "images", root / "panoptic"
        self.json = root / "panoptic.json"
        for folder in (self.images, self.pngs):
            folder.mkdir(parents=True)
        self.content = {
            "categories": [
                {"id": 5, "name": "ground", "isthing": 0},
                {"id": 9, "name": "box", "isthing": 1},
            ],
            "images": [],
            "annotations": [],
        }
        rng = np.random.default_rng(0)
        for number in range(3):
            stem = f"img{number}"
            pixels = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.image(number))
            ids = np.full((32, 40), 1)
            ids[6:20, 5 + number : 18 + number] = 2
            self.save_ids(number, ids)
            self.content["images"].append(
                {"id": number, "file_name": f"{stem}.png", "height": 32, "width": 40}
            )
            segments = [{"id": 1, "category_id": 5}, {"id": 2, "category_id": 9}]
            self.content["annotations"].append(
                {"image_id": number, "file_name": f"{stem}.png", "segments_info": segments}
            )
        self.save()

    def image(self, number: int) -> Path:
        return self.images / f"img{number}.png"

    def png(self, number: int) -> Path:
        return self.pngs / f"img{number}.png"

    def save_ids(self, number: int, ids: np.ndarray) -> None:
        Image.fromarray(id2rgb(ids)).save(self.png(number))

    def save(self) -> None:
        self.json.write_text(json.dumps(self.content))

    def opts(self, *more: object) -> list[str]:
        item = {
            "name": self.name,
            "image_root": str(self.images),
            "panoptic_root": str(self.pngs),
            "panoptic_json": str(self.json),
        }
        opts = ["DATASETS.REGISTER", [item], "DATASETS.TRAIN", (self.name,)]
        opts += ["DATASETS.TEST", (self.name,), "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 3]
        opts += ["INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32]
        opts += ["OUTPUT_DIR", self.root / "output", "DATALOADER.NUM_WORKERS", 0]
        return [str(value) for value in (*opts, *more)]


@pytest.fixture
def spoilt(tmp_path) -> Spoilt:
    yield Spoilt(tmp_path / "set")
    if Spoilt.name in DatasetCatalog.list():
        DatasetCatalog.remove(Spoilt.name)
    MetadataCatalog.pop(Spoilt.name, None)


@pytest.fixture(autouse=True)
def logs_reach_caplog(monkeypatch) -> None:
    """Detectron2's ``setup_logger``, where another test has called it, ends the propagation."""
    monkeypatch.setattr(logging.getLogger("detr_panoptic_d2"), "propagate", True)


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


@pytest.fixture
def no_leftovers() -> Callable[[Path], None]:
    """Return a check that nothing half-written lies in a folder."""

    def check(folder: Path) -> None:
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert not [p for p in files if p.suffix == ".tmp" or p.name.startswith(".")]
        for path in files:
            if path.suffix == ".json" and path.name != "metrics.json":
                json.loads(path.read_text(encoding="utf-8"))

    return check
