"""Trainings on the real samples; they skip where the samples are not."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from detr_panoptic_d2.data.register import register_panoptic
from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.engine.reproducible import seed_everything


@pytest.mark.slow
def test_two_coco_images_are_found_again(sample_data, tmp_path):
    """A small model that has seen nothing but these two images, reduced to 192 pixels."""
    root = sample_data("coco_panoptic_sample")
    register_panoptic(
        "coco_two", root / "val2017", root / "panoptic_val2017", root / "panoptic_val2017.json"
    )
    options = ["DATASETS.TRAIN", "('coco_two',)", "DATASETS.TEST", "('coco_two',)"]
    options += ["DATASETS.REGISTER", "[]", "MODEL.DEVICE", "cpu", "SEED", "1"]
    options += ["INPUT.MIN_SIZE_TRAIN", "(192,)", "INPUT.MIN_SIZE_TEST", "192"]
    options += ["INPUT.RANDOM_FLIP", "none", "INPUT.MAX_SIZE_TEST", "320"]
    options += ["MODEL.DETR.NUM_OBJECT_QUERIES", "40", "OUTPUT_DIR", str(tmp_path)]
    options += ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "600", "TEST.EVAL_PERIOD", "0"]
    options += ["DATALOADER.NUM_WORKERS", "0"]
    try:
        cfg = setup_cfg("own_data/from_scratch_small.yaml", options)
        seed_everything(1)
        trainer = PanopticTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
        result = PanopticTrainer.test(cfg, trainer.model)["panoptic_seg"]
    finally:
        DatasetCatalog.remove("coco_two")
        MetadataCatalog.remove("coco_two")
    assert result["PQ"] > 50
    assert result["PQ_th"] > 30 and result["PQ_st"] > 50
