import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from detr_panoptic_d2.config import merged_cfg
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.modeling import mask_head
from detr_panoptic_d2.modeling.mask_head import (
    MASK_HEAD_REGISTRY,
    BoxAttentionMap,
    MaskHeadSmallConv,
    build_mask_head,
)

# Sizes of res5, res4, res3, res2.
PYRAMIDS = {
    "odd": [(3, 5), (5, 9), (10, 18), (20, 35)],
    "dilated res5": [(3, 5), (3, 5), (6, 9), (11, 18)],
    "no multiples": [(3, 4), (7, 9), (8, 30), (25, 31)],
    "smallest": [(1, 1), (1, 1), (1, 2), (2, 3)],
}
# Images of the batch and the image of each pair.
BATCHES = {
    "one image": (1, [0, 0, 0]),
    "different counts": (2, [0, 1, 1, 1]),
    "an image without pairs": (3, [0, 0, 2]),
    "any order": (3, [2, 0, 1, 0, 2]),
}
# hidden_dim, nheads, channels of res4, res3, res2, groups of the five norms.
WIDTHS = {
    "as DETR": (128, 8, [24, 16, 8], [8, 8, 8, 8, 8]),
    "narrow": (32, 4, [7, 5, 3], [4, 8, 8, 4, 2]),
}


def randomise(module, scale=0.3):
    """Random values for all parameters: no bias or norm is left at the identity."""
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        fan_in = p[0].numel() if p.dim() > 1 else 1
        p.data = torch.randn(p.shape, generator=generator) * (scale / fan_in**0.5)
    return module


def make_head(width="as DETR", dtype=torch.float32, **kwargs):
    hidden_dim, nheads, fpn_channels, _ = WIDTHS[width]
    head = MaskHeadSmallConv(
        hidden_dim=hidden_dim, nheads=nheads, fpn_channels=fpn_channels, **kwargs
    )
    return randomise(head, scale=1.0).to(dtype)


def make_inputs(width="as DETR", pyramid="odd", batch="different counts", dtype=torch.float32):
    hidden_dim, nheads, fpn_channels, _ = WIDTHS[width]
    sizes, (images, index) = PYRAMIDS[pyramid], BATCHES[batch]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    fpn = [random(images, c, *s) for c, s in zip(fpn_channels, sizes[1:], strict=True)]
    src_proj = random(images, hidden_dim, *sizes[0])
    attention = random(len(index), nheads, *sizes[0])
    return src_proj, attention, torch.tensor(index), fpn


def plain_head(head, groups, src_proj, attention, image_index, fpn_features):
    """DETR's mask head, pair by pair, as in the paper: nothing shared, nothing rearranged."""
    w = dict(head.named_parameters())

    def block(x, i):
        x = F.conv2d(x, w[f"lay{i}.weight"], w[f"lay{i}.bias"], padding=1)
        return F.relu(F.group_norm(x, groups[i - 1], w[f"gn{i}.weight"], w[f"gn{i}.bias"]))

    masks = []
    for maps, image in zip(attention, image_index.tolist(), strict=True):
        x = block(block(torch.cat([src_proj[image], maps])[None], 1), 2)
        for i, feature in enumerate(fpn_features, start=1):
            lateral = F.conv2d(feature[image][None], w[f"adapter{i}.weight"], w[f"adapter{i}.bias"])
            x = block(lateral + F.interpolate(x, size=lateral.shape[-2:], mode="nearest"), i + 2)
        masks.append(F.conv2d(x, w["out_lay.weight"], w["out_lay.bias"], padding=1)[0, 0])
    return torch.stack(masks)


def gradients(head, forward, src_proj, attention, image_index, fpn_features):
    """Gradients of a random projection of the masks at all inputs and parameters, by name."""
    leaves = {"src_proj": src_proj, "attention": attention}
    leaves |= {f"fpn{i}": f for i, f in enumerate(fpn_features)}
    leaves = {name: x.detach().clone().requires_grad_() for name, x in leaves.items()}
    fpn = [leaves[f"fpn{i}"] for i in range(3)]
    masks = forward(leaves["src_proj"], leaves["attention"], image_index, fpn)
    leaves |= dict(head.named_parameters())
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(masks.shape, generator=generator, dtype=masks.dtype)
    grads = torch.autograd.grad((masks * direction).sum(), list(leaves.values()))
    return dict(zip(leaves, grads, strict=True))


@pytest.fixture
def attention_inputs():
    """Two images, 5 queries, 3 x 4 cells; the second image is padded on two sides."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 5, 16, generator=generator)
    memory = torch.randn(2, 16, 3, 4, generator=generator)
    padding = torch.zeros(2, 3, 4, dtype=torch.bool)
    padding[1, 2:] = True
    padding[1, :, 3:] = True
    return queries, memory, padding


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_box_attention_equals_the_plain_formula(attention_inputs, padded):
    """Trap 8: one softmax over all heads and cells."""
    queries, memory, padding = attention_inputs
    padding = padding if padded else None
    module = randomise(BoxAttentionMap(16, 4), scale=2.0)
    q = module.q_linear(queries).view(2, 5, 4, 4)
    k = module.k_linear(memory.movedim(1, 3)).view(2, 3, 4, 4, 4)
    exponents = (torch.einsum("bnmd,bhwmd->bnmhw", q, k) / 4**0.5).exp()
    if padded:
        exponents = exponents * ~padding[:, None, None]
    maps = module(queries, memory, padding)
    torch.testing.assert_close(maps, exponents / exponents.sum((2, 3, 4), keepdim=True))
    assert maps.sum((3, 4)).std() > 0.01, "a softmax over cells gives all heads the same sum"


def test_box_attention_of_a_fully_padded_image_is_finite(attention_inputs):
    """Trap 13."""
    queries, memory, padding = attention_inputs
    module = randomise(BoxAttentionMap(16, 4), scale=2.0)
    expected = module(queries, memory, padding)[0]
    padding[1] = True
    queries.requires_grad_()
    maps = module(queries, memory, padding)
    torch.testing.assert_close(maps[0], expected)
    assert maps.isfinite().all()
    assert maps[1].eq(0).all()
    maps.square().sum().backward()
    assert queries.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("pyramid", "batch"),
    [(p, "any order") for p in PYRAMIDS] + [("odd", b) for b in BATCHES if b != "any order"],
)
def test_masks_equal_the_plain_head(pyramid, batch):
    head, inputs = make_head(), make_inputs(pyramid=pyramid, batch=batch)
    with torch.no_grad():
        masks = head(*inputs)
    assert masks.shape == (len(inputs[1]), *PYRAMIDS[pyramid][-1])
    assert masks.std() > 0.05
    expected = plain_head(head, WIDTHS["as DETR"][-1], *inputs)
    torch.testing.assert_close(masks, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "pyramid", "batch"),
    [("as DETR", "odd", "any order")]
    + [("narrow", "dilated res5", "one image"), ("narrow", "no multiples", "any order")],
)
def test_gradients_equal_those_of_the_plain_head(width, pyramid, batch):
    head = make_head(width, torch.float64)
    inputs = make_inputs(width, pyramid, batch, torch.float64)

    def plain(*args):
        return plain_head(head, WIDTHS[width][-1], *args)

    torch.testing.assert_close(gradients(head, head, *inputs), gradients(head, plain, *inputs))


def test_no_pairs_give_no_masks():
    src_proj, attention, index, fpn = make_inputs()
    masks = make_head()(src_proj, attention[:0], index[:0], fpn)
    assert masks.shape == (0, *PYRAMIDS["odd"][-1]) and masks.dtype == src_proj.dtype


def rows_seen(head):
    """A list that fills with the number of pairs that go through the first norm together."""
    seen = []
    head.gn1.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize("batch", ["one image", "any order"])
def test_chunks_and_checkpointing_change_neither_values_nor_gradients(batch, monkeypatch):
    inputs = make_inputs("narrow", batch=batch, dtype=torch.float64)
    kept = make_head("narrow", torch.float64)
    again = make_head("narrow", torch.float64, use_checkpoint=True)
    pairs = len(inputs[1])
    whole, seen = rows_seen(kept), rows_seen(again)
    expected = kept(*inputs)
    gradient = gradients(kept, kept, *inputs)
    for size, times in ((1, [1] * pairs), (2**30, [pairs])):
        monkeypatch.setitem(mask_head._TENSOR_BYTES, "cpu", size)
        for grad in (False, True):
            seen.clear()
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(again(*inputs), expected)
            assert seen == times
        seen.clear()
        torch.testing.assert_close(gradients(again, again, *inputs), gradient)
        assert sum(seen) == 2 * pairs, "every pair goes through the head twice"
    assert set(whole) == {pairs}, "in training without checkpointing there are no chunks"


@pytest.fixture
def cfg():
    return merged_cfg("", ["MODEL.DETR.HIDDEN_DIM", 32, "MODEL.DETR.NHEADS", 4])


@pytest.fixture
def shapes():
    channels = {"res2": 3, "res3": 5, "res4": 7, "res5": 9}
    return {name: ShapeSpec(channels=c, stride=4) for name, c in channels.items()}


@pytest.mark.parametrize("size, hidden_dim", [(64, 32), (224, 64)])
def test_automatic_scale_gives_attention_and_image_the_same_variance(size, hidden_dim):
    """At the start, and up to how much the maps differ from uniform ones."""
    options = ["MODEL.DEVICE", "cpu", "MODEL.DETR.HIDDEN_DIM", hidden_dim]
    options += ["INPUT.MIN_SIZE_TRAIN", (size,), "INPUT.MAX_SIZE_TRAIN", size]
    cfg = setup_cfg("shapes/tiny.yaml", [str(x) for x in options])
    torch.manual_seed(0)
    model = build_model(cfg)
    images = [{"image": torch.randint(0, 256, (3, size, size))} for _ in range(2)]
    with torch.no_grad():
        out = model.detect(model.preprocess(images))
        maps = model.bbox_attention(out.hs[-1], out.memory).flatten(0, 1)
    head = model.mask_head
    weight = head.lay1.weight.detach()
    assert 0.8 < weight[:, hidden_dim:].std() / weight[:, :hidden_dim].std() < 1.25
    attention = F.conv2d(maps * head.attention_scale, weight[:, hidden_dim:], padding=1)
    image = F.conv2d(out.src_proj, weight[:, :hidden_dim], padding=1)
    ratio = float(attention.square().mean() / image.square().mean())
    assert 1 / 8 < ratio < 8


def test_attention_scale_is_kept_in_checkpoints_and_1_without(cfg, shapes):
    """Files of other code bases and of earlier versions have the head but no scale."""
    cfg.MODEL.DETR.MASK_HEAD.ATTENTION_SCALE = 70.0
    head = build_mask_head(cfg, shapes)
    src_proj, attention, index, fpn = make_inputs("narrow")
    masks = head(src_proj, attention, index, fpn)
    state = head.state_dict()
    without = {name: tensor for name, tensor in state.items() if name != "attention_scale"}
    for weights, config_value, scale in ((without, "auto", 1), (state, None, 70)):
        cfg.MODEL.DETR.MASK_HEAD.ATTENTION_SCALE = config_value
        loaded = build_mask_head(cfg, shapes)
        loaded.load_state_dict(weights)
        assert loaded.attention_scale == scale
        torch.testing.assert_close(loaded(src_proj, attention * 70 / scale, index, fpn), masks)
    for value in (0.0, -1, "Auto", float("inf")):
        cfg.MODEL.DETR.MASK_HEAD.ATTENTION_SCALE = value
        with pytest.raises(ValueError, match="ATTENTION_SCALE is .*'auto'"):
            build_mask_head(cfg, shapes)


def test_a_users_head_is_built_by_its_name(cfg, shapes, monkeypatch):
    # A copy of the table, so that the name is free again afterwards.
    monkeypatch.setattr(MASK_HEAD_REGISTRY, "_obj_map", dict(MASK_HEAD_REGISTRY._obj_map))
    MASK_HEAD_REGISTRY.register(lambda cfg, shapes: nn.Conv2d(shapes["res2"].channels, 1, 1))
    cfg.MODEL.DETR.MASK_HEAD.NAME = "<lambda>"
    assert build_mask_head(cfg, shapes).in_channels == 3
