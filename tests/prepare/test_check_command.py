"""The command ``detr-panoptic check``."""

import json

import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture
def sets(small_set, tmp_path):
    """Two clean data sets, by name, and a config that names them."""
    found = {"train": small_set, "val": type(small_set)(tmp_path / "val")}
    for number, some in enumerate(found.values()):
        some.content["categories"].pop()
        for index, image in enumerate(some.content["images"]):
            color = (index, number, 0)
            Image.new("RGB", (12, 8), color).save(some.image_root / image["file_name"])
        some.save()
    items = [{"name": f"my_{name}", **some.paths} for name, some in found.items()]
    datasets = {"REGISTER": items, "TRAIN": ["my_train"], "TEST": ["my_val"]}
    return found, save_config(tmp_path / "mine.yaml", datasets)


def save_config(path, datasets):
    # JSON is YAML.
    path.write_text(json.dumps({"DATASETS": datasets}))
    return path


@pytest.fixture
def check(run_command):
    """Return ``run(*arguments)``: (exit status, what was printed and logged)."""
    return lambda *arguments: run_command("check", "--workers", "1", *arguments)


def test_all_sets_of_a_config(sets, check, tmp_path):
    status, printed = check("--config-file", sets[1], "--output", tmp_path / "checked")
    assert status == 0
    assert printed.count("Nothing is wrong.") == 2 and "my_train" in printed and "my_val" in printed
    names = sorted(p.name for p in (tmp_path / "checked").iterdir())
    assert names == ["findings.csv", "my_train.png", "my_val.png"]


def paths_of(small_set, **changed):
    paths = {**small_set.paths, **changed}
    return [a for key, path in paths.items() for a in (f"--{key.replace('_', '-')}", path)]


def test_exit_status_and_fix(sets, check):
    val = sets[0]["val"]
    good = json.loads(val.panoptic_json.read_text())
    val.content["annotations"][1]["segments_info"][1]["area"] = 7
    val.save()
    status, printed = check(*paths_of(val))
    assert status == 1 and "wrong-area" in printed
    assert check(*paths_of(val), "--fix")[0] == 0
    assert json.loads(val.panoptic_json.read_text()) == good
    assert val.panoptic_json.with_name("panoptic.json.bak").is_file()
    assert check(*paths_of(val), "--fix")[0] == 0
    assert not val.panoptic_json.with_name("panoptic.json.bak1").exists()


def test_swapped_folders(sets, check):
    """All segments without a pixel: that is not put right by removing them."""
    val = sets[0]["val"]
    for image, name in zip(val.content["images"], ("0.png", "1.png"), strict=True):
        image["file_name"] = name
        Image.new("RGB", (12, 8), (9, 9, 9)).save(val.image_root / name)
    val.save()
    before = val.panoptic_json.read_bytes()
    swapped = {"image_root": val.panoptic_root, "panoptic_root": val.image_root}
    status, printed = check(*paths_of(val, **swapped), "--fix")
    assert status == 1 and "nothing that can be fixed" in printed
    assert "have no sure fix" in printed
    assert val.panoptic_json.read_bytes() == before


def test_warnings_are_no_failure(sets, check):
    (train, val), config = sets[0].values(), sets[1]
    val.content["annotations"][1]["segments_info"][1]["bbox"] = [0, 0, 1, 1]
    val.save()
    for image in val.content["images"]:
        picture = (train.image_root / image["file_name"]).read_bytes()
        (val.image_root / image["file_name"]).write_bytes(picture)
    status, printed = check("--config-file", config)
    assert status == 0 and "wrong-box" in printed
    assert "in two sets: my_train: sub/a.png and my_val: sub/a.png" in printed


def test_what_registration_refuses_is_still_checked(sets, check):
    train = sets[0]["train"]
    train.content["annotations"][0]["segments_info"][0]["category_id"] = 9
    train.content["images"][1]["file_name"] = "../x.png"
    train.save()
    status, printed = check("--config-file", sets[1])
    assert status == 1 and "bad-entry" in printed


def test_no_check_is_possible(check, tmp_path):
    item = {"name": "x", "image_rot": "y"}
    for datasets, message in (
        ({"TRAIN": [], "TEST": []}, "names no data set"),
        ({"REGISTER": [item]}, r"unknown keys ['image_rot'] and lacks ['image_root', "),
        ({"TEST": ["none"]}, "'none' is no panoptic data set"),
    ):
        config = save_config(tmp_path / "mine.yaml", datasets)
        status, printed = check("--config-file", config)
        assert status == 1 and message in printed and "Traceback" not in printed
    status, printed = check("--config-file", tmp_path / "none.yaml")
    assert status == 1 and "none.yaml" in printed
    for arguments in ([], ["--image-root", "x"], ["--config-file", "x", "--image-root", "x"]):
        assert check(*arguments)[0] == 2
