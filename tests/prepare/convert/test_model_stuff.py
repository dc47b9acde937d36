import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor

from detr_panoptic_d2.data.dataset_mapper import read_image
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.prepare.convert.instance_masks import instance_masks
from detr_panoptic_d2.prepare.convert.model_stuff import ModelStuff

H, W = 48, 64
CPU = ["MODEL.DEVICE", "cpu", "MODEL.DETR.TEST.OVERLAP_THRESH", "0.0"]


@pytest.fixture
def weights(tiny_model, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        # So that stuff, the last two classes, wins somewhere.
        model.class_embed.bias[3:5] += 5
    path = tmp_path / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)


@pytest.fixture
def source(tmp_path, save_image, save_mask):
    """An image whose left third is an object, with a void strip."""
    save_image(tmp_path / "images/a.jpg", H, W)
    mask = np.zeros((H, W), np.uint8)
    mask[:, :20], mask[:4] = 1, 9
    save_mask(tmp_path / "masks/a_mask.png", mask)
    return instance_masks(tmp_path / "images", tmp_path / "masks", category="own", void_value=9)


@pytest.fixture
def predicted(weights, tmp_path, source):
    """What the model sees in the image: (stuff class or thing, score, mask) per segment."""
    opts = [*CPU, "MODEL.WEIGHTS", weights, "MODEL.DETR.TEST.SCORE_THRESH", "0.0"]
    predictor = DefaultPredictor(setup_cfg("shapes/tiny.yaml", opts))
    ids, segments = predictor(read_image(tmp_path / "images/a.jpg", "BGR"))["panoptic_seg"]
    names = predictor.metadata.stuff_classes
    return [
        (None if s["isthing"] else names[s["category_id"]], s["score"], (ids == s["id"]).numpy())
        for s in segments
    ]


def test_stuff_lies_under_what_is_labelled(source, weights, predicted, convert_and_check):
    filler = ModelStuff("shapes/tiny.yaml", weights, threshold=0.0, opts=CPU)
    result = convert_and_check(source, filler=filler, workers=2)
    free = np.zeros((H, W), bool)
    free[4:, 20:] = True
    expected = np.full((H, W), "", object)
    expected[4:, :20] = "own"
    for name, _, mask in predicted:
        if name is not None:
            expected[free & mask] = name
    assert len(set(expected[free])) > 1
    assert np.array_equal(result.classes("a.jpg"), expected)
    kinds = {c["name"]: c["isthing"] for c in result.content["categories"]}
    assert kinds.pop("own") == 1 and not any(kinds.values()) and len(kinds) > 1


def test_below_the_threshold_is_void_or_background(source, weights, convert_and_check, tmp_path):
    filler = ModelStuff("shapes/tiny.yaml", weights, threshold=1.0, opts=CPU)
    result = convert_and_check(source, filler=filler)
    assert set(result.classes("a.jpg").ravel()) == {"own", ""}
    result = convert_and_check(source, filler=filler, background="rest", output=tmp_path / "rest")
    classes = result.classes("a.jpg")
    assert (classes[4:, 20:] == "rest").all() and (classes[:4] == "").all()


def test_models_stuff_that_is_a_thing_here_is_left_out(
    tmp_path, weights, source, convert_and_check
):
    source = instance_masks(tmp_path / "images", tmp_path / "masks", category="sky", void_value=9)
    filler = ModelStuff("shapes/tiny.yaml", weights, threshold=0.0, opts=CPU)
    result = convert_and_check(source, filler=filler)
    assert [(c["name"], c["isthing"]) for c in result.content["categories"]] == [
        ("sky", 1),
        ("ground", 0),
    ]
    assert [n for n, *_ in result.segments("a.jpg")].count("sky") == 1


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_bad_threshold(threshold):
    with pytest.raises(ValueError, match="--stuff-threshold"):
        ModelStuff("shapes/tiny.yaml", "none.pth", threshold=threshold)
