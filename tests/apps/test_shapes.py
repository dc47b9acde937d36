import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from panopticapi.evaluation import pq_compute
from PIL import Image

from detr_panoptic_d2.apps.demo import make_shapes
from detr_panoptic_d2.data.panoptic_png import read_panoptic_png


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_deterministic_and_reused_by_several_threads(tmp_path):
    """Images do not depend on each other or on the split, and a split that exists is kept."""
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(make_shapes, tmp_path, "a", 5, size=64, seed=3) for _ in range(3)]
    paths = runs[0].result()
    assert all(run.result() == paths for run in runs)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["a"]
    before = os.stat(paths["panoptic_json"]).st_mtime_ns
    assert make_shapes(tmp_path, "a", 5, size=64, seed=3) == paths
    assert os.stat(paths["panoptic_json"]).st_mtime_ns == before
    make_shapes(tmp_path, "b", 3, size=64, seed=3)
    five, three = read_files(tmp_path / "a"), read_files(tmp_path / "b")
    assert len(three) == 7 and all(five[n] == three[n] for n in three if n.endswith(".png"))


def test_no_foreign_file_is_lost(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.txt").write_text("x")
    with pytest.raises(OSError, match="train"):
        make_shapes(tmp_path, "train", 2, seed=1)
    assert [p.name for p in (tmp_path / "train").iterdir()] == ["mine.txt"]


def test_annotations_agree_with_the_pngs(tmp_path, capsys):
    paths = make_shapes(tmp_path, "train", 12, seed=1)
    for annotation in json.loads(Path(paths["panoptic_json"]).read_text())["annotations"]:
        image = Image.open(Path(paths["image_root"]) / annotation["file_name"])
        ids = read_panoptic_png(Path(paths["panoptic_root"]) / annotation["file_name"])
        assert ids.shape == (128, 128) and image.size == (128, 128) and image.mode == "RGB"
        infos = annotation["segments_info"]
        assert [(ids == s["id"]).sum() for s in infos] == [s["area"] for s in infos]
        assert sum(s["area"] for s in infos) == 128 * 128
        assert 1 <= len([s for s in infos if s["category_id"] < 20]) <= 3
    both = [paths["panoptic_json"]] * 2 + [paths["panoptic_root"]] * 2
    assert [pq_compute(*both)[kind]["pq"] for kind in ("All", "Things", "Stuff")] == [1, 1, 1]
