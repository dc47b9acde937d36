"""Results as Markdown tables."""

import shlex
from collections.abc import Iterable, Mapping

from tabulate import tabulate

_MIB = 2**20


def report(head: Mapping, results: Mapping[str, Mapping], command: list[str]) -> str:
    """Everything as a section of a page: machine, command, tables.

    Args:
        head: ``machine`` and ``settings``.
        results: of each work.
        command: that was run.
    """
    machine = head["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [
        f"## {machine.get('gpu', machine['cpu'])}, {machine['date'][:10]}",
        f"```\n{shlex.join(command)}\n```",
        f"{machine['cpu']}, {machine['threads']} threads; {versions}",
        _line(head["settings"]),
    ]
    for name, result in results.items():
        parts += [f"### {name}", _line(result["settings"])]
        parts += [
            tabulate(rows, header, tablefmt="github", disable_numparse=True)
            for header, rows in _tables(result)
        ]
    return "\n\n".join(parts) + "\n"


def _tables(result: Mapping) -> Iterable[tuple[list[str], list[list[str]]]]:
    """Header and rows of every table of a work."""
    if result["agreement"]:
        agreement = result["agreement"].items()
        yield ["agreement, greatest difference", ""], [[k, f"{v:.1e}"] for k, v in agreement]
    if "times" in result:
        rows = []
        for name, times in result["times"].items():
            quartiles = f"{1000 * times['q1']:.0f} - {1000 * times['q3']:.0f}"
            memory = f"{result['memory'][name] / _MIB:.0f}"
            rows.append([name, f"{1000 * times['median']:.0f}", quartiles, memory])
        yield ["side", "median ms", "quartiles", "peak MiB"], rows
    if "steps" in result:
        steps = result["steps"]
        yield ["step of ours", *steps], [["ms", *(f"{1000 * s:.1f}" for s in steps.values())]]
    for key, points in result.get("curves", {}).items():
        yield _curve(key, points)
    if "ratios" in result:
        yield ["ratio", ""], [[k, f"{v:.2f}"] for k, v in result["ratios"].items()]


def _curve(key: str, points: list[Mapping]) -> tuple[list[str], list[list[str]]]:
    sides = list(points[0]["times"])
    first = next(iter(points[0]["ratios"]))
    rows = []
    for point in points:
        times = [f"{1000 * point['times'][side]['median']:.0f}" for side in sides]
        memory = [f"{point['memory'][side] / _MIB:.0f}" for side in sides]
        rows.append([_plain(point[key]), *times, f"{point['ratios'][first]:.2f}", *memory])
    header = [key, *(f"{side}, ms" for side in sides), first]
    return [*header, *(f"{side}, peak MiB" for side in sides)], rows


def _line(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in settings.items())


def _plain(value: object) -> str:
    if isinstance(value, tuple | list):
        sizes = len(value) == 2 and all(isinstance(v, int) for v in value)
        return ("x" if sizes else " ").join(map(str, value)) or "none"
    return str(value)
