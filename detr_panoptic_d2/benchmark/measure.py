"""Time, memory and floating-point operations of a callable, on a CPU or a GPU."""

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Side of the square matrices of the peak measurement, and products of which the best counts.
_PEAK_SIDE = {"cpu": 1024, "cuda": 8192}
_PEAK_REPEATS = 30


@dataclass(frozen=True)
class Times:
    """Seconds of every repeat of one variant."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def as_dict(self) -> dict:
        """Median, quartiles and the single values, in seconds."""
        low, high = np.percentile(self.seconds, [25, 75]).tolist()
        return {"median": self.median, "q1": low, "q3": high, "runs": self.seconds}


@dataclass(frozen=True)
class Clock:
    """Tells the time on a device: CUDA events on a GPU, a monotonic clock on a CPU.

    Attributes:
        device: that runs.
        cpu_time: take the processor time of this process, all threads together, in place of the
            time that passes: other programs on the machine then count less. For a CPU only.
    """

    device: torch.device
    cpu_time: bool = False

    def mark(self) -> "torch.cuda.Event | float":
        """The present moment on the device's own time line."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return time.process_time() if self.cpu_time else time.perf_counter()

    def elapsed(self, start, end) -> float:
        """Seconds between two marks; on a GPU, after :meth:`synchronize`."""
        return end - start if isinstance(end, float) else start.elapsed_time(end) / 1000

    def synchronize(self) -> None:
        """Wait for all work on the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object]) -> float:
        """Seconds of one call."""
        self.synchronize()
        start = self.mark()
        run()
        end = self.mark()
        self.synchronize()
        return self.elapsed(start, end)


def time_interleaved(
    variants: Mapping[str, Callable[[], object]], clock: Clock, repeats: int, warmup: int = 1
) -> dict[str, Times]:
    """Time variants in turns (A B A B ...), so that drifts of the machine meet all alike.

    Args:
        variants: what to call, by name.
        clock: of the device that they run on.
        repeats: timed rounds.
        warmup: rounds before them.
    """
    seconds = {name: [] for name in variants}
    for turn in range(warmup + repeats):
        for name, run in variants.items():
            spent = clock.seconds(run)
            if turn >= warmup:
                seconds[name].append(spent)
    return {name: Times(values) for name, values in seconds.items()}


class StageClock:
    """Collects how long named stages take within a run."""

    def __init__(self, clock: Clock):
        self.clock = clock
        self._open: dict[str, object] = {}
        self._spans: list[tuple[str, object, object]] = []

    def begin(self, stage: str) -> None:
        self._open[stage] = self.clock.mark()

    def end(self, stage: str) -> None:
        self._spans.append((stage, self._open.pop(stage), self.clock.mark()))

    def take(self) -> dict[str, float]:
        """Seconds per stage since the last call; a stage that ran often is summed up."""
        self.clock.synchronize()
        totals: dict[str, float] = defaultdict(float)
        for stage, start, end in self._spans:
            totals[stage] += self.clock.elapsed(start, end)
        self._spans.clear()
        return dict(totals)

    @contextmanager
    def watch(self, modules: Iterable[tuple[str, nn.Module]]) -> Iterator[None]:
        """Time every call of some modules, each under its stage's name."""
        handles = []
        try:
            for stage, module in modules:
                handles.append(
                    module.register_forward_pre_hook(lambda *_, stage=stage: self.begin(stage))
                )
                handles.append(
                    module.register_forward_hook(lambda *_, stage=stage: self.end(stage))
                )
            yield
        finally:
            for handle in handles:
                handle.remove()


def stage_medians(run: Callable[[], object], stages: StageClock, repeats: int) -> dict[str, float]:
    """Median seconds per stage, and under ``other`` what no stage covers.

    Args:
        run: what is watched.
        stages: watches it.
        repeats: number of runs.
    """
    run()
    stages.take()
    rounds = []
    for _ in range(repeats):
        total = stages.clock.seconds(run)
        spent = stages.take()
        rounds.append({**spent, "other": max(0.0, total - sum(spent.values()))})
    return {stage: statistics.median(r.get(stage, 0.0) for r in rounds) for stage in rounds[0]}


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that tensors take at one time during a call, beyond those at its start.

    Both figures are those of PyTorch's own allocator: ``max_memory_allocated`` on a GPU, the
    profiler's record of every allocation on a CPU. Scratch memory of libraries is not in it.
    """
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    events = [e for e in events if e.get("name") == "[memory]" and e["args"]["Device Type"] == 0]
    current = peak = 0
    for event in sorted(events, key=lambda e: e["args"]["Ev Idx"]):
        current += event["args"]["Bytes"]
        peak = max(peak, current)
    return peak


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of convolutions, matrix products and attention in one call."""
    with _FlopCounter() as counter:
        run()
    return counter.total


class _FlopCounter(TorchDispatchMode):
    """PyTorch's ``FlopCounterMode`` without its tracking of modules, which fails on parameters that
    are expanded where no gradient is wanted."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def peak_flops(clock: Clock, dtype: torch.dtype) -> float:
    """Operations per second of a large square matrix product: the most the machine gives."""
    side = _PEAK_SIDE[clock.device.type]
    a, b = (torch.randn(side, side, device=clock.device).to(dtype) for _ in range(2))
    times = time_interleaved({"product": lambda: a @ b}, clock, _PEAK_REPEATS, warmup=2)
    return 2 * side**3 / min(times["product"].seconds)
