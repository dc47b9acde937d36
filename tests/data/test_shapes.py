import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.evaluation import pq_compute
from PIL import Image

from detr_panoptic_d2.data import dataset_ids, make_shapes, register_shapes, thing_class_ids
from detr_panoptic_d2.data.panoptic_png import read_panoptic_png
from detr_panoptic_d2.data.shapes import render


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_registered_without_writing():
    metadata = MetadataCatalog.get("shapes_panoptic_train")
    assert dataset_ids(metadata) == [3, 7, 12, 20, 31]
    assert thing_class_ids(metadata) == [0, 1, 2]
    for split in ("train", "val", "tune"):
        assert f"shapes_panoptic_{split}" in DatasetCatalog.list()
        root = Path(MetadataCatalog.get(f"shapes_panoptic_{split}").image_root)
        assert root.parts[-3:] == ("shapes_panoptic", split, "images")
    register_shapes()
    with pytest.raises(ValueError, match="already registered"):
        register_shapes("/elsewhere")


def test_deterministic_and_reused(tmp_path):
    paths = make_shapes(tmp_path / "a", "train", 5, size=64, seed=3)
    make_shapes(tmp_path / "b", "other", 5, size=64, seed=3)
    first = _bytes(tmp_path / "a" / "train")
    assert first == _bytes(tmp_path / "b" / "other")
    before = os.stat(paths.panoptic_json).st_mtime_ns
    assert make_shapes(tmp_path / "a", "train", 5, size=64, seed=3) == paths
    assert os.stat(paths.panoptic_json).st_mtime_ns == before
    make_shapes(tmp_path / "a", "train", 3, size=64, seed=4)
    assert _bytes(tmp_path / "a" / "train") != first
    assert [p.name for p in (tmp_path / "a").iterdir() if p.is_dir()] == ["train"]


def test_foreign_folder_is_kept(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="train"):
        make_shapes(tmp_path, "train", 2, seed=1)
    assert (tmp_path / "train" / "mine.txt").exists()
    with pytest.raises(ValueError, match="num_images=0"):
        make_shapes(tmp_path, "none", 0, seed=1)


def test_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def stop(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path, "train", 2, seed=1)
    assert [p.name for p in tmp_path.iterdir()] == [".train.lock"]


def test_several_at_once(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(make_shapes, tmp_path, "train", 4, seed=1) for _ in range(3)]
    assert len({run.result() for run in runs}) == 1
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["train"]


def test_annotations_are_true(tmp_path):
    paths = make_shapes(tmp_path, "train", 12, seed=1)
    things = 0
    for annotation in json.loads(Path(paths.panoptic_json).read_text())["annotations"]:
        image = Image.open(Path(paths.image_root) / annotation["file_name"])
        ids = read_panoptic_png(Path(paths.panoptic_root) / annotation["file_name"])
        assert ids.shape == (128, 128) and image.size == (128, 128) and image.mode == "RGB"
        infos = annotation["segments_info"]
        assert [(ids == s["id"]).sum() for s in infos] == [s["area"] for s in infos]
        assert sum(s["area"] for s in infos) == 128 * 128
        shapes = [s for s in infos if s["category_id"] < 20]
        assert 1 <= len(shapes) <= 3
        things += len(shapes)
    assert things > 12


def test_images_do_not_depend_on_each_other():
    one = render(np.random.default_rng((1, 7)), 48)
    render(np.random.default_rng((1, 8)), 48)
    again = render(np.random.default_rng((1, 7)), 48)
    np.testing.assert_array_equal(one[0], again[0])
    np.testing.assert_array_equal(one[1], again[1])


def test_truth_against_itself(tmp_path, capsys):
    paths = make_shapes(tmp_path, "val", 6, seed=2)
    result = pq_compute(
        paths.panoptic_json, paths.panoptic_json, paths.panoptic_root, paths.panoptic_root
    )
    assert [result[kind]["pq"] for kind in ("All", "Things", "Stuff")] == [1.0, 1.0, 1.0]
