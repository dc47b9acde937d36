"""DETR's transformer (Carion et al. 2020, section 3.2 and appendix A.3), batch first.

Shapes: B images, S = H * W cells of res5, N queries, C channels, M heads, L decoder layers.
"""

from typing import Any

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import UserError, check_value


class MultiheadAttention(nn.Module):
    """Multi-head attention with the parameters of ``nn.MultiheadAttention``, batch first.

    The attention matrix is never formed: see :meth:`attention_weights` for a look at it.
    """

    def __init__(self, hidden_dim: int, nheads: int, dropout: float):
        super().__init__()
        if hidden_dim % nheads:
            raise UserError(
                f"MODEL.DETR.HIDDEN_DIM is {hidden_dim}, but must be a multiple of "
                f"MODEL.DETR.NHEADS, which is {nheads}."
            )
        self.nheads = nheads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            query: B x T x C.
            key, value: B x S x C.
            key_padding: B x S bool, True on keys to ignore; None if there are none.

        Returns:
            B x T x C.
        """
        q, k = self._project_query_key(query, key)
        v = self._heads(value, 2)
        mask = None if key_padding is None else ~key_padding[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def attention_weights(
        self, query: torch.Tensor, key: torch.Tensor, key_padding: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The weights B x M x T x S that :meth:`forward` applies to the values (no dropout)."""
        q, k = self._project_query_key(query, key)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if key_padding is None:
            return logits.softmax(-1)
        padding = key_padding[:, None, None, :]
        logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
        return logits.softmax(-1).masked_fill(padding, 0)

    def _project_query_key(self, query, key):
        if query is key:
            c = query.shape[-1]
            qk = F.linear(query, self.in_proj_weight[: 2 * c], self.in_proj_bias[: 2 * c])
            q, k = qk.chunk(2, dim=-1)
            return self._split(q), self._split(k)
        return self._heads(query, 0), self._heads(key, 1)

    def _heads(self, x, part):
        c = x.shape[-1]
        rows = slice(part * c, (part + 1) * c)
        return self._split(F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows]))

    def _split(self, x):
        return x.unflatten(-1, (self.nheads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Mixin: the two linear layers of a transformer block."""

    def _feed_forward(self, x):
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class TransformerEncoderLayer(FeedForward):
    """Self-attention and feed-forward, with the norm after (DETR) or before each."""

    def __init__(
        self, hidden_dim: int, nheads: int, dim_feedforward: int, dropout: float, pre_norm: bool
    ):
        super().__init__()
        self.self_attn = MultiheadAttention(hidden_dim, nheads, dropout)
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, src, pos, padding):
        """src, pos: B x S x C; padding: B x S bool or None. Returns B x S x C."""
        if self.pre_norm:
            x = self.norm1(src)
            q = x + pos
            src = src + self.dropout(self.self_attn(q, q, x, padding))
            return src + self.dropout(self._feed_forward(self.norm2(src)))
        q = src + pos
        src = self.norm1(src + self.dropout(self.self_attn(q, q, src, padding)))
        return self.norm2(src + self.dropout(self._feed_forward(src)))


class TransformerDecoderLayer(FeedForward):
    """Self-attention of the queries, cross-attention to the memory, feed-forward."""

    def __init__(
        self, hidden_dim: int, nheads: int, dim_feedforward: int, dropout: float, pre_norm: bool
    ):
        super().__init__()
        self.self_attn = MultiheadAttention(hidden_dim, nheads, dropout)
        self.multihead_attn = MultiheadAttention(hidden_dim, nheads, dropout)
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, tgt, query_pos, memory, key, padding):
        """
        Args:
            tgt, query_pos: B x N x C.
            memory: B x S x C, the values.
            key: B x S x C, memory with its position encoding.
            padding: B x S bool or None.

        Returns:
            B x N x C.
        """
        if self.pre_norm:
            x = self.norm1(tgt)
            q = x + query_pos
            tgt = tgt + self.dropout(self.self_attn(q, q, x))
            q = self.norm2(tgt) + query_pos
            tgt = tgt + self.dropout(self.multihead_attn(q, key, memory, padding))
            return tgt + self.dropout(self._feed_forward(self.norm3(tgt)))
        q = tgt + query_pos
        tgt = self.norm1(tgt + self.dropout(self.self_attn(q, q, tgt)))
        q = tgt + query_pos
        tgt = self.norm2(tgt + self.dropout(self.multihead_attn(q, key, memory, padding)))
        return self.norm3(tgt + self.dropout(self._feed_forward(tgt)))


class TransformerEncoder(nn.Module):
    """A stack of encoder layers; with pre-norm, a last norm."""

    def __init__(self, num_layers: int, hidden_dim: int, pre_norm: bool, use_checkpoint, **layer):
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(hidden_dim, pre_norm=pre_norm, **layer)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim) if pre_norm else None
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

    def __init__(self, num_layers: int, hidden_dim: int, **layer):
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(hidden_dim, **layer) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, query_pos, memory, pos, padding, return_intermediate: bool):
        """
        Args:
            query_pos: B x N x C.
            memory, pos: B x S x C.
            padding: B x S bool or None.
            return_intermediate: the outputs of all layers, or only of the last.

        Returns:
            hs: L x B x N x C, or 1 x B x N x C.
        """
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
            nheads: M.
            enc_layers, dec_layers: number of layers; ``dec_layers`` is L.
            dim_feedforward: width of the feed-forward blocks.
            dropout: probability, also on the attention weights.
            pre_norm: norm before attention and feed-forward instead of after.
            checkpoint_encoder: recompute the encoder's activations in the backward pass.
        """
        super().__init__()
        prefix = "MODEL.DETR"
        check_value(f"{prefix}.ENC_LAYERS", enc_layers, enc_layers >= 0, "0 or more")
        check_value(f"{prefix}.DEC_LAYERS", dec_layers, dec_layers >= 1, "1 or more")
        check_value(f"{prefix}.DROPOUT", dropout, 0 <= dropout < 1, "from 0 to below 1")
        check_value(f"{prefix}.DIM_FEEDFORWARD", dim_feedforward, dim_feedforward >= 1, "1 or more")
        layer: dict[str, Any] = dict(
            nheads=nheads, dim_feedforward=dim_feedforward, dropout=dropout, pre_norm=pre_norm
        )
        self.encoder = TransformerEncoder(
            enc_layers, hidden_dim, use_checkpoint=checkpoint_encoder, **layer
        )
        self.decoder = TransformerDecoder(dec_layers, hidden_dim, **layer)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    @classmethod
    def from_config(cls, cfg):
        detr = cfg.MODEL.DETR
        return {
            "hidden_dim": detr.HIDDEN_DIM,
            "nheads": detr.NHEADS,
            "enc_layers": detr.ENC_LAYERS,
            "dec_layers": detr.DEC_LAYERS,
            "dim_feedforward": detr.DIM_FEEDFORWARD,
            "dropout": detr.DROPOUT,
            "pre_norm": detr.PRE_NORM,
            "checkpoint_encoder": detr.CHECKPOINT_ENCODER,
        }

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
        batch = src.shape[0]
        size = src.shape[-2:]
        src = src.flatten(2).transpose(1, 2)
        pos = pos.flatten(2).transpose(1, 2).to(src.dtype)
        padding = None if padding is None else padding.flatten(1)
        memory = self.encoder(src, pos, padding)
        query_pos = query_embed[None].expand(batch, -1, -1)
        hs = self.decoder(query_pos, memory, pos, padding, return_intermediate)
        return hs, memory.transpose(1, 2).unflatten(2, size)
