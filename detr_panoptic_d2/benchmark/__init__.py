"""Speed and memory of the model, measured against itself and others. See ``docs/benchmarks.md``.

``tools/benchmark.py`` is the command line of this package.
"""

from .agreement import Disagreement
from .runner import WORKS, Options, run_benchmark

__all__ = ["WORKS", "Disagreement", "Options", "run_benchmark"]
