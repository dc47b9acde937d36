"""Keys of the config, and the files that it is read from."""

import re
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from detr_panoptic_d2.config import (
    add_detr_panoptic_config,
    get_config_file,
    list_config_files,
    merged_cfg,
)

PACKAGE = Path(__file__).parents[1] / "detr_panoptic_d2"


def keys(cfg, prefix=""):
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def own_keys():
    cfg = get_cfg()
    before = set(keys(cfg))
    add_detr_panoptic_config(cfg)
    return sorted(set(keys(cfg)) - before)


def test_every_key_has_a_comment_and_is_read():
    lines = (PACKAGE / "config.py").read_text().splitlines()
    parts = ["modeling", "data", "engine", "evaluation", "checkpoint", "visualization", "apps/demo"]
    files = [path for part in parts for path in (PACKAGE / part).rglob("*.py")]
    code = "\n".join(re.sub(r'(?s)""".*?"""', "", path.read_text()) for path in files)
    for key in own_keys():
        number = next(i for i, line in enumerate(lines) if line.strip().startswith(f"cfg.{key} ="))
        assert lines[number - 1].strip().startswith("# "), key
        # As cfg.X.KEY, or by a loop over ("KEY", ...) or ("key", ...).
        name = key.rpartition(".")[2]
        assert re.search(rf"[.\"]{name}\b(?! =)|\"{name.lower()}\"", code), key


def test_configs_by_path_and_by_name(tmp_path):
    names = list_config_files()
    assert {"detr_panoptic_R50.yaml", "shapes/tiny.yaml"} <= set(names)
    assert all(Path(get_config_file(name)).is_file() for name in names)
    assert merged_cfg("detr_panoptic_R50.yaml").SOLVER.IMS_PER_BATCH == 64
    path = tmp_path / "mine.yaml"
    path.write_text("SEED: 5\n")
    assert merged_cfg(str(path)).SEED == 5
    with pytest.raises(FileNotFoundError, match=r"No config 'nothing\.yaml'.*R50") as caught:
        merged_cfg("nothing.yaml")
    assert str(Path.cwd()) in str(caught.value)


@pytest.mark.parametrize("base", ["detr_panoptic_R101.yaml", "own_data/from_scratch_small.yaml"])
def test_base_by_its_name_in_the_package(tmp_path, monkeypatch, base):
    """As --config-file finds it, from any folder; a file beside the config comes first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {base}\nSEED: 7\n")
    cfg, expected = merged_cfg("mine.yaml"), merged_cfg(base)
    assert cfg.SEED == 7
    cfg.SEED = expected.SEED
    assert cfg == expected
    beside = tmp_path / base
    beside.parent.mkdir(exist_ok=True)
    beside.write_text("OUTPUT_DIR: ./beside\n")
    assert merged_cfg("mine.yaml").OUTPUT_DIR == "./beside"
