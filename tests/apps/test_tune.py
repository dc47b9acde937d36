"""Tuning: fast counts against the rules themselves, cross-validation, and the command."""

import re

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog
from PIL import Image

from detr_panoptic_d2.apps.tune.run import cross_validate, panoptic_quality
from detr_panoptic_d2.apps.tune.search import (
    ImageMasks,
    Setting,
    build_rules,
    count_image,
    make_settings,
)
from detr_panoptic_d2.config import merged_cfg
from detr_panoptic_d2.data.panoptic_png import write_panoptic_png
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.evaluation.pq import count_matches, to_rows
from detr_panoptic_d2.modeling.structures import Frame

THINGS = [0, 1]


def random_image(rng, folder):
    """Masks of an image with padding, and a truth with void, a crowd, and masks like these."""
    count, grid, canvas = int(rng.integers(0, 8)), (9, 12), (36, 48)
    image, output = (int(rng.integers(20, 37)), 45), tuple(rng.integers(20, 60, 2).tolist())
    coarse = torch.from_numpy(rng.normal(size=(4, 1, 4, 5)) * 8).float()
    masks = torch.nn.functional.interpolate(coarse, grid, mode="bicubic")[:, 0]
    masks = masks[rng.integers(0, 4, count)] + torch.from_numpy(rng.normal(size=(count, *grid)))
    logits = torch.from_numpy(rng.normal(size=(count, 5)) * 3).float()
    scores, labels = logits.softmax(-1)[:, :-1].max(-1)
    full = torch.nn.functional.interpolate(coarse, output, mode="bicubic")[:, 0]
    ids = full.argmax(0).numpy() + 1
    ids[:3] = 0
    write_panoptic_png(folder / "truth.png", ids)
    segments = [
        {"id": i, "category_id": int(rng.integers(0, 4)), "iscrowd": int(i == 4)}
        for i in np.unique(ids).tolist()
        if i
    ]
    item = {"pan_seg_file_name": str(folder / "truth.png"), "segments_info": segments}
    frame = Frame(canvas, image, output)
    return ImageMasks(logits, masks.float(), scores, labels, frame), ids, item


def test_counts_are_those_of_each_rule_alone(tmp_path):
    settings = make_settings(merged_cfg("shapes/detr_panoptic_shapes.yaml"))
    settings.append(Setting("OfficialPanopticInference", 0.5, 0.0, 20))
    rules, rng, num_results = build_rules(settings, THINGS), np.random.default_rng(0), 0
    for _ in range(12):
        masks, truth, item = random_image(rng, tmp_path)
        results = count_image(rules, masks, item)
        num_results += len(results)
        counted = {index: stat for indices, stat in results for index in indices}
        assert sorted(counted) == list(range(len(rules)))
        for index in [*range(0, len(rules), 5), len(rules) - 1]:
            keep = rules[index].keep(masks.pred_logits)
            kept = masks.mask_logits[keep], masks.scores[keep], masks.labels[keep]
            ids, segments = rules[index](*kept, masks.frame)
            expected = count_matches(truth, item["segments_info"], ids.numpy(), segments)
            assert sorted(to_rows(counted[index])) == sorted(to_rows(expected)), settings[index]
    # Thresholds matter, and equal results are counted once.
    assert 50 < num_results < 12 * len(rules) / 5


def test_the_gain_is_measured_on_images_that_were_not_used_to_choose():
    # One class, 8 groups. Setting 1 is better in half of the groups, setting 2 in all.
    iou = np.full((8, 3), 0.5)
    iou[:4, 1], iou[4:, 1], iou[:, 2] = 0.7, 0.3, 0.55
    counts = np.stack([iou, np.ones_like(iou), np.zeros_like(iou), np.zeros_like(iou)], -1)
    counts = counts[:, :, None]
    pq = panoptic_quality(counts.sum(0))
    np.testing.assert_allclose(pq, [50, 50, 55])
    _, noise = cross_validate(counts, np.array([0, 1]))
    assert noise.mean() < 0 and len(noise) == 70
    np.testing.assert_allclose(cross_validate(counts, np.array([0, 2]))[1], 5)
    assert np.isnan(panoptic_quality(np.zeros((2, 3, 4)))).all()


@pytest.fixture
def tuning_set(panoptic_set, tiny_model, tmp_path):
    """A dataset whose truth is a shifted prediction of the tiny model; returns its options."""
    blank = np.ones((64, 80), np.int64)
    panoptic_set("tune_images", [(blank, {1: 3})] * 5)
    options = ["DATASETS.TRAIN", "('tune_images',)", "DATASETS.TEST", "('tune_images',)"]
    test = "MODEL.DETR.TEST."
    rule = [test + "PANOPTIC_INFERENCE", "MaskNMSPanopticInference", test + "SCORE_THRESH", 0.2]
    model = tiny_model(*options, *rule)
    model.panoptic_inference.overlap_thresh = 0.4
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    maps = []
    for item in DatasetCatalog.get("tune_images"):
        image = np.asarray(Image.open(item["file_name"]))
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
        resized = torch.nn.functional.interpolate(tensor[None].float(), (96, 120))[0]
        (result,) = model([{"image": resized, "height": 64, "width": 80}])
        ids, segments = result["panoptic_seg"]
        ids = np.roll(ids.numpy().astype(np.int64), 2, axis=1)
        maps.append((ids, {s["id"]: model.dataset_ids[s["category_id"]] for s in segments}))
    panoptic_set("tune_val", maps)
    return ["MODEL.DEVICE", "cpu", *options[:2], "MODEL.WEIGHTS", tmp_path / "model.pth"]


def test_command(command, tuning_set, tmp_path):
    config = tmp_path / "run" / "config.yaml"
    config.parent.mkdir()
    config.write_text("_BASE_: shapes/tiny.yaml\n")
    words = ["tune", "--config-file", config, "--dataset", "tune_val", *tuning_set]
    status, out, err = command(*words, "OUTPUT_DIR", tmp_path / "run")
    assert status == 0, err
    assert "only 5 images" in out + "".join(err)
    row = re.search(r"^chosen +\w+ .*", out, re.MULTILINE).group()
    pq = re.findall(r"\d+\.\d{3}", row)[0]
    assert float(pq) > 20
    tuned = tmp_path / "run" / "tuned.yaml"
    assert yaml.safe_load(tuned.read_text())["_BASE_"] == "config.yaml"
    assert (tmp_path / "run" / "tuned.png").stat().st_size > 1000
    cfg = setup_cfg(str(tuned))
    assert cfg.DATASETS.TEST == ("tune_val",) and cfg.MODEL.WEIGHTS.endswith("model.pth")
    words = ["train", "--eval-only", "--config-file", tuned, "OUTPUT_DIR", tmp_path / "eval"]
    status, out, err = command(*words)
    assert status == 0, err
    log = (tmp_path / "eval" / "log.txt").read_text()
    assert re.search(r"\| +All +\| +([\d.]+) +\|", log).group(1) == pq
    status, _, err = command("tune", "--config-file", tuned, "OUTPUT_DIR", tmp_path / "run")
    assert status == 1 and "is the config file itself" in err[-1]
    words = ["tune", "--config-file", "shapes/tiny.yaml", *tuning_set, "DATASETS.TEST", "()"]
    status, _, err = command(*words)
    assert status == 1 and "--dataset NAME" in err[-1]
