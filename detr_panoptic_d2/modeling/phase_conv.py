"""A 3x3 convolution of a nearest-upsampled map, without making the upsampled map.

Doubled by nearest upsampling, the rows k - 1, k, k + 1 of a map become pairs of equal rows. A 3x3
convolution sees two different rows only: output row 2k sees k - 1 once and k twice, output row
2k + 1 sees k twice and k + 1 once. With the weights of equal rows (and columns) added up, it is
four 2x2 convolutions of the small map, one per phase of the output: 16 products per small pixel
and channel in place of 36. The two of one row phase are done together. The result is the same up
to rounding.
"""

import torch
from torch.nn import functional as F

# Phase, tap, row: which of the three kernel rows fall on which of the two small rows.
_ROWS_OF_TAP = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


# Compiled, it would be compiled again for every combination of odd and even sizes.
@torch.compiler.disable
def upsampled_conv(x: torch.Tensor, size: tuple[int, int], weight: torch.Tensor) -> torch.Tensor:
    """``conv2d(interpolate(x, size, mode="nearest"), weight, padding=1)``.

    Args:
        x: P x C x h x w.
        size: (H, W). Where H is 2h or 2h - 1 and W is 2w or 2w - 1, as between levels of a feature
            pyramid, the upsampled map is not made.
        weight: O x C x 3 x 3.

    Returns:
        P x O x H x W.
    """
    size = tuple(size)
    if size == tuple(x.shape[-2:]):
        return F.conv2d(x, weight, padding=1)
    missing = [2 * small - large for small, large in zip(x.shape[-2:], size, strict=True)]
    if not all(m in (0, 1) for m in missing):
        return F.conv2d(F.interpolate(x, size=size, mode="nearest"), weight, padding=1)
    even, odd = (F.conv2d(x, part, padding=1) for part in phase_weights(weight))
    # Phases reckon with 2h rows and 2w columns. Where the last one is not there, its share goes.
    row = column = None
    if missing[0]:
        last = x[:, :, -1:].repeat_interleave(2, 3)
        row = F.conv2d(last, weight[:, :, 2:], padding=(0, 1))[..., : size[1]]
    if missing[1]:
        last = x[:, :, :, -1:].repeat_interleave(2, 2)[:, :, : size[0]]
        column = F.conv2d(last, weight[:, :, :, 2:], padding=(1, 0))
    return _Interleave.apply(even, odd, row, column, size)


def phase_weights(weight: torch.Tensor) -> torch.Tensor:
    """Weights O x C x 3 x 3 to 2 x 2O x C x 2 x 2, ordered by row phase, column phase and O.

    The odd column phase comes first: what a convolution makes of columns j - 1 and j is the output
    columns 2j - 1 and 2j, so its rows are those of the output, but for O values at either end.
    """
    taps = weight.new_tensor(_ROWS_OF_TAP)
    return torch.einsum("asr,btq,oirq->aboist", taps, taps.flip(0), weight).flatten(1, 2)


class _Interleave(torch.autograd.Function):
    """Put the rows of both row phases, each P x 2O x (h + 1) x (w + 1), in turns, and take off the
    shares of the row and the column that are not there."""

    @staticmethod
    def forward(ctx, even, odd, row, column, size):
        ctx.shape, ctx.size = even.shape, size
        ctx.has_row, ctx.has_column = row is not None, column is not None
        pairs, channels = even.shape[0], even.shape[1] // 2
        out = torch.empty(
            (pairs, channels, *size),
            dtype=even.dtype,
            device=even.device,
            memory_format=torch.channels_last,
        )
        rows = out.permute(0, 2, 3, 1).view(pairs, size[0], size[1] * channels)
        for phase, result in enumerate((even, odd)):
            place, source = _places(phase, size, channels)
            rows[place] = _rows(result)[source]
        if row is not None:
            out[:, :, -1:] -= row
        if column is not None:
            out[:, :, :, -1:] -= column
        return out

    @staticmethod
    def backward(ctx, grad):
        pairs, channels, height, width = ctx.shape
        rows = _rows(grad)
        results = []
        for phase in (0, 1):
            place, source = _places(phase, ctx.size, channels // 2)
            result = grad.new_zeros((pairs, height, width * channels))
            result[source] = rows[place]
            results.append(result.unflatten(2, (width, channels)).permute(0, 3, 1, 2))
        row = -grad[:, :, -1:] if ctx.has_row else None
        column = -grad[:, :, :, -1:] if ctx.has_column else None
        return *results, row, column, None


def _rows(x: torch.Tensor) -> torch.Tensor:
    """P x C x H x W to P x H x (W C)."""
    return x.permute(0, 2, 3, 1).flatten(2)


def _places(phase: int, size: tuple[int, int], channels: int):
    """A row phase's index into the rows of the output and into those of its convolution."""
    count = (size[0] - phase + 1) // 2
    place = (slice(None), slice(phase, None, 2))
    source = (slice(None), slice(phase, phase + count), slice(channels, (size[1] + 1) * channels))
    return place, source
