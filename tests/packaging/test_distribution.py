"""The wheel and what its metadata asks for."""

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "detr_panoptic_d2"
# Import name -> name on PyPI, where they differ.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}
# Installed by tools/install_detectron2.py.
FROM_INSTALLER = {"detectron2", "panopticapi", "tensorboard"}
# Imported where somebody asks for it; each is in an extra.
OPTIONAL = {
    "timm",
    "cv2",
    "gradio",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "wandb",
    "supervision",
}
EXTRA_OF = {"cv2": "opencv-python-headless"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what belongs to the source."""
    source = tmp_path_factory.mktemp("source")
    for name in (PACKAGE, "configs", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "."]
    done = subprocess.run([*command, "-w", "dist"], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def requirements(metadata):
    """Names in lower case, of the base and of all extras."""
    base, extras = set(), set()
    for line in metadata.get_all("Requires-Dist"):
        name = re.match(r"[\w.-]+", line).group().lower()
        (extras if "extra ==" in line else base).add(name)
    return base, extras


def third_party_imports():
    names = set()
    for path in (ROOT / PACKAGE).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {PACKAGE} - FROM_INSTALLER


def test_requirements_are_what_is_imported(metadata):
    base, extras = requirements(metadata)
    imported = third_party_imports()
    needed = {DISTRIBUTIONS.get(name, name) for name in imported - OPTIONAL}
    assert needed == base
    assert {EXTRA_OF.get(name, name) for name in imported & OPTIONAL} <= extras


def test_lowest_versions_are_those_of_the_metadata(metadata):
    """And nothing that requires NumPy below 2 is among the requirements."""
    lowest = {}
    for line in metadata.get_all("Requires-Dist"):
        if match := re.match(r"([\w.-]+)>=([\d.]+)", line):
            lowest.setdefault(match[1].lower(), match[2])
    text = (ROOT / ".ci" / "lowest.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", text, re.MULTILINE))
    assert {name.lower() for name in pinned} >= requirements(metadata)[0]
    for name, version in pinned.items():
        assert f"{version}.".startswith(f"{lowest[name.lower()]}."), name
    names = set.union(*requirements(metadata))
    assert not names & {"detectron2", "panopticapi", "panopticapi-lite"}


def test_wheel_holds_configs_and_types_but_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    configs = {p.relative_to(ROOT / "configs").as_posix() for p in ROOT.glob("configs/**/*.yaml")}
    assert {f"detr_panoptic_d2/configs/{name}" for name in configs} <= set(names)
    assert "detr_panoptic_d2/py.typed" in names
    folders = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert {folder for folder in folders if not folder.endswith(".data")} == {PACKAGE}
    assert not [name for name in names if "test" in name or "benchmark" in name]
    # Data files of the package, such as templates, are in it.
    for path in ROOT.glob("detr_panoptic_d2/**/*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert path.relative_to(ROOT).as_posix() in names


def test_the_installed_command_works_from_another_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "DETECTRON2_DATASETS": str(elsewhere)}

    def run(*words):
        return subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=elsewhere, env=environment
        )

    command = ["-m", "pip", "install", "--no-deps", "--no-compile", "--target", site, wheel]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    done = run("-c", "import importlib.util as u; print(u.find_spec('detr_panoptic_d2').origin)")
    assert done.stdout.startswith(str(site)), done.stdout + done.stderr
    # The config is found in the package, the image is not.
    script = site / "bin" / ("detr-panoptic.exe" if os.name == "nt" else "detr-panoptic")
    words = ["explain", "--config-file", "shapes/tiny.yaml", "--input", "no.png", "--output", "out"]
    done = run(script, *words)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Image 'no.png' does not exist"), done.stderr
    assert done.stderr.count("\n") == 1
