"""The yaml files of ``configs/``, found in a checkout and in an installed package alike."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def config_dir() -> Path:
    """Return the folder with the yaml files.

    An installed package has it inside (``detr_panoptic_d2/configs``), a checkout has it beside.

    Raises:
        FileNotFoundError: neither folder is there.
    """
    places = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    for place in places:
        if place.is_dir():
            return place
    tried = ", ".join(str(place) for place in places)
    raise FileNotFoundError(
        f"No folder with the configs of detr_panoptic_d2 (looked at {tried}): "
        "install the package again."
    )


def list_config_files() -> list[str]:
    """Return the names that :func:`get_config_file` takes, sorted, with ``/`` between folders."""
    root = config_dir()
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml"))


def get_config_file(name: str) -> str:
    """Return the path of one of the project's configs.

    Args:
        name: path below ``configs/``, for example ``"detr_panoptic_R50.yaml"`` or
            ``"shapes/tiny.yaml"``.

    Raises:
        FileNotFoundError: there is no such config; the message lists those there are.
    """
    names = list_config_files()
    if name not in names:
        raise FileNotFoundError(f"No config '{name}' in {config_dir()}; there are {names}")
    return str(config_dir() / name)
