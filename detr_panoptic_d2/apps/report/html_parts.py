"""Small pieces of HTML; texts are escaped here and nowhere else."""

import base64
import html
import math
from collections.abc import Iterable

from .quality import Row


def text(value: object) -> str:
    """Escape a text."""
    return html.escape(str(value))


def facts(items: Iterable[tuple[str, str | None]]) -> str:
    """Return the most important numbers as tiles; those that are None are left out."""
    tiles = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in items if v)
    return f'<dl class="facts">{tiles}</dl>' if tiles else ""


def pairs(items: Iterable[tuple[str, str | None]]) -> str:
    """Return a table of names and values; those that are None are left out."""
    rows = "".join(f"<tr><th>{text(k)}</th><td>{text(v)}</td></tr>" for k, v in items if v)
    return f'<div class="scroll"><table>{rows}</table></div>' if rows else ""


def note(message: str) -> str:
    """Return a highlighted paragraph."""
    return f'<p class="note">{text(message)}</p>'


def details(summary: str, inside: str, *, is_open: bool = False) -> str:
    """Return a part that the reader opens and closes."""
    return (
        f"<details{' open' if is_open else ''}><summary>{text(summary)}</summary>{inside}</details>"
    )


def preformatted(content: str) -> str:
    """Return a text as it is."""
    return f"<pre>{text(content)}</pre>"


def image(caption: str, jpeg: bytes) -> str:
    """Return an image that is inside the page."""
    data = base64.b64encode(jpeg).decode()
    return (
        f"<figure><figcaption>{text(caption)}</figcaption>"
        f'<img alt="{text(caption)}" src="data:image/jpeg;base64,{data}"></figure>'
    )


def quality_table(rows: list[Row], counted: str) -> str:
    """Return a table of PQ, SQ and RQ.

    Args:
        rows: of groups or of classes.
        counted: what :attr:`Row.count` counts, the heading of its column.
    """
    counts = any(row.count is not None for row in rows)
    columns = ["PQ", "SQ", "RQ", *([counted] if counts else [])]
    head = "<th></th>" + "".join(f'<th class="number">{text(c)}</th>' for c in columns)
    body = []
    for row in rows:
        kind = f' <span class="quiet">{text(row.kind)}</span>' if row.kind else ""
        cells = f'<td class="name">{text(row.name)}{kind}</td>'
        cells += "".join(_cell(value) for value in (row.pq, row.sq, row.rq))
        cells += f'<td class="number">{text(row.count)}</td>' if counts else ""
        body.append(f"<tr>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="quality"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(value: float | None) -> str:
    shown = "" if value is None else "–" if math.isnan(value) else f"{value:.1f}"
    return f'<td class="number">{shown}</td>'
