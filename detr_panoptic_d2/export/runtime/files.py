"""Read image files, and write COCO panoptic json and PNGs."""

import argparse
import glob
import io
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .model import PanopticModel

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")


def find_images(items: Iterable[str]) -> list[Path]:
    """Expand files, folders (their image files) and glob patterns, in order, each file once.

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
                f"input '{item}' is not a file, a pattern that matches a file, or a folder with "
                f"images ({', '.join(IMAGE_SUFFIXES)})"
            )
        paths.extend(files)
    return list(dict.fromkeys(paths))


def name_results(paths: list[Path]) -> dict[Path, tuple[str, str]]:
    """Return the relative path of each input and the unique path of its results without suffix.

    Both are relative to the folder that all inputs have in common, so that files with the same name
    in different folders stay apart. If only the suffixes differ, the results are numbered.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    root = os.path.commonpath([path.parent for path in absolute]) if paths else ""
    names, used = {}, set()
    for path, full_path in zip(paths, absolute, strict=True):
        relative = full_path.relative_to(root)
        result, number = relative.with_suffix(""), 1
        # Some file systems ignore case.
        while str(result).casefold() in used:
            number += 1
            result = relative.with_name(f"{relative.stem}_{number}")
        used.add(str(result).casefold())
        names[path] = relative.as_posix(), result.as_posix()
    return names


def read_rgb(path: str | os.PathLike) -> np.ndarray:
    """Read an image as H x W x 3 uint8; EXIF orientation is applied, 16 bits become 8."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):
                values = np.asarray(image)
                if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
                    raise ValueError(f"{values.dtype} pixels; only 8 and 16 bits are supported")
                image = Image.fromarray((values.astype(np.int64) >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"image '{path}' cannot be read: {error}") from error


def png_bytes(ids: np.ndarray) -> bytes:
    """Return a PNG of segment ids in COCO's colors (id = R + 256 G + 256^2 B)."""
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="PNG")
    return file.getvalue()


def main() -> int:
    """Segment image files from the shell; return the exit status."""
    parser = argparse.ArgumentParser(description="Segment images with an exported model.")
    parser.add_argument("model", help="folder of the exported model")
    parser.add_argument("images", nargs="+", help="image files, folders or quoted patterns")
    parser.add_argument("--output", required=True, type=Path, help="folder of the results")
    parser.add_argument("--tile", type=int, help="segment in tiles of this side, in pixels")
    parser.add_argument("--overlap", type=float, default=0.2, help="of the tiles (%(default)s)")
    args = parser.parse_args()
    if args.tile is not None and args.tile < 1 or not 0 <= args.overlap < 1:
        parser.error("--tile must be 1 or more, --overlap at least 0 and less than 1")
    try:
        names = name_results(find_images(args.images))
        failed = _segment_files(args, names)
    except (OSError, ValueError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{len(names) - len(failed)} of {len(names)} images done: {args.output}\n")
    for path, error in failed.items():
        sys.stderr.write(f"Not done: {path} ({error})\n")
    return int(bool(failed))


def _segment_files(
    args: argparse.Namespace, names: dict[Path, tuple[str, str]]
) -> dict[Path, OSError]:
    """Write ``predictions.json`` and ``panoptic/*.png``; return the files that cannot be read."""
    target = args.output / "predictions.json"
    pngs = {path: args.output / "panoptic" / f"{name}.png" for path, (_, name) in names.items()}
    for file in (target, *pngs.values()):
        if file.exists():
            raise ValueError(f"'{file}' exists. Choose another --output.")
    model, failed = PanopticModel(args.model), {}
    images, annotations = [], []
    for path, png in pngs.items():
        try:
            image = read_rgb(path)
        except OSError as error:
            failed[path] = error
            continue
        ids, segments = model(image, args.tile, args.overlap)
        png.parent.mkdir(parents=True, exist_ok=True)
        png.write_bytes(png_bytes(ids))
        size = {"height": ids.shape[0], "width": ids.shape[1]}
        images.append({"id": len(images) + 1, "file_name": names[path][0], **size})
        annotations.append(
            {
                "image_id": len(images),
                "file_name": f"{names[path][1]}.png",
                "segments_info": [_coco_segment(ids, segment) for segment in segments],
            }
        )
    categories = [
        {"id": c["id"], "name": c["name"], "isthing": int(c["isthing"])} for c in model.classes
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    args.output.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content), encoding="utf-8")
    return failed


def _coco_segment(ids: np.ndarray, segment: dict[str, Any]) -> dict[str, Any]:
    rows, columns = ((ids == segment["id"]).any(axis).nonzero()[0].tolist() for axis in (1, 0))
    size = [columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {
        **{key: segment[key] for key in ("id", "category_id", "area")},
        "score": round(segment["score"], 4),
        "iscrowd": 0,
        "bbox": [columns[0], rows[0], *size],
    }


if __name__ == "__main__":
    sys.exit(main())
