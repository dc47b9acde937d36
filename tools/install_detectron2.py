#!/usr/bin/env python3
"""Install Detectron2 and ``panopticapi`` from PyPI alone, with the Python that runs this script.

PyPI does not have Detectron2 under its own name, but the wheel of ``labgym`` contains a copy of it
(Apache-2.0) as the subpackage ``LabGym.detectron2``. This script downloads the wheel, checks its
hash, extracts the subpackage, renames it back, and installs it as the distribution ``detectron2``.
It is pure Python, without Detectron2's compiled operators, which panoptic segmentation does not
use. The copy is of January 2024; three lines of it are replaced, see ``REPAIRS``.

An existing Detectron2 is left untouched. Only pip and the standard library are needed.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

SOURCE = "labgym==3.1.2"
SOURCE_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
SOURCE_PREFIX = "LabGym/detectron2/"
SOURCE_MODULE = b"LabGym.detectron2"

NAME = "detectron2"
VERSION = "0.6"
# The requirements of Detectron2's setup.py, NumPy, and a setuptools that still has pkg_resources,
# which detectron2.model_zoo imports. Torch is missing as there: the user chooses its build.
REQUIREMENTS = (
    "Pillow>=7.1",
    "black",
    "cloudpickle",
    "fvcore<0.1.6,>=0.1.5",
    "hydra-core>=1.1",
    "iopath<=0.1.10,>=0.1.7",
    "matplotlib",
    "numpy",
    "omegaconf<2.4,>=2.1",
    "packaging",
    "pycocotools>=2.0.2",
    "setuptools<81",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "tqdm>4.29.0",
    "yacs>=0.1.8",
)
# Installed without dependencies: its metadata requires NumPy below 2, but it works with NumPy 2.
PANOPTICAPI = "panopticapi-lite==0.2.0"
# detectron2.utils.visualizer imports cv2. Installed only if there is no OpenCV.
OPENCV = "opencv-python-headless"
# Their versions are never changed.
KEPT = ("torch", "torchvision", "numpy")


class Repair(NamedTuple):
    """A replacement in a file of the copy. ``before`` must occur exactly once."""

    file: str
    before: str
    after: str
    reason: str


# Detectron2's repository has the same repairs today.
REPAIRS = (
    Repair(
        f"{NAME}/evaluation/sem_seg_evaluation.py",
        "array = np.array(Image.open(f), copy=copy, dtype=dtype)",
        "array = (np.array if copy else np.asarray)(Image.open(f), dtype=dtype)",
        "NumPy 2 raises an error if copy=False needs a copy",
    ),
    Repair(
        f"{NAME}/layers/mask_ops.py",
        "mask = np.array(mask, copy=False)",
        "mask = np.asarray(mask)",
        "NumPy 2 raises an error if copy=False needs a copy",
    ),
    Repair(
        f"{NAME}/data/common.py",
        "self._rng.sample(self._fallback_candidates, k=1)[0]",
        "self._rng.sample(list(self._fallback_candidates), k=1)[0]",
        "random.sample does not accept a set since Python 3.11",
    ),
)

SUMMARY = "Detectron2 without its compiled operators, repacked from the labgym wheel"
NOTICE = f"""\
Detectron2, Copyright (c) Facebook, Inc. and its affiliates, under the Apache License 2.0
(https://www.apache.org/licenses/LICENSE-2.0): https://github.com/facebookresearch/detectron2

This copy is the subpackage LabGym.detectron2 of the wheel {SOURCE} on PyPI
(sha256 {SOURCE_SHA256}), without Detectron2's compiled operators (detectron2._C). Changes:
- the module name LabGym.detectron2 was replaced by detectron2
""" + "".join(f"- {r.file}: `{r.before}` became `{r.after}` ({r.reason})\n" for r in REPAIRS)
# Zip files store no dates before 1980. A fixed date makes the wheel reproducible.
ZIP_DATE = (1980, 1, 1, 0, 0, 0)


class InstallError(RuntimeError):
    """An error for the user, in one sentence."""


def extract_package(wheel: Path) -> dict[str, bytes]:
    """Return the repaired files of Detectron2 in the wheel of labgym, by their new names.

    Raises:
        InstallError: the wheel has no Detectron2, or another one than expected.
    """
    files = {}
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if not info.is_dir() and info.filename.startswith(SOURCE_PREFIX):
                target = f"{NAME}/{info.filename[len(SOURCE_PREFIX) :]}"
                files[target] = archive.read(info).replace(SOURCE_MODULE, NAME.encode())
                if b"LabGym" in files[target]:
                    raise InstallError(f"{info.filename} in {wheel.name} still names LabGym.")
    if f"{NAME}/__init__.py" not in files:
        raise InstallError(f"{wheel.name} contains no {SOURCE_PREFIX}__init__.py.")
    for name, before, after, _ in REPAIRS:
        count = files.get(name, b"").count(before.encode())
        if count != 1:
            raise InstallError(f"{name} contains `{before}` {count} times instead of once.")
        files[name] = files[name].replace(before.encode(), after.encode())
    return files


def metadata_text() -> str:
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {NAME}",
        f"Version: {VERSION}",
        f"Summary: {SUMMARY}",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "License: Apache-2.0",
        "License-File: NOTICE",
        "Requires-Python: >=3.10",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
    ]
    return "\n".join(lines) + f"\n\n{NOTICE}"


def build_wheel(files: dict[str, bytes], folder: Path) -> Path:
    """Write files to a wheel of the distribution ``detectron2``. Equal files give equal bytes."""
    info = f"{NAME}-{VERSION}.dist-info"
    entries = dict(sorted(files.items()))
    licence = Path(__file__).resolve().parents[1] / "LICENSE"  # of a checkout
    if licence.is_file():
        entries[f"{info}/LICENSE"] = licence.read_bytes()
    entries[f"{info}/NOTICE"] = NOTICE.encode()
    entries[f"{info}/METADATA"] = metadata_text().encode()
    entries[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: detr_panoptic_d2\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n"
    )
    # PyPA specification "Recording installed projects".
    record = ""
    for name, content in entries.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    entries[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = folder / f"{NAME}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name, ZIP_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return wheel


def is_installed(module: str) -> bool:
    """Return whether ``import module`` finds a module, without importing it."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def version_of(distribution: str) -> str | None:
    return next((d.version for d in importlib.metadata.distributions(name=distribution)), None)


def pip(*arguments: str) -> str:
    """Run pip with this Python. Return an empty string on success, else a line of its error."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run([*command, *arguments], stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "")


def download_source(folder: Path) -> Path:
    """Download the wheel of labgym into ``folder``; pip checks its hash."""
    pinned = folder / "source.txt"
    pinned.write_text(f"{SOURCE} --hash=sha256:{SOURCE_SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--ignore-requires-python", "--only-binary", ":all:", "--retries", "2"]
    options += ["--require-hashes", "--dest", str(folder), "--requirement", str(pinned)]
    error = pip("download", "--quiet", *options)
    if error:
        raise InstallError(
            f"Detectron2 is not installed, and {SOURCE}, which contains it, cannot be downloaded. "
            f"Is the package index reachable? pip: {error}"
        )
    return next(folder.glob("*.whl"))


def install(requirements: list[str], folder: Path, *options: str) -> None:
    """Install with pip. The versions of torch, torchvision and NumPy do not change."""
    versions = {name: version_of(name) for name in KEPT}
    constraints = folder / "kept.txt"
    lines = [f"{name}=={version}\n" for name, version in versions.items() if version]
    constraints.write_text("".join(lines), encoding="utf-8")
    error = pip("install", *options, "--constraint", str(constraints), *requirements)
    if error:
        names = ", ".join(Path(requirement).name for requirement in requirements)
        raise InstallError(f"{names} cannot be installed. pip: {error}")


def install_missing(folder: Path) -> bool:
    """Install Detectron2, panopticapi and OpenCV if missing; return whether anything was."""
    missing = [] if is_installed("cv2") else [OPENCV]
    if is_installed(NAME):
        where = Path(importlib.util.find_spec(NAME).origin).parent
        print(f"Detectron2 is already installed ({version_of(NAME) or 'no version'} at {where}).")
    else:
        missing.append(str(build_wheel(extract_package(download_source(folder)), folder)))
    if missing:
        install(missing, folder)
    if not is_installed("panopticapi"):
        install([PANOPTICAPI], folder, "--no-deps")
        return True
    return bool(missing)


def main() -> int:
    try:
        python = sys.version_info[:2]
        if python < (3, 10):
            raise InstallError(f"Python 3.10 or newer is needed; this is {python[0]}.{python[1]}.")
        if importlib.util.find_spec("pip") is None:
            raise InstallError("pip is missing: run `python -m ensurepip` first.")
        with tempfile.TemporaryDirectory() as folder:
            if not install_missing(Path(folder)):
                print("Nothing to do.")
                return 0
        if not is_installed("torch"):
            print("Installed. PyTorch is still missing: pip install torch torchvision")
            return 0
        code = f"import {NAME}.engine, {NAME}.evaluation, {NAME}.modeling"
        done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            line = done.stderr.strip().rpartition("\n")[2]
            raise InstallError(f"Detectron2 is installed, but cannot be imported: {line}")
    except InstallError as error:
        sys.stderr.write(f"install_detectron2: {error}\n")
        return 1
    print("Detectron2 is installed and can be imported.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
