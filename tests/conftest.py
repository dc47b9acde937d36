"""Fixtures of all tests."""

import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.logger import setup_logger
from torch import nn

from detr_panoptic_d2.cli import main
from detr_panoptic_d2.data.register import register_panoptic
from detr_panoptic_d2.engine import setup_cfg
from tests.panoptic_set import PanopticSet

# One thread for each process of pytest-xdist.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
# In the background of a script Ctrl-C is ignored, and would be by the processes of tests as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Ids with gaps, and a thing between two stuff classes.
CATEGORIES = [
    {"id": 3, "name": "sky", "isthing": 0},
    {"id": 10, "name": "ball", "isthing": 1},
    {"id": 21, "name": "ground", "isthing": 0},
    {"id": 30, "name": "box", "isthing": 1},
]
SMALL_CATEGORIES = [
    {"id": 50, "name": "road", "isthing": 0},
    {"id": 4, "name": "car", "isthing": 1, "color": [0, 0, 142]},
    {"id": 9, "name": "tree", "isthing": 0},
]


@pytest.fixture(scope="session")
def sample_data() -> Callable[[str], Path]:
    """Return a function from the name of a real data sample to its folder; skips if not there.

    Samples lie in ``DETR_PANOPTIC_SAMPLES``, or else in ``shared/data`` beside the checkout.
    """
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    root = Path(os.environ.get("DETR_PANOPTIC_SAMPLES", beside))

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no sample '{name}' in {root}; set DETR_PANOPTIC_SAMPLES")
        return root / name

    return find


@pytest.fixture(scope="session")
def assert_within_rounding() -> Callable[..., None]:
    """Return ``check(ours, reference, exact)``: float32 results against a reference in float32 and
    in float64. Ours may lie five times as far from the exact values as the reference does, so that
    the test holds for every kind of CPU."""

    def check(ours, reference, exact, what=""):
        assert ours.shape == exact.shape, what
        largest = exact.abs().max().item() if exact.numel() else 0.0
        theirs = (reference - exact).abs().max().item() if exact.numel() else 0.0
        distance = (ours - exact).abs().max().item() if exact.numel() else 0.0
        bound = 5 * max(theirs, torch.finfo(torch.float32).eps * largest)
        assert distance <= bound, f"{what}: {distance:.2e}, reference {theirs:.2e} of {largest:.2e}"

    return check


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., nn.Module]:
    """Return ``build("KEY", value, ...)``: the model of ``shapes/tiny.yaml`` with these options.

    Weights are seeded, and large where random ones would leave all queries alike: in eval mode
    queries have classes with high probabilities, things and stuff, and masks that differ.
    """

    def build(*options: object) -> nn.Module:
        official = ["MODEL.DEVICE", "cpu", "MODEL.DETR.TEST.OVERLAP_THRESH", "0.0"]
        cfg = setup_cfg("shapes/tiny.yaml", [*official, *map(str, options)])
        torch.manual_seed(3)
        model = build_model(cfg)
        with torch.no_grad():
            model.query_embed.weight.mul_(3)
            model.class_embed.weight.mul_(40)
            model.class_embed.bias[-1] = -20
            if model.mask_head is not None:
                model.bbox_attention.q_linear.weight.mul_(10)
                model.mask_head.out_lay.weight.mul_(10)
        return model.eval()

    return build


@pytest.fixture(autouse=True)
def logs_reach_caplog(monkeypatch) -> None:
    """Detectron2's ``setup_logger``, where another test has called it, ends the propagation."""
    monkeypatch.setattr(logging.getLogger("detr_panoptic_d2"), "propagate", True)


@pytest.fixture
def make_input() -> Callable[..., dict]:
    """Return ``make(h, w, classes=None, masks=True, seed=0, **entries)``: one image with
    random pixels as the model takes it; with ``classes`` (one per segment) also its truth."""

    def make(h, w, classes=None, masks=True, seed=0, **entries) -> dict:
        generator = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8)
        result = {"image": image, "file_name": f"{seed:03d}.jpg", "image_id": seed, **entries}
        if classes is None:
            return result
        # Vertical stripes, each a segment, over the upper three quarters; below them void.
        truth = torch.zeros(len(classes), h, w, dtype=torch.bool)
        for i, stripe in enumerate(truth):
            start, stop = (w * k // len(classes) for k in (i, i + 1))
            stripe[: h * 3 // 4, start:stop] = True
        instances = Instances((h, w))
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        instances.gt_boxes = BitMasks(truth).get_bounding_boxes()
        if masks:
            instances.gt_masks = BitMasks(truth)
        return {**result, "instances": instances}

    return make


@pytest.fixture(scope="session")
def run_main() -> Callable[..., int]:
    """Return ``run(*words)``: the command ``detr-panoptic`` in this process. It gives the exit
    status; what it did to the loggers is undone."""

    def run(*words):
        loggers = [logging.getLogger(x) for x in ("detectron2", "fvcore", "detr_panoptic_d2")]
        before = [(x.handlers[:], x.level, x.propagate) for x in loggers]
        setup_logger.cache_clear()
        try:
            return main([str(word) for word in words])
        except SystemExit as end:
            return end.code
        finally:
            for x, (handlers, x.level, x.propagate) in zip(loggers, before, strict=True):
                x.handlers[:] = handlers
            setup_logger.cache_clear()

    return run


@pytest.fixture
def command(run_main, capsys) -> Callable[..., tuple[int, str, list[str]]]:
    """Return ``run(*words)`` as :func:`run_main`; it also gives stdout and the lines of stderr."""

    def run(*words):
        status = run_main(*words)
        out, err = capsys.readouterr()
        return status, out, err.splitlines()

    return run


@pytest.fixture
def class_set() -> Iterator[Callable[[str], str]]:
    """Return a function that registers an empty dataset of the given classes, one letter each:
    ``t`` is a thing, ``s`` is stuff. Dataset ids are 10, 20, ... It returns the set's name."""
    names = []

    def register(kinds: str) -> str:
        name = f"classes_{kinds}"
        ids = {kind: {10 * (i + 1): i for i, k in enumerate(kinds) if k == kind} for kind in "ts"}
        DatasetCatalog.register(name, list)
        names.append(name)
        labels = [f"class {i}" for i in range(len(kinds))]
        MetadataCatalog.get(name).set(
            thing_classes=labels,
            stuff_classes=labels,
            thing_dataset_id_to_contiguous_id=ids["t"],
            stuff_dataset_id_to_contiguous_id=ids["s"],
        )
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Return a headless Chromium, driven by Selenium; skips where one of them is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    chromium = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--no-proxy-server",
        "--window-size=1280,1800",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driving = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield driving
    driving.quit()


@pytest.fixture
def small_set(tmp_path: Path) -> PanopticSet:
    """Two images of 12 wide and 8 high, one in a subfolder."""
    ids = np.zeros((8, 12), np.uint32)
    ids[:, 2:] = 70000
    ids[2:5, 4:8] = 300
    maps = [(ids, {70000: 50, 300: 4})] * 2
    return PanopticSet(
        tmp_path / "small", maps, SMALL_CATEGORIES, ("sub/a.png", "b.tif"), first_id=10
    )


@pytest.fixture
def clean_catalogs():
    """Forget the datasets that a test registers."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def panoptic_set(tmp_path, clean_catalogs):
    """Make and register a dataset: ``panoptic_set("name", maps)``; see :class:`PanopticSet`."""

    def make(name, maps, categories=CATEGORIES):
        made = PanopticSet(tmp_path / name, maps, categories)
        register_panoptic(name, **made.paths)
        return made.root

    return make


@pytest.fixture
def scene():
    """Sky over ground with a ball and two boxes, 32 x 40."""
    ids = np.full((32, 40), 1, dtype=np.int64)
    ids[16:] = 2
    ids[4:14, 4:14] = 70000
    ids[18:28, 6:14] = 4
    ids[18:28, 20:34] = 5
    return ids, {1: 3, 2: 21, 70000: 10, 4: 30, 5: 30}


@pytest.fixture
def image():
    """An image of 60 x 80."""
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


@pytest.fixture
def panoptic():
    """Sky over ground, two balls, and void in a corner, 60 x 80."""
    ids = np.full((60, 80), 1)
    ids[30:] = 2
    ids[5:25, 5:25] = 3
    ids[5:25, 25:45] = 4
    ids[50:, 70:] = 0
    segments = [
        {"id": 1, "category_id": 0, "isthing": False},
        {"id": 2, "category_id": 2, "isthing": False},
        {"id": 3, "category_id": 1, "isthing": True, "score": 0.97},
        {"id": 4, "category_id": 1, "isthing": True, "score": 0.91},
    ]
    return ids, segments
