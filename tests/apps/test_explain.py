import re

import numpy as np
import pytest
import torch
from PIL import Image

from detr_panoptic_d2.apps.explain import explain, record
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.errors import UserError

# Few queries: every one of them is drawn many times.
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.DETR.NUM_OBJECT_QUERIES", "2"]


def images(make_input):
    """Two images of different sizes, with results in a third size."""
    return [make_input(64, 64, seed=1, height=48, width=48), make_input(48, 80, seed=2)]


def hooks_left(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_recorded_is_what_the_model_does(tiny_model, make_input):
    model = tiny_model("MODEL.DETR.TEST.PAD_MIXED_SIZES", True)
    batch = images(make_input)
    recording = record(model, batch)
    for one, result in zip(recording.per_image, model(batch), strict=True):
        ids, segments = result["panoptic_seg"]
        assert one.kept and segments
        assert torch.equal(one.panoptic[0], ids)
        assert one.panoptic[1] == segments
        assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)
        sums = one.box_attention.sum((1, 2, 3))
        torch.testing.assert_close(sums, torch.ones(len(one.queries)))
        assert one.steps["gn5"].shape == one.mask_logits.shape
        # Boxes are in pixels of the image, which lies in the upper left corner of the canvas.
        assert (one.boxes[:, 2:] <= torch.tensor(one.frame.image[::-1])).all()


def test_no_hook_stays(tiny_model, make_input):
    model = tiny_model()
    record(model, images(make_input))
    assert hooks_left(model) == 0
    with pytest.raises(RuntimeError):
        record(model, [{"image": torch.zeros(4, 32, 32)}])
    assert hooks_left(model) == 0


def test_attention_weights_are_those_that_were_applied(tiny_model, make_input):
    """Weights times values, projected, is what the module put out."""
    model = tiny_model()
    layer = model.transformer.decoder.layers[-1].multihead_attn
    calls = []
    handle = layer.register_forward_hook(lambda module, args, output: calls.append((args, output)))
    recording = record(model, images(make_input))
    handle.remove()
    ((_, _, value, *_), (output, _)) = calls[0]
    call = recording.decoder[-1]
    for i in range(2):
        weights = call.weights(i, torch.arange(call.query.shape[1]))
        c = value.shape[-1]
        v = value[i] @ layer.in_proj_weight[2 * c :].T + layer.in_proj_bias[2 * c :]
        heads = v.unflatten(-1, (layer.num_heads, -1)).transpose(0, 1)
        out = layer.out_proj((weights @ heads).transpose(0, 1).flatten(1))
        torch.testing.assert_close(out, output[i], rtol=1e-4, atol=1e-5)
        padding = recording.detections.padding[i].flatten()
        assert padding.any()
        assert (weights[..., padding] == 0).all()


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


def test_a_batch_of_two(weights, pictures, command, tmp_path):
    out = tmp_path / "out"
    status, out_text, log = command(
        *("explain", "--input", *pictures, "--output", out, "--points", "10,20", "5,5"),
        *("--config-file", "shapes/tiny.yaml", *OPTS, "MODEL.WEIGHTS", weights),
    )
    assert status == 0, log
    assert f"Written: {out / 'index.html'}" in out_text
    stages = ["input", "features", "encoder", "queries", "attention", "mask_head", "panoptic"]
    names = [f"0{i}_{name}" for i, name in enumerate(stages, 1)]
    expected = {f"{name}{end}.png" for name in names for end in ("", "_2")}
    assert {p.name for p in out.iterdir()} == expected | {"index.html"}
    for name in expected:
        with Image.open(out / name) as picture:
            assert 200 < picture.width <= 1200
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    page = (out / "index.html").read_text()
    sources = re.findall(r'<img [^>]*src="([^"]{40})', page)
    assert len(sources) == len(expected)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search("<(script|link|iframe)", page)
    assert "second &amp; last.jpg" in page


def test_the_best_are_shown_where_none_is_kept(weights, pictures, tmp_path):
    opts = [*OPTS, "MODEL.DETR.TEST.SCORE_THRESH", "1.0", "MODEL.WEIGHTS", str(weights)]
    image = np.asarray(Image.open(pictures[1]))
    page = explain(setup_cfg("shapes/tiny.yaml", opts), [image], tmp_path / "out")
    text = page.read_text()
    assert "no query is kept (MODEL.DETR.TEST.SCORE_THRESH 1)" in text
    assert len(list(page.parent.glob("*.png"))) == 7


def test_mistakes(pictures, tiny_model, make_input, command, tmp_path):
    cfg = setup_cfg("shapes/tiny.yaml", OPTS)
    image = np.zeros((64, 96, 3), np.uint8)
    with pytest.raises(UserError, match="--points 10,70 lies outside of an image of 96 x 64"):
        explain(cfg, [image], tmp_path / "out", points=[(10, 10), (10, 70)])
    with pytest.raises(UserError, match="one or two images, got 3"):
        explain(cfg, [image] * 3, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    boxes = tiny_model("MODEL.MASK_ON", False, "MODEL.DETR.TEST.PANOPTIC_ON", False)
    with pytest.raises(UserError, match=r"MODEL\.MASK_ON"):
        record(boxes, [make_input(32, 32)])
    words = "--input", pictures[0], "--output", tmp_path, "--points", "10,b"
    status, _, log = command("explain", *words)
    assert status == 2
    assert "'10,b' is not X,Y in pixels" in log[-1]
    # A figure of an earlier explanation, as input of the next one.
    figure = pictures[0].rename(tmp_path / "01_input.png")
    before = figure.read_bytes()
    status, _, log = command(
        *("explain", "--input", figure, "--output", tmp_path, "--config-file", "shapes/tiny.yaml")
    )
    assert status == 1 and "would overwrite the input" in log[-1]
    assert figure.read_bytes() == before
