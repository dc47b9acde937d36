import math

import pytest
import torch

from detr_panoptic_d2.modeling.position_encoding import PositionEmbeddingSine


def plain_encoding(valid, num_channels, temperature):
    """From the text of the papers, in float64. ``valid``: H x W, bool."""
    k, half, parts = torch.arange(num_channels // 2), num_channels // 2, []
    for axis in range(2):
        total = valid.double().sum(axis, keepdim=True)
        angle = 2 * math.pi * valid.double().cumsum(axis) / (total + 1e-6)
        phase = angle / temperature ** (2 * (k // 2) / half)[:, None, None].double()
        parts.append(torch.where((k % 2 == 1)[:, None, None], phase.cos(), phase.sin()))
    return torch.cat(parts)


@pytest.mark.parametrize(("channels", "temperature"), [(4, 10000.0), (20, 10000.0), (16, 20.0)])
def test_equals_the_plain_formula(channels, temperature):
    """Four images on a 5 x 7 grid: whole, padded on two sides, one row left, nothing left."""
    padding = torch.zeros(4, 5, 7, dtype=torch.bool)
    padding[1, 3:], padding[1, :, 4:], padding[2, 1:], padding[3] = True, True, True, True
    module, cpu = PositionEmbeddingSine(channels, temperature), torch.device("cpu")
    encoding = module((5, 7), padding, cpu)
    assert encoding.dtype == torch.float32 and encoding.isfinite().all()
    expected = torch.stack([plain_encoding(~x, channels, temperature) for x in padding])
    torch.testing.assert_close(encoding.double(), expected, rtol=0, atol=1e-5)
    unpadded = module((5, 7), None, cpu)
    torch.testing.assert_close(unpadded, encoding[:1], rtol=0, atol=1e-6)
