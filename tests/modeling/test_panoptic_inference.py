"""The panoptic inference and the resizing below it, on constructed and on random mask logits."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from detr_panoptic_d2.config import merged_cfg
from detr_panoptic_d2.errors import UserError
from detr_panoptic_d2.modeling import mask_ops
from detr_panoptic_d2.modeling.panoptic_inference import (
    PANOPTIC_INFERENCE_REGISTRY,
    DETRPanopticInference,
    MaskNMSPanopticInference,
    OfficialPanopticInference,
    build_panoptic_inference,
)
from detr_panoptic_d2.modeling.structures import Frame

# Classes 0 and 1 are things, 2 and 3 are stuff; 4 is no-object.
THINGS = [0, 1]


def make_rule(**options):
    return DETRPanopticInference(thing_ids=THINGS, **options)


def call(rule, logits, labels, frame=None, scores=None):
    scores = [0.9] * len(labels) if scores is None else scores
    size = tuple(logits.shape[-2:])
    frame = frame or Frame(size, size, size)
    return rule(logits, torch.tensor(scores), torch.tensor(labels, dtype=torch.long), frame)


def test_which_queries_are_kept():
    probability = torch.tensor(
        [
            [0.9, 0.025, 0.025, 0.025, 0.025],
            [0.84, 0.04, 0.04, 0.04, 0.04],
            [0.01, 0.01, 0.01, 0.01, 0.96],
            [0.02, 0.02, 0.02, 0.86, 0.08],
            [0.25, 0.02, 0.02, 0.01, 0.7],
        ]
    )
    logits = probability.log()[None]
    assert make_rule().keep(logits).tolist() == [[True, False, False, True, False]]
    assert make_rule(score_thresh=0.0).keep(logits).tolist() == [[True, True, False, True, False]]
    nms = MaskNMSPanopticInference(thing_ids=THINGS, score_thresh=0.2)
    assert nms.keep(logits).tolist() == [[True, True, False, True, True]]


def official_panoptic(logits, labels, output, min_area=4):
    """The steps of official ``PostProcessPanoptic`` (models/segmentation.py), written anew.

    ``logits`` are at the size of the network input. Returns the map of ids from 0 and (class, area)
    per segment, or None for the map where nothing is left.
    """
    labels = np.asarray(labels)
    masks = np.asarray(logits)

    def ids_and_areas(merge):
        best = masks.argmax(0)
        if merge:
            for label in set(labels) - set(THINGS):
                same = np.flatnonzero(labels == label)
                best[np.isin(best, same)] = same[0]
        best = np.asarray(
            Image.fromarray(best.astype(np.uint8)).resize(output[::-1], resample=Image.NEAREST)
        )
        return best, np.bincount(best.flatten(), minlength=len(masks))

    if not len(masks):
        return None, []
    ids, areas = ids_and_areas(merge=True)
    while (areas <= min_area).any():
        masks, labels = masks[areas > min_area], labels[areas > min_area]
        if not len(masks):
            return None, []
        ids, areas = ids_and_areas(merge=False)
    return ids, list(zip(labels.tolist(), areas.tolist(), strict=True))


def test_official_rule_on_random_inputs():
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    differs = 0
    for _ in range(150):
        queries = int(rng.integers(0, 9))
        size = tuple(2 * rng.integers(4, 20, 2) + 1)
        output = tuple(int(n) for n in rng.integers(5, 40, 2))
        coarse = torch.randn(queries, 1, 4, 5, generator=generator) * 5
        grid = [-(-int(n) // 4) for n in size]
        logits = F.interpolate(coarse, grid, mode="bicubic")[:, 0] if queries else coarse[:, 0]
        labels = rng.integers(0, 4, queries).tolist()
        min_area = int(rng.choice([0, 4, 30]))
        full = F.interpolate(logits[None].double(), size, mode="bilinear")[0] if queries else []
        expected, segments = official_panoptic(full, labels, output, min_area)
        frame = Frame(size, size, output)
        options = {"thing_ids": THINGS, "min_segment_area": min_area}
        ids, info = call(OfficialPanopticInference(**options), logits, labels, frame)
        assert [s["category_id"] for s in info] == [c for c, _ in segments]
        areas, true_areas = [s["area"] for s in info], [a for _, a in segments]
        if expected is None:
            assert not ids.any()
        else:
            # Pillow rounds a pixel that lies halfway between two either way.
            assert (ids.numpy() == expected + 1).mean() > 0.97
            assert np.abs(np.subtract(areas, true_areas)).sum() <= 0.06 * ids.numel()
        differs += not torch.equal(
            ids, call(DETRPanopticInference(**options), logits, labels, frame)[0]
        )
    # The rule is another one: without the quirk the results would be the same.
    assert differs > 5


def test_official_rule_has_no_overlap_threshold(cfg):
    cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE = "OfficialPanopticInference"
    assert isinstance(build_panoptic_inference(cfg, [0]), OfficialPanopticInference)
    cfg.MODEL.DETR.TEST.OVERLAP_THRESH = 0.5
    with pytest.raises(UserError, match="OVERLAP_THRESH is 0.5.*OfficialPanopticInference"):
        build_panoptic_inference(cfg, [0])


@pytest.fixture
def cfg():
    return merged_cfg("")


def test_own_rule_by_its_name(cfg, monkeypatch):
    class OwnRule(DETRPanopticInference):
        pass

    # A copy of the table, so that the name is free again afterwards.
    table = dict(PANOPTIC_INFERENCE_REGISTRY._obj_map)
    monkeypatch.setattr(PANOPTIC_INFERENCE_REGISTRY, "_obj_map", table)
    PANOPTIC_INFERENCE_REGISTRY.register(OwnRule)
    cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE = "OwnRule"
    assert isinstance(build_panoptic_inference(cfg, [0]), OwnRule)


FUZZ = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
NUM_CLASSES = 5
# Logits closer than this may be ordered differently by two ways to interpolate.
CLOSE = 1e-5


@st.composite
def frames(draw):
    grid = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    stride = draw(st.integers(1, 5))
    canvas = tuple(max(1, g * stride - draw(st.integers(0, stride - 1))) for g in grid)
    image = tuple(draw(st.integers(1, c)) for c in canvas)
    output = draw(st.one_of(st.just(image), st.tuples(st.integers(1, 40), st.integers(1, 40))))
    return grid, Frame(canvas, image, output)


@st.composite
def cases(draw, exact=False):
    """Keyword arguments of the rule, and of its call.

    Some logits are drawn from few values, so that they tie; not so if ``exact``.
    """
    grid, frame = draw(frames())
    queries = draw(st.integers(0, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(queries, *grid, generator=generator) * draw(st.sampled_from([0.5, 4, 60]))
    if not exact and draw(st.booleans()):
        logits = logits.sign() * draw(st.sampled_from([0.0, 1.0]))
    options = {
        "thing_ids": draw(st.lists(st.integers(0, NUM_CLASSES - 1), unique=True)),
        "min_segment_area": draw(st.sampled_from([0, 1, 4, 20, 200])),
        "overlap_thresh": draw(st.sampled_from([0.0, 0.0, 0.2, 0.5, 0.8, 1.0])),
    }
    return options, {
        "mask_logits": logits,
        "scores": torch.rand(queries, generator=generator),
        "labels": torch.randint(
            0, draw(st.integers(1, NUM_CLASSES)), (queries,), generator=generator
        ),
        "frame": frame,
    }


def logits_at_output(logits, frame):
    """Upsample to the canvas, crop the padding, take the nearest pixel; in float64."""
    if not len(logits):
        return np.zeros((0, *frame.output))
    up = F.interpolate(logits[None].double(), frame.canvas, mode="bilinear", align_corners=False)[0]
    rows, columns = (
        [(2 * i + 1) * frame.image[d] // (2 * frame.output[d]) for i in range(frame.output[d])]
        for d in range(2)
    )
    return up[:, rows][:, :, columns].numpy()


def slow_rule(logits, scores, labels, things, min_area, overlap, values=None, queries=None):
    """DETR's rule pixel map by pixel map: returns (ids, [(category, area, score)]).

    ``values``: what decides which query wins a pixel; ``queries``: those that take part."""
    values = logits if values is None else values
    segments = []
    for q in range(len(labels)) if queries is None else queries:
        label = labels[q]
        same = [s for s in segments if label == s["label"] and label not in things]
        if same:
            same[0]["queries"].append(q)
        else:
            segments.append({"label": label, "queries": [q]})
    for s in segments:
        s["own"] = np.any([logits[q] >= 0 for q in s["queries"]], axis=0).sum()
        s["score"] = max(scores[q] for q in s["queries"])
    while segments:
        layers = np.stack([np.max([values[q] for q in s["queries"]], axis=0) for s in segments])
        winner = layers.argmax(0)
        for i, s in enumerate(segments):
            s["area"] = int((winner == i).sum())
        bad = [s for s in segments if s["area"] <= min_area]
        if not bad and overlap:
            weak = [s for s in segments if s["area"] < overlap * s["own"]]
            bad = sorted(weak, key=lambda s: s["score"])[:1]
        if not bad:
            return winner + 1, [(s["label"], s["area"], s["score"]) for s in segments]
        segments = [s for s in segments if all(s is not b for b in bad)]
    return np.zeros(logits.shape[1:], dtype=int), []


def slow_nms(logits, scores, frame, overlap):
    """The queries that mask NMS leaves, cell by cell of the mask grid that shows the image."""
    grid = logits.shape[1:]
    height, width = (-(-frame.image[d] * grid[d] // frame.canvas[d]) for d in range(2))
    masks, order = [], []
    for q, mask in enumerate(logits[:, :height, :width]):
        cells = {(y, x) for y, x in np.argwhere(mask > 0).tolist()}
        probability = np.mean([1 / (1 + np.exp(-mask[c])) for c in cells]) if cells else 0
        masks.append(cells)
        order.append((-scores[q] * probability**2, q))
    covered, remaining = set(), []
    for _, q in sorted(order):
        free = masks[q] - covered
        if masks[q] and len(free) >= np.float32(overlap) * len(masks[q]):
            covered |= masks[q]
            remaining.append(q)
    return sorted(remaining)


def check_result(result, options, output):
    """What holds for every result."""
    ids, info = result
    assert ids.dtype == torch.int32
    assert tuple(ids.shape) == tuple(output)
    assert [s["id"] for s in info] == list(range(1, len(info) + 1))
    present = ids.unique(return_counts=True)
    counts = dict(zip(*(t.tolist() for t in present), strict=True))
    assert {s["id"] for s in info} == set(counts) - {0}
    for s in info:
        assert set(s) == {"id", "isthing", "category_id", "area", "score"}
        assert type(s["isthing"]) is bool
        assert all(type(s[key]) is int for key in ("id", "category_id", "area"))
        assert s["isthing"] == (s["category_id"] in options["thing_ids"])
        assert s["area"] == counts[s["id"]] > options["min_segment_area"]
        assert 0 <= s["score"] <= 1
    stuff = [s["category_id"] for s in info if not s["isthing"]]
    assert len(stuff) == len(set(stuff))
    # Argmax: either nothing is left or every pixel is somebody's.
    assert not info or 0 not in counts


@FUZZ
@given(cases())
def test_what_always_holds(case):
    options, call = case
    for rule in (DETRPanopticInference, MaskNMSPanopticInference):
        check_result(rule(**options)(**call), options, call["frame"].output)


@FUZZ
@given(
    cases(exact=True),
    st.sampled_from([DETRPanopticInference, MaskNMSPanopticInference]),
    st.sampled_from([300, 2**20]),
)
def test_equals_a_slow_twin(case, rule, values_per_strip):
    options, call = case
    frame, scores, extra = call["frame"], call["scores"].tolist(), {}
    logits = logits_at_output(call["mask_logits"], frame)
    values, overlap = logits, options["overlap_thresh"]
    if rule is MaskNMSPanopticInference:
        grid = call["mask_logits"].double()
        values = F.logsigmoid(grid) + call["scores"].double().log()[:, None, None]
        values = logits_at_output(values, frame)
        extra = {"values": values, "queries": slow_nms(grid.numpy(), scores, frame, overlap)}
        overlap = 0
    ordered = np.sort(values, axis=0)
    assume(logits.size == 0 or np.abs(logits).min() > CLOSE)
    assume(len(logits) < 2 or np.diff(ordered, axis=0).min() > CLOSE)
    expected_ids, expected = slow_rule(
        logits,
        scores,
        call["labels"].tolist(),
        options["thing_ids"],
        options["min_segment_area"],
        overlap,
        **extra,
    )
    with pytest.MonkeyPatch.context() as patch:
        # Large outputs are computed in strips.
        values = dict.fromkeys(("cpu", "cuda"), values_per_strip)
        patch.setattr(mask_ops, "_VALUES_PER_STRIP", values)
        ids, info = rule(**options)(**call)
    assert [(s["category_id"], s["area"], s["score"]) for s in info] == expected
    assert np.array_equal(ids.numpy(), expected_ids)
