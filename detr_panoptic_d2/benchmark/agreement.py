"""Checks that two ways of doing a thing give one result. They come before any time is taken."""

import torch

from ..errors import UserError

# Greatest difference of network outputs in float32, relative to the greatest value where that is
# above 1.
TOLERANCE = 1e-4
# Least share of equal pixels of two panoptic maps. Where an output pixel lies just between two
# input pixels, Pillow takes one or the other by rounding; the last bit of an interpolation decides
# between two queries that are equally strong.
EQUAL_PIXELS = 0.995


class Disagreement(UserError):
    """Two sides of a comparison do not compute the same, so their times say nothing."""


def require_close(
    name: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE
) -> float:
    """Check that two tensors agree.

    Args:
        name: of the value, for the message.
        ours, theirs: tensors of one shape.
        tolerance: greatest ``|ours - theirs| / max(1, max |theirs|)``.

    Returns:
        that greatest relative difference.

    Raises:
        Disagreement: it is above the tolerance, or not a number, or the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise Disagreement(
            f"{name}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)} differ; nothing is timed"
        )
    if not ours.numel():
        return 0.0
    ours, theirs = ours.double(), theirs.double()
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))
    if not difference <= tolerance:
        raise Disagreement(
            f"{name}: results differ by {difference:.3g}, more than {tolerance:.0e}; nothing is "
            "timed. Were weights, inputs or one of the two models changed?"
        )
    return difference


def require_equal_maps(
    name: str, ours: torch.Tensor, theirs: torch.Tensor, least_share: float
) -> float:
    """Check that two maps of segment ids agree.

    Args:
        name: of the comparison, for the message.
        ours, theirs: H x W integers.
        least_share: least share of equal pixels.

    Returns:
        the share of equal pixels.

    Raises:
        Disagreement: too few pixels are equal, or the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise Disagreement(
            f"{name}: maps of {tuple(ours.shape)} and {tuple(theirs.shape)} pixels; nothing is "
            "timed"
        )
    share = float((ours == theirs.to(ours.device)).float().mean())
    if not share >= least_share:
        raise Disagreement(
            f"{name}: only {share:.2%} of the pixels are equal, less than {least_share:.2%}; "
            "nothing is timed"
        )
    return share
