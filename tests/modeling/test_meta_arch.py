"""PanopticDETR as a user meets it: training losses, gradients, checkpoints and its parts' names."""

import copy

import pytest
import torch

RESNET = (
    *("MODEL.BACKBONE.NAME", "build_detr_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", 2),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.RESNETS.RES5_DILATION", 1, "MODEL.RESNETS.NORM", "FrozenBN"),
)
BOXES = (
    *("MODEL.MASK_ON", False, "MODEL.DETR.TEST.PANOPTIC_ON", False),
    *("MODEL.DETR.TEST.INSTANCE_ON", True),
)
LOSSES = {"loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice"}
AUXILIARY = {"loss_ce_0", "loss_bbox_0", "loss_giou_0"}


@pytest.fixture
def batch(make_input):
    """Two images of different sizes with truth."""
    return [make_input(64, 48, [0, 3, 4]), make_input(48, 56, [1], seed=1)]


def train(model, batch):
    """Losses of one batch after the backward pass of their sum."""
    model.train()
    losses = model(batch)
    sum(losses.values()).backward()
    return losses


def check_gradients(model):
    """A gradient for what is to be trained, and for nothing else."""
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        assert p.grad is None or p.grad.isfinite().all(), name


def test_losses_are_named_weighted_and_their_sum_is_the_total(tiny_model, batch):
    losses = train(tiny_model("MODEL.DETR.DROPOUT", 0.0), batch)
    assert set(losses) == LOSSES | AUXILIARY
    assert all(loss.shape == () and loss.isfinite() and loss > 0 for loss in losses.values())
    # Matching costs that are all doubled give the same matches.
    weights = {"CLASS": 4.0, "L1": 10.0, "GIOU": 4.0, "MASK": 60.0, "DICE": 5.0}
    options = [x for key, w in weights.items() for x in (f"MODEL.DETR.{key}_WEIGHT", w)]
    other = train(tiny_model("MODEL.DETR.DROPOUT", 0.0, *options), batch)
    factor = {"loss_mask": 3.0, "loss_dice": 0.5}
    for name, loss in losses.items():
        assert other[name].item() == pytest.approx(factor.get(name, 2) * loss.item(), rel=1e-4)


@pytest.mark.parametrize("layers, deep", [(1, True), (3, False)])
def test_auxiliary_losses(tiny_model, batch, layers, deep):
    model = tiny_model("MODEL.DETR.DEC_LAYERS", layers, "MODEL.DETR.DEEP_SUPERVISION", deep)
    losses = train(model, batch)
    auxiliary = {f"loss_{k}_{i}" for k in ("ce", "bbox", "giou") for i in range(layers - 1)}
    assert set(losses) == LOSSES | (auxiliary if deep else set())


@pytest.mark.parametrize("pre_norm", [False, True])
def test_gradients_reach_every_parameter_and_no_frozen_one(tiny_model, batch, pre_norm):
    model = tiny_model(*RESNET, "MODEL.DETR.PRE_NORM", pre_norm, "MODEL.DETR.DROPOUT", 0.0)
    with torch.no_grad():
        # Biases start at 0, which leaves some products with nothing to learn at first.
        for p in model.transformer.parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.1)
    train(model, batch)
    check_gradients(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[1] for name in frozen} == {"stem", "res2"}
    stem = [
        n for n, _ in model.named_parameters() if n.startswith(("backbone.stem", "backbone.res2"))
    ]
    assert frozen == set(stem)
    # The queries' content starts at 0, the same for all: the first self-attention has no choice.
    first = "transformer.decoder.layers.0."
    starts = {"norm1.weight"} if pre_norm else {"self_attn.in_proj_weight"}
    trained = {name: p.grad.abs().max() for name, p in model.named_parameters() if p.requires_grad}
    idle = {name for name, gradient in trained.items() if gradient < 1e-4}
    # Where a group norm has one channel per group it takes away what the bias adds.
    idle -= {f"mask_head.lay{i}.bias" for i in (2, 3, 4, 5)}
    assert idle == {first + name for name in starts}


def test_freeze_detector_trains_the_mask_parts_alone(tiny_model, batch, make_input):
    model = tiny_model("MODEL.DETR.FREEZE_DETECTOR", True)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    losses = train(model, batch)
    assert set(losses) == {"loss_mask", "loss_dice"}
    check_gradients(model)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"bbox_attention", "mask_head"}
    parts = (*model.bbox_attention.parameters(), *model.mask_head.parameters())
    assert all(p.requires_grad and p.grad.any() for p in parts)
    losses = train(model, [make_input(32, 40, [])])
    assert set(losses) == {"loss_mask", "loss_dice"}
    assert all(loss == 0 for loss in losses.values())
    assert any("running_mean" in name for name in statistics)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, statistics[name]), name


def test_norms_of_a_part_that_the_user_freezes_stay_in_eval_mode(tiny_model, batch):
    model = tiny_model()
    stages = [model.backbone.res3, model.backbone.res4]
    stages[0].requires_grad_(False)
    before = [copy.deepcopy(stage.state_dict()) for stage in stages]
    train(model, batch)
    changed = [
        {name for name, x in stage.state_dict().items() if not torch.equal(x, state[name])}
        for stage, state in zip(stages, before, strict=True)
    ]
    assert not changed[0] and changed[1]


@pytest.mark.parametrize("stage", [(), BOXES], ids=["masks", "boxes"])
def test_levels_that_are_not_used_are_frozen(tiny_model, make_input, stage):
    """Distributed training waits for a gradient of every trainable parameter."""
    fpn = ("MODEL.DETR.BACKBONE.MODEL_NAME", "build_retinanet_resnet_fpn_backbone")
    fpn += ("MODEL.DETR.BACKBONE.FEATURES", ["p3", "p4", "p5", "p6"], "MODEL.FPN.OUT_CHANNELS", 16)
    fpn += ("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.RESNETS.NORM", "BN")
    name = ("MODEL.BACKBONE.NAME", "build_renamed_backbone")
    model = tiny_model(*RESNET, *fpn, *name, *stage)
    train(model, [make_input(64, 64, [0, 3], masks=not stage)])
    check_gradients(model)
    frozen = {n.split(".")[2] for n, p in model.named_parameters() if not p.requires_grad}
    # p6, the last level, is made of the ResNet's res5.
    pyramid = {f"fpn_{kind}{i}" for kind in ("lateral", "output") for i in (3, 4, 5)}
    assert frozen == {"bottom_up", "top_block"} | (pyramid if stage else set())


def test_images_without_segments(tiny_model, make_input):
    model = tiny_model()
    losses = train(model, [make_input(40, 32, []), make_input(40, 40, [], seed=1)])
    assert set(losses) == LOSSES | AUXILIARY
    check_gradients(model)
    assert all(loss == 0 for name, loss in losses.items() if "loss_ce" not in name)
    assert losses["loss_ce"] > 0 and losses["loss_ce"].isfinite()


@pytest.mark.parametrize("kinds", ["t", "s", "sss", "tst"])
def test_one_class_things_only_and_stuff_only(tiny_model, make_input, class_set, kinds):
    name = class_set(kinds)
    options = ("DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)")
    outputs = ("MODEL.DETR.TEST.INSTANCE_ON", True, "MODEL.DETR.TEST.SEMANTIC_ON", True)
    model = tiny_model(*options, *outputs)
    assert model.num_classes == len(kinds)
    assert model.class_embed.out_features == len(kinds) + 1
    truth = [*range(len(kinds)), 0]
    train(model, [make_input(40, 48, truth), make_input(48, 40, [], seed=1)])
    check_gradients(model)
    (result,) = model.eval()([make_input(40, 48)])
    ids, info = result["panoptic_seg"]
    things = {i for i, kind in enumerate(kinds) if kind == "t"}
    assert info
    for segment in info:
        assert segment["isthing"] is (segment["category_id"] in things)
    assert set(result["instances"].pred_classes.tolist()) <= things
    assert bool(things) == bool(len(result["instances"]))
    assert result["sem_seg"].shape == (len(kinds), 40, 48)


def test_boxes_alone(tiny_model, make_input):
    model = tiny_model(*BOXES)
    assert model.mask_head is None and model.bbox_attention is None
    batch = [make_input(40, 48, [0, 3], masks=False), make_input(48, 40, [], masks=False, seed=1)]
    losses = train(model, batch)
    assert set(losses) == {"loss_ce", "loss_bbox", "loss_giou"} | AUXILIARY
    check_gradients(model)
    (result,) = model.eval()([make_input(40, 48, height=80, width=60)])
    assert set(result) == {"instances"}
    instances = result["instances"]
    assert instances.image_size == (80, 60)
    assert set(instances.get_fields()) == {"pred_boxes", "scores", "pred_classes"}
    assert len(instances) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_full_precision_boxes_classes_and_losses(tiny_model, batch, dtype):
    model = tiny_model("MODEL.DETR.DROPOUT", 0.0).train()
    exact = model(batch)
    with torch.autocast("cpu", dtype=dtype):
        losses = model(batch)
        detections = model.detect(model.preprocess(batch))
    sum(losses.values()).backward()
    check_gradients(model)
    for predicted in (detections.pred_logits, detections.pred_boxes):
        assert predicted.dtype == torch.float32
        assert (predicted != predicted.to(dtype)).float().mean() > 0.9
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        box = name.startswith(("loss_bbox", "loss_giou"))
        bound = torch.finfo(dtype).eps * (0.25 if box else 4)
        assert loss.item() == pytest.approx(exact[name].item(), rel=bound), name
    model.semantic_on = True
    # The constant of the attention maps is larger than the largest float16.
    model.mask_head.attention_scale.fill_(1e5)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        (result,) = model.eval()([{**batch[0], "instances": None}])
        detections = model.detect(model.preprocess(batch[:1]))
        detections.hs.mul_(30)
        masks = model.predict_masks(detections, torch.zeros(8).long(), torch.arange(8))
    assert result["panoptic_seg"][0].dtype == torch.int32
    assert (result["sem_seg"] != result["sem_seg"].to(dtype)).float().mean() > 0.9
    assert masks.isfinite().all()


def count_pairs(model):
    """A list to which the number of (image, query) pairs of every mask head call is appended."""
    counts = []
    model.mask_head.register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[1])))
    return counts


def test_training_computes_masks_of_matched_queries_only(tiny_model, batch, make_input):
    model = tiny_model()
    counts = count_pairs(model)
    train(model, [*batch, make_input(48, 48, [], seed=2)])
    assert counts == [4]


def test_inference_computes_masks_of_kept_queries_only(tiny_model, make_input):
    model = tiny_model("MODEL.DETR.TEST.SCORE_THRESH", 0.95)
    counts = count_pairs(model)
    inputs = [make_input(48, 64, seed=i) for i in range(2)]
    with torch.no_grad():
        logits = model.detect(model.preprocess(inputs)).pred_logits[-1]
    kept = model.panoptic_inference.keep(logits)
    assert 0 < kept.sum() < kept.numel()
    model(inputs)
    assert counts == [int(kept.sum())]
    # Instances come from all queries that are things; what both want is computed once.
    model.instance_on = True
    counts.clear()
    model(inputs)
    labels = logits.argmax(-1)
    things = labels <= 2
    assert counts == [int((kept | things).sum())]


def test_output_contract(tiny_model, make_input):
    options = ("MODEL.DETR.TEST.INSTANCE_ON", True, "MODEL.DETR.TEST.SEMANTIC_ON", True)
    inputs = [make_input(40, 48), make_input(40, 48, height=61, width=33, seed=1)]
    every = tiny_model(*options)(inputs)
    results = tiny_model(*options, "TEST.DETECTIONS_PER_IMAGE", 2)(inputs)
    assert len(every[0]["instances"]) > 2
    for result, whole, size in zip(results, every, [(40, 48), (61, 33)], strict=True):
        assert not any(t.requires_grad for t in (result["panoptic_seg"][0], result["sem_seg"]))
        ids, info = result["panoptic_seg"]
        assert ids.dtype == torch.int32 and tuple(ids.shape) == size
        assert {s["category_id"] <= 2 for s in info} == {True, False}
        for segment in info:
            assert set(segment) == {"id", "isthing", "category_id", "area", "score"}
            assert segment["isthing"] is (segment["category_id"] <= 2)
            assert segment["area"] == int((ids == segment["id"]).sum())
        semantic = result["sem_seg"]
        assert semantic.dtype == torch.float32 and tuple(semantic.shape) == (5, *size)
        assert (semantic >= 0).all() and semantic.any()
        instances = result["instances"]
        assert instances.image_size == size
        assert torch.equal(instances.scores, whole["instances"].scores[:2])
        assert instances.pred_masks.dtype == torch.bool
        assert tuple(instances.pred_masks.shape) == (len(instances), *size)
        assert instances.pred_boxes.tensor.shape == (len(instances), 4)
        assert set(instances.pred_classes.tolist()) <= {0, 1, 2}
        assert (instances.scores.diff() <= 0).all()
        x1, y1, x2, y2 = instances.pred_boxes.tensor.unbind(1)
        assert (x1 >= 0).all() and (x1 <= x2).all() and (x2 <= size[1]).all()
        assert (y1 >= 0).all() and (y1 <= y2).all() and (y2 <= size[0]).all()


def test_semantic_scores_are_those_of_all_queries(tiny_model, make_input):
    """Also if no query is kept; then the panoptic map is void (trap 5)."""
    options = ("MODEL.DETR.TEST.SEMANTIC_ON", True, "MODEL.DETR.TEST.SCORE_THRESH", 1.0)
    model, x = tiny_model(*options), make_input(40, 48)
    (result,) = model([x])
    with torch.no_grad():
        detections = model.detect(model.preprocess([x]))
        masks = model.predict_masks(detections, torch.zeros(8, dtype=torch.long), torch.arange(8))
    masks = torch.nn.functional.interpolate(masks[None], (40, 48), mode="bilinear")[0].sigmoid()
    probabilities = detections.pred_logits[-1, 0].softmax(-1)[:, :-1]
    expected = (probabilities[:, :, None, None] * masks[:, None]).sum(0)
    torch.testing.assert_close(result["sem_seg"], expected, rtol=1e-4, atol=1e-5)
    ids, info = result["panoptic_seg"]
    assert info == [] and not ids.any() and tuple(ids.shape) == (40, 48)


def test_a_mixed_batch_gives_what_single_images_give(tiny_model, make_input):
    """Trap 1."""
    options = ("MODEL.DETR.TEST.INSTANCE_ON", True, "MODEL.DETR.TEST.SEMANTIC_ON", True)
    # In float64, where kernels of other batch sizes do not round differently.
    model = tiny_model(*options).double()
    batch = [make_input(*size, seed=i) for i, size in enumerate([(48, 64), (80, 40), (48, 64)])]
    for x, together in zip(batch, model(batch), strict=True):
        (alone,) = model([x])
        torch.testing.assert_close(together["sem_seg"], alone["sem_seg"])
        a, b = together["instances"], alone["instances"]
        torch.testing.assert_close(a.scores, b.scores)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.pred_classes, b.pred_classes)
        ids, info = together["panoptic_seg"]
        assert torch.equal(ids, alone["panoptic_seg"][0])
        assert info == alone["panoptic_seg"][1]


def test_padded_batch_crops_before_it_resizes(tiny_model, make_input):
    options = ("MODEL.DETR.TEST.PAD_MIXED_SIZES", True, "MODEL.DETR.TEST.SCORE_THRESH", 0.0)
    model = tiny_model(*options, "MODEL.DETR.TEST.MIN_SEGMENT_AREA", 0)
    batch = [make_input(40, 72, height=31, width=97), make_input(64, 50, seed=1)]
    result = model(batch)[0]["panoptic_seg"]
    with torch.no_grad():
        images = model.preprocess(batch)
        detections = model.detect(images)
        queries = torch.arange(8)
        masks = model.predict_masks(detections, torch.zeros(8, dtype=torch.long), queries)
    labels = detections.pred_logits[-1, 0].argmax(-1)
    up = torch.nn.functional.interpolate(masks[None], (64, 72), mode="bilinear")[0]
    rows, columns = ((torch.arange(n) * 2 + 1) * s // (2 * n) for n, s in ((31, 40), (97, 72)))
    classes = labels[up[:, rows][:, :, columns].argmax(0)]
    ids, info = result
    found = torch.tensor([-1] + [s["category_id"] for s in info])[ids.long()]
    assert (found == classes).float().mean() > 0.999
