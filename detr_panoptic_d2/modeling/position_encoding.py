"""Sine position encoding of an image grid."""

import math

import torch
from torch import nn


class PositionEmbeddingSine(nn.Module):
    """Two-dimensional sine encoding: the first half of the channels encodes y, the second x.

    The encoding of Vaswani et al. 2017 (section 3.5), extended to images as in DETR (Carion et al.
    2020, appendix A.4). Positions count the cells that are not padding, and are scaled so that the
    last one is 2 pi. The number of channels is a multiple of 4.
    """

    def __init__(self, num_channels: int, temperature: float = 10000.0):
        super().__init__()
        self.num_channels = num_channels
        self.temperature = temperature

    def forward(
        self, size: tuple[int, int], padding: torch.Tensor | None, device: torch.device
    ) -> torch.Tensor:
        """
        Args:
            size: (H, W) of the grid.
            padding: B x H x W bool, True on padded cells; None if there is no padding.
            device: of the result.

        Returns:
            float32 tensor B x C x H x W; B is 1 without padding.
        """
        if padding is None:
            y = torch.arange(1, size[0] + 1, dtype=torch.float32, device=device)
            x = torch.arange(1, size[1] + 1, dtype=torch.float32, device=device)
            y = self._encode(y, y[-1:])[:, None, :].expand(-1, size[1], -1)
            x = self._encode(x, x[-1:])[None, :, :].expand(size[0], -1, -1)
            return torch.cat([y, x], dim=-1).permute(2, 0, 1)[None]
        valid = ~padding
        y = valid.cumsum(1, dtype=torch.float32)
        x = valid.cumsum(2, dtype=torch.float32)
        encoding = torch.cat([self._encode(y, y[:, -1:]), self._encode(x, x[:, :, -1:])], dim=-1)
        return encoding.permute(0, 3, 1, 2)

    def _encode(self, position: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Positions (any shape), and the largest of their axis, to (..., C / 2) channels."""
        position = position / (last + 1e-6) * (2 * math.pi)
        half = self.num_channels // 2
        exponent = torch.arange(half, dtype=torch.float32, device=position.device)
        wavelength = self.temperature ** (2 * torch.div(exponent, 2, rounding_mode="floor") / half)
        phase = position[..., None] / wavelength
        return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1).flatten(-2)
