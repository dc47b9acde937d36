"""Results as tables, of plain text or Markdown, and as a json file."""

import json
import os
import shlex
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tabulate import tabulate

_MIB = 2**20
_MEMORY_NOTE = (
    "peak memory: most bytes of tensors at one time beyond those before the call (weights, "
    "inputs), by PyTorch's allocator"
)


def head_text(head: dict) -> str:
    """Machine and settings, in lines."""
    machine, settings = head["machine"], head["settings"]
    device = machine.get("gpu", machine["cpu"])
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    lines = [
        f"{machine['date']}: {device}, {machine['threads']} CPU threads, {machine['system']}",
        versions,
        _settings(settings),
        f"peak of a matrix product: {head['peak flops'] / 1e9:.1f} GFLOP/s",
        _MEMORY_NOTE,
    ]
    return "\n".join(lines)


def work_text(name: str, result: dict, peak: float, markdown: bool = False) -> str:
    """One work's tables.

    Args:
        name: of the work.
        result: what its ``measure`` returned, with ``agreement``.
        peak: the machine's operations per second.
        markdown: as Markdown in place of plain text.
    """
    parts = [f"### {name}" if markdown else f"== {name} ==", _settings(result["settings"])]
    for header, rows in _tables(result, peak):
        style = "github" if markdown else "simple"
        parts.append(tabulate(rows, header, tablefmt=style, disable_numparse=True))
    if "compiled graphs so far" in result:
        parts.append(f"compiled graphs so far: {result['compiled graphs so far']}")
    return "\n\n".join(parts)


def markdown_text(head: dict, results: Mapping[str, dict], command: list[str]) -> str:
    """Everything as a section of a Markdown page: machine, command, tables."""
    machine = head["machine"]
    title = f"## {machine.get('gpu', machine['cpu'])}, {machine['date'][:10]}"
    lines = "\n".join(f"- {line}" for line in head_text(head).splitlines())
    parts = [title, f"```\n{shlex.join(command)}\n```", lines]
    parts += [work_text(name, r, head["peak flops"], markdown=True) for name, r in results.items()]
    return "\n\n".join(parts) + "\n"


def write_json(path: Path, content: dict) -> None:
    """Write a json file in one step."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=path.name, delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    os.replace(file.name, path)


def _tables(result: dict, peak: float) -> Iterable[tuple[list[str], list[list[str]]]]:
    """Header and rows of every table of a work."""
    yield ["agreement", "value"], [[k, f"{v:.3g}"] for k, v in result["agreement"].items()]
    if "times" in result:
        yield _times(result, peak)
    if "stages" in result:
        yield _stages(result["stages"])
    for curve, points in result.get("curves", {}).items():
        yield _curve(curve, points)
    if "memory by kept queries" in result:
        memory = result["memory by kept queries"]
        columns = [key for key in memory[0] if key != "kept"]
        rows = [[str(x["kept"]), *(f"{x[key] / _MIB:.1f}" for key in columns)] for x in memory]
        yield ["kept queries", *(f"{key}, peak MiB" for key in columns)], rows
    if result.get("ratios"):
        yield ["ratio", "value"], [[k, f"{v:.2f}"] for k, v in result["ratios"].items()]


def _times(result: dict, peak: float):
    rows = []
    flops, memory = result.get("flops", {}), result.get("memory", {})
    rate = result.get("images per second", {})
    for name, times in result["times"].items():
        row = [name, f"{1000 * times['median']:.1f}"]
        row.append(f"{1000 * times['q1']:.1f} - {1000 * times['q3']:.1f}")
        if memory:
            row.append(f"{memory[name] / _MIB:.0f}")
        if flops:
            speed = flops[name] / times["median"]
            row += [f"{flops[name] / 1e9:.1f}", f"{speed / 1e9:.1f}", f"{speed / peak:.0%}"]
        if rate:
            row.append(f"{rate[name]:.1f}")
        rows.append(row)
    header = ["variant", "median ms", "quartiles"]
    header += ["peak MiB"] * bool(memory)
    header += ["GFLOP", "GFLOP/s", "of peak"] * bool(flops) + ["images/s"] * bool(rate)
    return header, rows


def _stages(stages: dict[str, dict[str, float]]):
    names = list(dict.fromkeys(stage for times in stages.values() for stage in times))
    names.sort(key=lambda stage: stage == "other")
    rows = []
    for variant, times in stages.items():
        total = sum(times.values())
        cells = [
            f"{1000 * times[s]:.1f} ({times[s] / total:.0%})" if s in times else "" for s in names
        ]
        rows.append([variant, *cells])
    return ["ms (share)", *names], rows


def _curve(curve: str, points: list[dict]):
    key = {"kept queries": "kept", "image size": "size", "batch": "batch"}[curve]
    variants = list(points[0]["times"])
    rows = []
    for point in points:
        times = [f"{1000 * point['times'][v]['median']:.1f}" for v in variants]
        memory = [f"{point['memory'][v] / _MIB:.0f}" for v in variants]
        rows.append([_plain(point[key]), *times, f"{point['ratio']:.2f}", *memory])
    header = [curve, *(f"{v}, ms" for v in variants), f"{variants[0]} / {variants[1]}"]
    return [*header, *(f"{v}, peak MiB" for v in variants)], rows


def _settings(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in settings.items())


def _plain(value) -> str:
    if isinstance(value, (tuple, list)):
        joiner = "x" if len(value) == 2 and all(isinstance(v, int) for v in value) else " "
        return joiner.join(str(v) for v in value) or "none"
    return str(value)
