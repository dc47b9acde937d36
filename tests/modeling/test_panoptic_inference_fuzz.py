"""Random inputs: what holds for every panoptic result, and the same result from a slow twin."""

import numpy as np
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from detr_panoptic_d2.modeling.panoptic_inference import DETRPanopticInference
from detr_panoptic_d2.modeling.structures import Frame

FUZZ = settings(
    max_examples=150,
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


def slow_rule(logits, scores, labels, things, min_area, overlap):
    """DETR's rule pixel map by pixel map: returns (ids, [(category, area, score)])."""
    segments = []
    for q, label in enumerate(labels):
        same = [s for s in segments if label == s["label"] and label not in things]
        if same:
            same[0]["queries"].append(q)
        else:
            segments.append({"label": label, "queries": [q]})
    for s in segments:
        s["own"] = np.any([logits[q] >= 0 for q in s["queries"]], axis=0).sum()
        s["score"] = max(scores[q] for q in s["queries"])
    while segments:
        layers = np.stack([np.max([logits[q] for q in s["queries"]], axis=0) for s in segments])
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
    before = call["mask_logits"].clone()
    result = DETRPanopticInference(**options)(**call)
    check_result(result, options, call["frame"].output)
    assert torch.equal(call["mask_logits"], before)


@FUZZ
@given(cases(exact=True))
def test_equals_a_slow_twin(case):
    options, call = case
    logits = logits_at_output(call["mask_logits"], call["frame"])
    ordered = np.sort(logits, axis=0)
    assume(logits.size == 0 or np.abs(logits).min() > CLOSE)
    assume(len(logits) < 2 or np.diff(ordered, axis=0).min() > CLOSE)
    expected_ids, expected = slow_rule(
        logits,
        call["scores"].tolist(),
        call["labels"].tolist(),
        options["thing_ids"],
        options["min_segment_area"],
        options["overlap_thresh"],
    )
    ids, info = DETRPanopticInference(**options)(**call)
    assert [(s["category_id"], s["area"], s["score"]) for s in info] == expected
    assert np.array_equal(ids.numpy(), expected_ids)
