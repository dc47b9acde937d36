"""The packages and files of detr_panoptic_d2; its metadata is in pyproject.toml."""

from setuptools import find_packages, setup

NAME = "detr_panoptic_d2"

setup(
    packages=[*find_packages(include=[NAME, f"{NAME}.*"]), f"{NAME}.configs"],
    package_dir={f"{NAME}.configs": "configs"},
    package_data={
        "": ["*.css", "*.jinja"],
        NAME: ["py.typed"],
        f"{NAME}.configs": ["*.yaml", "**/*.yaml"],
    },
    scripts=["tools/install_detectron2.py"],
    zip_safe=False,
)
