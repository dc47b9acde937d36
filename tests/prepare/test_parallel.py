import functools
import os

import pytest

from detr_panoptic_d2.prepare.parallel import map_images


def test_results_are_in_order():
    for workers in (1, 2):
        found = map_images(functools.partial(pow, 2), range(20), workers=workers, description="x")
        assert found == [2**n for n in range(20)]


def test_a_killed_process_is_an_error_of_one_line():
    with pytest.raises(ValueError, match="memory ran out. --workers 1"):
        map_images(os._exit, [1] * 5, workers=2, description="x")
    with pytest.raises(ValueError, match="--workers is 0"):
        map_images(os._exit, [1], workers=0, description="x")
