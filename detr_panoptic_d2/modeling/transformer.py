"""DETR's transformer and box head (Carion et al. 2020, section 3.2 and appendix A.3), batch first.

Shapes: B images, S = H * W cells of res5, N queries, C channels, L decoder layers.
"""

from typing import Any

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import check_value


class TransformerEncoderLayer(nn.Module):
    """Self-attention and feed-forward, with the norm after (DETR) or before each."""

    attentions: tuple[str, ...] = ("self_attn",)

    def __init__(
        self, hidden_dim: int, nheads: int, dim_feedforward: int, dropout: float, pre_norm: bool
    ):
        super().__init__()
        for name in self.attentions:
            attention = nn.MultiheadAttention(hidden_dim, nheads, dropout, batch_first=True)
            self.add_module(name, attention)
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        for i in range(1, len(self.attentions) + 2):
            self.add_module(f"norm{i}", nn.LayerNorm(hidden_dim))
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, src, pos, padding):
        """src, pos: B x S x C; padding: B x S bool or None. Returns B x S x C."""
        src = self._residual(src, self.norm1, lambda x: self._self_attention(x, pos, padding))
        return self._residual(src, self.norm2, self._feed_forward)

    def _residual(self, x, norm, block):
        if self.pre_norm:
            return x + self.dropout(block(norm(x)))
        return norm(x + self.dropout(block(x)))

    def _self_attention(self, x, pos, padding=None):
        q = x + pos
        return self.self_attn(q, q, x, padding, need_weights=False)[0]

    def _feed_forward(self, x):
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class TransformerDecoderLayer(TransformerEncoderLayer):
    """Self-attention of the queries, cross-attention to the memory, feed-forward."""

    attentions = ("self_attn", "multihead_attn")

    def forward(self, tgt, query_pos, memory, key, padding):
        """tgt, query_pos: B x N x C; memory, and key, which is memory with its position encoding:
        B x S x C; padding: B x S bool or None. Returns B x N x C."""

        def cross_attention(x):
            return self.multihead_attn(x + query_pos, key, memory, padding, need_weights=False)[0]

        tgt = self._residual(tgt, self.norm1, lambda x: self._self_attention(x, query_pos))
        tgt = self._residual(tgt, self.norm2, cross_attention)
        return self._residual(tgt, self.norm3, self._feed_forward)


class TransformerEncoder(nn.Module):
    """A stack of encoder layers; with pre-norm, a last norm."""

    def __init__(self, num_layers: int, use_checkpoint: bool, **layer: Any):
        super().__init__()
        self.layers = nn.ModuleList(TransformerEncoderLayer(**layer) for _ in range(num_layers))
        self.norm = nn.LayerNorm(layer["hidden_dim"]) if layer["pre_norm"] else None
        self.use_checkpoint = use_checkpoint

    def forward(self, src, pos, padding):
        """src, pos: B x S x C; padding: B x S bool or None. Returns the memory B x S x C."""
        for layer in self.layers:
            if self.use_checkpoint and torch.is_grad_enabled():
                src = checkpoint(layer, src, pos, padding, use_reentrant=False)
            else:
                src = layer(src, pos, padding)
        return src if self.norm is None else self.norm(src)


class TransformerDecoder(nn.Module):
    """A stack of decoder layers; every returned output is normalised."""

    def __init__(self, num_layers: int, **layer: Any):
        super().__init__()
        self.layers = nn.ModuleList(TransformerDecoderLayer(**layer) for _ in range(num_layers))
        self.norm = nn.LayerNorm(layer["hidden_dim"])

    def forward(self, query_pos, memory, pos, padding, return_intermediate: bool):
        """Queries B x N x C and memory, pos B x S x C to hs L (or 1) x B x N x C."""
        tgt = torch.zeros_like(query_pos)
        key = memory + pos
        outputs = []
        for layer in self.layers:
            tgt = layer(tgt, query_pos, memory, key, padding)
            outputs.append(tgt)
        return self.norm(torch.stack(outputs if return_intermediate else outputs[-1:]))


class Transformer(nn.Module):
    """Encoder and decoder of DETR."""

    @configurable
    def __init__(
        self,
        *,
        hidden_dim: int = 256,
        nheads: int = 8,
        enc_layers: int = 6,
        dec_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
        checkpoint_encoder: bool = False,
    ):
        """
        Args:
            hidden_dim: C.
            enc_layers, dec_layers: number of layers; ``dec_layers`` is L.
            dim_feedforward: width of the feed-forward blocks.
            dropout: probability, also on the attention weights.
            pre_norm: norm before attention and feed-forward instead of after.
            checkpoint_encoder: recompute the encoder's activations in the backward pass.
        """
        super().__init__()
        fits = nheads >= 1 and hidden_dim % nheads == 0 and hidden_dim % 4 == 0
        multiple = f"a multiple of 4 and of MODEL.DETR.NHEADS, which is {nheads}"
        for key, value, valid, allowed in (
            ("HIDDEN_DIM", hidden_dim, fits, multiple),
            ("ENC_LAYERS", enc_layers, enc_layers >= 0, "0 or more"),
            ("DEC_LAYERS", dec_layers, dec_layers >= 1, "1 or more"),
            ("DROPOUT", dropout, 0 <= dropout < 1, "from 0 to below 1"),
            ("DIM_FEEDFORWARD", dim_feedforward, dim_feedforward >= 1, "1 or more"),
        ):
            check_value(f"MODEL.DETR.{key}", value, valid, allowed)
        layer: dict[str, Any] = {"hidden_dim": hidden_dim, "nheads": nheads}
        layer |= {"dim_feedforward": dim_feedforward, "dropout": dropout, "pre_norm": pre_norm}
        self.encoder = TransformerEncoder(enc_layers, checkpoint_encoder, **layer)
        self.decoder = TransformerDecoder(dec_layers, **layer)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    @classmethod
    def from_config(cls, cfg):
        names = ("hidden_dim", "nheads", "enc_layers", "dec_layers", "dim_feedforward", "dropout")
        names = (*names, "pre_norm", "checkpoint_encoder")
        return {name: cfg.MODEL.DETR[name.upper()] for name in names}

    def forward(
        self,
        src: torch.Tensor,
        padding: torch.Tensor | None,
        query_embed: torch.Tensor,
        pos: torch.Tensor,
        return_intermediate: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            src: B x C x H x W, the projected res5.
            padding: B x H x W bool, True on padded cells; None if there are none.
            query_embed: N x C.
            pos: B x C x H x W or 1 x C x H x W.
            return_intermediate: hs of all decoder layers, or only of the last.

        Returns:
            hs: L x B x N x C (1 x B x N x C without intermediate outputs).
            memory: B x C x H x W, the encoded image.
        """
        size = src.shape[-2:]
        src = src.flatten(2).transpose(1, 2)
        pos = pos.flatten(2).transpose(1, 2).to(src.dtype)
        if padding is not None:
            padding = padding.flatten(1)
            # The softmax over an image that is all padding would be NaN.
            padding = padding & ~padding.all(1, keepdim=True)
        memory = self.encoder(src, pos, padding)
        query_pos = query_embed[None].expand(src.shape[0], -1, -1)
        hs = self.decoder(query_pos, memory, pos, padding, return_intermediate)
        return hs, memory.transpose(1, 2).unflatten(2, size)


class BoxHead(nn.Module):
    """The three-layer perceptron that predicts boxes (Carion et al. 2020, section 3.2)."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        widths = [hidden_dim, hidden_dim, 4]
        self.layers = nn.ModuleList(nn.Linear(hidden_dim, width) for width in widths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) decoder outputs to (..., 4): (cx, cy, w, h) in [0, 1]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return at_least_float32(self.layers[-1](x)).sigmoid()


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision to float32; other types stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
