"""Sample images, and conversions that are read back."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from panopticapi.utils import rgb2id
from PIL import Image

from detr_panoptic_cli import check as check_command
from detr_panoptic_cli import convert as convert_command
from detr_panoptic_cli import main
from detr_panoptic_d2.prepare.check.dataset import DatasetPaths, check_dataset, is_error
from detr_panoptic_d2.prepare.convert.categories import ClassOptions
from detr_panoptic_d2.prepare.convert.writer import Converted, convert


class Result:
    """A converted split as COCO panoptic tools read it."""

    def __init__(self, folder: Path, split: Converted | None = None):
        self.folder, self.split = folder, split
        self.content = json.loads((folder / "panoptic_train.json").read_text())
        self.names = {c["id"]: c["name"] for c in self.content["categories"]}
        self.images = {i["file_name"]: i for i in self.content["images"]}
        names = {i["id"]: name for name, i in self.images.items()}
        self.annotations = {names[a["image_id"]]: a for a in self.content["annotations"]}

    def ids(self, file_name: str) -> np.ndarray:
        """Ids of the PNG of an image (H, W)."""
        png = self.folder / "panoptic_train" / self.annotations[file_name]["file_name"]
        with Image.open(png) as image:
            return rgb2id(np.array(image))

    def segments(self, file_name: str) -> list[tuple[str, int, np.ndarray]]:
        """(class name, iscrowd, mask) of each segment, in the order of the json."""
        ids = self.ids(file_name)
        infos = self.annotations[file_name]["segments_info"]
        return [(self.names[s["category_id"]], s["iscrowd"], ids == s["id"]) for s in infos]

    def classes(self, file_name: str) -> np.ndarray:
        """Class name of each pixel (H, W), "" where it is void."""
        result = np.full(self.ids(file_name).shape, "", dtype=object)
        for name, _, mask in self.segments(file_name):
            result[mask] = name
        return result


@pytest.fixture
def convert_and_check(tmp_path: Path) -> Callable[..., Result]:
    """Return ``run(source, **options)``: convert into ``tmp_path/out``; no errors may be found."""

    def run(source: Any, output: str = "out", **options: Any) -> Result:
        keys = ("file", "things", "stuff", "ignore", "background")
        classes = ClassOptions(**{key: options.pop(key) for key in keys if key in options})
        (split,) = convert({"train": source}, tmp_path / output, classes, **options)
        paths = [split.image_root, split.panoptic_root, split.panoptic_json]
        report = check_dataset(DatasetPaths("converted", *map(str, paths)))
        assert not [f for f in report.findings if is_error(f)]
        assert not [f for f in report.findings if f.kind in ("wrong-box", "split-stuff")]
        return Result(tmp_path / output, split)

    return run


@pytest.fixture
def read_back() -> type[Result]:
    """Return ``Result``, to be called with the output folder of a conversion."""
    return Result


@pytest.fixture
def run_command(capsys, caplog, monkeypatch) -> Callable[..., tuple[int, str]]:
    """Return ``run(*arguments)`` of ``detr-panoptic``: exit status, what it printed and logged."""
    logger = logging.getLogger("detr_panoptic_d2")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, "detr_panoptic_d2")
    for module in (convert_command, check_command):
        monkeypatch.setattr(module, "set_up_console", lambda: None)

    def run(*arguments: Any) -> tuple[int, str]:
        caplog.clear()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        done = capsys.readouterr()
        return status, done.out + done.err + caplog.text

    return run


@pytest.fixture
def save_image() -> Callable[..., Path]:
    """Return ``save(path, height, width)``: a random picture, in folders made for it."""

    def save(path: Path, height: int, width: int, **save_options: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(path.name)).integers(0, 256, (height, width, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path, **save_options)
        return path

    return save


@pytest.fixture
def save_mask() -> Callable[[Path, Any], Path]:
    """Return ``save(path, pixels)``: an array as a PNG, in folders made for it."""

    def save(path: Path, pixels: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels)).save(path)
        return path

    return save
