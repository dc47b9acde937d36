"""The demo: built-in data, a short training from scratch, PQ, and pictures beside the truth."""

import argparse
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image
from tabulate import tabulate

from .atomic_checkpoint import atomic_file
from .data.dataset_mapper import read_image
from .data.masks import panoptic_png_to_ids
from .engine import PanopticTrainer, setup_job
from .predict import Predictor, draw

_SCALE = 3


def run_demo(config_file: str, output_dir: Path, opts: list[str]) -> tuple[str, Path]:
    """Train, evaluate and draw.

    Args:
        config_file: path or name of a config.
        output_dir: folder of checkpoints, metrics and pictures.
        opts: flat list of config keys and values.

    Returns:
        the table of PQ, SQ and RQ, and the path of the picture.
    """
    arguments = argparse.Namespace(
        config_file=config_file, opts=["OUTPUT_DIR", str(output_dir), *opts], eval_only=False
    )
    cfg = setup_job(arguments)
    trainer = PanopticTrainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()["panoptic_seg"]
    weights = str(output_dir / "model_final.pth")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = weights
    picture = output_dir / "truth_and_prediction.png"
    draw_beside_truth(Predictor(cfg), cfg.DATASETS.TEST[0], picture)
    return results_table(results), picture


def results_table(results: dict[str, float]) -> str:
    """PQ, SQ and RQ of all, thing and stuff classes, as text."""
    rows = [
        [name, *(results[f"{metric}{suffix}"] for metric in ("PQ", "SQ", "RQ"))]
        for name, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st"))
    ]
    return tabulate(rows, headers=["held-out", "PQ", "SQ", "RQ"], floatfmt=".1f")


def draw_beside_truth(
    predictor: Predictor, dataset_name: str, path: Path, num_images: int = 8
) -> None:
    """Write one picture with a row per image: the image, its truth, the prediction."""
    metadata = MetadataCatalog.get(dataset_name)
    rows = []
    for item in DatasetCatalog.get(dataset_name)[:num_images]:
        image = read_image(item["file_name"], "RGB")
        ids = torch.as_tensor(panoptic_png_to_ids(item["pan_seg_file_name"]).astype(np.int32))
        large = np.repeat(np.repeat(image, _SCALE, 0), _SCALE, 1)
        row = [large]
        predicted, segments = predictor(image)["panoptic_seg"]
        for panoptic, info in ((ids, item["segments_info"]), (predicted, segments)):
            panoptic = panoptic.cpu().repeat_interleave(_SCALE, 0).repeat_interleave(_SCALE, 1)
            row.append(draw(large, panoptic, info, metadata))
        rows.append(np.concatenate(row, axis=1))
    PathManager.mkdirs(str(path.parent))
    with atomic_file(path, "wb") as f:
        Image.fromarray(np.concatenate(rows)).save(f, format="PNG")
