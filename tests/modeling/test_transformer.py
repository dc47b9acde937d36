import pytest
import torch
from torch.nn import functional as F

from detr_panoptic_d2.modeling.transformer import Transformer

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


def plain_attention(a, query, key, value, padding=None):
    """The formula head by head, with the parameters of an ``nn.MultiheadAttention``."""
    weights, biases = a.in_proj_weight.chunk(3), a.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, w, b).chunk(HEADS, dim=-1)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    heads = []
    for m in range(HEADS):
        scores = q[m] @ k[m].transpose(1, 2) / (DIM / HEADS) ** 0.5
        if padding is not None:
            scores = scores.masked_fill(padding[:, None], float("-inf"))
        heads.append(scores.softmax(-1) @ v[m])
    return a.out_proj(torch.cat(heads, dim=-1))


def plain_transformer(t, src, padding, query_embed, pos, pre_norm):
    """DETR's transformer as in the paper. Returns hs of all layers and memory."""
    x, pos = (a.flatten(2).transpose(1, 2) for a in (src, pos))
    mask = None if padding is None else padding.flatten(1)

    def block(layer, number, x, sublayer):
        norm = getattr(layer, f"norm{number}")
        return x + sublayer(norm(x)) if pre_norm else norm(x + sublayer(x))

    def feed_forward(layer):
        return lambda y: layer.linear2(F.relu(layer.linear1(y)))

    def attend(attention, where, key=None, value=None, mask=None):
        def sublayer(y):
            q = y + where
            return plain_attention(
                attention, q, q if key is None else key, y if value is None else value, mask
            )

        return sublayer

    for layer in t.encoder.layers:
        x = block(layer, 1, x, attend(layer.self_attn, pos, mask=mask))
        x = block(layer, 2, x, feed_forward(layer))
    memory = t.encoder.norm(x) if pre_norm else x
    where = query_embed[None].repeat(len(src), 1, 1)
    x, outputs = torch.zeros_like(where), []
    for layer in t.decoder.layers:
        x = block(layer, 1, x, attend(layer.self_attn, where))
        x = block(layer, 2, x, attend(layer.multihead_attn, where, memory + pos, memory, mask))
        x = block(layer, 3, x, feed_forward(layer))
        outputs.append(t.decoder.norm(x))
    return torch.stack(outputs), memory.transpose(1, 2).reshape(src.shape)


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
