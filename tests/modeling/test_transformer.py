import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detr_panoptic_d2.modeling import Transformer
from detr_panoptic_d2.modeling.transformer import (
    MultiheadAttention,
)

DIM, HEADS, FEEDFORWARD = 16, 4, 24
GRID, QUERIES = (3, 5), 6


def randomise(module):
    """Random values for all parameters: no bias or norm is left at the identity."""
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.3
    return module


def make_transformer(pre_norm=False, **kwargs):
    kwargs = dict(enc_layers=2, dec_layers=3, dropout=0.0) | kwargs
    transformer = Transformer(
        hidden_dim=DIM, nheads=HEADS, dim_feedforward=FEEDFORWARD, pre_norm=pre_norm, **kwargs
    )
    return randomise(transformer.double())


def torch_attention(ours):
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    return theirs


@pytest.fixture
def inputs():
    """src, padding (of the second of two images), query_embed, pos."""
    generator = torch.Generator().manual_seed(0)
    src, pos = torch.randn(2, 2, DIM, *GRID, generator=generator, dtype=torch.float64)
    queries = torch.randn(QUERIES, DIM, generator=generator, dtype=torch.float64)
    padding = torch.zeros(2, *GRID, dtype=torch.bool)
    padding[1, 2:] = True
    padding[1, :, 3:] = True
    return src, padding, queries, pos


@pytest.fixture
def tokens(inputs):
    """Cells B x S x C, their positions, padding B x S, queries B x N x C."""
    src, padding, queries, pos = inputs
    cells, pos = (x.flatten(2).transpose(1, 2).contiguous() for x in (src, pos))
    generator = torch.Generator().manual_seed(5)
    queries = queries + torch.randn(2, QUERIES, DIM, generator=generator, dtype=torch.float64)
    return cells, pos, padding.flatten(1), queries


def plain_block(layer, x, norm, sublayer, pre_norm):
    """Residual block around a sublayer, norm before or after; the norms are ``nn.LayerNorm``."""
    norm = getattr(layer, norm)
    return x + sublayer(norm(x)) if pre_norm else norm(x + sublayer(x))


def plain_transformer(t, src, padding, query_embed, pos, pre_norm):
    """DETR's transformer out of ``nn.MultiheadAttention``. Returns hs of all layers and memory."""
    x, pos = (a.flatten(2).transpose(1, 2) for a in (src, pos))
    mask = None if padding is None else padding.flatten(1)

    def feed_forward(layer):
        return lambda y: layer.linear2(F.relu(layer.linear1(y)))

    for layer in t.encoder.layers:
        attention = torch_attention(layer.self_attn)
        x = plain_block(
            layer,
            x,
            "norm1",
            lambda y, a=attention: a(y + pos, y + pos, y, key_padding_mask=mask)[0],
            pre_norm,
        )
        x = plain_block(layer, x, "norm2", feed_forward(layer), pre_norm)
    memory = t.encoder.norm(x) if pre_norm else x
    where = query_embed[None].repeat(len(src), 1, 1)
    x, outputs = torch.zeros_like(where), []
    for layer in t.decoder.layers:
        own, cross = torch_attention(layer.self_attn), torch_attention(layer.multihead_attn)
        x = plain_block(layer, x, "norm1", lambda y, a=own: a(y + where, y + where, y)[0], pre_norm)
        x = plain_block(
            layer,
            x,
            "norm2",
            lambda y, a=cross: a(y + where, memory + pos, memory, key_padding_mask=mask)[0],
            pre_norm,
        )
        x = plain_block(layer, x, "norm3", feed_forward(layer), pre_norm)
        outputs.append(t.decoder.norm(x))
    return torch.stack(outputs), memory.transpose(1, 2).reshape(src.shape)


# Attention


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_attention_equals_torch_with_gradients(tokens, kind, padded):
    cells, pos, padding, queries = tokens
    padding = padding if padded else None
    ours = randomise(MultiheadAttention(DIM, HEADS, dropout=0.0).double())
    key = cells + pos
    query = key if kind == "self" else queries
    theirs = torch_attention(ours)
    expected, expected_weights = theirs(
        query, key, cells, key_padding_mask=padding, average_attn_weights=False
    )
    out = ours(query, key, cells, padding)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(ours.attention_weights(query, key, padding), expected_weights)
    for a in (ours, theirs):
        a.zero_grad()
    out.square().sum().backward()
    expected.square().sum().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_attention_weights_are_those_that_forward_applies(tokens):
    cells, pos, padding, queries = tokens
    attention = randomise(MultiheadAttention(DIM, HEADS, dropout=0.5).double()).eval()
    weights = attention.attention_weights(queries, cells + pos, padding)
    assert weights.shape == (2, HEADS, QUERIES, cells.shape[1])
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert weights.masked_select(padding[:, None, None]).eq(0).all()
    value = F.linear(cells, attention.in_proj_weight[2 * DIM :], attention.in_proj_bias[2 * DIM :])
    heads = [
        weights[:, m] @ value[..., m * DIM // HEADS : (m + 1) * DIM // HEADS] for m in range(HEADS)
    ]
    out = attention.out_proj(torch.cat(heads, -1))
    torch.testing.assert_close(attention(queries, cells + pos, cells, padding), out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_over_nothing_but_padding_is_finite(tokens, dtype):
    """Trap 13: the softmax of a row of -inf is NaN."""
    cells, _, padding, queries = tokens
    cells, queries = cells.to(dtype), queries.to(dtype).requires_grad_()
    padding = padding.clone()
    padding[1] = True
    attention = randomise(MultiheadAttention(DIM, HEADS, dropout=0.0).to(dtype))
    out = attention(queries, cells, cells, padding)
    assert out.isfinite().all()
    out.sum().backward()
    assert queries.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in attention.parameters())
    alone = attention(queries[:1], cells[:1], cells[:1], padding[:1])
    torch.testing.assert_close(out[:1], alone)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="HIDDEN_DIM is 16.*NHEADS, which is 5"):
        MultiheadAttention(16, 5, 0.0)


# Layers


# The whole


@pytest.mark.parametrize("pre_norm", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_transformer_equals_the_plain_one_with_gradients(inputs, pre_norm, padded):
    src, padding, queries, pos = inputs
    padding = padding if padded else None
    transformer = make_transformer(pre_norm)
    leaves = [x.requires_grad_() for x in (src, queries, pos)]
    hs, memory = transformer(src, padding, queries, pos, return_intermediate=True)
    expected_hs, expected = plain_transformer(transformer, src, padding, queries, pos, pre_norm)
    assert hs.shape == (3, 2, QUERIES, DIM) and memory.shape == src.shape
    torch.testing.assert_close(hs, expected_hs)
    torch.testing.assert_close(memory, expected)
    shape = torch.Generator().manual_seed(3)
    direction = torch.randn(hs.shape, generator=shape, dtype=hs.dtype)
    grads = torch.autograd.grad((hs * direction).sum(), leaves)
    references = torch.autograd.grad((expected_hs * direction).sum(), leaves)
    for grad, reference in zip(grads, references, strict=True):
        torch.testing.assert_close(grad, reference)


def test_a_padded_image_gives_what_it_gives_alone(inputs):
    src, padding, queries, pos = inputs
    transformer = make_transformer()
    hs, memory = transformer(src, padding, queries, pos, return_intermediate=True)
    part = (slice(1, 2), slice(None), slice(0, 2), slice(0, 3))
    alone, cropped = transformer(src[part], None, queries, pos[part], return_intermediate=True)
    torch.testing.assert_close(hs[:, 1:], alone)
    torch.testing.assert_close(memory[part], cropped)


def test_a_fully_padded_image_is_finite_and_leaves_the_other_alone(inputs):
    """Trap 13."""
    src, padding, queries, pos = inputs
    expected, _ = make_transformer()(*inputs, return_intermediate=True)
    padding[1] = True
    src.requires_grad_()
    transformer = make_transformer()
    hs, memory = transformer(src, padding, queries, pos, return_intermediate=True)
    assert hs.isfinite().all() and memory.isfinite().all()
    torch.testing.assert_close(hs[:, 0], expected[:, 0])
    (hs.square().sum() + memory.square().sum()).backward()
    assert src.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in transformer.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_neither_values_nor_gradients(inputs, dropout):
    results, calls = [], []
    for use in (False, True):
        transformer = make_transformer(checkpoint_encoder=use, dropout=dropout).train()
        count = []
        transformer.encoder.layers[0].register_forward_pre_hook(lambda *_, c=count: c.append(1))
        torch.manual_seed(0)
        src = inputs[0].clone().requires_grad_()
        hs, _ = transformer(src, *inputs[1:], return_intermediate=True)
        hs.square().sum().backward()
        grads = {name: p.grad for name, p in transformer.named_parameters()}
        results.append((hs.detach(), src.grad, grads))
        calls.append(len(count))
    torch.testing.assert_close(results[1], results[0])
    assert calls == [1, 2], "checkpointing runs a layer again in the backward pass"


def test_dropout_acts_in_training_only(inputs):
    transformer = make_transformer(dropout=0.5)
    expected, _ = make_transformer()(*inputs, return_intermediate=True)
    torch.manual_seed(0)
    first, _ = transformer.train()(*inputs, return_intermediate=True)
    second, _ = transformer(*inputs, return_intermediate=True)
    assert not torch.allclose(first, second)
    out, _ = transformer.eval()(*inputs, return_intermediate=True)
    torch.testing.assert_close(out, expected)


def test_a_decoder_without_layers_is_refused():
    with pytest.raises(ValueError, match="DEC_LAYERS.*0"):
        Transformer(hidden_dim=DIM, nheads=HEADS, dec_layers=0)
