import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
DOCS = REPO / "docs"
PAGES = [p.relative_to(DOCS).as_posix() for p in sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page):
    """Anchors of a page's headings, as GitHub and mkdocs make them."""
    found = set()
    for heading in HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        plain = re.sub(r"[^\w\s-]", "", heading.strip().lower())
        found.add(re.sub(r"[\s-]+", "-", plain).strip("-"))
    return found


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = DOCS / name
    broken = []
    for link in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (
            anchor and target.suffix == ".md" and anchor not in anchors(target)
        ):
            broken.append(link)
    assert not broken, f"docs/{name} has links that lead nowhere: {broken}"


def test_figures_are_small_and_used():
    pictures = sorted((DOCS / "images").glob("*.png"))
    assert pictures
    assert sum(p.stat().st_size for p in pictures) < 2_000_000
    texts = [*DOCS.rglob("*.md"), REPO / "README.md", REPO / "Makefile"]
    text = "\n".join(p.read_text(encoding="utf-8") for p in texts)
    unused = [p.name for p in pictures if f"images/{p.name}" not in text]
    assert not unused


def test_site(tmp_path):
    """The site builds without a warning."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra 'docs')")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed (extra 'docs')")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(REPO / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    assert (tmp_path / "architecture" / "index.html").is_file()
