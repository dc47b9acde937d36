"""A 3x3 convolution of a nearest-upsampled map, without making the upsampled map.

Doubled by nearest upsampling, the rows k - 1, k, k + 1 of a map become pairs of equal rows. A 3x3
convolution sees two different rows only: output row 2k sees k - 1 once and k twice, output row
2k + 1 sees k twice and k + 1 once. With the weights of equal rows (and columns) added up, it is
four 2x2 convolutions of the small map, one per phase of the output: 16 products per small pixel
and channel in place of 36. The result is the same up to rounding.
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
    phases = F.conv2d(x, phase_weight(weight), padding=1)
    # Phases reckon with 2h rows and 2w columns. Where the last one is not there, its share goes.
    row = column = None
    if missing[0]:
        last = x[:, :, -1:].repeat_interleave(2, 3)
        row = F.conv2d(last, weight[:, :, 2:], padding=(0, 1))[..., : size[1]]
    if missing[1]:
        last = x[:, :, :, -1:].repeat_interleave(2, 2)[:, :, : size[0]]
        column = F.conv2d(last, weight[:, :, :, 2:], padding=(1, 0))
    return _Interleave.apply(phases, row, column, size)


def phase_weight(weight: torch.Tensor) -> torch.Tensor:
    """Weights O x C x 3 x 3 to 4O x C x 2 x 2, ordered by row phase, column phase and O."""
    taps = weight.new_tensor(_ROWS_OF_TAP)
    return torch.einsum("asr,btq,oirq->aboist", taps, taps, weight).flatten(0, 2)


def _slices(phase: int, size: int) -> tuple[slice, slice]:
    """Where a phase lies in the output and where in the result of the 2x2 convolution."""
    count = (size - phase + 1) // 2
    return slice(phase, None, 2), slice(phase, phase + count)


class _Interleave(torch.autograd.Function):
    """Put the four phases P x 4O x (h + 1) x (w + 1) in their places and take off the shares of
    the row and the column that are not there."""

    @staticmethod
    def forward(ctx, phases, row, column, size):
        ctx.shape, ctx.size = phases.shape, size
        ctx.has_row, ctx.has_column = row is not None, column is not None
        pairs, channels = phases.shape[0], phases.shape[1] // 4
        out = torch.empty(
            (pairs, channels, *size),
            dtype=phases.dtype,
            device=phases.device,
            memory_format=torch.channels_last,
        )
        for place, source in _places(size, channels):
            out[place] = phases[source]
        if row is not None:
            out[:, :, -1:] -= row
        if column is not None:
            out[:, :, :, -1:] -= column
        return out

    @staticmethod
    def backward(ctx, grad):
        phases = torch.empty(
            ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last
        ).zero_()
        for place, source in _places(ctx.size, ctx.shape[1] // 4):
            phases[source] = grad[place]
        row = -grad[:, :, -1:] if ctx.has_row else None
        column = -grad[:, :, :, -1:] if ctx.has_column else None
        return phases, row, column, None


def _places(size, channels):
    """For each phase: its index into the output and its index into the convolution's result."""
    for a in (0, 1):
        rows, source_rows = _slices(a, size[0])
        for b in (0, 1):
            columns, source_columns = _slices(b, size[1])
            start = (2 * a + b) * channels
            yield (
                (slice(None), slice(None), rows, columns),
                (slice(None), slice(start, start + channels), source_rows, source_columns),
            )
