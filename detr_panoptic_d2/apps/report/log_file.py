"""What ``log.txt`` tells about the last start of a run."""

import re
from pathlib import Path
from typing import NamedTuple

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# Every record begins so: [11/21 07:13:44] name LEVEL: text
_RECORD = re.compile(r"^\[\d\d/\d\d \d\d:\d\d:\d\d\]", re.MULTILINE)
_START = re.compile(r"Starting training from iteration (\d+)")
_ENVIRONMENT = re.compile(r"Environment[^\n]*\n-{9,}[ -]*\n(.*?)\n-{9,}[ -]*\n", re.DOTALL)
_SCALED = re.compile(r"Auto-scaling the config to .*max_iter=(\d+)")
_MEMORY = re.compile(r"max_mem: (\d+)M")
_TOTAL = re.compile(r"Total training time: ([^\n(]+) \(([^\n)]+) on hooks\)")
# Of Detectron2's loop; and of the tools (see ..tool_errors), which end before the training or
# after it.
_CRASH = re.compile(r"Exception during training:|tool_errors DEBUG: [^\n]*")


class LogFacts(NamedTuple):
    """What :func:`read_log` finds.

    Attributes:
        environment: names and versions of what the run ran on.
        started: a training was started.
        scaled_max_iter: ``SOLVER.MAX_ITER`` after scaling to the number of processes, if so.
        traceback: of the error that ended the training; "" if there is none.
        total_time: duration of the training, once it has ended in any way.
        hooks_time: its part for evaluations, checkpoints and pictures.
        max_memory_mib: highest use of GPU memory; None on a CPU.
    """

    environment: list[tuple[str, str]]
    started: bool
    scaled_max_iter: int | None
    traceback: str
    total_time: str
    hooks_time: str
    max_memory_mib: float | None


def read_log(path: Path) -> LogFacts | None:
    """Read a log; None if there is none."""
    if not path.is_file():
        return None
    text = _ANSI.sub("", path.read_text(encoding="utf-8", errors="replace"))
    environments = list(_ENVIRONMENT.finditer(text))
    # A folder that was used again has older starts above.
    text = text[environments[-1].start() :] if environments else text
    scaled = _SCALED.findall(text)
    starts = list(_START.finditer(text))
    last = text[starts[-1].start() :] if starts else ""
    totals = _TOTAL.findall(last)
    memory = _MEMORY.findall(last)
    return LogFacts(
        environment=_table(environments[-1][1]) if environments else [],
        started=bool(starts),
        scaled_max_iter=int(scaled[-1]) if scaled else None,
        traceback=_traceback(last or text),
        total_time=totals[-1][0] if totals else "",
        hooks_time=totals[-1][1] if totals else "",
        max_memory_mib=float(memory[-1]) if memory else None,
    )


def _table(text: str) -> list[tuple[str, str]]:
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in text.splitlines()]
    return [(row[0], row[1]) for row in rows if len(row) == 2]


def _traceback(text: str) -> str:
    crash = _CRASH.search(text)
    if crash is None:
        return ""
    end = _RECORD.search(text, crash.end())
    return text[crash.end() : end.start() if end else len(text)].strip()
