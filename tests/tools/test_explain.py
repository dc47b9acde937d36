import html.parser
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detr_panoptic_d2.apps.explain import explain, load_images, parse_point
from detr_panoptic_d2.engine import setup_cfg

REPO = Path(__file__).parents[2]
STAGES = [f"{i:02d}" for i in range(1, 16) if i != 4]
# Few queries: every one of them is drawn many times.
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.DETR.NUM_OBJECT_QUERIES", "2"]


@pytest.fixture
def weights(tiny_model, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": tiny_model(*OPTS).state_dict()}, path)
    return path


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for name, size in (("first.png", (64, 96, 3)), ("second & last.jpg", (80, 80, 3))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / name)
        paths.append(tmp_path / name)
    return paths


class Page(html.parser.HTMLParser):
    """Sources of images, targets of links, and ids of a page."""

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.ids, self.tags = [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.images += [attrs["src"]] if tag == "img" else []
        self.links += [attrs["href"]] if "href" in attrs else []


def run(*arguments):
    command = [sys.executable, "-m", "detr_panoptic_cli", "explain", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_batch_of_two(weights, pictures, tmp_path):
    out = tmp_path / "out"
    # Options right after --points belong to the config.
    code, log = run(
        *("--config-file", "shapes/tiny.yaml", "--input", *pictures, "--output", out),
        *("--max-width", 500, "--points", "10,20", "5,5", *OPTS, "MODEL.WEIGHTS", weights),
    )
    assert code == 0, log
    names = sorted(p.name for p in out.iterdir())
    pngs = [name for name in names if name.endswith(".png")]
    assert len(names) == len(pngs) + 1
    assert sorted({name[:2] for name in pngs}) == STAGES
    for name in pngs:
        with Image.open(out / name) as picture:
            assert picture.width <= 500
    text = (out / "index.html").read_text()
    page = Page(text)
    assert len(page.images) == len(pngs)
    assert all(source.startswith("data:image/png;base64,") for source in page.images)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not page.tags & {"script", "link", "iframe"}
    assert "second &amp; last.jpg" in text
    for expected in ("2 x 3 x 96 x 128", "2 x 8 x 2 x 48", "x 8 x 6 x 8"):
        assert expected in text


def test_one_image_with_no_segments(weights, pictures, tmp_path):
    opts = [*OPTS, "MODEL.DETR.TEST.SCORE_THRESH", "1.0", "MODEL.WEIGHTS", str(weights)]
    page = explain(
        setup_cfg("shapes/tiny.yaml", opts), load_images(pictures[1:]), tmp_path / "out", width=400
    )
    text = page.read_text()
    assert "No query is kept (MODEL.DETR.TEST.SCORE_THRESH 1)" in text
    assert "None: the images fill the canvas" in text
    assert not (page.parent / "02_padding_mask.png").exists()
    with Image.open(page.parent / "15_panoptic.png") as picture:
        assert picture.width <= 400


def test_mistakes(pictures, tmp_path):
    cfg, images = setup_cfg("shapes/tiny.yaml", OPTS), load_images(pictures)
    with pytest.raises(ValueError, match="--points 10,70 lies outside of an image of 96 x 64"):
        explain(cfg, images, tmp_path / "out", points=[(10, 10), (10, 70)])
    with pytest.raises(ValueError, match="--max-width must be at least 400 pixels, got 100"):
        explain(cfg, images, tmp_path / "out", width=100)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="one or two images, got 3"):
        load_images([*pictures, pictures[0]])
    with pytest.raises(OSError, match=r"nothing\.png"):
        load_images([tmp_path / "nothing.png"])
    for text in ("10", "10,b", "1,2,3", "-1,2"):
        with pytest.raises(ValueError, match=f"--points {text}"):
            parse_point(text)
