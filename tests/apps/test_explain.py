import html.parser
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detr_panoptic_d2.apps.explain import explain, load_images, parse_point, record
from detr_panoptic_d2.apps.explain.context import shape
from detr_panoptic_d2.apps.explain.figures import (
    Panel,
    SharedBar,
    _apart,
    columns_for,
    draw_sheet,
    in_rows,
)
from detr_panoptic_d2.apps.explain.image_stages import principal_components
from detr_panoptic_d2.engine import setup_cfg


def images(make_input):
    """Two images of different sizes, with results wanted in a third."""
    return [make_input(64, 64, seed=1, height=48, width=48), make_input(48, 80, seed=2)]


def hooks_left(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def recorded(tiny_model, make_input):
    model = tiny_model()
    return model, record(model, images(make_input))


def test_the_results_are_those_of_the_model(tiny_model, make_input):
    model = tiny_model("MODEL.DETR.TEST.PAD_MIXED_SIZES", True)
    batch = images(make_input)
    recording = record(model, batch)
    for one, result in zip(recording.per_image, model(batch), strict=True):
        ids, segments = result["panoptic_seg"]
        assert segments
        assert torch.equal(one.panoptic[0], ids)
        assert one.panoptic[1] == segments


def test_no_hook_stays(recorded, make_input):
    model, _ = recorded
    assert hooks_left(model) == 0
    broken = {"image": torch.zeros(4, 32, 32)}
    with pytest.raises(RuntimeError):
        record(model, [broken])
    assert hooks_left(model) == 0


def test_attention_weights_are_those_that_were_applied(tiny_model, make_input):
    """Weights times values, projected, is what the module put out."""
    model = tiny_model()
    layer = model.transformer.decoder.layers[-1].multihead_attn
    calls = []
    handle = layer.register_forward_hook(lambda module, args, output: calls.append((args, output)))
    recording = record(model, images(make_input))
    handle.remove()
    ((_, _, value, *_), output) = calls[0]
    call = recording.decoder[-1]
    for i in range(2):
        rows = torch.arange(call.query.shape[1])
        weights = call.weights(i, rows)
        c = value.shape[-1]
        v = value[i] @ layer.in_proj_weight[2 * c :].T + layer.in_proj_bias[2 * c :]
        heads = v.unflatten(-1, (layer.nheads, -1)).transpose(0, 1)
        out = layer.out_proj((weights @ heads).transpose(0, 1).flatten(1))
        torch.testing.assert_close(out, output[i], rtol=1e-4, atol=1e-5)
        padding = recording.detections.padding[i].flatten()
        assert padding.any()
        assert (weights[..., padding] == 0).all()


def test_shapes(recorded):
    model, r = recorded
    nheads = model.bbox_attention.nheads
    pairs = len(r.mask_logits)
    h, w = r.detections.src_proj.shape[-2:]
    assert r.box_attention.shape == (pairs, nheads, h, w)
    torch.testing.assert_close(r.box_attention.sum((1, 2, 3)), torch.ones(pairs))
    assert list(r.steps) == ["gn1", "gn2", "gn3", "gn4", "gn5"]
    assert r.step_shapes["gn1"] == (pairs, model.mask_head.hidden_dim + nheads, h, w)
    assert r.steps["gn5"].shape == r.mask_logits.shape
    assert r.mask_logits.shape[1:] == r.detections.features["res2"].shape[-2:]
    assert len(r.encoder) == len(model.transformer.encoder.layers)
    assert len(r.decoder) == len(model.transformer.decoder.layers)
    assert [one.pairs for one in r.per_image][-1].stop == pairs
    for one in r.per_image:
        assert one.kept
        assert one.owner.shape == one.frame.output
        assert int(one.owner.max()) < len(one.queries)


def test_the_best_are_shown_where_none_is_kept(tiny_model, make_input):
    model = tiny_model("MODEL.DETR.TEST.SCORE_THRESH", 1.0)
    recording = record(model, images(make_input), fallback=3)
    for one in recording.per_image:
        assert not one.kept
        assert len(one.queries) == 3
        assert one.panoptic[1] == [] and not one.panoptic[0].any()


def test_another_rule(tiny_model, make_input):
    strict = tiny_model("MODEL.DETR.TEST.SCORE_THRESH", 1.0)
    loose = tiny_model("MODEL.DETR.TEST.SCORE_THRESH", 0.0)
    batch = [make_input(64, 64)]
    one = record(strict, batch, panoptic_inference=loose.panoptic_inference).per_image[0]
    assert one.panoptic[1] == loose(batch)[0]["panoptic_seg"][1] != []


def test_a_mask_head_without_steps(tiny_model, make_input):
    class Constant(nn.Module):
        def forward(self, src_proj, attention, image_index, fpn_features):
            return attention.new_zeros(len(attention), *fpn_features[-1].shape[-2:])

    model = tiny_model()
    model.mask_head = Constant()
    recording = record(model, images(make_input))
    assert recording.steps == {}


def test_a_model_without_masks(tiny_model, make_input):
    boxes = tiny_model("MODEL.MASK_ON", False, "MODEL.DETR.TEST.PANOPTIC_ON", False)
    with pytest.raises(ValueError, match="MODEL.MASK_ON"):
        record(boxes, [make_input(32, 32)])


def ink(png):
    """Bool H x W: what is not white."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    return pixels < 250


@pytest.mark.parametrize(("count", "aspect"), [(1, 0.4), (2, 2.5), (5, 1.0), (7, 0.7)])
def test_nothing_is_cut_off(count, aspect):
    panels = [
        Panel(np.full((3, 4), i), "q12 a-class-with-a-long-name-merged 0.98", bar=True)
        for i in range(count)
    ]
    rows = in_rows(panels, columns_for(count, 600))
    bar = SharedBar("amount", "viridis", (0, 1))
    labels = ["image 1: x 100, y 100" for _ in rows]
    marks = ink(draw_sheet(rows, aspect, width=600, row_labels=labels, shared_bar=bar))
    assert marks.shape[1] <= 600
    for edge in (marks[0], marks[-1], marks[:, 0], marks[:, -1]):
        assert not edge.any()


def test_value_range():
    assert Panel(np.array([[1.0, np.nan, 3.0]])).value_range() == (1, 3)
    low, high = Panel(np.full((2, 2), 5.0)).value_range()
    assert low == 5 < high
    assert Panel(np.full((2, 2), np.nan)).value_range() == (0, 1)


def test_texts_keep_apart_and_inside():
    texts = [(0.5, 0.0, "q1 sky 1.00")] * 4 + [(1.0, 1.0, "q2 ground 1.00")]
    places = _apart(texts, 300, 300)
    heights = sorted(y for _, y in places[:4])
    assert all(b - a >= 18 / 300 - 1e-9 for a, b in zip(heights, heights[1:], strict=False))
    assert all(0 < x < 1 and 0 < y < 1 for x, y in places)
    # No room at all: they stay where they belong.
    assert len(set(_apart(texts[:4], 300, 20))) == 1


def test_principal_components():
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(2, 8, 4, 5, generator=generator)
    memory[:, 2] *= 20
    padding = torch.zeros(2, 4, 5, dtype=torch.bool)
    padding[1, :, 3:] = True
    memory[1, :, :, 3:] = 1e6
    components = principal_components(memory, padding)
    assert components.shape == (2, 3, 4, 5)
    assert np.isnan(components[1, :, :, 3:]).all()
    assert not np.isnan(components[0]).any()
    valid = (~padding).numpy()
    first, channel = components[:, 0][valid], memory[:, 2].numpy()[valid]
    assert abs(np.corrcoef(first, channel)[0, 1]) > 0.99


def test_shape():
    assert shape(torch.zeros(2, 3)) == "2 x 3"
    assert shape((1, 4)) == "1 x 4"


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
