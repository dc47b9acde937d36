"""Fixtures of all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def sample_data() -> Callable[[str], Path]:
    """Return a function from the name of a real data sample to its folder; skips if not there.

    Samples lie in ``DETR_PANOPTIC_SAMPLES``, or else in ``shared/data`` beside the checkout.
    """
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    root = Path(os.environ.get("DETR_PANOPTIC_SAMPLES", beside))

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no sample '{name}' in {root}; set DETR_PANOPTIC_SAMPLES")
        return root / name

    return find
