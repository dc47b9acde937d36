"""Results as Markdown tables."""

import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence

from tabulate import tabulate

_MIB = 2**20
# A ratio that changed by more has moved.
_MOVED = 0.1


def report(machine: Mapping, parts: Sequence[Mapping], command: Sequence[str]) -> str:
    """Everything as a section of a page: machine, command, tables.

    Args:
        machine: what was measured on.
        parts: works with their settings, agreement and rows.
        command: that was run.
    """
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    blocks = [
        f"## {machine.get('gpu', machine['cpu'])}, {machine['date'][:10]}",
        f"```\n{shlex.join(command)}\n```",
        f"{machine['cpu']}, {machine['threads']} threads; {versions}",
    ]
    for part in parts:
        settings = ", ".join(f"{key} {_plain(value)}" for key, value in part["settings"].items())
        blocks += [f"### {part['work']}", settings]
        if part["agreement"]:
            rows = [{"agreement": k, "difference": v} for k, v in part["agreement"].items()]
            blocks.append(_table(rows))
        blocks += _tables(part["rows"])
    return "\n\n".join(blocks) + "\n"


def _tables(rows: Sequence[Mapping]) -> Iterable[str]:
    timed, ratios, figures = [], [], []
    for row in rows:
        for side, times in row.get("times", {}).items():
            cells = {
                "side": side,
                "median ms": f"{1000 * times['median']:.1f}",
                "quartiles": f"{1000 * times['q1']:.1f} - {1000 * times['q3']:.1f}",
                "peak MiB": f"{row['memory'][side] / _MIB:.0f}",
            }
            timed.append({**row["case"], **cells})
        if "ratios" in row:
            ratios.append({**row["case"], **row["ratios"]})
        if "figures" in row:
            figures.append({**row["case"], **row["figures"]})
    for cells in (timed, ratios, figures):
        # Rows of one header are one table.
        for _, group in itertools.groupby(cells, key=tuple):
            yield _table(list(group))


def compare(parts: Sequence[Mapping], before: Sequence[Mapping]) -> str:
    """A table of the ratios of times and memory beside those of before, and which have moved."""
    old, rows, moved = _ratios(before), [], []
    for name, value in _ratios(parts).items():
        if name not in old:
            continue
        change = value / old[name] - 1
        rows.append({"ratio": name, "now": value, "before": old[name], "change": f"{change:+.1%}"})
        if abs(change) > _MOVED:
            moved.append(f"{name} by {change:+.0%}")
    found = f"Moved by more than {_MOVED:.0%}: {'; '.join(moved) or 'nothing'}."
    return f"{_table(rows)}\n\n{found}\n"


def _ratios(parts: Sequence[Mapping]) -> dict[str, float]:
    found = {}
    for part in parts:
        for row in part["rows"]:
            case = " ".join([part["work"], *(f"{k} {v}" for k, v in row["case"].items())])
            for name, value in row["ratios"].items():
                above, below = (row["memory"][side] for side in name.split(" / "))
                found[f"{case}: {name}"] = value
                found[f"{case}: {name}, memory"] = above / below
    return found


def _table(rows: Sequence[Mapping]) -> str:
    cells = [{key: _plain(value) for key, value in row.items()} for row in rows]
    return tabulate(cells, headers="keys", tablefmt="github", disable_numparse=True)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if value >= 0.01 or value == 0 else f"{value:.1e}"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
