"""``detr-panoptic convert``: splits, classes, the written config, and what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detr_panoptic_d2.data.dataset_mapper import read_image
from detr_panoptic_d2.data.panoptic_png import write_panoptic_png
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.export.runtime import Tile, segment_tiled
from detr_panoptic_d2.prepare.check.dataset import DatasetPaths, check_dataset
from detr_panoptic_d2.prepare.convert import writer
from detr_panoptic_d2.prepare.convert.classes import (
    ClassOptions,
    choose_categories,
    read_class_file,
)
from detr_panoptic_d2.prepare.convert.mask_folders import instance_masks
from detr_panoptic_d2.prepare.convert.program import choose_roles, split_randomly
from detr_panoptic_d2.prepare.convert.source import Item, Source
from detr_panoptic_d2.prepare.convert.values import resolve_inside
from detr_panoptic_d2.prepare.convert.writer import convert as write
from detr_panoptic_d2.prepare.convert.writer import png_names
from detr_panoptic_d2.prepare.parallel import map_images
from tests.prepare.folders import Result, save_image, save_mask

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture
def convert(run_command):
    """Return ``run(*arguments)``: (exit status, what was printed and logged)."""
    return lambda *arguments: run_command("convert", *arguments, "--workers", "1")


def make_masks(root, count, first=0):
    """A folder of instance-id masks and the arguments that name it."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(first, first + count):
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{index:04d}.jpg")
        mask = np.kron(rng.integers(0, 5, (6, 8)), np.ones((4, 4))).astype(np.uint8)
        Image.fromarray(mask).save(root / f"masks/{index:04d}_mask.png")
    return ["instance-masks", "--images", root / "images", "--masks", root / "masks"]


def test_the_written_config_is_used_from_a_moved_folder(convert, tmp_path, monkeypatch):
    arguments = [*make_masks(tmp_path / "here/in", 10), "--output", tmp_path / "here/my set"]
    arguments += ["--category", "cell", "--background", "ground", "--split", "0.8", "0.2"]
    status, printed = convert(*arguments)
    config = tmp_path / "here/my set/my_set.yaml"
    assert status == 0 and f"detr-panoptic check --config-file '{config}'" in printed
    text = config.read_text()
    assert "_BASE_: own_data/finetune_R50.yaml" in text and str(tmp_path) not in text
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir("/")
    cfg = setup_cfg(str(tmp_path / "there/my set/my_set.yaml"))
    assert cfg.MODEL.DETR.NUM_CLASSES == 2
    assert (list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)) == (["my_set_train"], ["my_set_val"])
    assert [len(DatasetCatalog.get(f"my_set_{s}")) for s in ("train", "val")] == [8, 2]
    assert MetadataCatalog.get("my_set_val").stuff_classes == ["cell", "ground"]


def test_queries_suffice_for_the_data(convert, tmp_path):
    """An image of 90 objects; 100 queries of the base are too few for half more."""
    save_image(tmp_path / "images/a.jpg", 30, 30)
    save_mask(tmp_path / "masks/a.png", np.arange(10, 910, dtype=np.uint16).reshape(30, 30) // 10)
    arguments = ["instance-masks", "--images", tmp_path / "images", "--masks", tmp_path / "masks"]
    status, printed = convert(*arguments, "--output", tmp_path / "out")
    assert status == 0 and "At most 90 segments in an image." in printed
    assert setup_cfg(str(tmp_path / "out/out.yaml")).MODEL.DETR.NUM_OBJECT_QUERIES == 140
    status, printed = convert(*arguments, "--output", tmp_path / "few", "--min-area", "11")
    assert status == 1 and "Not a single segment" in printed


def test_all_splits_are_converted_in_one_command(convert, tmp_path):
    """A second call would train and evaluate on the same images, or on other classes."""
    arguments = [*make_masks(tmp_path / "in", 3), "--output", tmp_path / "mine"]
    status, printed = convert(*arguments)
    assert status == 0 and "trains and evaluates on the same images" in printed
    status, printed = convert(*arguments, "--split-names", "val")
    assert status == 1 and "mine.yaml' exists already. Convert all splits in one" in printed


def test_a_class_without_a_segment_is_said(convert, tmp_path):
    """Masks of 0 and 255, of which 255 is void."""
    make_masks(tmp_path, 1)
    Image.fromarray(np.full((24, 32), 255, np.uint8)).save(tmp_path / "masks/0000.png")
    (tmp_path / "classes.txt").write_text("ground\ncell\n")
    arguments = ["class-masks", "--images", tmp_path / "images", "--masks", tmp_path / "masks"]
    arguments += ["--labels", tmp_path / "classes.txt", "--output", tmp_path / "out"]
    status, printed = convert(*arguments)
    assert status == 1 and "Not a single segment in 1 images" in printed
    assert not (tmp_path / "out").exists()
    Image.fromarray(np.full((24, 32), 1, np.uint8)).save(tmp_path / "masks/0000.png")
    status, printed = convert(*arguments)
    assert status == 0 and "train: 1 images with segments: 1 cell." in printed
    assert "Classes without segments: ground." in printed


def test_what_is_left_out_is_said(convert, tmp_path):
    arguments = make_masks(tmp_path / "in", 4)
    (tmp_path / "in/images/0000.jpg").unlink()
    (tmp_path / "in/masks/0003_mask.png").unlink()
    status, printed = convert(*arguments, "--output", tmp_path / "out")
    assert status == 0 and len(list((tmp_path / "out/panoptic_train").iterdir())) == 2
    assert "1 masks without an image:" in printed and "0000_mask.png" in printed
    assert "1 images without an annotation:" in printed and "0003.jpg" in printed

    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}
    crowd = {**box, "iscrowd": 1, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
    images = [{"id": 1, "file_name": "0001.jpg"}]
    content = {"images": images, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "crowd.json").write_text(json.dumps({**content, "annotations": [crowd, box]}))
    arguments = ["coco", "--instances", tmp_path / "crowd.json", "--images", tmp_path / "in/images"]
    status, printed = convert(*arguments, "--output", tmp_path / "crowds")
    assert status == 0 and "'train' has only crowds: nothing can be learned" in printed
    assert "Left out: 1 boxes without a segmentation" in printed
    assert "2 images without an annotation:" in printed and "0002.jpg" in printed


def test_a_missing_image_in_a_subfolder(convert, tmp_path):
    make_masks(tmp_path / "in", 2)
    content = {
        "images": [{"id": 1, "file_name": "0001.jpg"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    arguments = ["coco", "--instances", tmp_path / "a.json", "--output", tmp_path / "out"]
    status, printed = convert(*arguments, "--images", tmp_path / "in")
    assert status == 1 and f"--images {tmp_path / 'in/images'}" in printed
    status, printed = convert(*arguments, "--images", tmp_path / "gone")
    assert status == 1 and f"The folder '{tmp_path / 'gone'}' does not exist." in printed
    assert not (tmp_path / "out").exists()


ERRORS = {
    "shares": (["--split", "0.8", "0.1"], "add up to 1"),
    "empty split": (["--split", "0.999", "0.001"], "leaves a split empty"),
    "names without shares": (["--split-names", "a", "b"], "2 names, but the inputs"),
    "name twice": (["--split", "0.5", "0.5", "--split-names", "a", "a"], "must be unique"),
    "unknown class": (["--things", "dog"], "--things names 'dog'"),
    "no such base": (["--base", "none.yaml"], "No config 'none.yaml'"),
    "background is a thing": (["--background", "object"], "'object' is stuff, but"),
    "paths that do not pair": (
        ["--images", "a", "b", "c", "--masks", "a", "b"],
        "Each input needs one path",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line(convert, tmp_path, case):
    options, message = ERRORS[case]
    arguments = [*make_masks(tmp_path / "in", 2), "--output", tmp_path / "out", *options]
    status, printed = convert(*arguments)
    (line,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert status == 1 and message in line and "Traceback" not in printed
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_file_that_is_no_text_is_named(convert, tmp_path):
    masks = make_masks(tmp_path / "in", 1)
    picture = tmp_path / "in/images/0000.jpg"
    annotation = picture.with_suffix(".txt")
    annotation.write_bytes(picture.read_bytes())
    (tmp_path / "names.txt").write_text("cell")
    for arguments, named in (
        ([*masks, "--image-lists", picture], picture),
        (["yolo", *masks[1:3], "--labels", tmp_path / "names.txt"], annotation),
    ):
        status, printed = convert(*arguments, "--output", tmp_path / "out")
        assert status == 1 and f"error: '{named}' is not a text file in UTF-8" in printed


def test_ctrl_c_ends_all_processes(tmp_path):
    arguments = [*make_masks(tmp_path / "in", 300), "--output", tmp_path / "out", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "detr_panoptic_d2.cli", "convert", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        while process.poll() is None and len(list((tmp_path).rglob("out/.convert*/*/*.png"))) < 9:
            time.sleep(0.01)
        # As a terminal does: to the whole group, workers included.
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Nothing was written" in output
    assert "Traceback" not in output
    assert not list((tmp_path / "out").rglob("*"))


# ---- what is written


@pytest.fixture
def source(tmp_path):
    """Eight images of cells."""
    make_masks(tmp_path, 8)
    return instance_masks(tmp_path / "images", tmp_path / "masks", category="cell")


@pytest.fixture
def splits(source):
    return split_randomly(source, {"train": 0.75, "val": 0.25}, seed=0)


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_the_same_whatever_the_number_of_processes(splits, tmp_path):
    for workers in (1, 2):
        converted = write(splits, tmp_path / str(workers), workers=workers)
        assert [(s.name, s.num_images) for s in converted] == [("train", 6), ("val", 2)]
    first, second = files(tmp_path / "1"), files(tmp_path / "2")
    assert first == second and len(first) == 10


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failed_conversion_leaves_nothing_in_the_way(splits, tmp_path, monkeypatch, stop):
    write(splits, tmp_path / "whole")
    calls = []

    def stopped(path, ids):
        calls.append(path)
        if len(calls) == 7:
            raise stop
        write_panoptic_png(path, ids)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_panoptic_png", stopped)
        with pytest.raises(stop if isinstance(stop, type) else type(stop)):
            write(splits, tmp_path / "out", min_area=3)
    assert not (tmp_path / "out").exists()
    write(splits, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    # Nothing that is there is overwritten.
    for name in ("panoptic_train", "panoptic_train.json"):
        with pytest.raises(FileExistsError, match=f"'.*{name}' exists already"):
            write({"new": splits["val"], "train": splits["train"]}, tmp_path / "out", min_area=9)
        assert not list((tmp_path / "out").glob("*new*"))
        (tmp_path / "out" / name).rename(tmp_path / f"away_{name}")


def test_missing_and_broken_images(source, tmp_path):
    (tmp_path / "images/0003.jpg").write_bytes(b"no image")
    with pytest.raises(OSError, match="0003.jpg' cannot be read"):
        write({"train": source}, tmp_path / "out", workers=2)
    (tmp_path / "images/0003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 images are missing.*0003.jpg'"):
        write({"train": source}, tmp_path / "out")
    source.items.clear()
    with pytest.raises(ValueError, match="no images to convert for the split 'train'"):
        write({"train": source}, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not files(tmp_path / "out")


def test_a_killed_process_is_an_error_of_one_line():
    with pytest.raises(ValueError, match="memory ran out. --workers 1"):
        map_images(os._exit, [1] * 5, workers=2, description="x")
    with pytest.raises(ValueError, match="--workers is 0"):
        map_images(os._exit, [1], workers=0, description="x")


def test_tiles(convert, tmp_path):
    """Two objects, one of which a seam cuts, and a corner without any."""
    save_image(tmp_path / "in/images/a.jpg", 64, 64, quality=60)
    mask = np.zeros((64, 64), np.uint8)
    mask[2:12, 24:44], mask[40:45, 3:9] = 1, 2
    save_mask(tmp_path / "in/masks/a.png", mask)
    arguments = ["instance-masks", "--images", tmp_path / "in/images"]
    arguments += ["--masks", tmp_path / "in/masks", "--base", "shapes/tiny.yaml"]
    assert convert(*arguments, "--output", tmp_path / "whole")[0] == 0
    tiling = ["--tile", 32, "--overlap", 0]
    assert convert(*arguments, "--output", tmp_path / "out", *tiling)[0] == 0
    names = [f"a_{corner}.png" for corner in ("0_0", "0_32", "32_0")]
    whole, tiles = Result(tmp_path / "whole"), Result(tmp_path / "out")
    assert list(tiles.images) == names and len(tiles.annotations) == 3
    # The pixels are those that predict --tile segments, and the ids those of the whole image.
    image, cut = read_image(tmp_path / "in/images/a.jpg", "RGB"), []

    def segment(pixels):
        cut.append(pixels)
        return Tile(np.zeros(pixels.shape[:2], int), [], np.zeros(pixels.shape[:2], np.uint8))

    segment_tiled(segment, image, 32, 0)
    saved = [read_image(tmp_path / "out/images_train" / name, "RGB") for name in names]
    assert all(np.array_equal(tile, pixels) for tile, pixels in zip(saved, cut, strict=False))
    ids = whole.ids("a.jpg")
    corners = [(0, 0), (0, 32), (32, 0)]
    for name, (top, left) in zip(names, corners, strict=True):
        assert np.array_equal(tiles.ids(name), ids[top : top + 32, left : left + 32])
    cfg = setup_cfg(str(tmp_path / "out/out.yaml"))
    assert len(DatasetCatalog.get("out_train")) == 3 and cfg.DATASETS.TEST == ("out_train",)


def test_overlapping_tiles_are_a_valid_set(convert, tmp_path):
    """Stuff, objects and a crowd, which several tiles show in part: ids, areas, boxes are right."""
    save_image(tmp_path / "images/a.jpg", 50, 70)
    polygons = [3, 3, 60, 5, 30, 44], [40, 30, 66, 30, 66, 48], [0, 20, 70, 20, 70, 28]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "iscrowd": i // 2, "segmentation": [polygon]}
        for i, polygon in enumerate(polygons)
    ]
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "cat"}]
    (tmp_path / "a.json").write_text(json.dumps(content))
    arguments = ["coco", "--instances", tmp_path / "a.json", "--images", tmp_path / "images"]
    arguments += ["--background", "ground", "--tile", 32, "--overlap", 0.3]
    assert convert(*arguments, "--output", tmp_path / "out")[0] == 0
    paths = [tmp_path / f"out/{name}" for name in ("images_train", "panoptic_train")]
    report = check_dataset(DatasetPaths("tiles", *map(str, paths), f"{paths[1]}.json"))
    assert len(report.images) == 6 and {f.kind for f in report.findings} <= {"one-pixel"}
    segments = [segment for image in report.images for segment in image.segments]
    assert len(segments) > len({s["id"] for s in segments}) == 4
    assert any(segment["iscrowd"] for segment in segments)


# ---- splits and paths


ITEMS = [Item(f"{i:03d}.jpg", None) for i in range(50)]


def split_names(items, shares, seed=0):
    splits = split_randomly(Source(Path(), [], items), shares, seed)
    return {name: {item.file_name for item in split.items} for name, split in splits.items()}


def test_split_by_seed_does_not_depend_on_the_order():
    shares = {"train": 0.8, "val": 0.2}
    splits = split_names(ITEMS, shares)
    assert [len(s) for s in splits.values()] == [40, 10]
    assert splits["train"] | splits["val"] == {item.file_name for item in ITEMS}
    assert split_names(ITEMS[::-1], shares) == splits
    assert split_names(ITEMS, shares, seed=1) != splits


def test_what_is_trained_on_is_not_evaluated():
    assert choose_roles(["train", "val", "test"]) == (["train"], ["val"])
    assert choose_roles(["test", "train", "more"]) == (["train", "more"], ["test"])
    assert choose_roles(["a", "b", "c"]) == (["a", "b"], ["c"])
    assert choose_roles(["val"]) == (["val"], ["val"])


def test_png_names_differ():
    assert png_names(["a.jpg", "b/a.JPG", "d"]) == ["a.png", "b/a.png", "d.png"]
    given = ["a.jpg", "A.png", "b/a.jpg"]
    assert png_names(given) == ["a.jpg.png", "A.png.png", "b/a.jpg.png"]


def test_resolve_inside(tmp_path):
    root = tmp_path / "root"
    inside = {"a.jpg": "a.jpg", "b/./a.jpg": "b/a.jpg", "b\\a.jpg": "b/a.jpg", "b/../a": "a"}
    inside[str(root / "c.jpg")] = "c.jpg"
    for name, expected in inside.items():
        assert resolve_inside(root, name) == expected
    outside = ["..", "../rooting/a", "/a", "C:a", "b/../../root2/a", "//host/share/a", "..\\a"]
    for name in [*outside, "", None, 3, "a\0b"]:
        with pytest.raises(ValueError, match="leads out of|must be a text"):
            resolve_inside(root, name)
    assert resolve_inside(root, "../a.jpg", base=root / "labels") == "a.jpg"


# ---- classes


def short(categories):
    return [(c["id"], c["name"], c["isthing"]) for c in categories]


def test_ids_and_things():
    found = [
        {"name": "a", "id": 3},
        {"name": "b", "isthing": 0},
        {"name": "c", "id": 0},
        {"name": "d", "id": 1},
    ]
    assert short(choose_categories(found)) == [(3, "a", 1), (2, "b", 0), (4, "c", 1), (1, "d", 1)]
    options = ClassOptions(things=["b"], stuff=["a"], ignore=["d"], background="sky")
    chosen = choose_categories([*found, {"name": "sea", "isthing": 0}], options)
    assert short(chosen) == [(3, "a", 0), (1, "b", 1), (2, "c", 1), (4, "sea", 0), (5, "sky", 0)]
    assert len({tuple(c["color"]) for c in chosen}) == 5


def test_names_that_mean_no_label_are_void(caplog):
    names = ["Void", "unlabelled", "ignore", "__ignore__", "_background_", "sky", "avoid"]
    assert [c["name"] for c in choose_categories([{"name": n} for n in names])] == ["sky", "avoid"]
    assert "The class 'Void' means" in caplog.text and "--stuff Void keeps it" in caplog.text
    options = ClassOptions(stuff=["Void"], things=["ignore"], background="_background_")
    chosen = choose_categories([{"name": n} for n in names], options)
    assert [c["name"] for c in chosen] == ["Void", "ignore", "sky", "avoid", "_background_"]


CLASSES = '[{"name": "sky", "id": 8, "color": [1, 2, 3]}, {"name": "a cow", "id": 9, "isthing": 1}]'
FILES = {
    "classes.json": CLASSES,
    "coco.json": f'{{"categories": {CLASSES}}}',
    "class_dict.csv": "name, r, g, b, id, isthing\nsky, 1, 2, 3, 8,\na cow, 4, 5, 6, 9, 1\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nsky:1,2,3::\na cow:4,5,6::\n",
    "colors.txt": "1 2 3\tsky\r\n4 5 6 a cow\r\n",
    "names.txt": "\ufeffsky\n\na cow\n",
    "labelme.txt": "__ignore__\nsky\na cow\n",
    "ids.txt": "sky, 8\na cow,9\n",
}


@pytest.mark.parametrize("name", FILES)
def test_forms_of_class_lists(tmp_path, name):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    sky, cow = read_class_file(tmp_path / name)
    assert (sky["name"], cow["name"]) == ("sky", "a cow")
    assert (sky["id"], cow["id"]) == ((8, 9) if "8" in FILES[name] else (0, 1))
    if not name.endswith("txt"):
        assert cow["isthing"] == 1
    if name not in ("names.txt", "ids.txt", "labelme.txt"):
        assert sky["color"] == [1, 2, 3]


BAD_LISTS = {
    "no.json": "[",
    "text.json": '["sky"]',
    "id.json": '[{"name": "a", "id": "x"}]',
    "color.json": '[{"name": "a", "color": "red"}]',
    "some.json": '[{"name": "a", "id": 1}, {"name": "b"}]',
    "cut.csv": "name, r, g, b\nsky, 1, 2\n",
    "twice.json": '[{"name": "a"}, {"name": "a"}]',
    "empty.txt": "\n",
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_bad_class_lists_are_named(tmp_path, name):
    (tmp_path / name).write_text(BAD_LISTS[name])
    with pytest.raises(ValueError, match=name):
        read_class_file(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ValueError, match=name):
        read_class_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="gone"):
        read_class_file(tmp_path / f"gone{name}")


def test_a_list_sets_ids_order_and_what_may_occur(tmp_path):
    (tmp_path / "classes.json").write_text(
        '[{"name": "b", "id": 5}, {"name": "new", "id": 2}, {"name": "a", "id": 9, "isthing": 0}]'
    )
    options = ClassOptions(file=tmp_path / "classes.json")
    chosen = choose_categories([{"name": "a", "id": 1}, {"name": "b", "isthing": 0}], options)
    assert short(chosen) == [(5, "b", 0), (2, "new", 1), (9, "a", 0)]
    with pytest.raises(ValueError, match="class 'bb', which is not in .*--ignore"):
        choose_categories([{"name": "bb"}], options)
