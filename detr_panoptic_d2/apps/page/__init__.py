"""The HTML page of report and explain: one template and one style, without external files.

A page consists of sections, a section of blocks. The first key of a block is its kind: ``text``,
``note``, ``heading``, ``tiles``, ``pairs``, ``table``, ``legend``, ``pictures``, ``charts``,
``pre`` or ``details``. ``page.html.jinja`` shows the content of each kind, and escapes texts.
"""

import base64
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from ...files import atomic_file

Block = dict[str, Any]

_FOLDER = Path(__file__).parent


class Section(NamedTuple):
    """A part of the page, with its HTML id."""

    identity: str
    title: str
    blocks: list[Block]


def write_page(
    path: Path, title: str, kind: str, top: list[Block], sections: list[Section]
) -> None:
    """Write a page; ``kind`` says in a few words what it is.

    The blocks in ``top`` come before the first section. Sections without blocks are left out.
    """
    loader = jinja2.FileSystemLoader(_FOLDER)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("page.html.jinja").render(
        title=title,
        kind=kind,
        style=(_FOLDER / "style.css").read_text(encoding="utf-8"),
        top=top,
        sections=[section for section in sections if section.blocks],
    )
    with atomic_file(path) as f:
        f.write(page)


def data_uri(data: bytes, kind: str) -> str:
    """Return the content of an image file, ``png`` or ``jpeg``, as a data URI for ``pictures``."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
