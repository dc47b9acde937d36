"""Tiles of large images: by an exported model, and by a segmentation that is right everywhere."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from detr_panoptic_d2.data.panoptic_png import read_panoptic_png
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.export import export_model
from detr_panoptic_d2.export.runtime import Tile, segment_tiled
from detr_panoptic_d2.export.runtime.tiles import tile_starts


def test_an_object_across_four_tiles_of_an_exported_model_is_one_segment(tiny_model, tmp_path):
    """By the command of the docs. The model finds the same object everywhere in each image."""
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    options = ["MODEL.DETR.TEST.PANOPTIC_INFERENCE", "MaskNMSPanopticInference"]
    options += ["INPUT.MIN_SIZE_TEST", 0, "MODEL.DETR.TEST.OVERLAP_THRESH", 0.6]
    model = tiny_model(*options)
    thing = model.is_thing.tolist().index(True)
    with torch.no_grad():
        for layer, bias in ((model.class_embed, 0.0), (model.mask_head.out_lay, 3.0)):
            layer.weight.zero_()
            layer.bias.fill_(bias)
        model.class_embed.bias[thing] = 9
    cfg = setup_cfg("shapes/tiny.yaml", ["MODEL.DEVICE", "cpu", *map(str, options)])
    export_model(model, cfg, tmp_path / "exported")
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (112, 120, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "large.png")
    words = "exported/panoptic_runtime.py exported photos --output results --tile 64"
    command = [sys.executable, *shlex.split(words)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "results" / "predictions.json").read_text())
    (segment,) = content["annotations"][0]["segments_info"]
    assert segment["category_id"] == model.dataset_ids[thing]
    assert segment["area"] == 112 * 120
    ids = read_panoptic_png(tmp_path / "results" / "panoptic" / "large.png")
    assert (ids == segment["id"]).all()


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
