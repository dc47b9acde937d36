"""What gpu.py measured as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tabulate import tabulate
from works import BOXES, NOT_COMPILED, OURS, THEIR_BOXES, THEIRS

from detr_panoptic_d2.checkpoint.atomic import atomic_file
from detr_panoptic_d2.errors import UserError

BEGIN, END = "<!-- gpu.sh: begin -->", "<!-- gpu.sh: end -->"
_SIDES = (OURS, BOXES, NOT_COMPILED, THEIRS, THEIR_BOXES)
_MIB = 2**20


def gpu_report(content: Mapping) -> str:
    """All parts that there are, as a section of docs/benchmarks.md."""
    machine = content["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    settings = ", ".join(f"{key} {value}" for key, value in content["settings"].items())
    name = "dry run, no figures" if content["tiny"] else machine.get("gpu", "no GPU")
    parts = [
        f"## GPU: {name}, {machine['date'][:10]}",
        f"`bash tools/benchmark/gpu.sh`; {settings}",
    ]
    parts.append(f"{machine['cpu']}; {versions}")
    if content["left_out"]:
        parts.append("Left out: " + "; ".join(content["left_out"]))
    for key, table in (
        ("precision", _precision),
        ("inference", _rows),
        ("training", _rows),
        ("loader", _loader),
        ("profile", _profile),
        ("compiled", _rows),
    ):
        if key in content:
            parts += [f"#### GPU: {key}", *table(content[key])]
    return "\n\n".join(parts) + "\n"


def put_into_page(text: str, page: Path) -> None:
    """Replace what lies between the marks of a page.

    Raises:
        UserError: it has no marks.
    """
    old = page.read_text(encoding="utf-8")
    if BEGIN not in old or END not in old:
        raise UserError(f"{page} has no lines {BEGIN} and {END}: add them where the tables belong.")
    before, rest = old.split(BEGIN, 1)
    with atomic_file(page) as file:
        file.write(f"{before}{BEGIN}\n{text}{END}{rest.split(END, 1)[1]}")


def _table(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    return tabulate(list(rows), header, tablefmt="github", disable_numparse=True)


def _precision(result: Mapping) -> Iterable[str]:
    names = list(next(iter(result["compared"].values())))
    rows = []
    for compared, values in result["compared"].items():
        numbers = [f"{v:.4f}" if n == "equal pixels" else f"{v:.1e}" for n, v in values.items()]
        rows.append([compared, *numbers])
    yield _table(["greatest relative difference", *names], rows)


def _rows(result: Sequence[Mapping]) -> Iterable[str]:
    """Times and memory of inference or training; a cell is `ms, MiB`."""
    if not result:
        return
    sides = [s for s in _SIDES if any(s in row["times"] for row in result)]
    pairs = list(dict.fromkeys(pair for row in result for pair in row["ratios"]))
    rows = []
    for row in result:
        cells = [
            f"{1000 * row['times'][s]['median']:.1f}, {row['memory'][s] / _MIB:.0f}"
            if s in row["times"]
            else ""
            for s in sides
        ]
        ratios = [f"{row['ratios'][p]:.2f}" if p in row["ratios"] else "" for p in pairs]
        rows.append([row["dtype"], str(row["batch"]), *cells, *ratios])
    yield _table(["format", "batch", *(f"{s}: ms, peak MiB" for s in sides), *pairs], rows)


def _loader(rows: Sequence[Mapping]) -> Iterable[str]:
    header = list(rows[0])
    cells = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    yield _table(header, cells)


def _profile(result: Mapping) -> Iterable[str]:
    for name, found in result.items():
        yield f"**{name}**, {found['dtype']}"
        yield _table(
            ["operator", "ms", "share", "calls"],
            [
                [
                    f"`{r['operator'][:60]}`",
                    f"{r['ms']:.2f}",
                    f"{r['share']:.2f}",
                    f"{r['calls']:.0f}",
                ]
                for r in found["top"]
            ],
        )
        waits = found["host waits"]
        if waits:
            yield _table(
                ["the host waits at", "times"], [[f"`{k}`", str(v)] for k, v in waits.items()]
            )
        else:
            yield "The host waits nowhere that PyTorch knows of."
