"""``tools/install_detectron2.py``: the wheel, existing installations, errors."""

import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "install_detectron2.py"


@pytest.fixture(scope="module")
def installer():
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def donor(installer, tmp_path):
    """A wheel like that of labgym: Detectron2 with a yaml, and other files."""
    files = {
        "LabGym/__init__.py": "",
        "LabGym/gui.py": "import wx",
        "LabGym/detectron2/__init__.py": '__version__ = "0.6"\n',
        "LabGym/detectron2/value.py": "from LabGym.detectron2 import __version__ as value\n",
        "LabGym/detectron2/model_zoo/__init__.py": "NAME = 'LabGym.detectron2.model_zoo'\n",
        "LabGym/detectron2/model_zoo/configs/a.yaml": "A: 1\n",
        "labgym-3.1.2.dist-info/METADATA": "Name: LabGym\n",
    }
    for file, before, _, _ in installer.REPAIRS:
        files[f"LabGym/{file}"] = f"if True:\n    {before}\n"
    wheel = tmp_path / "labgym-3.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def run(python, *arguments, **environment):
    return subprocess.run(
        [str(python), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_extract_takes_one_subpackage_and_repairs_it(installer, donor):
    files = installer.extract_package(donor)
    repaired = {file: after for file, _, after, _ in installer.REPAIRS}
    names = ("__init__.py", "model_zoo/__init__.py", "model_zoo/configs/a.yaml", "value.py")
    assert files.keys() - repaired.keys() == {f"detectron2/{name}" for name in names}
    assert files["detectron2/model_zoo/__init__.py"] == b"NAME = 'detectron2.model_zoo'\n"
    assert all(files[f] == f"if True:\n    {after}\n".encode() for f, after in repaired.items())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("LabGym/__init__.py", "", r"other\.whl contains no LabGym/detectron2/__init__"),
        ("LabGym/detectron2/left.py", "import LabGym", r"left\.py .* still names LabGym"),
        ("LabGym/detectron2/__init__.py", "", r"sem_seg_evaluation\.py contains .* 0 times"),
    ],
)
def test_extract_refuses_another_wheel(installer, tmp_path, name, text, message):
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name, text)
    with pytest.raises(installer.InstallError, match=message):
        installer.extract_package(wheel)


def test_wheel_is_reproducible_and_has_licence_and_record(installer, donor, tmp_path):
    files = installer.extract_package(donor)
    (tmp_path / "again").mkdir()
    again = installer.build_wheel(dict(reversed(files.items())), tmp_path / "again")
    wheel = installer.build_wheel(files, tmp_path)
    assert wheel.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    info = "detectron2-0.6.dist-info"
    metadata = content[f"{info}/METADATA"].decode()
    assert "Requires-Dist: setuptools<81\n" in metadata
    assert "torch" not in [line.split(": ")[-1] for line in metadata.splitlines()]
    assert b"Apache License" in content[f"{info}/LICENSE"]
    notice = content[f"{info}/NOTICE"].decode()
    assert all(r.file in notice and r.after in notice for r in installer.REPAIRS)
    lines = [line.split(",") for line in content[f"{info}/RECORD"].decode().splitlines()]
    assert [name for name, _, _ in lines] == list(content)
    for name, digest, size in lines[:-1]:
        sha = base64.urlsafe_b64encode(hashlib.sha256(content[name]).digest()).rstrip(b"=")
        assert (digest, int(size)) == (f"sha256={sha.decode()}", len(content[name]))


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """The interpreter of a fresh virtual environment with nothing but pip."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    done = run(sys.executable, "-m", "venv", folder)
    assert done.returncode == 0, done.stderr
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def test_built_wheel_is_a_distribution_for_pip(installer, donor, tmp_path, bare_python):
    wheel = installer.build_wheel(installer.extract_package(donor), tmp_path)
    done = run(bare_python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    assert done.returncode == 0, done.stderr
    listed = run(bare_python, "-m", "pip", "list", "--disable-pip-version-check").stdout
    assert ["detectron2", "0.6"] in [line.split() for line in listed.splitlines()]
    code = "from detectron2.value import value; print(value)"
    assert run(bare_python, "-c", code).stdout == "0.6\n"
    try:
        # Kept, and the network is not needed.
        done = run(bare_python, SCRIPT, PIP_NO_INDEX="1", PIP_FIND_LINKS="")
        assert "Detectron2 is already installed (0.6 at" in done.stdout
    finally:
        done = run(bare_python, "-m", "pip", "uninstall", "--yes", "detectron2")
        assert done.returncode == 0, done.stderr


def test_download_errors_are_one_line(bare_python, donor):
    """Without network, and with a wheel that has another hash."""
    for folder, expected in (("", "is the package index reachable?"), (donor.parent, "hashes")):
        done = run(bare_python, SCRIPT, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder))
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("install_detectron2: Detectron2 is not installed, and labgym==3.1.2")
        assert expected in line.lower()


def test_what_is_there_is_kept(bare_python, tmp_path):
    """Detectron2 on the path without metadata, as in a source tree, counts as installed."""
    for name in ("detectron2", "panopticapi", "cv2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported')\n")
    done = run(bare_python, SCRIPT, PIP_NO_INDEX="1", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"already installed (no version at {tmp_path / 'detectron2'})." in done.stdout
