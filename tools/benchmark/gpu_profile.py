"""Where a GPU's time goes, and where the host waits for it."""

import collections
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

_ROWS, _ITERATIONS = 15, 3
# Frames of these say where in the model a wait is; torch's own do not.
_OURS = ("detr_panoptic_d2", "detectron2")


def top_of(run: Callable[[], object], device: torch.device) -> list[dict]:
    """The operators that take most time of the device: milliseconds and calls per iteration."""
    activities, cuda = [ProfilerActivity.CPU], device.type == "cuda"
    if cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(_ITERATIONS):
            run()
        if cuda:
            torch.cuda.synchronize(device)

    def microseconds(event) -> float:
        return event.self_device_time_total if cuda else event.self_cpu_time_total

    events = sorted(profiler.key_averages(), key=microseconds, reverse=True)
    total = sum(map(microseconds, events)) or 1
    return [
        {
            "operator": event.key,
            "ms": microseconds(event) / 1000 / _ITERATIONS,
            "share": microseconds(event) / total,
            "calls": event.count / _ITERATIONS,
        }
        for event in events[:_ROWS]
    ]


def host_waits(run: Callable[[], object], device: torch.device) -> dict[str, int]:
    """Places in the code that wait for the GPU, and how often in one call; empty on a CPU."""
    places: collections.Counter[str] = collections.Counter()
    if device.type != "cuda":
        return {}

    def note(message, *args, **kwargs):
        if "synchroniz" not in str(message):
            return
        frames = [f for f in traceback.extract_stack() if any(x in f.filename for x in _OURS)]
        where = frames[-1] if frames else traceback.extract_stack()[-2]
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
