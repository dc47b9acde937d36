"""The HTML page that report and explain share: one template, one style, nothing from elsewhere.

A page is data: sections of blocks. A block is a mapping whose key says what it is (``text``,
``note``, ``heading``, ``tiles``, ``pairs``, ``table``, ``pictures``, ``charts``, ``pre`` or
``details``); ``page.html.jinja`` shows what each holds, and escapes texts.
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
        identity: anchor of the heading.
        title: the heading.
        blocks: in order.
    """

    identity: str
    title: str
    blocks: list[Block]


def write_page(
    path: Path, title: str, kind: str, top: list[Block], sections: list[Section]
) -> None:
    """Write a page; it appears whole or not at all.

    Args:
        path: of the HTML file.
        title: heading.
        kind: what sort of page it is, in a few words.
        top: blocks before the first section.
        sections: in order; those without blocks are left out.
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
    """Return an image as an address that holds it, for ``pictures``.

    Args:
        data: the file.
        kind: ``png`` or ``jpeg``.
    """
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
