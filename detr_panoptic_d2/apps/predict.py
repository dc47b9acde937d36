"""Panoptic segmentation of image files, folders and videos."""

import glob
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.modeling import build_model
from panopticapi.utils import id2rgb
from PIL import Image
from tqdm import tqdm

from ..checkpoint.atomic import atomic_file
from ..checkpoint.checkpointer import PanopticCheckpointer
from ..data.dataset_mapper import ResizeShortestEdge, read_image
from ..data.metadata import dataset_ids, thing_class_ids
from ..errors import UserError
from ..visualization.draw import draw_panoptic

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")

Segments = list[dict[str, Any]]


class Predictor:
    """Detectron2's ``DefaultPredictor``, reading every kind of checkpoint that this package reads.

    Args:
        cfg: a config with ``MODEL.WEIGHTS``; ``DATASETS.TEST`` (else ``TRAIN``) names the classes.

    Attributes:
        metadata: names and colours of the classes.
    """

    def __init__(self, cfg: CfgNode):
        names = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
        self.model = build_model(cfg).eval()
        PanopticCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self.metadata: Metadata = MetadataCatalog.get(names[0])
        self._format = cfg.INPUT.FORMAT
        self._resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """Run the model on one image.

        Args:
            image: H x W x 3 uint8, RGB.

        Returns:
            the model's outputs, ``panoptic_seg`` for one, of size H x W.
        """
        return self.model([self.prepare(image)])[0]

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """Make the model's input of one image: resized, in the model's channel order.

        Args:
            image: H x W x 3 uint8, RGB.

        Returns:
            ``image`` (3 x H' x W' uint8 tensor), and ``height`` and ``width`` of the result.
        """
        height, width = image.shape[:2]
        resized = self._resize.get_transform(image).apply_image(image)
        if self._format == "BGR":
            resized = resized[:, :, ::-1]
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}


class CocoResults:
    """Collect predictions in COCO panoptic format: one PNG per image and one json.

    Args:
        output_dir: receives ``panoptic/*.png`` and ``predictions.json``.
        metadata: of the classes.
    """

    def __init__(self, output_dir: Path, metadata: Metadata):
        self._folder = output_dir
        self._dataset_ids = dataset_ids(metadata)
        things = set(thing_class_ids(metadata))
        names = metadata.thing_classes
        self._content: dict[str, list] = {
            "images": [],
            "annotations": [],
            "categories": [
                {"id": dataset_id, "name": names[c], "isthing": int(c in things)}
                for c, dataset_id in enumerate(self._dataset_ids)
            ],
        }

    def add(self, source: str, png_name: str, ids: np.ndarray, segments: Segments) -> None:
        """Write the PNG of one image and remember its entry.

        Args:
            source: the image's file name.
            png_name: the PNG's file name.
            ids: H x W segment ids.
            segments: with contiguous ``category_id``.
        """
        folder = self._folder / "panoptic"
        folder.mkdir(exist_ok=True)
        with atomic_file(folder / png_name, "wb") as f:
            Image.fromarray(id2rgb(ids)).save(f, format="PNG")
        image_id = len(self._content["images"]) + 1
        height, width = ids.shape
        self._content["images"].append(
            {"id": image_id, "file_name": source, "height": height, "width": width}
        )
        infos = [
            {
                "id": int(s["id"]),
                "category_id": self._dataset_ids[s["category_id"]],
                "area": int((ids == s["id"]).sum()),
                "score": round(float(s["score"]), 4),
            }
            for s in segments
        ]
        self._content["annotations"].append(
            {"image_id": image_id, "file_name": png_name, "segments_info": infos}
        )

    def write(self) -> Path:
        """Write the json and return its path."""
        path = self._folder / "predictions.json"
        with atomic_file(path) as f:
            json.dump(self._content, f)
        return path


def find_inputs(items: Iterable[str]) -> list[Path]:
    """Turn files, folders and glob patterns into a list of files, in order, each once.

    Folders give the image files in them, not those in sub-folders.

    Raises:
        FileNotFoundError: an item leads to nothing.
    """
    found: list[Path] = []
    for item in items:
        path = Path(item).expanduser()
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            what = f"Folder {item} has no images ({', '.join(IMAGE_SUFFIXES)})."
        elif path.is_file():
            files, what = [path], ""
        else:
            files = sorted(Path(p) for p in glob.glob(str(path)) if Path(p).is_file())
            what = f"--input {item}: no such file or folder, and no file matches it as a pattern."
        if not files:
            raise FileNotFoundError(what)
        found.extend(files)
    return list(dict.fromkeys(found))


def predict_images(
    predictor: Predictor, paths: list[Path], output_dir: Path, *, coco_json: bool = False
) -> list[tuple[Path, str]]:
    """Write an overlay per image, under the image's name, and COCO results on request.

    Args:
        predictor: the model.
        paths: image files.
        output_dir: is made if it does not exist.
        coco_json: write ``predictions.json`` and ``panoptic/*.png`` as well.

    Returns:
        the files that could not be read, each with the reason; all others are done.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    results = CocoResults(output_dir, predictor.metadata) if coco_json else None
    broken: list[tuple[Path, str]] = []
    for path, stem in tqdm(list(zip(paths, _unique_stems(paths), strict=True)), unit="image"):
        try:
            image = read_image(path, "RGB")
        except (OSError, ValueError) as e:
            logger.error("Skipped: %s", e)
            broken.append((path, str(e)))
            continue
        ids, segments = predictor(image)["panoptic_seg"]
        suffix = path.suffix.lower() if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
        overlay = draw_panoptic(image, ids, segments, predictor.metadata)
        with atomic_file(output_dir / (stem + suffix), "wb") as f:
            kind = "PNG" if suffix == ".png" else "JPEG"
            Image.fromarray(overlay).save(f, format=kind, quality=95)
        if results is not None:
            results.add(path.name, f"{stem}.png", ids.cpu().numpy(), segments)
    if results is not None:
        logger.info("COCO results: %s", results.write())
    return broken


def predict_video(predictor: Predictor, path: Path, output_dir: Path) -> Path:
    """Write a video with overlays, ``<name>.mp4``, and return its path.

    Raises:
        UserError: OpenCV is not installed.
        OSError: the video cannot be read, or not written.
    """
    cv2 = _import_opencv()
    output_dir.mkdir(parents=True, exist_ok=True)
    target = output_dir / f"{path.stem}.mp4"
    temporary = output_dir / f".{path.stem}.tmp.mp4"
    source = cv2.VideoCapture(str(path))
    total = int(source.get(cv2.CAP_PROP_FRAME_COUNT))
    rate = source.get(cv2.CAP_PROP_FPS) or 25.0
    writer = None
    try:
        for frame in tqdm(_frames(source), total=total if total > 0 else None, unit="frame"):
            image = np.ascontiguousarray(frame[:, :, ::-1])
            ids, segments = predictor(image)["panoptic_seg"]
            overlay = draw_panoptic(image, ids, segments, predictor.metadata)[:, :, ::-1]
            if writer is None:
                size = overlay.shape[1], overlay.shape[0]
                writer = cv2.VideoWriter(
                    str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), rate, size
                )
                if not writer.isOpened():
                    raise OSError(f"OpenCV cannot write {temporary} (mp4v).")
            writer.write(np.ascontiguousarray(overlay))
        if writer is None:
            raise OSError(f"{path} cannot be read as a video: OpenCV finds no frame in it.")
        writer.release()
        temporary.replace(target)
    finally:
        source.release()
        temporary.unlink(missing_ok=True)
    return target


def _frames(source) -> Iterator[np.ndarray]:
    while True:
        ok, frame = source.read()
        if not ok:
            return
        yield frame


def _import_opencv():
    try:
        import cv2
    except ImportError as e:
        raise UserError(
            "Videos need OpenCV, which is not installed: pip install 'detr_panoptic_d2[video]' or "
            "pip install opencv-python-headless."
        ) from e
    return cv2


def _unique_stems(paths: list[Path]) -> list[str]:
    """File names without suffix; where one comes again, with a number."""
    taken: set[str] = set()
    stems = []
    for path in paths:
        stem, number = path.stem, 1
        while stem in taken:
            number += 1
            stem = f"{path.stem}_{number}"
        taken.add(stem)
        stems.append(stem)
    return stems
