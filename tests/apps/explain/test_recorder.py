import pytest
import torch
from torch import nn

from detr_panoptic_d2.apps.explain import captured_inputs, record


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
    outputs = []
    handle = layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    with captured_inputs(layer) as calls:
        recording = record(model, images(make_input))
    handle.remove()
    value = calls[0][2]
    call = recording.decoder[-1]
    for i in range(2):
        rows = torch.arange(call.query.shape[1])
        weights = call.weights(i, rows)
        c = value.shape[-1]
        v = value[i] @ layer.in_proj_weight[2 * c :].T + layer.in_proj_bias[2 * c :]
        heads = v.unflatten(-1, (layer.nheads, -1)).transpose(0, 1)
        out = layer.out_proj((weights @ heads).transpose(0, 1).flatten(1))
        torch.testing.assert_close(out, outputs[0][i], rtol=1e-4, atol=1e-5)
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


def test_another_hook(tiny_model, make_input):
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


def test_wrong_models(tiny_model, make_input):
    model = tiny_model()
    with pytest.raises(ValueError, match="eval"):
        record(model.train(), [make_input(32, 32)])
    boxes = tiny_model("MODEL.MASK_ON", False, "MODEL.DETR.TEST.PANOPTIC_ON", False)
    with pytest.raises(ValueError, match="MODEL.MASK_ON"):
        record(boxes, [make_input(32, 32)])
