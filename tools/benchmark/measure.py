"""Time and memory of callables on a CPU or a GPU, in turns, and what they ran on."""

import collections
import datetime
import importlib.metadata
import json
import platform
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from detr_panoptic_d2.errors import UserError

Variants = dict[str, Callable[[], object]]
# Name on the command line -> autocast type, or None for float32 tensors throughout.
PRECISIONS = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DISTRIBUTIONS = ("torch", "torchvision", "detectron2", "detr-panoptic-d2", "transformers")


class Clock:
    """Seconds of a call: CUDA events on a GPU, else a monotonic clock or the processor time.

    Args:
        device: that runs.
        cpu_time: the processor time of this process, all threads together, in place of the time
            that passes: other programs on the machine then count less. For a CPU only.
    """

    def __init__(self, device: torch.device, cpu_time: bool = False):
        self.device = device
        self._now = time.process_time if cpu_time else time.perf_counter

    def seconds(self, run: Callable[[], object]) -> float:
        """Seconds of one call."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.device)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize(self.device)
            return start.elapsed_time(end) / 1000
        start = self._now()
        run()
        return self._now() - start


def measure(variants: Variants, pairs, clock: Clock, repeats: int) -> dict:
    """Time variants in turns (A B C, C B A, ...), so that drifts of the machine meet all alike.

    A variant that does not fit into the memory of a GPU is left out.

    Args:
        variants: name -> what to time.
        pairs: (above, below), names of which the ratio is wanted.
        clock: see :class:`Clock`.
        repeats: rounds, after a first one that does not count.

    Returns:
        ``times``: of each variant ``median``, ``q1``, ``q3`` and all ``runs`` in seconds;
        ``ratios``: the median of the ratios within a round; ``memory``: see :func:`peak_memory`.
    """
    runs: dict[str, list[float]] = {}
    for name, run in variants.items():
        try:
            run()
            runs[name] = []
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    for turn in range(repeats):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            runs[name].append(clock.seconds(variants[name]))
    times = {}
    for name, seconds in runs.items():
        q1, q3 = np.percentile(seconds, [25, 75]).tolist()
        times[name] = {"median": statistics.median(seconds), "q1": q1, "q3": q3, "runs": seconds}
    ratios = {
        f"{a} / {b}": statistics.median(x / y for x, y in zip(runs[a], runs[b], strict=True))
        for a, b in pairs
        if a in runs and b in runs
    }
    memory = {name: peak_memory(variants[name], clock.device) for name in runs}
    return {"times": times, "ratios": ratios, "memory": memory}


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that tensors take at one time during a call, beyond those at its start.

    Both figures are those of PyTorch's own allocator: ``max_memory_allocated`` on a GPU, the
    profiler's record of every allocation on a CPU. Scratch memory of libraries is not in it.
    """
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


def top_operators(run: Callable[[], object], device: torch.device, rows: int = 15) -> list[dict]:
    """The operators of a call that take most time of the device."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        run()
        if cuda:
            torch.cuda.synchronize(device)

    def ms(event) -> float:
        return (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1000

    events = sorted(profiler.key_averages(), key=ms, reverse=True)
    total = sum(map(ms, events))
    return [
        {"operator": e.key[:60], "ms": ms(e), "share": ms(e) / total, "calls": e.count}
        for e in events[:rows]
    ]


def host_waits(run: Callable[[], object]) -> dict[str, int]:
    """Places in the code that wait for the GPU, and how often in one call."""
    places: collections.Counter[str] = collections.Counter()

    def note(message, *args, **kwargs):
        if "synchroniz" not in str(message):
            return
        # Frames of these say where in the model a wait is; torch's own do not.
        ours = ("detr_panoptic_d2", "detectron2")
        stack = traceback.extract_stack()
        where = ([f for f in stack if any(x in f.filename for x in ours)] or stack[:-1])[-1]
        places[f"{Path(where.filename).name}:{where.lineno} {where.name}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(places.most_common())


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The greatest ``|ours - theirs| / max(1, max |theirs|)``."""
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


def require_close(ours: Mapping, theirs: Mapping, side: str, tolerance: float) -> dict[str, float]:
    """Check that two sides compute the same, before their times are compared.

    Args:
        ours, theirs: name -> tensor; those of ``theirs`` are compared.
        side: name of the other side.
        tolerance: for each :func:`difference`.

    Returns:
        the differences, by name and side.

    Raises:
        UserError: one is above the tolerance, or no number.
    """
    found = {f"{name}, {side}": difference(ours[name], theirs[name]) for name in theirs}
    for name, distance in found.items():
        if not distance <= tolerance:
            raise UserError(
                f"{name}: the sides differ by {distance:.3g}, more than {tolerance:.0e}; nothing "
                "is timed. Were weights, inputs or one of the models changed?"
            )
    return found


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Compute in a number format of ``PRECISIONS``: TF32 under "tf32" alone; 16 bits: autocast."""
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    dtype = PRECISIONS[name]
    try:
        with torch.autocast(device.type, dtype=dtype) if dtype else nullcontext():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def describe_machine(device: torch.device) -> dict:
    """Date, processor, threads and versions, for the head of every report."""
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        for found in importlib.metadata.distributions(name=name):
            versions[name] = found.version
    machine = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        machine["cpu"] = models[0] if models else machine["cpu"]
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
        versions["cuda"] = torch.version.cuda
    return machine
