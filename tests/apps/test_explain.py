"""What explain and the web page show of the queries of an image."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from detr_panoptic_d2.apps.queries import build_predictor, record_queries
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.errors import UserError

# Few queries: every one of them is drawn.
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.DETR.TEST.OVERLAP_THRESH", "0.0"]
OPTS += ["MODEL.DETR.NUM_OBJECT_QUERIES", "6"]


@pytest.fixture
def weights(tiny_model, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": tiny_model(*OPTS).state_dict()}, path)
    return path


@pytest.fixture
def make_predictor(weights):
    def make(*opts):
        words = [*OPTS, "MODEL.WEIGHTS", str(weights), *map(str, opts)]
        return build_predictor(setup_cfg("shapes/tiny.yaml", words))

    return make


RULES = ["DETRPanopticInference", "MaskNMSPanopticInference"]


@pytest.mark.parametrize("rule_name", RULES)
def test_recorded_is_what_the_model_does(make_predictor, image, rule_name):
    """Result, boxes and attention; no hook stays."""
    options = "MODEL.DETR.TEST.PANOPTIC_INFERENCE", rule_name, "MODEL.DETR.TEST.INSTANCE_ON", True
    predictor = make_predictor(*options)
    rule = predictor.model.panoptic_inference
    layer = predictor.model.transformer.decoder.layers[-1].multihead_attn
    calls = []
    hook = layer.register_forward_hook(lambda module, args, output: calls.append(args))
    record = record_queries(predictor, image, rule)
    hook.remove()
    assert not layer._forward_hooks
    result = predictor(image[:, :, ::-1])
    ids, segments = record.segment(rule)
    assert segments and segments == result["panoptic_seg"][1]
    assert np.array_equal(ids, result["panoptic_seg"][0].numpy())
    instances = result["instances"]
    for score, label, box in zip(record.scores, record.labels, record.boxes, strict=True):
        if label < 3:
            same = (instances.scores - score).abs().argmin()
            torch.testing.assert_close(instances.pred_boxes.tensor[same], box)
    sums = record.box_attention.sum((1, 2, 3))
    torch.testing.assert_close(sums, torch.ones(len(record.queries)))
    weights = layer(*calls[0], average_attn_weights=False)[1][0].mean(0)
    expected = weights[record.queries].view_as(record.cross_attention)
    torch.testing.assert_close(record.cross_attention, expected)


@pytest.mark.parametrize("rule_name", RULES)
def test_query_of_a_segment_is_that_of_the_rule(make_predictor, image, rule_name):
    """A copy of a query with larger logits and a lower score wins the argmax of the logits; mask
    NMS removes it."""
    overlap = 0.1 if rule_name == "MaskNMSPanopticInference" else 0.0
    options = "MODEL.DETR.TEST.PANOPTIC_INFERENCE", rule_name
    predictor = make_predictor(*options, "MODEL.DETR.TEST.OVERLAP_THRESH", overlap)
    rule = predictor.model.panoptic_inference
    record = record_queries(predictor, image, rule)
    ids, segments = record.segment(rule)
    row = record.find_query(ids, max(segments, key=lambda s: s["isthing"]))
    copies = {
        name: torch.cat([values, values[row : row + 1]])
        for name in ("scores", "labels", "mask_logits")
        for values in [getattr(record, name)]
    }
    copies["scores"][-1] *= 0.9
    copies["mask_logits"][-1] *= 1.01
    logits = torch.cat([record.pred_logits, record.pred_logits[:, row : row + 1]], 1)
    record = record._replace(pred_logits=logits, **copies)
    ids, segments = record.segment(rule)
    rows = [record.find_query(ids, segment) for segment in segments]
    assert len(set(rows)) == len(rows) > 1
    for segment, k in zip(segments, rows, strict=True):
        assert record.labels[k] == segment["category_id"]
        assert record.scores[k] == segment["score"]
    copy_is_shown = len(record.labels) - 1 in rows
    assert copy_is_shown == (rule_name == "DETRPanopticInference")
    # Equal scores are told apart by the pixels.
    record.scores[:] = 0.75
    ids, segments = record.segment(rule)
    rows = [record.find_query(ids, segment) for segment in segments]
    assert len(set(rows)) == len(rows) > 1


def test_page_and_figures(weights, command, tmp_path):
    """For one image no query is kept: the best ones are shown."""
    rng = np.random.default_rng(0)
    for name, size in (("first.png", (64, 96, 3)), ("second & last.jpg", (80, 80, 3))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / name)
    inputs, out = [tmp_path / "first.png", tmp_path / "second & last.jpg"], tmp_path / "out"
    words = ["explain", "--input", *inputs, "--output", out, "--config-file", "shapes/tiny.yaml"]
    status, out_text, log = command(*words, *OPTS, "MODEL.WEIGHTS", weights)
    assert status == 0, log
    assert f"Written: {out / 'index.html'}" in out_text
    figures = {f"{i}_{name}.png" for i in (1, 2) for name in ("queries", "maps", "panoptic")}
    assert {p.name for p in out.iterdir()} == figures | {"index.html"}
    for name in figures:
        with Image.open(out / name) as picture:
            assert 200 < picture.width <= 2000
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    page = (out / "index.html").read_text()
    assert len(re.findall(r'<img [^>]*src="data:image/png;base64,', page)) == len(figures)
    assert not re.search("<(script|link|iframe)", page)
    assert "second &amp; last.jpg" in page and "no query is kept" not in page
    strict = "MODEL.DETR.TEST.SCORE_THRESH", "1.0"
    assert command(*words, *OPTS, "MODEL.WEIGHTS", weights, *strict)[0] == 0
    text = "first.png: no query is kept (MODEL.DETR.TEST.SCORE_THRESH 1). The 5 queries with"
    assert text in (out / "index.html").read_text()
    # A figure of an earlier explanation, as input of the next one.
    figure = inputs[0].rename(out / "1_maps.png")
    before = figure.read_bytes()
    status, _, log = command("explain", "--input", figure, *words[4:], "MODEL.WEIGHTS", weights)
    assert status == 1 and "would overwrite the input" in log[-1]
    assert figure.read_bytes() == before


def test_without_masks():
    opts = [*OPTS, "MODEL.MASK_ON", "False", "MODEL.DETR.TEST.PANOPTIC_ON", "False"]
    with pytest.raises(UserError, match=r"MODEL\.MASK_ON"):
        build_predictor(setup_cfg("shapes/tiny.yaml", opts))
