"""README and docs: links, commands, snippets, and the site."""

import contextlib
import importlib.util
import operator
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detr_panoptic_d2 import add_detr_panoptic_config, get_config_file
from detr_panoptic_d2.checkpoint.description import describe
from detr_panoptic_d2.cli import build_parser
from detr_panoptic_d2.config import merged_cfg
from detr_panoptic_d2.engine import setup_cfg

REPO = Path(__file__).parents[1]
DOCS = REPO / "docs"
PAGES = [p.relative_to(DOCS).as_posix() for p in sorted(DOCS.rglob("*.md"))]
TEXTS = [*sorted(DOCS.rglob("*.md")), *(REPO / n for n in ("README.md", "CONTRIBUTING.md"))]
PROGRAMS = ("detr-panoptic ", "tools/train_net.py ")
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


def test_the_reference_names_modules_that_exist():
    names = [
        name
        for page in (DOCS / "api").glob("*.md")
        for name in re.findall("^::: (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(names) > 20
    assert [name for name in names if importlib.util.find_spec(name) is None] == []


def test_site(tmp_path):
    """The site builds without a warning."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra 'docs')")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed (extra 'docs')")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(REPO / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    assert (tmp_path / "architecture" / "index.html").is_file()


def code_lines(text):
    """Lines of a page's code, continued ones joined, without comments."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line[:4] == "    "]
    return [re.sub(r"\s+#.*", "", line) for line in lines]


def commands():
    found = []
    for path in TEXTS:
        for line in code_lines(path.read_text(encoding="utf-8")):
            for program in PROGRAMS:
                # It follows variables of the environment or torchrun.
                before, name, arguments = line.partition(program)
                if name and re.fullmatch(r"((\w+=\S+ )*|torchrun .*)", before):
                    found.append((path.name, program.strip(), arguments))
    return found


def test_commands_of_the_docs_are_understood():
    """Every command parses, and names configs and keys that exist."""
    assert len(commands()) > 40
    for page, program, arguments in commands():
        words = shlex.split(arguments)
        if program != "detr-panoptic":
            words = ["train", *words]
        if words[0] == "COMMAND":
            continue
        try:
            with open(os.devnull, "w") as quiet, contextlib.redirect_stderr(quiet):
                args = build_parser().parse_args(words)
        except SystemExit as end:
            assert end.code == 0, f"{page}: {program} {arguments}"
            continue
        config = getattr(args, "config_file", None)
        is_ours = config and not config.startswith(("CONFIG", "mine", "pennfudan", "output"))
        if is_ours:
            assert (REPO / config).is_file() or get_config_file(config), f"{page}: {arguments}"
        if config and "[...]" not in arguments and "$" not in arguments:
            base = config.removeprefix("configs/") if is_ours else "own_data/finetune_R50.yaml"
            cfg = merged_cfg(base, args.opts)
            has_masks = cfg.MODEL.MASK_ON or not cfg.MODEL.DETR.TEST.PANOPTIC_ON
            assert has_masks, f"{page}: {arguments}"


def test_the_architecture_page_names_code_that_exists():
    """In "In the code": ``Class.method`` or a function, followed by its file."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    paragraphs = re.findall(r"^In the code: (.*?)\n\n", page, re.MULTILINE | re.DOTALL)
    assert len(paragraphs) == 5
    for paragraph in paragraphs:
        names = []
        for name in re.findall("`([^`]+)`", paragraph):
            if not name.endswith(".py"):
                names.append(name)
                continue
            module = importlib.import_module("detr_panoptic_d2." + name[:-3].replace("/", "."))
            for owner in names:
                assert operator.attrgetter(owner)(module), f"{name}: {owner}"
            names = []


def snippets():
    """Blocks of Python in README and docs that stand on their own."""
    found = []
    for path in TEXTS:
        if path.name == "deploy.md":
            # Needs an exported model; tests/export runs it.
            continue
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE):
            code = re.sub("^    ", "", block.strip("\n"), flags=re.MULTILINE)
            if re.match(r"from [\w.]+ import |import \w", code):
                found.append(pytest.param(code, id=f"{path.stem}-{len(found)}"))
    return found


@pytest.fixture
def names_of_the_docs(tmp_path, monkeypatch, panoptic_set, tiny_model, make_input, scene):
    """Files under the names of the docs, in the current directory, and variables."""
    root = panoptic_set("mine", [scene, scene])
    (tmp_path / "images").symlink_to(root / "images")
    for folder in (tmp_path, root):
        (folder / "panoptic_train").symlink_to(root / "panoptic")
        (folder / "panoptic_train.json").symlink_to(root / "panoptic.json")
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / "photo.jpg")
    model = tiny_model()
    described = describe(setup_cfg("shapes/tiny.yaml"))
    (tmp_path / "output" / "mine").mkdir(parents=True)
    for name in ("model.pth", "detr-r50-panoptic-00ce5173.pth", "output/mine/model_best.pth"):
        torch.save({"model": model.state_dict(), **described}, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    cfg = get_cfg()
    add_detr_panoptic_config(cfg)
    before = set(DatasetCatalog.list())
    inputs = [make_input(64, 64)]
    yield {"cfg": cfg, "model": model, "path": "model.pth", "batched_inputs": inputs}
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("code", snippets())
def test_python_of_the_docs_runs(code, names_of_the_docs):
    """With the smallest model in place of COCO's."""
    tiny = get_config_file("shapes/tiny.yaml")
    code = code.replace("configs/detr_panoptic_R50.yaml", str(tiny))
    code = code.replace("detr_panoptic_R50.yaml", "shapes/tiny.yaml")
    exec(compile(code, "<docs>", "exec"), names_of_the_docs)
