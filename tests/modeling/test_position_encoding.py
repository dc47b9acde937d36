import math

import pytest
import torch

from detr_panoptic_d2.modeling.position_encoding import PositionEmbeddingSine

CPU = torch.device("cpu")


def plain_encoding(valid, num_channels, temperature):
    """One number at a time, from the text of the papers. ``valid``: H x W nested lists of bool."""
    height, width, half = len(valid), len(valid[0]), num_channels // 2
    out = torch.zeros(num_channels, height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            above = sum(valid[r][j] for r in range(i + 1))
            left = sum(valid[i][c] for c in range(j + 1))
            rows = sum(valid[r][j] for r in range(height))
            columns = sum(valid[i][c] for c in range(width))
            for part, (count, total) in enumerate(((above, rows), (left, columns))):
                angle = 2 * math.pi * count / (total + 1e-6)
                for k in range(half):
                    phase = angle / temperature ** (2 * (k // 2) / half)
                    value = math.cos(phase) if k % 2 else math.sin(phase)
                    out[part * half + k, i, j] = value
    return out


@pytest.fixture
def padding():
    """Four images on a 5 x 7 grid: whole, padded on two sides, one row left, nothing left."""
    padding = torch.zeros(4, 5, 7, dtype=torch.bool)
    padding[1, 3:] = True
    padding[1, :, 4:] = True
    padding[2, 1:] = True
    padding[3] = True
    return padding


@pytest.mark.parametrize(("channels", "temperature"), [(4, 10000.0), (20, 10000.0), (16, 20.0)])
def test_equals_the_plain_formula(padding, channels, temperature):
    encoding = PositionEmbeddingSine(channels, temperature)((5, 7), padding, CPU)
    assert encoding.shape == (4, channels, 5, 7)
    assert encoding.dtype == torch.float32
    assert encoding.isfinite().all()
    for ours, padded in zip(encoding, padding, strict=True):
        expected = plain_encoding((~padded).tolist(), channels, temperature)
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5)
    unpadded = PositionEmbeddingSine(channels, temperature)((5, 7), None, CPU)
    torch.testing.assert_close(unpadded, encoding[:1], rtol=0, atol=1e-6)
