import pytest
import torch
from torch.nn import functional as F

from detr_panoptic_d2.modeling.phase_conv import phase_weights, upsampled_conv

SIZES = [
    # twice, one row less, one column less, both, the smallest, same size, no multiple
    ((3, 5), (6, 10)),
    ((3, 5), (5, 10)),
    ((3, 5), (6, 9)),
    ((3, 5), (5, 9)),
    ((1, 2), (2, 3)),
    ((1, 1), (2, 1)),
    ((3, 5), (3, 5)),
    ((3, 5), (7, 15)),
]


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_equals_upsampling_and_convolution_with_gradients(small, large):
    torch.manual_seed(0)
    x = torch.randn(2, 7, *small, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 7, 3, 3, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(F.interpolate(x, size=large, mode="nearest"), weight, padding=1)
    ours = upsampled_conv(x, large, weight)
    torch.testing.assert_close(ours, plain)
    direction = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * direction).sum(), (x, weight))
    for grad, reference in zip(
        torch.autograd.grad((ours * direction).sum(), (x, weight)), expected, strict=True
    ):
        torch.testing.assert_close(grad, reference)


def test_memory_format_of_the_input_does_not_matter():
    x = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(3, 8, 3, 3, generator=torch.Generator().manual_seed(2))
    channels_last = upsampled_conv(x.contiguous(memory_format=torch.channels_last), (8, 11), weight)
    torch.testing.assert_close(channels_last, upsampled_conv(x, (8, 11), weight))


def test_phase_weights_share_out_the_kernel():
    weight = torch.arange(9.0).view(1, 1, 3, 3)
    even, odd = phase_weights(weight)
    assert even.shape == odd.shape == (2, 1, 2, 2)
    # Every phase uses every weight once.
    assert torch.cat([even, odd]).sum((1, 2, 3)).tolist() == [36.0] * 4
    # Even row, even column: the first kernel row and column stand alone.
    assert even[1, 0].tolist() == [[0.0, 1 + 2.0], [3 + 6.0, 4 + 5 + 7 + 8.0]]
    # Odd row, odd column: the last ones do.
    assert odd[0, 0].tolist() == [[0 + 1 + 3 + 4.0, 2 + 5.0], [6 + 7.0, 8.0]]
