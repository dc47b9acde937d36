"""The panoptic inference hook and the resizing below it, on mask logits made by hand."""

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
    Frame,
    build_panoptic_inference,
)

# Classes 0 and 1 are things, 2 and 3 are stuff; 4 is no-object.
THINGS, CLASSES = [0, 1], 4


def make_hook(**options):
    return DETRPanopticInference(thing_ids=THINGS, num_classes=CLASSES, **options)


def plain(height, width):
    """A frame in which nothing is padded or resized."""
    return Frame((height, width), (height, width), (height, width))


def owned(owner):
    """Mask logits Q x h x w: 5 for the query that an integer map names, -5 for the others."""
    owner = torch.as_tensor(owner)
    masks = F.one_hot(owner, int(owner.max()) + 1).permute(2, 0, 1)
    return masks.float() * 10 - 5


def call(hook, logits, labels, frame=None, scores=None):
    scores = [0.9] * len(labels) if scores is None else scores
    frame = plain(*logits.shape[-2:]) if frame is None else frame
    return hook(logits, torch.tensor(scores), torch.tensor(labels, dtype=torch.long), frame)


def test_ids_areas_and_classes():
    owner = torch.zeros(12, 12, dtype=torch.long)
    owner[6:] = 1
    owner[:4, :5] = 2
    ids, info = call(make_hook(), owned(owner), [2, 3, 1], scores=[0.875, 0.9375, 0.96875])
    assert ids.dtype == torch.int32
    assert torch.equal(ids.long(), owner + 1)
    assert info == [
        {"id": 1, "isthing": False, "category_id": 2, "area": 52, "score": 0.875},
        {"id": 2, "isthing": False, "category_id": 3, "area": 72, "score": 0.9375},
        {"id": 3, "isthing": True, "category_id": 1, "area": 20, "score": 0.96875},
    ]
    json.dumps(info)


def test_stuff_is_one_segment_and_things_are_not():
    owner = torch.arange(4).repeat_interleave(16).view(8, 8)
    ids, info = call(make_hook(), owned(owner), [2, 0, 2, 0], scores=[0.5, 0.625, 0.75, 0.875])
    assert [s["category_id"] for s in info] == [2, 0, 0]
    assert [s["area"] for s in info] == [32, 16, 16]
    assert info[0]["score"] == 0.75
    assert torch.equal(ids.long(), torch.tensor([1, 2, 1, 3])[owner])


@pytest.mark.parametrize("area, survives", [(4, False), (5, True)])
def test_least_area_is_exclusive(area, survives):
    owner = torch.zeros(8, 8, dtype=torch.long)
    owner.view(-1)[:area] = 1
    ids, info = call(make_hook(min_segment_area=4), owned(owner), [0, 1])
    assert len(info) == 1 + survives
    assert int((ids == 1).sum()) == 64 - area * survives


def test_area_counts_in_the_output_image():
    owner = torch.zeros(8, 8, dtype=torch.long)
    owner[:2, :2] = 1
    hook, logits = make_hook(min_segment_area=4), owned(owner)
    larger = Frame((8, 8), (8, 8), (16, 16))
    assert len(call(hook, logits, [0, 1])[1]) == 1
    assert [s["area"] for s in call(hook, logits, [0, 1], larger)[1]] == [240, 16]


def test_query_that_wins_nothing_has_no_segment():
    logits = owned(torch.zeros(6, 6, dtype=torch.long)).repeat(2, 1, 1)
    logits[1] -= 1
    _, info = call(make_hook(min_segment_area=0), logits, [0, 1])
    assert [s["category_id"] for s in info] == [0]


def test_small_segments_free_their_pixels_for_the_next_best():
    owner = torch.zeros(8, 8, dtype=torch.long)
    owner[4:] = 1
    owner[5, 5] = 2
    logits = owned(owner)
    logits[0, 5, 5], logits[1, 5, 5] = 1.0, 0.0
    ids, info = call(make_hook(), logits, [0, 1, 1])
    assert [s["area"] for s in info] == [33, 31]
    assert ids[5, 5] == 1


def test_everything_too_small_is_void():
    ids, info = call(make_hook(min_segment_area=100), owned(torch.arange(9).view(3, 3)), [0] * 9)
    assert info == [] and not ids.any()


def test_no_query():
    ids, info = call(make_hook(), torch.zeros(0, 4, 5), [], Frame((16, 20), (16, 20), (7, 9)))
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
    keep = make_hook().keep(probability.log()[None])
    assert keep.tolist() == [[True, False, False, True]]
    assert make_hook(score_thresh=0.0).keep(probability.log()[None]).tolist() == [
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
    ids, info = call(make_hook(), overlapping(), labels, scores=scores)
    assert [s["area"] for s in info] == [40, 50, 10]
    hook = make_hook(overlap_thresh=0.3)
    ids, info = call(hook, overlapping(), labels, scores=scores)
    assert [s["area"] for s in info] == [50, 50]
    assert torch.equal(
        ids, torch.tensor([2, 1], dtype=torch.int32).repeat_interleave(5).repeat(10, 1)
    )


def test_overlap_rule_keeps_one_of_two_copies():
    logits = torch.full((2, 10, 10), 2.0)
    logits[0, :, ::2] = 3.0
    logits[1, :, 1::2] = 3.0
    ids, info = call(make_hook(overlap_thresh=0.6), logits, [0, 0], scores=[0.9, 0.95])
    assert [s["area"] for s in info] == [100]
    assert info[0]["score"] == pytest.approx(0.95)
    assert (ids == 1).all()


def test_overlap_rule_takes_stuff_of_one_class_together():
    logits = torch.full((2, 10, 10), 2.0)
    logits[0, :, ::2] = 3.0
    logits[1, :, 1::2] = 3.0
    _, info = call(make_hook(overlap_thresh=0.9), logits, [2, 2])
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
    hook = make_hook(min_segment_area=0)
    ids, info = call(hook, logits, labels, Frame(size, size, output))
    assert [s["category_id"] for s in info] == labels
    assert np.array_equal(ids.numpy(), official(logits, size, output) + 1)


def test_padding_has_no_say():
    logits = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
    frame = Frame((32, 32), (16, 20), (16, 20))
    before, info = call(make_hook(), logits, [0, 1, 2], frame)
    # Cells that reach no pixel of the image.
    changed = logits.clone()
    changed[2, 5:, :] = 100
    changed[2, :, 6:] = 100
    after, info_after = call(make_hook(), changed, [0, 1, 2], frame)
    assert torch.equal(before, after)
    assert info == info_after


def test_large_outputs_go_through_in_strips(monkeypatch):
    from detr_panoptic_d2.modeling import mask_ops

    logits = torch.randn(4, 9, 7, generator=torch.Generator().manual_seed(2))
    frame = Frame((36, 28), (33, 27), (50, 41))
    hook = make_hook(overlap_thresh=0.4)
    whole = call(hook, logits, [0, 2, 1, 2], frame)
    monkeypatch.setattr(mask_ops, "_VALUES_PER_STRIP", {"cpu": 300, "cuda": 300})
    ids, info = call(hook, logits, [0, 2, 1, 2], frame)
    assert torch.equal(ids, whole[0])
    assert info == whole[1]


def test_half_precision_logits():
    logits = owned(torch.arange(4).repeat_interleave(16).view(8, 8))
    ids, info = call(make_hook(), logits, [0, 1, 2, 3])
    for dtype in (torch.float16, torch.bfloat16):
        other, other_info = call(make_hook(), logits.to(dtype), [0, 1, 2, 3])
        assert torch.equal(ids, other) and info == other_info


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
        make_hook(**{option: value})


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_detr_panoptic_config(cfg)
    return cfg


def test_hook_from_config(cfg):
    cfg.MODEL.DETR.NUM_CLASSES = 3
    cfg.MODEL.DETR.TEST.SCORE_THRESH = 0.25
    cfg.MODEL.DETR.TEST.MIN_SEGMENT_AREA = 9
    cfg.MODEL.DETR.TEST.OVERLAP_THRESH = 0.125
    hook = build_panoptic_inference(cfg, [1])
    assert isinstance(hook, DETRPanopticInference)
    assert (hook.num_classes, hook.score_thresh) == (3, 0.25)
    assert (hook.min_segment_area, hook.overlap_thresh) == (9, 0.125)
    assert set(hook.thing_ids) == {1}


def test_official_values_are_the_default(cfg):
    hook = build_panoptic_inference(cfg, [])
    assert (hook.score_thresh, hook.min_segment_area, hook.overlap_thresh) == (0.85, 4, 0.0)


def test_unknown_hook_names_those_there_are(cfg):
    cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE = "Nothing"
    with pytest.raises(UserError, match="PANOPTIC_INFERENCE is 'Nothing'.*DETRPanopticInference"):
        build_panoptic_inference(cfg, [])


def test_own_hook_by_its_name(cfg):
    @PANOPTIC_INFERENCE_REGISTRY.register()
    class CountingHook(DETRPanopticInference):
        """Says how many queries it was given."""

        def forward(self, mask_logits, scores, labels, frame):
            return super().forward(mask_logits, scores, labels, frame)[0], len(labels)

    try:
        cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE = "CountingHook"
        hook = build_panoptic_inference(cfg, [0])
        assert call(hook, torch.zeros(2, 4, 4), [0, 1])[1] == 2
    finally:
        del PANOPTIC_INFERENCE_REGISTRY._obj_map["CountingHook"]
