"""The panoptic inference and the resizing below it, on mask logits made by hand."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from PIL import Image
from torch.nn import functional as F

from detr_panoptic_d2 import add_detr_panoptic_config
from detr_panoptic_d2.errors import UserError
from detr_panoptic_d2.modeling.panoptic_inference import (
    PANOPTIC_INFERENCE_REGISTRY,
    DETRPanopticInference,
    OfficialPanopticInference,
    build_panoptic_inference,
)
from detr_panoptic_d2.modeling.structures import Frame

# Classes 0 and 1 are things, 2 and 3 are stuff; 4 is no-object.
THINGS = [0, 1]


def make_rule(**options):
    return DETRPanopticInference(thing_ids=THINGS, **options)


def plain(height, width):
    """A frame in which nothing is padded or resized."""
    return Frame((height, width), (height, width), (height, width))


def owned(owner):
    """Mask logits Q x h x w: 5 for the query that an integer map names, -5 for the others."""
    owner = torch.as_tensor(owner)
    masks = F.one_hot(owner, int(owner.max()) + 1).permute(2, 0, 1)
    return masks.float() * 10 - 5


def call(rule, logits, labels, frame=None, scores=None):
    scores = [0.9] * len(labels) if scores is None else scores
    frame = plain(*logits.shape[-2:]) if frame is None else frame
    return rule(logits, torch.tensor(scores), torch.tensor(labels, dtype=torch.long), frame)


def test_ids_areas_and_classes():
    owner = torch.zeros(12, 12, dtype=torch.long)
    owner[6:] = 1
    owner[:4, :5] = 2
    ids, info = call(make_rule(), owned(owner), [2, 3, 1], scores=[0.875, 0.9375, 0.96875])
    assert ids.dtype == torch.int32
    assert torch.equal(ids.long(), owner + 1)
    assert info == [
        {"id": 1, "isthing": False, "category_id": 2, "area": 52, "score": 0.875},
        {"id": 2, "isthing": False, "category_id": 3, "area": 72, "score": 0.9375},
        {"id": 3, "isthing": True, "category_id": 1, "area": 20, "score": 0.96875},
    ]
    json.dumps(info)


@pytest.mark.parametrize("area, survives", [(4, False), (5, True)])
def test_least_area_is_exclusive(area, survives):
    owner = torch.zeros(8, 8, dtype=torch.long)
    owner.view(-1)[:area] = 1
    ids, info = call(make_rule(min_segment_area=4), owned(owner), [0, 1])
    assert len(info) == 1 + survives
    assert int((ids == 1).sum()) == 64 - area * survives


def test_area_counts_in_the_output_image():
    owner = torch.zeros(8, 8, dtype=torch.long)
    owner[:2, :2] = 1
    rule, logits = make_rule(min_segment_area=4), owned(owner)
    larger = Frame((8, 8), (8, 8), (16, 16))
    assert len(call(rule, logits, [0, 1])[1]) == 1
    assert [s["area"] for s in call(rule, logits, [0, 1], larger)[1]] == [240, 16]


def test_small_segments_free_their_pixels_for_the_next_best():
    owner = torch.zeros(8, 8, dtype=torch.long)
    owner[4:] = 1
    owner[5, 5] = 2
    logits = owned(owner)
    logits[0, 5, 5], logits[1, 5, 5] = 1.0, 0.0
    ids, info = call(make_rule(), logits, [0, 1, 1])
    assert [s["area"] for s in info] == [33, 31]
    assert ids[5, 5] == 1


def test_everything_too_small_is_void():
    ids, info = call(make_rule(min_segment_area=100), owned(torch.arange(9).view(3, 3)), [0] * 9)
    assert info == [] and not ids.any()


def test_no_query():
    ids, info = call(make_rule(), torch.zeros(0, 4, 5), [], Frame((16, 20), (16, 20), (7, 9)))
    assert info == [] and ids.shape == (7, 9) and ids.dtype == torch.int32 and not ids.any()


def test_keep_wants_an_object_above_the_threshold():
    probability = torch.tensor(
        [
            [0.9, 0.025, 0.025, 0.025, 0.025],
            [0.84, 0.04, 0.04, 0.04, 0.04],
            [0.01, 0.01, 0.01, 0.01, 0.96],
            [0.02, 0.02, 0.02, 0.86, 0.08],
        ]
    )
    keep = make_rule().keep(probability.log()[None])
    assert keep.tolist() == [[True, False, False, True]]
    assert make_rule(score_thresh=0.0).keep(probability.log()[None]).tolist() == [
        [True, True, False, True]
    ]


def overlapping():
    """Three things: 1 covers the left half, 0 and 2 are two copies of the whole image."""
    logits = torch.full((3, 10, 10), 4.0)
    logits[1, :, :5], logits[1, :, 5:] = 6.0, -6.0
    logits[2] = 3.0
    logits[2, :, 9] = 5.0
    return logits


def test_overlap_rule_drops_what_wins_too_little_of_its_mask():
    labels, scores = [0, 1, 0], [0.9, 0.95, 0.86]
    ids, info = call(make_rule(), overlapping(), labels, scores=scores)
    assert [s["area"] for s in info] == [40, 50, 10]
    rule = make_rule(overlap_thresh=0.3)
    ids, info = call(rule, overlapping(), labels, scores=scores)
    assert [s["area"] for s in info] == [50, 50]
    assert torch.equal(
        ids, torch.tensor([2, 1], dtype=torch.int32).repeat_interleave(5).repeat(10, 1)
    )


def test_overlap_rule_keeps_one_of_two_copies():
    logits = torch.full((2, 10, 10), 2.0)
    logits[0, :, ::2] = 3.0
    logits[1, :, 1::2] = 3.0
    ids, info = call(make_rule(overlap_thresh=0.6), logits, [0, 0], scores=[0.9, 0.95])
    assert [s["area"] for s in info] == [100]
    assert info[0]["score"] == pytest.approx(0.95)
    assert (ids == 1).all()


def test_overlap_rule_takes_stuff_of_one_class_together():
    logits = torch.full((2, 10, 10), 2.0)
    logits[0, :, ::2] = 3.0
    logits[1, :, 1::2] = 3.0
    _, info = call(make_rule(overlap_thresh=0.9), logits, [2, 2])
    assert [s["area"] for s in info] == [100]


def official(logits, size, output):
    """What official post-processing does with one image and without small or repeated segments:
    upsample to the network input, softmax, argmax, and Pillow's nearest to the output."""
    masks = F.interpolate(logits[None], size, mode="bilinear")[0]
    best = masks.flatten(1).transpose(0, 1).softmax(-1).argmax(-1).view(size)
    image = Image.fromarray(best.numpy().astype(np.uint8))
    return np.asarray(image.resize(output[::-1], resample=Image.NEAREST))


# Odd network inputs: with even ones a pixel can lie halfway, where Pillow rounds either way.
@pytest.mark.parametrize(
    "size, output",
    [
        ((64, 96), (64, 96)),
        ((65, 97), (50, 83)),
        ((61, 91), (127, 201)),
        ((33, 47), (11, 15)),
    ],
)
def test_same_pixels_as_the_official_route(size, output):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 5, 4, 6, generator=generator) * 5
    logits = F.interpolate(coarse, [s // 4 for s in size], mode="bicubic")[0]
    labels = [0, 0, 1, 2, 3]
    rule = make_rule(min_segment_area=0)
    ids, info = call(rule, logits, labels, Frame(size, size, output))
    assert [s["category_id"] for s in info] == labels
    assert np.array_equal(ids.numpy(), official(logits, size, output) + 1)


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
    for _ in range(300):
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
    assert differs > 10


def test_official_rule_gives_pixels_of_merged_stuff_to_the_best_of_the_rest():
    logits = torch.full((3, 4, 12), -5.0)
    logits[0, :, :4], logits[1, :, 4:8], logits[2, :, 8:] = 5, 5, 5
    logits[2, :, 4:8] = 0
    rule = OfficialPanopticInference(thing_ids=THINGS)
    _, info = call(rule, logits, [2, 2, 3])
    assert [(s["category_id"], s["area"]) for s in info] == [(2, 16), (3, 32)]
    _, info = call(make_rule(), logits, [2, 2, 3])
    assert [(s["category_id"], s["area"]) for s in info] == [(2, 32), (3, 16)]


def test_official_rule_has_no_overlap_threshold(cfg):
    cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE = "OfficialPanopticInference"
    assert isinstance(build_panoptic_inference(cfg, [0]), OfficialPanopticInference)
    cfg.MODEL.DETR.TEST.OVERLAP_THRESH = 0.5
    with pytest.raises(UserError, match="OVERLAP_THRESH is 0.5.*OfficialPanopticInference"):
        build_panoptic_inference(cfg, [0])


def test_padding_has_no_say():
    logits = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
    frame = Frame((32, 32), (16, 20), (16, 20))
    before, info = call(make_rule(), logits, [0, 1, 2], frame)
    # Cells that reach no pixel of the image.
    changed = logits.clone()
    changed[2, 5:, :] = 100
    changed[2, :, 6:] = 100
    after, info_after = call(make_rule(), changed, [0, 1, 2], frame)
    assert torch.equal(before, after)
    assert info == info_after


def test_large_outputs_go_through_in_strips(monkeypatch):
    from detr_panoptic_d2.modeling import mask_ops

    logits = torch.randn(4, 9, 7, generator=torch.Generator().manual_seed(2))
    frame = Frame((36, 28), (33, 27), (50, 41))
    rule = make_rule(overlap_thresh=0.4)
    whole = call(rule, logits, [0, 2, 1, 2], frame)
    monkeypatch.setattr(mask_ops, "_VALUES_PER_STRIP", {"cpu": 300, "cuda": 300})
    ids, info = call(rule, logits, [0, 2, 1, 2], frame)
    assert torch.equal(ids, whole[0])
    assert info == whole[1]


@pytest.mark.parametrize(
    "option, value, key",
    [
        ("score_thresh", 1.5, "SCORE_THRESH"),
        ("overlap_thresh", -0.1, "OVERLAP_THRESH"),
        ("min_segment_area", -1, "MIN_SEGMENT_AREA"),
    ],
)
def test_bad_options_are_named(option, value, key):
    with pytest.raises(ValueError, match=f"MODEL.DETR.TEST.{key} .*{value}"):
        make_rule(**{option: value})


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_detr_panoptic_config(cfg)
    return cfg


def test_official_values_are_the_default(cfg):
    rule = build_panoptic_inference(cfg, [])
    assert (rule.score_thresh, rule.min_segment_area, rule.overlap_thresh) == (0.85, 4, 0.0)


def test_unknown_rule_names_those_there_are(cfg):
    cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE = "Nothing"
    with pytest.raises(UserError, match="PANOPTIC_INFERENCE is 'Nothing'.*DETRPanopticInference"):
        build_panoptic_inference(cfg, [])


def test_own_rule_by_its_name(cfg):
    @PANOPTIC_INFERENCE_REGISTRY.register()
    class CountingRule(DETRPanopticInference):
        """Says how many queries it was given."""

        def forward(self, mask_logits, scores, labels, frame):
            return super().forward(mask_logits, scores, labels, frame)[0], len(labels)

    try:
        cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE = "CountingRule"
        rule = build_panoptic_inference(cfg, [0])
        assert call(rule, torch.zeros(2, 4, 4), [0, 1])[1] == 2
    finally:
        del PANOPTIC_INFERENCE_REGISTRY._obj_map["CountingRule"]
