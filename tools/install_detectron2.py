#!/usr/bin/env python3
"""Install Detectron2 and ``panopticapi`` into the Python that runs this, from PyPI alone.

Detectron2 is not on PyPI under its own name, but the wheel of ``labgym`` carries a complete copy of
it (Apache-2.0) as its subpackage ``LabGym.detectron2``. This takes that one subpackage out of the
pinned, hash-checked wheel, gives it its own name back, and installs it as the distribution
``detectron2``. Pure Python: Detectron2's compiled operators are not in it; panoptic segmentation
uses none of them. Two faults of the copy's date (January 2024) are repaired, see ``REPAIRS``.

A Detectron2 that is already there is kept, whatever it is. Only the standard library and pip are
needed. A second run finds all in place and does nothing.
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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = "labgym==3.1.2"
SOURCE_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
SOURCE_PREFIX = "LabGym/detectron2/"
SOURCE_MODULE = b"LabGym.detectron2"

NAME = "detectron2"
VERSION = "0.6"
# What Detectron2's own setup.py asks for, and NumPy (imported everywhere) and setuptools besides:
# detectron2.model_zoo imports pkg_resources, which setuptools 81 no longer has. Torch is left out
# as Detectron2 leaves it out: which build of it is the user's choice.
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
# Installed without its dependencies: it names NumPy below 2 but runs with NumPy 2, and what it
# imports (NumPy, Pillow, pycocotools) is installed with Detectron2.
PANOPTICAPI = "panopticapi-lite==0.2.0"
# detectron2.utils.visualizer imports cv2; any OpenCV will do, so this comes only if there is none.
OPENCV = "opencv-python-headless"
# Never moved to another version by what is installed here.
KEPT = ("torch", "torchvision", "numpy")


class Repair(NamedTuple):
    """One line of the copy that is replaced; it must occur exactly once in its file."""

    file: str
    before: str
    after: str
    reason: str


# Both faults are repaired in the same way in Detectron2's repository since then.
REPAIRS = (
    Repair(
        f"{NAME}/evaluation/sem_seg_evaluation.py",
        "array = np.array(Image.open(f), copy=copy, dtype=dtype)",
        "array = (np.array if copy else np.asarray)(Image.open(f), dtype=dtype)",
        "NumPy 2 raises where copy=False needs a copy: SemSegEvaluator could read no file",
    ),
    Repair(
        f"{NAME}/layers/mask_ops.py",
        "mask = np.array(mask, copy=False)",
        "mask = np.asarray(mask)",
        "NumPy 2 raises where copy=False needs a copy",
    ),
    Repair(
        f"{NAME}/data/common.py",
        "self._rng.sample(self._fallback_candidates, k=1)[0]",
        "self._rng.sample(list(self._fallback_candidates), k=1)[0]",
        "Python 3.11 and newer sample no sets: a mapper that returned None ended the training",
    ),
)

SUMMARY = "Detectron2 without its compiled operators, repacked from the labgym wheel"
NOTICE = f"""\
Detectron2, Copyright (c) Facebook, Inc. and its affiliates, under the Apache License 2.0:
https://github.com/facebookresearch/detectron2

This copy was taken from the subpackage LabGym.detectron2 of the wheel {SOURCE} on PyPI
(sha256 {SOURCE_SHA256}).
Detectron2's compiled operators (detectron2._C) are not part of it. What was changed:
- the module name LabGym.detectron2 was turned back into detectron2
""" + "".join(f"- {r.file}: `{r.before}` became `{r.after}` ({r.reason})\n" for r in REPAIRS)
LICENCE_URL = "https://www.apache.org/licenses/LICENSE-2.0"

# Zip files hold no dates before 1980; a fixed one makes the same wheel every time.
ZIP_DATE = (1980, 1, 1, 0, 0, 0)


class InstallError(RuntimeError):
    """Something the user has to know, in one sentence."""


def repair(files: dict[str, bytes]) -> None:
    """Apply every one of ``REPAIRS`` to ``files`` (archive name -> content), in place.

    Raises:
        InstallError: a line that should be replaced is not there exactly once.
    """
    for name, before, after, _ in REPAIRS:
        found = files.get(name, b"").count(before.encode())
        if found != 1:
            raise InstallError(f"{name} has the line `{before}` {found} times, but once is meant.")
        files[name] = files[name].replace(before.encode(), after.encode())


def extract_package(wheel: Path) -> dict[str, bytes]:
    """Return the files of the Detectron2 inside ``wheel``: archive name -> renamed content.

    Raises:
        InstallError: the wheel has no such subpackage, a name of the donor is left in a file, or a
            repair does not apply.
    """
    files = {}
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if not info.is_dir() and info.filename.startswith(SOURCE_PREFIX):
                target = f"{NAME}/{info.filename[len(SOURCE_PREFIX) :]}"
                files[target] = archive.read(info).replace(SOURCE_MODULE, NAME.encode())
                if b"LabGym" in files[target]:
                    raise InstallError(f"{info.filename} in {wheel.name} still speaks of LabGym.")
    if f"{NAME}/__init__.py" not in files:
        raise InstallError(f"{wheel.name} holds no {SOURCE_PREFIX}__init__.py.")
    repair(files)
    return files


def licence_text() -> str:
    """Return the Apache licence: from the checkout, or from the installed detr-panoptic-d2."""
    places = [Path(__file__).resolve().parent.parent / "LICENSE"]
    for distribution in importlib.metadata.distributions(name="detr-panoptic-d2"):
        places += [Path(f.locate()) for f in distribution.files or () if f.name == "LICENSE"]
    for place in places:
        if place.is_file() and "Apache License" in place.read_text(encoding="utf-8"):
            return place.read_text(encoding="utf-8")
    return f"Licensed under the Apache License, Version 2.0: {LICENCE_URL}\n"


def metadata_text() -> str:
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {NAME}",
        f"Version: {VERSION}",
        f"Summary: {SUMMARY}",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "License: Apache-2.0",
        "License-File: LICENSE",
        "License-File: NOTICE",
        "Requires-Python: >=3.10",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
    ]
    return "\n".join(lines) + f"\n\n{NOTICE}"


def build_wheel(files: dict[str, bytes], folder: Path) -> Path:
    """Write the wheel of the distribution ``detectron2``; the same files give the same bytes.

    Args:
        files: archive name -> content, as :func:`extract_package` returns them.
        folder: where the wheel is written.
    """
    info = f"{NAME}-{VERSION}.dist-info"
    entries = dict(sorted(files.items()))
    entries[f"{info}/LICENSE"] = licence_text().encode()
    entries[f"{info}/NOTICE"] = NOTICE.encode()
    entries[f"{info}/METADATA"] = metadata_text().encode()
    entries[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: detr_panoptic_d2\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n"
    )
    entries[f"{info}/RECORD"] = "".join(record_lines(entries, info)).encode()
    wheel = folder / f"{NAME}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name, ZIP_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return wheel


def record_lines(entries: dict[str, bytes], info: str) -> Iterator[str]:
    """Yield the lines of a wheel's RECORD (PyPA specification "Recording installed projects")."""
    for name, content in entries.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        yield f"{name},sha256={digest},{len(content)}\n"
    yield f"{info}/RECORD,,\n"


def is_there(module: str) -> bool:
    """Tell whether ``import module`` finds a package or module, without importing it."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def version_of(distribution: str) -> str | None:
    found = next(iter(importlib.metadata.distributions(name=distribution)), None)
    return found.version if found else None


def imports() -> str:
    """Import the Detectron2 of this Python in a fresh process; return "" or the error's line."""
    code = f"import {NAME}.engine, {NAME}.evaluation, {NAME}.modeling"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stderr.strip() or "no message").splitlines()[-1]


def pip(*arguments: str) -> str:
    """Run pip with this Python; return "" when it worked, else its first line of error."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run([*command, *arguments], stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "")


def download_source(folder: Path) -> Path:
    """Download the pinned wheel into ``folder``; pip compares its hash.

    Raises:
        InstallError: it could not be had, or is not the file whose hash is known.
    """
    pinned = folder / "source.txt"
    pinned.write_text(f"{SOURCE} --hash=sha256:{SOURCE_SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--ignore-requires-python", "--only-binary", ":all:", "--retries", "2"]
    options += ["--require-hashes", "--dest", str(folder), "--requirement", str(pinned)]
    error = pip("download", "--quiet", *options)
    if error:
        raise InstallError(
            f"Detectron2 is not installed and the wheel it is taken from ({SOURCE}) could not be "
            f"downloaded; is the package index reachable? pip says: {error}"
        )
    return next(folder.glob("*.whl"))


def install(requirements: list[str], folder: Path, *options: str) -> None:
    """Install with pip, leaving torch, torchvision and NumPy at the versions they have.

    Raises:
        InstallError: pip could not.
    """
    versions = {name: version_of(name) for name in KEPT}
    kept = folder / "kept.txt"
    lines = [f"{name}=={version}\n" for name, version in versions.items() if version]
    kept.write_text("".join(lines), encoding="utf-8")
    error = pip("install", *options, "--constraint", str(kept), *requirements)
    if error:
        names = ", ".join(Path(requirement).name for requirement in requirements)
        raise InstallError(f"{names} could not be installed: {error}")


def install_missing(folder: Path) -> bool:
    """Install what is missing of Detectron2, panopticapi and OpenCV; return if anything was."""
    missing = [] if is_there("cv2") else [OPENCV]
    if is_there(NAME):
        where = Path(importlib.util.find_spec(NAME).origin).parent
        print(f"Detectron2 is already installed ({version_of(NAME) or 'no version'} at {where}).")
    else:
        missing.append(str(build_wheel(extract_package(download_source(folder)), folder)))
    if missing:
        install(missing, folder)
    if not is_there("panopticapi"):
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
        if not is_there("torch"):
            print("Installed. PyTorch is still missing: pip install torch torchvision")
            return 0
        error = imports()
        if error:
            raise InstallError(f"Detectron2 is installed, but cannot be imported: {error}")
    except InstallError as error:
        sys.stderr.write(f"install_detectron2: {error}\n")
        return 1
    print("Detectron2 is installed and can be imported.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
