"""Detectron2's own classes and programs with ``PanopticDETR``: two lines added, nothing replaced.

Each test calls what a program of Detectron2's repository calls; ``test_programs.py`` runs the
programs themselves, and ``engine/test_stock.py`` has the training programs. docs/detectron2.md has
the lines.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor, SimpleTrainer, hooks
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    SemSegEvaluator,
    inference_on_dataset,
)
from detectron2.modeling import build_model
from detectron2.utils.analysis import (
    FlopCountAnalysis,
    activation_count_operators,
    parameter_count_table,
)
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from pycocotools import mask as coco_mask

from detr_panoptic_d2.data import PanopticDatasetMapper, register_panoptic
from detr_panoptic_d2.data.panoptic_png import write_panoptic_png

BOXES_AND_MASKS = ("MODEL.DETR.TEST.PANOPTIC_ON", False, "MODEL.DETR.TEST.INSTANCE_ON", True)

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def load_model(cfg):
    """The model as ``train_net.py --eval-only`` and ``analyze_model.py`` make it."""
    model = build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()


def test_default_predictor(stock_cfg, shapes):
    cfg = stock_cfg()
    entry = DatasetCatalog.get(shapes)[0]
    image = read_image(entry["file_name"], format="BGR")
    seg, segments = DefaultPredictor(cfg)(image)["panoptic_seg"]
    rgb = torch.as_tensor(image[:, :, ::-1].transpose(2, 0, 1).copy())
    expected = load_model(cfg)([{"image": rgb, "height": 96, "width": 96}])[0]["panoptic_seg"]
    assert len(segments) > 1
    assert segments == expected[1]
    assert torch.equal(seg, expected[0])


@pytest.fixture
def own_predictions(stock_cfg, shapes, tmp_path):
    """Datasets whose annotations are what the model itself finds, so that its evaluations have to
    come out at 100 %: a panoptic, an instance and a semantic one, and the config for them."""
    cfg = stock_cfg("MODEL.DETR.TEST.SEMANTIC_ON", True, "MODEL.DETR.TEST.INSTANCE_ON", True)
    model, metadata = load_model(cfg), MetadataCatalog.get(shapes)
    ids = {new: old for old, new in metadata.stuff_dataset_id_to_contiguous_id.items()}
    ids |= {new: old for old, new in metadata.thing_dataset_id_to_contiguous_id.items()}
    panoptic, objects, semantic = [], [], []
    for (x,) in build_detection_test_loader(cfg, shapes):
        out = model([x])[0]
        seg, segments = out["panoptic_seg"]
        name, image_id = f"{Path(x['file_name']).stem}.png", x["image_id"]
        write_panoptic_png(tmp_path / "panoptic" / name, seg.numpy())
        for s in segments:
            s |= {"category_id": ids[s["category_id"]], "iscrowd": 0}
        panoptic.append({"image_id": image_id, "file_name": name, "segments_info": segments})
        found = out["instances"]
        for mask, kind in zip(found.pred_masks, found.pred_classes.tolist(), strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
            entry = {"id": len(objects) + 1, "image_id": image_id, "category_id": ids[kind]}
            entry |= {"bbox": coco_mask.toBbox(rle).tolist(), "area": int(coco_mask.area(rle))}
            entry |= {"segmentation": {**rle, "counts": rle["counts"].decode()}, "iscrowd": 0}
            objects.append(entry)
        path = tmp_path / f"classes_{name}"
        Image.fromarray(out["sem_seg"].argmax(0).byte().numpy()).save(path)
        semantic.append({"file_name": x["file_name"], "sem_seg_file_name": str(path)})
    content = json.loads(Path(metadata.panoptic_json).read_text(encoding="utf-8"))
    files = {"panoptic": tmp_path / "panoptic.json", "objects": tmp_path / "objects.json"}
    files["panoptic"].write_text(json.dumps(content | {"annotations": panoptic}))
    # All classes are listed, so that the contiguous ids of things are those of the model.
    files["objects"].write_text(json.dumps(content | {"annotations": objects}))
    register_panoptic("found", metadata.image_root, tmp_path / "panoptic", files["panoptic"])
    register_coco_instances("found_objects", {}, str(files["objects"]), metadata.image_root)
    DatasetCatalog.register("found_classes", lambda: semantic)
    MetadataCatalog.get("found_classes").set(
        stuff_classes=metadata.stuff_classes, ignore_label=255, evaluator_type="sem_seg"
    )
    return cfg


def test_evaluators(own_predictions, tmp_path):
    def evaluate(name, evaluator) -> dict:
        loader = build_detection_test_loader(own_predictions, name)
        return inference_on_dataset(load_model(own_predictions), loader, evaluator)

    result = evaluate("found", COCOPanopticEvaluator("found", str(tmp_path / "out")))
    assert result["panoptic_seg"]["PQ"] == pytest.approx(100)
    assert (tmp_path / "out" / "predictions.json").is_file()
    result = evaluate("found_classes", SemSegEvaluator("found_classes", distributed=False))
    assert result["sem_seg"]["mIoU"] == pytest.approx(100)
    output = str(tmp_path / "objects")
    result = evaluate("found_objects", COCOEvaluator("found_objects", output_dir=output))
    assert result["segm"]["AP"] == pytest.approx(100)
    # Boxes come from the box head, not from the masks, so they are not the annotated ones.
    assert 0 <= result["bbox"]["AP"] < 100


def test_demo_on_an_image_and_on_frames(stock_cfg, shapes):
    """What ``demo.py --input`` and ``--video-input`` call with each image."""
    predictor, metadata = DefaultPredictor(stock_cfg()), MetadataCatalog.get(shapes)
    frames = [read_image(x["file_name"], format="BGR") for x in DatasetCatalog.get(shapes)[:2]]
    on_video = VideoVisualizer(metadata)
    for frame in frames:
        seg, segments = predictor(frame)["panoptic_seg"]
        rgb = frame[:, :, ::-1]
        for drawn in (
            Visualizer(rgb, metadata).draw_panoptic_seg_predictions(seg, segments),
            on_video.draw_panoptic_seg_predictions(rgb, seg, segments),
        ):
            assert drawn.get_image().shape == frame.shape
            assert (drawn.get_image() != rgb).mean() > 0.5


def test_analysis_counts_the_whole_model(stock_cfg, shapes):
    """``analyze_model.py --tasks flop activation parameter structure``."""
    cfg = stock_cfg()
    model = load_model(cfg)
    data = next(iter(build_detection_test_loader(cfg, shapes)))
    flops = FlopCountAnalysis(model, data).by_module()
    parts = ("backbone", "transformer", "bbox_attention", "mask_head")
    assert all(flops[f"model.{part}"] > 0 for part in parts)
    # Masks of the kept queries alone.
    none = load_model(stock_cfg("MODEL.DETR.TEST.SCORE_THRESH", 1.0))
    assert FlopCountAnalysis(none, data).by_module()["model.mask_head"] == 0
    # This task of Detectron2 takes outputs that are tensors alone; segments_info is not, with
    # Detectron2's own Panoptic FPN neither.
    instances = load_model(stock_cfg(*BOXES_AND_MASKS))
    assert sum(activation_count_operators(instances, data).values()) > 0
    table = parameter_count_table(model)
    assert all(part in table and part in str(model) for part in parts)


def test_visualize_data(stock_cfg, shapes):
    """``visualize_data.py``, from the annotations and from the loader with our mapper."""
    cfg, metadata = stock_cfg(), MetadataCatalog.get(shapes)
    for entry in DatasetCatalog.get(shapes):
        image = read_image(entry["file_name"], "RGB")
        drawn = Visualizer(image, metadata=metadata).draw_dataset_dict(entry)
        assert (drawn.get_image() != image).mean() > 0.5
    loader = build_detection_train_loader(cfg, mapper=PanopticDatasetMapper(cfg))
    for x in next(iter(loader)):
        image = x["image"].permute(1, 2, 0).numpy()
        fields = x["instances"].get_fields()
        drawn = Visualizer(image, metadata=metadata).overlay_instances(
            labels=[metadata.thing_classes[i] for i in fields["gt_classes"]],
            boxes=fields["gt_boxes"],
            masks=fields["gt_masks"],
        )
        assert (drawn.get_image() != image).mean() > 0.5


def test_lazy_config(lazy_config):
    """``lazyconfig_train_net.py``: everything comes out of a Python config."""
    cfg = LazyConfig.load(str(lazy_config))
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), instantiate(cfg.optimizer))
    checkpointer = DetectionCheckpointer(model, trainer=trainer)
    results = []

    def test():
        loader, evaluator = (instantiate(cfg.dataloader[k]) for k in ("test", "evaluator"))
        results.append(inference_on_dataset(model, loader, evaluator))

    trainer.register_hooks(
        [
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.EvalHook(cfg.train.eval_period, test),
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=False)
    trainer.train(0, cfg.train.max_iter)
    assert "PQ" in results[-1]["panoptic_seg"]
    saved = torch.load(cfg.train.init_checkpoint, weights_only=True)["model"]
    assert not torch.equal(model.class_embed.weight, saved["class_embed.weight"])
