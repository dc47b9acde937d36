"""Package detr_panoptic_d2. Detectron2 itself is not named here: PyPI does not have it.

``tools/install_detectron2.py`` (shipped as a script) installs it, and ``panopticapi-lite`` with it,
whose metadata asks for NumPy below 2 without need; docs/install.md tells the whole story.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
NAME = "detr_panoptic_d2"


def read_version() -> str:
    text = (ROOT / NAME / "_version.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


def read_readme() -> str:
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


TIMM = ["timm>=1.0"]
HUGGINGFACE = ["transformers>=4.45", "safetensors>=0.4"]
VIDEO = ["opencv-python-headless"]
WEB = ["gradio>=6"]

setup(
    name="detr-panoptic-d2",
    version=read_version(),
    description="DETR's panoptic segmentation as a Detectron2 plugin",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=[NAME, f"{NAME}.*"]), f"{NAME}.configs"],
    package_dir={f"{NAME}.configs": "configs"},
    package_data={f"{NAME}.configs": ["*.yaml", "**/*.yaml"]},
    scripts=["tools/install_detectron2.py"],
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=1.26",
        "scipy>=1.11",
        "Pillow>=10",
        "fvcore>=0.1.5,<0.1.6",
        "pycocotools>=2.0.7",
        "tabulate",
        "tqdm",
    ],
    extras_require={
        "timm": TIMM,
        "huggingface": HUGGINGFACE,
        "video": VIDEO,
        "web": WEB,
        "docs": ["mkdocs>=1.6,<2", "mkdocstrings[python]>=0.26"],
        "dev": [
            "pytest>=8",
            "hypothesis>=6",
            "ruff>=0.17,<0.18",
            "selenium>=4.15",
            "pip-audit>=2.7",
            *TIMM,
            *HUGGINGFACE,
            *VIDEO,
            *WEB,
        ],
    },
    zip_safe=False,
)
