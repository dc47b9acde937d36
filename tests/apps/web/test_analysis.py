import numpy as np
import pytest
import torch

from detr_panoptic_d2.apps.predict import Predictor
from detr_panoptic_d2.apps.web.analysis import Analyzer
from detr_panoptic_d2.engine import setup_cfg

OPTS = ["MODEL.DEVICE", "cpu", "MODEL.DETR.TEST.OVERLAP_THRESH", "0.0"]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, (64, 80, 3), dtype=np.uint8)


@pytest.fixture
def make_cfg(tiny_model, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": tiny_model().state_dict()}, path)
    return lambda *opts: setup_cfg(
        "shapes/tiny.yaml", [*OPTS, "MODEL.WEIGHTS", str(path), *map(str, opts)]
    )


@pytest.fixture
def calls(make_cfg):
    """An analyzer, and the names of the model's parts in the order in which they were called."""
    analyzer, names = Analyzer(make_cfg()), []
    for name, module in analyzer.model.named_modules():
        if name and not name.startswith("panoptic_inference"):
            module.register_forward_pre_hook(lambda module, args, name=name: names.append(name))
    return analyzer, names


def test_thresholds_run_the_hook_and_not_the_network(calls, image):
    analyzer, names = calls
    analysis = analyzer(image)
    assert {"transformer", "mask_head", "input_proj"} <= set(names)
    names.clear()
    counts = set()
    for score in (0.0, 0.9, 1.0):
        for area in (0, 1000, 64 * 80):
            view = analysis.view(score, area)
            analysis.picture(view)
            for segment in view.segments:
                assert segment["area"] > area
                assert segment["score"] > score
            counts.add(len(view.segments))
    assert names == []
    assert len(counts) > 2 and 0 in counts


@pytest.mark.parametrize(("score", "area"), [(0.0, 0), (0.5, 20), (0.97, 300)])
def test_the_view_is_what_the_model_returns_with_these_thresholds(make_cfg, image, score, area):
    keys = "MODEL.DETR.TEST.SCORE_THRESH", score, "MODEL.DETR.TEST.MIN_SEGMENT_AREA", area
    ids, segments = Predictor(make_cfg(*keys))(image[:, :, ::-1])["panoptic_seg"]
    view = Analyzer(make_cfg())(image).view(score, area)
    assert np.array_equal(view.ids, ids.numpy())
    assert [s["category_id"] for s in view.segments] == [s["category_id"] for s in segments]
    assert [s["area"] for s in view.segments] == [s["area"] for s in segments]


def test_segments(calls, image):
    analyzer, names = calls
    analysis = analyzer(image)
    names.clear()
    view = analysis.view(0.0, 0)
    picture, factor = analysis.picture(view)
    assert picture.shape == (64 * factor, 80 * factor, 3)
    used = []
    for segment in view.segments:
        y, x = np.argwhere(view.ids == segment["id"])[0]
        assert view.at(int(x), int(y)) == segment
        queries = analysis.queries(view, segment)
        assert queries and set(queries) <= set(view.kept)
        assert segment["isthing"] <= (len(queries) == 1)
        used += queries
        mask = analysis.mask_picture(view, segment)
        assert mask.shape == picture.shape
        inside = (view.ids == segment["id"]).repeat(factor, 0).repeat(factor, 1)
        assert (mask[inside] == image.repeat(factor, 0).repeat(factor, 1)[inside]).all()
    assert len(used) == len(set(used))
    maps = analysis.maps_picture(view, view.segments[0])
    assert maps.dtype == np.uint8 and maps.shape[1] <= 1000
    assert names == []
    assert view.at(-1, 0) is None and view.at(0, 64) is None
    empty = analysis.view(1.0, 0)
    assert empty.segments == [] and empty.at(3, 3) is None


def test_equal_scores_are_told_apart_by_their_masks(calls, image):
    analysis = calls[0](image)
    record = analysis._record
    thing = 0
    record.scores[:], record.labels[:] = 0.75, thing
    view = analysis.view(0.0, 0)
    assert len(view.segments) > 1
    chosen = [analysis.queries(view, s) for s in view.segments]
    assert all(len(queries) == 1 for queries in chosen)
    for segment, (query,) in zip(view.segments, chosen, strict=True):
        won = record.owner.numpy()[view.ids == segment["id"]]
        assert np.bincount(won).argmax() == query


def test_wrong_thresholds(calls, image):
    with pytest.raises(ValueError, match="SCORE_THRESH"):
        calls[0](image).view(1.5, 0)
