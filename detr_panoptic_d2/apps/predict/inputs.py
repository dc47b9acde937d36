"""The inputs of ``predict`` and the names of their results."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


def is_video(path: Path) -> bool:
    """Return whether a file is a video, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def find_inputs(items: Iterable[str]) -> list[Path]:
    """Expand files, folders and glob patterns, in order, each file once.

    Args:
        items: for a folder, the image files directly inside it are used.

    Raises:
        FileNotFoundError: an item matches nothing.
    """
    paths: list[Path] = []
    for item in items:
        path = Path(item)
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        else:
            matches = [path] if path.is_file() else map(Path, glob.glob(item, recursive=True))
            files = sorted(p for p in matches if p.is_file())
        if not files:
            raise FileNotFoundError(
                f"--input '{item}' is no file, no pattern that a file matches, and no folder with "
                f"images ({', '.join(IMAGE_SUFFIXES)})."
            )
        paths.extend(files)
    return list(dict.fromkeys(paths))


def name_results(paths: list[Path]) -> dict[Path, tuple[Path, Path]]:
    """Return the relative path of each input and the unique path of its results without suffix.

    Both are relative to the folder that all inputs have in common, so that files of one name in
    different folders stay apart. Results of files that differ in the suffix alone are numbered.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    root = os.path.commonpath([path.parent for path in absolute])
    names, used = {}, set()
    for path, full_path in zip(paths, absolute, strict=True):
        relative = full_path.relative_to(root)
        result, number = relative.with_suffix(""), 1
        # Some file systems ignore case.
        while str(result).casefold() in used:
            number += 1
            result = relative.with_name(f"{relative.stem}_{number}")
        used.add(str(result).casefold())
        names[path] = relative, result
    return names
