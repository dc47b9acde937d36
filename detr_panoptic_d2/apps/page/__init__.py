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
    """A part of the page.

    Attributes:
        identity: HTML id.
        title: heading.
        blocks: in order.
    """

    identity: str
    title: str
    blocks: list[Block]


def write_page(
    path: Path, title: str, kind: str, top: list[Block], sections: list[Section]
) -> None:
    """Write a page atomically.

    Args:
        path: the HTML file.
        title: heading.
        kind: the kind of page, in a few words.
        top: blocks before the first section.
        sections: in order. Sections without blocks are left out.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
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
    """Return an image as a data URI, for ``pictures``.

    Args:
        data: content of the image file.
        kind: ``png`` or ``jpeg``.
    """
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
