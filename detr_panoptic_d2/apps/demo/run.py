"""The demo: a short training from scratch on built-in data, its PQ, pictures and a report."""

import argparse
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image
from tabulate import tabulate

from ...data.dataset_mapper import read_image
from ...engine import PanopticTrainer, Predictor, load, setup_job
from ...files import atomic_file
from ...visualization.draw import draw_beside_ground_truth, read_ground_truth
from ...visualization.panels import side_by_side
from ..report import write_report


def run_demo(config_file: str, output_dir: Path, opts: list[str]) -> tuple[str, Path, Path]:
    """Train, evaluate, draw and report into ``output_dir``.

    Returns:
        the table of PQ, SQ and RQ, the path of the picture and that of the report.
    """
    opts = ["OUTPUT_DIR", str(output_dir), *opts]
    cfg = setup_job(argparse.Namespace(config_file=config_file, opts=opts, eval_only=False))
    trainer = PanopticTrainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()["panoptic_seg"]
    picture = output_dir / "ground_truth_and_prediction.png"
    write_picture(load(str(output_dir / "model_final.pth")), cfg.DATASETS.TEST[0], picture)
    rows = [
        [name, *(results[f"{metric}{suffix}"] for metric in ("PQ", "SQ", "RQ"))]
        for name, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st"))
    ]
    table = tabulate(rows, headers=["held-out", "PQ", "SQ", "RQ"], floatfmt=".1f")
    return table, picture, write_report(output_dir)


def write_picture(predictor: Predictor, dataset_name: str, path: Path, num_images: int = 8) -> None:
    """Write images of a dataset with ground truth and prediction as one picture."""
    metadata = MetadataCatalog.get(dataset_name)
    rows = []
    for item in DatasetCatalog.get(dataset_name)[:num_images]:
        image = read_image(item["file_name"], "RGB")
        prediction = predictor(image[:, :, ::-1])["panoptic_seg"]
        rows.append(draw_beside_ground_truth(image, read_ground_truth(item), prediction, metadata))
    pairs = [side_by_side(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    page = side_by_side([pair.transpose(1, 0, 2) for pair in pairs]).transpose(1, 0, 2)
    PathManager.mkdirs(str(path.parent))
    with atomic_file(path, "wb") as f:
        Image.fromarray(page).save(f, format="PNG", optimize=True)
