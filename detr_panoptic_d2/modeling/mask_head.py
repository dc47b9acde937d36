"""Box-attention maps and the FPN-style mask head of DETR (Carion et al. 2020, section 4.4).

Shapes: B images, P (image, query) pairs, C channels, M attention heads; h x w is the size of
res5, H2 x W2 that of res2, at which masks come out.
"""

import functools
import math
import statistics
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import check_value, look_up

MASK_HEAD_REGISTRY = Registry("MASK_HEAD")
MASK_HEAD_REGISTRY.__doc__ = """
Mask heads: modules built as ``head(cfg, input_shape)`` from the backbone's output shapes and called
as ``head(src_proj, attention, image_index, [res4, res3, res2])``; see :class:`MaskHeadSmallConv`.
"""

# Bytes of the finest activation of one chunk of pairs; about four such tensors exist at a time.
# On a CPU larger chunks are slower, because the allocator (glibc) returns large blocks to the
# system after each use.
_TENSOR_BYTES = {"cpu": 16 * 2**20, "cuda": 64 * 2**20}


def build_mask_head(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build the mask head named by ``cfg.MODEL.DETR.MASK_HEAD.NAME``."""
    name = cfg.MODEL.DETR.MASK_HEAD.NAME
    return look_up("MODEL.DETR.MASK_HEAD.NAME", name, MASK_HEAD_REGISTRY)(cfg, input_shape)


class BoxAttentionMap(nn.Module):
    """Multi-head attention of object queries over the encoded image: weights only, no values."""

    def __init__(self, hidden_dim: int, nheads: int):
        super().__init__()
        self.nheads = nheads
        self.q_linear = nn.Linear(hidden_dim, hidden_dim)
        self.k_linear = nn.Linear(hidden_dim, hidden_dim)
        self.scale = (hidden_dim / nheads) ** -0.5
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, queries: torch.Tensor, memory: torch.Tensor, padding: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            queries: B x N x C decoder outputs.
            memory: B x C x h x w encoder output.
            padding: B x h x w bool, True on padded cells; None if there are none.

        Returns:
            B x N x M x h x w. One softmax over heads and cells, as in the released models: the M
            maps of one query sum to 1.
        """
        size = memory.shape[-2:]
        q = self.q_linear(queries).unflatten(-1, (self.nheads, -1)).transpose(1, 2)
        k = self.k_linear(memory.flatten(2).transpose(1, 2))
        k = k.unflatten(-1, (self.nheads, -1)).permute(0, 2, 3, 1)
        logits = ((q * self.scale) @ k).transpose(1, 2)
        if padding is not None:
            # The lowest number and not -inf: an image that is all padding gives 0 and not NaN.
            padding = padding.flatten(1)[:, None, None, :]
            logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
        weights = logits.flatten(2).softmax(-1).view_as(logits)
        if padding is not None:
            weights = weights.masked_fill(padding, 0)
        return weights.unflatten(-1, size)


@MASK_HEAD_REGISTRY.register()
class MaskHeadSmallConv(nn.Module):
    """DETR's mask head: convolutions upsample the attention maps from res5 to res2, FPN style.

    The layers are DETR's, but the part that depends on the image only is computed once per image.
    A convolution is linear: on [image | attention] and on (upsampled + adapter) it is the sum of an
    image part (:meth:`image_maps`) and a query part (:meth:`query_masks`).
    """

    attention_scale: torch.Tensor

    @configurable
    def __init__(
        self,
        *,
        hidden_dim: int,
        nheads: int,
        fpn_channels: list[int],
        use_checkpoint: bool = False,
        attention_scale: float = 1.0,
    ):
        """
        Args:
            hidden_dim: C, channels of the projected res5; a multiple of 16.
            nheads: M, channels of the attention maps.
            fpn_channels: channels of res4, res3 and res2.
            use_checkpoint: recompute activations in the backward pass, chunk by chunk.
            attention_scale: the constant that multiplies the attention maps. It is a buffer:
                a checkpoint keeps its own.
        """
        super().__init__()
        check_value("MODEL.DETR.HIDDEN_DIM", hidden_dim, hidden_dim % 16 == 0, "a multiple of 16")
        self.hidden_dim = hidden_dim
        self.use_checkpoint = use_checkpoint
        dim = hidden_dim + nheads
        widths = [dim, *(hidden_dim // 2**i for i in range(1, 5))]
        self.lay1, self.gn1 = _conv(dim, dim), _group_norm(dim)
        self.lay2, self.gn2 = _conv(dim, widths[1]), _group_norm(widths[1])
        self.lay3, self.gn3 = _conv(widths[1], widths[2]), _group_norm(widths[2])
        self.lay4, self.gn4 = _conv(widths[2], widths[3]), _group_norm(widths[3])
        self.lay5, self.gn5 = _conv(widths[3], widths[4]), _group_norm(widths[4])
        self.out_lay = _conv(widths[4], 1)
        self.adapter1 = _conv(fpn_channels[0], widths[1], kernel_size=1)
        self.adapter2 = _conv(fpn_channels[1], widths[2], kernel_size=1)
        self.adapter3 = _conv(fpn_channels[2], widths[3], kernel_size=1)
        self.register_buffer("attention_scale", torch.tensor(float(attention_scale)))

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {
            "hidden_dim": cfg.MODEL.DETR.HIDDEN_DIM,
            "nheads": cfg.MODEL.DETR.NHEADS,
            "fpn_channels": [input_shape[f].channels for f in ("res4", "res3", "res2")],
            "use_checkpoint": cfg.MODEL.DETR.CHECKPOINT_MASK_HEAD,
            "attention_scale": _attention_scale(cfg, input_shape["res5"].stride),
        }

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # Official and Hugging Face checkpoints, and those of earlier versions, have no scale.
        if prefix + "lay1.weight" in state_dict:
            state_dict.setdefault(prefix + "attention_scale", torch.ones_like(self.attention_scale))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self,
        src_proj: torch.Tensor,
        attention: torch.Tensor,
        image_index: torch.Tensor,
        fpn_features: list[torch.Tensor],
    ) -> torch.Tensor:
        """
        Args:
            src_proj: B x C x h x w, the projected res5.
            attention: P x M x h x w maps of (image, query) pairs.
            image_index: P integers, the image of each pair.
            fpn_features: res4, res3, res2; each B x C_i x H_i x W_i.

        Returns:
            P x H2 x W2 mask logits.
        """
        if not len(attention):
            return src_proj.new_zeros((0, *fpn_features[-1].shape[-2:]))
        image_maps = self.image_maps(src_proj, fpn_features)
        query_masks: Any = self.query_masks
        if torch.is_grad_enabled():
            if not self.use_checkpoint:
                return query_masks(attention, image_index, *image_maps)
            query_masks = functools.partial(
                checkpoint, query_masks, use_reentrant=False, preserve_rng_state=False
            )
        max_bytes = _TENSOR_BYTES.get(src_proj.device.type, _TENSOR_BYTES["cuda"])
        chunk_size = max(1, max_bytes // (image_maps[-1][0].numel() * src_proj.element_size()))
        chunks = zip(attention.split(chunk_size), image_index.split(chunk_size), strict=True)
        return torch.cat([query_masks(maps, index, *image_maps) for maps, index in chunks])

    def image_maps(
        self, src_proj: torch.Tensor, fpn_features: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Image parts of the first convolution and of those after the adapters.

        Returns:
            B x C_i x H_i x W_i at the sizes of res5, res4, res3 and res2.
        """
        weight = self.lay1.weight[:, : self.hidden_dim]
        maps = [F.conv2d(src_proj, weight, self.lay1.bias, padding=1)]
        adapters = (self.adapter1, self.adapter2, self.adapter3)
        layers = (self.lay3, self.lay4, self.lay5)
        for layer, adapter, feature in zip(layers, adapters, fpn_features, strict=True):
            maps.append(_cpu_channels_last(layer(adapter(feature))))
        return maps

    def query_masks(
        self, attention: torch.Tensor, image_index: torch.Tensor, *image_maps: torch.Tensor
    ) -> torch.Tensor:
        """Mask logits P x H2 x W2 of some pairs, all at once; see :meth:`forward`."""
        weight = self.lay1.weight[:, self.hidden_dim :]
        # The product can exceed the largest float16.
        with torch.autocast(attention.device.type, enabled=False):
            attention = _cpu_channels_last(attention.to(weight.dtype) * self.attention_scale)
            x = F.conv2d(attention, weight, padding=1)
        x = F.relu(self.gn1(x + _of_each_pair(image_maps[0], image_index)), inplace=True)
        x = F.relu(self.gn2(self.lay2(x)), inplace=True)
        stages = ((self.lay3, self.gn3), (self.lay4, self.gn4), (self.lay5, self.gn5))
        for (layer, norm), image_map in zip(stages, image_maps[1:], strict=True):
            x = F.interpolate(x, size=image_map.shape[-2:], mode="nearest")
            x = F.conv2d(x, layer.weight, padding=1) + _of_each_pair(image_map, image_index)
            x = F.relu(norm(x), inplace=True)
        return self.out_lay(x)[:, 0]


def _cpu_channels_last(x: torch.Tensor) -> torch.Tensor:
    """Change the memory format on a CPU. CUDA's group norm would change it back in each layer."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def _of_each_pair(image_map: torch.Tensor, image_index: torch.Tensor) -> torch.Tensor:
    """Repeat the map of each pair's image. A single image is broadcast instead."""
    return image_map if len(image_map) == 1 else image_map[image_index]


def _attention_scale(cfg: CfgNode, stride: int) -> float:
    """The value of ``MODEL.DETR.MASK_HEAD.ATTENTION_SCALE`` as a number.

    "auto" gives both halves of the first convolution's output the same variance at the start. The
    maps of a query sum to 1, so their values are about 1 / (M h w). Those of src_proj have a mean
    square of 1/3 (``nn.Conv2d``'s own initialization on features of size 1). The variances are
    equal if the maps are multiplied by h w sqrt(C M / 3), which is 14,000 for R50. Without it all
    masks of an image stay the same for a long time, and no gradient tells the queries apart.

    h w is the number of res5's cells in a training image of the middle size, 4:3 if
    ``INPUT.MAX_SIZE_TRAIN`` allows that.
    """
    detr, scale = cfg.MODEL.DETR, cfg.MODEL.DETR.MASK_HEAD.ATTENTION_SCALE
    if scale is None:
        return 1.0
    if scale != "auto":
        valid = isinstance(scale, int | float) and 0 < scale < math.inf
        key = "MODEL.DETR.MASK_HEAD.ATTENTION_SCALE"
        check_value(key, scale, valid, "a number above 0, 'auto', or None for 1")
        return float(scale)
    short = statistics.median(cfg.INPUT.MIN_SIZE_TRAIN)
    cells = short * min(4 / 3 * short, cfg.INPUT.MAX_SIZE_TRAIN) / stride**2
    return max(1.0, cells) * math.sqrt(detr.HIDDEN_DIM * detr.NHEADS / 3)


def _conv(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _group_norm(channels: int) -> nn.GroupNorm:
    """8 groups as in DETR, or as many as a narrow model allows."""
    return nn.GroupNorm(math.gcd(8, channels), channels)
