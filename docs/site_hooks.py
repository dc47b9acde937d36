"""What the site needs beyond Markdown: the configs that pages link to, and plain names."""

import re
from pathlib import Path

from mkdocs.structure.files import File

_ROOT = Path(__file__).resolve().parents[1]
# A role of reStructuredText before code, as the docstrings have them, and the dots or tilde in it.
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>[.~]*")


def on_files(files, config):
    """Add ``configs/`` to the site; on GitHub the pages link to it beside ``docs/``."""
    for path in sorted((_ROOT / "configs").rglob("*.yaml")):
        name = path.relative_to(_ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point links at the configs of the site."""
    return markdown.replace("](../configs/", "](configs/")


def on_page_content(html, page, config, files):
    """Take the roles out of the docstrings."""
    return _ROLE.sub("<code>", html)
