"""Runs the works of a benchmark: first every check, then every measurement."""

import logging
from collections.abc import Iterator

import torch

from ..errors import UserError
from .hook import HookWork
from .inference import InferenceWork
from .machine import PRECISIONS, describe_machine, precision
from .mapper import MapperWork
from .measure import peak_flops
from .memory import MemoryWork
from .scaling import ScalingWork
from .session import Options, Session
from .training import TrainingWork

__all__ = ["WORKS", "Options", "run_benchmark"]

logger = logging.getLogger(__name__)

WORKS = {
    "inference": InferenceWork,
    "training": TrainingWork,
    "hook": HookWork,
    "mapper": MapperWork,
    "memory": MemoryWork,
    "scaling": ScalingWork,
}


def run_benchmark(options: Options) -> Iterator[tuple[str, dict]]:
    """Check that all sides agree, then measure.

    Args:
        options: what to do.

    Yields:
        (name, content): first ``"head"`` (machine, settings, the peak of the machine in operations
        per second), then each work's result with its ``agreement``.

    Raises:
        UserError: an option or the config does not fit.
        ModuleNotFoundError: Hugging Face is asked for and not installed.
        Disagreement: results differ; no time was taken.
    """
    unknown = [name for name in options.work if name not in WORKS]
    if unknown or not options.work:
        raise UserError(f"--work names {unknown}, but there are only {', '.join(WORKS)}")
    session = Session(options)
    works = {name: WORKS[name](session) for name in options.work}
    agreement = {}
    for name, work in works.items():
        logger.info("Checking that all sides of '%s' agree", name)
        agreement[name] = work.check()

    logger.info("All agree. Measuring the machine's peak")
    yield "head", _head(session)
    for name, work in works.items():
        logger.info("Measuring '%s'", name)
        result = {"agreement": agreement[name], **work.measure()}
        if options.compile and name != "mapper":
            result["compiled graphs so far"] = _compiled_graphs()
        yield name, result


def _head(session: Session) -> dict:
    options = session.options
    with precision(options.dtype, session.device):
        dtype = PRECISIONS[options.dtype] or torch.float32
        peak = peak_flops(session.clock, dtype)
    return {
        "machine": describe_machine(session.device),
        "settings": {
            "config": options.config_file,
            "options": list(options.opts),
            "against": options.against,
            "device": session.device.type,
            "dtype": options.dtype,
            "compile": options.compile,
            "repeats": session.repeats,
            "clock": "processor time" if options.cpu_time else "wall time",
        },
        "peak flops": peak,
    }


def _compiled_graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
