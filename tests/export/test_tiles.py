"""Tiles of large images: by an exported model, and by a segmentation that is right everywhere."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from torch.nn import functional as F

from detr_panoptic_d2.data.panoptic_png import read_panoptic_png
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.export import export_model
from detr_panoptic_d2.export.runtime import Tile, segment_tiled
from detr_panoptic_d2.export.runtime.tiles import tile_starts

TILE = 64


def rectangle(size, top, left, height, width):
    """A bright rectangle on dark ground: H x W x 3 uint8, and its mask."""
    mask = np.zeros((size, size), bool)
    mask[max(0, top) : top + height, max(0, left) : left + width] = True
    return np.where(mask[..., None], (200, 200, 200), (60, 60, 60)).astype(np.uint8), mask


def fit(model, steps=300):
    """Make query 0 segment the ground and query 1 the rectangle, in seconds."""
    is_thing = model.is_thing[: model.num_classes].tolist()
    classes = torch.full((model.query_embed.num_embeddings,), model.num_classes)
    classes[:2] = torch.tensor([is_thing.index(False), is_thing.index(True)])
    optimizer, rng = torch.optim.Adam(model.parameters(), 2e-3), np.random.default_rng(0)
    for _ in range(steps):
        scenes = [
            rectangle(TILE, *rng.integers(-20, 50, 2), *rng.integers(20, 60, 2)) for _ in range(4)
        ]
        images = [torch.from_numpy(image).permute(2, 0, 1) for image, _ in scenes]
        detections = model.detect(model.preprocess([{"image": image} for image in images]))
        pairs = torch.arange(4).repeat_interleave(2), torch.arange(2).repeat(4)
        logits = model.predict_masks(detections, *pairs)
        masks = torch.from_numpy(np.stack([mask for _, mask in scenes])).float()
        masks = F.interpolate(masks[None], logits.shape[-2:], mode="area")[0]
        truth = torch.stack([1 - masks, masks], 1).flatten(0, 1)
        loss = F.binary_cross_entropy_with_logits(logits, truth)
        loss += F.cross_entropy(detections.pred_logits[-1].flatten(0, 1), classes.repeat(4))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def test_the_command_of_an_exported_model(tmp_path):
    """An object across four tiles is one segment; one tile gives the plain result."""
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    options = {"MODEL.DEVICE": "cpu", "INPUT.MIN_SIZE_TEST": 0, "MODEL.DETR.HIDDEN_DIM": 64}
    cfg = setup_cfg("shapes/tiny.yaml", [str(x) for item in options.items() for x in item])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        # Queries that differ from the start.
        model.query_embed.weight.mul_(3)
        model.bbox_attention.q_linear.weight.mul_(10)
    fit(model)
    export_model(model, cfg, tmp_path / "exported")
    (tmp_path / "photos").mkdir()
    large, mask = rectangle(112, 34, 30, 44, 52)
    Image.fromarray(large).save(tmp_path / "photos" / "large.png")
    Image.fromarray(large[20:84, 20:84]).save(tmp_path / "photos" / "small.png")
    results = {}
    for output, tile in (("plain", ""), ("tiled", f" --tile {TILE}")):
        words = f"exported/panoptic_runtime.py exported photos --output {output}{tile}"
        done = subprocess.run(
            [sys.executable, *shlex.split(words)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        content = json.loads((tmp_path / output / "predictions.json").read_text())
        png = (tmp_path / output / "panoptic" / "small.png").read_bytes()
        results[output] = content["annotations"][1], png
    assert results["plain"] == results["tiled"]
    is_thing = {c["id"]: c["isthing"] for c in content["categories"]}
    segments = content["annotations"][0]["segments_info"]
    assert sorted(is_thing[s["category_id"]] for s in segments) == [0, 1]
    (number,) = (s["id"] for s in segments if is_thing[s["category_id"]])
    found = read_panoptic_png(tmp_path / "tiled" / "panoptic" / "large.png") == number
    assert (found & mask).sum() / (found | mask).sum() > 0.6


@pytest.mark.parametrize("length", [1, 99, 100, 101, 180, 181, 1000])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.7])
def test_tiles_cover_a_side_and_overlap(length, overlap):
    starts = tile_starts(length, 100, overlap)
    assert starts[0] == 0 and starts[-1] == max(0, length - 100)
    assert (np.diff(starts) <= np.ceil(100 * (1 - overlap))).all()
    assert len(starts) == 1 or len(starts) <= 2 + (length - 100) / (100 * (1 - overlap))


def segmentation(categories, confidence=lambda ids: 200 + 0 * ids):
    """Return a function that reads ids from the red channel: 1 to 9 are stuff, others things."""

    def segment(image):
        numbers, ids = np.unique(image[..., 0], return_inverse=True)
        ids = ids.reshape(image.shape[:2]) + (numbers[0] != 0)
        segments = [
            {"category_id": categories[n], "isthing": n > 9, "score": n / 255}
            for n in numbers[numbers > 0].tolist()
        ]
        return Tile(ids, segments, confidence(image[..., 0]).astype(np.uint8))

    return segment


def as_image(ids):
    return np.repeat(ids[..., None], 3, axis=2).astype(np.uint8)


def test_stuff_and_things_across_tiles():
    """Two kinds of stuff; a thing over four tiles of 100, one beside it, one in each far corner;
    void, which loses to every segment."""
    world, categories = np.full((180, 180), 1), {1: 5, 2: 6, 20: 7, 21: 7, 22: 7, 23: 8}
    world[90:] = 2
    world[60:120, 60:120] = 20
    world[60:120, 120:150] = 21
    world[:9, :9], world[-9:, -9:] = 22, 23
    world[130:140] = 0
    ids, segments = segment_tiled(segmentation(categories), as_image(world), 100, 0.2)
    assert [s["id"] for s in segments] == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(ids > 0, world > 0)
    for segment in segments:
        (number,) = np.unique(world[ids == segment["id"]])
        assert np.array_equal(world == number, ids == segment["id"])
        assert segment["area"] == (world == number).sum()
        assert segment["category_id"] == categories[number]
        assert segment["score"] == number / 255


def test_the_more_certain_tile_wins_where_tiles_overlap():
    """Pixels of the left tile are right, those of the right tile are wrong but less certain; near
    its border a tile counts less."""
    categories = {1: 5, 2: 6}
    tiles = iter([np.full((100, 100), 1), np.full((100, 100), 2)])
    certain = {1: 200, 2: 100}

    def segment(image):
        part = as_image(next(tiles))
        return segmentation(categories, lambda ids: np.vectorize(certain.get)(ids))(part)

    ids, segments = segment_tiled(segment, as_image(np.zeros((100, 160))), 100, 0.4)
    assert [s["category_id"] for s in segments] == [5, 6]
    columns = ids[0].tolist()
    assert (ids == ids[0]).all() and columns == sorted(columns)
    # Votes are 200 (100 - x) and 100 (x - 59), both over 40.
    assert columns.index(2) == pytest.approx(60 + 2 / 3 * 40, abs=1)
