"""``tools/install_detectron2.py``: the wheel it builds, what it keeps, what it says."""

import base64
import hashlib
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
def donor(tmp_path):
    """A wheel like the donor's: the subpackage wanted, files that are not, and a yaml."""
    files = {
        "LabGym/__init__.py": "",
        "LabGym/gui.py": "import wx",
        "LabGym/detectron2/__init__.py": '__version__ = "0.6"\n',
        "LabGym/detectron2/value.py": "from LabGym.detectron2 import __version__ as value\n",
        "LabGym/detectron2/model_zoo/__init__.py": "NAME = 'LabGym.detectron2.model_zoo'\n",
        "LabGym/detectron2/model_zoo/configs/a.yaml": "A: 1\n",
        "labgym-3.1.2.dist-info/METADATA": "Name: LabGym\n",
    }
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


def test_rename(installer):
    text = b'from LabGym.detectron2.config import x\nlogging.getLogger("LabGym.detectron2")\n'
    expected = b'from detectron2.config import x\nlogging.getLogger("detectron2")\n'
    assert installer.rename(text) == expected


def test_extract_takes_one_subpackage_with_its_data(installer, donor):
    files = installer.extract_package(donor)
    assert sorted(files) == [
        "detectron2/__init__.py",
        "detectron2/model_zoo/__init__.py",
        "detectron2/model_zoo/configs/a.yaml",
        "detectron2/value.py",
    ]
    assert files["detectron2/model_zoo/__init__.py"] == b"NAME = 'detectron2.model_zoo'\n"


def test_extract_refuses_what_is_no_detectron2(installer, donor, tmp_path):
    empty = tmp_path / "empty.whl"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("LabGym/__init__.py", "")
    with pytest.raises(installer.InstallError, match=r"empty\.whl holds no LabGym/detectron2"):
        installer.extract_package(empty)
    with zipfile.ZipFile(donor, "a") as archive:
        archive.writestr("LabGym/detectron2/left.py", "import LabGym\n")
    with pytest.raises(installer.InstallError, match=r"left\.py .* still speaks of LabGym"):
        installer.extract_package(donor)


def test_wheel_has_metadata_licence_and_true_record(installer, donor, tmp_path):
    wheel = installer.build_wheel(installer.extract_package(donor), tmp_path)
    assert wheel.name == "detectron2-0.6-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    info = "detectron2-0.6.dist-info"
    metadata = content[f"{info}/METADATA"].decode()
    assert "Name: detectron2\nVersion: 0.6\n" in metadata
    assert "License: Apache-2.0\n" in metadata
    assert "Requires-Dist: setuptools<81\n" in metadata
    assert "torch" not in [line.split(": ")[-1] for line in metadata.splitlines()]
    assert b"Apache License" in content[f"{info}/LICENSE"]
    assert b"LabGym.detectron2" in content[f"{info}/NOTICE"]
    lines = [line.split(",") for line in content[f"{info}/RECORD"].decode().splitlines()]
    assert [name for name, _, _ in lines] == list(content)
    for name, digest, size in lines[:-1]:
        sha = base64.urlsafe_b64encode(hashlib.sha256(content[name]).digest()).rstrip(b"=")
        assert (digest, int(size)) == (f"sha256={sha.decode()}", len(content[name]))


def test_wheel_is_reproducible(installer, donor, tmp_path):
    files = installer.extract_package(donor)
    (tmp_path / "again").mkdir()
    first = installer.build_wheel(files, tmp_path)
    second = installer.build_wheel(dict(reversed(files.items())), tmp_path / "again")
    assert first.read_bytes() == second.read_bytes()


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
    done = run(bare_python, "-m", "pip", "uninstall", "--yes", "detectron2")
    assert done.returncode == 0, done.stderr


def test_without_network_it_says_so_in_one_line(bare_python):
    done = run(bare_python, SCRIPT, PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("install_detectron2: Detectron2 is not installed and the wheel")
    assert "labgym==3.1.2" in lines[0]
    assert "is the package index reachable?" in lines[0]


def test_a_wheel_with_another_hash_is_refused(bare_python, donor):
    done = run(bare_python, SCRIPT, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(donor.parent))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "HASHES" in done.stderr.upper()


def test_what_is_there_is_kept(bare_python, tmp_path):
    """Detectron2 on the path without metadata, as in a source tree, counts as installed."""
    for name in ("detectron2", "panopticapi", "cv2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported')\n")
    done = run(bare_python, SCRIPT, PIP_NO_INDEX="1", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"already installed (without metadata at {tmp_path / 'detectron2'}); kept." in (
        done.stdout
    )
    assert done.stdout.endswith("Nothing to do.\n")


def test_a_half_copied_package_does_not_count(bare_python):
    """What an interrupted installation leaves in site-packages has no metadata and no import."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    left = Path(run(bare_python, "-c", code).stdout.strip()) / "detectron2"
    left.mkdir()
    (left / "__init__.py").write_text("from .utils import nothing\n")
    try:
        done = run(bare_python, SCRIPT, PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    finally:
        (left / "__init__.py").unlink()
    assert done.returncode == 1
    assert "Detectron2 is not installed" in done.stderr


def test_second_run_in_this_environment_does_nothing():
    pytest.importorskip("cv2", reason="the installer adds OpenCV, which is not here")
    done = run(sys.executable, SCRIPT, PIP_NO_INDEX="1")
    assert done.returncode == 0, done.stderr
    assert "Detectron2 is already installed" in done.stdout
    assert done.stdout.endswith("Nothing to do.\n")
