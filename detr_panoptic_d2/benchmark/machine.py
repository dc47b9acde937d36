"""What was measured on what: processor, versions, threads, date, and number formats."""

import datetime
import importlib.metadata
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

# Name on the command line -> autocast type, or None for float32 tensors throughout.
PRECISIONS = {
    "float32": None,
    "tf32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_DISTRIBUTIONS = ("torch", "torchvision", "detectron2", "detr-panoptic-d2", "transformers", "timm")


def describe_machine(device: torch.device) -> dict:
    """Processor, versions, threads and date, for the head of every report."""
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        version = _version(name)
        if version:
            versions[name] = version
    machine = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
        versions["cuda"] = torch.version.cuda
        versions["cudnn"] = str(torch.backends.cudnn.version())
    return machine


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Compute in the number format of a name in ``PRECISIONS``.

    TF32 is allowed under "tf32" alone; "bfloat16" and "float16" are autocast.
    """
    tf32 = name == "tf32"
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        with autocast(name, device):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def autocast(name: str, device: torch.device):
    """The autocast context of a precision; one that does nothing for float32 and TF32."""
    dtype = PRECISIONS[name]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
