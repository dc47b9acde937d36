"""The stages as one HTML page that needs nothing else: no network, no other files."""

import base64
import html

from .context import Stage

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 0 auto;
       max-width: 1060px; padding: 0 16px 48px; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 2.2em 0 .3em; }
p { margin: .3em 0 .7em; max-width: 46em; }
img { max-width: 100%; height: auto; display: block; margin: .5em 0; }
table { border-collapse: collapse; font-size: .9rem; }
td, th { text-align: left; padding: .15em 1.2em .15em 0; vertical-align: top; }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
@media (max-width: 700px) { figure { overflow-x: auto; } img { max-width: none; } }
figure { margin: 0; }
.note { background: #fff3cd; border-left: 4px solid #b58105; padding: .5em .8em; }
a { color: #0b57a4; }
"""


def build_page(
    title: str, facts: list[tuple[str, str]], notes: list[str], stages: list[Stage]
) -> str:
    """The page's HTML.

    Args:
        title: heading of the page.
        facts: (name, value) pairs shown first.
        notes: what the reader must know, for instance that nothing was found.
        stages: in order.
    """
    contents = "".join(
        f'<tr><td><a href="#{s.name}">{html.escape(s.title)}</a></td><td>{_shapes(s)}</td></tr>'
        for s in stages
    )
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        "<table>",
        *(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts),
        "</table>",
        *(f'<p class="note">{html.escape(note)}</p>' for note in notes),
        f"<h2>Stages and their shapes</h2><table>{contents}</table>",
        *(_section(stage) for stage in stages),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _shapes(stage: Stage) -> str:
    return "<br>".join(
        f"{html.escape(name)}: <code>{html.escape(size)}</code>" for name, size in stage.shapes
    )


def _section(stage: Stage) -> str:
    number = stage.name.split("_")[0].lstrip("0")
    pictures = "".join(
        f'<figure><img alt="{html.escape(stage.title)}: {html.escape(name)}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}"></figure>'
        for name, data in stage.pictures.items()
    )
    return (
        f'<section id="{stage.name}"><h2>{number}. {html.escape(stage.title)}</h2>'
        f"<p>{html.escape(stage.text)}</p><p>{_shapes(stage)}</p>{pictures}</section>"
    )
