"""Hooks of mkdocs: add the configs that pages link to, and clean up docstring roles."""

import re
from pathlib import Path

from mkdocs.structure.files import File

_ROOT = Path(__file__).resolve().parents[1]
# A reStructuredText role before inline code, and the leading dots or tilde of the name.
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>[.~]*")


def on_files(files, config):
    """Add ``configs/`` to the site. In the repository it is outside of ``docs/``."""
    for path in sorted((_ROOT / "configs").rglob("*.yaml")):
        name = path.relative_to(_ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite links to configs so that they point into the site."""
    return markdown.replace("](../configs/", "](configs/")


def on_page_content(html, page, config, files):
    """Remove the roles from the rendered docstrings."""
    return _ROLE.sub("<code>", html)
