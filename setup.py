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
VIDEO = ["opencv-python-headless"]
WEB = ["gradio>=6"]
RUNTIME = ["onnxruntime>=1.19", "openvino>=2024.4"]
EXPORT = [*RUNTIME, "onnx>=1.16", "onnxscript>=0.2", "nncf>=2.14"]
DOCS = ["mkdocs>=1.6,<2", "mkdocstrings[python]>=0.26"]
# Hugging Face's DETR, which tools/benchmark and the tests of parity compare with.
BENCHMARK = ["transformers>=4.45"]

setup(
    name="detr-panoptic-d2",
    version=read_version(),
    description="DETR's panoptic segmentation as a Detectron2 plugin",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="The detr_panoptic_d2 authors",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    project_urls={"Paper": "https://arxiv.org/abs/2005.12872"},
    keywords=["panoptic segmentation", "DETR", "Detectron2", "transformer", "PyTorch"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=[NAME, f"{NAME}.*"]),
        f"{NAME}.configs",
    ],
    package_dir={f"{NAME}.configs": "configs"},
    package_data={
        "": ["*.css", "*.jinja"],
        NAME: ["py.typed"],
        f"{NAME}.configs": ["*.yaml", "**/*.yaml"],
    },
    scripts=["tools/install_detectron2.py"],
    entry_points={"console_scripts": ["detr-panoptic = detr_panoptic_d2.cli:main"]},
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=1.26",
        "scipy>=1.11",
        "Pillow>=10.1",
        "pycocotools>=2.0.7",
        "matplotlib>=3.8",
        "PyYAML>=6",
        "safetensors>=0.4",
        "filelock>=3.12",
        "jinja2>=3.1",
        "tabulate",
        "tqdm",
    ],
    extras_require={
        "timm": TIMM,
        "video": VIDEO,
        "web": WEB,
        "docs": DOCS,
        "export": EXPORT,
        "runtime": RUNTIME,
        "benchmark": BENCHMARK,
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6",
            "ruff>=0.17,<0.18",
            "import-linter>=2.3",
            "mypy>=1.13",
            "types-PyYAML",
            "types-tabulate",
            "types-tqdm",
            "selenium>=4.15",
            "pip-audit>=2.7",
            "build>=1.2",
            "twine>=5",
            "nbclient>=0.10",
            "ipykernel>=6",
            *TIMM,
            *VIDEO,
            *WEB,
            *BENCHMARK,
            *EXPORT,
            "fastapi>=0.110",
            "httpx>=0.27",
            "python-multipart",
        ],
    },
    zip_safe=False,
)
