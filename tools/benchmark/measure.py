"""Time and memory of callables on a CPU or a GPU, interleaved, and what they ran on."""

import datetime
import importlib.metadata
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from detr_panoptic_d2.errors import UserError

# Name on the command line -> autocast type, or None for float32 tensors throughout.
PRECISIONS = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STEPS = ("preprocess", "detect", "select", "predict_masks", "assemble")
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


def time_interleaved(
    variants: Mapping[str, Callable[[], object]], clock: Clock, repeats: int
) -> dict[str, dict]:
    """Time variants in turns (A B C, C B A, ...), so that drifts of the machine meet all alike.

    Returns:
        for each variant ``median``, ``q1``, ``q3`` and all ``runs`` in seconds. A first round is
        left out.
    """
    runs = {name: [] for name in variants}
    for turn in range(1 + repeats):
        for name in list(variants)[:: 1 if turn % 2 else -1]:
            seconds = clock.seconds(variants[name])
            if turn:
                runs[name].append(seconds)
    times = {}
    for name, seconds in runs.items():
        q1, q3 = np.percentile(seconds, [25, 75]).tolist()
        times[name] = {"median": statistics.median(seconds), "q1": q1, "q3": q3, "runs": seconds}
    return times


def ratio(times: dict[str, dict], above: str, below: str) -> float:
    """The median of one variant's times over the other's within each round."""
    pairs = zip(times[above]["runs"], times[below]["runs"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def step_times(model: nn.Module, images: list[dict], clock: Clock, repeats: int) -> dict:
    """Median seconds of each step of our inference; a step that did not run is left out."""
    rounds = {step: [] for step in _STEPS}

    def watch(step):
        run = getattr(model, step)

        def watched(*args):
            result = []
            rounds[step].append(clock.seconds(lambda: result.append(run(*args))))
            return result[0]

        return watched

    for step in _STEPS:
        setattr(model, step, watch(step))
    try:
        for _ in range(repeats):
            model(images)
    finally:
        for step in _STEPS:
            delattr(model, step)
    return {step: statistics.median(seconds) for step, seconds in rounds.items() if seconds}


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


def require_close(name: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> float:
    """Check that two sides compute the same, before their times are compared.

    Returns:
        the greatest ``|ours - theirs| / max(1, max |theirs|)``.

    Raises:
        UserError: it is above the tolerance, or no number, or the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise UserError(
            f"{name}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)} differ; nothing is timed"
        )
    ours, theirs = ours.double(), theirs.double()
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))
    if not difference <= tolerance:
        raise UserError(
            f"{name}: the sides differ by {difference:.3g}, more than {tolerance:.0e}; nothing is "
            "timed. Were weights, inputs or one of the models changed?"
        )
    return difference


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Compute in a number format of ``PRECISIONS``: TF32 under "tf32" alone; 16 bits: autocast."""
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        with autocast(name, device):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def autocast(name: str, device: torch.device):
    """The autocast context of a number format."""
    dtype = PRECISIONS[name]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


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
